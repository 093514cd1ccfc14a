"""Where a stream goes: the interface, a function, and playback, on which live calls stand. Films: `inference.film`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from inference.media import Media, frame_at


class Sink(Protocol):
    """Takes chunks in order. `put`, `drop` and `close` are called by one thread."""

    @property
    def shown(self) -> int:
        """The last chunk that somebody has seen any of, which cannot be taken back; -1 before any."""
        ...

    def put(self, media: Media) -> None:
        """The next chunk."""
        ...

    def drop(self) -> int:
        """Everything that nobody has seen any of is forgotten; the chunk after `shown`, which this gives, comes next, anew."""
        ...

    def close(self) -> None:
        """Nothing comes any more; again: nothing."""
        ...


class Callback:
    """Gives each chunk to a function; what it was given is shown."""

    def __init__(self, take: Callable[[Media], None]) -> None:
        self.take, self.shown = take, -1

    def put(self, media: Media) -> None:
        """As `Sink.put`."""
        self.take(media)
        self.shown = media.index

    def drop(self) -> int:
        """As `Sink.drop`; there is nothing left that could be."""
        return self.shown

    def close(self) -> None:
        """As `Sink.close`."""


class Playback:
    """A sink for a device that plays: it pulls sound at its own pace, and that pace is the clock. Pictures are asked for
    when they are drawn, and are those of the sample that is heard, so they cannot drift from it whatever either clock
    does. Any thread may pull.

    heard: samples played of the stream; silent: samples of silence in between, while nothing was there: no time passes
    for the stream then. stalls: how often that happened after the first chunk.
    """

    def __init__(self, rate: int) -> None:
        self.rate, self.heard, self.silent, self.stalls = rate, 0, 0, 0
        self._chunks: deque[Media] = deque()
        self._last: np.ndarray | None = None
        self._lock = threading.Lock()
        self._past = -1  # the last chunk that was played to its end
        self._dry = True
        self.closed = False

    @property
    def shown(self) -> int:
        """As `Sink.shown`."""
        with self._lock:
            return self._shown()

    def put(self, media: Media) -> None:
        """As `Sink.put`. Raises ValueError for sound of another rate."""
        if media.rate != self.rate:
            raise ValueError(f"sound of {media.rate} Hz, but {self.rate} is played")
        with self._lock:
            self._chunks.append(media)

    def drop(self) -> int:
        """As `Sink.drop`."""
        with self._lock:
            shown = self._shown()
            while self._chunks and self._chunks[-1].index > shown:
                self._chunks.pop()
            return shown

    def close(self) -> None:
        """As `Sink.close`; what was put may still be pulled."""
        with self._lock:
            self.closed = True

    def pull(self, samples: int) -> np.ndarray:
        """[samples] float32: what is heard next, silence where there is nothing."""
        found = np.zeros(samples, np.float32)
        with self._lock:
            done = self._filled(found)
            dry = done < samples
            self.stalls += dry and not self._dry and not self.closed
            self._dry = dry
            self.silent += samples - done
        return found

    def picture(self) -> np.ndarray | None:
        """[H, W, 3] uint8 RGB: the frame of the sample that is heard next; where it has not come, the last one; None
        before the first."""
        with self._lock:
            frame = frame_at(self.heard, self.rate)
            for media in self._chunks:
                if media.first_frame <= frame < media.first_frame + len(media.frames):
                    self._last = media.frames[frame - media.first_frame]
            return self._last

    def _shown(self) -> int:
        """The chunk of the last sample played."""
        begun = [media.index for media in self._chunks if media.first_sample < self.heard]
        if begun:
            return begun[-1]
        return self._chunks[0].index - 1 if self._chunks else self._past

    def _filled(self, into: np.ndarray) -> int:
        """Takes sound until `into` is full or nothing is left; how much there was."""
        done = 0
        while done < len(into) and self._chunks:
            media = self._chunks[0]
            at = self.heard - media.first_sample
            piece = media.sound[at : at + len(into) - done]
            into[done : done + len(piece)] = piece
            done, self.heard = done + len(piece), self.heard + len(piece)
            if at + len(piece) == len(media.sound):
                self._past, self._last = media.index, media.frames[-1]
                self._chunks.popleft()
        return done
