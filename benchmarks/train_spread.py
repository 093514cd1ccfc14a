"""Times of things that are compared: by turns, so that a busy machine is busy for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def spread(values: Sequence[float]) -> dict[str, float]:
    """{"median", "least", "most"}."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def seconds(work: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Of one of `times` calls in a row, whose work on the device is awaited."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - began) / times


def by_turns(
    works: Mapping[str, Callable[[], Any]], device: torch.device, runs: int, times: int = 1
) -> dict[str, list[float]]:
    """Seconds of each of `works` in each of `runs` turns."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            found[name].append(seconds(work, device, times))
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Of the same turns."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
