"""Text in pictures by EasyOCR (CRAFT detector, gen-2 CRNN recogniser for simplified Chinese and English): the same
two functions as `models.reader`, on the official weights.

EasyOCR's `Reader` would unpickle its files and download what is missing; here it is made without nets, which are
then filled from tensors. It runs in full precision everywhere: its own dynamic int8 on CPUs would read otherwise
there than on a GPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manifests.errors import ModelError
from models.checkpoint import load_state, load_torch
from models.device import torch_device
from models.reader import STRIDE, Text
from models.weights import weights_file

NAME = "easyocr"
DETECTOR, RECOGNISER = "craft_mlt_25k.pth", "zh_sim_g2.pth"
LANGUAGES = ("ch_sim", "en")
PARALLEL = "module."
"""Prefix of the official files' tensors: they were saved from a DataParallel."""
MIN_LENGTH = 10
"""Longer side, px of the picture as it is looked at, below which a box is no text."""


@dataclass(frozen=True)
class EasyOcrReader:
    """A `TextReader` on `device`; the nets load at the first picture, once a process."""

    device: str = "cpu"

    def locate(self, image: np.ndarray, max_area: int = 921_600) -> np.ndarray:
        """[m, 4, 2] float32: corners of the lines of text in `image` ([h, w, 3] uint8 BGR), in its pixels, clockwise
        from the top left. The picture is looked at with at most `max_area` pixels.

        Raises ModelError for weights that are missing, broken or of another net, and for a device that is not there.
        """
        height, width = image.shape[:2]
        shrink = min(1.0, (max_area / (height * width)) ** 0.5)
        # the package would pad to its grid with black, whose edge is read as text
        wide, high = (max(STRIDE, round(side * shrink / STRIDE) * STRIDE) for side in (width, height))
        looked = cv2.resize(image, (wide, high), interpolation=cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR)
        # CRAFT was trained on RGB; the package hands it arrays as they come
        rgb = np.ascontiguousarray(looked[:, :, ::-1])
        with _deterministic():
            lines, slanted = engine(self.device).detect(rgb, min_size=MIN_LENGTH, canvas_size=max(wide, high))
        upright = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in lines[0]]
        found = np.array([*upright, *slanted[0]], np.float32).reshape(-1, 4, 2)
        return np.clip(found, 0, [wide, high]).astype(np.float32) * np.array([width / wide, height / high], np.float32)

    def recognise(self, image: np.ndarray, boxes: np.ndarray) -> list[Text]:
        """What stands in `boxes` ([m, 4, 2], px of `image`): one Text a box, empty words where nothing is read.

        The score is EasyOCR's own: the product of its steps' probabilities to the power of 2 / sqrt(steps).
        """
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        # a box a call, as the bundled reader: a text would read otherwise padded to the width of another
        return [self._line(grey, np.asarray(box, np.float32)) for box in boxes]

    def read(self, image: np.ndarray, max_area: int = 921_600) -> list[Text]:
        """The lines of text in `image` ([h, w, 3] uint8 BGR), boxes in its pixels; lines read as nothing left out."""
        return [text for text in self.recognise(image, self.locate(image, max_area)) if text.words]

    def _line(self, grey: np.ndarray, box: np.ndarray) -> Text:
        x0, y0 = (int(v) for v in np.floor(box.min(axis=0)))
        x1, y1 = (int(v) for v in np.ceil(box.max(axis=0)))
        if min(x1 - x0, y1 - y0) < 1:
            return Text("", 0.0, box)
        left, right, top, bottom = box[[0, 3], 0], box[[1, 2], 0], box[[0, 1], 1], box[[2, 3], 1]
        upright = all(a == b for a, b in (left, right, top, bottom))
        places: dict[str, Any] = {
            "horizontal_list": [[x0, x1, y0, y1]] if upright else [],
            "free_list": [] if upright else [box.tolist()],
        }
        with _deterministic():
            read = engine(self.device).recognize(grey, **places, reformat=False, workers=0)
        if not read:
            return Text("", 0.0, box)
        ((_, words, score),) = read
        return Text(words.strip(), float(score), box)


def engine(device: str = "cpu") -> Any:
    """The `easyocr.Reader` on `device`, its nets filled, once a process.

    Raises ModelError as `EasyOcrReader.locate` does.
    """
    paths = tuple(weights_file(NAME, file) for file in (DETECTOR, RECOGNISER))
    return _engine(*paths, torch_device(device))


@cache
def _engine(detector: Path, recogniser: Path, device: str) -> Any:
    from easyocr.craft import CRAFT
    from easyocr.detection import get_textbox
    from easyocr.model.vgg_model import Model
    from easyocr.utils import CTCLabelConverter

    reader = _bare_reader(detector.parent, device)
    reader.converter = CTCLabelConverter(reader.character)
    classes = len(reader.converter.character)
    reader.detector = _filled(CRAFT(), detector, device)
    reader.recognizer = _filled(Model(1, 256, 256, classes), recogniser, device)
    reader.get_textbox = get_textbox
    return reader


def _bare_reader(folder: Path, device: str) -> Any:
    """A Reader without nets that writes nothing: it makes its folders where they are missing, so it is told one
    that is there, which it also puts on the import path."""
    from easyocr import Reader

    imports = list(sys.path)
    try:
        return Reader(
            list(LANGUAGES),
            gpu=device,
            model_storage_directory=str(folder),
            user_network_directory=str(folder),
            download_enabled=False,
            detector=False,
            recognizer=False,
            verbose=False,
        )
    finally:
        sys.path[:] = imports


def _filled(net: Any, path: Path, device: str) -> Any:
    """`net` with every tensor from the official file at `path`, on `device`, ready to run."""
    state = load_torch(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ModelError(f"{path} holds no {type(net).__name__}: it is no table of tensors; fetch it again")
    load_state(net, {name.removeprefix(PARALLEL): value for name, value in state.items()}, path)
    return net.to(device).eval()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Torch that records nothing and computes the same again, silent about its data loader's pinned memory."""
    import torch

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
