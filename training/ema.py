"""A moving average of the weights: what is validated, drawn and exported. Split over ranks like the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.parallel import local

RAMP = 10
"""Early steps forget faster: the decay at step s is at most (1 + s) / (RAMP + s), so that random first weights are
soon gone."""


class Ema:
    """The average of a model's parameters, in float32. Decay 0: none is kept."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = dict(model.named_parameters())
        self.average: dict[str, Tensor] = (
            {name: value.detach().clone() for name, value in self._weights.items()} if decay else {}
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update `step`, from 1."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (RAMP + step))
        pairs = [(local(self.average[name]), local(value.detach())) for name, value in self._weights.items()]
        torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the average for weights, inside the block; without one, as it is."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """In place, tensor by tensor: sharded weights are known by their memory."""
        for name, average in self.average.items():
            here, there = local(average), local(self._weights[name].detach())
            held = here.clone()
            here.copy_(there)
            there.copy_(held)
