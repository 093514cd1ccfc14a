"""Noise that depends on a seed and a place alone, so that a stream and a whole utterance draw the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

ROWS = 16
"""Rows that are drawn together."""


def noise(seed: int, name: str, begin: int, end: int, width: int) -> Tensor:
    """[end - begin, width] float32 of unit variance, rows `begin` ... `end` of the endless noise `name`, drawn on
    the CPU whatever device uses it, and never from torch's own generator."""
    first, last = begin // ROWS, -(-end // ROWS)
    blocks = [torch.randn(ROWS, width, generator=generator(seed, name, block)) for block in range(first, last)]
    drawn = torch.cat(blocks) if blocks else torch.empty(0, width)
    return drawn[begin - first * ROWS : end - first * ROWS]


def generator(seed: int, name: str, block: int) -> torch.Generator:
    """torch's generator for one block of the noise `name`."""
    key = hashlib.sha256(f"{seed} {name} {block}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
