"""Data of a run: datasets opened and checked before the first step, and the batches of a rank, in order.

Batches are built ahead by threads: reading and copying release the interpreter's lock, and nothing has to cross from one
process to another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from manifests.errors import DatasetError
from training.batch import Batch, collate
from training.contract import Contract, Wanted, agreed
from training.index import Listing, Named, listed, verify
from training.plan import Plan, Span, lanes_of, passes
from training.reading import Damaged, Handles
from training.samples import KEPT, Reader, Slot, first_contract

AHEAD = 2
"""Batches built ahead a worker."""


class Reading(Protocol):
    """What a recipe says about data. epochs or steps: how long the run is, the other 0; batch: samples of a global
    step; shuffle_buffer: samples a lane sorts by length at a time; workers: threads that build batches, 0 for none;
    max_damaged: share of an epoch's samples that may be damaged."""

    @property
    def seed(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def shuffle_buffer(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def max_damaged(self) -> float: ...


@dataclass(frozen=True)
class Data:
    """Datasets that go together."""

    listings: tuple[Listing, ...]
    contract: Contract

    def plan(self, recipe: Reading) -> Plan:
        """The order of their samples under `recipe`. Raises DatasetError for one that would never be read."""
        sizes = tuple(tuple(shard.nsamples for shard in listing.train) for listing in self.listings)
        weights = tuple(listing.weight for listing in self.listings)
        for listing in self.listings:
            if listing.samples and not sum(passes(listing.samples, listing.weight)):
                raise DatasetError(
                    f"{listing.place}: weight {listing.weight:g} of {listing.samples} samples is none; raise the weight"
                )
        return Plan(sizes, weights, recipe.batch, recipe.shuffle_buffer, recipe.seed)

    @property
    def validation_samples(self) -> int:
        """Samples held out, of all datasets."""
        return sum(shard.nsamples for listing in self.listings for shard in listing.val)


def open_data(
    datasets: Sequence[Named],
    wanted: Wanted,
    hashes: bool = False,
    read: Callable[[int], None] = lambda size: None,
) -> Data:
    """The datasets, checked as far as can be before the first step: indexes, sizes, the first sample of each.

    hashes: read every shard and compare its SHA-256 first; read: told the bytes of each block. Raises DatasetError: one
    that is empty, missing, damaged, of other codecs, another clock or another Thinker, or unlike the others.
    """
    if not datasets:
        raise DatasetError("no dataset to train on; name the folder of a profile's shards")
    listings = tuple(listed(dataset) for dataset in datasets)
    if hashes:
        verify(listings, read)
    handles = Handles()
    contracts = {}
    for at, listing in enumerate(listings):
        for split in (listing.train, listing.val):
            if any(shard.nsamples for shard in split):
                contracts[f"{split[0].place} ({at + 1})"] = first_contract(split, handles, wanted)
    return Data(listings, agreed(contracts))


class Inline(Executor):
    """Does at once what it is given; whoever waits has done the work."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def loader(
    recipe: Reading, data: Data, rank: int = 0, world: int = 1, start: tuple[int, int] = (0, 0)
) -> Generator[Batch, None, None]:
    """The batches of `rank`, from step `start` (epoch, step of it) to the end of the run.

    The same on every run; the samples of a step, over all ranks, are the same for any `world`. Raises DatasetError
    when more than `max_damaged` of an epoch's samples are damaged on this rank alone or a sample is foreign,
    UsageError when a rank has nothing to do. Closing it, or an error, ends its threads.
    """
    plan = data.plan(recipe)
    lanes = lanes_of(plan, rank, world)
    reader = Reader([listing.train for listing in data.listings], data.contract, KEPT + 2 * len(lanes))
    pool = ThreadPoolExecutor(recipe.workers, "xstreamer-data") if recipe.workers else Inline()
    told, damaged, epoch = set[str](), 0, start[0]
    try:
        for batch in _timed(_Queue(recipe, plan, reader, lanes, data.contract, pool), start):
            damaged = batch.damaged + (damaged if batch.epoch == epoch else 0)
            epoch = batch.epoch
            if damaged > recipe.max_damaged * plan.samples:
                raise DatasetError(
                    f"{damaged} of {plan.samples} samples are damaged, more than max_damaged = {recipe.max_damaged:g} "
                    f"allows; the last one: {batch.notes[-1]}"
                )
            notes = tuple(note for note in dict.fromkeys(batch.notes) if note not in told)
            told.update(notes)
            yield replace(batch, notes=notes)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Queue:
    """Work of a rank in the order in which it is needed: rounds are scanned while the round before them is read."""

    recipe: Reading
    plan: Plan
    reader: Reader
    lanes: range
    contract: Contract
    pool: Executor
    scans: dict[tuple[int, int], list[Future[list[Slot]]]] = field(default_factory=dict)

    def submitted(self, start: tuple[int, int]) -> Iterator[Future[Batch]]:
        """Every batch from `start` on, submitted as it is taken."""
        for epoch, step in self.plan.cursors(start, self.recipe.epochs, self.recipe.steps):
            number, at = self.plan.round_of(step)
            scans = self._scanned(epoch, number, len(self.lanes))
            place = self.plan.ranks(epoch, number)[at]
            yield self.pool.submit(self._build, scans, place, epoch, step)
            if self.recipe.workers:
                self._look_ahead(epoch, number, at)
            if at + 1 == self.plan.round_steps(number):
                del self.scans[epoch, number]

    def _scanned(self, epoch: int, number: int, count: int) -> list[Future[list[Slot]]]:
        """Scans of the first `count` lanes of a round, submitted where they are not yet."""
        found = self.scans.setdefault((epoch, number), [])
        buffer = self.plan.buffer
        for lane in self.lanes[len(found) : count]:
            spans = self.plan.lane(epoch, lane, number * buffer, buffer)
            found.append(self.pool.submit(self.reader.scan, spans))
        return found

    def _look_ahead(self, epoch: int, number: int, at: int) -> None:
        """Submits some of the next round's scans, so that all are by the end of this one."""
        following = (epoch, (number + 1) * self.plan.buffer)
        for ahead, step in self.plan.cursors(following, self.recipe.epochs, self.recipe.steps):
            share = (at + 1) * len(self.lanes) // self.plan.round_steps(number)
            self._scanned(ahead, self.plan.round_of(step)[0], share)
            return

    def _build(self, scans: Sequence[Future[list[Slot]]], place: int, epoch: int, step: int) -> Batch:
        """One step's samples of this rank: of each lane the one that is `place`-th by length in its round."""
        rounds = [scan.result() for scan in scans]
        slots = [slots[place] for slots in rounds if place < len(slots)]
        return replace(_batch(self.reader, slots, self.contract), epoch=epoch, step=step)


def _batch(reader: Reader, slots: Sequence[Slot], contract: Contract) -> Batch:
    """Of the samples that can be read; the others are counted and noted."""
    samples, notes = [], []
    for slot in slots:
        try:
            samples.append(reader.sample(slot))
        except Damaged as error:
            notes.append(str(error))
    return replace(collate(samples, contract.grid, contract.hidden), damaged=len(notes), notes=tuple(notes))


def _timed(queue: _Queue, start: tuple[int, int]) -> Iterator[Batch]:
    """Batches in order, a bounded number of them ahead, each with the time that was spent waiting for it."""
    waiting: deque[Future[Batch]] = deque()
    depth = AHEAD * queue.recipe.workers
    coming = queue.submitted(start)
    while True:
        began = time.perf_counter()
        while len(waiting) <= depth:
            following = next(coming, None)
            if following is None:
                break
            waiting.append(following)
        if not waiting:
            return
        batch = waiting.popleft().result()
        yield replace(batch, wait_s=time.perf_counter() - began)


def validation_batches(data: Data, count: int, size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The first `count` samples that are held out, the same each time, in batches of at most `size` of like length.

    All ranks take equally many batches, the last perhaps empty. Damaged ones are left out and noted. Raises
    DatasetError.
    """
    shards = [listing.val for listing in data.listings]
    reader = Reader(shards, data.contract)
    spans = [
        Span(dataset, number, at, 1, 0)
        for dataset, split in enumerate(shards)
        for number, shard in enumerate(split)
        for at in range(min(shard.nsamples, count))
    ]
    spans = sorted(spans, key=lambda span: (span.shard, span.first, span.dataset))[:count]
    slots = reader.scan(spans)
    for at in range(0, -(-len(slots) // world), size):
        yield _batch(reader, slots[rank::world][at : at + size], data.contract)
