"""Latents to pictures while they come: the portrait first, then chunk by chunk, with bounded look-ahead and memory.

A decoder that looks to both sides (LTX-Video's) is shown each chunk between those before it and the next few, so
every frame is decoded once, from a window that moves along a chunk at a time: no edge of a window is ever shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.clock import CHUNK_FRAMES
from models.ltx_video import CONTEXT, LtxVideo
from models.video_codec import VideoCodec

PORTRAIT = -1
"""The chunk of latent 0, which is one frame, right before chunk 0."""


@dataclass(frozen=True)
class Reach:
    """What a chunk is decoded with. past, ahead: chunks before and after it; frames are final `ahead` chunks late."""

    past: int = 0
    ahead: int = 0


NEXT = Reach(1, 1)
"""For the bundled codec: a stream has the very bytes of the whole, 0.32 s of clock late."""
EXACT = Reach(CONTEXT, CONTEXT)
"""For LTX-Video: within a grey level of the whole, 3.84 s late."""
LIVE = Reach(8, 5)
"""For LTX-Video: 1.6 s of clock late, and as chunks in flight follow each other by a few rounds, the first segment's
six chunks make the first frames. Nets of the official depth with random weights, whose frames are noise of 60 grey
levels, then differ from the whole by 2 on average; 3 ahead: 6 to 8, 4: 3 to 4, 6: 0.5 to 1.2, 8: 0.1 to 0.2."""


@dataclass(frozen=True, eq=False)
class Frames:
    """What became final. chunk: whose they are, PORTRAIT for latent 0. pixels: [8, H, W, 3] uint8 RGB, [1, ...] of the
    portrait; frame i of chunk c is frame 8c + 1 + i of the stream."""

    chunk: int
    pixels: np.ndarray


class Pictures:
    """Decodes one stream. portrait: its latent 0, [channels, h, w]; reach: NEXT, LIVE or EXACT, or None for what the
    codec needs live; kept: chunks that may have been given and are not yet shown, and so may be dropped."""

    def __init__(self, codec: VideoCodec, portrait: np.ndarray, *, reach: Reach | None = None, kept: int = 16) -> None:
        self.codec, self.kept = codec, kept
        self.reach = reach or (LIVE if isinstance(codec, LtxVideo) else NEXT)
        self._latents = [portrait]
        self._first = 0  # the place of the first of them; chunk c is at place c + 1
        self._given = 0  # places whose frames have been given

    def push(self, chunk: int, latents: np.ndarray) -> list[Frames]:
        """Takes the next chunk, [channels, h, w], and gives what is final now. Raises ValueError for another chunk."""
        if chunk != self._next:
            raise ValueError(f"chunk {chunk} came where chunk {self._next} is next")
        self._latents.append(latents)
        return self._give(self._next + 1 - self.reach.ahead)

    def flush(self) -> list[Frames]:
        """The rest, at the end of the stream: nothing follows it."""
        return self._give(self._next + 1)

    def drop(self, shown: int) -> None:
        """An interruption: forgets every chunk after `shown`, the next of which is pushed next.

        What was shown was decoded with a look at what is forgotten; so a decoder that looks ahead goes on from there
        with the same past, but another future. Raises ValueError when `shown` has not been given or lies further back
        than `kept` chunks.
        """
        place = shown + 1
        if not max(self._given - 1 - self.kept, -1) <= place < max(self._given, 1):
            raise ValueError(f"cannot go back to chunk {shown}: chunk {self._given - 2} was given last")
        del self._latents[place + 1 - self._first :]
        self._given = min(self._given, place + 1)

    @property
    def _next(self) -> int:
        """The chunk that comes next."""
        return self._first + len(self._latents) - 1

    def _give(self, end: int) -> list[Frames]:
        """Decodes the places up to `end`, and forgets what no later one needs."""
        begin = self._given
        if end <= begin:
            return []
        pixels = self._decoded(begin, end)
        self._given = end
        past = end - self.reach.past - self.kept - self._first
        if past > 0:
            del self._latents[:past]
            self._first += past
        sizes = [1 if place == 0 else CHUNK_FRAMES for place in range(begin, end)]
        parts = np.split(pixels, np.cumsum(sizes)[:-1])
        return [Frames(place - 1, part) for place, part in zip(range(begin, end), parts, strict=True)]

    def _decoded(self, begin: int, end: int) -> np.ndarray:
        past = self._between(max(0, begin - self.reach.past), begin)
        future = self._between(end, end + self.reach.ahead)
        near = {name: each for name, each in (("past", past), ("future", future)) if len(each)}
        return self.codec.decode(self._between(begin, end), first=begin == 0, start=begin, **near)

    def _between(self, begin: int, end: int) -> np.ndarray:
        held = self._latents[max(0, begin - self._first) : max(0, end - self._first)]
        return np.stack(held) if held else np.empty((0, *self._latents[-1].shape), np.float32)
