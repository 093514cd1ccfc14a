"""Which token comes next: temperature, the best k, the nucleus, and a number of one's own for each draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from manifests.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

SHORTLIST = 1024
"""Tokens that are looked at first; all of them only where these do not fill the nucleus."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the values of GLM-4-Voice's own demo by default.

    temperature: 0 takes the best token always. top_p: of the most probable tokens, the fewest that together have
    this probability (Holtzman et al., arXiv:1904.09751). top_k: of the k best, before that; 0: of all. Raises
    UsageError for values out of range.
    """

    temperature: float = 0.2
    top_p: float = 0.8
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (all) or more, not {self.top_k}")


def dice(seed: int, turn: int) -> np.random.Generator:
    """The numbers of one turn: of seed and turn alone, whatever was drawn, or interrupted, in the turns before.
    Raises UsageError for a negative seed."""
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    return np.random.default_rng([seed, turn])


def drawn(logits: Tensor, sampling: Sampling, number: float) -> int:
    """The token that `number` (0 <= number < 1) picks from logits [n], on any device.

    Logits may be -inf for tokens that must not come. Raises ModelError when no token can.
    """
    import torch

    scaled = logits.double() / (sampling.temperature or 1.0)
    count = min(sampling.top_k or SHORTLIST, len(scaled))
    total, (best, tokens) = scaled.logsumexp(0), torch.topk(scaled, count)
    chances = (best - total).exp().cpu().numpy()
    if not np.isfinite(chances[0]):
        raise ModelError("the Thinker gives no numbers for what comes next; fetch its weights again")
    if sampling.temperature == 0:
        return int(tokens[0])
    if sampling.top_k:
        chances = chances / chances.sum()
    elif count < len(scaled) and chances.sum() < sampling.top_p:
        best, tokens = torch.sort(scaled, descending=True, stable=True)
        chances = (best - total).exp().cpu().numpy()
    return int(tokens[picked(chances, sampling.top_p, number)])


def picked(chances: np.ndarray, top_p: float, number: float) -> int:
    """Which of probabilities [n], falling, `number` picks from their nucleus."""
    reached = chances.cumsum()
    possible = int(np.count_nonzero(chances))
    kept = min(possible, 1 + int(np.count_nonzero(reached < top_p)))
    return min(kept - 1, int(np.searchsorted(reached[:kept], number * reached[kept - 1], side="right")))
