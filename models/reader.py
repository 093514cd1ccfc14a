"""Text in pictures: where it stands and what it says (PP-OCRv6 small, DBNet detector and CTC recogniser, as the
ONNX files inside the `rapidocr` package)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from manifests.errors import ModelError
from models.onnx import package_file

DETECTOR = "PP-OCRv6_det_small.onnx"
RECOGNISER = "PP-OCRv6_rec_small.onnx"
STRIDE = 32
"""The detector's grid, px."""


@dataclass(frozen=True)
class Text:
    """One line of text. box: [4, 2] float32, px, clockwise from the top left; score: mean of its characters, 0-1."""

    words: str
    score: float
    box: np.ndarray


@cache
def engine() -> Any:
    """The OCR engine, once a process, one thread, silent. Raises ModelError when a model file is missing: by
    itself the package would try to download it."""
    from rapidocr import RapidOCR

    files = {kind: package_file("rapidocr", "models", name) for kind, name in (("Det", DETECTOR), ("Rec", RECOGNISER))}
    for path in files.values():
        if not path.is_file():
            raise ModelError(f"no model file at {path}; run: pip install --force-reinstall 'rapidocr>=3.10'")
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            # pictures come in the size to look at; the default grows all to 736 px
            "Det.limit_type": "max",
            "Det.limit_side_len": 4096,
            **{f"{kind}.model_path": str(path) for kind, path in files.items()},
        }
    )


def locate(image: np.ndarray, max_area: int = 921_600) -> np.ndarray:
    """[m, 4, 2] float32: corners of the lines of text in `image` ([h, w, 3] uint8 BGR), in its pixels.

    The picture is looked at with at most `max_area` pixels (default 1280x720), text below about 10 of which is
    mostly missed. One core takes some 0.38 s a megapixel: 90 ms at 640x360, 350 ms at 1280x720.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, (max_area / (height * width)) ** 0.5)
    wide, high = (max(STRIDE, round(side * shrink / STRIDE) * STRIDE) for side in (width, height))
    looked = cv2.resize(image, (wide, high), interpolation=cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR)
    # the flags stick to the engine, so every call says all three
    found = engine()(looked, use_det=True, use_cls=False, use_rec=False)
    if found.boxes is None or not len(found.boxes):
        return np.zeros((0, 4, 2), np.float32)
    return np.asarray(found.boxes, np.float32) * np.array([width / wide, height / high], np.float32)


def recognise(image: np.ndarray, boxes: np.ndarray) -> list[Text]:
    """What stands in `boxes` ([m, 4, 2], px of `image`): one Text a box, empty words where nothing is read."""
    from rapidocr.utils.process_img import get_rotate_crop_image

    if not len(boxes):
        return []
    # a box a line: batches are padded to their widest, and a text would read otherwise beside another
    read = [engine().recognize_txt([get_rotate_crop_image(image, box.astype(np.float32))]) for box in boxes]
    return [Text(r.txts[0].strip(), float(r.scores[0]), box) for r, box in zip(read, boxes, strict=True)]


def read(image: np.ndarray, max_area: int = 921_600) -> list[Text]:
    """The lines of text in `image` ([h, w, 3] uint8 BGR), boxes in its pixels; lines read as nothing left out."""
    return [text for text in recognise(image, locate(image, max_area)) if text.words]
