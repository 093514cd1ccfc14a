"""What a run is measured by while it goes: fixed samples, fixed noise, no gradient; and one sample rolled out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from manifests.errors import DatasetError
from models.actor import Actor, Speech
from models.clock import CHUNK_SECONDS
from models.sampler import rollout
from training.batch import Batch, collate
from training.contract import Sample, decoded
from training.data import Data, validation_batches
from training.ema import Ema
from training.events import Sampled, Validated
from training.hearing import Hearing, on
from training.objective import Inputs, fixed_draw, inputs_of, loss_of, no_inputs
from training.parallel import World, precision, root_gathered
from training.reading import Damaged
from training.recipe import Recipe
from training.samples import whole_sample
from training.watch import Watch, Watched

LOOKED_AT = 16
"""Samples among which one is looked for that is long enough to be shown."""


class Validation:
    """Of this rank: its share of the first samples that are held out, and the sample that all ranks roll out together.

    split: "val", or "train" where the shards hold nothing back. parts: this rank's samples in micro-batches, as many on
    every rank, some perhaps empty. shown: (batch of one sample, its members as stored), the first that lasts
    `sample_seconds`, else the longest. Raises DatasetError.
    """

    def __init__(self, recipe: Recipe, where: World, hearing: Hearing, data: Data) -> None:
        self.recipe, self.where, self.hearing = recipe, where, hearing
        self.split = "val" if data.validation_samples else "train"
        if self.split == "train":
            data = replace(data, listings=tuple(replace(each, val=each.train) for each in data.listings))
        wanted = recipe.validate_samples if recipe.validate_every else 0
        self.parts = list(validation_batches(data, wanted, recipe.micro_batch, where.rank, where.size))
        self.shown = shown(data, recipe.sample_seconds) if recipe.sample_every else None
        self._heard: list[Speech | None] = []
        self._untold: tuple[str, ...] | None = tuple(note for part in self.parts for note in part.notes)

    def validate(self, actor: Actor, ema: Ema, step: int) -> Validated:
        """The loss with the weights and with their average. All ranks take part."""
        began = time.perf_counter()
        plain = self._watched(actor)
        average = None
        if ema.decay:
            with ema.applied():
                average = self._watched(actor)
        return Validated(
            step=step,
            loss=plain.loss,
            by_level=plain.by_level,
            average_loss=average.loss if average else None,
            average_by_level=average.by_level if average else None,
            split=self.split,
            samples=int(plain.counts["samples"]),
            seconds=time.perf_counter() - began,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """What is damaged among the fixed samples, on any rank; told with the first validation."""
        if self._untold is None:
            return ()
        found, self._untold = self.where.gathered(self._untold), None
        return tuple(dict.fromkeys(note for notes in found for note in notes))

    def sample(self, actor: Actor, ema: Ema, step: int) -> Sampled:
        """The shown sample, from noise, with the average of the weights. All ranks take part."""
        assert self.shown is not None
        began, (batch, members) = time.perf_counter(), self.shown
        device = self.where.device
        chunks = min(int(batch.chunks[0]), max(1, round(self.recipe.sample_seconds / CHUNK_SECONDS)))
        portrait = batch.latents[:, 0].to(device, torch.float32)
        speech = on(self.hearing.speech(batch), device)
        with ema.applied(), root_gathered(actor), precision(self.recipe, self.where), uncompiled(actor):
            made = list(rollout(actor, portrait, speech, chunks, steps=self.recipe.sample_steps, seed=self.recipe.seed))
        latents = torch.stack(made, 1)[0].float().cpu().numpy()
        return Sampled(
            step=step,
            latents=latents,
            portrait=portrait[0].cpu().numpy(),
            sample_id=batch.ids[0],
            members=members,
            split=self.split,
            seconds=time.perf_counter() - began,
        )

    @torch.no_grad()
    def _watched(self, actor: Actor) -> Watched:
        watch = Watch(self.where.device)
        with root_gathered(actor), precision(self.recipe, self.where):
            for inputs in self._inputs(actor):
                watch.add(loss_of(actor, inputs))
        watch.counts["samples"] = sum(map(len, self.parts))
        return watch.together(self.where)

    def _inputs(self, actor: Actor) -> Iterator[Inputs]:
        device = self.where.device
        for at, part in enumerate(self.parts):
            if len(self._heard) <= at:
                self._heard.append(self.hearing.speech(part) if len(part) else None)
            heard, shape = self._heard[at], part.latents.shape[2:]
            if heard is None:
                yield no_inputs(shape, actor.config.states, device)
                continue
            draws = [
                fixed_draw(self.recipe.seed, name, int(chunks), shape)
                for name, chunks in zip(part.ids, part.chunks, strict=True)
            ]
            yield inputs_of(part.latents, part.references, draws, on(heard, device), device)


def shown(data: Data, seconds: float) -> tuple[Batch, Mapping[str, bytes]]:
    """(batch of one, members) of the first sample held out that lasts `seconds`, else of the longest of LOOKED_AT.

    Damaged ones are passed over. Raises DatasetError where all of them are.
    """
    listing = next(each for each in data.listings if sum(shard.nsamples for shard in each.val))
    best: tuple[Sample, Mapping[str, bytes]] | None = None
    fault = ""
    for number in range(min(LOOKED_AT, sum(shard.nsamples for shard in listing.val))):
        try:
            key, members = whole_sample(listing, "val", number)
            sample = decoded(key, members, data.contract, f"sample {key} in {listing.place}")
        except Damaged as error:
            fault = fault or str(error)
            continue
        if best is None or sample.chunks > best[0].chunks:
            best = sample, members
        if best[0].chunks * CHUNK_SECONDS >= seconds:
            break
    if best is None:
        raise DatasetError(f"no sample can be shown: {fault}; copy the shards again or pack again")
    return collate([best[0]], data.contract.grid, data.contract.hidden), best[1]


@contextmanager
def uncompiled(actor: Actor) -> Iterator[None]:
    """Dense masks and plain blocks for a rollout, whose passes are small and of many shapes: all would be compiled, one
    by one."""
    held, actor.flex = actor.flex, False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        actor.flex = held
