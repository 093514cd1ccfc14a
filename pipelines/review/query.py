"""Questions to a snapshot: what a profile keeps under these bounds, which clips to show, how a measure is spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import UsageError
from manifests.verdicts import KEEP, REJECT, UNDECIDED, Profile, Rule, parse_profile, profile_content
from pipelines.review.snapshot import NUMERIC, WHOLE, Snapshot

NEAR = 0.05
"""A clip is near a bound when it lies within this share of the measure's spread (5th to 95th percentile)."""
BINS = 60
PER_PAGE = 60


VERDICTS = (KEEP, REJECT, UNDECIDED)
MOST = 1e12
"""A bound beyond it is none."""


@dataclass(frozen=True)
class Judged:
    """A snapshot under a profile. fails, unmet: [n] uint8, how many rules; codes: [n] int8, place in VERDICTS, with
    people's decisions over the rules where these were given; rules: masks by rule."""

    fails: np.ndarray
    unmet: np.ndarray
    codes: np.ndarray
    rules: Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Filter:
    """Which clips. verdict: one of VERDICTS; rule: fails it; only: fails nothing else; near: rule near whose bound
    it lies; decided: by people, or by nobody; listed: in the list of clips to review next; source: id; language; text:
    in the transcript. "" or None: any."""

    verdict: str = ""
    rule: str = ""
    only: bool = False
    near: str = ""
    decided: bool | None = None
    listed: bool = False
    source: str = ""
    language: str = ""
    text: str = ""


@dataclass(frozen=True)
class Page:
    """Places of the clips to show, best first, of `total` clips of `seconds` together."""

    places: list[int]
    total: int
    seconds: float


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
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int | float) and not abs(one) <= MOST:
            raise UsageError(f"rule {rule.name!r}: {str(one)[:40]} is no bound")
    key = "" if "" in rule.bounds else backends[rule.stage]
    moved = replace(rule, bounds={**rule.bounds, key: value})
    parse_profile(profile_content(Profile("moved", (moved,))), "the page")  # refuses what does not fit the measure
    return moved


def judge_snapshot(snapshot: Snapshot, profile: Profile) -> Judged:
    """Verdicts of every clip by the rules alone."""
    fails, unmet = np.zeros(len(snapshot), np.uint8), np.zeros(len(snapshot), np.uint8)
    rules = {}
    for rule in profile.rules:
        failing, lacking = rules[rule.name] = snapshot.masks(rule)
        fails += failing
        unmet += lacking
    codes = np.where(fails > 0, np.int8(1), np.where(unmet > 0, np.int8(2), np.int8(0)))
    return Judged(fails, unmet, codes, rules)


def decided_over(judged: Judged, decided: Mapping[int, str]) -> Judged:
    """`judged` with what people decided over it, {place: keep or reject}."""
    if not decided:
        return judged
    codes = judged.codes.copy()
    codes[list(decided)] = [VERDICTS.index(choice) for choice in decided.values()]
    return replace(judged, codes=codes)


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
    listed: Sequence[int] = (),
    sort: str = "",
    descending: bool = False,
    number: int = 0,
    per_page: int = PER_PAGE,
) -> Page:
    """The clips of `wanted`, sorted by measure `sort` (those without a value last), without it by id, or as listed.

    decided: {place: what people decided}; listed: places to review next. Raises UsageError for a rule, verdict or
    measure that is none.
    """
    mask = _chosen(snapshot, profile, judged, wanted, decided, backends)
    if wanted.listed:
        chosen = np.array(list(dict.fromkeys(listed)), np.int64)
        chosen = chosen[mask[chosen]]
        mask = np.zeros_like(mask)
        mask[chosen] = True
    total = int(np.count_nonzero(mask))
    places = chosen if wanted.listed and not sort else np.flatnonzero(mask)
    if sort:
        places = places[_first(_key(snapshot, sort, descending)[places], (number + 1) * per_page)]
    shown = places[number * per_page : (number + 1) * per_page]
    return Page([int(at) for at in shown], total, float(snapshot.seconds[mask].sum(dtype=np.float64)))


def _key(snapshot: Snapshot, measure: str, descending: bool) -> np.ndarray:
    if measure not in NUMERIC:
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
        code = snapshot.source_code(wanted.source)
        mask &= snapshot.ids.source == (-1 if code is None else code)
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
    if rule.measure not in NUMERIC or not edges:
        return np.zeros(len(snapshot), bool)
    values = snapshot.values(rule.measure)
    low, high = snapshot.spread(rule.measure)
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


def histogram(snapshot: Snapshot, measure: str) -> dict[str, Any]:
    """{"edges" [k + 1], "counts" [k], "missing", "low", "high", "whole"} of a numeric measure: a bin a number where it
    counts and few numbers occur, else BINS; outliers beyond 4 times the spread are in the end bins."""
    values = snapshot.values(measure)
    known = values[np.isfinite(values)]
    whole = measure in WHOLE
    facts = {"missing": int(len(values) - len(known)), "whole": whole}
    if not len(known):
        return {"edges": [], "counts": [], "low": None, "high": None, **facts}
    low, high = snapshot.spread(measure)
    room = 4 * (high - low)
    smallest, largest = float(known.min()), float(known.max())
    first, last = max(smallest, low - room), min(largest, high + room)
    if whole and largest - smallest < BINS:
        first, last, bins = smallest - 0.5, largest + 0.5, round(largest - smallest) + 1
    else:
        bins, last = BINS, last if last > first else first + 1.0
    found, edges = np.histogram(np.clip(known, first, last), bins, (first, last))
    shown = [round(float(edge), 6) for edge in edges]
    return {"edges": shown, "counts": found.tolist(), "low": smallest, "high": largest, **facts}


def failing_rules(judged: Judged, place: int) -> tuple[list[str], list[str]]:
    """(rules that the clip fails, rules that lack a value)."""
    fails = [name for name, (failing, _) in judged.rules.items() if failing[place]]
    return fails, [name for name, (_, lacking) in judged.rules.items() if lacking[place]]


def languages(snapshot: Snapshot) -> list[str]:
    """Languages that were measured, sorted."""
    column: Sequence[Any] = pc.unique(snapshot.table["spoken_language"]).to_pylist() if len(snapshot) else []
    return sorted(str(language) for language in column if language is not None)
