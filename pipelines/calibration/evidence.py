"""Reviews of one rule laid over its bins: what both sides of a bound hold, how far reviews reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.calibration.ground import LEVELS, NEAR_LEVEL, OUTSIDE, Ground
from pipelines.calibration.intervals import Share, Strata, join, merged, recall_of, share_of
from pipelines.calibration.people import Truth
from pipelines.calibration.scale import Scale

LEAST = 5
"""Reviews that a stratum has at least, where there are so many."""


@dataclass(frozen=True)
class Reviewed:
    """Reviewed clips about which the rule decides alone. places: [m] in the snapshot; bad: [m] bool. others: reviews
    of clips that fail another rule or lack its value; elsewhere: rejections whose reason names other rules only."""

    places: np.ndarray
    bad: np.ndarray
    others: int
    elsewhere: int


def reviews_of(rule: str, alone: np.ndarray, truths: Mapping[int, Truth]) -> Reviewed:
    """truths: {place: what people said}."""
    said = [(place, truths[place].about(rule)) for place in sorted(truths) if alone[place]]
    told = [(place, bad) for place, bad in said if bad is not None]
    places = np.array([place for place, _ in told], np.int64)
    bad = np.array([bad for _, bad in told], bool)
    return Reviewed(places, bad, len(truths) - len(said), len(said) - len(told))


@dataclass(frozen=True)
class Evidence:
    """One rule's clips in bins. edges: [k] rising scores, `now` the place of the current one; a rule that does not
    slide has the one edge between failing and passing. bins: [n] int8, how many edges a clip passes, OUTSIDE where
    the rule does not decide alone. strata: [k + 1, 2], the second column near the bound of another rule."""

    scale: Scale
    edges: np.ndarray
    now: int
    bins: np.ndarray
    strata: Strata
    reviewed: Reviewed

    @property
    def clips(self) -> int:
        return int(self.strata.clips.sum())

    def side(self, edge: int, fails: bool) -> Strata:
        """What a bound at `edge` fails or passes, in strata of enough reviews, from the bound outwards."""
        rows = slice(edge, None, -1) if fails else slice(edge + 1, None)
        some = self.strata.at(rows)
        columns = [Strata(some.clips[:, c], some.reviews[:, c], some.bad[:, c]) for c in (0, 1)]
        if any(column.clips.sum() > 0 and column.reviews.sum() < LEAST for column in columns):
            columns = [columns[0].plus(columns[1])]
        return join(merged(column, LEAST) for column in columns)

    def counts(self, edge: int) -> tuple[int, int]:
        """(clips that a bound at `edge` fails, clips that it passes)."""
        fails = int(self.strata.clips[: edge + 1].sum())
        return fails, self.clips - fails

    def quality(self, edge: int) -> tuple[Share | None, Share | None, Share | None]:
        """(precision, recall, share of bad clips among those that pass) of a bound at `edge`; None where the reviews
        do not tell."""
        fails, passes = self.counts(edge)
        precision, missed = share_of(self.side(edge, True)), share_of(self.side(edge, False))
        return precision, recall_of(fails, precision, passes, missed), missed

    def unseen(self, edge: int, fails: bool) -> float:
        """Share of a side's clips that lie further out than any review of it."""
        rows = slice(edge, None, -1) if fails else slice(edge + 1, None)
        clips, reviews = self.strata.clips[rows].sum(1), self.strata.reviews[rows].sum(1)
        total, seen = clips.sum(), np.flatnonzero(reviews)
        if total == 0:
            return 0.0
        return float(clips[seen[-1] + 1 :].sum() / total) if len(seen) else 1.0


def evidence_of(ground: Ground, place: int, truths: Mapping[int, Truth], more: tuple[float, ...] = ()) -> Evidence:
    """The rule at `place` over the ground. more: bounds to look at beside the usual ones."""
    scale, alone = ground.scales[place], ground.alone(place)
    bins = np.full(len(alone), OUTSIDE, np.int8)
    edges, now = np.zeros(1, np.float32), 0
    if scale.slides:
        scores = ground.scores(place)
        alone &= np.isfinite(scores)
        some = scores[alone]
        added = np.array([scale.edge(bound) for bound in more], np.float32)
        edges = np.unique(np.concatenate([scale.edges(some), added])) if len(some) else edges
        now = int(np.searchsorted(edges, np.float32(scale.edge(float(scale.bound))))) if len(some) else 0
        bins[alone] = scale.bins(some, edges)
    else:
        bins[alone] = ~ground.snapshot.masks(scale.rule)[0][alone]
    reviewed = reviews_of(scale.rule.name, alone, truths)
    return counted(scale, edges, now, bins, ground.near_another(place), reviewed)


def counted(
    scale: Scale, edges: np.ndarray, now: int, bins: np.ndarray, near: np.ndarray, reviewed: Reviewed
) -> Evidence:
    """The evidence of clips in `bins` [n]; near: [n] bool, the column of each."""
    shape, size = (len(edges) + 1, 2), 2 * (len(edges) + 1)
    cells = bins.astype(np.int16) * 2 + near
    at = cells[reviewed.places]
    tables = (
        np.bincount(cells[bins != OUTSIDE], minlength=size),
        np.bincount(at, minlength=size),
        np.bincount(at[reviewed.bad], minlength=size),
    )
    clips, reviews, bad = (table.reshape(shape) for table in tables)
    return Evidence(scale, edges, now, bins, Strata(clips, reviews, bad), reviewed)


def kept_share(ground: Ground, truths: Mapping[int, Truth]) -> Share | None:
    """Of the clips that the rules keep the share that people reject, whatever the reason; strata by the nearest bound,
    how far it is, and whether a second one is near."""
    places = np.array([place for place in sorted(truths) if ground.kept[place]], np.int64)
    bad = np.array([truths[int(place)].rejected for place in places], bool)
    rows, columns = 2 * (len(ground.scales) + 1), LEVELS + 1
    group = (ground.whose.astype(np.int32) + 1) * 2 + (ground.second <= NEAR_LEVEL)
    cells = group * columns + ground.nearest
    at = cells[places]
    size = rows * columns
    tables = (np.bincount(some, minlength=size) for some in (cells[ground.kept], at, at[bad]))
    whole = Strata(*(table.reshape(rows, columns) for table in tables))
    groups = [whole.at(row) for row in range(rows) if whole.clips[row].sum() > 0]
    groups.sort(key=lambda group: int(group.reviews.sum()))
    while len(groups) > 1 and groups[0].reviews.sum() < LEAST:  # of too few reviews: with the next one
        first = groups.pop(0)
        groups[0] = first.plus(groups[0])
    return share_of(join(merged(group, LEAST) for group in groups)) if groups else None
