"""`xstreamer train` as a user runs it: the run and its folder, going on, the export, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from command import call
from shards_made import make_shards
from train_runs import asked, damage, log_of, steps_of

from pipelines.training.asked import begun
from training.recipe import load_recipe

STEP_FIELDS = {
    "epoch", "loss", "loss_high", "by_level", "by_position", "grad_norm", "lr", "samples", "chunks", "tokens", "padding",
    "damaged", "seconds", "wait_s", "thinker_s", "wait_share", "thinker_share", "samples_per_s", "tokens_per_s",
    "memory_gb", "flops", "mfu",
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A run of six steps, and what its command printed."""

    run: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), samples=8, val=2, chunks=(4, 5))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = tmp_path_factory.mktemp("runs") / "six"
    told = call(*asked(shards, run, "--steps", "6", "--json"))
    assert (told.code, told.err) == (0, "")
    return Trained(run, json.loads(told.out))


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    """A run of one's own that has made six steps."""
    return Path(shutil.copytree(trained.run, tmp_path / "six"))


# -- a run and its folder ------------------------------------------------------------------------------------


def test_a_run_leaves_what_people_look_at(trained: Trained, shards: Path) -> None:
    run, told = trained.run, trained.told
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "checkpoints", "curves.png", "log.jsonl", "recipe.toml", "samples", "tensorboard",
    ]  # fmt: skip
    assert told["done"] and (told["step"], told["steps"]) == (6, 6)
    assert Path(told["checkpoint"]) == run / "checkpoints" / "step-00000006" and Path(told["checkpoint"]).is_dir()
    assert told["film"] == "samples/step-00000006.mp4" and (run / told["film"]).is_file()
    recipe = load_recipe(str(run / "recipe.toml"))
    assert (recipe.steps, recipe.batch, recipe.datasets[0].path) == (6, 4, str(shards))


def test_the_log_has_a_line_a_step_with_every_figure(trained: Trained) -> None:
    rows = log_of(trained.run)
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["kind"] == "started" and rows[0]["steps"] == 6 and rows[0]["thinker"].startswith("bundled ")
    assert [row["step"] for row in rows if row["kind"] == "validated"] == [2, 4, 6]
    assert [row["step"] for row in rows if row["kind"] == "sampled"] == [4, 6]
    for row in steps_of(trained.run):
        assert set(row) >= STEP_FIELDS
        assert len(row["by_level"]) == 10 and row["samples"] == 4 and row["mfu"] is None
        assert row["tokens"] == row["chunks"] * 4 and 4 * 4 <= row["chunks"] <= 4 * 5
        assert row["seconds"] >= row["wait_s"] >= 0 and row["memory_gb"] > 0.1
        known = [loss for loss in row["by_level"][5:] if loss is not None]
        assert row["loss_high"] == pytest.approx(np.mean(known), rel=1e-4)


def test_tensorboard_reads_what_was_written(trained: Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained.run / "tensorboard"))
    board.Reload()
    found = {event.step: event.value for event in board.Scalars("loss/training")}
    assert found == pytest.approx({row["step"]: row["loss"] for row in steps_of(trained.run)}, rel=1e-4)
    assert [event.step for event in board.Scalars("loss/validation")] == [2, 4, 6]
    tags = board.Tags()["scalars"]
    assert {"optimizer/gradient norm", "speed/samples per s", "training loss by level/0.9"} <= set(tags)


def test_the_film_plays_with_its_sound(trained: Trained) -> None:
    """Six steps of training make noise on the left; on the right the real one must be what its latents decode to."""
    chunks = next(row for row in log_of(trained.run) if row["kind"] == "sampled")["chunks"]
    with av.open(str(trained.run / "samples" / "step-00000006.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(trained.run / "samples" / "step-00000006.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    assert len(frames) == chunks * 8 and frames[0].shape == (24 + 256, 128 + 2 * 256, 3)
    assert len(heard) / rate == pytest.approx(chunks * 0.32, abs=0.1) and np.abs(heard).max() > 0.05
    assert sorted(path.name for path in (trained.run / "samples").iterdir()) == [
        "step-00000004.mp4", "step-00000006.mp4",
    ]  # fmt: skip


def test_the_right_half_of_the_film_is_the_sample(trained: Trained, shards: Path) -> None:
    from models.video_codec import Dct3d

    row = next(row for row in log_of(trained.run) if row["kind"] == "sampled")
    with tarfile.open(shards / "val-000000.tar") as tar:
        content = tar.extractfile(f"{row['sample_id']}.latents.npy")
        assert row["split"] == "val" and content is not None
        real = Dct3d().decode(np.load(io.BytesIO(content.read())))[1 + 8]
    with av.open(str(trained.run / "samples" / "step-00000006.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][8]
    right = shown[24:, 128 + 256 :].reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.corrcoef(right.ravel(), real.ravel())[0, 1] > 0.95


def test_curves_are_a_picture(trained: Trained) -> None:
    import cv2

    picture = cv2.imread(str(trained.run / "curves.png"))
    assert picture.shape == (1100, 1300, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_run_is_told_to_people(shards: Path, tmp_path: Path) -> None:
    loud = [part for part in asked(shards, tmp_path / "r", "--steps", "1", sample_every=0) if part != "--quiet"]
    told = call(*loud)
    assert told.code == 0
    assert "1 of 1 steps" in told.out and f"xstreamer export-actor {tmp_path / 'r'}" in told.out
    assert "recipe tiny" in told.err and "one process on cpu" in told.err and "1/1 steps" in told.err


# -- going on ------------------------------------------------------------------------------------------------


def test_a_run_goes_on_and_its_log_has_every_step_once(copied: Path, trained: Trained, shards: Path) -> None:
    """A killed run has logged steps after its checkpoint, and half a line."""
    shutil.rmtree(copied / "checkpoints" / "step-00000006")
    with (copied / "log.jsonl").open("a") as log:
        log.write('{"kind": "step", "step": 7, "lo')
    told = call("train", "-o", copied, "--resume", "--steps", "8", "--device", "cpu", "--quiet", "--json")
    assert (told.code, told.err) == (0, "")
    assert [row["step"] for row in steps_of(copied)] == [1, 2, 3, 4, 5, 6, 7, 8]
    again, before = steps_of(copied)[4:6], steps_of(trained.run)[4:6]
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in before], rel=1e-5)
    assert [row["step"] for row in log_of(copied) if row["kind"] == "started"] == [0, 4]
    assert not list(copied.glob(".tmp-*"))
    assert load_recipe(str(copied / "recipe.toml")).datasets[0].path == str(shards)


def test_a_run_goes_on_from_the_checkpoint_named(copied: Path) -> None:
    place = copied / "checkpoints" / "step-00000004"
    told = call("train", "--resume", place, "--steps", "5", "--device", "cpu", "--quiet", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["run"] == str(copied)
    assert [row["step"] for row in log_of(copied) if row["kind"] == "started"] == [0, 4]


def test_a_run_without_a_checkpoint_begins(shards: Path, tmp_path: Path) -> None:
    told = call(*asked(shards, tmp_path / "r", "--resume", "--steps", "1", sample_every=0))
    assert told.code == 0 and "begins at step 0" in told.err


def test_a_run_that_is_there_is_not_begun_again(copied: Path, shards: Path) -> None:
    before = (copied / "log.jsonl").read_bytes()
    line = call(*asked(shards, copied)).line()
    assert "--resume" in line and f"-o {copied}-2" in line
    assert (copied / "log.jsonl").read_bytes() == before


# -- what it refuses -----------------------------------------------------------------------------------------


@pytest.fixture
def broken(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def refused(shards: Path, run: Path, *more: str | Path, **settings: Any) -> str:
    """The line of a `train` that must write nothing."""
    told = call(*asked(shards, run, *more, **settings))
    assert told.code in (1, 2)
    return told.line()


def made(folder: Path, facts: Mapping[str, Any]) -> Path:
    return make_shards(folder / "other", samples=2, chunks=(3,), with_states=False, facts=facts)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"codecs": {"video": "dct3d 0123456789abcdef", "speech": "fsq_mel x", "text": "whisper_bpe x"}}, "codec"),
        ({"codecs": {"video": "h264 x", "speech": "glm_4_voice 0123", "text": "glm_4_bpe x"}}, "codec"),
        ({"fps": 30}, "clock"),
        ({"chunk_frames": 4}, "clock"),
    ],
)
def test_shards_of_another_codec_or_clock(facts: Mapping[str, Any], says: str, tmp_path: Path) -> None:
    line = refused(made(tmp_path, facts), tmp_path / "r")
    assert (says in line and "encode again" in line) or "curate it again" in line
    assert not (tmp_path / "r").exists()


def test_a_corrupt_tar(broken: Path, tmp_path: Path) -> None:
    for shard in (0, 1):
        for sample in range(4):
            damage(broken, shard, sample)
    line = refused(broken, tmp_path / "r")
    assert "train-000000.tar" in line and "pack again" in line and not (tmp_path / "r").exists()


def test_a_tar_that_is_none(broken: Path, tmp_path: Path) -> None:
    for path in broken.glob("train-*.tar"):
        path.write_bytes(b"no tar at all, " * (path.stat().st_size // 15 + 1))
        path.write_bytes(path.read_bytes()[: json_size(broken, path.name)])
    assert "train-00000" in refused(broken, tmp_path / "r")


def json_size(folder: Path, name: str) -> int:
    listed = json.loads((folder / "index.json").read_text())["shardlist"]
    return int(next(entry["filesize"] for entry in listed if entry["url"] == name))


def test_a_hash_that_is_wrong(broken: Path, tmp_path: Path) -> None:
    damage(broken, 1, 0)
    line = refused(broken, tmp_path / "r", "--verify-hashes")
    assert "train-000001.tar" in line and "sha256" in line and not (tmp_path / "r").exists()


def test_good_hashes_pass(shards: Path, tmp_path: Path) -> None:
    told = call(*asked(shards, tmp_path / "r", "--steps", "1", "--verify-hashes", sample_every=0, validate_every=0))
    assert (told.code, told.err) == (0, "")


def test_an_empty_dataset(tmp_path: Path) -> None:
    line = refused(make_shards(tmp_path / "none", samples=0), tmp_path / "r")
    assert "no samples" in line and not (tmp_path / "r").exists()


def test_a_checkpoint_of_another_preset(copied: Path) -> None:
    line = call("train", "-o", copied, "--resume", "--set", "preset=small", "--device", "cpu", "--quiet").line()
    assert "preset is tiny" in line and "small" in line
    assert load_recipe(str(copied / "recipe.toml")).preset == "tiny"  # the run can still go on
    told = call("train", "-o", copied, "--resume", "--steps", "7", "--device", "cpu", "--quiet", "--json")
    assert told.code == 0 and json.loads(told.out)["step"] == 7


def test_less_than_was_done_is_refused(copied: Path) -> None:
    line = call("train", "-o", copied, "--resume", "--steps", "5", "--device", "cpu", "--quiet").line()
    assert "beyond 5 steps" in line and "7 or more" in line


def test_a_run_goes_on_from_any_folder(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    told = call(*asked(Path(), tmp_path / "r", "--steps", "1", sample_every=0, validate_every=0, save_every=1))
    assert told.code == 0, told.err
    monkeypatch.chdir(tmp_path)
    told = call("train", "-o", "r", "--resume", "--steps", "2", "--device", "cpu")
    assert told.code == 0 and "goes on from step 1" in told.err
    told = call("train", "-o", "r", "--resume", "--device", "cpu", "--quiet", "--json")  # nothing is left to do
    assert told.code == 0 and json.loads(told.out)["checkpoint"] == "r/checkpoints/step-00000002"


def test_a_damaged_sample_is_counted_and_skipped(broken: Path, tmp_path: Path) -> None:
    damage(broken, 0, 1)
    told = call(*asked(broken, tmp_path / "r", "--steps", "2", sample_every=0, validate_every=0, max_damaged=0.5))
    assert told.code == 0
    assert told.err.count("\n") == 1 and "skipped: sample" in told.err and "latents.npy is no .npy file" in told.err
    rows = steps_of(tmp_path / "r")
    assert [len(row["notes"]) for row in rows].count(1) == 1
    assert rows[-1]["damaged"] == 1 and sum(row["samples"] for row in rows) == 7


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--recipe", "tinny"], "no recipe 'tinny'"),
        (["--set", "learning_rate=1"], "did you mean"),
        (["--set", "lr"], "FIELD=VALUE"),
        (["--set", "preset=huge"], "choose from tiny"),
        (["--set", "replicas=2"], "torchrun"),
        (["--weight", "1", "--weight", "2"], "--weight is given 2 times for 1"),
        (["--weight", "-1"], "above 0"),
        (["--profile", "nothing"], "index.json"),
        (["--resume", "nowhere"], "holds no checkpoint"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "quantum"], "must be auto, cpu, cuda"),
        (["-o", ""], "-o is empty"),
        (["-o", "s3://bucket/run"], "not a URL"),
        (["--set", "init=checkpoint"], "--set init=PATH"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(more: list[str], says: str, shards: Path, tmp_path: Path) -> None:
    """Once it is put right, the same command with the same folder may be given."""
    line = refused(shards, tmp_path / "r", *more)
    assert says in line and not begun(tmp_path / "r")


def test_no_recipe_and_no_shards_are_asked_for(shards: Path, tmp_path: Path) -> None:
    assert "--recipe" in call("train", shards, "-o", tmp_path / "r").line()
    assert "DATASET/shards/PROFILE" in call("train", "--recipe", "tiny", "-o", tmp_path / "r").line()
    assert "-o RUN" in call("train", "--resume").line()


def test_a_folder_of_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "something else" in refused(shards, tmp_path, "--resume")
    assert "is there already" in refused(shards, tmp_path)
    assert "is a file" in refused(shards, tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_dataset_by_its_profile_and_its_weight(shards: Path, tmp_path: Path) -> None:
    dataset = shards.parent.parent
    told = call(
        *asked(f"{dataset}=0.5", tmp_path / "r", "--profile", "pretrain", "--steps", "1", sample_every=0, save_every=0)
    )
    assert told.code == 0, told.err
    recipe = load_recipe(str(tmp_path / "r" / "recipe.toml"))
    assert [(d.path, d.profile, d.weight) for d in recipe.datasets] == [(str(dataset), "pretrain", 0.5)]
    assert log_of(tmp_path / "r")[0]["epoch_samples"] == 4


# -- the Actor, and the plan ---------------------------------------------------------------------------------


def test_a_run_is_exported_and_says_what_it_is(trained: Trained, tmp_path: Path) -> None:
    from models.actor_weights import load_actor

    told = call("export-actor", trained.run, "-o", tmp_path / "actor", "--json")
    found = json.loads(told.out)
    assert told.code == 0 and (found["step"], found["averaged"], found["dtype"]) == (6, True, "float32")
    actor, facts = load_actor(tmp_path / "actor")
    assert facts.step == 6 and sum(value.numel() for value in actor.parameters()) * 4 <= facts.size
    told = call(
        "export-actor", trained.run / "checkpoints" / "step-00000004", "-o", tmp_path / "last", "--weights", "last"
    )
    assert told.code == 0 and "last weights of step 4" in told.out
    assert (tmp_path / "last" / "actor.safetensors").read_bytes() != (
        tmp_path / "actor" / "actor.safetensors"
    ).read_bytes()


def test_an_export_refuses_what_is_no_run(tmp_path: Path) -> None:
    assert "holds no checkpoint" in call("export-actor", tmp_path).line()
    assert "-o is empty" in call("export-actor", tmp_path, "-o", " ").line()


def test_a_plan_trains_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = call("train", shards, "--recipe", "tiny", "--plan", "--gpus", "1", "--json")
    found = json.loads(told.out)
    assert told.code == 0 and found["steps"] == load_recipe("tiny").steps and found["corpus"]["samples"] == 8
    assert list(tmp_path.iterdir()) == []
    told = call("train", "--recipe", "pretrain", "--plan")
    assert told.code == 0 and "256 x A100" in told.out
    assert "unknown GPU" in call("train", "--recipe", "pretrain", "--plan", "--gpu", "abacus").line()
