"""One clip as its stages see it: decoded once, everything else computed when first asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from curation.audio import Audio, read_audio
from curation.media import (
    Feed,
    Limits,
    MediaInfo,
    Scaler,
    decoded,
    fitted,
    on_grid,
    open_media,
    video_stream,
)
from manifests.errors import SourceError
from models.clock import FPS
from models.faces import crop_square

MAX_SIDE = 640
"""Longer side, px, of the frames that stages share."""
MAX_SAMPLE_SIDE = 1920
"""Longer side, px, of the sampled frames; more than 1080p shows no flaw better."""
SAMPLE_EVERY = 25
"""A sampled frame a second, the first half a second in."""


@dataclass(frozen=True)
class Frames:
    """The picture of a clip.

    small: [n, h, w, 3] uint8 BGR at 25 fps, longer side at most 640 px.
    samples: {grid index in the clip: [H, W, 3] uint8 BGR}, one a second, full size (at most 1920 px).
    """

    small: np.ndarray
    samples: Mapping[int, np.ndarray]


class Producer(Protocol):
    """A stage, as far as a clip knows it."""

    def product(self, clip: Clip, evidence: Mapping[str, Any]) -> Any: ...


@dataclass
class Clip:
    """A clip under measurement. Times and boxes that stages exchange: seconds from the clip's start, pixels
    of the displayed source picture.

    row: its row of the clips table, measures of earlier stages included.
    evidence: what earlier stages left for people and for resumed runs, by stage.
    facts: what the source list said of it: licence, language, origin, identity.
    """

    clip_id: str
    uri: str
    info: MediaInfo
    start_s: float
    end_s: float
    row: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Producer] = field(default_factory=dict)
    decode: Callable[[Clip], Frames] | None = None
    media_seconds: float = 0.0
    """Wall time spent so far on reading and scaling picture and sound."""
    _products: dict[str, Any] = field(default_factory=dict)
    _sounds: dict[tuple[int, int, int], Audio] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    @property
    def first_frame(self) -> int:
        """Index of the clip's first frame on the source's 25 fps grid."""
        return round(self.start_s * FPS)

    @property
    def frame_count(self) -> int:
        return round(self.end_s * FPS) - self.first_frame

    @cached_property
    def frames(self) -> Frames:
        """The picture. Raises SourceError when nothing decodes."""
        with self._media():
            return (self.decode or decode_clip)(self)

    @contextlib.contextmanager
    def _media(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.media_seconds += time.perf_counter() - began

    @property
    def small(self) -> np.ndarray:
        """[n, h, w, 3] uint8 BGR at 25 fps, longer side at most 640 px."""
        return self.frames.small

    @property
    def samples(self) -> Mapping[int, np.ndarray]:
        """{grid index: [H, W, 3] uint8 BGR} at full size, one a second."""
        return self.frames.samples

    @property
    def scale(self) -> float:
        """Source pixels per pixel of `small`."""
        return self.info.width / fitted(self.info.width, self.info.height, MAX_SIDE)[0]

    def audio(self, rate: int, start_s: float = 0.0, end_s: float | None = None) -> Audio:
        """Sound between two times (seconds from the clip's start, may reach outside the clip) at `rate` Hz.

        `Audio.start_s` of the answer is relative to the clip. Shorter where the source has no sound.
        """
        end_s = self.seconds if end_s is None else end_s
        key = (rate, round(start_s * 1000), round(end_s * 1000))
        if key not in self._sounds:
            with self._media():
                found = read_audio(self.uri, self.info, self.start_s + start_s, self.start_s + end_s, rate)
            self._sounds[key] = Audio(found.samples, rate, found.start_s - self.start_s)
        return self._sounds[key]

    def product(self, stage: str) -> Any:
        """What stage `stage` made for later ones: from this run, or again from stored evidence."""
        if stage not in self._products:
            self._products[stage] = self.stages[stage].product(self, self.evidence.get(stage) or {})
        return self._products[stage]

    def record(self, stage: str, measures: Mapping[str, Any], evidence: Mapping[str, Any] | None, product: Any) -> None:
        """Keeps what `stage` found, for the stages after it."""
        self.row.update(measures)
        if evidence is not None:
            self.evidence[stage] = evidence
        if product is not None:
            self._products[stage] = product

    def portrait(
        self, box: tuple[float, float, float], size: int, first: int = 0, count: int | None = None
    ) -> np.ndarray:
        """[count, size, size, 3] uint8 BGR: the square `box` (x, y, side in source pixels) of grid frames
        first ... first + count - 1, shrunk by area, grown by bicubic.

        Cut from the shared frames where they are decoded and resolve it, else decoded once more at full
        size, so that a face in a wide shot keeps the detail that the source has.
        """
        if count is None:
            count = len(self.small) - first
        with self._media():
            return self._portrait(box, size, first, count)

    def _portrait(self, box: tuple[float, float, float], size: int, first: int, count: int) -> np.ndarray:
        x, y, side = (v / self.scale for v in box)
        if "frames" in self.__dict__ and (side >= size or self.scale <= 1.0):
            out = np.empty((count, size, size, 3), np.uint8)
            for at in range(count):
                out[at] = crop_square(self.small[first + at], x, y, side, size)
            return out
        return decode_square(self, box, size, first, count)


def sample_indices(count: int) -> set[int]:
    """Grid indices of the sampled frames of a clip of `count` frames; never empty for a clip with frames."""
    return set(range(min(SAMPLE_EVERY // 2, max(0, count - 1)), count, SAMPLE_EVERY))


def decode_clip(clip: Clip) -> Frames:
    """Decodes the clip's own span. Raises SourceError when no frame of it decodes."""
    with SpanDecoder(clip.uri, clip.info) as decoder:
        return decoder(clip)


class SpanDecoder:
    """Decodes clips of one source in ascending order with one pass over it: goes on where the last clip
    ended, seeks over gaps. Which clips came before changes no frame."""

    SEEK_OVER_S = 4.0

    def __init__(self, uri: str, info: MediaInfo) -> None:
        self.uri, self.info = uri, info
        self._stack = contextlib.ExitStack()
        self._container: Any = None
        self._feed: Feed | None = None

    def __enter__(self) -> SpanDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, clip: Clip) -> Frames:
        """The picture of `clip`. Raises SourceError when no frame of it decodes."""
        grid = on_grid(self.frames(clip.first_frame), clip.first_frame, clip.frame_count)
        return collect(grid, clip)

    def frames(self, first: int) -> Iterator[tuple[float, Any]]:
        """(s from the first frame, decoded frame) from at or before grid frame `first` on."""
        if self._container is None:
            self._container = self._stack.enter_context(open_media(self.uri))
        start = first / FPS
        if self._feed is None or not 0 <= start - self._feed.position < self.SEEK_OVER_S:
            stream = video_stream(self._container, self.uri)
            zero = self.info.start_pts_s
            times = decoded(self._container, stream, Limits(), self.uri, from_pts_s=zero + start if first else None)
            self._feed = Feed((t - zero, frame) for t, frame in times)
        return iter(self._feed)


def collect(grid: Iterable[tuple[int, Any]], clip: Clip) -> Frames:
    """Frames of `clip` from (source grid index, decoded frame) pairs."""
    shrink, keep = Scaler(clip.info, MAX_SIDE), Scaler(clip.info, MAX_SAMPLE_SIDE)
    small = np.empty((clip.frame_count, shrink.height, shrink.width, 3), np.uint8)
    wanted, samples, found, last = sample_indices(clip.frame_count), {}, 0, None
    for index, frame in grid:
        at = index - clip.first_frame
        small[at] = small[at - 1] if frame is last else shrink(frame)
        if at in wanted:
            samples[at] = keep(frame)
        found, last = at + 1, frame
    if not found:
        raise SourceError(f"no frame of {clip.uri!r} from {clip.start_s:.2f} s to {clip.end_s:.2f} s decodes")
    return Frames(small[:found], samples)


def decode_square(clip: Clip, box: tuple[float, float, float], size: int, first: int, count: int) -> np.ndarray:
    """[count, size, size, 3] uint8 BGR of `box` from a decode at full size (`Clip.portrait`).

    Raises SourceError when fewer frames are there.
    """
    out = np.empty((count, size, size, 3), np.uint8)
    begin, full, found, last = clip.first_frame + first, Scaler(clip.info), 0, None
    with SpanDecoder(clip.uri, clip.info) as decoder:
        for index, frame in on_grid(decoder.frames(begin), begin, count):
            at = index - begin
            out[at] = out[at - 1] if frame is last else crop_square(full(frame), *box, size)
            found, last = at + 1, frame
    if found < count:
        raise SourceError(f"{clip.uri!r} ends after {begin + found} frames, {begin + count} were expected")
    return out
