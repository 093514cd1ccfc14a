"""Overlay text: captions and watermarks laid over the picture (the paper, A.1: clips with them are dropped).

The picture is looked at once a second, so that a caption of a second is met, and every few seconds with more
pixels, so that a small watermark is. What is found is followed through all frames by matching its pixels: an
overlay keeps its place in the frame, while text on clothes or in front of a moving camera does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import numpy as np

from curation.clip import Clip
from curation.stage import Result, Stage, Unmeasured, package_version
from manifests.records import measures_of
from models.clock import FPS


@dataclass
class Sighting:
    """A text and the frames in which it shows.

    box: x0, y0, x1, y1 in source px; shown: [n] bool over the clip's grid frames; looks: in how many looks the
    detector found it; still: keeps its rows of the frame around the look that found it.
    """

    words: str
    score: float
    box: tuple[float, float, float, float]
    shown: np.ndarray
    still: bool
    looks: int = 1
    letters: int = field(init=False)

    def __post_init__(self) -> None:
        self.letters = len(re.sub(r"[\W_]", "", self.words))

    def row(self) -> dict[str, Any]:
        """As evidence."""
        at = np.flatnonzero(self.shown)
        return {
            "words": self.words,
            "score": round(self.score, 3),
            "box": [round(v, 1) for v in self.box],
            "start_s": round(int(at[0]) / FPS, 2),
            "end_s": round((int(at[-1]) + 1) / FPS, 2),
            "seconds": round(len(at) / FPS, 2),
        }


@dataclass(frozen=True)
class RapidOcrOverlay(Stage):
    """PP-OCR on sampled frames, texts followed by normalised correlation of their edges.

    A text counts when it is read with `min_score`, stands still and has `min_letters` letters or digits; fewer
    (blank walls are read as a lone character) when it is found in two looks and is no larger than letters are.
    """

    name: ClassVar[str] = "overlay"
    backend: ClassVar[str] = "rapidocr"
    measures: ClassVar[tuple[str, ...]] = measures_of("overlay")

    scan_area: int = 640 * 360
    """Pixels of an ordinary look, one a second."""
    fine_area: int = 1280 * 720
    """Pixels of a fine look: 20 px of a 1080p picture become 13, which the detector still finds."""
    fine_every_s: float = 6.0
    min_score: float = 0.6
    min_letters: int = 3
    max_lone_height: float = 0.2
    """A lone character higher than this share of the picture is furniture."""
    min_match: float = 0.5
    """Correlation of edges above which a text is taken to show."""
    still_share: float = 0.6
    """Share of the frames near a look in which an overlay keeps its rows; scene text moves on."""

    def measure(self, clip: Clip) -> Result:
        if not clip.samples:
            raise Unmeasured("no sampled frame")
        found = self.find(clip)
        counted = [s for s in found if self.counts(s, clip.info.height)]
        shown = np.array([s.shown for s in counted])
        areas = np.array([(s.box[2] - s.box[0]) * (s.box[3] - s.box[1]) for s in counted])
        picture = clip.info.width * clip.info.height
        evidence = {
            "texts": [s.row() for s in counted],
            "in_scene": [s.row() for s in found if not s.still and s.letters >= self.min_letters],
            "looks_s": [round(at / FPS, 2) for at in sorted(clip.samples)],
        }
        measures = {
            "overlay_text_count": len(counted),
            "overlay_area": min(1.0, float((areas @ shown).max() / picture)) if counted else 0.0,
            "overlay_seconds": float(shown.any(axis=0).sum() / FPS) if counted else 0.0,
            "overlay_text": "\n".join(s.words for s in counted),
        }
        return Result(measures, evidence)

    def counts(self, text: Sighting, height: int) -> bool:
        """Whether `text` is an overlay, in a picture of `height` px."""
        if not text.still or not text.letters:
            return False
        if text.letters >= self.min_letters:
            return True
        return text.looks > 1 and text.box[3] - text.box[1] <= self.max_lone_height * height

    def find(self, clip: Clip) -> list[Sighting]:
        """Every text read in the clip, each once, in the order of the looks."""
        texts: list[Sighting] = []
        for at, boxes in self.look(clip.samples):
            for corners in boxes:
                box = bounds(corners)
                known = next((t for t in texts if t.shown[at] and overlap(t.box, box) > 0.3), None)
                if known:
                    known.looks += 1
                elif new := self.read(clip, at, corners):
                    merge(texts, new)
        return texts

    def look(self, samples: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """(frame, [m, 4, 2] boxes in px of the sampled frame) of each look, fine ones spread evenly."""
        from models.reader import locate

        order = sorted(samples)
        seconds = (order[-1] - order[0]) / FPS + 1
        fine = spread(order, max(1, round(seconds / self.fine_every_s)))
        for at in order:
            yield at, locate(samples[at], self.fine_area if at in fine else self.scan_area)

    def read(self, clip: Clip, at: int, corners: np.ndarray) -> Sighting | None:
        """The text in `corners` of the sample at frame `at`, followed through the clip; None if it reads badly."""
        from models.reader import recognise

        text = recognise(clip.samples[at], corners[None])[0]
        if not text.words or text.score < self.min_score:
            return None
        to_source = clip.info.width / clip.samples[at].shape[1]
        box = tuple(v * to_source for v in bounds(corners))
        shown, still = follow(clip.small, tuple(v / clip.scale for v in box), at, self.min_match)
        return Sighting(text.words, text.score, box, shown, still >= self.still_share)


def spread(items: list[int], count: int) -> set[int]:
    """`count` of `items`, in the middles of equal parts."""
    return {items[int((i + 0.5) * len(items) / count)] for i in range(min(count, len(items)))}
