"""Training: one loop, the same for one process and for many, on a CPU or on GPUs.

`train` is a generator of events: whoever wants to see something draws it from those, and nothing here knows a screen.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from manifests.errors import DatasetError, ModelError, UsageError
from models.actor_config import actor_config
from models.actor_facts import thinker_facts, thinker_flops, train_flops
from models.thinker import identity
from training.batch import Batch, micro_batches
from training.checkpoint import Checkpoints
from training.checkpoint_meta import Identity, Progress, latest, newest, read_meta
from training.contract import wanted_by
from training.data import loader, open_data
from training.ema import Ema
from training.events import Event, Saved, Started, Step
from training.hearing import Hearing, on
from training.initial import first_weights
from training.objective import Draw, Inputs, draw, elements, inputs_of, loss_of, no_inputs
from training.occupied import alone
from training.optimizer import adamw, clip, gradient_norm, learning_rate
from training.parallel import World, build_actor, precision, sync_gradients, world
from training.plan import lanes_of
from training.recipe import Recipe, as_toml
from training.tensor_files import Damaged
from training.validation import Validation
from training.watch import Watch, Watched, card_of, memory_used

NAMED = 16
"""Samples that an error names at most."""


@dataclass(frozen=True)
class Run:
    """What `train` is asked for. folder: where checkpoints go. device: "auto", "cpu", "cuda" or "cuda:N". resume: the
    folder of a run, for its newest checkpoint, or of one checkpoint; None for a new run. stop: asked in every
    step; once it says yes on any rank, all finish it, save and end."""

    recipe: Recipe
    folder: Path
    device: str = "auto"
    resume: Path | None = None
    stop: Callable[[], bool] = lambda: False


def train(run: Run) -> Iterator[Event]:
    """Trains until the recipe's epochs or steps are done, or until told to stop.

    Under torchrun every process calls it and takes every event. Raises UsageError, DatasetError and ModelError; in
    particular ModelError, before the update, for a loss or gradient that is no number, with the batch's name. The
    checkpoints written until then stay.
    """
    recipe = run.recipe
    with (
        world(run.device) as where,
        alone(run.folder, where),
        contextlib.closing(Trainer(run, where)) as trainer,
    ):
        yield trainer.started()
        trainer.timed()
        for batch in trainer.batches():
            yield trainer.update(batch)
            if trainer.stopped:  # whoever stops a run waits for its checkpoint alone
                break
            ended = trainer.ended
            if due(trainer.step, recipe.validate_every, ended):
                yield trainer.validation.validate(trainer.actor, trainer.ema, trainer.step)
            if due(trainer.step, recipe.sample_every, ended):
                sampled = trainer.validation.sample(trainer.actor, trainer.ema, trainer.step)
                if where.rank == 0:
                    yield sampled
            if due(trainer.step, recipe.save_every, ended):
                yield trainer.save()
            trainer.timed()
            if ended:
                break
        yield from trainer.saved()


def due(step: int, every: int, ended: bool) -> bool:
    """Whether it is time: every so many steps and at the end; 0 for never."""
    return every > 0 and (ended or step % every == 0)


class Trainer:
    """All that a run holds. Every rank has one and calls the same methods in the same order.

    step: updates made; cursor: (epoch, step of it) of the next batch; parts: micro-batches of a step, as many on every
    rank; ended: the run is over, done or stopped.
    """

    def __init__(self, run: Run, where: World) -> None:
        self.run, self.recipe, self.where = run, run.recipe, where
        recipe = self.recipe
        self.data = open_data(recipe.datasets, wanted_by(recipe.thinker))
        self.plan = self.data.plan(recipe)
        lanes_of(self.plan, where.rank, where.size)  # refuses what would leave a rank idle, before anything is built
        contract = self.data.contract
        switches = {name: getattr(recipe, name) for name in ("window", "history", "reference", "attention")}
        self.config = actor_config(recipe.preset, contract.hidden or thinker_facts(recipe.thinker).hidden, **switches)
        self.hearing = Hearing(recipe.thinker, where.device)
        resumed = _resumed(run)
        self.actor = build_actor(
            self.config, recipe, where, None if resumed else first_weights(recipe, self._identity())
        )
        self.optimizer = adamw(self.actor, recipe, where.device)
        self.ema = Ema(self.actor, recipe.ema)
        self.parts = math.ceil(math.ceil(recipe.batch / where.size) / recipe.micro_batch)
        self.step, self.cursor = 0, (0, 0)
        self.checkpoints = Checkpoints(run.folder, self._identity(), as_toml(recipe), recipe.keep, self._facts())
        self.damaged, self._saved, self.stopped = 0, 0, False
        self._lost = 0, 0  # (epoch, samples of it that were damaged)
        if resumed:
            self._restore(resumed)
        self.validation = Validation(recipe, where, self.hearing, self.data)
        self.card = card_of(where.device)
        self._began = time.perf_counter()

    def started(self) -> Started:
        """What the run begins with."""
        count = sum(value.numel() for value in self.actor.parameters())
        device = self.card.name if self.card else self.where.device.type
        epoch = self.plan.steps, self.plan.samples
        return Started(self.step, self.steps, *epoch, count, self.where.size, device, self.thinker)

    @property
    def thinker(self) -> str:
        """Identity of whose states the Actor follows: of those that are stored, else of the one that runs."""
        return self.data.contract.thinker or identity(self.recipe.thinker)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.recipe.steps or self.recipe.epochs * self.plan.steps

    @property
    def ended(self) -> bool:
        return self.stopped or self.step >= self.steps

    def batches(self) -> Iterator[Batch]:
        """From the cursor to the end of the run."""
        return loader(self.recipe, self.data, self.where.rank, self.where.size, self.cursor)

    def update(self, batch: Batch) -> Step:
        """One step: forward and backward over the micro-batches, one exchange of gradients, one update.

        The loss is a mean over the numbers of all ranks: their count is exchanged first, and FSDP's averaging of
        gradients over ranks is taken back. Raises ModelError, before anything is changed, when it is no number.
        """
        watch = Watch(self.where.device)
        draws = [self._draw(batch, at) for at in range(len(batch))]
        scale = self.where.size / max(1.0, self.where.total(elements(draws)))
        parts = micro_batches(batch, self.recipe.micro_batch, self.parts)
        thinking = self.hearing.seconds, self.hearing.tokens
        for at, part in enumerate(parts):
            sync_gradients(self.actor, at + 1 == len(parts))
            inputs = self._inputs(part, draws[at * self.recipe.micro_batch :][: len(part)])
            with precision(self.recipe, self.where):
                loss = loss_of(self.actor, inputs)
            (loss.total * scale).backward()
            watch.add(loss)
            watch.counts["computed"] += inputs.levels.numel()
        norm = gradient_norm(self.actor.parameters())
        self._count(watch, batch, thinking)
        found, norm_value = watch.together(self.where), norm.item()
        self._refuse_what_is_no_number(found, norm_value, batch, parts, watch.totals)
        self._refuse_damage(found, batch)
        self.step += 1
        clip(self.actor.parameters(), norm, self.recipe.clip)
        rate = learning_rate(self.recipe, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step)
        self.cursor = batch.epoch, batch.step + 1
        self.stopped = found.counts["stop"] > 0
        return self._told(batch, found, norm_value, rate)

    def _draw(self, batch: Batch, at: int) -> Draw:
        first = self.config.reference == "none"
        shape, chunks = batch.latents.shape[2:], int(batch.chunks[at])
        return draw(self.recipe.seed, batch.epoch, batch.ids[at], chunks, shape, self.recipe.clean_share, first=first)

    def _inputs(self, part: Batch, draws: list[Draw]) -> Inputs:
        device = self.where.device
        if not len(part):
            return no_inputs(part.latents.shape[2:], self.config.states, device)
        speech = on(self.hearing.speech(part), device)
        return inputs_of(part.latents, part.references, draws, speech, device)

    def _count(self, watch: Watch, batch: Batch, thinking: tuple[float, int]) -> None:
        grid = self.data.contract.grid
        chunks = batch.chunks.tolist()
        watch.counts |= {
            "samples": len(batch),
            "chunks": sum(chunks),
            "tokens": sum(chunks) * grid[0] * grid[1],
            "damaged": batch.damaged,
            "flops": train_flops(self.config, chunks, grid)
            + thinker_flops(self.recipe.thinker, self.hearing.tokens - thinking[1]),
            "stop": self.run.stop(),
        }
        watch.times |= {
            "wait_s": batch.wait_s,
            "thinker_s": self.hearing.seconds - thinking[0],
            "memory": memory_used(self.where.device),
        }

    def _refuse_what_is_no_number(
        self, found: Watched, norm: float, batch: Batch, parts: list[Batch], totals: list[Tensor]
    ) -> None:
        if math.isfinite(found.total) and math.isfinite(norm):
            return
        bad = [part for part, total in zip(parts, totals, strict=True) if not math.isfinite(total.item())]
        what = "loss" if not math.isfinite(found.total) else "gradient"
        named = [name for part in (bad if what == "loss" else parts) for name in part.ids]
        places = []
        for rank, ids in enumerate(self.where.gathered(named)):
            if ids:
                more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
                places.append(f"rank {rank}: {', '.join(ids[:NAMED])}{more}")
        raise ModelError(
            f"the {what} is no number in step {self.step + 1} (epoch {batch.epoch}, step {batch.step} of it), "
            f"{'; '.join(places)}; nothing was updated, go on from the last checkpoint with a lower lr or without them"
        )

    def _refuse_damage(self, found: Watched, batch: Batch) -> None:
        """Of all ranks together, in this epoch. Each rank's loader looks at its own samples alone."""
        before = self._lost[1] if self._lost[0] == batch.epoch else 0
        self._lost = batch.epoch, before + int(found.counts["damaged"])
        if self._lost[1] > self.recipe.max_damaged * self.plan.samples:
            notes = [note for notes in self.where.gathered(batch.notes) for note in notes]
            raise DatasetError(
                f"{self._lost[1]} of {self.plan.samples} samples are damaged, more than max_damaged = "
                f"{self.recipe.max_damaged:g} allows{''.join(f'; the last one: {note}' for note in notes[-1:])}"
            )

    def _told(self, batch: Batch, found: Watched, norm: float, rate: float) -> Step:
        self.damaged += int(found.counts["damaged"])
        seconds = time.perf_counter() - self._began
        skipped = self.where.gathered(batch.notes) if found.counts["damaged"] else []
        peak = self.card.flops * self.where.size * seconds if self.card else None
        return Step(
            step=self.step,
            epoch=batch.epoch,
            loss=found.loss,
            by_level=found.by_level,
            by_position=found.by_position,
            grad_norm=norm,
            lr=rate,
            samples=int(found.counts["samples"]),
            chunks=int(found.counts["chunks"]),
            tokens=int(found.counts["tokens"]),
            padding=1 - found.counts["chunks"] / found.counts["computed"],
            damaged=self.damaged,
            seconds=seconds,
            wait_s=found.times["wait_s"],
            thinker_s=found.times["thinker_s"],
            memory=int(found.times["memory"]),
            flops=found.counts["flops"],
            mfu=found.counts["flops"] / peak if peak else None,
            notes=tuple(note for notes in skipped for note in notes),
        )

    def timed(self) -> None:
        """The next step's time begins."""
        self._began = time.perf_counter()

    def save(self) -> Saved:
        """Begins to write a checkpoint beside the training. Raises DatasetError when the one before it failed."""
        began = time.perf_counter()
        path = self.checkpoints.save(Progress(self.step, *self.cursor), self.actor, self.optimizer, self.ema.average)
        self._saved = self.step
        return Saved(self.step, str(path), False, time.perf_counter() - began)

    def saved(self) -> Iterator[Saved]:
        """The last checkpoint, on the disk."""
        if self._saved != self.step:
            yield self.save()
        began = time.perf_counter()
        path = self.checkpoints.wait()
        if path is not None:
            yield Saved(self.step, str(path), True, time.perf_counter() - began)

    def close(self) -> None:
        """Waits until a checkpoint that is being written is on the disk, whatever ended the run."""
        self.checkpoints.wait()

    def _restore(self, path: Path) -> None:
        """Raises UsageError for data in another order: its cursor would mean other samples."""
        now: dict[str, Any] = self._facts()["order"]
        try:
            before = read_meta(path).facts.get("order", {})
        except Damaged:
            before = {}  # loading it says more of that
        for name, value in now.items():
            if before.get(name, value) != value:
                what = "the shards are others" if name == "shards" else f"{name} is {value}, was {before[name]}"
                raise UsageError(
                    f"{path} cannot be gone on from: {what}, so its place in the data means nothing; "
                    f"begin a new run with its weights: --set init={path}"
                )
        found = self.checkpoints.load(path, self.actor, self.optimizer, self.ema.average)
        self.step, self.cursor = found.step, (found.epoch, found.epoch_step)
        self._saved = self.step

    def _identity(self) -> Identity:
        contract = self.data.contract
        codecs = {"video": contract.video, "speech": contract.speech, "text": contract.text}
        return Identity(self.config, codecs, self.thinker)

    def _facts(self) -> dict[str, Any]:
        shards = hashlib.sha256(repr((self.plan.sizes, self.plan.weights)).encode()).hexdigest()[:16]
        order = {"batch": self.plan.batch, "shuffle_buffer": self.plan.buffer, "seed": self.plan.seed, "shards": shards}
        return {"grid": list(self.data.contract.grid), "order": order}


def _resumed(run: Run) -> Path | None:
    """The checkpoint to go on from. Raises UsageError where there is none, or one that nobody asked to go on from."""
    if run.resume is not None:
        return newest(run.resume)
    if latest(run.folder) is not None:
        raise UsageError(f"{run.folder} holds a run already; go on with --resume, or choose another folder")
    return None
