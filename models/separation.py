"""Separation: the voice out of a recording, by Hybrid Transformer Demucs (S. Rouard et al., ICASSP 2023).

The official checkpoint through the `demucs` package (github.com/adefossez/demucs): a torch file that names the
net's class and arguments beside its tensors. Here the class is named, never called by the file.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ModelError
from models.blueprint import filled, plain
from models.checkpoint import load_torch

RATE = 44_100
"""Sample rate (Hz) that the net hears."""
STEM = "vocals"
CHANNELS = 2
MOST_LAYERS = 64
DEPTHS = ("depth", "t_layers", "dconv_depth")
LONGEST_S = 60
"""Longest window (s) that is believed; htdemucs hears 7.8 s at a time."""


class Named:
    """Stands in for `demucs.htdemucs.HTDemucs` while a file is read, so that no file can build one."""


def _known() -> list[Any]:
    """What the official file holds beyond tensors: the class's name, the window as a fraction, scores as NumPy
    scalars (pickled under NumPy 1's module name)."""
    from numpy._core.multiarray import scalar

    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8")]
    return [(Named, "demucs.htdemucs.HTDemucs"), (scalar, "numpy.core.multiarray.scalar"), scalar, Fraction, np.dtype, *kinds]  # fmt: skip


@functools.cache
def load_htdemucs(path: Path, device: str) -> Any:
    """The `demucs.htdemucs.HTDemucs` of the torch file `path`, on `device` (as torch takes it), in eval mode.

    Raises ModelError for a file with anything else in it, another net, or one without the stem or the rate.
    """
    package = load_torch(path, allow=_known())
    if not isinstance(package, dict) or package.get("klass") is not Named:
        raise ModelError(f"{path} holds no HTDemucs; fetch the weights again or name the right file")
    from demucs.htdemucs import HTDemucs

    options = _options(package, path, set(inspect.signature(HTDemucs).parameters))
    model = filled(lambda: HTDemucs(**options), _state(package, path), path)
    if STEM not in model.sources or (model.samplerate, model.audio_channels) != (RATE, CHANNELS):
        raise ModelError(f"{path} is no stereo net at {RATE} Hz with the stem {STEM!r}; fetch the weights again")
    return model.to(device)


def _options(package: Mapping[str, Any], path: Path, known: set[str]) -> dict[str, Any]:
    """The net's own arguments. Raises ModelError unless they are its, plain and of a believable size."""
    options = package.get("kwargs")
    if package.get("args") or not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ModelError(f"{path} does not say how its net is built; fetch the weights again")
    wrong = [name for name, value in options.items() if name not in known or not plain(value)]
    wrong += [name for name in DEPTHS if not _within(options.get(name, 1), MOST_LAYERS)]
    wrong += [] if _within(options.get("segment", 1), LONGEST_S) else ["segment"]
    if wrong:
        raise ModelError(f"{path} is refused: argument {wrong[0]!r} is none of HTDemucs; fetch it from its publisher")
    # a shift drawn anew each time would make the answer a matter of luck
    return options | {"t_sin_random_shift": 0}


def _within(value: Any, most: int) -> bool:
    return isinstance(value, int | float | Fraction) and 0 <= value <= most


def _state(package: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    import torch

    state = package.get("state")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no plain tensors (a quantised model?); fetch htdemucs itself")
    return state


def vocals(model: Any, samples: np.ndarray, device: str, overlap: float = 0.25) -> np.ndarray:
    """[n] float32: the voice in `samples` ([n] float32, mono, RATE Hz), sample by sample in place.

    The net hears windows of its own length that overlap by `overlap` and are faded into each other, as
    `demucs.apply.apply_model` does with no random shift, and the whole is normalised as in `demucs.api`.
    Of the four stems only the voice is kept, so beside the recording itself memory does not grow with its length.
    """
    import torch
    from demucs.apply import TensorChunk, apply_model

    mean, std = float(samples.mean()), (float(samples.std(ddof=1)) if len(samples) > 1 else 0.0) + 1e-8
    mix = torch.from_numpy((samples - mean) / std).expand(1, CHANNELS, -1)
    size = int(RATE * model.segment)
    fade = _fade(size)
    out, total = np.zeros(len(samples), np.float32), np.zeros(len(samples), np.float32)
    for begin in range(0, len(samples), int((1 - overlap) * size)):
        with torch.inference_mode():
            stems = apply_model(model, TensorChunk(mix, begin, size), shifts=0, split=False, device=device)
        heard = stems[0, model.sources.index(STEM)].mean(0).cpu().numpy()
        out[begin : begin + size] += fade[: len(heard)] * heard
        total[begin : begin + size] += fade[: len(heard)]
    return out / total * np.float32(std) + np.float32(mean)


def _fade(size: int) -> np.ndarray:
    """[size] float32: a triangle, 1 in the middle, never 0."""
    rise = np.arange(1, size // 2 + 1)
    fall = np.arange(size - size // 2, 0, -1)
    return (np.concatenate((rise, fall)) / (size - size // 2)).astype(np.float32)
