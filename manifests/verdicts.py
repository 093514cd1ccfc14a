"""Verdicts: the numbers of a clip against the bounds of a profile, without a model.

A rule names a measure and, for each backend that may have measured it, a bound. A clip is `keep` when every
rule passed, `reject` when any failed (all that failed are listed), else `undecided`: some rule could not be
evaluated, because its stage was skipped, failed, could not know, or never ran.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import UsageError
from manifests.records import CLIPS, GEOMETRY, MEASURES

KEEP, REJECT, UNDECIDED = "keep", "reject", "undecided"
VERDICTS = (KEEP, REJECT, UNDECIDED)
TESTS = {
    "min": "at least",
    "above": "more than",
    "max": "at most",
    "below": "less than",
    "equals": "exactly",
    "within": "from 0 at most",
    "in": "one of",
}
"""Ways to compare, with their words; `within` bounds the absolute value."""

_KIND = {c.name: c.kind for c in CLIPS}
_STAGE = {c.name: c.stage for c in (*GEOMETRY, *MEASURES)}
_TABLED = 16
_MASK = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """One bound on one measure.

    bounds: by backend; the key "" stands for a bound that holds whatever measured (geometry, offsets).
    blind: backends that cannot measure it at all, `*` for any letters: there it is no rule.
    source: where the bound comes from ("the paper, A.1").
    """

    name: str
    measure: str
    test: str
    bounds: Mapping[str, Any]
    blind: tuple[str, ...] = ()
    source: str = ""

    @property
    def stage(self) -> str:
        """The stage whose measure it bounds, "" for geometry."""
        return _STAGE[self.measure]

    def bound(self, backend: str | None) -> Any:
        """The bound for what `backend` measured. Raises UsageError when the profile has none."""
        if "" in self.bounds:
            return self.bounds[""]
        if backend is not None and backend in self.bounds:
            return self.bounds[backend]
        known = ", ".join(sorted(self.bounds)) or "none"
        raise UsageError(
            f"rule {self.name!r} has no bound for backend {backend!r} of stage {self.stage!r} (it has: {known}); "
            f"add rules.{self.name}.{self.test}.{backend} to the profile"
        )

    def applies(self, backend: str | None) -> bool:
        """False where the backend cannot measure this at all."""
        return backend is None or not any(fnmatchcase(backend, one) for one in self.blind)

    def passes(self, value: Any, backend: str | None) -> bool | None:
        """True or False; None when there is no value."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if _KIND[self.measure] == "float32":  # as stored, so that a row and a table agree on the very bound
            value = np.float32(value)
        return _compare(self.test, value, self.bound(backend))


def _compare(test: str, value: Any, bound: Any) -> bool:
    if test == "equals":
        return bool(value == bound)
    if test == "in":
        return value in bound
    if test == "within":
        return bool(abs(value) <= bound)
    if test == "min":
        return bool(value >= bound)
    if test == "above":
        return bool(value > bound)
    return bool(value <= bound) if test == "max" else bool(value < bound)


@dataclass(frozen=True)
class Profile:
    """A named set of rules. long_form_s: contiguous kept clips are also joined up to so many seconds; 0 = not."""

    name: str
    rules: tuple[Rule, ...]
    long_form_s: float = 0.0
    origin: str = field(default="", compare=False)
    """What was asked for: a shipped name or a path."""

    def columns(self) -> list[str]:
        """Columns of the clips table that a verdict needs."""
        wanted = ["clip_id"]
        for rule in self.rules:
            wanted.append(rule.measure)
            if rule.stage:
                wanted.append(f"{rule.stage}_backend")
        return list(dict.fromkeys(wanted))


def parse_profile(content: Mapping[str, Any], origin: str) -> Profile:
    """A profile from its TOML content. Raises UsageError that names `origin` and what is wrong."""
    name, rules = content.get("name"), content.get("rules")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{origin}: `name` must be letters, digits, - and _")
    if not isinstance(rules, dict) or not rules:
        raise UsageError(f"{origin}: no [rules.NAME] tables; a profile needs at least one rule")
    if len(rules) > 63:
        raise UsageError(f"{origin}: {len(rules)} rules, at most 63")
    unknown = set(content) - {"name", "rules", "about", "long_form_s"}
    if unknown:
        raise UsageError(f"{origin}: unknown key {sorted(unknown)[0]!r}; known: name, about, long_form_s, rules")
    parsed = tuple(_parse_rule(key, body, origin) for key, body in rules.items())
    longest = content.get("long_form_s", 0.0)
    if not _fits("float64", longest) or not 0 <= longest < math.inf:
        raise UsageError(f"{origin}: long_form_s {longest!r} must be a number of seconds, 0 or more")
    return Profile(name, parsed, float(longest), origin)


def profile_content(profile: Profile) -> dict[str, Any]:
    """The profile as `parse_profile` takes it."""
    rules = {
        rule.name: {
            "measure": rule.measure,
            rule.test: rule.bounds[""] if "" in rule.bounds else dict(rule.bounds),
            "blind": list(rule.blind),
            "source": rule.source,
        }
        for rule in profile.rules
    }
    return {"name": profile.name, "long_form_s": profile.long_form_s, "rules": rules}


def _parse_rule(name: str, body: Any, origin: str) -> Rule:
    where = f"{origin}: rule {name!r}"
    if not isinstance(body, dict):
        raise UsageError(f"{where} must be a table")
    measure = body.get("measure", name)
    if measure not in _STAGE:
        known = get_close_matches(str(measure), _STAGE, 3, 0.5) or sorted(_STAGE)
        raise UsageError(f"{where}: no measure {measure!r}; there is {', '.join(known)}")
    tests = [test for test in TESTS if test in body]
    if len(tests) != 1:
        raise UsageError(f"{where} needs exactly one of {', '.join(TESTS)}")
    unknown = set(body) - {"measure", "blind", "source", tests[0]}
    if unknown:
        raise UsageError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    bound = body[tests[0]]
    bounds = dict(bound) if isinstance(bound, dict) else {"": bound}
    if isinstance(bound, dict) and (not bound or not _STAGE[measure]):
        raise UsageError(
            f"{where}: {tests[0]} must be one bound" + (", or one for each backend" * bool(_STAGE[measure]))
        )
    for value in bounds.values():
        _check_bound(where, measure, tests[0], value)
    blind = body.get("blind", [])
    if not (isinstance(blind, list) and all(isinstance(backend, str) for backend in blind)):
        raise UsageError(f"{where}: blind {blind!r} must be a list of backends")
    return Rule(name, measure, tests[0], bounds, tuple(blind), str(body.get("source", "")))


def _check_bound(where: str, measure: str, test: str, value: Any) -> None:
    kind = _KIND[measure]
    if test == "in":
        good = isinstance(value, list) and bool(value) and all(_fits(kind, one) for one in value)
    elif test == "equals":
        good = _fits(kind, value)
    else:
        good = kind[:3] in ("int", "flo") and _fits(kind, value)
    if not good:
        raise UsageError(f"{where}: bound {value!r} does not fit {test} on {measure} ({kind})")


def _fits(kind: str, value: Any) -> bool:
    if kind[:3] in ("int", "flo"):
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return isinstance(value, bool if kind == "bool" else str)


def judge_row(
    profile: Profile, row: Mapping[str, Any], stages: Collection[str] | None = None
) -> tuple[str, list[str], list[str]]:
    """(verdict, failing rules, unmet rules) of one clip.

    stages: count only rules on these stages and on geometry, the others as unmet; all by default.
    """
    failing, unmet = [], []
    for rule in profile.rules:
        backend = row.get(f"{rule.stage}_backend") if rule.stage else None
        if not rule.applies(backend):
            continue
        seen = stages is None or not rule.stage or rule.stage in stages
        passed = rule.passes(row.get(rule.measure), backend) if seen else None
        if passed is None:
            unmet.append(rule.name)
        elif not passed:
            failing.append(rule.name)
    return (REJECT if failing else UNDECIDED if unmet else KEEP), failing, unmet


def judge_table(profile: Profile, clips: pa.Table) -> pa.Table:
    """Verdicts for many clips: clip_id, verdict, failing list<string>, unmet list<string>.

    clips: at least `profile.columns()`. Raises UsageError when a rule lacks a bound for what measured.
    """
    failing = np.zeros(len(clips), np.uint64)
    unmet = np.zeros(len(clips), np.uint64)
    for bit, rule in enumerate(profile.rules):
        fails, lacks = evaluate(rule, clips)
        failing |= fails.astype(np.uint64) << np.uint64(bit)
        unmet |= lacks.astype(np.uint64) << np.uint64(bit)
    code = np.where(failing != 0, 1, np.where(unmet != 0, 2, 0)).astype(np.int8)
    names = [rule.name for rule in profile.rules]
    return pa.table(
        {
            "clip_id": clips["clip_id"],
            "verdict": pa.DictionaryArray.from_arrays(pa.array(code), pa.array(VERDICTS)),
            "failing": _lists(failing, names),
            "unmet": _lists(unmet, names),
        }
    )


def evaluate(rule: Rule, clips: pa.Table) -> tuple[_MASK, _MASK]:
    """(fails, lacks a value) of each clip under `rule`; `clips`: its measure and, for a stage, the backend column."""
    column = clips[rule.measure].combine_chunks()
    values, missing = _numpy(column)
    if not rule.stage:
        return _failures(rule, values, missing, None) & ~missing, missing
    fails, lacks = np.zeros(len(clips), bool), np.zeros(len(clips), bool)
    for backend, where in _backends(clips[f"{rule.stage}_backend"]):
        if not rule.applies(backend):
            continue
        known = where & ~missing
        lacks |= where & missing
        if known.any():
            fails |= _failures(rule, values, missing, backend) & known
    return fails, lacks


def _backends(column: pa.ChunkedArray) -> list[tuple[str | None, _MASK]]:
    """Each backend that occurs, with where it does; None where the stage has not run."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if len(names) == 1 and not encoded.null_count:
        return [(names[0], np.ones(len(encoded), bool))]
    codes = np.asarray(pc.fill_null(encoded.indices, -1))
    found = np.unique(codes)
    if len(found) == 1:
        return [(None if found[0] < 0 else names[found[0]], np.ones(len(codes), bool))]
    return [(None if code < 0 else names[code], codes == code) for code in found]


def _numpy(column: pa.Array) -> tuple[Any, _MASK]:
    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        return column, np.asarray(column.is_null())
    missing = np.asarray(column.is_null()) if column.null_count else np.zeros(len(column), bool)
    if pa.types.is_boolean(column.type):
        return np.asarray(column.fill_null(False)), missing
    values = column.to_numpy(zero_copy_only=False)
    return values, missing | np.isnan(values) if values.dtype.kind == "f" else missing


def _failures(rule: Rule, values: Any, missing: _MASK, backend: str | None) -> _MASK:
    bound = rule.bound(backend)
    if isinstance(values, pa.Array):
        wanted = pa.array(bound if rule.test == "in" else [bound], pa.string())
        return ~np.asarray(pc.fill_null(pc.is_in(values.cast(pa.string()), wanted), False))
    with np.errstate(invalid="ignore"):
        match rule.test:
            case "min":
                return np.asarray(values < bound)
            case "above":
                return np.asarray(values <= bound)
            case "max":
                return np.asarray(values > bound)
            case "below":
                return np.asarray(values >= bound)
            case "within":
                return np.asarray(np.abs(values) > bound)
            case "equals":
                return np.asarray(values != bound)
            case _:
                return ~np.isin(values, bound)


def _lists(masks: npt.NDArray[np.uint64], names: Sequence[str]) -> pa.Array:
    """Bit masks as lists of rule names; the few that occur are spelled once."""
    if len(names) <= _TABLED:  # a table of all masks is faster than sorting millions of them
        found = np.flatnonzero(np.bincount(masks.astype(np.int64), minlength=1 << len(names)))
        place = np.zeros(1 << len(names), np.int32)
        place[found] = np.arange(len(found), dtype=np.int32)
        inverse: Any = place[masks]
    else:
        found, inverse = np.unique(masks, return_inverse=True)
    spelled = [[name for bit, name in enumerate(names) if int(mask) >> bit & 1] for mask in found]
    return pa.array(spelled, pa.list_(pa.string())).take(pa.array(inverse))


def blind_rules(profile: Profile, backends: Mapping[str, str]) -> list[tuple[Rule, str]]:
    """Rules that are none here, with the backend that cannot measure them; `backends`: by stage."""
    return [(r, backends[r.stage]) for r in profile.rules if r.stage in backends and not r.applies(backends[r.stage])]


def check_bounds(profile: Profile, backends: Mapping[str, str], known: Mapping[str, Collection[str]]) -> None:
    """Raises UsageError when a rule has no bound for the backend of its stage, or one for a backend that is none.

    backends: the recipe's, by stage; known: every backend that exists, by stage. A backend that runs one of many
    models is called BACKEND-MODEL ("pyiqa-hyperiqa").
    """
    for rule in profile.rules:
        for name in (*rule.bounds, *rule.blind):
            if name and rule.stage and not {name, name.partition("-")[0]} & set(known.get(rule.stage, ())):
                raise UsageError(
                    f"profile {profile.name!r}, rule {rule.name!r}: no backend {name!r} for stage {rule.stage!r}; "
                    f"choose from {', '.join(sorted(known.get(rule.stage, ())))}"
                )
        if rule.stage in backends and rule.applies(backends[rule.stage]):
            rule.bound(backends[rule.stage])
