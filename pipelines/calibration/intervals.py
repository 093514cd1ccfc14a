"""Shares with their confidence intervals, from samples that were not drawn evenly. Pure figures.

A share over strata is the sum of the strata's own, each weighed by how many clips the stratum holds
(Horvitz-Thompson), so that many reviews near a bound do not count more than the clips that lie there. Its interval
is Wilson's (1927) for the number of evenly drawn clips that would leave as much variance (Korn & Graubard 1998);
reviewing a whole stratum leaves no doubt about it (finite population correction). Ratios of two shares are put
together from their intervals (Donner & Zou 2012: method of variance estimates recovery).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Z = 1.959964
"""Of a two-sided 95% interval."""
FEWEST = 2
"""Reviews that the outermost stratum has at least."""


@dataclass(frozen=True)
class Share:
    """A share with its 95% interval. reviews: clips that it comes from; effective: how many evenly drawn ones would
    tell as much."""

    value: float
    low: float
    high: float
    reviews: int
    effective: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Strata:
    """Clips by stratum. clips, reviews, bad: [h]; how many there are, were reviewed, and of these people rejected."""

    clips: np.ndarray
    reviews: np.ndarray
    bad: np.ndarray

    def at(self, where: np.ndarray | slice | int) -> Strata:
        return Strata(self.clips[where], self.reviews[where], self.bad[where])

    def plus(self, other: Strata) -> Strata:
        """Stratum by stratum together."""
        return Strata(self.clips + other.clips, self.reviews + other.reviews, self.bad + other.bad)


def join(parts: Iterable[Strata]) -> Strata:
    """The strata of all parts."""
    rows = [np.stack([part.clips, part.reviews, part.bad]) for part in parts]
    return Strata(*np.concatenate(rows, 1))


def wilson(share: float, reviews: float) -> tuple[float, float]:
    """(low, high) of a share that was found in so many evenly drawn reviews, a fraction included."""
    middle = share + Z * Z / (2 * reviews)
    spread = Z * math.sqrt(share * (1 - share) / reviews + Z * Z / (4 * reviews * reviews))
    scale = 1 + Z * Z / reviews
    low = 0.0 if share <= 0 else max(0.0, (middle - spread) / scale)
    return low, 1.0 if share >= 1 else min(1.0, (middle + spread) / scale)


def share_of(strata: Strata) -> Share | None:
    """The share of bad clips over strata that were each reviewed; None without any."""
    total = float(strata.clips.sum())
    if total <= 0 or (strata.reviews <= 0).any():
        return None
    weight = strata.clips / total
    value = float(weight @ (strata.bad / strata.reviews))
    unseen = np.clip(1 - strata.reviews / np.maximum(strata.clips, strata.reviews), 0, 1)
    doubt = weight**2 * unseen / strata.reviews
    likely = (strata.bad + value) / (strata.reviews + 1)  # a stratum of few reviews is no surer than the others
    variance = float(doubt @ (likely * (1 - likely)))
    even = 1 / max(float(doubt.sum()), 1e-12)
    effective = value * (1 - value) / variance if 0 < value < 1 and variance > 0 else even
    low, high = wilson(min(max(value, 0.0), 1.0), effective)
    return Share(value, low, high, int(strata.reviews.sum()), min(effective, total))


def recall_of(fails: float, precision: Share | None, passes: float, missed: Share | None) -> Share | None:
    """Share of the bad clips that a rule fails, of `fails` clips of which `precision` are bad and `passes` clips of
    which `missed` are; None where people rejected none, or one side was not reviewed."""
    if passes <= 0 and precision is not None:
        missed = Share(0.0, 0.0, 0.0, 0, 0.0)
    if fails <= 0 and missed is not None:
        precision = Share(0.0, 0.0, 0.0, 0, 0.0)
    if precision is None or missed is None:
        return None
    caught, lost = fails * precision.value, passes * missed.value
    if caught + lost <= 0:
        return None
    reviews = precision.reviews + missed.reviews
    effective = min(one.effective for one in (precision, missed) if one.reviews)
    odds = _ratio(
        (lost, passes * missed.low, passes * missed.high), (caught, fails * precision.low, fails * precision.high)
    )
    return Share(caught / (caught + lost), 1 / (1 + odds[1]), 1 / (1 + odds[0]), reviews, effective)


def _ratio(over: tuple[float, float, float], under: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of over / under from (value, low, high) of both, on the logarithmic scale; a value of 0 is taken to be
    at the middle of its Wilson interval, half its upper end."""
    (a, a_low, a_high), (b, b_low, b_high) = over, under
    if a_high <= 0:
        return 0.0, 0.0
    if b_high <= 0:
        return math.inf, math.inf
    a, b = a if a > 0 else a_high / 2, b if b > 0 else b_high / 2
    ratio = a / b
    low = math.hypot(math.log(a / a_low), math.log(b_high / b)) if a_low > 0 else math.inf
    high = math.hypot(math.log(a_high / a), math.log(b / b_low)) if b_low > 0 else math.inf
    return ratio * math.exp(-low), ratio * math.exp(high) if high < 700 else math.inf


def merged(strata: Strata, least: int) -> Strata:
    """Neighbouring strata put together until each has `least` reviews; the last ones join the stratum before them when
    they have next to none.

    strata: in order from the bound outwards. Which ones are put together depends on how many were reviewed, never on
    what people said. Strata without a clip vanish.
    """
    rows: list[np.ndarray] = []
    open_row = np.zeros(3)
    for row in np.stack([strata.clips, strata.reviews, strata.bad], 1).astype(float):
        open_row = open_row + row
        if open_row[1] >= least:
            rows.append(open_row)
            open_row = np.zeros(3)
    if rows and open_row[1] < FEWEST:
        rows[-1] = rows[-1] + open_row
    else:
        rows.append(open_row)
    table = np.array([row for row in rows if row[0] > 0]).reshape(-1, 3)
    return Strata(table[:, 0], table[:, 1], table[:, 2])
