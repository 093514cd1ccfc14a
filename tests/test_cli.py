"""The command as a user meets it: what it says, in which form, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import Mixed, asked, call, curated, made_bench, start

from pipelines import cli
from pipelines.export import write_csv

COMMANDS = ("curate", "judge", "pack", "export", "verify", "demo")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with made_bench(tmp_path_factory.mktemp("bench")) as folder:
        yield folder


@pytest.fixture(scope="module")
def mixed(bench: Path) -> Mixed:
    return curated(bench)


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
