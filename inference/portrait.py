"""A picture of somebody, as the Actor wants it: the head cut out as curation cuts it, encoded alone."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from manifests.errors import SourceError
from models.video_codec import BLOCK, VideoCodec

MAX_SIDE = 256
"""Longer side, px, of the picture in which faces are looked for first, as curation does; where there is none, at
FINE_SIDE."""
FINE_SIDE = 640
SURE, LEAST = 0.5, 0.04
"""A face has this score and, of the picture's shorter side, this size; `curation.speakers` has the same least size."""
MOST_PIXELS = 1 << 26
"""67 megapixels: more than cameras of people have."""


def read_picture(path: str | Path) -> np.ndarray:
    """[h, w, 3] uint8 BGR, upright, what is transparent on white. Raises SourceError for a file that is no picture, or a
    larger one than is needed."""
    import cv2
    from PIL import Image, UnidentifiedImageError

    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SourceError(f"portrait {str(path)!r} cannot be read ({error.strerror}); check the path") from None
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content.tobytes())) as picture:
            width, height, clear = *picture.size, picture.has_transparency_data  # nothing is decoded yet
        if width * height > MOST_PIXELS:
            raise SourceError(f"portrait {str(path)!r} has {width}x{height} px; make it smaller, 2000 px are plenty")
        found = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if clear else None
        if found is None or found.ndim < 3 or found.shape[2] < 4:
            found = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except Image.DecompressionBombError:
        raise SourceError(f"portrait {str(path)!r} is too large; make it smaller, 2000 px are plenty") from None
    except (UnidentifiedImageError, OSError, ValueError, cv2.error):
        found = None
    if found is None:
        raise SourceError(f"portrait {str(path)!r} is no picture that can be read; give a JPEG, PNG or WebP file")
    return _on_white(found) if found.shape[2] == 4 else np.asarray(found)


def _on_white(picture: np.ndarray) -> np.ndarray:
    """[h, w, 4] BGR and opacity, uint8 or uint16 -> [h, w, 3] uint8."""
    most = np.iinfo(picture.dtype).max
    opacity = picture[..., 3:].astype(np.float32) / most
    mixed = picture[..., :3].astype(np.float32) * opacity * (255 / most) + 255 * (1 - opacity)
    return np.rint(mixed).astype(np.uint8)


def head(picture: np.ndarray, size: int, *, force: bool = False, name: str = "the portrait") -> np.ndarray:
    """[size, size, 3] uint8 BGR: the square round the head in `picture` [h, w, 3] uint8 BGR, the one that curation cuts
    out of films.

    force: of several faces the largest is taken, without any the middle of the picture. Raises SourceError.
    """
    from models.faces import area, crop_square, portrait_square

    height, width = picture.shape[:2]
    boxes = faces(picture)
    if len(boxes) != 1 and not force:
        if not len(boxes):
            raise SourceError(
                f"{name} ({width}x{height} px) shows no face; take one from the front, or --force the middle of it"
            )
        raise SourceError(f"{name} shows {len(boxes)} faces; cut out the one that is meant, or --force for the largest")
    if not len(boxes):
        side = min(width, height)
        return crop_square(picture, (width - side) // 2, (height - side) // 2, side, size)
    return crop_square(picture, *portrait_square(boxes[[area(boxes).argmax()]], width, height), size)


def faces(picture: np.ndarray) -> np.ndarray:
    """[n, 4] boxes of the faces in `picture`, in its pixels."""
    from models.faces import detect

    for side in (MAX_SIDE, FINE_SIDE):
        found = detect(picture, max_side=side, threshold=SURE)
        longer = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1, initial=0)
        boxes = found.boxes[longer >= LEAST * min(picture.shape[:2])]
        if len(boxes):
            break
    return boxes


def encoded(picture: np.ndarray, codec: VideoCodec, grid: tuple[int, int], *, force: bool, name: str) -> np.ndarray:
    """[channels, h, w] float16, latent 0 of a stream of `grid` (h, w) latents. Raises SourceError (`head`), ValueError
    for a grid that is no square."""
    if grid[0] != grid[1]:
        raise ValueError(f"an Actor of {grid[0]}x{grid[1]} latents shows no square, and portraits are cut as squares")
    square = head(picture, grid[0] * BLOCK, force=force, name=name)
    return codec.encode(np.ascontiguousarray(square[None, ..., ::-1]))[0]
