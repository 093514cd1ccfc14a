"""The report's figures against a count by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_dataset import decided_dataset, made_dataset

from manifests.decisions import read_decisions, standing
from manifests.records import MEASURES, clip_id
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, append, read
from manifests.verdicts import judge_row
from pipelines.recipe import load_profile
from pipelines.report.frozen import Frozen
from pipelines.report.gather import Gathered, gather
from pipelines.report.ids import hashes, seconds
from pipelines.report.spread import LIMIT, NUMERIC, Spread
from pipelines.report.words import moment

Row = dict[str, Any]
PRETRAIN = load_profile("pretrain")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return decided_dataset(tmp_path_factory.mktemp("made") / "ds", previews=False)


@pytest.fixture(scope="module")
def found(made: Store) -> Gathered:
    return gather(Frozen(made), [PRETRAIN])


def rows_of(store: Store) -> list[Row]:
    return read(store, CLIPS_TABLE).to_pylist()


def test_verdicts_and_rules_are_those_of_a_count_by_hand(made: Store, found: Gathered) -> None:
    tally, rows = found.tallies[0], rows_of(made)
    decided = standing(read_decisions(made), "pretrain")
    judged = [(row, *judge_row(PRETRAIN, row)) for row in rows]
    final = Counter(decided[r["clip_id"]].choice if r["clip_id"] in decided else verdict for r, verdict, _, _ in judged)
    assert {name: tally.total(name)["clips"] for name in ("keep", "reject", "undecided")} == dict(final)
    assert min(final.values()) > 3
    order = [rule.name for rule in tally.rules]
    for row in tally.rule_rows():
        name = row["rule"]
        fails = [r for r, _, failing, _ in judged if name in failing]
        assert row["fails"]["clips"] == len(fails)
        assert row["fails"]["seconds"] == pytest.approx(sum(r["duration_s"] for r in fails), abs=0.01)
        assert row["only"]["clips"] == sum(failing == [name] for _, _, failing, _ in judged)
        assert row["unmet"]["clips"] == sum(name in unmet for _, _, _, unmet in judged)
        lost = [f for _, _, f, _ in judged if f and min(f, key=order.index) == name]
        assert row["lost"]["clips"] == len(lost)
    names = [row["rule"] for row in tally.rule_rows()]
    by_hand = [[sum(a in f and b in f for _, _, f, _ in judged) for b in names] for a in names]
    assert tally.overlap() == by_hand
    assert tally.blind == {"face_identity": "centerface"} and "face_identity" not in names


def test_the_funnel_ends_at_what_is_kept(found: Gathered) -> None:
    from pipelines.report.charts import funnel_steps

    steps = funnel_steps(found.tallies[0], found.mix)
    assert steps[0]["name"] == "cut into clips" and steps[-1]["name"] == "kept"
    assert steps[-2]["left"]["clips"] == steps[-1]["left"]["clips"] == found.tallies[0].total("keep")["clips"]
    assert {"people reject", "people keep"} <= {step["name"] for step in steps}


def test_histograms_and_clips_near_a_bound_count_everything_once(made: Store, found: Gathered) -> None:
    rows = rows_of(made)
    for (name, backend), spread in found.spreads.items():
        stage = next((c.stage for c in MEASURES if c.name == name), "")
        values = [r[name] for r in rows if (r[f"{stage}_backend"] if stage else "") == backend]
        known = np.array([v for v in values if v is not None], object)
        assert (spread.known, spread.missing) == (len(known), len(values) - len(known))
        if spread.column in NUMERIC and len(known):
            assert spread.counts.sum() == len(known)
            assert [spread.p5, spread.p95] == pytest.approx(np.percentile(known.astype(float), [5, 95]).tolist())
    spread = found.spreads["sync_confidence", "correlation"]
    near = [r["sync_confidence"] for r in rows if abs((r["sync_confidence"] or 1e9) - 4.0) <= spread.reach]
    assert found.tallies[0].near["sync_confidence"] == [sum(v > 4 for v in near), sum(v <= 4 for v in near)]
    assert sum(found.tallies[0].near["sync_confidence"]) > 3


def test_outliers_are_in_the_end_bars_and_a_constant_has_one() -> None:
    spread = Spread(next(c for c in NUMERIC if c.name == "sync_confidence"), "x")
    values = np.array([*np.linspace(0, 10, 500), 1e9, -1e9])
    spread.see(values)
    spread.settle()
    spread.count(values)
    assert spread.counts.sum() == 502 and spread.edges[-1] < 60 and spread.counts[-1] == spread.counts[0] == 1
    still = Spread(spread.column, "x")
    still.see(np.full(9, 3.0))
    still.settle()
    still.count(np.full(9, 3.0))
    assert sorted(still.counts)[-2:] == [0, 9]


def test_percentiles_of_many_values_take_a_bounded_sample() -> None:
    spread = Spread(next(c for c in NUMERIC if c.name == "sync_confidence"), "x")
    rng = np.random.default_rng(0)
    for _ in range(12):
        spread.see(rng.normal(5, 1, 65_536))
        assert sum(map(len, spread._sample)) <= LIMIT
    spread.settle()
    assert (spread.p5, spread.p50, spread.p95) == pytest.approx((3.355, 5.0, 6.645), abs=0.02)


@given(st.lists(st.text(alphabet="0123456789abcdef-é", max_size=40), max_size=30))
def test_hashes_are_equal_for_equal_strings_alone(texts: list[str]) -> None:
    found = hashes(pa.chunked_array([pa.array(texts, pa.string())]))
    assert len(set(found.tolist())) == len(set(texts))
    again = hashes(pa.array(texts[::-1], pa.string()).dictionary_encode())
    assert found.tolist()[::-1] == again.tolist()


def test_lengths_come_from_ids() -> None:
    ids = [clip_id("0" * 16, 1.5, 7.54), clip_id("f" * 16, 999_999.0, 1_000_001.5), "0" * 16]
    assert seconds(pa.array(ids)).tolist()[:2] == [6.04, 2.5] and np.isnan(seconds(pa.array(ids))[2])
    assert moment(7.04) == "0:07.0" and moment(3661.25) in ("1:01:01.2", "1:01:01.3")


def test_languages_and_licences_add_up(made: Store, found: Gathered) -> None:
    rows, facts = rows_of(made), found.mix.facts()
    decided = standing(read_decisions(made), "pretrain")
    spoken: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for row in rows:
        language = row["spoken_language"] or "not told"
        spoken[language] += row["duration_s"]
        verdict = decided[row["clip_id"]].choice if row["clip_id"] in decided else judge_row(PRETRAIN, row)[0]
        kept[language] += row["duration_s"] * (verdict == "keep")
    shown = {row["value"]: (row["seconds"], row["kept"]["pretrain"]) for row in facts["spoken language"]}
    assert shown == {name: pytest.approx((spoken[name], kept[name]), abs=0.01) for name in spoken}
    total = sum(spoken.values())
    for rows_shown in facts.values():
        assert sum(row["seconds"] for row in rows_shown) == pytest.approx(total, abs=0.1)
    assert {r["value"] for r in facts["licence of the source"]} == {"CC BY 4.0", "CC BY-NC 4.0", "not given"}
    assert found.mix.statuses()["failed"]["files"] == 1 and found.mix.failed()[0]["uri"] == "/videos/damaged.mp4"


def test_throughput_and_errors_come_from_the_runs_of_clips_that_are_there(made: Store, found: Gathered) -> None:
    runs, lengths = read(made, RUNS_TABLE).to_pylist(), {r["clip_id"]: r["duration_s"] for r in rows_of(made)}
    for row in found.runs.throughput():
        mine = [r for r in runs if r["stage"] == row["stage"] and r["status"] != "skipped"]
        assert row["runs"] == len(mine) and row["work_s"] == pytest.approx(sum(r["seconds"] for r in mine), rel=1e-4)
        video = sum(lengths.get(r["clip_id"], 150.0) for r in mine)
        assert row["rate"] == pytest.approx(row["work_s"] / video, rel=1e-4)
    errors = found.runs.error_rows()
    failed = [r for r in runs if r["status"] == "failed"]
    assert sum(r["count"] for r in errors if r["status"] == "failed") == len(failed) > 3
    assert len([r for r in errors if r["status"] == "failed"]) == 3  # numbers in them make no other kind
    assert all(r["clip_id"] in lengths for r in errors)


def test_runs_of_retired_clips_are_left_out(tmp_path: Path) -> None:
    store = made_dataset(tmp_path / "ds", 24, previews=False)
    before = gather(Frozen(store), [PRETRAIN]).runs.throughput()
    gone = {"clip_id": clip_id("e" * 16, 0, 5), "stage": "sync", "status": "failed", "seconds": 1e6, "error": "gone"}
    append(store, RUNS_TABLE, [gone])
    runs = gather(Frozen(store), [PRETRAIN]).runs
    assert runs.throughput() == before and all(row["error"] != "gone" for row in runs.error_rows())
