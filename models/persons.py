"""Persons, from in front or from behind: YOLOX (Ge et al. 2021, arXiv:2107.08430), its official ONNX export.

The picture is letterboxed as the authors do since release 0.1.1: shrunk or grown into the upper left corner of
the model's own size, the rest grey, BGR from 0 to 255. A prediction is a box in units of its cell, an objectness
and 80 classes of COCO, of which the first is the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import UsageError
from models.faces import suppressed
from models.onnx import open_session
from models.signature import open_axis, require
from models.weights import weights_file

MODELS = ("yolox-s", "yolox-m", "yolox-l", "yolox-x")
"""Exports of release 0.1.1rc0 for pictures of 640 px."""
STRIDES = (8, 16, 32)
"""Input pixels per cell of the three grids, in the order of the predictions."""
SIDE = 640
"""Input side where the export leaves it open, px."""
COLUMNS = 85
"""x, y, log width, log height, objectness, 80 classes."""
GREY = 114
NMS_IOU = 0.45
"""Two boxes that overlap more are one person (the authors' value)."""
MOST = 8
"""Pictures at once, where the export has an open batch axis (the published ones do not)."""


@dataclass(frozen=True)
class Persons:
    """Persons of one picture, best first. boxes: [n, 4] float32, x0, y0, x1, y1 in px; scores: [n] float32, 0-1."""

    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Persons:
        """The persons that a mask, slice or index array picks."""
        return Persons(self.boxes[index], self.scores[index])


def detect_persons(
    images: Sequence[np.ndarray], *, model: str = "yolox-m", threshold: float = 0.3, device: str = "cpu"
) -> list[Persons]:
    """Persons in each of `images` ([h, w, 3] uint8 BGR), in its pixels, cut off at its edges.

    Those scored `threshold` or less are left out. Raises ModelError where the weights are missing, damaged or
    another model's, and where `device` is not there; UsageError for an unknown `model`.
    """
    net = _net(str(yolox_file(model)), device)
    step = MOST if net.batched else 1
    found: list[Persons] = []
    for first in range(0, len(images), step):
        blobs, ratios = zip(*(letterbox(image, net.size) for image in images[first : first + step]), strict=True)
        (raw,) = net.session.run(None, {net.input: np.stack(blobs)})
        found += [decode(one, net.size, ratio, threshold) for one, ratio in zip(raw, ratios, strict=True)]
    return [_inside(persons, image) for persons, image in zip(found, images, strict=True)]


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """([3, height, width] float32 0-255 BGR, ratio): `image` scaled by `ratio` into `size` (height, width)."""
    import cv2

    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    inner = max(1, int(width * ratio)), max(1, int(height * ratio))
    padded = np.full((*size, 3), GREY, np.uint8)
    padded[: inner[1], : inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(padded.transpose(2, 0, 1), np.float32), ratio


def decode(raw: np.ndarray, size: tuple[int, int], ratio: float, threshold: float) -> Persons:
    """Persons, in px of the picture and not cut off at its edges, from predictions `raw` [n, 85] for an input of
    `size` (height, width) that is `ratio` times the picture. The score is objectness x class."""
    scores = raw[:, 4] * raw[:, 5]
    likely = np.nonzero(scores > threshold)[0]
    places, strides = _cells(size)
    centres = (raw[likely, :2] + places[likely]) * strides[likely]
    halves = np.exp(raw[likely, 2:4]) * strides[likely] / 2
    boxes = (np.concatenate([centres - halves, centres + halves], axis=1) / ratio).astype(np.float32)
    pixels = boxes + np.array([0, 0, 1, 1], np.float32)  # the authors' NMS counts both edge pixels
    keep = suppressed(pixels, scores[likely], NMS_IOU)
    return Persons(boxes[keep], scores[likely][keep].astype(np.float32))


def yolox_file(model: str) -> Path:
    """Path of the export of `model`. Raises UsageError for an unknown name, ModelError when it is missing."""
    if model not in MODELS:
        raise UsageError(f"unknown YOLOX model {model!r}; choose from {', '.join(MODELS)}")
    return weights_file(model)


@cache
def _cells(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """([n, 2] column and row of each prediction's cell, [n, 1] its stride) for an input of `size`."""
    places, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        places.append(np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32))
        strides.append(np.full((rows.size, 1), stride, np.float32))
    return np.concatenate(places), np.concatenate(strides)


def _inside(persons: Persons, image: np.ndarray) -> Persons:
    height, width = image.shape[:2]
    limits = np.array([width, height, width, height], np.float32)
    return Persons(np.clip(persons.boxes, 0, limits), persons.scores)


@dataclass(frozen=True)
class _Net:
    """session: of ONNX Runtime. input: its name. size: height and width that it takes. batched: several at once."""

    session: Any
    input: str
    size: tuple[int, int]
    batched: bool


@cache
def _net(path: str, device: str) -> _Net:
    place = Path(path)
    session = open_session(place, device=device)
    require(session, place, "YOLOX export", [(None, 3, None, None)], [(None, None, COLUMNS)])
    sides = session.get_inputs()[0].shape[2:]
    height, width = (side if isinstance(side, int) and side % STRIDES[-1] == 0 else SIDE for side in sides)
    cells = sum((height // stride) * (width // stride) for stride in STRIDES)
    require(session, place, "YOLOX export", [(None, 3, height, width)], [(None, cells, COLUMNS)])
    return _Net(session, session.get_inputs()[0].name, (height, width), open_axis(session))
