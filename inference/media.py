"""What a stream shows: chunks of picture and sound, on one clock that the sound owns."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from models.clock import CHUNK_FRAMES, FPS

RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
"""Hz of sound that a film (AAC) can have; all have whole samples a frame."""


@dataclass(frozen=True, eq=False)
class Media:
    """A chunk as it is shown. index: on the stream's clock. frames: [8, H, W, 3] uint8 RGB, fewer where the stream ends.
    sound: [len(frames) * rate / 25] float32, mono, heard while they are seen. rate: Hz.

    Raises ValueError when picture and sound are not equally long.
    """

    index: int
    frames: np.ndarray
    sound: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        if len(self.sound) * FPS != len(self.frames) * self.rate:
            raise ValueError(f"{len(self.frames)} frames and {len(self.sound)} samples at {self.rate} Hz differ")

    @property
    def first_sample(self) -> int:
        """Samples before it."""
        return self.index * CHUNK_FRAMES * self.rate // FPS

    @property
    def first_frame(self) -> int:
        """Frames before it."""
        return self.index * CHUNK_FRAMES

    def at(self, frame: int) -> Fraction:
        """Seconds from the stream's beginning at which its `frame`-th frame is seen: when the sample is heard that
        goes with it. The clock is the sound's."""
        return Fraction(self.first_sample + frame * self.rate // FPS, self.rate)


def frame_at(sample: int, rate: int) -> int:
    """The frame that is seen while sample number `sample` is heard."""
    return sample * FPS // rate


def whole_rate(rate: int) -> int:
    """`rate` where a film can have it, else the nearest above, or the highest."""
    return rate if rate in RATES else min((known for known in RATES if known > rate), default=RATES[0])
