"""`xstreamer pack`: WebDataset shards of what a profile keeps, from samples that are encoded already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import DatasetError
from manifests.samples import load_samples, sample_digest
from manifests.shards import Shard, shuffled, validation_groups, write_index, write_shards
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, read
from manifests.verdicts import Profile, profile_content
from models.clock import CHUNK_SECONDS
from pipelines import judge, longform
from pipelines.progress import Bar

Row = dict[str, Any]
OPEN_TARS = 8


@dataclass(frozen=True)
class PackOptions:
    """per_shard: samples a shard at most; max_bytes: a shard closes beyond; val_share: of groups held out."""

    per_shard: int = 512
    max_bytes: int = 1 << 28
    val_share: float = 0.02


@dataclass(frozen=True)
class Packed:
    """What was packed. missing: kept clips that have no sample (their encoding failed)."""

    shards: dict[str, list[Shard]]
    missing: list[str]

    def counts(self) -> Row:
        """For people and --json."""
        return {
            split: {"shards": len(s), "samples": sum(x.nsamples for x in s), "seconds": sum(x.seconds for x in s)}
            for split, s in self.shards.items()
        }


def pack(store: Store, profile: Profile, options: PackOptions = PackOptions(), quiet: bool = False) -> Packed:
    """Judges, then writes shards/PROFILE. Train and validation never share a source or an identity."""
    chosen, missing = selection(store, profile)
    groups = _groups(store)
    group = {str(row["sample_id"]): groups.get(row["source_id"], str(row["source_id"])) for row in chosen}
    held = validation_groups(group.values(), options.val_share)
    folder = f"shards/{profile.name}"
    by_id = {row["sample_id"]: row for row in chosen}
    shards: dict[str, list[Shard]] = {}
    with Bar(f"pack {profile.name}", len(chosen), "samples", quiet) as bar:
        for split in ("train", "val"):
            keys = shuffled(key for key in by_id if (group[key] in held) == (split == "val"))
            samples = _load(store, [by_id[key] for key in keys], bar)
            shards[split] = list(write_shards(store, folder, split, samples, options.per_shard, options.max_bytes))
    write_index(store, folder, shards, {"profile": profile.name, "rules": profile_content(profile)["rules"]})
    return Packed(shards, missing)


def selection(store: Store, profile: Profile) -> tuple[list[Row], list[str]]:
    """(rows of the samples table to pack, kept clips without a sample).

    Where a long-form sample holds a clip, the clip is not packed a second time.
    """
    kept = judge.kept(store, profile)
    longer = longform.long_samples(store, profile)
    joined = {clip for clips in longer.values() for clip in clips}
    wanted = [*longer, *(clip for clip in kept if clip not in joined)]
    table = read(store, SAMPLES_TABLE)
    rows = table.filter(pc.is_in(table["sample_id"], pa.array(wanted, pa.string()))).to_pylist()
    there = {row["sample_id"] for row in rows}
    encoded = read(store, CLIPS_TABLE, ["clip_id", "encode_status"])
    current = set(encoded.filter(pc.equal(encoded["encode_status"], "ok"))["clip_id"].to_pylist()) | set(longer)
    rows = [row for row in rows if row["sample_id"] in current]
    return rows, [clip for clip in wanted if clip not in there or clip not in current]


def _groups(store: Store) -> dict[str, str]:
    """{source id: the identity that a list gave it or a copy of it, else the first source id of the same file}."""
    rows = [r for r in read(store, SOURCES_TABLE, ["source_id", "identity", "path"]).to_pylist() if r["source_id"]]
    first: dict[str, str] = {}
    given: dict[str, str] = {}
    for row in rows:  # in order
        first.setdefault(row["path"], row["source_id"])
        if row["identity"]:
            given.setdefault(row["source_id"], str(row["identity"]))
    return {row["source_id"]: given.get(row["source_id"], first[row["path"]]) for row in reversed(rows)}


def _load(store: Store, rows: Sequence[Row], bar: Bar) -> Iterator[tuple[str, dict[str, bytes], float]]:
    """(key, members, seconds) in the order of `rows`; the few tars read last stay in memory."""
    tars: dict[str, dict[str, dict[str, bytes]]] = {}
    for row in rows:
        name = row["tar"]
        if name not in tars:
            while len(tars) >= OPEN_TARS:
                tars.pop(next(iter(tars)))
            tars[name] = load_samples(store, name)
        sample = tars[name].get(row["sample_id"])
        if sample is None:
            raise DatasetError(
                f"sample {row['sample_id']} is not in {store.url('samples/' + name)}; find out what else is lost with: "
                f"xstreamer verify {store.root}"
            )
        if sample_digest(sample) != row["digest"]:
            raise DatasetError(
                f"sample {row['sample_id']} in {store.url('samples/' + name)} has changed since it was written; "
                "delete the file and run curate again"
            )
        bar.add(1)
        yield row["sample_id"], sample, row["chunks"] * CHUNK_SECONDS
