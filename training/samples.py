"""Finding samples in shards and reading them, by place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from manifests.errors import DatasetError
from training.contract import Contract, Sample, Wanted, decoded, inspected
from training.index import Listed, Listing, check_size
from training.plan import Span
from training.reading import Damaged, Entry, Handles, Shard, is_remote

KEPT = 64
"""Shards whose tables of contents are kept, beside two a lane."""
TRIES = 64
"""Samples of a dataset that may be damaged before the first good one."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A sample found, not read yet. fault: why it cannot be. held: members fetched on the way, from behind a URL."""

    shard: Shard
    number: int
    turn: int
    entry: Entry | None = None
    fault: str = ""
    held: dict[str, bytes] = field(default_factory=dict)

    @property
    def length(self) -> float:
        """Grows with its chunks; what cannot be read comes last."""
        return self.entry.members["latents.npy"][1] if self.entry and not self.fault else float("inf")


class Reader:
    """Finds and reads the samples of some shards, by place. Safe between threads."""

    def __init__(self, shards: Sequence[Sequence[Listed]], contract: Contract, kept: int = KEPT) -> None:
        self._shards, self._contract, self._kept = shards, contract, kept
        self._handles = Handles()
        self._open: dict[tuple[int, int], Shard] = {}
        self._lock = threading.Lock()

    def scan(self, spans: Sequence[Span]) -> list[Slot]:
        """The samples of `spans`, shortest first, equals in order. Raises DatasetError."""
        slots = [self._slot(span, number) for span in spans for number in range(span.first, span.first + span.count)]
        return sorted(slots, key=lambda slot: slot.length)

    def sample(self, slot: Slot) -> Sample:
        """Reads it. Raises Damaged, DatasetError."""
        if slot.fault or slot.entry is None:
            raise Damaged(slot.fault)
        shard, entry = slot.shard, slot.entry
        where = f"sample {entry.key} in {shard.place}"
        key = entry.key if not slot.turn else f"{entry.key}#{slot.turn + 1}"
        try:
            members = slot.held or {name: shard.read(entry, name) for name in entry.members}
            return decoded(key, members, self._contract, where)
        except Damaged as error:
            raise Damaged(f"{where} is damaged: {error}") from None

    def _slot(self, span: Span, number: int) -> Slot:
        shard = self._shard(span.dataset, span.shard)
        try:
            entry = shard.entry(number)
            if "latents.npy" not in entry.members:
                raise Damaged("has no latents.npy")
            held = {name: shard.read(entry, name) for name in entry.members} if is_remote(shard.place) else {}
            return Slot(shard, number, span.turn, entry, held=held)
        except Damaged as error:
            return Slot(shard, number, span.turn, fault=damage(shard, number, error))

    def _shard(self, dataset: int, number: int) -> Shard:
        """The shard, with its table of contents as far as it is known; those used last are kept."""
        with self._lock:
            found = self._open.pop((dataset, number), None)
            if found is None:
                found = Shard(self._shards[dataset][number].place, self._handles, self._contract.members)
            self._open[dataset, number] = found
            while len(self._open) > self._kept:
                self._open.pop(next(iter(self._open)))
        return found


def first_contract(shards: Sequence[Listed], handles: Handles, wanted: Wanted) -> Contract:
    """Of the first sample that is not damaged."""
    fault, tries = "", 0
    for shard in shards:
        check_size(shard, handles.size(shard.place))
        tar = Shard(shard.place, handles)
        for number in range(shard.nsamples):
            try:
                entry = tar.entry(number)
                members = {name: tar.read(entry, name) for name in entry.members}
                return inspected(members, wanted, f"sample {entry.key} in {shard.place}")
            except Damaged as error:
                fault, tries = fault or damage(tar, number, error), tries + 1
            if tar.fault or tries >= TRIES:
                break
        if tries >= TRIES:
            break
    raise DatasetError(f"no sample can be read: {fault}; copy the shards again or pack again")


def whole_sample(listing: Listing, split: str = "val", number: int = 0) -> tuple[str, dict[str, bytes]]:
    """(key, every member) of sample `number` of the "train" or "val" split, to look at or to listen to.

    Raises DatasetError where there is none, Damaged where it is that.
    """
    handles, left = Handles(), number
    for shard in listing.val if split == "val" else listing.train:
        if left < shard.nsamples:
            tar = Shard(shard.place, handles)
            try:
                entry = tar.entry(left)
                return entry.key, {name: tar.read(entry, name) for name in entry.members}
            except Damaged as error:
                raise Damaged(f"{damage(tar, left, error)}; copy the shards again or pack again") from None
        left -= shard.nsamples
    raise DatasetError(f"{listing.place} has no {split} sample {number}")


def damage(shard: Shard, number: int, error: Damaged) -> str:
    """The line about a damaged sample; of a shard that ends early always the same."""
    try:
        return f"sample {shard.entry(number).key} in {shard.place} is damaged: {error}"
    except Damaged as fault:
        return str(fault)
