"""Decisions made on the review page stand over verdicts and last; the page shows one state, whatever is written."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import reviewed
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reviewed import asked, client, clip_row, decided, name, page_fixture, root_fixture, shown  # noqa: F401

from manifests.decisions import overrides, read_decisions
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RETIRED, append, compact, read
from pipelines.export import export_rows
from pipelines.judge import kept
from pipelines.recipe import load_profile
from pipelines.review.desk import Desk
from pipelines.review.snapshot import load_snapshot

PRETRAIN = load_profile("pretrain")
slowly = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
