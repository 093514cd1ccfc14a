"""EasyOCR's two files as the official ones are saved: a detector of strokes and a recogniser of nothing.

The detector finds thin bright and dark strokes (letters) by the second derivative of the picture. The recogniser is
random, yet sure of what it reads: equal strokes give equal characters. Nets have one size; the small file of the
detector holds few numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.easyocr_reader import DETECTOR, RECOGNISER

PATH = ("basenet.slice1", "upconv4", "conv_cls")
"""Layers between the picture and the maps at half its size; upconv4 is made deaf to the others."""
STROKE = 1.3
"""Response that a stroke must exceed, deviations of ImageNet's pixels; the rim of a picture has up to 1.2."""


def make(folder: Path, true_size: bool = False) -> None:
    """Writes craft_mlt_25k.pth and zh_sim_g2.pth into `folder`."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector, recogniser = detector_net(), recogniser_net()
    states = {DETECTOR: stroke_detector(detector.state_dict(), true_size), RECOGNISER: sure(recogniser.state_dict())}
    for name, state in states.items():
        torch.save({f"module.{key}": value for key, value in state.items()}, folder / name)


def detector_net() -> Any:
    from easyocr.craft import CRAFT

    return CRAFT()


def recogniser_net() -> Any:
    from easyocr.config import recognition_models
    from easyocr.model.vgg_model import Model

    return Model(1, 256, 256, 1 + len(recognition_models["gen2"]["zh_sim_g2"]["characters"]))


def stroke_detector(state: dict[str, Any], full: bool) -> dict[str, Any]:
    """CRAFT's tensors: a path from the picture's second derivative to the two maps, the layers off that path random
    (`full`) or zero."""
    import torch

    plain = {}
    for name, value in state.items():
        if full and not name.startswith(PATH):
            plain[name] = value
            continue
        kept = name.endswith(("running_var",)) or (value.ndim == 1 and name.endswith("weight"))
        plain[name] = torch.tensor(float(kept)).to(value.dtype).expand(value.shape)  # one number in the file

    def put(name: str, *entries: tuple[int, int, Any], bias: dict[int, float] | None = None) -> None:
        weight = torch.zeros(state[f"{name}.weight"].shape)
        for out, source, kernel in entries:
            weight[out, source] = torch.as_tensor(kernel, dtype=torch.float32)
        plain[f"{name}.weight"] = weight
        plain[f"{name}.bias"] = torch.zeros(weight.shape[0])
        for out, value in (bias or {}).items():
            plain[f"{name}.bias"][out] = value

    line = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]) / 6
    here = torch.zeros(3, 3)
    here[1, 1] = 1.0
    blur = torch.full((3, 3), 1 / 9)
    derivatives = [line, -line, line.T, -line.T]
    put("basenet.slice1.0", *[(at, colour, kernel) for at, kernel in enumerate(derivatives) for colour in range(3)])
    put("basenet.slice1.3", *[(0, at, here) for at in range(4)], bias={0: -STROKE})
    put("basenet.slice1.7", (0, 0, blur))
    put("basenet.slice1.10", (0, 0, blur))
    put("upconv4.conv.0", (0, 64, 1.0))
    put("upconv4.conv.3", (0, 0, blur))
    put("conv_cls.0", (0, 0, blur))
    put("conv_cls.2", (0, 0, blur))
    put("conv_cls.4", (0, 0, here))
    # relu(x) - relu(x - 1) keeps both maps within 0 ... 1; the link map reaches further than the text's
    put("conv_cls.6", (0, 0, 18.0), (1, 0, 18.0), (2, 0, 36.0), (3, 0, 36.0), bias={1: -1.0, 3: -1.0})
    put("conv_cls.8", (0, 0, 1.0), (0, 1, -1.0), (1, 2, 1.0), (1, 3, -1.0))
    return plain


def sure(state: dict[str, Any]) -> dict[str, Any]:
    """The recogniser's tensors, features spread and the last layer steep, so that it is sure of what it reads."""
    steep = {name: value.clone() for name, value in state.items()}
    for name, value in steep.items():
        if name.startswith("FeatureExtraction") and value.ndim == 4:
            value *= 2.0
        elif name.startswith("SequenceModeling") and "weight_ih" in name:
            value *= 4.0
        elif name == "Prediction.weight":
            value *= 6000.0
    return steep
