"""Faces, their landmarks and whose they are: SCRFD, 2d106det and ArcFace of InsightFace's pack `buffalo_l`.

SCRFD: Guo et al. 2021, arXiv:2105.04714; ArcFace: Deng et al. 2019, arXiv:1801.07698. The pre- and postprocessing
is the `insightface` package's; files and sessions are ours, so that nothing is downloaded, no device is given up
in silence and no thread is started beyond those of the worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ModelError
from models.faces import Faces
from models.onnx import open_session
from models.signature import Shape, open_axis, require
from models.weights import weights_file

PACK = "insightface"
"""The pack in the catalogue."""
DETECTOR, CONTOUR, IDENTITY = "det_10g.onnx", "2d106det.onnx", "w600k_r50.onnx"
MULTIPLE = 32
"""SCRFD's input sides are multiples of this."""
CROP = 112
"""Side of ArcFace's aligned crop, px."""
WIDTH = 512
"""Numbers in an embedding."""
POINTS = 106
MOST = 16
"""Crops at once."""


def detect_faces(image: np.ndarray, *, side: int = 640, threshold: float = 0.5, device: str = "cpu") -> Faces:
    """Faces in `image` [h, w, 3] uint8 BGR by SCRFD, in its pixels, boxes cut off at its edges.

    side: the picture's longer side as the detector sees it, px; a picture is never grown. Its anchors are 16 to
    512 px, so a face that fills the picture is found when that is shrunk (the package looks at 640 and at 128 px).
    Faces scored under `threshold` are left out. Raises ModelError where the weights are missing, damaged or another
    model's, where the package is missing and where `device` is not there.
    """
    model = _detector(str(weights_file(PACK, DETECTOR)), device)
    height, width = image.shape[:2]
    ratio = min(1.0, side / max(height, width))
    inner = tuple(max(1, -(-round(length * ratio) // MULTIPLE)) * MULTIPLE for length in (width, height))
    found, points = model.detect(image, input_size=inner, det_thresh=threshold)
    limits = np.array([width, height, width, height], np.float32)
    return Faces(np.clip(found[:, :4], 0, limits), points.astype(np.float32), found[:, 4])


def embed(image: np.ndarray, landmarks: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """[n, 512] float32: ArcFace's features, as long as they come out, of the faces of `image` [h, w, 3] uint8 BGR
    whose `landmarks` [n, 5, 2] are given, each aligned to the 112-px template.

    The cosine of two says whether they are one person. Raises ModelError as `detect_faces`.
    """
    crop = _part("insightface.utils.face_align").norm_crop
    with warnings.catch_warnings():  # the package calls scikit-image by an old name, once a face
        warnings.simplefilter("ignore", FutureWarning)
        crops = [crop(image, points, CROP) for points in np.asarray(landmarks, np.float32)]
    return embed_crops(crops, device=device)


def embed_crops(crops: Sequence[np.ndarray], *, device: str = "cpu") -> np.ndarray:
    """[n, 512] float32 of aligned faces [112, 112, 3] uint8 BGR. Raises ModelError as `detect_faces`."""
    model = _recogniser(str(weights_file(PACK, IDENTITY)), device)
    step = MOST if open_axis(model.session) else 1
    parts = [model.get_feat(list(crops[first : first + step])) for first in range(0, len(crops), step)]
    return np.concatenate([np.zeros((0, WIDTH), np.float32), *parts])


def contour(image: np.ndarray, box: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """[106, 2] float32, x and y in px: jaw, brows, eyes, nose and lips of the face in `box` [4] of `image`
    [h, w, 3] uint8 BGR, in the order of InsightFace's 106 points. Raises ModelError as `detect_faces`."""

    model = _contour(str(weights_file(PACK, CONTOUR)), device)
    face = _part("insightface.app.common").Face(bbox=np.asarray(box))
    return np.asarray(model.get(image, face), np.float32)


@cache
def _detector(path: str, device: str) -> Any:
    """SCRFD that runs every size of picture through one session; the package would open one for each."""
    kind = _part("insightface.model_zoo.scrfd").SCRFD
    gives: list[Shape] = [(None, columns) for columns in (1, 4, 10) for _ in range(3)]
    session = _session(path, device, "SCRFD with landmarks", (None, 3, None, None), gives)
    if not (open_axis(session, 2) and open_axis(session, 3)):
        raise ModelError(f"{path} takes pictures of one size only; put the {DETECTOR} of buffalo_l there")
    return kind(model_file=path, session=session, static_shape_sessions=False)


@cache
def _recogniser(path: str, device: str) -> Any:
    kind = _part("insightface.model_zoo.arcface_onnx").ArcFaceONNX
    session = _session(path, device, "ArcFace", (None, 3, CROP, CROP), [(None, WIDTH)])
    return kind(model_file=path, session=session)


@cache
def _contour(path: str, device: str) -> Any:
    kind = _part("insightface.model_zoo.landmark").Landmark
    session = _session(path, device, "106-point landmark model", (None, 3, 192, 192), [(None, 2 * POINTS)])
    return kind(model_file=path, session=session)


def _session(path: str, device: str, what: str, takes: Shape, gives: Sequence[Shape]) -> Any:
    session = open_session(Path(path), device=device)
    require(session, Path(path), what, [takes], gives)
    return session


def _part(module: str) -> Any:
    """A module of the `insightface` package. Raises ModelError when it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ModelError(f"insightface does not import ({error}); run: pip install insightface") from error
