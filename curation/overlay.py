"""Overlay text: captions and watermarks laid over the picture (the paper, A.1: clips with them are dropped).

The picture is looked at once a second, so that a caption of a second is met, and every few seconds with more
pixels, so that a small watermark is. What is found is followed through all frames by matching its pixels: an
overlay keeps its place in the frame, while text on clothes or in front of a moving camera does not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import cv2
import numpy as np

from curation.clip import Clip
from curation.stage import Result, Scalar, Stage, Unmeasured, package_version
from manifests.records import measures_of
from models.clock import FPS

if TYPE_CHECKING:
    from models.reader import Text

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""
SAME_PLACE = 0.5
"""Overlap of two boxes, as a share of the smaller, from which they are one place."""
SAME_WORDS = 0.6
"""Likeness of two readings (difflib ratio) from which they are one text."""
NEAR = 10
"""Frames to each side of a look in which a text must stay."""
SLIDE = 24
"""How far a running line may move in NEAR frames, px of the shared frames."""


class TextReader(Protocol):
    """What finds and reads text (`models.reader`, `models.easyocr_reader`)."""

    def locate(self, image: np.ndarray, max_area: int = ...) -> np.ndarray:
        """[m, 4, 2] float32: corners of the lines of text in `image` ([h, w, 3] uint8 BGR), in its pixels."""

    def recognise(self, image: np.ndarray, boxes: np.ndarray) -> list[Text]:
        """What stands in `boxes` ([m, 4, 2], px of `image`): one Text a box, empty words where nothing is read."""


@dataclass
class Sighting:
    """A text and the frames in which it shows.

    box: x0, y0, x1, y1 in source px; shown: [n] bool over the clip's grid frames; looks: in how many looks the
    detector found it; still: keeps its rows of the frame around the look that found it.
    """

    words: str
    score: float
    box: Box
    shown: np.ndarray
    still: bool
    looks: int = 1

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
class TextOverlay(Stage):
    """A text reader on sampled frames, texts followed by normalised correlation of their edges.

    A text counts when it is read with `min_score`, stands still and has `min_letters` letters or digits; fewer
    (walls and curtains are read as a lone character) when it is surely read, in two looks, and no larger than letters
    are.
    """

    name: ClassVar[str] = "overlay"
    measures: ClassVar[tuple[str, ...]] = measures_of("overlay")

    scan_area: int = 640 * 360
    """Pixels of an ordinary look, one a second."""
    fine_area: int = 1280 * 720
    """Pixels of a fine look: 20 px of a 1080p picture become 13, which the detector still finds."""
    fine_every_s: float = 6.0
    min_score: float = 0.6
    min_letters: int = 3
    min_lone_score: float = 0.9
    """Score that fewer letters need: what is no letter is read with less."""
    max_lone_height: float = 0.2
    """A lone character higher than this share of the picture is furniture."""
    min_match: float = 0.5
    """Correlation of edges above which a text is taken to show."""
    still_share: float = 0.6
    """Share of the frames near a look in which an overlay keeps its rows; scene text moves on."""

    @abstractmethod
    def reader(self) -> TextReader:
        """What finds and reads its texts."""

    def measure(self, clip: Clip) -> Result:
        if not clip.samples:
            raise Unmeasured("no sampled frame")
        found = self.find(clip)
        counted = [s for s in found if self.counts(s)]
        shown = np.array([s.shown for s in counted])
        areas = np.array([(s.box[2] - s.box[0]) * (s.box[3] - s.box[1]) for s in counted])
        picture = clip.info.width * clip.info.height
        evidence = {
            "texts": [s.row() for s in counted],
            "in_scene": [s.row() for s in found if not s.still and count_letters(s.words) >= self.min_letters],
            "looks_s": [round(at / FPS, 2) for at in sorted(clip.samples)],
        }
        measures: dict[str, Scalar] = {
            "overlay_text_count": len(counted),
            "overlay_area": min(1.0, float((areas @ shown).max() / picture)) if counted else 0.0,
            "overlay_seconds": float(shown.any(axis=0).sum() / FPS) if counted else 0.0,
            "overlay_text": "\n".join(s.words for s in counted),
        }
        return Result(measures, evidence)

    def counts(self, text: Sighting) -> bool:
        """Whether `text` is an overlay."""
        if count_letters(text.words) >= self.min_letters:
            return text.still
        return text.still and text.looks > 1 and text.score >= self.min_lone_score

    def find(self, clip: Clip) -> list[Sighting]:
        """Every text read in the clip, each once, in the order of the looks."""
        texts: list[Sighting] = []
        for at, boxes in self.look(clip.samples):
            to_source = clip.info.width / clip.samples[at].shape[1]
            for corners in boxes:
                box = bounds(corners * to_source)
                known = next((t for t in texts if t.shown[at] and overlap(t.box, box) > SAME_PLACE), None)
                if known:
                    known.looks += 1
                elif new := self.read(clip, at, corners, box):
                    merge(texts, new)
        return texts

    def look(self, samples: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """(frame, [m, 4, 2] boxes in px of the sampled frame) of each look, fine ones spread evenly."""
        reader, order = self.reader(), sorted(samples)
        seconds = (order[-1] - order[0]) / FPS + 1
        fine = spread(order, max(1, round(seconds / self.fine_every_s)))
        for at in order:
            yield at, reader.locate(samples[at], self.fine_area if at in fine else self.scan_area)

    def read(self, clip: Clip, at: int, corners: np.ndarray, box: Box) -> Sighting | None:
        """The text in `corners` (px of the sample at frame `at`) and `box` (source px), followed through the
        clip; None if it reads badly."""
        text = self.reader().recognise(clip.samples[at], corners[None])[0]
        letters = count_letters(text.words)
        furniture = letters < self.min_letters and box[3] - box[1] > self.max_lone_height * clip.info.height
        if not letters or furniture or text.score < self.min_score:
            return None
        shown, still = follow(clip.small, scaled(box, 1 / clip.scale), at, self.min_match)
        return Sighting(text.words, text.score, box, shown, still >= self.still_share)


@dataclass(frozen=True)
class RapidOcrOverlay(TextOverlay):
    """PP-OCR, the models inside the `rapidocr` package."""

    backend: ClassVar[str] = "rapidocr"

    def weights(self) -> tuple[str, ...]:
        return ("pp-ocr-v6-small",)

    def revision(self) -> str:
        return package_version("rapidocr")

    def reader(self) -> TextReader:
        from models import reader

        return reader


@dataclass(frozen=True)
class EasyOcrOverlay(TextOverlay):
    """EasyOCR, the paper's reader, for Chinese and English; its score falls with the length of a text, so that it
    asks for less of it."""

    backend: ClassVar[str] = "easyocr"

    min_score: float = 0.4
    device: str = "cpu"

    def weights(self) -> tuple[str, ...]:
        return ("easyocr",)

    def revision(self) -> str:
        return f"{super().revision()}, {package_version('easyocr')}"

    def reader(self) -> TextReader:
        from models.easyocr_reader import EasyOcrReader

        return EasyOcrReader(self.device)


def count_letters(words: str) -> int:
    """Letters and digits, of any script."""
    return sum(character.isalnum() for character in words)


def spread(items: list[int], count: int) -> set[int]:
    """`count` of `items`, in the middles of equal parts."""
    return {items[int((i + 0.5) * len(items) / count)] for i in range(min(count, len(items)))}


def merge(texts: list[Sighting], new: Sighting) -> None:
    """Adds `new`, or joins it to the same words in the same place (a fading caption, a moving background)."""
    for i, old in enumerate(texts):
        alike = SequenceMatcher(None, old.words.lower(), new.words.lower(), autojunk=False).ratio()
        if alike >= SAME_WORDS and overlap(old.box, new.box) > SAME_PLACE:
            best = max(old, new, key=lambda t: t.score)
            looks = old.looks + new.looks
            texts[i] = replace(best, shown=old.shown | new.shown, still=old.still or new.still, looks=looks)
            return
    texts.append(new)


def follow(frames: np.ndarray, box: Box, at: int, min_match: float) -> tuple[np.ndarray, float]:
    """Where the picture in `box` (px of `frames`, [n, h, w, 3] uint8) of frame `at` shows again.

    Returns ([n] bool: it stands in that place, the share of the frames within NEAR of `at` in which it keeps
    its rows, however far it slides along them up to SLIDE px: a running line is an overlay too).
    """
    height, width = frames.shape[1:3]
    x0, y0 = max(0, int(box[0]) - 1), max(0, int(box[1]) - 1)
    x1, y1 = min(width, int(np.ceil(box[2])) + 1), min(height, int(np.ceil(box[3])) + 1)
    pattern = edges(frames[at, y0:y1, x0:x1])
    shown = np.array([match(frame[y0:y1, x0:x1], pattern) > min_match for frame in frames])
    shown[at] = True
    # a line as wide as the picture slides out of it: follow its middle
    trim = min(SLIDE, (x1 - x0) // 4)
    middle = pattern[:, trim : x1 - x0 - trim]
    left, right = max(0, x0 + trim - SLIDE), min(width, x1 - trim + SLIDE)
    near = [i for i in range(max(0, at - NEAR), min(len(frames), at + NEAR + 1)) if i != at]
    kept = [shown[i] or match(frames[i, y0:y1, left:right], middle) > min_match for i in near]
    return shown, float(np.mean(kept)) if kept else 1.0


def edges(image: np.ndarray) -> np.ndarray:
    """[h, w, 2] float32 derivatives along x and y of a BGR picture: what a change of light leaves alone."""
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return np.dstack([cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)])


def match(image: np.ndarray, pattern: np.ndarray) -> float:
    """Best normalised correlation (-1 ... 1) of `pattern` with the edges of `image`, at any place in it."""
    found = cv2.matchTemplate(edges(image), pattern, cv2.TM_CCORR_NORMED)
    return float(np.nan_to_num(found, posinf=0.0, neginf=0.0).max())


def bounds(corners: np.ndarray) -> Box:
    """x0, y0, x1, y1 of [4, 2] corners."""
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return x0, y0, x1, y1


def scaled(box: Box, factor: float) -> Box:
    x0, y0, x1, y1 = box
    return x0 * factor, y0 * factor, x1 * factor, y1 * factor


def overlap(a: Box, b: Box) -> float:
    """Common area over the smaller of the two areas: a line is found whole in one look, in parts in the next."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    least = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return wide * high / least if wide > 0 and high > 0 else 0.0
