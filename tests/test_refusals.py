"""Whatever cannot be done is one line that names the thing and the next move, and changes nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import light
import pytest
from command import EVIL, Mixed, asked, call, curated, made_bench
from test_scenes import scenes_movie

from manifests.records import FORMAT_VERSION
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, read
from pipelines import cluster
from pipelines.verify import verify


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
        (f'{{"format_version": {FORMAT_VERSION}}}', "is damaged"),
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
    assert [p.name for p in (tmp_path / "ds").iterdir()] == [".lock"]  # nothing half written


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
