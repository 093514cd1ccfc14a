"""Lip-sync without weights: audio-visual correlation of the main face and the sound (`models.correlation`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from curation.stage import Result, Stage, Unmeasured
from manifests.records import measures_of
from models.clock import ANALYSIS_RATE, FPS
from models.correlation import (
    MAX_LAG,
    MIN_FRAMES,
    Agreement,
    Mouth,
    agreement,
    distinct,
    face_crops,
    landmark_paths,
    loudness,
    mouth_of,
)
from models.faces import FaceTrack

if TYPE_CHECKING:
    from curation.clip import Clip

TRACK_REACH = 5
"""Frames before the first and after the last look at the face in which it is taken to be where it was seen."""
SILENCE = 1e-4
"""Peak amplitude under which a sound is digital silence (-80 dBFS)."""


class Finding(Protocol):
    """What a backend found at one cut of the sound. curve: [31] agreement at lags -15 ... 15, higher is better."""

    @property
    def curve(self) -> np.ndarray: ...

    @property
    def lag(self) -> int: ...

    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True)
class CorrelationSync(Stage):
    """Sync by correlation. Offsets have SyncNet's sign: audio that is late by k frames is at -k.

    min_seconds: face and sound together; under it the method cannot tell.
    """

    name = "sync"
    backend = "correlation"
    reads = ("speakers",)
    measures = measures_of("sync")

    min_seconds: float = 4.5

    def revision(self) -> str:
        """Optical flow differs between releases of OpenCV."""
        return f"opencv {cv2.__version__}"

    def measure(self, clip: Clip) -> Result:
        """Raises Unmeasured without a face, without sound, or with less than `min_seconds` of both."""
        if clip.seconds < self.min_seconds:
            raise Unmeasured(f"{clip.seconds:.2f} s is too short, {self.min_seconds} s needed")
        if not (np.abs(clip.audio(ANALYSIS_RATE).samples) > SILENCE).any():
            raise Unmeasured("no sound")
        track = clip.product("speakers")
        if track is None or not len(track.frames):
            raise Unmeasured("no face")
        first, last = seen_span(track, len(clip.small))
        before = heard(clip, first, last, 0)
        both = int((~np.isnan(before).any(1)).sum())
        if both + 1 < self.min_seconds * FPS:  # the window of the first frame is half empty
            raise Unmeasured(f"face and sound together for {both / FPS:.2f} s only, {self.min_seconds} s needed")
        mouth = seen(clip, track, first, last)
        found = agreement(mouth, before)
        return result(found, corrected(clip, mouth, first, last, found.lag))


def seen_span(track: FaceTrack, count: int) -> tuple[int, int]:
    """(first frame, one after the last) in which the face is known to be, of a clip of `count` frames."""
    return max(0, int(track.frames[0]) - TRACK_REACH), min(count, int(track.frames[-1]) + 1 + TRACK_REACH)


def seen(clip: Clip, track: FaceTrack, first: int, last: int) -> Mouth:
    """The mouth's motion in frames `first` to `last` - 1 of the clip."""
    images = clip.small[first:last]
    points = landmark_paths(track.frames - first, track.landmarks / clip.scale, len(images))
    return mouth_of(face_crops(images, points), distinct(images))


def heard(clip: Clip, first: int, last: int, lag: int) -> np.ndarray:
    """[last - first, 40] loudness at those frames of the sound cut `lag` frames later; NaN where there is none."""
    shift = lag / FPS
    sound = clip.audio(ANALYSIS_RATE, shift, clip.seconds + shift)
    return loudness(sound.samples, sound.start_s - shift - first / FPS, last - first)


def corrected(clip: Clip, mouth: Mouth, first: int, last: int, lag: int) -> Agreement | None:
    """The agreement again after `lag` is taken out of the sound; None where the rest of the source is too short."""
    sound = heard(clip, first, last, lag)
    if (~np.isnan(sound).any(1)).sum() < MIN_FRAMES:
        return None
    return agreement(mouth, sound, lag)


def result(found: Finding, after: Finding | None) -> Result:
    """Measures and evidence of the clip as it came and as corrected."""
    measures = {
        "sync_confidence": found.confidence,
        "sync_offset_frames": -found.lag,
        "sync_residual_frames": None if after is None else -after.lag,
        "sync_residual_confidence": None if after is None else after.confidence,
    }
    evidence = {
        "lags": list(range(-MAX_LAG, MAX_LAG + 1)),
        "curve": np.round(found.curve, 4).tolist(),
        "corrected_curve": None if after is None else np.round(after.curve, 4).tolist(),
    }
    return Result(measures, evidence)
