"""Torch files from strangers: tensors and plain values come in, code never does."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ModelError, one_line


def load_torch(path: Path, *, allow: Sequence[type | Callable[..., Any]] = ()) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, by `weights_only=True`.

    allow: classes and functions beyond tensors that the official file is known to hold.
    Raises ModelError for a file that holds anything else, is cut off, or is none of torch's.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(allow)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, lines beside the one that says what is wrong
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever it happens to run into
        why = f"no whole torch file, {_brief(error)}"
        if isinstance(error, pickle.UnpicklingError):
            named = (
                _unsafe_names(path, allow) or re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
            )  # older files: the first
            why = f"it asks for {', '.join(named)}, which could run code" if named else "no whole torch file"
        raise ModelError(f"{path} is refused: {why}; fetch it again from its publisher") from error


def load_safetensors(path: Path) -> dict[str, Any]:
    """Tensors by name, on the CPU. Raises ModelError for a file that is cut off or is none of safetensors'."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file, {_brief(error)}; fetch it again") from None


def _brief(error: Exception) -> str:
    """The first sentence of a library's error, which may go on for a page."""
    return one_line(error, 160).partition(". ")[0]


def _unsafe_names(path: Path, allow: Sequence[Any]) -> list[str]:
    """Names in the pickle that weights_only does not know, read without running it."""
    import torch

    try:
        with torch.serialization.safe_globals(list(allow)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip of torch's: the caller says that it is unreadable
        return []


def load_state(model: Any, state: Mapping[str, Any], path: Path, *, ignore: Sequence[str] = ()) -> None:
    """Fills `model` (a torch module) with `state`, every tensor of it and in shape.

    ignore: endings of names that either side may lack (buffers that are no weights). Raises ModelError that names
    the first tensor that is missing, left over or of another shape: a checkpoint of another model.
    """
    own, kind = model.state_dict(), type(model).__name__
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds a {type(state).__name__}, no table of tensors for {kind}; name the right file")
    unlike = [f"{name} is no tensor" for name in own if name in state and not hasattr(state[name], "shape")] or [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and tuple(state[name].shape) != tuple(own[name].shape)
    ]
    missing = [f"{name} is missing" for name in own if name not in state and not name.endswith(tuple(ignore))]
    extra = [f"{name} is unknown" for name in state if name not in own and not name.endswith(tuple(ignore))]
    wrong = unlike + missing + extra
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(f"{path} holds no {kind}: {wrong[0]}{more}; fetch the weights again or name the right file")
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
