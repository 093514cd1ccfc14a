"""Two processes train as one does: same losses, same weights, whatever a rank holds; checkpoints go across."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import together
from shards_made import make_shards
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from manifests.errors import DatasetError, ModelError, UsageError
from models.actor import Actor
from models.actor_config import actor_config
from training.occupied import occupied
from training.parallel import World, local, mesh_of, prepare, world
from training.recipe import Dataset, Recipe, load_recipe
from training.trainer import Run, Trainer, train

STEPS = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Five samples in a step of three, so that ranks hold one and two and the second step of an epoch is short."""
    place = make_shards(tmp_path_factory.mktemp("data"), samples=5, chunks=(2, 3, 5), val=2)
    changes = {"batch": 3, "micro_batch": 1, "steps": STEPS, "warmup": 0, "lr": 1e-3, "shuffle_buffer": 2}
    changes |= {"save_every": 2, "keep": 9, "validate_every": 2, "validate_samples": 2, "max_damaged": 0.0}
    changes |= {"sample_every": 4, "sample_steps": 2, "sample_seconds": 1.0, "workers": 0}
    return load_recipe("tiny", {**changes, "datasets": [Dataset(str(place))]})


def trained(recipe: Recipe, folder: Path, resume: Path | None = None) -> dict[str, Any]:
    """What a run tells, and its weights at the end, whole."""
    run = Run(recipe, folder, "cpu", resume)
    with world("cpu") as where, contextlib.closing(Trainer(run, where)) as trainer:
        steps, others = [], []
        for batch in trainer.batches():
            steps.append(trainer.update(batch))
            if trainer.step % recipe.save_every == 0:
                others.append(trainer.validation.validate(trainer.actor, trainer.ema, trainer.step))
                trainer.save()
        made = trainer.validation.sample(trainer.actor, trainer.ema, trainer.step)
        list(trainer.saved())
        options = StateDictOptions(full_state_dict=True)
        weights: dict[str, Any] = get_model_state_dict(trainer.actor, options=options)
        return {
            "loss": [step.loss for step in steps],
            "by_level": [step.by_level for step in steps],
            "norm": [step.grad_norm for step in steps],
            "samples": [step.samples for step in steps],
            "validation": [(each.loss, each.average_loss) for each in others],
            "made": torch.from_numpy(made.latents),
            "weights": {name: value.clone() for name, value in weights.items()},
        }


def alike(one: dict[str, Any], other: dict[str, Any], skip: int = 0) -> None:
    """Raises AssertionError unless both tell the same, from step `skip` of the first on, and end with one Actor."""
    assert one["samples"][skip:] == other["samples"]
    assert one["loss"][skip:] == pytest.approx(other["loss"], rel=1e-5)
    assert one["norm"][skip:] == pytest.approx(other["norm"], rel=1e-4)
    for mine, theirs in zip(one["by_level"][skip:], other["by_level"], strict=True):
        assert [loss is None for loss in mine] == [loss is None for loss in theirs]
        assert [loss or 0 for loss in mine] == pytest.approx([loss or 0 for loss in theirs], rel=1e-4)
    for mine, theirs in zip(one["validation"][skip // 2 :], other["validation"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert (one["made"] - other["made"]).abs().max() < 1e-4
    for name, value in one["weights"].items():
        # Adam divides by the gradient's size: where that is rounding alone, a step may go either way.
        assert (value - other["weights"][name]).abs().max() < 1e-4, name
    assert one["loss"][0] != one["loss"][-1]


def scene(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What both processes do, one thing after another."""
    found = {"two": trained(recipe, folder / "two")}
    found["onward"] = trained(recipe, folder / "onward", folder / "one" / "checkpoints" / "step-00000002")
    found["replicas"] = trained(replace(recipe, replicas=2), folder / "replicas")
    half = replace(recipe, dtype="bfloat16", checkpointing=True, steps=2)
    found["half"] = trained(half, folder / "half")
    found["refused"] = {"poison": poisoned(recipe, folder / "poison"), "uneven": refused_replicas(recipe)}
    found["refused"] |= {
        "damage": damaged(recipe, folder / "damage"),
        "occupied": refused_folder(recipe, folder / "two"),
    }
    return found


def poisoned(recipe: Recipe, folder: Path) -> tuple[str, int, bool]:
    """What a batch says whose latents are no numbers on rank 1; updates made; whether weights are as they were."""
    with world("cpu") as where, contextlib.closing(Trainer(Run(recipe, folder, "cpu"), where)) as trainer:
        batches = trainer.batches()
        trainer.update(next(batches))
        before = [local(value.detach()).clone() for value in trainer.actor.parameters()]
        batch = next(batches)
        if where.rank == 1:
            batch = replace(batch, latents=torch.full_like(batch.latents, torch.inf))
        with pytest.raises(ModelError) as error:
            trainer.update(batch)
        same = all(torch.equal(a, local(b.detach())) for a, b in zip(before, trainer.actor.parameters(), strict=True))
        return f"{error.value} of {batch.ids}", trainer.step, same


def damaged(recipe: Recipe, folder: Path) -> tuple[list[int], str]:
    """Damage found until it was too much, of which no rank has too much of its own; and what is said then."""
    some, found = replace(recipe, max_damaged=0.6, epochs=2, steps=0), list[int]()
    with world("cpu") as where, contextlib.closing(Trainer(Run(some, folder, "cpu"), where)) as trainer:
        with pytest.raises(DatasetError) as error:
            for batch in trainer.batches():
                lost = int(batch.step == 0 or batch.epoch == 1)
                hurt = replace(batch, damaged=lost, notes=(f"note {trainer.step} of rank {where.rank}",) * lost)
                found.append(trainer.update(hurt).damaged)
        return found, str(error.value)


def refused_folder(recipe: Recipe, folder: Path) -> str:
    """Of a folder that rank 0 finds taken."""
    with world("cpu") as where, occupied(folder) if where.rank == 0 else contextlib.nullcontext():
        with pytest.raises(UsageError) as error:
            next(train(Run(recipe, folder, "cpu")))
    return str(error.value)


def refused_replicas(recipe: Recipe) -> str:
    with world("cpu") as where, pytest.raises(UsageError) as error:
        mesh_of(3, where)
    return str(error.value)


@pytest.fixture(scope="module")
def runs(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process told, and what each of two did."""
    folder = tmp_path_factory.mktemp("runs")
    one = trained(recipe, folder / "one")
    ranks = together(2, scene, recipe, folder)
    back = trained(recipe, folder / "back", folder / "two" / "checkpoints" / "step-00000002")
    return {"one": one, "ranks": ranks, "back": back}


def test_two_processes_train_as_one_does(runs: dict[str, Any]) -> None:
    assert sorted(runs["one"]["samples"]) == [2, 2, 3, 3]
    for rank in runs["ranks"]:
        alike(runs["one"], rank["two"])


def test_replicas_train_as_one_process_does(runs: dict[str, Any]) -> None:
    alike(runs["one"], runs["ranks"][0]["replicas"])


def test_a_run_goes_on_from_one_process_with_two(runs: dict[str, Any]) -> None:
    alike(runs["one"], runs["ranks"][1]["onward"], skip=2)


def test_a_run_goes_on_from_two_processes_with_one(runs: dict[str, Any]) -> None:
    alike(runs["one"], runs["back"], skip=2)


def test_bfloat16_is_near_to_float32(runs: dict[str, Any]) -> None:
    half, one = runs["ranks"][0]["half"], runs["one"]
    assert half["loss"] == pytest.approx(one["loss"][:2], rel=0.02)
    assert half["loss"] != pytest.approx(one["loss"][:2], rel=1e-6)
    assert all(value.dtype == torch.float32 for value in half["weights"].values())


def test_a_batch_of_no_numbers_stops_every_rank_before_the_update_and_is_named(runs: dict[str, Any]) -> None:
    told = [rank["refused"]["poison"] for rank in runs["ranks"]]
    for text, step, same in told:
        assert "the loss is no number in step 2 (epoch 0, step 1 of it), rank 1: " in text
        assert "rank 0: " not in text
        assert (step, same) == (1, True)
    at_fault = told[1][0].rpartition(" of ")[2]
    assert all(name in told[0][0] for name in at_fault.strip("(),'").split("', '"))


def test_damage_is_counted_over_all_processes(runs: dict[str, Any]) -> None:
    """Three of five may be damaged in an epoch: two are in the first, four, by its second step, in the second."""
    told = {rank["refused"]["damage"][1] for rank in runs["ranks"]}
    assert [rank["refused"]["damage"][0] for rank in runs["ranks"]] == [[2, 2, 4], [2, 2, 4]]
    assert told == {"4 of 5 samples are damaged, more than max_damaged = 0.6 allows; the last one: note 3 of rank 1"}


def test_a_folder_that_is_taken_is_refused_by_all(runs: dict[str, Any]) -> None:
    assert all("another process trains into" in rank["refused"]["occupied"] for rank in runs["ranks"])


def test_replicas_that_do_not_divide_the_processes_are_refused(runs: dict[str, Any]) -> None:
    assert "replicas = 3 does not divide 2 processes" in runs["ranks"][0]["refused"]["uneven"]


def test_replicas_need_processes() -> None:
    recipe = load_recipe("tiny", {"replicas": 2})
    actor = Actor(actor_config("tiny", states=8))
    with pytest.raises(UsageError, match="needs several processes"):
        prepare(actor, recipe, World(0, 1, torch.device("cpu"), False))
