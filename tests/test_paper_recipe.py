"""The paper's recipe from end to end, by the real command, on made weights in the official formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Told, call

from manifests.errors import ModelError, UsageError
from manifests.records import CLIP_STAGES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, read
from manifests.verdicts import profile_content
from models.lock import LOCK
from models.weights import CATALOGUE, ENV
from pipelines import work
from pipelines.recipe import Recipe, build_stages, fingerprints, load_profile, load_profiles, load_recipe
from pipelines.sample import Scene, make_video
from pipelines.verify import verify


@pytest.fixture(scope="module")
def weights(made_weights: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV, str(made_weights))
        yield made_weights


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Store, Told]:
    folder = tmp_path_factory.mktemp("paper")
    make_video(folder / "talk.mp4", [Scene("speech_en_1", 5.2)], size=256)
    arguments = ("curate", folder / "talk.mp4", "-o", folder / "ds", "--recipe", "paper", "--device", "cpu")
    told = call(*arguments, "--exhaustive", "--cluster", "1", "--json")
    assert told.code == 0, told.err
    return Store(folder / "ds"), told


def test_no_stage_fails_and_every_one_is_accounted_for(curated: tuple[Store, Told]) -> None:
    store, _ = curated
    runs = {row["stage"]: row for row in read(store, RUNS_TABLE).to_pylist()}
    assert set(CLIP_STAGES) <= runs.keys()
    failed = {stage: row["error"] for stage, row in runs.items() if row["status"] == "failed"}
    assert not failed
    recipe = load_recipe("paper")
    [clip] = read(store, CLIPS_TABLE).to_pylist()
    assert {stage: clip[f"{stage}_backend"] for stage in CLIP_STAGES} == recipe.backends


def test_the_sample_has_the_papers_shapes(curated: tuple[Store, Told]) -> None:
    store, _ = curated
    [sample] = read(store, SAMPLES_TABLE).to_pylist()
    assert 14 <= sample["chunks"] <= 16  # made weights find some offset, which costs up to 0.6 s
    assert verify(store, quiet=True) == []


def test_the_dataset_records_models_and_licences(curated: tuple[Store, Told]) -> None:
    store, told = curated
    models = {row["name"]: row for row in json.loads(store.read("dataset.json"))["models"]}
    assert models["syncnet"]["stages"] == ["sync"] and len(models["syncnet"]["identity"]) > len("syncnet ")
    assert models["insightface"]["commercial"] is False
    notes = json.loads(told.out)["notes"]
    assert any("not for commercial use" in note and "insightface" in note for note in notes)


def test_a_second_run_measures_nothing(curated: tuple[Store, Told]) -> None:
    store, _ = curated
    before = read(store, RUNS_TABLE).to_pylist()
    told = call("curate", "-o", store.root, "--cluster", "1", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["measured_clips"] == 0
    assert read(store, RUNS_TABLE).to_pylist() == before


def test_without_weights_one_line_names_them_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "talk.mp4", [Scene("speech_en_1", 1.0)], size=128)
    monkeypatch.setenv(ENV, str(tmp_path / "none"))
    told = call("curate", tmp_path / "talk.mp4", "-o", tmp_path / "ds", "--recipe", "paper")
    assert told.code == 1 and "xstreamer models fetch" in told.line() and "syncnet" in told.err
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize("more", ([], ["--cluster", "1"]))
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, weights: Path, more: list[str]
) -> None:
    make_video(tmp_path / "talk.mp4", [Scene("speech_en_1", 1.0)], size=128)
    told = call(
        "curate", tmp_path / "talk.mp4", "-o", tmp_path / "ds", "--recipe", "paper", "--device", "cuda:99", *more
    )
    assert told.code == 1 and "'cuda:99'" in told.line()
    assert not (tmp_path / "ds").exists()


def test_a_worker_that_holds_older_weights_says_so(
    made_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaders keep what they loaded, so files that were replaced since are not what such a worker would run."""
    shutil.copytree(made_weights / "syncnet", tmp_path / "syncnet")
    shutil.copy(made_weights / CATALOGUE, tmp_path)
    monkeypatch.setenv(ENV, str(tmp_path))
    stages = {**load_recipe("bundled").stages, "sync": {"backend": "syncnet"}}

    def task(name: str) -> dict[str, Any]:
        recipe = Recipe(name, {}, stages)
        return {"recipe": json.dumps(recipe.data()), "fingerprints": fingerprints(recipe)}

    work._first_seen.cache_clear()
    try:
        assert set(work._stages(task("one"))) == set(CLIP_STAGES)
        place = tmp_path / "syncnet" / "syncnet_v2.model"
        place.write_bytes(place.read_bytes()[:-1] + b"!")
        (tmp_path / LOCK).unlink()
        with pytest.raises(ModelError, match="holds older weights of syncnet; restart it"):
            work._stages(task("two"))
    finally:
        work._first_seen.cache_clear()


def test_changed_weights_are_another_measurement(made_weights: Path, tmp_path: Path) -> None:
    """A file that is no longer the one that was recorded is refused, not measured with."""
    root = tmp_path / "models"
    shutil.copytree(made_weights, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV, str(root))
        from models.lock import identity

        before = identity(["syncnet"])
        place = root / "syncnet" / "syncnet_v2.model"
        place.write_bytes(place.read_bytes()[:-1] + b"!")
        with pytest.raises(Exception, match="models fetch syncnet"):
            identity(["syncnet"])
        assert before.startswith("syncnet ")


@pytest.mark.parametrize("name", ("pretrain", "sft", "listening"))
def test_shipped_profiles_have_a_bound_for_every_backend_of_the_paper(name: str) -> None:
    [profile] = load_profiles(name, load_recipe("paper"))
    assert all(rule.source for rule in profile.rules)
    assert profile_content(profile)["rules"]


def test_the_papers_bounds() -> None:
    """Appendix A.1: SyncNet over 3.5, for finetuning at least 5.0 and an image quality of at least 70; exactly one
    speaker, no overlays, English and Chinese."""
    backends = load_recipe("paper").backends
    rules = {name: {r.name: r for r in load_profile(name).rules} for name in ("pretrain", "sft")}
    for profile, test, bound in (("pretrain", "above", 3.5), ("sft", "min", 5.0)):
        rule = rules[profile]["sync_confidence"]
        assert (rule.test, rule.bound(backends["sync"])) == (test, bound) and "A.1" in rule.source
    quality = rules["sft"]["quality_score"]
    assert (quality.test, quality.bound(backends["quality"])) == ("min", 70) and "A.1" in quality.source
    assert not any(r.stage == "quality" and r.applies(backends["quality"]) for r in rules["pretrain"].values())
    for found in rules.values():
        assert found["speaker_count"].bound(backends["speakers"]) == 1 and found["speaker_count"].test == "equals"
        assert found["overlay_text"].bound(backends["overlay"]) == 0
        assert found["spoken_language"].bound(backends["transcribe"]) == ["en", "zh"]
        assert found["face_identity"].bound(backends["speakers"]) == 0


def test_importing_the_papers_libraries_reaches_for_no_network() -> None:
    """bitsandbytes, which diffusers imports where it is installed, would fetch code from a hub at import."""
    code = (
        "import socket, sys\n"
        "def refused(*given): raise AssertionError(f'a connection to {given}')\n"
        "socket.socket.connect = socket.socket.connect_ex = refused\n"
        "socket.getaddrinfo = refused\n"
        "import models.ltx_vae, models.thinker\n"
        "import huggingface_hub.constants as hub\n"
        "assert hub.HF_HUB_OFFLINE\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == ""


def test_a_recipe_without_a_choice_of_device_runs_on_the_cpu_and_says_so_of_others() -> None:
    recipe = load_recipe("bundled")
    assert recipe.on("cpu") == recipe.on("auto") == recipe
    with pytest.raises(UsageError, match="leave --device out"):
        recipe.on("cuda")
    with pytest.raises(UsageError, match="must be auto, cpu"):
        recipe.on("gpu")
    moved = load_recipe("paper").on("cuda:1")
    assert {s.device for s in build_stages(moved).values() if hasattr(s, "device")} == {"cuda:1"}
