"""A pyiqa metric's file as its authors publish it: every tensor of the net, random; a metric of sharpness for `cnniqa`.

The small file of a large net holds few numbers: its large tensors are views of shared ones of their own deviation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from models.image_quality import FILES, build

LARGE = 50_000
"""Numbers of a tensor from which it shares its storage."""
USUAL = {"topiq_nr": ("score_linear.6.bias", 0.75), "hyperiqa": ("fc_b_modules.4.2.bias", 0.75)}
"""The last bias, so that scores lie where those of a fair picture do."""


def make(folder: Path, true_size: bool = False, metric: str = "topiq_nr") -> None:
    """Writes the file of `metric` into `folder`."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, key = build(metric)
        state = net.state_dict()
        if metric in USUAL:
            name, value = USUAL[metric]
            state[name] = torch.full_like(state[name], value)
        if metric == "cnniqa":
            state = steepest(state)
        elif not true_size:
            state = shared(state)
    torch.save({key: state} if key else state, folder / FILES[metric])


def shared(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with large tensors cut from one random vector for each octave of deviation."""
    import torch

    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        if value.numel() >= LARGE:
            groups.setdefault(round(math.log2(max(float(value.std()), 1e-9))), []).append(name)
    small = dict(state)
    for level, names in groups.items():
        pool = torch.randn(max(state[name].numel() for name in names)) * 2.0**level
        small |= {name: pool[: state[name].numel()].view(state[name].shape) for name in names}
    return small


def steepest(state: dict[str, Any]) -> dict[str, Any]:
    """CNNIQA that says how steep the steepest edge is: 0 for an even picture, 1 for black beside white."""
    import torch

    plain = {name: torch.zeros_like(value) for name, value in state.items()}
    plain["conv1.weight"][0, :, 3, 2], plain["conv1.weight"][0, :, 3, 3] = -1 / 3, 1 / 3
    for name in ("fc1", "fc2", "fc3"):
        plain[f"{name}.weight"][0, 0] = 1.0
    return plain
