"""The loop in one process: what it tells, that it learns, that it goes on exactly, and that it stops in time."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from shards_made import make_shards
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from train_runs import damage

from manifests.errors import DatasetError, ModelError, UsageError
from models.actor import Actor, Speech
from models.actor_config import ActorConfig, actor_config
from models.actor_facts import parameters, train_flops
from models.sampler import rollout
from training.checkpoint_meta import latest
from training.contract import wanted_by
from training.data import loader, open_data
from training.ema import RAMP, Ema
from training.events import Event, Sampled, Saved, Started, Step, Validated
from training.hearing import Hearing
from training.optimizer import adamw, learning_rate
from training.parallel import World, prepare, world
from training.recipe import Dataset, Recipe, load_recipe
from training.trainer import Run, Trainer, train
from training.validation import uncompiled

ALONE = World(0, 1, torch.device("cpu"), False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), samples=5, chunks=(2, 3, 5), val=2)


@pytest.fixture(scope="module")
def recipe(shards: Path) -> Recipe:
    changes = {"batch": 3, "steps": 4, "warmup": 2, "lr": 1e-3, "shuffle_buffer": 2, "workers": 0, "max_damaged": 0.0}
    changes |= {"save_every": 2, "keep": 9, "validate_every": 2, "validate_samples": 2, "sample_every": 4}
    changes |= {"sample_steps": 2, "sample_seconds": 0.64, "micro_batch": 3, "cooldown": 0.0}
    return load_recipe("tiny", {**changes, "datasets": [Dataset(str(shards))]})


@pytest.fixture(scope="module")
def told(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A run's folder and all that it told."""
    folder = tmp_path_factory.mktemp("run")
    return folder, list(train(Run(recipe, folder, "cpu")))


@contextlib.contextmanager
def trainer_of(recipe: Recipe, folder: Path, resume: Path | None = None) -> Iterator[Trainer]:
    with world("cpu") as where, contextlib.closing(Trainer(Run(recipe, folder, "cpu", resume), where)) as found:
        yield found


def trained(recipe: Recipe, folder: Path, resume: Path | None = None) -> tuple[list[Step], dict[str, Tensor]]:
    """Every step, and the weights and their averages at the end."""
    with trainer_of(recipe, folder, resume) as trainer:
        steps = [trainer.update(batch) for batch in trainer.batches()]
        averages = {f"average of {name}": value.clone() for name, value in trainer.ema.average.items()}
        return steps, averages | {name: value.detach() for name, value in trainer.actor.named_parameters()}


def losses(steps: list[Step]) -> list[float]:
    return [step.loss for step in steps]


def test_a_run_tells_what_happens_in_order(told: tuple[Path, list[Event]], recipe: Recipe) -> None:
    folder, events = told
    names = [type(event).__name__ for event in events]
    every_second = ["Step", "Step", "Validated"]
    assert names == ["Started", *every_second, "Saved", *every_second, "Sampled", "Saved", "Saved"]
    started, steps = events[0], [event for event in events if isinstance(event, Step)]
    assert isinstance(started, Started)
    assert (started.step, started.steps, started.epoch_steps, started.epoch_samples) == (0, 4, 2, 5)
    assert started.parameters == parameters(actor_config("tiny", 192))
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert [step.epoch for step in steps] == [0, 0, 1, 1]
    assert [step.lr for step in steps] == [5e-4, 1e-3, 1e-3, 1e-3]
    assert [event.whole for event in events if isinstance(event, Saved)] == [False, False, True]
    assert latest(folder) == Path([event for event in events if isinstance(event, Saved)][-1].path)


def test_a_step_counts_what_it_saw(told: tuple[Path, list[Event]]) -> None:
    steps = [event for event in told[1] if isinstance(event, Step)]
    for two in (steps[:2], steps[2:]):
        assert sum(step.samples for step in two) == 5
        assert sum(step.chunks for step in two) == 2 + 3 + 5 + 2 + 3
        assert sum(step.tokens for step in two) == 4 * 15
    flops = train_flops(actor_config("tiny", 192), [2, 3, 5, 2, 3], (2, 2))
    assert sum(step.flops or 0 for step in steps[:2]) == pytest.approx(flops, rel=1e-9)
    for step in steps:
        assert 0 <= step.padding < 1 and step.memory > 1e7 and step.mfu is None and step.damaged == 0
        assert 0 <= step.wait_s < step.seconds and step.thinker_s == 0
        seen = [loss for loss in step.by_level if loss is not None]
        assert min(seen) <= step.loss <= max(seen)
        assert step.by_position[0] == pytest.approx(step.loss) and set(step.by_position[1:]) == {None}


def test_validation_and_sample_are_of_what_is_held_out(told: tuple[Path, list[Event]]) -> None:
    validated = [event for event in told[1] if isinstance(event, Validated)]
    assert [(event.split, event.samples) for event in validated] == [("val", 2), ("val", 2)]
    assert validated[1].loss < validated[0].loss
    assert all(event.average_loss not in (None, event.loss) for event in validated)
    (sampled,) = (event for event in told[1] if isinstance(event, Sampled))
    assert sampled.latents.shape == (2, 128, 2, 2) and sampled.portrait.shape == (128, 2, 2)
    assert np.isfinite(sampled.latents).all() and sampled.split == "val"
    assert sampled.sample_id in sampled.members["json"].decode()


def test_it_learns(tmp_path: Path) -> None:
    """On one sample the loss at levels above a half, where there is little left to see of it, falls by more than half."""
    place = make_shards(tmp_path / "data", samples=1, chunks=(4,), grid=(1, 1))
    changes: dict[str, Any] = {
        "batch": 1,
        "steps": 70,
        "warmup": 5,
        "lr": 2e-3,
        "workers": 0,
        "ema": 0.0,
        "clean_share": 0.1,
    }
    changes |= {"validate_every": 0, "sample_every": 0, "save_every": 0, "datasets": [Dataset(str(place))]}
    high = []
    for step in train(Run(load_recipe("tiny", changes), tmp_path / "run", "cpu")):
        if isinstance(step, Step):
            found = [loss for loss in step.by_level[5:] if loss is not None]
            high += [sum(found) / len(found)] if found else []
    assert np.mean(high[-20:]) < 0.45 * np.mean(high[:4])


def test_the_size_of_micro_batches_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    whole, one = (trained(replace(recipe, micro_batch=size), tmp_path / str(size)) for size in (3, 1))
    assert losses(whole[0]) == pytest.approx(losses(one[0]), rel=1e-5)
    assert [s.grad_norm for s in whole[0]] == pytest.approx([s.grad_norm for s in one[0]], rel=1e-4)
    for name, value in whole[1].items():
        assert (value - one[1][name]).abs().max() < 1e-4, name


def test_activation_checkpointing_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    short = replace(recipe, steps=2)
    plain, checkpointed = (trained(replace(short, checkpointing=on), tmp_path / str(on)) for on in (False, True))
    assert losses(plain[0]) == losses(checkpointed[0])
    assert all(torch.equal(value, checkpointed[1][name]) for name, value in plain[1].items())


def test_blocks_compile_whole_and_not_for_every_length(recipe: Recipe) -> None:
    """Traced without a break, checkpointed inside as the recipes have it; a third length needs no third graph, up to
    the window as beyond it, where heads are wider. What the tracer gives is run as it is: a C++ compiler would take minutes."""
    config = ActorConfig("tiny", 32, 1, heads=4, kv_heads=2, head_dim=16, intermediate=48, states=12, window=4)
    plain, traced = Actor(config), Actor(config)
    plain.init_weights(0)
    nn.init.normal_(plain.head.weight)
    traced.load_state_dict(plain.state_dict())
    prepare(traced, replace(recipe, compile=True, checkpointing=True), ALONE)
    assert all(block._compiled_call_impl is not None for block in traced.blocks)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for block in traced.blocks:
        block.compile(backend=counter, fullgraph=True)
    for chunks in (2, 3, 4, 5, 6, 7):
        speech = Speech(
            torch.randn(2, 4 * chunks, 12), *[torch.arange(4 * chunks).expand(2, -1) // by for by in (26, 1)]
        )
        given = torch.randn(2, chunks, 128, 2, 2), torch.rand(2, chunks), torch.randn(2, 128, 2, 2), speech
        for actor in (plain, traced):
            actor.zero_grad()
            actor(*given).square().mean().backward()
        for one, other in zip(plain.parameters(), traced.parameters(), strict=True):
            assert one.grad is not None and other.grad is not None
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert counter.frame_count <= 4
    with uncompiled(traced):
        assert len(list(rollout(traced, given[2], speech, 5, steps=3))) == 5
    assert counter.frame_count <= 4


def test_a_run_goes_on_exactly(recipe: Recipe, told: tuple[Path, list[Event]], tmp_path: Path) -> None:
    """To the bit: steps, weights and averages of a run that was cut in two are those of one that was not."""
    longer = replace(recipe, steps=6)
    steps, weights = trained(longer, tmp_path / "whole")
    assert losses(steps)[:4] == losses([event for event in told[1] if isinstance(event, Step)])
    torch.manual_seed(99)
    rest, again = trained(longer, tmp_path / "rest", told[0])
    assert [step.step for step in rest] == [5, 6]
    assert losses(rest) == losses(steps)[4:]
    assert [step.lr for step in rest] == [step.lr for step in steps[4:]]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_a_run_that_was_told_to_stop_saves_and_ends(recipe: Recipe, tmp_path: Path) -> None:
    seen: list[Event] = []
    run = Run(replace(recipe, save_every=0), tmp_path, "cpu", stop=lambda: len(seen) > 1)
    for event in train(run):
        seen.append(event)
    assert max(event.step for event in seen if isinstance(event, Step)) == 2
    assert isinstance(seen[-1], Saved) and seen[-1].whole and seen[-1].step == 2
    assert latest(tmp_path) == Path(seen[-1].path)


def test_a_loss_that_is_no_number_stops_before_the_update(recipe: Recipe, tmp_path: Path) -> None:
    with trainer_of(recipe, tmp_path) as trainer:
        batches = trainer.batches()
        trainer.update(next(batches))
        trainer.save()
        batch = next(batches)
        before = {name: value.detach().clone() for name, value in trainer.actor.named_parameters()}
        trainer.recipe = replace(recipe, micro_batch=1)
        trainer.parts = 3
        latents = batch.latents.clone()
        latents[1, 1] = torch.nan
        with pytest.raises(ModelError) as error:
            trainer.update(replace(batch, latents=latents))
        told = str(error.value)
        assert "the loss is no number in step 2 (epoch 0, step 1 of it), rank 0: " in told and "\n" not in told
        assert batch.ids[1] in told and batch.ids[0] not in told
        assert all(torch.equal(value, before[name]) for name, value in trainer.actor.named_parameters())
    assert latest(tmp_path) is not None and str(latest(tmp_path)).endswith("step-00000001")


def test_a_gradient_that_is_no_number_stops_before_the_update(recipe: Recipe, tmp_path: Path) -> None:
    with trainer_of(recipe, tmp_path) as trainer:
        trainer.actor.head.bias.register_hook(lambda gradient: gradient * torch.inf)
        batch = next(trainer.batches())
        before = trainer.actor.head.weight.detach().clone()
        with pytest.raises(ModelError) as error:
            trainer.update(batch)
        assert "the gradient is no number in step 1" in str(error.value)
        assert all(name in str(error.value) for name in batch.ids)
        assert torch.equal(trainer.actor.head.weight, before) and trainer.step == 0


def test_a_thinker_in_the_loop_gives_what_stored_states_give(recipe: Recipe, tmp_path: Path) -> None:
    """Frozen: no gradient, nothing of it in the optimizer."""
    place = make_shards(tmp_path / "bare", samples=5, chunks=(2, 3, 5), val=2, with_states=False)
    bare = replace(recipe, datasets=(Dataset(str(place)),))
    stored, _ = trained(recipe, tmp_path / "stored")
    with trainer_of(bare, tmp_path / "run") as trainer:
        steps = [trainer.update(batch) for batch in trainer.batches()]
        thinker = trainer.hearing._thinker
        assert thinker is not None
        assert not any(value.requires_grad or value.grad is not None for value in thinker.model.parameters())
        held = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
        assert held == {id(value) for value in trainer.actor.parameters()}
        assert trainer.validation.validate(trainer.actor, trainer.ema, 4).samples == 2
    assert losses(steps) == losses(stored)
    assert all(step.thinker_s > 0 for step in steps)
    assert all((with_.flops or 0) > (without.flops or 0) for with_, without in zip(steps, stored, strict=True))


def test_what_a_thinker_says_does_not_depend_on_how_the_actor_computes(tmp_path: Path) -> None:
    """Validation asks it under autocast."""
    place = make_shards(tmp_path, samples=2, chunks=(3,), with_states=False)
    data = open_data([Dataset(str(place))], wanted_by("bundled"))
    (batch,) = loader(load_recipe("tiny", {"epochs": 1, "batch": 2}), data)
    hearing = Hearing("bundled", torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        half = hearing.speech(batch)
    assert torch.equal(half.states, hearing.speech(batch).states) and half.states.any()


def test_half_precision_on_a_cpu(recipe: Recipe, tmp_path: Path) -> None:
    half, weights = trained(replace(recipe, dtype="bfloat16", steps=2), tmp_path / "half")
    full, _ = trained(replace(recipe, steps=2), tmp_path / "full")
    assert losses(half) == pytest.approx(losses(full), rel=0.02) and losses(half) != losses(full)
    assert all(value.dtype == torch.float32 for value in weights.values())


@pytest.mark.parametrize(
    "change", [{"history": "teacher_forcing"}, {"reference": "none"}, {"attention": "token_causal"}]
)
def test_the_papers_ablations_are_switches(recipe: Recipe, change: dict[str, str], tmp_path: Path) -> None:
    short = replace(recipe, steps=1, **change)  # type: ignore[arg-type]
    events = list(train(Run(short, tmp_path, "cpu")))
    assert [type(event) for event in events] == [Started, Step, Validated, Sampled, Saved, Saved]


def test_without_held_out_samples_it_validates_on_those_it_trains_on(recipe: Recipe, tmp_path: Path) -> None:
    place = make_shards(tmp_path / "data", samples=3, chunks=(2,))
    short = replace(recipe, steps=1, datasets=(Dataset(str(place)),))
    events = list(train(Run(short, tmp_path / "run", "cpu")))
    assert [event.split for event in events if isinstance(event, Validated | Sampled)] == ["train", "train"]


def test_a_pretrained_actor_is_where_finetuning_begins(
    recipe: Recipe, told: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    """With the average of its weights, a new optimizer and a new count of steps."""
    with trainer_of(replace(recipe, init=str(told[0])), tmp_path) as trainer:
        found = trainer.validation.validate(trainer.actor, trainer.ema, 0)
        last = [event for event in told[1] if isinstance(event, Validated)][-1]
        assert found.loss == found.average_loss == last.average_loss
        assert trainer.step == 0 and not trainer.optimizer.state


def test_what_cannot_begin_is_refused_in_one_line(
    recipe: Recipe, told: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds a run already; go on with --resume"):
        next(train(Run(recipe, told[0], "cpu")))
    with pytest.raises(UsageError, match="no checkpoint"):
        next(train(Run(recipe, tmp_path, "cpu", resume=tmp_path)))
    with pytest.raises(UsageError, match="goes on from a pretrained Actor; name its run"):
        next(train(Run(replace(recipe, init="checkpoint"), tmp_path, "cpu")))
    with pytest.raises(ModelError) as error:
        next(train(Run(replace(recipe, window=16), tmp_path, "cpu", resume=told[0])))
    assert "window" in str(error.value) and "\n" not in str(error.value)
    for change, said in (({"batch": 2}, "batch is 2, was 3"), ({"seed": 9}, "seed is 9, was 0")):
        with pytest.raises(UsageError, match=f"{said}, so its place in the data means nothing"):
            next(train(Run(replace(recipe, **change), tmp_path, "cpu", resume=told[0])))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the shards are others"):
        twice = (replace(recipe.datasets[0], weight=2.0),)
        next(train(Run(replace(recipe, datasets=twice), tmp_path, "cpu", resume=told[0])))


def test_a_folder_is_one_runs_at_a_time(recipe: Recipe, tmp_path: Path) -> None:
    first = cast(Generator[Event], train(Run(recipe, tmp_path, "cpu")))
    assert isinstance(next(first), Started)
    for asked in (Run(recipe, tmp_path, "cpu"), Run(recipe, tmp_path, "cpu", resume=tmp_path)):
        with pytest.raises(UsageError, match="another process trains into"):
            next(train(asked))
    for event in first:
        if isinstance(event, Step):
            break
    first.close()
    assert isinstance(next(train(Run(recipe, tmp_path, "cpu"))), Started)


def test_damaged_samples_that_are_held_out_are_passed_over(recipe: Recipe, tmp_path: Path) -> None:
    place = make_shards(tmp_path / "data", samples=3, chunks=(2, 4), val=3)
    damage(place, 0, 0, "val")
    short = replace(recipe, steps=2, validate_every=1, validate_samples=3, datasets=(Dataset(str(place)),))
    events = list(train(Run(short, tmp_path / "run", "cpu")))
    first, second = (event for event in events if isinstance(event, Validated))
    assert first.samples == second.samples == 2
    assert len(first.notes) == 1 and "val-000000.tar is damaged" in first.notes[0] and not second.notes
    (sampled,) = (event for event in events if isinstance(event, Sampled))
    assert sampled.split == "val" and sampled.latents.shape[0] == 2
    for sample in (1, 2):
        damage(place, 0, sample, "val")
    with pytest.raises(DatasetError, match="no sample can be read"):
        next(train(Run(short, tmp_path / "none", "cpu")))


def test_a_finished_run_has_nothing_left_to_do(recipe: Recipe, told: tuple[Path, list[Event]], tmp_path: Path) -> None:
    for folder in (told[0], tmp_path):
        assert [type(event) for event in train(Run(recipe, folder, "cpu", resume=told[0]))] == [Started]


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    recipe = load_recipe("tiny", {"weight_decay": 0.1})
    actor = Actor(actor_config("tiny", states=8))
    groups = {group["weight_decay"]: group["params"] for group in adamw(actor, recipe, ALONE.device).param_groups}
    decayed = {id(value) for value in groups[0.1]}
    for name, value in actor.named_parameters():
        spared = "norm" in name or name.endswith("bias") or name.startswith(("level_mlp", "reference_embedding"))
        assert (id(value) in decayed) == (not spared), name


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rising = load_recipe("tiny", {"lr": 1.0, "warmup": 4, "cooldown": 0.0})
    assert [learning_rate(rising, step, 9999) for step in (1, 2, 4, 5, 9999)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    falling = load_recipe("tiny", {"lr": 1.0, "warmup": 0, "cooldown": 0.4})
    assert [learning_rate(falling, step, 10) for step in (1, 7, 8, 9, 10, 11)] == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert (
        learning_rate(load_recipe("tiny", {"lr": 1.0, "warmup": 4}), 3, 3) == 0.75
    )  # a run that is too short rises only


def test_the_average_forgets_as_it_is_told_and_can_be_put_on() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema, wanted = Ema(model, 0.9), 1.0
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update(step)
        decay = min(0.9, (1 + step) / (RAMP + step))
        wanted = decay * wanted + (1 - decay) * step
    assert ema.average["weight"].item() == pytest.approx(wanted, rel=1e-5)
    with ema.applied():
        assert model.weight.item() == pytest.approx(wanted, rel=1e-5)
    assert model.weight.item() == 199.0
    none = Ema(model, 0.0)
    none.update(1)
    with none.applied():
        assert model.weight.item() == 199.0
