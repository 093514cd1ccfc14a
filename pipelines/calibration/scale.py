"""A rule's measure as a score: higher is better, and a clip passes where its score reaches the bound's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.verdicts import Rule
from pipelines.review.snapshot import NUMERIC, WHOLE

RANKS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
"""Where bounds lie beside the current one: so far into the clips on either side, finer near it."""
LEVELS = 40
"""A measure of at most so many whole numbers is looked at number by number."""
SAMPLED = 200_000
"""Scores that quantiles are taken from at most, evenly picked."""


@dataclass(frozen=True)
class Scale:
    """How `rule` compares under one bound. key: of that bound in `rule.bounds`."""

    rule: Rule
    key: str

    @property
    def bound(self) -> Any:
        return self.rule.bounds[self.key]

    @property
    def slides(self) -> bool:
        """Whether another bound could be asked for: the measure is a figure and the test an order."""
        return self.rule.measure in NUMERIC and self.rule.test not in ("equals", "in")

    @property
    def whole(self) -> bool:
        return self.rule.measure in WHOLE

    @property
    def strict(self) -> bool:
        """Whether a clip that meets the bound exactly fails."""
        return self.rule.test in ("above", "below")

    def scores(self, values: np.ndarray) -> np.ndarray:
        """[n] float32 of the measure's values."""
        if self.rule.test == "within":
            return -np.abs(values)
        return -values if self.rule.test in ("max", "below") else values

    def edge(self, bound: float) -> float:
        """The score that `bound` asks for."""
        return float(np.float32(-bound if self.rule.test in ("max", "below", "within") else bound))

    def bound_of(self, edge: float) -> float:
        """The bound that asks for the score `edge`."""
        found = -edge if self.rule.test in ("max", "below", "within") else edge
        return 0.0 if found == 0 else found

    def bins(self, scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """[n] int8: how many of `edges` (rising) each score passes; it fails edge k where that is at most k."""
        return np.searchsorted(edges, scores, "left" if self.strict else "right").astype(np.int8)

    def edges(self, scores: np.ndarray) -> np.ndarray:
        """[k] float32, rising: bounds to look at over `scores` [n], the current one among them."""
        now = np.float32(self.edge(float(self.bound)))
        known = scores[:: max(1, len(scores) // SAMPLED)]
        levels = np.unique(known)
        if self.whole and len(levels) <= LEVELS:
            return np.unique(np.append(levels if self.strict else levels[1:], now)).astype(np.float32)
        fails = known <= now if self.strict else known < now
        below, above = known[fails], known[~fails]
        found = [now]
        if len(below):
            found += list(np.quantile(below, [1 - rank for rank in RANKS]))
        if len(above):
            found += list(np.quantile(above, RANKS))
        edges = np.unique(np.array(found, np.float32))
        return np.unique(np.round(edges)).astype(np.float32) if self.whole and float(now).is_integer() else edges

    def parts(self, low: float, high: float, edge: float) -> bool:
        """Whether the score `edge` as a bound parts what scores up to `low` from what scores from `high` on."""
        return low <= edge < high if self.strict else low < edge <= high

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """(least, greatest) bound that parts scores up to `low` from those from `high` on, in units of the measure."""
        if self.whole and self.strict and math.isfinite(high):
            high -= 1
        if self.whole and not self.strict and math.isfinite(low):
            low += 1
        least, greatest = sorted((self.bound_of(low), self.bound_of(high)))
        return least, greatest

    def suggestion(self, gap: tuple[float, float]) -> float:
        """A plain bound that parts the scores at `gap`; the current one where it does."""
        from pipelines.calibration.crossing import plain_between

        low, high = gap
        now = self.edge(float(self.bound))
        if self.parts(low, high, now):
            return float(self.bound)
        if not self.whole:
            return self.bound_of(plain_between(low, high))
        if self.strict:
            return self.bound_of(-plain_between(-high, -low, whole=True))
        return self.bound_of(plain_between(low, high, whole=True))


def scale_of(rule: Rule, backend: str | None) -> Scale | None:
    """The scale of `rule` where `backend` measures; None where it is no rule there."""
    if not rule.applies(backend):
        return None
    return Scale(rule, "" if "" in rule.bounds else str(backend))
