"""One state of a dataset and of the decisions about it: what one request is answered from, whatever happens then."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.decisions import WITHDRAW, Decision, standing
from manifests.verdicts import Profile
from pipelines.review.query import VERDICTS, Judged, decided_over, failing_rules, judge_snapshot
from pipelines.review.snapshot import Snapshot

Row = dict[str, Any]
JUDGED = 3
"""Verdicts of the whole table that are kept, each under other bounds."""


@dataclass
class View:
    """snapshot: the clips; uris: [sources] where each source of it is; decisions: in the order of time."""

    snapshot: Snapshot
    uris: pa.Array
    decisions: tuple[Decision, ...]
    _decided: dict[str, dict[str, Decision]] = field(default_factory=dict)
    _over: dict[str, dict[int, str]] = field(default_factory=dict)
    _places: dict[str, int | None] = field(default_factory=dict)
    _judged: OrderedDict[object, Judged] = field(default_factory=OrderedDict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def after(self, decisions: Sequence[Decision]) -> View:
        """The same clips once `decisions` were made too."""
        known = {one.decision_id for one in self.decisions}
        more = [one for one in decisions if one.decision_id not in known]
        if not more:
            return self
        merged = sorted((*self.decisions, *more), key=lambda one: (one.time, one.decision_id))
        return replace(self, decisions=tuple(merged), _decided={}, _over={})

    def decided(self, profile: str) -> Mapping[str, Decision]:
        """{clip id: the decision that stands}, whoever made it."""
        with self._lock:
            if profile not in self._decided:
                self._decided[profile] = standing(self.decisions, profile)
            return self._decided[profile]

    def places(self, profile: str) -> Mapping[int, str]:
        """{place in the snapshot: keep or reject}."""
        with self._lock:
            if profile not in self._over:
                found = ((self._place(clip), one.choice) for clip, one in self.decided(profile).items())
                self._over[profile] = {at: choice for at, choice in found if at is not None}
            return self._over[profile]

    def _place(self, clip: str) -> int | None:
        if clip not in self._places:
            self._places[clip] = self.snapshot.place(clip)
        return self._places[clip]

    def judged(self, profile: Profile) -> Judged:
        """Verdicts of every clip, people's over the rules'. Raises UsageError where a rule lacks a bound."""
        key = repr([(rule.name, rule.measure, rule.test, sorted(rule.bounds.items())) for rule in profile.rules])
        with self._lock:
            found = self._judged.get(key)
            if found is None:
                found = self._judged[key] = judge_snapshot(self.snapshot, profile)
            self._judged.move_to_end(key)
            while len(self._judged) > JUDGED:
                self._judged.popitem(last=False)
        return decided_over(found, self.places(profile.name))

    def uri(self, place: int) -> str:
        return self.uris[int(self.snapshot.ids.source[place])].as_py() or ""

    def row(self, profile: Profile, judged: Judged, place: int, values: np.ndarray | None = None) -> Row:
        """What the grid shows of a clip. values: [n] of the measure it is sorted by."""
        failing, unmet = failing_rules(judged, place)
        clip_id = self.snapshot.clip_id(place)
        stands = self.decided(profile.name).get(clip_id)
        value = None if values is None else float(values[place])
        return {
            "clip_id": clip_id,
            "source": self.uri(place),
            "start_s": int(self.snapshot.ids.start_ms[place]) / 1000,
            "seconds": round(float(self.snapshot.seconds[place]), 2),
            "verdict": VERDICTS[judged.codes[place]],
            "decision": stands and {"choice": stands.choice, "reviewer": stands.reviewer, "reason": stands.reason},
            "failing": failing,
            "unmet": unmet,
            "value": None if value is None or not np.isfinite(value) else round(value, 4),
            "has_preview": self.snapshot.preview_tar(place) is not None,
        }

    def last_of(self, reviewer: str, profile: str) -> Decision | None:
        """The last decision of `reviewer` under `profile` that nobody withdrew."""
        withdrawn = {one.undoes for one in self.decisions if one.choice == WITHDRAW}
        for one in reversed(self.decisions):
            mine = one.reviewer == reviewer and one.profile == profile and one.choice != WITHDRAW
            if mine and one.decision_id not in withdrawn:
                return one
        return None
