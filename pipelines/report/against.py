"""Two runs side by side: which clips changed their verdict, which rules did that, and whether the measure moved or
the bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.decisions import read_decisions, standing
from manifests.tables import CLIPS_TABLE
from manifests.verdicts import Profile, Rule
from pipelines.report import words
from pipelines.report.choose import PER_GROUP, Best
from pipelines.report.frozen import Frozen
from pipelines.report.ids import hashes
from pipelines.report.spread import by_backend, numbers
from pipelines.report.tally import CODES, Judged, judge

Row = dict[str, Any]
CAUSES = ("measure moved", "bound moved", "measure and bound moved", "now measured", "no longer measured", "rule is new",
          "rule is gone", "neither")  # fmt: skip
"""Why a rule began or ceased to fail, or to have a value."""
PASSES, FAILS, LACKS = 0, 1, 2


@dataclass
class Side:
    """The clips of one dataset under one profile, sorted by the hash of their id."""

    frozen: Frozen
    profile: Profile
    rules: tuple[Rule, ...] = ()
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    fails: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    unmet: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    verdict: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    final: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def batches(self) -> Iterator[tuple[pa.Table, Judged]]:
        """(rows, verdicts) part by part."""
        decided = standing(read_decisions(self.frozen.store), self.profile.name)
        columns = list(dict.fromkeys([*self.profile.columns(), "duration_s"]))
        for _, rows in self.frozen.batches(CLIPS_TABLE, columns):
            yield rows, judge(self.profile, rows, decided)

    def load(self) -> Side:
        """Reads verdicts, 34 bytes a clip."""
        parts = []
        for rows, judged in self.batches():
            self.rules = judged.rules
            seconds = np.nan_to_num(numbers(rows["duration_s"]))
            parts.append((hashes(rows["clip_id"]), judged.fails, judged.unmet, judged.verdict, judged.final, seconds))
        if parts:
            ids, *others = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(ids, kind="stable")
            self.ids = ids[order]
            self.fails, self.unmet, self.verdict, self.final, self.seconds = (column[order] for column in others)
        return self

    def states(self, name: str, where: np.ndarray) -> np.ndarray:
        """[k] int8 of the clips at `where`: PASSES, FAILS or LACKS a value; all pass where there is no such rule."""
        for bit, rule in enumerate(self.rules):
            if rule.name == name:
                fails, unmet = (mask[where] >> np.uint64(bit) & np.uint64(1) for mask in (self.fails, self.unmet))
                return np.asarray((fails + 2 * unmet).astype(np.int8))
        return np.zeros(len(where), np.int8)


@dataclass
class Values:
    """What one rule saw of some clips. value: [k] float64, NaN without one; bound: [k] places in `bounds`, -1 where
    the rule does not apply."""

    value: np.ndarray
    bound: np.ndarray
    bounds: list[str]


@dataclass
class Compared:
    """What changed from `before` to `now`."""

    profile: str
    before_profile: str
    matched: Row
    only_before: Row
    only_now: Row
    changes: list[Row]
    rules: list[Row]
    people: int
    examples: list[Row]

    @property
    def changed(self) -> int:
        """Clips with another verdict."""
        return sum(change["clips"] for change in self.changes if change["before"] != change["now"])

    def ids(self) -> frozenset[str]:
        """Clips that are shown."""
        return frozenset(clip for example in self.examples for clip in example["ids"])


def compare(before: Side, now: Side) -> Compared:
    """Clips are the same where their ids are: content, start and end. Both sides loaded."""
    at = np.minimum(np.searchsorted(before.ids, now.ids), max(0, len(before.ids) - 1))
    same = before.ids[at] == now.ids if len(before.ids) else np.zeros(len(now.ids), bool)
    old, new = at[same], np.flatnonzero(same)
    gone = np.ones(len(before.ids), bool)
    gone[old] = False
    return Compared(
        now.profile.name,
        before.profile.name,
        _total(now.seconds[new]),
        _total(before.seconds[gone]),
        _total(now.seconds[~same]),
        _changes(before, now, old, new),
        _rule_changes(before, now, old, new),
        int(np.count_nonzero((before.final[old] != now.final[new]) & (before.verdict[old] == now.verdict[new]))),
        _examples(before, now, old, new),
    )


def _total(seconds: np.ndarray) -> Row:
    return {"clips": len(seconds), "seconds": round(float(seconds.sum()), 3)}


def _changes(before: Side, now: Side, old: np.ndarray, new: np.ndarray) -> list[Row]:
    codes = before.final[old].astype(np.int64) * 3 + now.final[new]
    clips, seconds = np.bincount(codes, minlength=9), np.bincount(codes, now.seconds[new], minlength=9)
    return [
        {"before": CODES[code // 3], "now": CODES[code % 3], "clips": int(clips[code]), "seconds": float(seconds[code])}
        for code in range(9)
    ]


def _rule_changes(before: Side, now: Side, old: np.ndarray, new: np.ndarray) -> list[Row]:
    """{"rule", "began" and "ceased" to fail, "lost" and "found" a value, "decisive" (the verdict changed too),
    "causes": {cause: clips}, "bounds": [before, now]} of the rules of both that changed."""
    names = list(dict.fromkeys(rule.name for rule in (*now.rules, *before.rules)))
    states = {name: (before.states(name, old), now.states(name, new)) for name in names}
    moved = np.zeros(len(new), bool)
    for was, does in states.values():
        moved |= was != does
    some, verdict = np.flatnonzero(moved), before.final[old] != now.final[new]
    then, here = _values(before, now.ids[new[some]]), _values(now, now.ids[new[some]])
    out = []
    for name in names:
        was, does = (side[some] for side in states[name])
        other = was != does
        if other.any():
            counts = {
                "began": np.count_nonzero(other & (does == FAILS)),
                "ceased": np.count_nonzero(other & (was == FAILS)),
                "lost": np.count_nonzero(other & (does == LACKS)),
                "found": np.count_nonzero(other & (was == LACKS)),
                "decisive": np.count_nonzero(other & verdict[some]),
            }
            why = _causes(then.get(name), here.get(name), other)
            bounds = [_spelled(then.get(name)), _spelled(here.get(name))]
            out.append({"rule": name, **{k: int(n) for k, n in counts.items()}, "causes": why, "bounds": bounds})
    return out


def _spelled(seen: Values | None) -> str:
    return "no such rule" if seen is None else ", ".join(dict.fromkeys(seen.bounds)) or "does not apply"


def _values(side: Side, ids: np.ndarray) -> dict[str, Values]:
    """By rule, what it saw of the clips of these ids (sorted), all of which are there."""
    out = {r.name: Values(np.full(len(ids), np.nan), np.full(len(ids), -1), []) for r in side.rules}
    for rows, judged in side.batches() if len(ids) else ():
        found = hashes(rows["clip_id"])
        place = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
        wanted = ids[place] == found
        backends = by_backend(rows)
        for rule in judged.rules:
            seen, column = out[rule.name], rows[rule.measure]
            seen.value[place[wanted]] = _figures(column)[wanted]
            for backend, where in backends[rule.stage]:
                if rule.applies(backend):
                    mask = wanted & where if isinstance(where, np.ndarray) else wanted
                    seen.bound[place[mask]] = _place(seen.bounds, words.bound(rule, backend))
    return out


def _figures(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        known = np.asarray(column.is_valid())
        return np.where(known, (hashes(column) >> np.uint64(12)).astype(np.float64), np.nan)
    return numbers(column)


def _place(known: list[str], text: str) -> int:
    if text not in known:
        known.append(text)
    return known.index(text)


def _causes(before: Values | None, now: Values | None, where: np.ndarray) -> dict[str, int]:
    count = int(np.count_nonzero(where))
    if before is None or now is None:
        return {"rule is new" if before is None else "rule is gone": count}
    had, has = ~np.isnan(before.value[where]), ~np.isnan(now.value[where])
    measure = before.value[where] != now.value[where]
    names = before.bounds + now.bounds
    code = np.array([names.index(name) for name in names] + [-1])
    bound = code[before.bound[where]] != code[np.where(now.bound[where] < 0, -1, now.bound[where] + len(before.bounds))]
    kinds = np.select([~had & has, had & ~has, measure & bound, measure & had & has, bound], [3, 4, 2, 0, 1], default=7)
    return {CAUSES[kind]: int(n) for kind, n in enumerate(np.bincount(kinds, minlength=8)) if n}


def _examples(before: Side, now: Side, old: np.ndarray, new: np.ndarray) -> list[Row]:
    """{"before", "now", "ids"} of clips that changed, by lot."""
    codes = before.final[old].astype(np.int64) * 3 + now.final[new]
    ids, wanted = now.ids[new], {}
    for code in (code for code in np.unique(codes) if code // 3 != code % 3):
        some = np.sort(ids[codes == code])[:PER_GROUP]
        wanted[int(code)] = (some, Best())
    for rows, _ in now.batches() if wanted else ():
        found = hashes(rows["clip_id"])
        for some, best in wanted.values():
            best.see(found.astype(np.float64), found, rows["clip_id"], np.isin(found, some))
    return [
        {"before": CODES[code // 3], "now": CODES[code % 3], "ids": best.ids()} for code, (_, best) in wanted.items()
    ]
