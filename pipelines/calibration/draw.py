"""Which clips to review next: where one more review takes most off what is not known yet.

For each rule three shares are to be known: of bad clips among those that it fails, among those that it passes, and
inside the interval of the suggested bound. Clips of a bin are a share W of one of these, its reviews disagree with
variance S2, and the n-th next one takes W2 S2 / (n (n + 1)) off the variance: taking the greatest gain again and again
is Neyman's allocation in whole numbers (Wright 2012). A clip counts for every rule that decides alone about it; a rule
counts by how many clips hang on it: those that it alone fails and those whose fate is open. Every
fifth clip is drawn evenly from all, so that nothing stays unseen because it was thought to be settled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.calibration.finding import Finding
from pipelines.calibration.ground import OUTSIDE, Ground

EXPLORE = 5
"""Every so many clips one is drawn evenly."""
SETTLED = 0.1
"""What a review is worth to a rule that is settled."""
CANDIDATES = 64
"""Clips of a bin among which the one of the least drawn source is taken."""


@dataclass(frozen=True)
class Drawn:
    """place: in the snapshot; rule: for which it was drawn, "" = evenly from all."""

    place: int
    rule: str


class _Bins:
    """One rule's bins while clips are drawn. left: [h] clips that may be drawn."""

    def __init__(self, found: Finding, free: np.ndarray) -> None:
        evidence = found.evidence
        self.rule, self.bins = evidence.scale.rule.name, evidence.bins
        clips, self.reviews, bad = (
            table.sum(1).astype(float)
            for table in (evidence.strata.clips, evidence.strata.reviews, evidence.strata.bad)
        )
        self.left = np.bincount(self.bins[free & (self.bins != OUTSIDE)], minlength=len(clips))
        fails = np.arange(len(clips)) <= evidence.now
        weight = np.zeros(len(clips))
        likely = np.zeros(len(clips))
        for side in (fails, ~fails):
            weight[side] += (clips[side] / max(clips[side].sum(), 1)) ** 2
            pooled = (bad[side].sum() + 0.5) / (self.reviews[side].sum() + 1)
            likely[side] = (bad[side] + pooled) / (self.reviews[side] + 1)
        first, last = found.open_bins
        inside = slice(first, last)
        weight[inside] += (clips[inside] / max(clips[inside].sum(), 1)) ** 2
        hang = (clips[fails].sum() + found.stake) / max(clips.sum(), 1)
        self._worth = weight * likely * (1 - likely) * hang * (SETTLED if found.settled else 1.0)

    def gains(self) -> np.ndarray:
        """[h] what the next review of each bin is worth; -1 where no clip is left."""
        n = self.reviews + 1
        return np.where(self.left > 0, self._worth / (n * (n + 1)), -1.0)

    def take(self, place: int) -> None:
        at = self.bins[place]
        if at != OUTSIDE:
            self.reviews[at] += 1
            self.left[at] -= 1


def draw(
    ground: Ground, findings: Sequence[Finding], decided: Mapping[int, object], count: int, seed: int
) -> list[Drawn]:
    """`count` clips that nobody decided about, the most telling first; fewer where there are no more.

    The same for the same clips, reviews and seed. decided: {place: anything}.
    """
    rng = np.random.default_rng(seed)
    free = ground.kept.copy()
    for found in findings:
        free |= found.evidence.bins != OUTSIDE
    free[list(decided)] = False
    bins = [_Bins(found, free) for found in findings]
    pools = _Pools(rng, free, ground.snapshot.ids.source)
    out: list[Drawn] = []
    while len(out) < count:
        rule, chosen = _best(bins) if len(out) % EXPLORE != EXPLORE - 1 else (None, 0)
        place = pools.next(rule, chosen)
        if place is None:
            break
        for one in bins:
            one.take(place)
        out.append(Drawn(place, rule.rule if rule else ""))
    return out


def _best(bins: Sequence[_Bins]) -> tuple[_Bins | None, int]:
    """(rule, bin) of the greatest gain; (None, 0) where there is none."""
    best, at, most = None, 0, 0.0
    for one in bins:
        gains = one.gains()
        top = int(np.argmax(gains)) if len(gains) else 0
        if len(gains) and gains[top] > most:
            best, at, most = one, top, float(gains[top])
    return best, at


class _Pools:
    """Clips that may be drawn, by bin, shuffled once each."""

    def __init__(self, rng: np.random.Generator, free: np.ndarray, source: np.ndarray) -> None:
        self._rng, self._free, self._source = rng, free, source
        self._taken: dict[int, int] = {}
        self._shuffled: dict[tuple[str, int], Iterator[int]] = {}
        self._held: dict[tuple[str, int], list[int]] = {}

    def next(self, rule: _Bins | None, at: int) -> int | None:
        """The next clip of a bin, or of all; of a source that was drawn least. None where none is left."""
        key = (rule.rule if rule else "", at)
        if key not in self._shuffled:
            among = self._free if rule is None else self._free & (rule.bins == at)
            self._shuffled[key] = iter(self._rng.permutation(np.flatnonzero(among)).tolist())
            self._held[key] = []
        held = [place for place in self._held[key] if self._free[place]]
        for place in self._shuffled[key]:
            if self._free[place]:
                held.append(place)
            if len(held) >= CANDIDATES:
                break
        self._held[key] = held
        if not held:
            return None
        place = min(held, key=lambda place: self._taken.get(int(self._source[place]), 0))
        self._free[place] = False
        source = int(self._source[place])
        self._taken[source] = self._taken.get(source, 0) + 1
        return place
