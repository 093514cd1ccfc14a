"""What a run of a stream took: times to the first frame, real-time factors, latencies, skew, stalls, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from inference.media import Media
from models.clock import CHUNK_SECONDS, FPS, segments_of

PARTS = ("thinker", "actor", "pictures", "sound", "sink")
LATENCIES = 1 << 16
"""Chunks whose latency is remembered, the last ones: 5.8 hours."""


class Figures:
    """Filled while a stream runs. seconds: shown so far. spent: seconds of each of PARTS."""

    def __init__(self) -> None:
        self.began: float | None = None
        self._elsewhere = 0.0
        self._left: float | None = None
        self.spent: dict[str, float] = defaultdict(float)
        self.frames, self.chunks, self.segments, self.sound_s = 0, 0, 0, 0.0
        self.first_segment: float | None = None
        self.first_frame: float | None = None
        self.skew = 0.0
        self.late_chunks, self.behind = 0, 0.0
        self.latencies: deque[float] = deque(maxlen=LATENCIES)
        self._heard: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        return self.frames / FPS

    def begin(self) -> None:
        """Somebody wants the first chunk, or goes on."""
        self.began = self.began or self.now()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Whoever takes the chunks has its time inside; only the sink's is the stream's."""
        self._left = time.perf_counter() - self.spent["sink"]
        try:
            yield
        finally:
            self._elsewhere += time.perf_counter() - self.spent["sink"] - self._left
            self._left = None

    def now(self) -> float:
        """Seconds of the stream's own clock, which stands still while it is `away`."""
        left = self._left
        return (time.perf_counter() if left is None else left + self.spent["sink"]) - self._elsewhere

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Counts what runs inside as time of `part`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.spent[part] += time.perf_counter() - begin

    def heard(self, segment: int) -> None:
        """A segment has come."""
        now = self.now()
        self.segments += 1
        self._heard[segment] = now
        self._heard.pop(segment - 64, None)
        self.first_segment = self.first_segment or now

    def shown(self, media: Media) -> None:
        """A chunk is there to be shown."""
        now = self.now()
        self.first_frame = self.first_frame or now
        due = self.first_frame + self.seconds
        self.late_chunks += now > due
        self.behind = max(self.behind, now - due)
        self.frames, self.chunks = self.frames + len(media.frames), self.chunks + 1
        self.sound_s += len(media.sound) / media.rate
        self.skew = max(self.skew, abs(self.seconds - self.sound_s))
        heard = self._heard.get(segments_of(media.index)[1])
        if heard is not None:
            self.latencies.append(now - heard)

    def as_json(self, **more: Any) -> dict[str, Any]:
        """Everything, in seconds and GB; None for what never happened. more: what else is known.

        wall_s: since the first chunk was asked for, models loaded, without what whoever takes the chunks did in between;
        first_frame_s likewise, first_frame_after_segment_s from the first segment that came. realtime: wall_s a second
        shown; realtime_of: seconds of work of each part a second shown. latency: from the states that a chunk hears to
        the chunk. late_chunks, behind_s: chunks that would have come too late for somebody who began to watch with the
        first frame, and by how much at most. memory: the most that this process held; gpu_memory: of tensors on one GPU.
        """
        wall = 0.0 if self.began is None else self.now() - self.began
        seconds = self.seconds or float("nan")
        found = {
            "seconds": round(self.seconds, 3),
            "frames": self.frames,
            "chunks": self.chunks,
            "segments": self.segments,
            "wall_s": round(wall, 3),
            "first_frame_s": _since(self.first_frame, self.began),
            "first_frame_after_segment_s": _since(self.first_frame, self.first_segment),
            "realtime": _rounded(wall / seconds),
            "realtime_of": {part: _rounded(self.spent[part] / seconds) for part in PARTS},
            "latency_p50_s": _share(self.latencies, 0.5),
            "latency_p99_s": _share(self.latencies, 0.99),
            "skew_ms": round(1000 * self.skew, 3),
            "late_chunks": self.late_chunks,
            "behind_s": round(self.behind, 3),
            "memory_gb": memory_gb(resource.RUSAGE_SELF),
            "gpu_memory_gb": _gpu_memory(),
        }
        return {**found, **more}


def told(figures: dict[str, Any]) -> list[str]:
    """Lines for people of `Figures.as_json`."""
    parts = ", ".join(f"{part} {value:.2f}" for part, value in figures["realtime_of"].items() if value)
    lines = [
        f"{figures['seconds']:.2f} s in {figures['wall_s']:.1f} s ({figures['realtime'] or 0:.2f} s of work a second: {parts})"
    ]
    if figures["first_frame_s"] is not None:
        lines.append(
            f"first frame after {figures['first_frame_s']:.2f} s, {figures['first_frame_after_segment_s'] or 0:.2f} s "
            f"after the first segment; a chunk {figures['latency_p50_s'] or 0:.2f} s after its states (p50), "
            f"{figures['latency_p99_s'] or 0:.2f} s (p99)"
        )
    memory = f"{figures['memory_gb']:.2f} GB"
    if figures["gpu_memory_gb"] is not None:
        memory += f", GPU {figures['gpu_memory_gb']:.2f} GB"
    lines.append(
        f"skew {figures['skew_ms']:.1f} ms at most; {figures.get('stalls', 0)} stalls, {figures['late_chunks']} of "
        f"{figures['chunks']} chunks later than real time, {figures['behind_s']:.2f} s at most "
        f"({CHUNK_SECONDS} s a chunk); memory {memory}"
    )
    return lines


def memory_gb(whose: int) -> float:
    """The most memory that this process held, or the largest of its children that have ended (`resource.RUSAGE_...`)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(whose).ru_maxrss * unit / 1e9, 3)


def _since(moment: float | None, begin: float | None) -> float | None:
    return None if moment is None or begin is None else round(moment - begin, 4)


def _rounded(number: float) -> float | None:
    return None if number != number else round(number, 4)


def _share(values: Iterable[float], share: float) -> float | None:
    ordered = sorted(values)
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)


def _gpu_memory() -> float | None:
    import torch

    if not torch.cuda.is_initialized():
        return None
    found = max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    return round(found / 1e9, 3)
