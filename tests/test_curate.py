"""The graph: nothing lost, nothing twice, whatever is killed; a change measures only what it touches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import light
import pytest
from test_scenes import scenes_movie

from manifests.records import ALWAYS_MEASURED, CLIP_STAGES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, read
from pipelines.cli import main
from pipelines.verify import verify

TESTS = Path(__file__).resolve().parent


class Bench:
    """A folder of sources, a recipe of light stages, a profile, and datasets made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sources = folder, folder / "src"
        self.sources.mkdir()
        self.profile(4.0)
        self.recipe()

    def recipe(self, **params: dict[str, object]) -> None:
        (self.folder / "recipe.toml").write_text(light.recipe_toml(self.folder, **params))

    def profile(self, sync: float) -> None:
        (self.folder / "pretrain.toml").write_text(light.PROFILE.format(sync=sync))

    def arguments(self, out: str, *more: str) -> list[str]:
        paths = ["--recipe", str(self.folder / "recipe.toml"), "--profile", str(self.folder / "pretrain.toml")]
        return ["curate", str(self.sources), "-o", str(self.folder / out), *paths, "--quiet", "--json", *more]

    def curate(self, out: str = "ds", *more: str) -> dict[str, Any]:
        done = self.start(out, *more).communicate()
        assert done[0], done[1]
        return dict(json.loads(done[0]))

    def start(self, out: str = "ds", *more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        command = [sys.executable, "-m", "pipelines.cli", *self.arguments(out, *more)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            # shells start background jobs, as CI may be one, with Ctrl-C ignored, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def store(self, out: str = "ds") -> Store:
        return Store(self.folder / out)

    def calls(self) -> list[tuple[str, str]]:
        return light.calls(self.folder)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return Bench(tmp_path)


def state(store: Store) -> dict[str, Any]:
    """All that two runs must agree on: tables without seconds, and the bytes of samples, verdicts and shards."""
    tables = {t.name: read(store, t) for t in (SOURCES_TABLE, CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE)}
    tables["runs"] = tables["runs"].drop_columns(["seconds", "media_seconds"])
    out: dict[str, Any] = {name: table.to_pylist() for name, table in tables.items()}
    root = store.local()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        if name.startswith(("samples", "verdicts", "shards")):
            out[name] = path.read_bytes()
    return out


def test_end_to_end_then_again_measures_nothing(bench: Bench) -> None:
    scenes_movie(bench.sources / "a b.mp4", [2.0, 3.0, 0.8])
    scenes_movie(bench.sources / "long.mp4", [30.0])
    (bench.sources / "copy.mp4").write_bytes((bench.sources / "a b.mp4").read_bytes())
    (bench.sources / "empty.mp4").write_bytes(b"")
    (bench.sources / "notes.txt").write_text("no video")
    found = bench.curate()
    assert {k: found["sources"][k]["files"] for k in ("ok", "duplicate", "failed")} == {
        "ok": 2,
        "duplicate": 1,
        "failed": 1,
    }
    assert found["clips"]["clips"] == 5
    profile = found["profiles"]["pretrain"]
    assert [profile[v]["clips"] for v in ("keep", "reject", "undecided")] == [4, 1, 0]
    assert profile["rules"]["duration"] == {"clips": 1, "seconds": 0.8, "only": 1, "unmet": 0}
    assert found["stages"]["encode"] == {"ok": 4, "skipped": 1}
    long = [r for r in read(bench.store(), SAMPLES_TABLE).to_pylist() if " " in r["clip_ids"]]
    assert [r["chunks"] for r in long] == [93]  # 30 s of one scene, cut in two, joined again
    assert verify(bench.store(), quiet=True) == []
    before, calls = state(bench.store()), bench.calls()
    assert set(Counter(c for c in calls if c[1] in {r["clip_id"] for r in before["clips"]}).values()) == {1}
    again = bench.curate()
    assert again["measured_clips"] == 0
    assert bench.calls() == calls
    assert state(bench.store()) == before


def test_sources_are_never_touched(bench: Bench) -> None:
    path = scenes_movie(bench.sources / "a.mp4", [2.0])
    (bench.sources / "bad.mp4").write_bytes(b"junk")
    facts = [(p.stat().st_mtime_ns, p.read_bytes()) for p in (path, bench.sources / "bad.mp4")]
    bench.curate()
    assert facts == [(p.stat().st_mtime_ns, p.read_bytes()) for p in (path, bench.sources / "bad.mp4")]
    assert sorted(p.name for p in bench.sources.iterdir()) == ["a.mp4", "bad.mp4"]


def test_a_changed_backend_measures_its_stage_and_dependants_only(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0, 3.0])
    bench.curate()
    (bench.folder / "calls.txt").unlink()
    bench.recipe(sync={"salt": 1})
    refused = bench.start().communicate()[1]
    assert "measures encode, sync otherwise" in refused and "--change-recipe" in refused
    assert bench.calls() == []
    bench.curate("ds", "--change-recipe")
    assert Counter(stage for stage, _ in bench.calls()) == {"sync": 2, "encode": 2}
    assert verify(bench.store(), quiet=True) == []


def test_a_changed_bound_runs_no_model_and_says_what_is_undecided(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0, 3.0])
    bench.profile(9.0)
    assert bench.curate()["profiles"]["pretrain"]["reject"]["clips"] == 2
    calls = bench.calls()
    assert {stage for stage, _ in calls} == set(ALWAYS_MEASURED)
    bench.profile(4.0)
    sys.path.insert(0, str(TESTS))
    assert main(["judge", str(bench.folder / "ds"), "--profile", str(bench.folder / "pretrain.toml")]) == 0
    said = capsys.readouterr().out
    assert "2 clips undecided" in said and f"xstreamer curate -o {bench.folder / 'ds'}" in said
    assert bench.calls() == calls
    assert bench.curate()["profiles"]["pretrain"]["keep"]["clips"] == 2
    assert Counter(stage for stage, _ in bench.calls()[len(calls) :]) == dict.fromkeys(
        ("overlay", "denoise", "transcribe", "encode"), 2
    )


def test_exhaustive_measures_what_failed_already(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0])
    bench.profile(9.0)
    bench.curate("ds", "--exhaustive")
    assert {stage for stage, _ in bench.calls()} == set(CLIP_STAGES)


def test_a_stage_that_fails_is_recorded_and_retried_only_when_asked(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0])
    bench.recipe(quality={"broken": True})
    found = bench.curate()
    assert found["stages"]["quality"] == {"failed": 1}
    assert any("quality 1" in note and "--retry-failed" in note for note in found["notes"])
    runs = [r for r in read(bench.store(), RUNS_TABLE).to_pylist() if r["stage"] == "quality"]
    assert [(r["status"], r["error"]) for r in runs] == [("failed", "RuntimeError: a bug of this stage")]
    count = len(bench.calls())
    bench.curate()
    assert len(bench.calls()) == count
    bench.curate("ds", "--retry-failed")
    assert [stage for stage, _ in bench.calls()[count:]] == ["quality"]


def test_what_reads_a_failed_stage_is_tried_again_with_it(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0])
    hurdle = bench.folder / "hurdle"
    hurdle.touch()
    bench.recipe(transcribe={"hurdle": str(hurdle)})
    assert bench.curate()["stages"]["transcribe"] == {"failed": 1}
    count = len(bench.calls())
    hurdle.unlink()
    assert bench.curate("ds", "--retry-failed")["stages"]["transcribe"] == {"ok": 1}
    assert [stage for stage, _ in bench.calls()[count:]] == ["transcribe", "encode"]


def test_a_model_that_is_not_right_ends_the_run_and_fails_no_clip(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0])
    hurdle = bench.folder / "hurdle.model"
    hurdle.touch()
    bench.recipe(transcribe={"hurdle": str(hurdle)})
    started = bench.start()
    out, err = started.communicate()
    assert started.returncode == 1 and out == "" and err.endswith("xstreamer: no weights; fetch them\n")
    hurdle.unlink()
    assert bench.curate()["stages"]["transcribe"] == {"ok": 1}
    assert verify(bench.store(), quiet=True) == []


def test_a_clip_that_kills_its_workers_is_recorded_and_the_rest_goes_on(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0, 3.0, 2.5])
    scenes_movie(bench.sources / "b.mp4", [4.0])
    bench.recipe(sync={"murder": "-000005000"})
    found = bench.curate()
    assert found["profiles"]["pretrain"]["keep"]["clips"] == 3
    assert found["profiles"]["pretrain"]["undecided"]["clips"] == 1
    [failed] = {r["clip_id"] for r in read(bench.store(), RUNS_TABLE).to_pylist() if r["status"] == "failed"}
    assert failed.endswith("-000002000-000005000")


@pytest.mark.parametrize("how", ["everything", "a worker", "ctrl-c"])
def test_killed_anywhere_the_same_command_ends_like_an_undisturbed_run(bench: Bench, how: str) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0, 3.0, 2.0, 1.5])
    scenes_movie(bench.sources / "b.mp4", [25.0])
    scenes_movie(bench.sources / "c.mp4", [1.2])
    bench.curate("whole")
    (bench.folder / "calls.txt").unlink()
    bench.recipe(transcribe={"sleep_s": 0.4})
    run = bench.start("torn")
    deadline = time.monotonic() + 120
    while len([c for c in bench.calls() if c[0] == "transcribe"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.poll() is None, run.communicate()[1]
    if how == "everything":
        os.killpg(run.pid, signal.SIGKILL)
    elif how == "ctrl-c":
        os.kill(run.pid, signal.SIGINT)
    else:
        os.kill(_worker_of(run.pid), signal.SIGKILL)
    run.communicate()
    if how == "ctrl-c":
        assert run.returncode == 130
    bench.curate("torn")
    torn, whole = state(bench.store("torn")), state(bench.store("whole"))
    assert torn.keys() == whole.keys()
    for name in whole:
        assert torn[name] == whole[name], name
    assert verify(bench.store("torn"), quiet=True) == []


def _worker_of(pid: int) -> int:
    """A process below `pid` that runs clips: the child of a nanny."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = (stat.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == pid and b"spawn_main" in command and int(stat.parent.name) != pid:
            return int(stat.parent.name)
    raise AssertionError("no worker found")


def test_two_runs_at_once_on_one_dataset_are_refused(bench: Bench) -> None:
    scenes_movie(bench.sources / "a.mp4", [2.0, 2.0])
    bench.recipe(speech={"sleep_s": 10.0})
    first = bench.start()
    deadline = time.monotonic() + 60
    while not bench.calls() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = bench.start()
    assert "in use by another xstreamer" in second.communicate()[1]
    assert first.communicate()[0]


def test_new_sources_join_a_dataset_without_moving_the_old(bench: Bench) -> None:
    scenes_movie(bench.sources / "b.mp4", [2.0])
    bench.curate()
    before = {r["clip_id"]: r for r in read(bench.store(), CLIPS_TABLE).to_pylist()}
    scenes_movie(bench.sources / "a.mp4", [3.0, 2.0])
    found = bench.curate()
    assert found["measured_clips"] == 2
    after = {r["clip_id"]: r for r in read(bench.store(), CLIPS_TABLE).to_pylist()}
    assert before.items() <= after.items()
    orders = {Path(r["uri"]).name: r["order"] for r in read(bench.store(), SOURCES_TABLE).to_pylist()}
    assert orders["b.mp4"] < orders["a.mp4"]


def test_a_replaced_file_takes_its_old_clips_with_it(bench: Bench) -> None:
    path = scenes_movie(bench.sources / "a.mp4", [2.0])
    bench.curate()
    old = set(read(bench.store(), CLIPS_TABLE, ["clip_id"])["clip_id"].to_pylist())
    path.unlink()
    scenes_movie(path, [3.0, 1.5])
    found = bench.curate()
    now = set(read(bench.store(), CLIPS_TABLE, ["clip_id"])["clip_id"].to_pylist())
    assert len(now) == 2 and not now & old
    assert found["profiles"]["pretrain"]["keep"]["clips"] == 2
    assert verify(bench.store(), quiet=True) == []
