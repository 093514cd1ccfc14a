"""The command as a user meets it: every mistake is one line that names the thing and the next move."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import light
import numpy as np
import pyarrow.parquet as pq
import pytest
from made import clicks, numbered, write_movie
from test_scenes import scenes_movie

from manifests.store import Store
from manifests.tables import CLIPS_TABLE, read
from pipelines import cli, cluster
from pipelines.export import write_csv
from pipelines.verify import verify

TESTS = Path(__file__).resolve().parent
COMMANDS = ("curate", "judge", "pack", "export", "verify", "demo")
EVIL = '=HYPERLINK("x").mp4'


Mixed = tuple[Path, subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """The one line on standard error."""
        assert self.err.count("\n") == 1 and self.err.startswith("xstreamer: "), self.err
        assert "Traceback" not in self.err and "unexpected" not in self.err, self.err
        assert self.out == ""
        return self.err


def call(*arguments: str | Path) -> Told:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Told(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, **more: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes | more)


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        for begin in range(0, 32_000, 1024):
            samples = np.sin(np.arange(begin, begin + 1024) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, begin
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the light recipe, a profile and good and bad files under src/."""
    folder = tmp_path_factory.mktemp("bench")
    src = folder / "src"
    src.mkdir()
    (folder / "recipe.toml").write_text(light.recipe_toml(folder))
    (folder / "pretrain.toml").write_text(light.PROFILE.format(sync=4.0))
    write_movie(src / EVIL, [numbered(7)] * 60, audio=clicks(2.4))
    scenes_movie(src / "mute.mp4", [2.0, 3.0, 0.8])
    (src / "zero.mp4").write_bytes(b"")
    (src / "text.mp4").write_text("I am no video\n" * 100)
    sound_only(src / "sound.mp4")
    whole = write_movie(folder / "whole.mkv", [numbered(n % 250, (128, 192)) for n in range(200)]).read_bytes()
    (src / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (src / "head.mp4").write_bytes((src / "mute.mp4").read_bytes()[:2000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        yield folder


def asked(bench: Path, source: Path, out: Path) -> list[str]:
    """`curate` with the light recipe."""
    files = ["--recipe", str(bench / "recipe.toml"), "--profile", str(bench / "pretrain.toml")]
    return ["curate", str(source), "-o", str(out), *files, "--cluster", "1", "--quiet"]


@pytest.fixture(scope="module")
def mixed(bench: Path) -> Mixed:
    """A dataset of the good and bad files, and how the command that made it ended."""
    process = start(*asked(bench, bench / "src", bench / "ds"), "--json")
    out, err = process.communicate()
    return bench / "ds", subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.fixture
def good(bench: Path) -> Path:
    """One good file."""
    return bench / "src" / "mute.mp4"


# -- files that are none -------------------------------------------------------------------------------------


def test_bad_files_are_listed_and_the_rest_goes_on(mixed: Mixed) -> None:
    _, ended = mixed
    assert ended.returncode == 3
    assert ended.stderr == ""  # no traceback, no decoder chatter
    found = json.loads(ended.stdout)
    assert found["sources"]["ok"]["files"] == 2
    errors = {Path(f["source"]).name: f["error"] for f in found["sources"]["failed_sources"]}
    for name, says in {
        "zero.mp4": "is it a whole video",
        "text.mp4": "is it a whole video",
        "head.mp4": "is it a whole video",
        "sound.mp4": "no video stream",
        "cut.mkv": "truncated",
    }.items():
        assert says in errors.pop(name)
    assert errors == {}
    assert all("\n" not in f["error"] and f["source"] in f["error"] for f in found["sources"]["failed_sources"])
    profile = found["profiles"]["pretrain"]
    assert [profile[v]["clips"] for v in ("keep", "reject", "undecided")] == [3, 1, 0]


def test_the_tables_for_people_name_every_failure(bench: Path, mixed: Mixed) -> None:
    told = call("judge", mixed[0], "--profile", bench / "pretrain.toml")
    assert told.code == 0 and told.err == ""
    for name in ("zero.mp4", "text.mp4", "head.mp4", "sound.mp4", "cut.mkv"):
        [line] = [line for line in told.out.splitlines() if name in line and "failed:" in line]
        assert str(bench / "src") in line
    assert "fails duration" in told.out


# -- export --------------------------------------------------------------------------------------------------


def exported(bench: Path, dataset: Path, *more: str) -> str:
    told = call("export", dataset, "--profile", bench / "pretrain.toml", *more)
    assert (told.code, told.err) == (0, "")
    return told.out


def test_export_is_an_object_a_line_in_the_promised_form(bench: Path, mixed: Mixed) -> None:
    text = exported(bench, mixed[0])
    assert text == exported(bench, mixed[0], "--json")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    sources = [row for row in rows if row["kind"] == "source"]
    clips = [row for row in rows if row["kind"] == "clip"]
    assert rows == sources + clips and len(sources) == 7 and len(clips) == 4
    for row in sources:
        assert row["status"] in ("ok", "failed", "duplicate")
        assert isinstance(row["cuts"], list) and all(isinstance(cut, float) for cut in row["cuts"])
        assert (row["error"] is None) == (row["status"] == "ok")
        assert Path(row["source"]).is_absolute()
    assert [len(r["cuts"]) for r in sources if r["source"].endswith("mute.mp4")] == [2]
    for row in clips:
        assert row["source"] in {s["source"] for s in sources}
        assert isinstance(row["start_s"], float) and row["start_s"] < row["end_s"]
        assert isinstance(row["keep"], bool) and isinstance(row["reasons"], list)
        assert row["measures"]["sync_offset_frames"] == (0 if row["keep"] else None)  # the short one tells none
        assert row["keep"] == (row["verdict"] == "keep") and bool(row["reasons"]) == (row["verdict"] == "reject")
    assert [row["reasons"] for row in clips if not row["keep"]] == [["duration"]]


def test_export_csv_parses_and_runs_nothing(bench: Path, mixed: Mixed) -> None:
    lines = [json.loads(line) for line in exported(bench, mixed[0]).splitlines()]
    rows = list(csv.DictReader(io.StringIO(exported(bench, mixed[0], "--csv"), newline=""), strict=True))
    assert [(r["kind"], r["source"]) for r in rows] == [(r["kind"], r["source"]) for r in lines]
    assert [r["verdict"] for r in rows] == [r.get("verdict", "") for r in lines]
    assert not any(None in row or None in row.values() for row in rows)


def test_csv_cells_that_a_spreadsheet_would_run_are_defused() -> None:
    out = io.StringIO()
    evil = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", 'a"b,c\nd']
    write_csv(iter([{"kind": "source", "source": text, "error": text, "cuts": [-1.0]} for text in evil]), out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue(), newline=""), strict=True))
    assert [row["source"] for row in rows] == [f"'{text}" for text in evil[:-1]] + evil[-1:]
    assert all(row[name][:1] not in ("=", "+", "-", "@", "\t", "\r") for row in rows for name in row if row[name])


def test_a_reader_that_leaves_early_is_no_error(bench: Path, mixed: Mixed) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("export", mixed[0], "--profile", bench / "pretrain.toml", stdout=writing)
    os.close(writing)
    assert (process.communicate()[1], process.returncode) == ("", 0)


# -- one JSON object -----------------------------------------------------------------------------------------


def test_json_is_one_object_for_every_command(bench: Path, mixed: Mixed) -> None:
    profile = ["--profile", str(bench / "pretrain.toml")]
    judged = json.loads(call("judge", mixed[0], *profile, "--json", "--quiet").out)
    packed = json.loads(call("pack", mixed[0], *profile, "--json", "--quiet").out)
    verified = call("verify", mixed[0], "--json", "--quiet")
    assert judged["profiles"]["pretrain"]["keep"]["clips"] == 3
    assert sum(packed["pretrain"][split]["samples"] for split in ("train", "val")) == 3
    assert json.loads(verified.out) == {"dataset": str(mixed[0]), "faults": []} and verified.code == 0


def test_verify_exits_1_on_a_fault(bench: Path, mixed: Mixed) -> None:
    [shard, *_] = sorted((mixed[0] / "shards" / "pretrain").glob("train-*.tar"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1] + b"x")
        told = call("verify", mixed[0], "--quiet")
        assert told.code == 1 and shard.name in told.out and "pack again" in told.out
    finally:
        shard.write_bytes(content)


# -- dry run -------------------------------------------------------------------------------------------------


def test_dry_run_tells_hours_and_disk_and_writes_nothing(bench: Path, tmp_path: Path) -> None:
    arguments = [*asked(bench, bench / "src", tmp_path / "ds"), "--dry-run"]
    told = call(*arguments)
    assert told.code == 3 and told.err == ""
    for says in ("sources: 7, of which 4 unreadable", "video: 0.00 h", "expected work:", "expected disk:", "zero.mp4"):
        assert says in told.out
    found = json.loads(call(*arguments, "--json").out)
    assert found["video_hours"] * 3600 == pytest.approx(2.4 + 5.8 + 8.0, abs=0.1)  # a cut file still says 8 s
    assert found["expected_work_hours"] > 0 and found["expected_disk_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_good_files_exits_0(bench: Path, good: Path, tmp_path: Path) -> None:
    assert call(*asked(bench, good, tmp_path / "ds"), "--dry-run").code == 0


def test_dry_run_refuses_what_the_run_would_refuse(bench: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    told = call(*asked(bench, good, tmp_path), "--dry-run")
    assert told.code == 1 and "mine.txt" in told.line()


# -- the wrong sources ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["empty", "missing", "missing/*.mp4", "new\nline"])
def test_no_sources_is_wrong_usage(bench: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    told = call(*asked(bench, tmp_path / source, tmp_path / "ds"))
    assert told.code == 2 and repr(str(tmp_path / source)) in told.line()
    assert not (tmp_path / "ds").exists()


def test_nothing_named_and_no_dataset_there(tmp_path: Path) -> None:
    told = call("curate", "-o", tmp_path / "ds")
    assert told.code == 2 and "name the videos" in told.line()


def test_a_source_inside_the_dataset_is_refused(bench: Path, tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    path = scenes_movie(tmp_path / "ds" / ".a.mp4", [1.0])
    told = call(*asked(bench, path, tmp_path / "ds"))
    assert told.code == 2 and "inside the dataset folder" in told.line()


# -- the wrong folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["judge", "pack", "export", "verify"])
def test_a_folder_that_is_no_dataset(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "file"):
        told = call(command, folder)
        assert told.code == 1 and str(folder) in told.line() and "xstreamer curate SOURCE -o" in told.err
    assert call(command, "").code == 2


@pytest.mark.parametrize("command", ["judge", "curate"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"format_version": 99}', "has format version 99"),
        ('{"other": 1}', "has format version None"),
        ("[1]", "has format version None"),
        ("{", "is damaged"),
        ('{"format_version": 1}', "is damaged"),
    ],
)
def test_a_dataset_of_another_version_or_damaged(
    bench: Path, good: Path, tmp_path: Path, command: str, content: str, says: str
) -> None:
    (tmp_path / "dataset.json").write_text(content)
    told = call(command, tmp_path) if command == "judge" else call(*asked(bench, good, tmp_path))
    assert told.code == 1 and says in told.line() and "another folder" in told.err
    assert [p.name for p in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize("foreign", ["mine.txt", "tables/a.parquet", "shards/pretrain/train-000000.tar", "photos/"])
def test_a_folder_with_other_files_is_not_written_to(bench: Path, good: Path, tmp_path: Path, foreign: str) -> None:
    path = tmp_path / foreign
    (path if foreign.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    if not foreign.endswith("/"):
        path.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    told = call(*asked(bench, good, tmp_path))
    assert told.code == 1 and foreign.split("/")[0] in told.line() and "empty or new -o" in told.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("inner", ["", "deep/er"])
def test_the_output_is_a_file(bench: Path, good: Path, tmp_path: Path, inner: str) -> None:
    (tmp_path / "file").write_text("mine")
    told = call(*asked(bench, good, tmp_path / "file" / inner))
    assert told.code == 1 and f"{tmp_path / 'file' / inner} is in the way" in told.line()
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_is_empty_or_impossible(bench: Path, good: Path) -> None:
    told = call("demo", "-o", good / "demo")
    assert told.code == 1 and str(good / "demo") in told.err and "choose another -o" in told.err
    assert "-o is empty" in call("curate", good, "-o", "").line()
    told = call("curate", good, "-o", "nosuch://bucket/x")
    assert told.code == 1 and "nosuch://bucket/x cannot be opened" in told.line()
    told = call("curate", good, "-o", "/tmp/" + "n" * 300)
    assert told.code == 1 and "name too long" in told.line()


def test_another_recipe_needs_a_word(bench: Path, mixed: Mixed, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(light.recipe_toml(tmp_path, sync={"salt": 7}))
    arguments = asked(bench, bench / "src", mixed[0])
    arguments[arguments.index("--recipe") + 1] = str(tmp_path / "recipe.toml")
    before = (mixed[0] / "dataset.json").read_bytes()
    told = call(*arguments)
    assert told.code == 1 and "measures sync otherwise" in told.line().replace("encode, ", "")
    assert "--change-recipe" in told.err and "'light'" in told.err
    assert (mixed[0] / "dataset.json").read_bytes() == before


# -- disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EROFS, "cannot be written")],
)
def test_a_disk_that_takes_nothing(
    bench: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    told = call(*asked(bench, good, tmp_path / "ds"))
    assert told.code == 1 and says in told.line() and str(tmp_path / "ds") in told.err
    assert list((tmp_path / "ds").iterdir()) == []  # nothing half written


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of its own with the given options; again to change them."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        if not shutil.which("mount"):
            pytest.skip("no mount here")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
        return place

    try:
        yield mount
    finally:
        while os.path.ismount(place):
            subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("room", [12_000, 40_000, 75_000])  # for dataset.json, for sources, for some of the samples
def test_a_full_disk_is_said_and_with_room_the_same_command_finishes(
    bench: Path, disk: Callable[[str], Path], room: int
) -> None:
    place = disk("size=8m")
    (place / "other").write_bytes(bytes((8 << 20) - room))
    arguments = asked(bench, bench / "src" / EVIL, place / "ds")
    told = call(*arguments)
    assert told.code == 1 and "no space left" in told.line() and "run the same command" in told.err
    (place / "other").unlink()
    assert call(*arguments).code == 0
    assert verify(Store(place / "ds"), quiet=True) == []
    assert [row["encode_status"] for row in read(Store(place / "ds"), CLIPS_TABLE).to_pylist()] == ["ok"]
    assert not [p for p in (place / "ds").rglob("*") if p.name.startswith(".tmp-")]


def test_a_read_only_dataset_still_tells_and_says_what_would_write(
    bench: Path, mixed: Mixed, disk: Callable[[str], Path]
) -> None:
    dataset = disk("size=8m") / "ds"
    shutil.copytree(mixed[0], dataset)
    disk("remount,ro")
    profile = ["--profile", str(bench / "pretrain.toml")]
    assert call("verify", dataset, "--quiet").code == 0
    assert '"keep": true' in call("export", dataset, *profile).out
    writers = (
        asked(bench, bench / "src", dataset),
        asked(bench, bench / "src", dataset.parent / "new"),
        ["judge", str(dataset), *profile],
        ["pack", str(dataset), *profile, "--quiet"],
    )
    for command in writers:
        told = call(*command)
        assert told.code == 1 and "cannot be written" in told.line() and str(dataset.parent) in told.err, command


# -- recipes, profiles, options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[stages.sync]", "[stages.sink]", "unknown stage 'sink'; stages are speech"),
        ('"light:Sync"', '"syncnet9"', "unknown backend 'syncnet9' for stage 'sync'"),
        ('"light:Sync"', '"light:Sink"', "'light:Sink' of stage 'sync'"),
        ('"light:Sync"', '"nowhere:Sync"', "is it on PYTHONPATH?"),
        ('"light:Sync"', '"light:Quality"', "no Stage with name 'sync'"),
        ('"light:Sync"', "5", "[stages.sync] needs a backend"),
        ("[stages.sync]", "[stages.sync]\nthresold = 1", "no parameter 'thresold'"),
        ("[stages.sync]", "[stages.sync]\nsleep_s = 'long'", "[stages.sync] sleep_s = 'long' must be like 0.0"),
        ("threshold = 3.0", "thresold = 3.0", "[scenes] has no 'thresold'"),
        ("threshold = 3.0", "threshold = '3'", "[scenes] threshold = '3' must be like"),
        ('name = "light"', 'name = "light"\nstage = 1', "unknown key 'stage'"),
        ('name = "light"', "name = light", "is not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_recipe(bench: Path, good: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (bench / "recipe.toml").read_text()
    assert old in text
    (tmp_path / "r.toml").write_text(text.replace(old, new, 1))
    told = call("curate", good, "-o", tmp_path / "ds", "--recipe", tmp_path / "r.toml")
    assert told.code == 2 and says in told.line()
    assert not (tmp_path / "ds").exists()


def test_a_recipe_that_is_not_there(good: Path, tmp_path: Path) -> None:
    told = call("curate", good, "-o", tmp_path / "ds", "--recipe", "bundeld")
    assert told.code == 2 and "no recipe 'bundeld'" in told.line() and "bundled" in told.err


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("[rules.sync_confidence]\nmin = { correlation = 3.5 }", "no bound for backend 'light' of stage 'sync'"),
        ("[rules.sync_confidence]\nmin = { syncnet9 = 3.5 }", "no backend 'syncnet9' for stage 'sync'"),
        ("[rules.sync_confidense]\nmin = 1", "no measure 'sync_confidense'; there is sync_confidence"),
        ("[rules.sync_confidence]\nmin = 'high'", "bound 'high' does not fit"),
        ("[rules.speaker_count]\nequals = 'one'", "bound 'one' does not fit"),
        ("[rules.speaker_count]\nmin = nan", "bound nan does not fit"),
        ("[rules.spoken_language]\nin = [1]", "bound [1] does not fit"),
        ("[rules.duration_s]\nmin = { light = 1 }", "min must be one bound"),
        ("[rules.speaker_count]\nequals = 1\nblind = 'light'", "must be a list of backends"),
        ("long_form_s = 'all'\n[rules.speaker_count]\nequals = 1", "long_form_s 'all'"),
        ("", "at least one rule"),
    ],
)  # fmt: skip
def test_a_wrong_profile(mixed: Mixed, tmp_path: Path, rules: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(f'name = "p"\n{rules}\n')
    before = sorted(mixed[0].rglob("*"))
    for command in ("judge", "pack", "export"):
        told = call(command, mixed[0], "--profile", tmp_path / "p.toml")
        assert told.code == 2 and says in told.line(), told.err
    assert sorted(mixed[0].rglob("*")) == before


def test_profiles_that_are_not_there_or_twice(bench: Path, mixed: Mixed) -> None:
    told = call("judge", mixed[0], "--profile", "pretrian")
    assert told.code == 2 and "no profile 'pretrian'" in told.line() and "pretrain" in told.err
    assert call("judge", mixed[0], "--profile", " , ").code == 2
    path = str(bench / "pretrain.toml")
    assert "two profiles of one name" in call("judge", mixed[0], "--profile", f"{path},{path}").line()
    told = call("export", mixed[0], "--profile", path, "--csv", "--json")
    assert told.code == 2 and "--json or --csv" in told.line()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--limit", "0"), ("--limit", "-3"), ("--val-share", "2"), ("--val-share", "nan"), ("--val-share", "-0.1"),
        ("--per-shard", "0"), ("--cluster", "0"), ("--cluster", "-1"), ("--cluster", "many"), ("--cluster", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_options_out_of_range(
    bench: Path, good: Path, tmp_path: Path, option: str, value: str, dry: tuple[str, ...]
) -> None:
    told = call(*asked(bench, good, tmp_path / "ds"), option, value, *dry)
    assert told.code == 2 and option in told.line()
    assert not (tmp_path / "ds").exists()


def test_a_scheduler_that_does_not_answer(
    bench: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    told = call(*asked(bench, good, tmp_path / "ds"), "--cluster", "tcp://127.0.0.1:1")
    assert told.code == 2 and "'tcp://127.0.0.1:1'" in told.line() and "--cluster N" in told.err


# -- the command line itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(command: tuple[str, ...]) -> None:
    told = call(*command, "--help")
    assert told.code == 0 and told.err == "" and told.out.startswith("usage: xstreamer")
    for name in COMMANDS if not command else ("--json", "--quiet", "--debug"):
        assert name in told.out


@pytest.mark.parametrize(
    "arguments",
    [(), ("curat",), ("curate",), ("judge",), ("curate", "a", "-o", "b", "--limit", "x"), ("verify", "a", "b")],
)
def test_a_command_line_that_does_not_parse_exits_2(arguments: tuple[str, ...]) -> None:
    told = call(*arguments)
    assert told.code == 2 and told.out == ""
    assert told.err.startswith("usage: xstreamer") and "error:" in told.err.splitlines()[-1]


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_and_nothing_else_does(tmp_path: Path, place: str) -> None:
    plain = start("judge", tmp_path).communicate()[1]
    assert plain.count("\n") == 1 and "Traceback" not in plain
    arguments = ["--debug", "judge", str(tmp_path)] if place == "before" else ["judge", str(tmp_path), "--debug"]
    process = start(*arguments)
    shown = process.communicate()[1]
    assert "Traceback" in shown and "DatasetError" in shown and process.returncode == 1


def test_a_bug_of_ours_is_one_line_that_asks_for_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(cli, "_verify", broken)
    told = call("verify", tmp_path)
    assert (told.code, told.out) == (1, "")
    assert (
        told.err == "xstreamer: unexpected ZeroDivisionError: division by zero; run again with --debug and report it\n"
    )
    with pytest.raises(ZeroDivisionError):
        cli.main(["verify", str(tmp_path), "--debug"])


def test_an_unreadable_part_of_a_table_is_named(bench: Path, mixed: Mixed) -> None:
    [part] = sorted((mixed[0] / "tables" / "clips").glob("*.parquet"))
    content = part.read_bytes()
    assert pq.read_metadata(part).num_rows == 4
    try:
        part.write_bytes(content[: len(content) // 2])
        told = call("judge", mixed[0], "--profile", bench / "pretrain.toml")
        assert told.code == 1 and part.name in told.line()
        told = call("verify", mixed[0], "--quiet")
        assert told.code == 1 and part.name in told.out
    finally:
        part.write_bytes(content)
