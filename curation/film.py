"""Pictures and sound into a file, for people to look at: one thread, so that the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from models.clock import FPS


@dataclass(frozen=True)
class Coding:
    """How a film is stored. options: of the video encoder; movflags: of the MP4 container; the extension of the
    file names the container."""

    video: str = "libx264"
    audio: str = "aac"
    audio_bit_rate: int = 96_000
    options: Mapping[str, str] = field(default_factory=dict)
    movflags: str = ""


def write_film(
    path: Path,
    frames: Iterable[np.ndarray],
    samples: np.ndarray | None,
    rate: int,
    coding: Coding,
    *,
    fps: int | Fraction = FPS,
    pixels: str = "rgb24",
) -> None:
    """Writes [h, w, 3] uint8 `frames` (even sides) in the order of `pixels` and `samples` ([n] float32 at `rate`
    Hz; None: no sound) to `path`, sample 0 at frame 0."""
    flags = {"movflags": coding.movflags} if coding.movflags else {}
    with av.open(str(path), "w", options=flags) as container:
        video: Any = container.add_stream(coding.video, rate=fps, options=dict(coding.options))
        video.pix_fmt, video.thread_count, video.thread_type = "yuv420p", 1, "NONE"
        sound = None if samples is None else _Sound(container, coding, samples, rate)
        for index, image in enumerate(frames):
            if not index:
                video.height, video.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format=pixels)
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            container.mux(video.encode(frame))
            if sound:
                sound.send(until_s=float((index + 1) / fps))
        if sound:
            sound.finish()
        container.mux(video.encode(None))


class _Sound:
    """The audio stream of a file being written; sent along with the picture, so that they interleave."""

    def __init__(self, container: Any, coding: Coding, samples: np.ndarray, rate: int) -> None:
        self._container, self._samples, self._rate, self._sent = container, samples, rate, 0
        kept = 48_000 if coding.audio == "libopus" else rate  # opus knows no 22,050 Hz
        self._stream = container.add_stream(coding.audio, rate=kept, layout="mono", bit_rate=coding.audio_bit_rate)

    def send(self, until_s: float) -> None:
        first, last = self._sent, min(len(self._samples), round(until_s * self._rate))
        if last <= first:
            return
        block = np.ascontiguousarray(self._samples[None, first:last], np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._rate, first, Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self._sent = last

    def finish(self) -> None:
        self.send(len(self._samples) / self._rate)
        self._container.mux(self._stream.encode(None))
