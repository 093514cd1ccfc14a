"""Which clips are shown: near a bound, failing one rule alone, or drawn by lot; the same ones every time."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.report.spread import Key, Spread
from pipelines.report.tally import Judged, Tally, distances, fails_rule

PER_GROUP = 4
NEAR_REJECT, ONLY, NEAR_KEEP = "near-reject", "only", "near-keep"
KEPT, UNDECIDED_CLIPS, PEOPLE = "kept", "undecided", "people"
Group = tuple[str, str, str]
"""(profile, rule or "", one of the names above)."""


@dataclass
class Best:
    """The `size` clips with the smallest keys. Equal keys: by lot."""

    size: int = PER_GROUP
    _held: list[tuple[float, int, str]] = field(default_factory=list)

    def see(self, keys: np.ndarray, lots: np.ndarray, ids: pa.ChunkedArray, where: np.ndarray) -> None:
        """Considers those of [n] that are `where` and have a key."""
        places = np.flatnonzero(where & ~np.isnan(keys))
        if not len(places):
            return
        if len(self._held) == self.size:
            places = places[keys[places] <= self._held[-1][0]]
        if len(places) > self.size:
            limit = np.partition(keys[places], self.size - 1)[self.size - 1]
            places = places[keys[places] <= limit]
            places = places[np.lexsort((lots[places], keys[places]))[: self.size]]
        found = ((float(keys[at]), int(lots[at]), ids[int(at)].as_py()) for at in places)
        self._held = heapq.nsmallest(self.size, [*self._held, *found])

    def ids(self) -> list[str]:
        """Best first."""
        return [clip for _, _, clip in self._held]


@dataclass
class Chooser:
    """Collects the clips of every group."""

    groups: dict[Group, Best] = field(default_factory=dict)

    def see(
        self, tally: Tally, rows: pa.Table, judged: Judged, lots: np.ndarray, spreads: Mapping[Key, Spread]
    ) -> None:
        """Considers `rows`; counts those near each bound in `tally` on the way. lots: [n] hashes of their ids."""
        name, ids = tally.profile.name, rows["clip_id"]
        by_lot = (lots >> np.uint64(11)).astype(np.float64)
        kept = judged.final == 0
        self._best(name, "", KEPT).see(by_lot, lots, ids, kept & ~judged.decided)
        self._best(name, "", UNDECIDED_CLIPS).see(by_lot, lots, ids, judged.final == 2)
        self._best(name, "", PEOPLE).see(by_lot, lots, ids, judged.decided & (judged.final != judged.verdict))
        for bit, rule in enumerate(judged.rules):
            fails = fails_rule(judged, bit)
            away = distances(rule, rows, spreads)
            tally.add_near(rule, fails, away)
            alone = judged.fails == np.uint64(1 << bit)
            self._best(name, rule.name, ONLY).see(by_lot, lots, ids, alone)
            near = by_lot if away is None else away
            self._best(name, rule.name, NEAR_REJECT).see(near, lots, ids, fails)
            if away is not None:
                self._best(name, rule.name, NEAR_KEEP).see(away, lots, ids, kept & ~fails & ~judged.decided)

    def _best(self, profile: str, rule: str, group: str) -> Best:
        return self.groups.setdefault((profile, rule, group), Best())

    def ids(self) -> set[str]:
        """Every clip that is shown."""
        return {clip for best in self.groups.values() for clip in best.ids()}
