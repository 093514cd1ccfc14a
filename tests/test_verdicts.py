"""Verdicts: every failing rule is listed, nothing unknown passes, a row and a table agree."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.registry import BACKENDS
from manifests.errors import UsageError
from manifests.records import CLIP_STAGES, MEASURES, STAGES, measures_of
from manifests.tables import CLIPS_TABLE
from manifests.verdicts import (
    KEEP,
    REJECT,
    UNDECIDED,
    check_bounds,
    judge_row,
    judge_table,
    parse_profile,
    profile_content,
)
from pipelines.recipe import load_profile, load_profiles, load_recipe, shipped

PROFILE = parse_profile(
    {
        "name": "test",
        "rules": {
            "duration": {"measure": "duration_s", "min": 4.8},
            "audio_present": {"equals": True},
            "speaker_count": {"equals": {"centerface": 1, "yolox": 1}},
            "sync_confidence": {"above": {"correlation": 4.6, "syncnet": 3.5}},
            "sync_offset": {"measure": "sync_offset_frames", "within": 10},
            "spoken_language": {"in": {"whisper": ["en", "zh"]}, "blind": ["pocketsphinx"]},
            "quality_piqe": {"below": {"piqe": 70}},
        },
    },
    "test",
)

floats = st.none() | st.floats(0, 100, width=32) | st.sampled_from([4.6, 3.5, 4.8, 70.0, 0.1])
rows = st.fixed_dictionaries(
    {
        "clip_id": st.uuids().map(str),
        "duration_s": st.floats(0, 30, width=32) | st.just(4.8),
        "audio_present": st.none() | st.booleans(),
        "speech_backend": st.sampled_from([None, "silero"]),
        "speaker_count": st.none() | st.integers(0, 3),
        "speakers_backend": st.sampled_from([None, "centerface", "yolox"]),
        "sync_confidence": floats,
        "sync_offset_frames": st.none() | st.integers(-15, 15),
        "sync_backend": st.sampled_from([None, "correlation", "syncnet"]),
        "spoken_language": st.sampled_from([None, "en", "zh", "de"]),
        "transcribe_backend": st.sampled_from([None, "whisper", "pocketsphinx"]),
        "quality_piqe": floats,
        "quality_backend": st.sampled_from([None, "piqe"]),
    }
).map(lambda row: {k: (v if _measured(row, k) else None) for k, v in row.items()})

_STAGE = {c.name: c.stage for c in MEASURES}


def _measured(row: dict[str, Any], name: str) -> bool:
    """A measure has a value only where its stage has run."""
    return name not in _STAGE or row.get(f"{_STAGE[name]}_backend") is not None


def table(found: list[dict[str, Any]]) -> pa.Table:
    names = PROFILE.columns()
    return pa.Table.from_pylist(found, pa.schema([CLIPS_TABLE.schema.field(name) for name in names]))


@settings(deadline=None)
@given(st.lists(rows, max_size=20))
def test_a_row_and_a_table_agree_and_every_failing_rule_is_listed(found: list[dict[str, Any]]) -> None:
    verdicts = judge_table(PROFILE, table(found)).to_pylist()
    for row, verdict in zip(table(found).to_pylist(), verdicts, strict=True):
        one, failing, unmet = judge_row(PROFILE, row)
        assert (verdict["verdict"], verdict["failing"], verdict["unmet"]) == (one, failing, unmet)
        assert one == (REJECT if failing else UNDECIDED if unmet else KEEP)
        by_name = {rule.name: rule for rule in PROFILE.rules}
        assert all(row[by_name[name].measure] is not None for name in failing)


@settings(deadline=None)
@given(rows, st.sampled_from(["speakers", "sync", "quality"]))
def test_a_stage_that_did_not_run_never_makes_a_clip_pass(row: dict[str, Any], stage: str) -> None:
    without = {k: None if k in measures_of(stage) or k == f"{stage}_backend" else v for k, v in row.items()}
    verdict, failing, _ = judge_row(PROFILE, without)
    assert verdict != KEEP
    assert set(failing) <= set(judge_row(PROFILE, row)[1])


@settings(deadline=None)
@given(st.lists(rows, min_size=1, max_size=10))
def test_dictionary_columns_judge_alike(found: list[dict[str, Any]]) -> None:
    plain = table(found)
    encoded = pa.table(
        {n: plain[n].dictionary_encode() if pa.types.is_string(plain[n].type) else plain[n] for n in plain.column_names}
    )
    assert judge_table(PROFILE, encoded)["failing"].to_pylist() == judge_table(PROFILE, plain)["failing"].to_pylist()


def test_a_backend_without_a_bound_is_an_error_that_says_what_to_add() -> None:
    row = {"clip_id": "a", "sync_backend": "wav2lip", "sync_confidence": 9.0, "duration_s": 5.0}
    with pytest.raises(UsageError, match=r"no bound for backend 'wav2lip'.*add rules\.sync_confidence\.above\.wav2lip"):
        judge_row(PROFILE, row)
    with pytest.raises(UsageError, match="no bound for backend 'wav2lip'"):
        judge_table(PROFILE, table([{**dict.fromkeys(PROFILE.columns()), **row}]))


def test_a_bound_for_a_backend_that_does_not_exist() -> None:
    body = {"name": "p", "rules": {"sync_confidence": {"above": {"synknet": 3.5, "correlation": 4.0}}}}
    with pytest.raises(UsageError, match="no backend 'synknet'.*choose from correlation"):
        check_bounds(parse_profile(body, "p"), {"sync": "correlation"}, BACKENDS)


def test_a_bound_only_for_a_backend_that_did_not_run() -> None:
    body = {"name": "p", "rules": {"sync_confidence": {"above": {"correlation": 4.0}}}}
    with pytest.raises(UsageError, match="no bound for backend 'syncnet'"):
        check_bounds(parse_profile(body, "p"), {"sync": "syncnet"}, {"sync": ["correlation", "syncnet"]})


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({}, "no .rules.NAME. tables"),
        ({"x": {"min": 1}}, "no measure 'x'"),
        ({"sync_confidence": {}}, "exactly one of"),
        ({"sync_confidence": {"min": 1, "max": 2}}, "exactly one of"),
        ({"sync_confidence": {"min": "high"}}, "does not fit"),
        ({"audio_present": {"equals": 1}}, "does not fit"),
        ({"sync_confidence": {"min": 1, "bond": 2}}, "unknown key 'bond'"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(rules: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_profile({"name": "p", "rules": rules}, "p.toml")


@pytest.mark.parametrize("name", shipped("profiles"))
def test_shipped_profiles_fit_the_bundled_recipe_and_survive_travel(name: str) -> None:
    [profile] = load_profiles(name, load_recipe("bundled"))
    assert parse_profile(profile_content(profile), "travelled") == profile
    assert all(rule.stage in ("", *CLIP_STAGES) for rule in load_profile(name).rules)


def test_every_measure_belongs_to_a_stage_of_the_funnel() -> None:
    assert {column.stage for column in MEASURES} <= set(STAGES)
    assert all(measures_of(stage) for stage in CLIP_STAGES)
