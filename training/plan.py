"""The order of training: which sample goes into which step, a pure function of the shard index and a seed.

A global step takes one sample from each of `batch` lanes. An epoch's samples are laid out as a track: the pieces of all
shards, shuffled; a lane is a contiguous span of it, and a rank serves a contiguous range of lanes. So the global
batch of a step does not depend on the number of ranks, every sample comes exactly once an epoch, and all ranks take
equally many steps: lanes differ by one sample at most, whose slot is then empty.

Batches are of like length: a lane reads a round of samples, sorts it by length, and in a round all lanes give the
sample of the same rank, ranks in an order of the seed's. A cursor is (epoch, step), nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import accumulate, pairwise

from manifests.errors import DatasetError, UsageError

PIECES = 8
"""Pieces of shards a lane at least, so that few shards mix too; many shards stay whole, to be read from end to end."""


@dataclass(frozen=True)
class Span:
    """Samples first ... first + count - 1 of a shard (its place in the index of its dataset). turn: which pass of the
    epoch over the dataset, from 0."""

    dataset: int
    shard: int
    first: int
    count: int
    turn: int


@dataclass(frozen=True)
class Plan:
    """sizes: samples of each shard of each dataset. weights: passes an epoch over each dataset; 0.5: the half that
    comes first in that epoch's order. batch: samples of a global step. buffer: samples a lane sorts at a time.

    Raises DatasetError when there is no sample at all, UsageError for weights or numbers that cannot be.
    """

    sizes: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    batch: int
    buffer: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.buffer < 1:
            raise UsageError(f"batch ({self.batch}) and shuffle_buffer ({self.buffer}) must be 1 or more")
        if len(self.sizes) != len(self.weights) or any(not 0 < weight < float("inf") for weight in self.weights):
            raise UsageError(f"every dataset needs a weight above 0, not {list(self.weights)}")
        if not self.samples:
            raise DatasetError("there is no sample to train on; pack a profile that keeps some, or raise the weight")

    @cached_property
    def samples(self) -> int:
        """An epoch's."""
        return sum(sum(passes(sum(sizes), weight)) for sizes, weight in zip(self.sizes, self.weights, strict=True))

    @property
    def lanes(self) -> int:
        """`batch`, or one a sample where an epoch has fewer."""
        return min(self.batch, self.samples)

    @property
    def steps(self) -> int:
        """An epoch's, the same for every epoch and rank."""
        return -(-self.samples // self.lanes)

    def lane_start(self, lane: int) -> int:
        """Where `lane` begins on the track; the one after the last "begins" at its end."""
        return lane * self.samples // self.lanes

    def lane(self, epoch: int, lane: int, first: int = 0, count: int | None = None) -> list[Span]:
        """Samples first ... first + count - 1 (None: to its end) of a lane, in the track's order."""
        begin, end = self.lane_start(lane) + first, self.lane_start(lane + 1)
        if count is not None:
            end = min(end, begin + count)
        spans, ends = _track(self, epoch)
        found = []
        at = bisect_right(ends, begin)
        while begin < end:
            span, stop = spans[at], min(end, ends[at])
            skipped = begin - (ends[at] - span.count)
            found.append(Span(span.dataset, span.shard, span.first + skipped, stop - begin, span.turn))
            begin, at = stop, at + 1
        return found

    def round_of(self, step: int) -> tuple[int, int]:
        """(round, place in it) of a step of an epoch."""
        return divmod(step, self.buffer)

    def round_steps(self, number: int) -> int:
        """Steps of a round; the last one of an epoch may be short."""
        return min(self.buffer, self.steps - number * self.buffer)

    def ranks(self, epoch: int, number: int) -> list[int]:
        """For each step of a round the place, by length, of the sample that every lane gives in it.

        A lane that is a sample short lacks the last place of the last round.
        """
        return shuffled(range(self.round_steps(number)), f"{self.seed} {epoch} round {number}")

    def cursors(self, start: tuple[int, int], epochs: int = 0, steps: int = 0) -> Iterator[tuple[int, int]]:
        """(epoch, step) from `start` on, until `epochs` are over or `steps` taken from the very beginning, whichever
        is given."""
        epoch, step = start
        done = epoch * self.steps + step
        while (not epochs or epoch < epochs) and (not steps or done < steps):
            if step < self.steps:
                yield epoch, step
                step, done = step + 1, done + 1
            else:
                epoch, step = epoch + 1, 0


def lanes_of(plan: Plan, rank: int, world: int) -> range:
    """The lanes that rank `rank` of `world` serves. Raises UsageError or DatasetError where a rank would have nothing
    to do at any step."""
    if plan.batch < world:
        raise UsageError(f"a batch of {plan.batch} samples a step is fewer than {world} ranks; raise batch")
    if plan.samples < world:
        raise DatasetError(f"{plan.samples} samples an epoch are fewer than {world} ranks; run on fewer ranks")
    return range(rank * plan.lanes // world, (rank + 1) * plan.lanes // world)


def shuffled(items: Sequence[int], key: str) -> list[int]:
    """`items` in an order that depends on `key` alone."""
    return sorted(items, key=lambda item: blake2b(f"{key} {item}".encode(), digest_size=8).digest())


@lru_cache(maxsize=4)
def _track(plan: Plan, epoch: int) -> tuple[list[Span], list[int]]:
    """(spans of an epoch in order, where each of them ends)."""
    limit = max(1, plan.samples // (PIECES * plan.lanes))
    spans = []
    for dataset, (sizes, weight) in enumerate(zip(plan.sizes, plan.weights, strict=True)):
        pieces = [piece for shard, size in enumerate(sizes) for piece in _pieces(dataset, shard, size, limit)]
        for turn, wanted in enumerate(passes(sum(sizes), weight)):
            order = shuffled(range(len(pieces)), f"{plan.seed} {epoch} dataset {dataset} turn {turn}")
            spans += _first([pieces[at] for at in order], wanted, turn)
    order = shuffled(range(len(spans)), f"{plan.seed} {epoch} track")
    spans = [spans[at] for at in order]
    return spans, list(accumulate(span.count for span in spans))


def passes(samples: int, weight: float) -> list[int]:
    """Samples of each pass that a dataset of `samples` makes in an epoch; the last may be a part."""
    whole = int(weight)
    part = round((weight - whole) * samples)
    return [samples] * whole + [part] * bool(part)


def _pieces(dataset: int, shard: int, size: int, limit: int) -> list[Span]:
    """A shard in parts of `limit` samples at most, as equal as can be."""
    parts = -(-size // limit)
    cuts = [part * size // parts for part in range(parts + 1)] if parts else []
    return [Span(dataset, shard, a, b - a, 0) for a, b in pairwise(cuts)]


def _first(pieces: Sequence[Span], wanted: int, turn: int) -> list[Span]:
    """The first `wanted` samples of `pieces`, as pass `turn`."""
    found, left = [], wanted
    for piece in pieces:
        count = min(piece.count, left)
        if count:
            found.append(Span(piece.dataset, piece.shard, piece.first, count, turn))
        left -= count
    return found
