"""Small Actors whose every weight says something, and speech for them to hear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.actor import Actor, Speech
from models.actor_config import ActorConfig
from models.dialogue_layout import turn_of

STATES, CHANNELS, WINDOW = 20, 6, 4
GRID = (2, 3)
PLACES = GRID[0] * GRID[1]
PERIOD = 13
"""Chunks after which chunks and segments lie to each other as before: 2 segments, 52 speech tokens."""


def config(**changes: Any) -> ActorConfig:
    numbers = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 48}
    given = {"states": STATES, "channels": CHANNELS, "window": WINDOW, **numbers, **changes}
    return ActorConfig("small", **given)  # type: ignore[arg-type]


def actor(seed: int = 0, **changes: Any) -> Actor:
    """Random everywhere, also where an Actor starts at zero; attention soft enough for every token to count."""
    made = Actor(config(**changes))
    made.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in made.parameters():
            value += (0.05 if value.any() else 0.2) * torch.randn(value.shape, generator=generator)
    return made.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def speech(chunks: int, batch: int = 1, *, seed: int = 0, later: int = 0) -> Speech:
    """Of `chunks` chunks, half as many text tokens as speech tokens. later: periods by which all of it comes later."""
    turn = turn_of(2 * chunks, 4 * chunks)
    segments = torch.from_numpy(turn.segment) + 2 * later
    ticks = torch.from_numpy(turn.times * 12.5) + 4 * PERIOD * later
    states = noise(batch, len(turn), STATES, seed=seed)
    return Speech(states, segments.expand(batch, -1), ticks.expand(batch, -1))


def latents(chunks: int, batch: int = 1, *, seed: int = 0) -> Tensor:
    return noise(batch, chunks, CHANNELS, *GRID, seed=seed)


def portrait(batch: int = 1, *, seed: int = 99) -> Tensor:
    return noise(batch, CHANNELS, *GRID, seed=seed)
