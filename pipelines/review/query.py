"""Questions to a snapshot: what a profile keeps under these bounds, which clips to show, how a measure is spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import UsageError
from manifests.verdicts import KEEP, REJECT, UNDECIDED, Profile, Rule
from pipelines.review.snapshot import NUMERIC, Snapshot

NEAR = 0.05
"""A clip is near a bound when it lies within this share of the measure's spread (5th to 95th percentile)."""
BINS = 60
PER_PAGE = 60


@dataclass(frozen=True)
class Judged:
    """A snapshot under a profile. fails, unmet: [n] uint8, how many rules; codes: [n] int8, place in VERDICTS once
    people's decisions stand over the rules; rules: masks by rule."""

    fails: np.ndarray
    unmet: np.ndarray
    codes: np.ndarray
    rules: Mapping[str, tuple[np.ndarray, np.ndarray]]


VERDICTS = (KEEP, REJECT, UNDECIDED)


@dataclass(frozen=True)
class Filter:
    """Which clips. verdict: one of VERDICTS; rule: fails it; only: fails nothing else; near: rule near whose bound
    it lies; decided: by people, or by nobody; source: id; language; text: in the transcript. "" or None: any."""

    verdict: str = ""
    rule: str = ""
    only: bool = False
    near: str = ""
    decided: bool | None = None
    source: str = ""
    language: str = ""
    text: str = ""


@dataclass(frozen=True)
class Page:
    """Places of the clips to show, best first, of `total` clips of `seconds` together."""

    places: list[int]
    total: int
    seconds: float
    judged: Judged = field(repr=False)


def with_bounds(profile: Profile, bounds: Mapping[str, Any], backends: Mapping[str, str]) -> Profile:
    """`profile` with other bounds for the backends of the recipe, {rule: bound}. Raises UsageError."""
    known = {rule.name: rule for rule in profile.rules}
    unknown = set(bounds) - known.keys()
    if unknown:
        raise UsageError(f"profile {profile.name!r} has no rule {sorted(unknown)[0]!r}")
    return replace(profile, rules=tuple(_moved(rule, bounds, backends) for rule in profile.rules))


def _moved(rule: Rule, bounds: Mapping[str, Any], backends: Mapping[str, str]) -> Rule:
    if rule.name not in bounds:
        return rule
    value = bounds[rule.name]
    if rule.test not in ("equals", "in") and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UsageError(f"rule {rule.name!r}: {value!r} is no number")
    key = "" if "" in rule.bounds else backends[rule.stage]
    return replace(rule, bounds={**rule.bounds, key: value})


def judge_snapshot(snapshot: Snapshot, profile: Profile, decided: Mapping[int, str]) -> Judged:
    """Verdicts of every clip; `decided`: {place: what people decided}."""
    fails, unmet = np.zeros(len(snapshot), np.uint8), np.zeros(len(snapshot), np.uint8)
    rules = {}
    for rule in profile.rules:
        failing, lacking = rules[rule.name] = snapshot.masks(rule)
        fails += failing
        unmet += lacking
    codes = np.where(fails > 0, 1, np.where(unmet > 0, 2, 0)).astype(np.int8)
    if decided:
        codes[list(decided)] = [VERDICTS.index(choice) for choice in decided.values()]
    return Judged(fails, unmet, codes, rules)


def counts(snapshot: Snapshot, judged: Judged) -> dict[str, Any]:
    """{verdict: {"clips", "seconds"}} and, by rule, clips that fail it and those that fail nothing else."""
    clips = np.bincount(judged.codes, minlength=3)
    seconds = np.bincount(judged.codes, snapshot.seconds, minlength=3)
    lone = judged.fails == 1
    out: dict[str, Any] = {
        name: {"clips": int(clips[code]), "seconds": round(float(seconds[code]), 3)}
        for code, name in enumerate(VERDICTS)
    }
    out["rules"] = {
        name: {"fails": int(np.count_nonzero(failing)), "only": int(np.count_nonzero(failing & lone))}
        for name, (failing, _) in judged.rules.items()
    }
    return out


def page(
    snapshot: Snapshot,
    profile: Profile,
    judged: Judged,
    wanted: Filter,
    *,
    decided: Mapping[int, str],
    backends: Mapping[str, str],
    sort: str = "",
    descending: bool = False,
    number: int = 0,
    per_page: int = PER_PAGE,
) -> Page:
    """The clips of `wanted`, sorted by measure `sort` (those without a value last), by id without it.

    Raises UsageError for a rule, verdict or measure that is none.
    """
    mask = _chosen(snapshot, profile, judged, wanted, decided, backends)
    total = int(np.count_nonzero(mask))
    places = np.flatnonzero(mask)
    if sort:
        places = places[_first(_key(snapshot, sort, descending)[places], (number + 1) * per_page)]
    shown = places[number * per_page : (number + 1) * per_page]
    return Page([int(at) for at in shown], total, float(snapshot.seconds[mask].sum(dtype=np.float64)), judged)


def _key(snapshot: Snapshot, measure: str, descending: bool) -> np.ndarray:
    if measure not in (*NUMERIC, "duration_s"):
        raise UsageError(f"cannot sort by {measure!r}; choose a numeric measure")
    values = snapshot.values(measure)
    return np.where(np.isnan(values), np.inf, -values if descending else values)


def _first(keys: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest of `keys`, in order; equal ones in theirs."""
    if count >= len(keys):
        return np.argsort(keys, kind="stable")
    limit = np.partition(keys, count - 1)[count - 1]
    places = np.flatnonzero(keys <= limit)
    return places[np.argsort(keys[places], kind="stable")]


def _chosen(
    snapshot: Snapshot,
    profile: Profile,
    judged: Judged,
    wanted: Filter,
    decided: Mapping[int, str],
    backends: Mapping[str, str],
) -> np.ndarray:
    mask = np.ones(len(snapshot), bool)
    if wanted.verdict:
        if wanted.verdict not in VERDICTS:
            raise UsageError(f"no verdict {wanted.verdict!r}; there is {', '.join(VERDICTS)}")
        mask &= judged.codes == VERDICTS.index(wanted.verdict)
    if wanted.rule:
        mask &= judged.rules[_rule(profile, wanted.rule).name][0]
    if wanted.only:
        mask &= judged.fails == 1
    if wanted.near:
        mask &= near(snapshot, _rule(profile, wanted.near), backends)
    if wanted.decided is not None:
        people = np.zeros(len(snapshot), bool)
        people[list(decided)] = True
        mask &= people == wanted.decided
    if wanted.source:
        mask &= snapshot.source == (snapshot.sources.index(wanted.source) if wanted.source in snapshot.sources else -1)
    if wanted.language:
        spoken = snapshot.table["spoken_language"].cast(pa.string())
        mask &= np.asarray(pc.fill_null(pc.equal(spoken, wanted.language), False))
    if wanted.text.strip():
        mask &= snapshot.search(wanted.text.strip())
    return mask


def _rule(profile: Profile, name: str) -> Rule:
    for rule in profile.rules:
        if rule.name == name:
            return rule
    raise UsageError(f"profile {profile.name!r} has no rule {name!r}")


def near(snapshot: Snapshot, rule: Rule, backends: Mapping[str, str]) -> np.ndarray:
    """[n] bool: clips whose measure lies near the bound of `rule`; none where the bound is no number."""
    edges = _edges(rule, backends)
    if rule.measure not in (*NUMERIC, "duration_s") or not edges:
        return np.zeros(len(snapshot), bool)
    values = snapshot.values(rule.measure)
    low, high = spread(values)
    reach = NEAR * (high - low)
    with np.errstate(invalid="ignore"):
        return np.any([np.abs(values - edge) <= reach for edge in edges], axis=0)


def _edges(rule: Rule, backends: Mapping[str, str]) -> list[float]:
    """The values at which the rule turns."""
    backend = backends.get(rule.stage)
    if not rule.applies(backend):
        return []
    bound = rule.bound(backend)
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return []
    return [-float(bound), float(bound)] if rule.test == "within" else [float(bound)]


def spread(values: np.ndarray) -> tuple[float, float]:
    """5th and 95th percentile of the values that are there; (0, 0) without any."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 0.0
    low, high = np.percentile(known, [5, 95])
    return float(low), float(high)


def histogram(snapshot: Snapshot, measure: str, within: np.ndarray | None = None) -> dict[str, Any]:
    """{"edges" [BINS + 1], "counts" [BINS], "missing", "low", "high"} of a numeric measure; outliers beyond 4 times
    the spread are in the end bins. within: [n] bool, count only these."""
    values = snapshot.values(measure)
    values = values if within is None else values[within]
    known = values[~np.isnan(values)]
    missing = int(len(values) - len(known))
    if not len(known):
        return {"edges": [], "counts": [], "missing": missing, "low": None, "high": None}
    low, high = spread(known)
    room = 4 * (high - low)
    first, last = max(float(known.min()), low - room), min(float(known.max()), high + room)
    last = last if last > first else first + 1.0
    found, edges = np.histogram(np.clip(known, first, last), BINS, (first, last))
    return {
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": found.tolist(),
        "missing": missing,
        "low": float(known.min()),
        "high": float(known.max()),
    }


def failing_rules(judged: Judged, place: int) -> tuple[list[str], list[str]]:
    """(rules that the clip fails, rules that lack a value)."""
    fails = [name for name, (failing, _) in judged.rules.items() if failing[place]]
    return fails, [name for name, (_, lacking) in judged.rules.items() if lacking[place]]


def languages(snapshot: Snapshot) -> list[str]:
    """Languages that were measured, sorted."""
    column: Sequence[Any] = pc.unique(snapshot.table["spoken_language"]).to_pylist() if len(snapshot) else []
    return sorted(str(language) for language in column if language is not None)
