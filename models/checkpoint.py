"""Torch files from strangers: tensors and plain values come in, code never does."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ModelError


def load_torch(path: Path, *, allow: Sequence[type | Callable[..., Any]] = ()) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, by `weights_only=True`.

    allow: classes and functions beyond tensors that the official file is known to hold.
    Raises ModelError for a file that holds anything else, is cut off, or is none of torch's.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _unsafe_names(path, allow)
        why = f"it asks for {', '.join(named)}, which could run code" if named else f"not readable as weights ({error})"
        raise ModelError(f"{path} is refused: {why}; fetch it again from its publisher") from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no whole torch file ({error}); fetch it again") from None


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
    own = model.state_dict()
    unlike = [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and tuple(state[name].shape) != tuple(own[name].shape)
    ]
    missing = [f"{name} is missing" for name in own if name not in state and not name.endswith(tuple(ignore))]
    extra = [f"{name} is unknown" for name in state if name not in own and not name.endswith(tuple(ignore))]
    wrong = unlike + missing + extra
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        kind = type(model).__name__
        raise ModelError(f"{path} holds no {kind}: {wrong[0]}{more}; fetch the weights again or name the right file")
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
