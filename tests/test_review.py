"""The engine behind the review page: its figures are those of `judge`, its state is one state, decisions last."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import reviewed
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reviewed import SOURCE, clip_row

from manifests.decisions import overrides, read_decisions
from manifests.errors import DatasetError, UsageError
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RETIRED, append, compact, read
from manifests.verdicts import Profile, judge_table
from pipelines.export import export_rows
from pipelines.judge import judge, kept
from pipelines.recipe import check_profile, load_profile
from pipelines.review.app import make_app
from pipelines.review.desk import Desk
from pipelines.review.query import NEAR, with_bounds
from pipelines.review.serve import named
from pipelines.review.snapshot import load_snapshot

PRETRAIN = load_profile("pretrain")
HEADERS = {"Origin": "http://127.0.0.1:8321"}
ADDRESS = "http://127.0.0.1:8321"
slowly = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def client(desk: Desk) -> TestClient:
    return TestClient(make_app(desk), base_url=ADDRESS, headers=HEADERS)


def asked(page: TestClient, path: str, /, expect: int = 200, **question: Any) -> Any:
    path += ("&" if "?" in path else "?") + urlencode({"q": json.dumps({"profile": "pretrain", **question})})
    answer = page.get(path)
    assert answer.status_code == expect, answer.text
    return answer.json()


def decided(page: TestClient, clip: str, choice: str, expect: int = 200, **more: str) -> Any:
    answer = page.post("/api/decisions", json={"clip_id": clip, "profile": "pretrain", "choice": choice, **more})
    assert answer.status_code == expect, answer.text
    return answer.json()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight clips: 0 kept, 1 rejected by two rules, 2 by one, 3 undecided, 4 to 7 kept."""
    changes: list[dict[str, Any]] = [
        {}, {"speaker_count": 2, "overlay_text_count": 3}, {"sync_confidence": 3.9}, {"overlay_text_count": None},
        {"quality_piqe": 91.0}, {"transcript": "An Island"}, {"quality_piqe": math.nan}, {"duration_s": 9.0},
    ]  # fmt: skip
    reviewed.write(tmp_path / "data", [clip_row(at, **change) for at, change in enumerate(changes)])
    return tmp_path / "data"


@pytest.fixture
def page(root: Path) -> TestClient:
    return client(Desk(str(root)))


def name(at: int) -> str:
    return str(clip_row(at)["clip_id"])


def shown(page: TestClient, /, **question: Any) -> list[int]:
    """Numbers of the clips on the page that is asked for."""
    return [round(row["start_s"] / 6) for row in asked(page, "/api/clips", **question)["rows"]]


# -- the figures are judge's -------------------------------------------------------------------------------


@slowly
@given(data=st.data())
def test_verdicts_and_failing_rules_are_those_of_judge(data: st.DataObject, tmp_path_factory: Any) -> None:
    rows = data.draw(reviewed.measured_around(PRETRAIN))
    store = reviewed.write(tmp_path_factory.mktemp("d"), rows)
    moved = data.draw(st.fixed_dictionaries({}, optional={"sync_confidence": st.sampled_from([3.75, 4.0, 9.0]),
                                                          "speaker_count": st.sampled_from([0, 2])}))  # fmt: skip
    desk = Desk(store.root)
    profile = desk.profile("pretrain", moved)
    expected = judge_table(profile, read(store, CLIPS_TABLE, profile.columns())).to_pylist()
    assert compared(desk, profile) == [(row["verdict"], set(row["failing"]), set(row["unmet"])) for row in expected]
    found = asked(client(desk), "/api/counts", bounds=moved)
    for verdict in ("keep", "reject", "undecided"):
        ids = {row["clip_id"] for row in expected if row["verdict"] == verdict}
        assert found[verdict]["clips"] == len(ids)
        seconds = sum(row["duration_s"] for row in rows if row["clip_id"] in ids)
        assert found[verdict]["seconds"] == pytest.approx(seconds, rel=1e-5)
    for rule in profile.rules:
        failing = [row["failing"] for row in expected if rule.name in row["failing"]]
        assert found["rules"][rule.name] == {"fails": len(failing), "only": sum(len(one) == 1 for one in failing)}


def compared(desk: Desk, profile: Profile) -> list[tuple[str, set[str], set[str]]]:
    judged = desk.view.judged(profile)
    rows = [desk.view.row(profile, judged, at) for at in range(len(desk.view.snapshot))]
    return [(row["verdict"], set(row["failing"]), set(row["unmet"])) for row in rows]


@slowly
@given(data=st.data())
def test_filters_find_what_a_plain_loop_finds(data: st.DataObject, tmp_path_factory: Any) -> None:
    rows = data.draw(reviewed.measured_around(PRETRAIN))
    store = reviewed.write(tmp_path_factory.mktemp("d"), rows)
    desk, names = Desk(store.root), [rule.name for rule in PRETRAIN.rules]
    wanted = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "verdict": st.sampled_from(["keep", "reject", "undecided"]),
                "rule": st.sampled_from(names),
                "only": st.booleans(),
                "source": st.sampled_from([SOURCE, "f" * 16]),
                "language": st.sampled_from(["en", "xx"]),
                "text": st.sampled_from(["good", "[sic] .*", "ÜBER", " city "]),
            },
        )
    )
    verdicts = {row["clip_id"]: row for row in judge_table(PRETRAIN, read(store, CLIPS_TABLE)).to_pylist()}

    def fits(row: dict[str, Any]) -> bool:
        verdict = verdicts[row["clip_id"]]
        return all((
            wanted.get("verdict") in (None, verdict["verdict"]),
            "rule" not in wanted or wanted["rule"] in verdict["failing"],
            not wanted.get("only") or len(verdict["failing"]) == 1,
            wanted.get("source") in (None, row["source_id"]),
            wanted.get("language") in (None, row["spoken_language"]),
            wanted.get("text", "").strip().lower() in (row["transcript"] or "").lower(),
            "text" not in wanted or row["transcript"] is not None,
        ))  # fmt: skip

    found = asked(client(desk), "/api/clips", filter=wanted, per_page=500)
    expected = sorted((row for row in rows if fits(row)), key=lambda row: row["clip_id"])
    assert [row["clip_id"] for row in found["rows"]] == [row["clip_id"] for row in expected]
    assert found["total"] == len(expected)
    assert found["seconds"] == pytest.approx(sum(row["duration_s"] for row in expected), rel=1e-5)


@slowly
@given(
    values=st.lists(st.sampled_from([None, math.nan, -1.5, 0.0, 2.5, 2.5, 7.0]), min_size=1, max_size=25),
    descending=st.booleans(),
    per_page=st.integers(1, 8),
)
def test_sorting_puts_what_has_no_value_last_and_pages_cover_all(
    values: list[float | None], descending: bool, per_page: int, tmp_path_factory: Any
) -> None:
    rows = [clip_row(at, sync_confidence=value) for at, value in enumerate(values)]
    found = client(Desk(reviewed.write(tmp_path_factory.mktemp("d"), rows).root))
    seen: list[int] = []
    for number in range(-(-len(values) // per_page)):
        question = {"sort": "sync_confidence", "descending": descending, "page": number, "per_page": per_page}
        seen += shown(found, **question)
    missing = {at for at, value in enumerate(values) if value is None or math.isnan(value)}
    there = [at for at in range(len(values)) if at not in missing]
    order = sorted(there, key=lambda at: -(values[at] or 0.0) if descending else values[at] or 0.0)
    assert seen == order + sorted(missing)


def test_near_the_bound(root: Path) -> None:
    rows = [clip_row(at, sync_confidence=at / 10, sync_offset_frames=at - 50) for at in range(101)]
    desk = Desk(reviewed.write(root.parent / "near", rows).root)
    page = client(desk)
    low, high = desk.view.snapshot.spread("sync_confidence")
    reach = NEAR * (high - low)
    near = [at for at in range(101) if abs(at / 10 - 4.0) <= reach]
    assert shown(page, filter={"near": "sync_confidence"}) == near and 3 < len(near) < 30
    moved = shown(page, filter={"near": "sync_confidence"}, bounds={"sync_confidence": 6.0})
    assert moved == [at for at in range(101) if abs(at / 10 - 6.0) <= reach]
    both = shown(page, filter={"near": "sync_offset"})  # within 10: near -10 and near 10
    assert {-10, 10} <= {at - 50 for at in both} and 0 not in {at - 50 for at in both}
    assert shown(page, filter={"near": "audio_present"}) == []


def test_histograms_count_every_value_once(page: TestClient) -> None:
    found = asked(page, "/api/histogram?measure=quality_piqe")
    assert sum(found["counts"]) == 7 and found["missing"] == 1
    assert (found["low"], found["high"]) == (60.0, 91.0) and len(found["edges"]) == len(found["counts"]) + 1
    people = asked(page, "/api/histogram?measure=speaker_count")
    assert people["edges"] == [0.5, 1.5, 2.5] and people["counts"] == [7, 1] and people["whole"]
    assert asked(page, "/api/histogram?measure=quality_score")["counts"] == []
    assert "no numeric measure" in asked(page, "/api/histogram?measure=transcript", expect=400)["error"]


def test_moving_a_bound_changes_the_counts_and_no_file(page: TestClient, root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert asked(page, "/api/counts")["keep"]["clips"] == 4
    assert asked(page, "/api/counts", bounds={"sync_confidence": 3.5})["keep"]["clips"] == 5
    assert asked(page, "/api/counts", bounds={"duration": 8.0})["keep"]["clips"] == 1
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "bounds",
    (
        {"nothing": 1}, {"sync_confidence": "4"}, {"sync_confidence": None}, {"sync_confidence": True},
        {"sync_confidence": 1e300}, {"sync_confidence": 10**400}, {"audio_present": 3}, {"speaker_count": []}, [1],
        {"duration": {"a": 1}}, {"sync_offset": [1e300]},
    ),
)  # fmt: skip
def test_bounds_that_are_none_are_refused_in_one_line(page: TestClient, bounds: Any) -> None:
    error = asked(page, "/api/counts", expect=400, bounds=bounds)["error"]
    assert error and "\n" not in error


@pytest.mark.parametrize(
    "question",
    (
        {"filter": {"verdict": "perhaps"}}, {"filter": {"rule": "nothing"}}, {"filter": {"near": "x"}},
        {"filter": {"only": "yes"}}, {"filter": {"other": 1}}, {"filter": 3}, {"sort": "transcript"}, {"sort": "x"},
        {"page": -1}, {"page": 1.5}, {"page": True}, {"per_page": 0}, {"per_page": 501}, {"descending": "no"},
        {"profile": "none"}, {"filter": {"text": "\ud800"}},
    ),
)  # fmt: skip
def test_questions_that_make_no_sense_are_refused_in_one_line(page: TestClient, question: dict[str, Any]) -> None:
    error = asked(page, "/api/clips", expect=400, **question)["error"]
    assert error and "\n" not in error


def test_a_page_beyond_the_last_is_empty(page: TestClient) -> None:
    assert asked(page, "/api/clips", page=10**9) | {"took_ms": 0} == {
        "total": 8,
        "seconds": 51.0,
        "rows": [],
        "took_ms": 0,
    }


# -- profiles ----------------------------------------------------------------------------------------------


def test_a_saved_profile_judges_as_the_page_did(page: TestClient, root: Path) -> None:
    bounds = {"sync_confidence": 3.5, "sync_offset": 1}
    there = asked(page, "/api/counts", bounds=bounds)
    answer = page.post("/api/profiles", json={"name": "looser-1", "profile": "pretrain", "bounds": bounds})
    path = answer.json()["path"]
    saved = load_profile(path)
    check_profile(saved, Desk(str(root)).recipe)
    counts = judge(Store(root), saved)
    assert {v: counts.get(v, 0) for v in ("keep", "reject")} == {v: there[v]["clips"] for v in ("keep", "reject")}
    assert saved == with_bounds(PRETRAIN, bounds, reviewed.BACKENDS).__class__(
        "looser-1", with_bounds(PRETRAIN, bounds, reviewed.BACKENDS).rules, PRETRAIN.long_form_s
    )
    assert tomllib.loads(Path(path).read_text())["rules"]["sync_confidence"]["above"]["syncnet"] == 3.5
    assert "looser-1" in {p["name"] for p in Desk(str(root)).described()["profiles"]}
    again = page.post("/api/profiles", json={"name": "looser-1", "profile": "pretrain"})
    assert again.status_code == 400 and "already" in again.json()["error"]


@pytest.mark.parametrize("wrong", ("", "../x", "a/b", "a.b", "pretrain", "a\nb", ".", "x" * 300, "CON\x00"))
def test_names_that_are_no_profile_write_nothing(page: TestClient, root: Path, wrong: str) -> None:
    before = sorted(root.parent.rglob("*"))
    answer = page.post("/api/profiles", json={"name": wrong, "profile": "pretrain"})
    assert answer.status_code in (400, 409) and "\n" not in answer.json()["error"]
    assert sorted(root.parent.rglob("*")) == before


# -- decisions ---------------------------------------------------------------------------------------------


def test_decisions_stand_over_verdicts_everywhere(page: TestClient, root: Path) -> None:
    answer = decided(page, name(1), "keep", reviewer="ann", reason="a reflection, no second person")
    assert answer["row"]["verdict"] == "keep" and answer["row"]["failing"] == ["speaker_count", "overlay_text"]
    decided(page, name(0), "reject", reviewer="ann")
    found = asked(page, "/api/counts")
    assert (found["keep"]["clips"], found["reject"]["clips"], found["decisions"]) == (4, 2, 2)
    assert shown(page, filter={"decided": True}) == [0, 1] and shown(page, filter={"verdict": "reject"}) == [0, 2]
    assert shown(page, filter={"decided": False}) == [2, 3, 4, 5, 6, 7]
    store = Store(root)
    assert overrides(store, "pretrain") == {name(1): "keep", name(0): "reject"}
    assert kept(store, PRETRAIN) == [name(at) for at in (1, 4, 5, 7)]
    verdicts = {row["clip_id"]: row["verdict"] for row in export_rows(store, PRETRAIN) if row["kind"] == "clip"}
    assert (verdicts[name(0)], verdicts[name(1)], verdicts[name(2)]) == ("reject", "keep", "reject")
    stored = read_decisions(store)
    assert [(d.verdict, d.failing) for d in stored] == [("reject", ("speaker_count", "overlay_text")), ("keep", ())]
    lines = list(csv.DictReader(io.StringIO(page.get("/api/export.csv", params={"q": '{"profile":"pretrain"}'}).text)))
    assert [line["decision"] for line in lines] == ["reject", "keep", *[""] * 6]
    assert lines[1] | {"source": ""} == {
        "clip_id": name(1), "source": "", "start_s": "6.0", "seconds": "6.0", "verdict": "keep", "decision": "keep",
        "reviewer": "ann", "reason": "a reflection, no second person", "failing": "speaker_count overlay_text",
        "unmet": "",
    }  # fmt: skip


def test_the_verdict_that_was_seen_is_stored(page: TestClient, root: Path) -> None:
    body = {"clip_id": name(0), "profile": "pretrain", "choice": "keep", "bounds": {"duration": 8}}
    assert page.post("/api/decisions", json=body).status_code == 200
    assert [(d.verdict, d.failing) for d in read_decisions(Store(root))] == [("reject", ("duration",))]


def test_undo_takes_back_the_reviewers_own_last_also_after_a_restart(page: TestClient, root: Path) -> None:
    decided(page, name(0), "reject", reviewer="ann")
    decided(page, name(1), "keep", reviewer="ann")
    decided(page, name(2), "keep", reviewer="bob")
    again = client(Desk(str(root)))
    last = asked(again, "/api/last", reviewer="ann")["decision"]
    assert (last["clip_id"], last["choice"]) == (name(1), "keep")
    row = decided(again, name(1), "withdraw", reviewer="ann", undoes=last["decision_id"])["row"]
    assert row["verdict"] == "reject" and row["decision"] is None
    assert asked(again, "/api/last", reviewer="ann")["decision"]["clip_id"] == name(0)
    assert asked(again, "/api/last", reviewer="cy")["decision"] is None
    assert overrides(Store(root), "pretrain") == {name(0): "reject", name(2): "keep"}
    twice = decided(again, name(1), "withdraw", expect=400, undoes=last["decision_id"])
    assert "already" in twice["error"]


@pytest.mark.parametrize(
    "wrong",
    (
        {"choice": "perhaps"}, {"clip_id": "none"}, {"clip_id": 3}, {"profile": "none"}, {"reviewer": "a\nb"},
        {"reviewer": ["a"]}, {"reason": "x" * 501}, {"reason": "\ud800"}, {"choice": "withdraw"},
        {"choice": "withdraw", "undoes": "x"}, {"undoes": "x"}, {"bounds": [1]},
    ),
)  # fmt: skip
def test_what_is_no_decision_is_not_stored(page: TestClient, root: Path, wrong: dict[str, Any]) -> None:
    body = {"clip_id": name(0), "profile": "pretrain", "choice": "keep", "reviewer": "ann", **wrong}
    answer = page.post("/api/decisions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "\n" not in answer.json()["error"]
    assert read_decisions(Store(root)) == []


def test_two_reviewers_at_once_lose_nothing_and_see_each_other(root: Path) -> None:
    desks = {who: Desk(str(root), reviewer=who) for who in ("ann", "bob")}

    def review(who: str) -> None:
        page = client(desks[who])
        for at in range(8):
            decided(page, name(at), "keep" if who == "ann" else "reject", reviewer=who)

    threads = [threading.Thread(target=review, args=(who,)) for who in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = read_decisions(Store(root))
    assert len(stored) == 16
    for desk in desks.values():
        assert desk.take_in_decisions() == 16
        assert desk.view.decisions == tuple(stored)
        choices = {clip: one.choice for clip, one in desk.view.decided("pretrain").items()}
        assert choices == overrides(Store(root), "pretrain") and len(choices) == 8


def test_taking_in_what_others_decided_loses_no_decision_made_meanwhile(root: Path) -> None:
    desk, stop = Desk(str(root)), threading.Event()

    def look() -> None:
        while not stop.is_set():
            desk.take_in_decisions()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        made = [desk.decide({"clip_id": name(at % 8), "profile": "pretrain", "choice": "keep"})[0] for at in range(60)]
        assert [one.decision_id for one in desk.view.decisions] == [one.decision_id for one in made]
    finally:
        stop.set()
        thread.join()


# -- one state, whatever is written ------------------------------------------------------------------------


@slowly
@given(
    moves=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), min_size=1, max_size=6, unique_by=lambda m: m[0]),
        min_size=1, max_size=6,
    ),
    compacted=st.booleans(),
)  # fmt: skip
def test_a_snapshot_is_what_read_reads(moves: list[Any], compacted: bool, tmp_path_factory: Any) -> None:
    store = Store(tmp_path_factory.mktemp("d"))
    reviewed.begin(store)
    for rows in moves:
        append(
            store,
            CLIPS_TABLE,
            [
                clip_row(at, f"{9 - at:016x}", scene=RETIRED if gone else 0, speaker_count=count, transcript=f"t{count}",
                         preview_tar=f"{9 - at:016x}-{count:05d}.tar" if count else None)
                for at, count, gone in rows
            ],
        )  # fmt: skip
    if compacted:
        compact(store, CLIPS_TABLE)
    expected = read(store, CLIPS_TABLE).to_pylist()
    found = load_snapshot(store)
    assert [found.clip_id(at) for at in range(len(found))] == [row["clip_id"] for row in expected]
    assert found.table["speaker_count"].to_pylist() == [row["speaker_count"] for row in expected]
    assert found.table["quality_backend"].to_pylist() == [row["quality_backend"] for row in expected]
    assert [found.preview_tar(at) for at in range(len(found))] == [row["preview_tar"] for row in expected]
    assert [found.place(row["clip_id"]) for row in expected] == list(range(len(expected)))
    assert found.search("t2").tolist() == [row["transcript"] == "t2" for row in expected]


def test_a_snapshot_is_consistent_while_the_tables_are_rewritten(tmp_path: Path) -> None:
    store = reviewed.write(tmp_path, [clip_row(at, speaker_count=0, word_count=0) for at in range(40)])
    stop = threading.Event()

    def curate() -> None:
        for turn in range(1, 10_000):
            append(store, CLIPS_TABLE, [clip_row(at, speaker_count=turn, word_count=turn) for at in range(40)])
            if turn % 12 == 0:
                compact(store, CLIPS_TABLE)
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=curate)
    thread.start()
    try:
        states = []
        for _ in range(25):
            found = load_snapshot(store)
            people, words = (found.table[name].to_pylist() for name in ("speaker_count", "word_count"))
            assert len(found) == 40 and people == words and len(set(people)) == 1
            states.append(people[0])
    finally:
        stop.set()
        thread.join()
    assert states == sorted(states) and len(set(states)) > 3


def test_the_page_stays_on_its_state_until_it_is_told_to_load(page: TestClient, root: Path) -> None:
    store = Store(root)
    append(store, CLIPS_TABLE, [clip_row(8), clip_row(0, speaker_count=3)])
    assert asked(page, "/api/counts")["keep"]["clips"] == 4 and asked(page, "/api/dataset")["stale"]
    assert page.post("/api/refresh", json={}).json() == {"decisions": 0, "stale": True}
    assert shown(page, filter={"text": "island"}) == [5]  # its files are still there
    compact(store, CLIPS_TABLE)
    assert "changed" in asked(page, "/api/clips", expect=409, filter={"text": "words"})["error"]
    assert asked(page, f"/api/clips/{name(0)}")["clip_id"] == name(0)
    assert page.post("/api/reload", json={}).json() == {"clips": 9}
    assert asked(page, "/api/counts")["reject"]["clips"] == 3 and not asked(page, "/api/dataset")["stale"]


# -- one clip ----------------------------------------------------------------------------------------------


def test_a_clip_is_told_with_bounds_and_what_fails(page: TestClient) -> None:
    found = asked(page, f"/api/clips/{name(1)}")
    measures = {one["measure"]: one for one in found["measures"]}
    assert measures["speaker_count"]["value"] == 2
    assert measures["speaker_count"]["rules"] == [
        {"rule": "speaker_count", "test": "equals", "bound": 1, "passes": False}
    ]
    assert measures["transcript"]["value"] == "a few words that were said"
    assert found["failing"] == ["speaker_count", "overlay_text"] and found["from"]["uri"].endswith(".mp4")
    assert found["picture"] == {"width": 640, "height": 480} and found["source_gone"]
    moved = asked(page, f"/api/clips/{name(1)}", bounds={"speaker_count": 2})
    assert moved["failing"] == ["overlay_text"]
    assert asked(page, f"/api/clips/{name(6)}")["unmet"] == ["quality_piqe"]  # NaN is no value, and no JSON


def test_a_source_with_a_box_is_drawn_in_its_box(tmp_path: Path) -> None:
    source = {**reviewed.source_row(), "box": [0.25, 0.0, 0.75, 1.0]}
    page = client(Desk(reviewed.write(tmp_path, [clip_row(0)], [source]).root))
    assert asked(page, f"/api/clips/{name(0)}")["picture"] == {"width": 320, "height": 480}


# -- what calibrate drew -----------------------------------------------------------------------------------


def test_the_clips_that_calibrate_drew_are_shown_in_its_order(page: TestClient, root: Path) -> None:
    assert asked(page, "/api/dataset")["listed"] == [] and shown(page, filter={"listed": True}) == []
    text = f"# drawn\n{name(5)}  # sync\n{name(2)}\ngone-0-0\n{name(5)}\n{name(7)}\n"
    Store(root).write("calibration/pretrain-next.txt", text.encode())
    assert asked(page, "/api/dataset")["listed"] == ["pretrain"]
    assert shown(page, filter={"listed": True}) == [5, 2, 7]
    assert shown(page, filter={"listed": True}, sort="duration_s", descending=True) == [7, 2, 5]
    assert shown(page, filter={"listed": True, "verdict": "keep"}) == [5, 7]
    assert shown(page, filter={"listed": True}, per_page=2, page=1) == [7]


# -- datasets that are none, empty, read-only --------------------------------------------------------------


def test_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="xstreamer curate"):
        Desk(str(tmp_path))


def test_an_empty_dataset_has_a_page(tmp_path: Path) -> None:
    reviewed.begin(Store(tmp_path))
    page = client(Desk(str(tmp_path)))
    assert asked(page, "/api/dataset")["clips"] == 0
    assert asked(page, "/api/counts")["keep"] == {"clips": 0, "seconds": 0.0}
    assert asked(page, "/api/clips", sort="duration_s", filter={"text": "x"})["rows"] == []
    assert asked(page, "/api/histogram?measure=duration_s")["counts"] == []
    assert page.get("/api/export.csv", params={"q": '{"profile":"pretrain"}'}).text.count("\n") == 1


def test_profiles_that_do_not_fit_the_recipe_are_left_out(tmp_path: Path) -> None:
    store = reviewed.write(tmp_path, [clip_row(0)])
    store.write("profiles/other.toml", b'name = "other"\n[rules.quality_score]\nmin = { pyiqa = 70 }\n')
    store.write("profiles/mine.toml", b'name = "mine"\n[rules.duration_s]\nmin = 5\n')
    assert "mine" in Desk(str(tmp_path)).profiles and "other" not in Desk(str(tmp_path)).profiles
    store.write("profiles/broken.toml", b"name = ")
    with pytest.raises(UsageError, match="broken.toml"):
        Desk(str(tmp_path))


def test_a_remote_dataset_is_read_only(root: Path) -> None:
    desk = Desk(root.as_uri())
    assert "local" in desk.read_only
    page = client(desk)
    assert asked(page, "/api/counts")["keep"]["clips"] == 4
    assert "nothing can be decided" in decided(page, name(0), "keep", expect=409)["error"]
    answer = page.post("/api/profiles", json={"name": "x", "profile": "pretrain"})
    assert answer.status_code == 409 and "nothing can be saved" in answer.json()["error"]


def test_a_folder_that_cannot_be_written_is_read_only(root: Path) -> None:
    (root / "decisions").write_text("a file where the folder should be")
    desk = Desk(str(root))
    assert desk.read_only and "\n" not in desk.read_only
    (root / "decisions").unlink()


def test_a_disk_that_fills_while_deciding_is_one_line(page: TestClient, root: Path) -> None:
    (root / "decisions").rmdir()
    (root / "decisions").write_text("in the way")
    answer = decided(page, name(0), "keep", expect=409)
    assert "in the way" in answer["error"] and asked(page, "/api/counts")["decisions"] == 0


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def serving(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pipelines.cli", "review", str(root), "--port", "0", "--reviewer", "ann"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_the_command_serves_until_ctrl_c_and_a_taken_port_is_one_line(
    serving: subprocess.Popen[str], root: Path
) -> None:
    import signal
    from urllib.request import urlopen

    assert serving.stdout is not None
    address = serving.stdout.readline().split()[-1]
    assert address.startswith("http://127.0.0.1:")
    assert json.loads(urlopen(f"{address}api/dataset").read())["reviewer"] == "ann"
    port = address.rstrip("/").rsplit(":")[-1]
    again = [sys.executable, "-m", "pipelines.cli", "review", str(root), "--port", port]
    refused = subprocess.run(again, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--port" in refused.stderr
    serving.send_signal(signal.SIGINT)
    assert serving.wait(30) == 0


def test_reviewers_have_names() -> None:
    assert named("Ann B.") == "Ann B." and named(None)
    with pytest.raises(UsageError, match="--reviewer"):
        named("a/b")
