"""How profiles, measures, evidence and decisions are told to the page: plain data, finite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from manifests.decisions import Decision
from manifests.records import GEOMETRY, MEASURES
from manifests.verdicts import TESTS, Profile, Rule
from pipelines.review.snapshot import NUMERIC, WHOLE

Row = dict[str, Any]
DOCS = {column.name: column for column in (*GEOMETRY, *MEASURES)}
EVIDENCE = {
    "speech": ("segments",),
    "speakers": ("track", "others"),
    "sync": ("lags", "curve", "corrected_curve"),
    "overlay": ("texts",),
    "preview": ("waveform", "offset_frames"),
}
"""What the page draws of the evidence of a stage."""


def measures() -> list[Row]:
    """Measures that can be sorted by, with what they mean."""
    return [{"measure": name, "stage": DOCS[name].stage, "doc": DOCS[name].doc} for name in NUMERIC]


def described_profile(profile: Profile, backends: Mapping[str, str]) -> Row:
    """Its rules that are any here, each with its bound for what the recipe measures by."""
    rules = [_rule(rule, backends) for rule in profile.rules if rule.applies(backends.get(rule.stage))]
    return {"name": profile.name, "rules": rules, "long_form_s": profile.long_form_s}


def _rule(rule: Rule, backends: Mapping[str, str]) -> Row:
    bound = rule.bound(backends.get(rule.stage))
    return {
        "rule": rule.name,
        "measure": rule.measure,
        "stage": rule.stage,
        "test": rule.test,
        "words": TESTS[rule.test],
        "bound": bound,
        "slides": rule.measure in NUMERIC and not isinstance(bound, bool | str | list),
        "whole": rule.measure in WHOLE,
        "source": rule.source,
        "doc": DOCS[rule.measure].doc,
    }


def measured(row: Mapping[str, Any], profile: Profile, backends: Mapping[str, str]) -> list[Row]:
    """Every measure of a clip, with the rules on it and whether it passes them.

    row: what is known of it; backends: the recipe's, for stages that have not run.
    """
    return [_measure(name, row, profile, backends) for name in DOCS if name in row]


def _measure(name: str, row: Mapping[str, Any], profile: Profile, backends: Mapping[str, str]) -> Row:
    rules = []
    for rule in profile.rules:
        backend = row.get(f"{rule.stage}_backend") or backends.get(rule.stage)
        if rule.measure == name and rule.applies(backend):
            passed = rule.passes(row.get(name), backend)
            rules.append({"rule": rule.name, "test": rule.test, "bound": rule.bound(backend), "passes": passed})
    column = DOCS[name]
    return {"measure": name, "stage": column.stage, "value": finite(row.get(name)), "doc": column.doc, "rules": rules}


def shown_evidence(runs: Mapping[str, Mapping[str, Any]]) -> Row:
    """{stage: what the page draws of its evidence}; runs: rows of the runs table by stage."""
    found: Row = {}
    for stage, names in EVIDENCE.items():
        text = runs.get(stage, {}).get("evidence")
        content = json.loads(text) if text else None
        found[stage] = {name: finite(content.get(name)) for name in names} if isinstance(content, dict) else None
    track = found["speakers"] and found["speakers"]["track"]
    if isinstance(track, dict):
        found["speakers"]["track"] = {"frames": track.get("frames"), "boxes": track.get("boxes")}
    elif track is not None:
        found["speakers"]["track"] = None
    return found


def finite(value: Any) -> Any:
    """`value` with null for numbers that JSON cannot tell."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(one) for one in value]
    return {key: finite(one) for key, one in value.items()} if isinstance(value, dict) else value


def shown_decision(decision: Decision) -> Row:
    names = ("decision_id", "profile", "choice", "reason", "reviewer", "time", "verdict", "undoes")
    return {name: getattr(decision, name) for name in names}


def profile_toml(content: Mapping[str, Any], base: str) -> str:
    """A profile as TOML. content: as `profile_content` gives it."""
    lines = [f"# Saved from the review page, from profile {base}.", f"name = {json.dumps(content['name'])}"]
    lines.append(f"long_form_s = {json.dumps(content['long_form_s'])}")
    for name, rule in content["rules"].items():
        lines += ["", f"[rules.{json.dumps(name)}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in rule.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """JSON's text, numbers, booleans and lists are TOML's; tables are written inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=True)
