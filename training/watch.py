"""What an update is watched by, summed over ranks in one exchange."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.actor_facts import CARDS, Card
from training.events import LevelLoss
from training.objective import LEVEL_BINS, POSITION_BINS, Loss
from training.parallel import World

COUNTS = ("samples", "chunks", "computed", "tokens", "damaged", "flops", "stop")
"""What is counted beside losses, summed over ranks; computed: chunks that went through the Actor, padding too; stop:
ranks that were told to."""
TIMES = ("wait_s", "thinker_s", "memory")
"""What the highest rank's value is told of."""


@dataclass
class Watch:
    """One rank's sums over the micro-batches of an update. `total`s stay where they were computed until the end."""

    device: torch.device
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0.0))
    times: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))
    totals: list[Tensor] = field(default_factory=list)
    by_level: list[Tensor] = field(default_factory=list)
    by_position: list[Tensor] = field(default_factory=list)

    def add(self, loss: Loss) -> None:
        """A micro-batch."""
        self.totals.append(loss.total.detach().double())
        self.by_level.append(loss.by_level)
        self.by_position.append(loss.by_position)

    def together(self, world: World) -> Watched:
        """Over all ranks; every rank must call it."""
        parts = [torch.stack(each).sum(0).flatten() for each in (self.totals, self.by_level, self.by_position)]
        counts = torch.tensor(list(self.counts.values()), dtype=torch.float64, device=self.device)
        found = world.summed(torch.cat((*parts, counts))).tolist()
        times = torch.tensor(list(self.times.values()), dtype=torch.float64, device=self.device)
        total, rest = found[0], found[1:]
        levels, rest = rest[: 2 * LEVEL_BINS], rest[2 * LEVEL_BINS :]
        positions, rest = rest[: 2 * POSITION_BINS], rest[2 * POSITION_BINS :]
        return Watched(
            total,
            sum(levels[LEVEL_BINS:]),
            means(levels),
            means(positions),
            dict(zip(COUNTS, rest, strict=True)),
            dict(zip(TIMES, world.highest(times).tolist(), strict=True)),
        )


@dataclass(frozen=True)
class Watched:
    """Sums over all ranks. total: of squared errors, over `count` numbers."""

    total: float
    count: float
    by_level: LevelLoss
    by_position: LevelLoss
    counts: dict[str, float]
    times: dict[str, float]

    @property
    def loss(self) -> float:
        """Mean squared error; 0 where every chunk was at level 0."""
        return self.total / max(1.0, self.count)


def means(sums_then_counts: Sequence[float]) -> LevelLoss:
    """Sum by count, None where nothing was counted."""
    half = len(sums_then_counts) // 2
    pairs = zip(sums_then_counts[:half], sums_then_counts[half:], strict=True)
    return tuple(total / count if count else None for total, count in pairs)


def memory_used(device: torch.device) -> int:
    """Bytes at most so far: that torch held of the GPU, or that the process held of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def card_of(device: torch.device) -> Card | None:
    """What the maker says of this GPU, None for a CPU and for one that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((card for key, card in CARDS.items() if key.partition("-")[0] in name), None)
