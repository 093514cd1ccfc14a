"""Learned image quality: the no-reference metrics of `pyiqa` by name, their nets filled here from one local file each.

pyiqa's own constructors download backbones and checkpoints and unpickle them; here they only lay out the net. Every
tensor of it then comes from the published file, read as tensors, or nothing is returned.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ModelError, UsageError
from models.checkpoint import load_state, load_torch
from models.device import torch_device
from models.weights import catalogue, models_dir, weights_file

HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
FILES: dict[str, str] = {
    "piqe": "",
    "entropy": "",
    "topiq_nr": "cfanet_nr_koniq_res50-9a73138b.pth",
    "topiq_nr-flive": "cfanet_nr_flive_res50-ded1c74e.pth",
    "topiq_nr-spaq": "cfanet_nr_spaq_res50-a7f799ac.pth",
    "topiq_iaa_res50": "cfanet_iaa_ava_res50-3cd62bb3.pth",
    "hyperiqa": "HyperIQA-resnet50-koniq10k-c96c41b1.pth",
    "musiq": "musiq_koniq_ckpt-e95806b9.pth",
    "musiq-ava": "musiq_ava_ckpt-e8d3f067.pth",
    "musiq-paq2piq": "musiq_paq2piq_ckpt-364c0c84.pth",
    "musiq-spaq": "musiq_spaq_ckpt-358bb6af.pth",
    "maniqa": "ckpt_koniq10k.pt",
    "maniqa-kadid": "ckpt_kadid10k.pt",
    "maniqa-pipal": "MANIQA_PIPAL-ae6d356b.pth",
    "dbcnn": "DBCNN_KonIQ10k-2de81c0a.pth",
    "cnniqa": "CNNIQA_koniq10k-e6f14c91.pth",
    "nima": "NIMA_InceptionV2_ava-b0c77c00.pth",
    "nima-koniq": "NIMA_koniq-250367ae.pth",
    "nima-spaq": "NIMA-spaq-46a7fcb7.pth",
    "nima-vgg16-ava": "NIMA_VGG16_ava-dc4e8265.pth",
    "tres": "tres_koniq-f0502926.pth",
    "tres-flive": "tres_flive-09b0de5b.pth",
    "paq2piq": "P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth",
}
"""Metrics that one file fills whole, and that file as pyiqa's authors publish it at HUB; "" needs none."""
BACKBONES = ("resnet18", "resnet34", "resnet50", "vgg16")
"""Constructors of torchvision that metrics call for pretrained weights."""


@dataclass(frozen=True)
class Metric:
    """A metric ready to run. worst, best: ends of its scale as pyiqa documents it."""

    net: Any
    device: str
    worst: float
    best: float

    def score(self, image: np.ndarray) -> float:
        """Quality of `image` [h, w, 3] uint8 BGR: 0 at the scale's worst end, 100 at its best, linear between; a
        scale is where scores are expected, no limit of them. NaN where the metric has no number (PIQE in the dark)."""
        import torch

        rgb = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
        picture = rgb.to(self.device)[None].float() / 255
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            raw = float(self.net(picture).reshape(-1)[0])
        return 100 * (raw - self.worst) / (self.best - self.worst)


def model_name(metric: str) -> str:
    """The folder under XSTREAMER_MODELS of a metric's weights, and its name in the catalogue where it has an entry."""
    return f"pyiqa-{metric}"


def metric_file(metric: str) -> Path | None:
    """The file of a metric's weights; None for one that needs none.

    Raises UsageError for a metric that cannot be used, ModelError when its file is not there.
    """
    check(metric)
    name, file = model_name(metric), FILES[metric]
    if not file:
        return None
    if name in catalogue():
        return weights_file(name, file)
    place = models_dir() / name / file
    if not place.is_file():
        raise ModelError(f"no weights of pyiqa's {metric} at {place}; download {HUB}/{file} to there")
    return place


def check(metric: str) -> None:
    """Raises UsageError, with the reason, for a metric that cannot say how good a picture is on a scale of 100."""
    if metric in FILES:
        return
    choice = f"choose from {', '.join(FILES)}"
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if metric not in DEFAULT_CONFIGS:
        raise UsageError(f"pyiqa has no metric {metric!r}; {choice}")
    facts = DEFAULT_CONFIGS[metric]
    if facts["metric_mode"] != "NR":
        raise UsageError(f"metric {metric!r} compares a picture with its original, which a clip has not; {choice}")
    scale(metric, facts)
    raise UsageError(f"metric {metric!r} is made of more weights than one file of its own; {choice}")


def scale(metric: str, facts: dict[str, Any]) -> tuple[float, float]:
    """(worst, best) raw score of `metric` by its entry in pyiqa's table: "~0, ~1", "0, 100", "1, 10".

    Lower-is-better is turned round only between ends that are exact (PIQE). Raises UsageError for the others and
    for scales without an end or around zero: such scores are no quality out of 100.
    """
    low, high = (end.strip() for end in facts["score_range"].split(","))
    lower = bool(facts.get("lower_better"))
    if "~" in (low, high) or float(low.strip("~")) < 0 or (lower and "~" in low + high):
        ends = f"{low} to {high}{', lower is better' if lower else ''}"
        raise UsageError(
            f"metric {metric!r} has no place on a scale of 0-100 (its scores are {ends}); use topiq_nr or hyperiqa"
        )
    least, most = float(low.strip("~")), float(high.strip("~"))
    return (most, least) if lower else (least, most)


def load_metric(metric: str, device: str = "cpu") -> Metric:
    """`metric` with its weights on `device`, once a process.

    Raises UsageError for a metric that cannot be used, ModelError when its file is missing, is cut off, holds code
    or another net, and when the device is not there.
    """
    return _loaded(metric, metric_file(metric), torch_device(device))


@cache
def _loaded(metric: str, path: Path | None, device: str) -> Metric:
    import torch
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    worst, best = scale(metric, DEFAULT_CONFIGS[metric])
    net, keys = build(metric)
    if path is not None:
        fill(net, path, keys)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return Metric(net.to(torch.device(device)).eval(), device, worst, best)


def build(metric: str) -> tuple[Any, str | None]:
    """(the net of `metric`, its weights not yet filled in; the key of the official file under which they stand).

    Raises ModelError where this version of pyiqa asks for another file than FILES says.
    """
    import torch
    from pyiqa.archs import build_network
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from pyiqa.utils import get_root_logger

    get_root_logger().setLevel(logging.WARNING)
    options = DEFAULT_CONFIGS[metric]["metric_opts"]
    with torch.random.fork_rng(devices=[]), _offline(options["type"]) as asked:
        net = build_network(options)
    wanted = [(Path(url).name, keys) for owner, url, keys in asked if owner is net]
    if [file for file, _ in wanted] != [FILES[metric]] * bool(FILES[metric]):
        raise ModelError(
            f"this pyiqa fills {metric} from {wanted or 'nothing'}, not {FILES[metric]!r}; run: pip install pyiqa==0.1.16"
        )
    return net, wanted[0][1] if wanted else None


@contextmanager
def _offline(kind: str) -> Iterator[list[tuple[Any, str, str | None]]]:
    """While it lasts, metrics are built without downloads: no backbone is pretrained, and what their constructors
    would load is listed instead: (net, URL, key in the file)."""
    import timm
    import torchvision
    from pyiqa.archs import _lazy_import_arch
    from pyiqa.utils.registry import ARCH_REGISTRY

    asked: list[tuple[Any, str, str | None]] = []

    def note(net: Any, url: str, strict: bool = True, weight_keys: str | None = None) -> None:
        asked.append((net, url, weight_keys))

    if kind not in ARCH_REGISTRY:
        _lazy_import_arch(kind)
    module = sys.modules[ARCH_REGISTRY.get(kind).__module__]
    with ExitStack() as stack:
        stack.enter_context(_swapped(timm, "create_model", _plain(timm.create_model, pretrained=False)))
        for name in BACKBONES:
            plain = _plain(getattr(torchvision.models, name), weights=None)
            stack.enter_context(_swapped(torchvision.models, name, plain))
        stack.enter_context(_swapped(module, "load_pretrained_network", note))
        yield asked


@contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, `owner` has `value` under `name`, where it has that name at all."""
    if not hasattr(owner, name):
        yield
        return
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _plain(make: Any, **always: Any) -> Any:
    """`make` with arguments that a caller cannot change."""
    return lambda *args, **options: make(*args, **{**options, **always})


def fill(net: Any, path: Path, keys: str | None) -> None:
    """Fills every tensor of `net` from the file at `path`, under `keys` in it where that is not None.

    Raises ModelError for a file that is unsafe, broken or of another net.
    """
    content = load_torch(path)
    state = content.get(keys) if keys and isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ModelError(
            f"{path} holds no {type(net).__name__}: {keys or 'a table of tensors'} is missing; fetch it again"
        )
    load_state(net, {name.removeprefix("module."): value for name, value in state.items()}, path)
