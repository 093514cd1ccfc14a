"""The bound that reviews suggest: where people begin to reject more often than it is worth. Pure figures.

Clips are ordered by score (higher = better). The share of clips that people reject is taken to fall with the score,
in no particular shape, and is fitted by isotonic regression (Ayer et al. 1955). A bad clip that is kept costs `cost`
good clips that are lost, so it is right to reject where more than 1 / (1 + cost) of the clips are bad; the bound where
the fit crosses that share is the one of least cost on the reviews.

Its interval holds every bound that a likelihood ratio test does not refuse: the fit against the fit that must cross
the share right there. The test's limiting distribution does not depend on the unknown shape (Banerjee & Wellner
2001, 2005: 95% quantile 2.269), where a bootstrap would fail (Abrevaya & Huang 2005). Where many clips share
a score, the limit is chi-square with one degree of freedom (Tang, Banerjee & Kosorok 2012), which is
wider and used there. How clips were chosen for review changes neither, as long as the choice looked at the score alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

QUANTILE, QUANTILE_TIED = 2.26916, 3.84146
SMALL = 8
"""Widens the test for few reviews: by simulation the plain one covers 90% at 40 reviews, so 95%."""
LEAST_REVIEWS, LEAST_EACH = 30, 5
"""No bound is suggested from fewer reviews, or from fewer of either kind."""
EXCLUDES = 1.33
"""Twice the divergence at which a bound is refused as often as not: with it the width is, for many reviews, that of
the limit distribution, 2 * 0.998 (4 v / (s**2 d))**(1/3) (Groeneboom & Wellner 2001)."""
FLATTEST = 0.05
MOST_TESTED = 400
"""Bounds that are tested for the interval, evenly over the reviews."""


@dataclass(frozen=True)
class Crossing:
    """gap: (low, high) neighbouring reviewed scores between which the best bound lies; low, high: its 95% interval,
    infinite where the reviews do not end it. crosses: whether people keep on one side and reject on the other."""

    gap: tuple[float, float]
    low: float
    high: float
    crosses: bool


def crossing(scores: np.ndarray, bad: np.ndarray, share: float) -> Crossing:
    """Where the share of bad clips, falling with the score, crosses `share`.

    scores: [n] finite, of reviewed clips; bad: [n] bool. Raises ValueError for none.
    """
    if not len(scores):
        raise ValueError("no reviews")
    levels, place = np.unique(np.asarray(scores, float), return_inverse=True)
    count = np.bincount(place).astype(float)
    found = np.bincount(place, np.asarray(bad, float))
    ends = np.concatenate([[-math.inf], levels, [math.inf]])
    excess = np.concatenate([[0.0], np.cumsum(found - share * count)])
    best = _flattest(excess)
    fit = _falling(found, count)
    free = _likelihood(fit, found, count)
    tested = np.unique(np.append(np.linspace(0, len(levels), min(len(levels) + 1, MOST_TESTED)).astype(int), best))
    tied = 2 * len(levels) <= len(scores)
    limit = (QUANTILE_TIED if tied else QUANTILE) * (1 + SMALL / len(scores))
    held = [at for at in tested if 2 * (free - _held_likelihood(found, count, int(at), share)) <= limit]
    low, high = min([*held, best]), max([*held, best])
    return Crossing(
        (float(ends[best]), float(ends[best + 1])),
        float(ends[low]),
        float(ends[high + 1]),
        0 < best < len(levels),
    )


def _flattest(excess: np.ndarray) -> int:
    """The bound of least cost: the place where most excess of bad clips lies below; of equal ones the middle."""
    best = np.flatnonzero(excess >= excess.max() - 1e-9)
    return int(best[len(best) // 2])


def _falling(bad: np.ndarray, count: np.ndarray) -> np.ndarray:
    """[k] the isotonic fit of bad / count, never rising."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(bad / count, weights=count, increasing=False).x) if len(bad) else bad


def _likelihood(fit: np.ndarray, bad: np.ndarray, count: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = np.where(bad > 0, bad * np.log(fit), 0.0)
        no = np.where(count > bad, (count - bad) * np.log1p(-fit), 0.0)
    return float((yes + no).sum())


def _held_likelihood(bad: np.ndarray, count: np.ndarray, at: int, share: float) -> float:
    """Of the best fit that is above `share` below place `at` and under it from there on."""
    below = np.maximum(_falling(bad[:at], count[:at]), share)
    above = np.minimum(_falling(bad[at:], count[at:]), share)
    return _likelihood(np.concatenate([below, above]), bad, count)


def reviews_to_settle(
    found: Crossing, scores: np.ndarray, bad: np.ndarray, share: float, clips: np.ndarray, allowed: float
) -> int:
    """About how many more reviews, drawn inside the interval, narrow it to `allowed` clips.

    A bound is refused once the reviews between it and the crossing tell enough: twice their divergence from `share`
    adds up to EXCLUDES. So a clip is worth reviewing until the interval has shrunk past it; the sum of those shares
    over the clips of the interval, less the reviews that are there, is what is needed. How likely clips are bad is
    taken from a logistic fit to the reviews. Never more than there are clips to review inside.

    scores, bad: [n] of reviewed clips; clips: [m] scores of all clips inside the interval, reviewed or not.
    """
    inside = (scores > found.low) & (scores < found.high)
    unreviewed = len(clips) - int(inside.sum())
    if len(clips) <= allowed or unreviewed <= 0:
        return 0
    middle, spread = float(clips.mean()), float(clips.std()) or 1.0
    start, slope = _logistic((scores - middle) / spread, bad)
    turn = middle + spread * (start - math.log(share / (1 - share))) / slope
    needed = 0.0
    for side, seen in ((clips < turn, scores < turn), (clips >= turn, scores >= turn)):
        distance = np.sort(np.abs(clips[side] - turn))
        if len(distance):
            wanted = _wanted(distance, slope / spread, share, allowed * len(distance) / len(clips))
            needed += max(0.0, wanted - int((inside & seen).sum()))
    return max(1, min(unreviewed, math.ceil(needed)))


def _wanted(distance: np.ndarray, slope: float, share: float, allowed: float) -> float:
    """Reviews that refuse every bound on one side but the nearest `allowed` clips. distance: [m] of clips, rising."""
    for_sign = math.log(share / (1 - share))
    odds = np.clip(for_sign + np.array([[-1.0], [1.0]]) * slope * distance, -30, 30)
    likely = 1 / (1 + np.exp(-odds))
    divergence = likely * np.log(likely / share) + (1 - likely) * np.log((1 - likely) / (1 - share))
    told = np.cumsum(2 * divergence.mean(0))
    density = np.minimum(1.0, EXCLUDES / np.maximum(told, 1e-12))
    last = min(len(distance) - 1, max(0, math.ceil(allowed) - 1))
    return float(density[last:].sum() + last * density[last])


def _logistic(x: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """(a, b) of the fit 1 / (1 + exp(b x - a)) to bad [n]; the slope b at least FLATTEST."""
    design = np.stack([np.ones(len(x)), -x], 1)
    weights = np.zeros(2)
    for _ in range(25):
        fit = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        bend = (design * (fit * (1 - fit))[:, None]).T @ design + 0.05 * np.eye(2)
        weights = weights + np.clip(np.linalg.solve(bend, design.T @ (bad - fit) - 0.05 * weights), -2, 2)
    return float(weights[0]), max(float(weights[1]), FLATTEST)


def plain_between(low: float, high: float, whole: bool = False) -> float:
    """The figure with the fewest digits in ]low, high[, the nearest to the middle; `whole`: in ]low, high], an integer.

    An end may be infinite, not both.
    """
    if whole:
        if math.isinf(low):
            return math.floor(high)
        return math.floor(low) + 1 if math.isinf(high) else max(math.floor(low) + 1, math.floor((low + high) / 2))
    if math.isinf(low) or math.isinf(high):
        end = high if math.isinf(low) else low
        room = max(abs(end) * 1e-3, 1e-6)
        return plain_between(end - room, end) if math.isinf(low) else plain_between(end, end + room)
    middle = (low + high) / 2
    for digits in range(-12, 16):
        found = round(middle, digits)
        if low < found < high:
            return found
    return middle
