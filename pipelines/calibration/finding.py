"""What the reviews say about each rule: its quality, the bound they suggest, and what more of them would settle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.calibration import crossing as cross
from pipelines.calibration.evidence import Evidence, evidence_of
from pipelines.calibration.ground import OUTSIDE, Ground
from pipelines.calibration.intervals import Share, Z
from pipelines.calibration.people import Truth

Row = dict[str, Any]
MOVES, HOLDS, FEW, BEYOND, FIXED, IDLE = "move", "hold", "too few", "no crossing", "fixed", "idle"
"""What comes of a rule: another bound is better; the current one is not refuted; not enough reviews for any; for all
that the reviews tell people keep, or reject, at every value; its bound is no figure; it decides nothing alone."""
FAR = 0.2
"""Part of a side that lies beyond every review of it, from which on a warning is due."""
CLOSEST = 0.03
"""Shares that differ by less are not worth telling apart."""


@dataclass(frozen=True)
class Aim:
    """What is asked of the reviews. cost: good clips that one bad clip kept is worth; width: a bound is settled when
    its interval holds at most this share of the clips that it fails, or passes if these are fewer."""

    cost: float = 4.0
    width: float = 0.1

    @property
    def share(self) -> float:
        """From this share of bad clips on, rejecting is right."""
        return 1 / (1 + self.cost)


@dataclass(frozen=True)
class Finding:
    """One rule. bound: suggested, None without one; low, high: its 95% interval in units of the bound, infinite where
    reviews leave it open; stake: clips inside; more: reviews that would settle it, at least so many where `at_least`.
    precision, recall: under the current bound; then_*: under the suggested one. open_bins: places of the bins inside.
    """

    evidence: Evidence
    state: str
    precision: Share | None
    recall: Share | None
    missed: Share | None
    bound: float | None = None
    low: float = math.nan
    high: float = math.nan
    stake: int = 0
    more: int = 0
    at_least: bool = False
    then_precision: Share | None = None
    then_recall: Share | None = None
    open_bins: tuple[int, int] = (0, 0)
    keeps: bool = False
    """Without a crossing: people keep what it fails, instead of rejecting what it passes."""
    refuted: bool = False
    """The reviews speak against the current bound."""
    warnings: tuple[str, ...] = field(default_factory=tuple)

    @property
    def settled(self) -> bool:
        return self.more == 0 and self.state not in (FEW, IDLE)


def finding(ground: Ground, place: int, truths: Mapping[int, Truth], aim: Aim) -> Finding:
    """What `truths` {place: what people said} tell about the rule at `place`."""
    evidence = evidence_of(ground, place, truths)
    precision, recall, missed = evidence.quality(evidence.now)
    common: Row = {"precision": precision, "recall": recall, "missed": missed, "warnings": _warnings(evidence)}
    fails, _ = evidence.counts(evidence.now)
    if not evidence.clips or (not evidence.scale.slides and not fails):
        return Finding(evidence, IDLE, **common)
    if not evidence.scale.slides:
        more = _reviews_for_precision(evidence, aim.width)
        state = FIXED if precision is not None else FEW
        return Finding(evidence, state, **common, more=more, at_least=state == FEW)
    reviewed, bad = evidence.reviewed, int(evidence.reviewed.bad.sum())
    lacking = _lacking(len(reviewed.bad), bad)
    if lacking:
        unreviewed = evidence.clips - len(reviewed.bad)
        return Finding(evidence, FEW, **common, more=min(lacking, unreviewed), at_least=True)
    return _crossed(ground, place, truths, aim, evidence, common)


def _crossed(
    ground: Ground, place: int, truths: Mapping[int, Truth], aim: Aim, evidence: Evidence, common: Row
) -> Finding:
    scale, reviewed = evidence.scale, evidence.reviewed
    scores = ground.scores(place)
    found = cross.crossing(scores[reviewed.places], reviewed.bad, aim.share)
    inside = (evidence.bins != OUTSIDE) & (scores > found.low) & (scores < found.high)
    stake = int(inside.sum())
    ends = scale.ends(found.low, found.high)
    common |= {"low": ends[0], "high": ends[1], "stake": stake}
    now = scale.edge(float(scale.bound))
    refuted = not scale.parts(found.low, found.high, now)
    ended = math.isfinite(found.low) and math.isfinite(found.high)
    if not found.crosses or (refuted and not ended):
        keeps = math.isinf(found.low) if refuted else math.isinf(found.gap[0])
        told = refuted or not keeps or (common["precision"] is not None and common["precision"].high < aim.share)
        common |= {"keeps": keeps, "refuted": told, "open_bins": _open(evidence, found.low, found.high)}
        return Finding(evidence, BEYOND, **common, more=0 if told else _reviews_to_tell(evidence, aim.share))
    bound = scale.suggestion(found.gap)
    then = evidence_of(ground, place, truths, (bound,))
    edge = int(np.searchsorted(then.edges, np.float32(scale.edge(bound))))
    precision, recall, _ = then.quality(edge)
    allowed = max(1.0, aim.width * min(then.counts(edge)))
    more = cross.reviews_to_settle(found, scores[reviewed.places], reviewed.bad, aim.share, scores[inside], allowed)
    common |= {"then_precision": precision, "then_recall": recall, "more": more}
    return Finding(
        then,
        MOVES if refuted else HOLDS,
        **common,
        bound=bound,
        refuted=refuted,
        open_bins=_open(then, found.low, found.high),
    )


def _open(evidence: Evidence, low: float, high: float) -> tuple[int, int]:
    """(first, last + 1) of the bins that may hold scores in ]low, high[."""
    first, last = np.searchsorted(evidence.edges, [low, high])
    return int(first), int(last) + 1


def _lacking(reviews: int, bad: int) -> int:
    """About how many more reviews a suggestion needs at all."""
    rarer = min(bad, reviews - bad)
    for_kinds = (cross.LEAST_EACH - rarer) * (reviews + 1) / (rarer + 0.5) if rarer < cross.LEAST_EACH else 0
    wanted = max(cross.LEAST_REVIEWS - reviews, math.ceil(for_kinds) if reviews >= cross.LEAST_REVIEWS else 0)
    return max(0, wanted)


def _reviews_for_precision(evidence: Evidence, half: float) -> int:
    """Reviews of failing clips that bring the interval of the precision to +- `half`, from the binomial variance."""
    strata = evidence.side(evidence.now, True)
    reviews, bad = float(strata.reviews.sum()), float(strata.bad.sum())
    share = (bad + 2) / (reviews + 4)
    needed = math.ceil(Z * Z * share * (1 - share) / half**2 - reviews)
    return max(0, min(needed, int(strata.clips.sum() - reviews)))


def _reviews_to_tell(evidence: Evidence, share: float) -> int:
    """Reviews of failing clips that tell its precision from `share`, as it looks so far."""
    strata = evidence.side(evidence.now, True)
    precision = (float(strata.bad.sum()) + 1) / (float(strata.reviews.sum()) + 2)
    left = int(strata.clips.sum() - strata.reviews.sum())
    return min(left, max(1, _reviews_for_precision(evidence, max(abs(share - precision), CLOSEST))))


def _warnings(evidence: Evidence) -> tuple[str, ...]:
    found = []
    for fails, side in ((True, "fails"), (False, "passes")):
        unseen = evidence.unseen(evidence.now, fails)
        if unseen >= 1:
            found.append(f"no clip that it {side} was reviewed" + ("" if fails else ", so its recall is not known"))
        elif unseen > FAR:
            where = "farther from the bound" if evidence.scale.slides else "elsewhere"
            found.append(
                f"{100 * unseen:.0f}% of the clips that it {side} lie {where} than any review of them; they are taken to be "
                "like the farthest reviewed"
            )
    return tuple(found) if evidence.clips else ()
