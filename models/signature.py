"""What an ONNX file takes and gives, held against what the model of that name takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ModelError

Shape = tuple[int | None, ...]
"""Sizes of a tensor's last axes; None where any size will do."""


def require(session: Any, path: Path, what: str, takes: Sequence[Shape], gives: Sequence[Shape]) -> None:
    """Raises ModelError, which names both sides, where `session` has other inputs than `takes` or other outputs
    than `gives`: a file of another model. what: the model as people call it. An axis that the file leaves open
    fits any size."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if _fit(inputs, takes) and _fit(outputs, gives):
        return
    found = f"takes {_told([node.shape for node in inputs])} and gives {_told([node.shape for node in outputs])}"
    wanted = f"takes {_told(takes)} and gives {_told(gives)}"
    raise ModelError(f"{path} is no {what}: it {found}, {what} {wanted}; put the right file there")


def open_axis(session: Any, axis: int = 0) -> bool:
    """Whether the first input's `axis` may have any size (a batch, pictures of any height)."""
    return not isinstance(session.get_inputs()[0].shape[axis], int)


def _fit(nodes: Sequence[Any], shapes: Sequence[Shape]) -> bool:
    return len(nodes) == len(shapes) and all(
        _fits(node.shape, shape) for node, shape in zip(nodes, shapes, strict=True)
    )


def _fits(found: Sequence[Any], wanted: Shape) -> bool:
    if len(found) < len(wanted):
        return False
    ends = zip(found[len(found) - len(wanted) :], wanted, strict=True)
    return all(want is None or not isinstance(have, int) or have == want for have, want in ends)


def _told(shapes: Sequence[Sequence[Any]]) -> str:
    """ "[1, 3, 640, 640]", at most three of them."""
    named = [f"[{', '.join(str(side) if isinstance(side, int) else '?' for side in shape)}]" for shape in shapes[:3]]
    more = [f"{len(shapes) - 3} more"] if len(shapes) > 3 else []
    return ", ".join(named + more) or "nothing"
