"""The engine behind the review page: its figures are those of `judge`, its state is one state, decisions last."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reviewed
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reviewed import SOURCE, asked, client, clip_row, decided, name, page_fixture, root_fixture, shown  # noqa: F401

from manifests.errors import DatasetError, UsageError
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, read
from manifests.verdicts import Profile, judge_table
from pipelines.judge import judge
from pipelines.recipe import check_profile, load_profile
from pipelines.review.desk import Desk
from pipelines.review.query import NEAR, with_bounds
from pipelines.review.serve import named

PRETRAIN = load_profile("pretrain")
slowly = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
            str(wanted.get("text", "")).strip().lower() in (row["transcript"] or "").lower(),
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
