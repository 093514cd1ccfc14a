"""What a profile does with the clips: every combination of failing and unmet rules is counted once, and the
funnel, what a rule alone costs and how rules overlap follow from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.decisions import Decision
from manifests.records import STAGES
from manifests.verdicts import KEEP, REJECT, UNDECIDED, Profile, Rule, evaluate
from pipelines.report.spread import Key, Spread, by_backend, numbers

Row = dict[str, Any]
CODES = (KEEP, REJECT, UNDECIDED)


@dataclass(frozen=True)
class Judged:
    """Some clips under a profile. fails, unmet: [n] uint64, bits in the order of `rules`; verdict: [n] int8, place
    in CODES, by the rules alone; final: with people's decisions over it; decided: [n] bool, where there is one."""

    rules: tuple[Rule, ...]
    fails: np.ndarray
    unmet: np.ndarray
    verdict: np.ndarray
    final: np.ndarray
    decided: np.ndarray


def in_funnel_order(profile: Profile) -> tuple[Rule, ...]:
    """The rules as a clip meets them: geometry first, then stage by stage."""
    return tuple(sorted(profile.rules, key=lambda rule: STAGES.index(rule.stage) if rule.stage else -1))


def judge(profile: Profile, rows: pa.Table, decided: Mapping[str, Decision]) -> Judged:
    """`rows` under `profile`; decided: {clip id: the decision that stands}.

    Raises UsageError when a rule has no bound for the backend that measured.
    """
    rules = in_funnel_order(profile)
    fails, unmet = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    for bit, rule in enumerate(rules):
        failing, lacking = evaluate(rule, rows)
        fails |= failing.astype(np.uint64) << np.uint64(bit)
        unmet |= lacking.astype(np.uint64) << np.uint64(bit)
    verdict = np.where(fails != 0, 1, np.where(unmet != 0, 2, 0)).astype(np.int8)
    final, people = verdict.copy(), np.zeros(len(rows), bool)
    if decided and len(rows):
        keys = pa.array(list(decided), pa.string())
        found = np.asarray(pc.fill_null(pc.index_in(rows["clip_id"].combine_chunks(), keys), -1))
        choices = np.array([CODES.index(decision.choice) for decision in decided.values()], np.int8)
        people = found >= 0
        final[people] = choices[found[people]]
    return Judged(rules, fails, unmet, verdict, final, people)


def fails_rule(judged: Judged, bit: int) -> np.ndarray:
    """[n] bool."""
    return np.asarray((judged.fails >> np.uint64(bit) & np.uint64(1)).astype(bool))


def edges(rule: Rule, backend: str) -> list[float]:
    """The values at which the rule turns for what `backend` measured; none where the bound is no number."""
    if not rule.applies(backend) or not {"", backend} & set(rule.bounds):
        return []
    bound = rule.bound(backend)
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return []
    return [-float(bound), float(bound)] if rule.test == "within" else [float(bound)]


def distances(rule: Rule, rows: pa.Table, spreads: Mapping[Key, Spread]) -> np.ndarray | None:
    """[n] how far each clip's value is from the bound, in reaches of the spread (1 and less is near); NaN without a
    value. None where the bound is no number."""
    if not any(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in rule.bounds.values()):
        return None
    values, out = numbers(rows[rule.measure]), np.full(len(rows), np.nan)
    for backend, where in by_backend(rows)[rule.stage]:
        turns = edges(rule, backend)
        if turns:
            away = np.min([np.abs(values[where] - turn) for turn in turns], axis=0)
            reach = spreads[rule.measure, backend].reach
            out[where] = away / reach if reach > 0 else np.where(away > 0, 2.0 + away, away)
    return out


@dataclass
class Tally:
    """Counts under a profile. combos: {(fails, unmet, verdict, final): [clips, seconds]}; near: {rule: [passing,
    failing]}; decisions: {clip id: (verdict by the rules, fails)} of those that people decided."""

    profile: Profile
    combos: dict[tuple[int, int, int, int], list[float]] = field(default_factory=dict)
    near: dict[str, list[int]] = field(default_factory=dict)
    applied: set[str] = field(default_factory=set)
    blind: dict[str, str] = field(default_factory=dict)
    decisions: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return in_funnel_order(self.profile)

    def add(self, rows: pa.Table, judged: Judged, seconds: np.ndarray) -> None:
        """Counts `rows`."""
        fails, at_fails = np.unique(judged.fails, return_inverse=True)
        unmet, at_unmet = np.unique(judged.unmet, return_inverse=True)
        joint = ((at_fails * len(unmet) + at_unmet) * 3 + judged.verdict) * 3 + judged.final
        found, at, clips = np.unique(joint, return_inverse=True, return_counts=True)
        sums = np.bincount(at, seconds, minlength=len(found))
        for code, count, total in zip(found.tolist(), clips.tolist(), sums.tolist(), strict=True):
            rest, verdict, final = code // 9, code // 3 % 3, code % 3
            key = (int(fails[rest // len(unmet)]), int(unmet[rest % len(unmet)]), verdict, final)
            held = self.combos.setdefault(key, [0, 0.0])
            held[0] += count
            held[1] += total
        for place in np.flatnonzero(judged.decided):
            verdict, mask = CODES[judged.verdict[place]], int(judged.fails[place])
            self.decisions[rows["clip_id"][int(place)].as_py()] = verdict, mask
        for stage, backends in by_backend(rows).items():
            for rule in (rule for rule in judged.rules if rule.stage == stage):
                for backend, _ in backends:
                    if rule.applies(backend):
                        self.applied.add(rule.name)
                    else:
                        self.blind[rule.name] = backend

    def add_near(self, rule: Rule, fails: np.ndarray, away: np.ndarray | None) -> None:
        """Counts clips near the bound of `rule`; away: `distances`."""
        if away is not None:
            held = self.near.setdefault(rule.name, [0, 0])
            close = away <= 1
            held[0] += int(np.count_nonzero(close & ~fails))
            held[1] += int(np.count_nonzero(close & fails))

    def total(self, final: str = "", verdict: str = "") -> Row:
        """{"clips", "seconds"} of those with this final verdict, of all by default."""
        some = [
            held
            for (_, _, by_rules, end), held in self.combos.items()
            if final in ("", CODES[end]) and verdict in ("", CODES[by_rules])
        ]
        return _row(some)

    def rule_rows(self) -> list[Row]:
        """For each rule that applies, in funnel order: what fails it, only it, is lost at it, lacks a value."""
        out = []
        for bit, rule in self._applying():
            fails = [(key, held) for key, held in self.combos.items() if key[0] >> bit & 1]
            lost = [held for key, held in fails if key[0] & ((1 << bit) - 1) == 0]
            out.append(
                {
                    "rule": rule.name,
                    "stage": rule.stage or "scenes",
                    "fails": _row([held for _, held in fails]),
                    "only": _row([held for key, held in fails if key[0] == 1 << bit]),
                    "lost": _row(lost),
                    "unmet": _row([held for key, held in self.combos.items() if key[1] >> bit & 1]),
                    "near": self.near.get(rule.name),
                }
            )
        return out

    def people(self) -> Row:
        """{"kept", "rejected"}: what people's decisions moved, against the rules."""
        moved = {(verdict, final): [0.0, 0.0] for verdict in range(3) for final in range(3) if verdict != final}
        for (_, _, verdict, final), held in self.combos.items():
            if verdict != final:
                moved[verdict, final][0] += held[0]
                moved[verdict, final][1] += held[1]
        kept = _row([held for (_, final), held in moved.items() if final == 0])
        return {"kept": kept, "rejected": _row([held for (verdict, _), held in moved.items() if verdict == 0])}

    def overlap(self) -> list[list[int]]:
        """[rules, rules] clips that fail both, of the rules that apply; on the diagonal all that fail the rule."""
        bits = [bit for bit, _ in self._applying()]
        out = [[0] * len(bits) for _ in bits]
        for (fails, _, _, _), held in self.combos.items():
            mine = [place for place, bit in enumerate(bits) if fails >> bit & 1]
            for row in mine:
                for column in mine:
                    out[row][column] += int(held[0])
        return out

    def _applying(self) -> Iterator[tuple[int, Rule]]:
        for bit, rule in enumerate(self.rules):
            if rule.name in self.applied or rule.name not in self.blind:
                yield bit, rule


def _row(held: list[list[float]]) -> Row:
    return {"clips": int(sum(h[0] for h in held)), "seconds": round(float(sum(h[1] for h in held)), 3)}
