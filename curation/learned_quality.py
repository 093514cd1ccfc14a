"""Learned image quality on the scale of the paper's bound: 0-100, at least 70 for `sft` (the paper, A.1).

The paper cites KonIQ++ (Su et al., BMVC 2021), which no package carries. The metrics here that were trained on
KonIQ-10k predict its opinion scores of 1-100, most of them as 0-1 (x 100 then lacks at most 1): topiq_nr (the
default: one look at the whole picture, about a second for 512 px on a core), hyperiqa (by KonIQ++'s first author,
what LatentSync filters with; 25 crops, five times the cost), musiq, dbcnn, nima-koniq, cnniqa, maniqa, tres.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import cv2
import numpy as np

from curation.clip import Clip, crop_square
from curation.stage import Result, Scalar, Stage, Unmeasured
from manifests.records import measures_of
from models.clock import FPS
from models.image_quality import FILES, check, load_metric, metric_file, model_name
from models.lock import file_sha256
from models.weights import catalogue


@dataclass(frozen=True)
class LearnedQuality(Stage):
    """Median over the sampled frames of a pyiqa metric, of the head portrait that the Actor is trained on.

    The portrait and not the frame: a sharp studio says nothing about the face, and it alone is learned. It is seen
    at its own size up to `max_side`, which is what pyiqa's metrics saw of KonIQ-10k (512x384), and grown to
    `min_side` where it is smaller, as the Actor would see it, so that a tiny face is not called sharp.

    A bound belongs to a metric, so each is a backend of its own: "pyiqa-topiq_nr".
    """

    name: ClassVar[str] = "quality"
    reads: ClassVar[tuple[str, ...]] = ("speakers",)
    measures: ClassVar[tuple[str, ...]] = measures_of("quality")

    metric: str = field(default="topiq_nr", metadata={"choices": tuple(FILES)})
    whole_frame: bool = False
    """The whole picture instead of the portrait, its longer side at most `max_side`."""
    min_side: int = 256
    max_side: int = 512
    max_samples: int = 10
    """Frames measured at most, spread evenly."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self.metric)

    @property
    def backend(self) -> str:  # type: ignore[override]
        return model_name(self.metric)

    def weights(self) -> tuple[str, ...]:
        own = model_name(self.metric)
        return ("pyiqa", own) if own in catalogue() else ("pyiqa",)

    def revision(self) -> str:
        path = metric_file(self.metric)
        known = super().revision()
        return known if path is None or len(self.weights()) > 1 else f"{known}, {path.name} {file_sha256(path)[:16]}"

    def measure(self, clip: Clip) -> Result:
        pictures = list(self.pictures(clip))
        metric = load_metric(self.metric, self.device)
        scored = [(at, metric.score(picture)) for at, picture in pictures]
        found = [(at, round(score, 3)) for at, score in scored if math.isfinite(score)]
        if not found:
            raise Unmeasured(f"{self.metric} has no number for these pictures")
        measures: dict[str, Scalar] = dict.fromkeys(self.measures)
        measures["quality_score"] = round(float(np.median([score for _, score in found])), 3)
        looks = [round(at / FPS, 2) for at, _ in found]
        return Result(measures, {"per_frame": [score for _, score in found], "looks_s": looks})

    def pictures(self, clip: Clip) -> Iterator[tuple[int, np.ndarray]]:
        """(frame, picture [h, w, 3] uint8 BGR) of each look. Raises Unmeasured without a face."""
        if not clip.samples or (not self.whole_frame and clip.row.get("crop_side") is None):
            raise Unmeasured("no face" if clip.samples else "no sampled frame")
        order = sorted(clip.samples)
        for at in order[:: -(-len(order) // self.max_samples)]:
            image = clip.samples[at]
            yield at, shrunk(image, self.max_side) if self.whole_frame else self.portrait(clip, image)

    def portrait(self, clip: Clip, image: np.ndarray) -> np.ndarray:
        """[side, side, 3] uint8 BGR: the clip's fixed square of a sampled frame."""
        to_sample = image.shape[1] / clip.info.width
        x, y, side = (float(clip.row[f"crop_{part}"]) * to_sample for part in ("x", "y", "side"))
        return crop_square(image, x, y, side, min(self.max_side, max(self.min_side, round(side))))


def shrunk(image: np.ndarray, max_side: int) -> np.ndarray:
    """`image` [h, w, 3] with its longer side at most `max_side` px."""
    height, width = image.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return image
    return cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)
