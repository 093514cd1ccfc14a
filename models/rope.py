"""Rotary positions (RoFormer, arXiv:2104.09864) as GLM-4-Voice has them, on three axes for video (the paper, 3.1).

GLM turns the first half of a head's numbers, in interleaved pairs (0, 1), (2, 3), ...; pair i turns by theta^(-i/pairs)
a position. Video deals the pairs out to time, row and column by turns. Time's keep GLM's frequencies, so that weights
copied from GLM still meet fast and slow pairs where they were; rows and columns, of which there are eight to sixteen,
share a short scale of their own, from one radian a step down. Angles are made in float64 and reduced mod 2 pi before
they are rounded: hour ten turns as precisely as second one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AXES = (0, 1, 0, 2)
"""Whose position each pair takes, by turns: 0 time (chunks), 1 row, 2 column. Time gets half: it reaches furthest."""
SPACE_THETA = 100.0
"""theta of rows and columns."""
FULL_TURN = 2 * torch.pi


@dataclass(frozen=True, eq=False)
class Turn:
    """By how much each position turns: cos, sin [..., positions, pairs] float32."""

    cos: Tensor
    sin: Tensor


def frequencies(pairs: int, theta: float, device: torch.device | None = None) -> Tensor:
    """[pairs] float64, radians a position."""
    return theta ** -(torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


def turn(positions: Tensor, pairs: int, theta: float) -> Turn:
    """Of 1-D positions [...], any real type: cos, sin [..., pairs]."""
    return _turned(positions.double()[..., None] * frequencies(pairs, theta, positions.device))


def turn_3d(positions: Tensor, pairs: int, theta: float) -> Turn:
    """Of positions [..., 3] (time in chunks, row, column): cos, sin [..., pairs]."""
    pair = torch.arange(pairs, device=positions.device)
    axes = torch.zeros_like(pair)
    for place, axis in enumerate(AXES):  # filled on the device: a table of the host's would have to be waited for
        axes[place :: len(AXES)] = axis
    space = frequencies(-(-pairs // len(AXES)), SPACE_THETA, positions.device)[pair // len(AXES)]
    rates = torch.where(axes == 0, frequencies(pairs, theta, positions.device), space)
    return _turned(positions.double()[..., axes] * rates)


def _turned(angles: Tensor) -> Turn:
    angles = angles.remainder(FULL_TURN)
    return Turn(angles.cos().float(), angles.sin().float())


def rotate(x: Tensor, by: Turn) -> Tensor:
    """x [..., positions, 2 pairs] turned pair by pair, in x's type."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = (even * by.cos - odd * by.sin, even * by.sin + odd * by.cos)
    return torch.stack(pairs, -1).flatten(-2).to(x.dtype)
