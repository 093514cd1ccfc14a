"""Nets whose shape a file dictates: built for its numbers only once they fit.

A checkpoint that names its own dimensions could ask for any amount of memory. So the net is built without
storage first (torch's meta device), its shapes are held against the tensors that came, and only then for real.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from manifests.errors import ModelError
from models.checkpoint import load_state

LARGEST = 100_000
"""Larger numbers are no width, length or rate of a net."""


def filled(
    build: Callable[[], Any], state: Mapping[str, Any], path: Path, *, outline: Callable[[], Any] | None = None
) -> Any:
    """The torch module that `build` makes, with every tensor of `state`, in eval mode.

    outline: makes a module with the same tensors, where `build` itself needs storage to run. Raises ModelError that names the first tensor of another shape (`models.checkpoint.load_state`), and where
    `build` refuses its own numbers.
    """
    import torch

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "copying to a meta parameter is a no-op": that is the point
            load_state((outline or build)(), state, path)
        model = build()
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError, ArithmeticError) as error:
        raise ModelError(f"{path} describes no net that can be built ({error}); fetch the weights again") from None
    load_state(model, state, path)
    return model.eval()


def plain(value: Any) -> bool:
    """Whether `value` is made of None, bools, short text, numbers up to LARGEST and lists of such."""
    if isinstance(value, list | tuple):
        return len(value) <= LARGEST and all(map(plain, value))
    if isinstance(value, str):
        return len(value) < 1000
    return value is None or (isinstance(value, int | float | Fraction) and -LARGEST <= value <= LARGEST)
