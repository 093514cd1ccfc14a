"""`xstreamer verify`: hashes everything again, holds tables, samples and shards against each other."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import DatasetError
from manifests.records import CLIP_STAGES
from manifests.samples import Sample, load_samples, read_tar, sample_bytes, sample_digest
from manifests.shards import INDEX, read_index
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, TABLES, read
from manifests.verdicts import KEEP
from models.clock import CHUNK_SPEECH_TOKENS
from models.thinker import FACT, STATES, states_fault
from pipelines import judge
from pipelines.progress import Bar
from pipelines.register import lost_clips

_NAMED = 20
"""Faults of one kind that are spelled out; the rest is counted."""


def verify(store: Store, quiet: bool = False) -> list[str]:
    """Every fault found, a line each; empty when the dataset is whole."""
    faults = list(_tables(store))
    if faults:
        return faults  # what follows reads the tables
    tars = store.names("samples")
    profiles = sorted(name.removesuffix(".parquet") for name in store.names("verdicts"))
    with Bar("verify", len(tars) + len(profiles), "files", quiet) as bar:
        faults += _samples(store, bar)
        faults += _previews(store)
        for profile in profiles:
            faults += _profile(store, profile)
            bar.add(1)
    return faults


def _limited(what: str, items: Iterable[str]) -> Iterator[str]:
    found = list(items)
    yield from (f"{what}: {item}" for item in found[:_NAMED])
    if len(found) > _NAMED:
        yield f"{what}: and {len(found) - _NAMED} more"


def _tables(store: Store) -> Iterator[str]:
    try:
        for table in TABLES:
            read(store, table)
    except DatasetError as error:
        yield str(error)
        return
    sources = read(store, SOURCES_TABLE, ["uri", "source_id", "status", "duplicate_of"]).to_pylist()
    known = {row["source_id"] for row in sources if row["status"] == "ok"}
    uris = {row["uri"] for row in sources}
    lost = (row["uri"] for row in sources if row["status"] == "duplicate" and row["duplicate_of"] not in uris)
    yield from _limited("duplicate of a source that is not listed", lost)
    clips = read(store, CLIPS_TABLE, ["clip_id", "source_id", "start_s", "end_s"]).to_pylist()
    failed = {row["source_id"] for row in sources if row["status"] == "failed"}
    yield from _limited(
        "clip of an unknown source", (c["clip_id"] for c in clips if c["source_id"] not in known | failed)
    )
    yield from _limited("clip that ends before it starts", (c["clip_id"] for c in clips if c["end_s"] <= c["start_s"]))
    runs = read(store, RUNS_TABLE, ["clip_id", "stage"])
    ran = Counter(runs.filter(pc.is_in(runs["stage"], value_set=pa.array(CLIP_STAGES)))["clip_id"].to_pylist())
    yield from _limited("tables/clips has lost a clip that was measured (run curate again)", lost_clips(store))
    yield from _limited(
        "clip not measured through (run curate again)",
        (c["clip_id"] for c in clips if ran[c["clip_id"]] < len(CLIP_STAGES) and c["source_id"] in known),
    )


def _samples(store: Store, bar: Bar) -> Iterator[str]:
    """Faults of samples/: every row of the samples table against its tar, every encoded clip against the table."""
    rows = read(store, SAMPLES_TABLE).to_pylist()
    by_tar: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_tar.setdefault(row["tar"], []).append(row)
    for tar, listed in sorted(by_tar.items()):
        try:
            there = load_samples(store, tar)
        except DatasetError as error:
            yield f"samples/{tar}: {error}"
            continue
        finally:
            bar.add(1)
        for row in listed:
            yield from _sample(f"samples/{tar}", row, there.get(row["sample_id"]))
    keys = {row["sample_id"] for row in rows}
    clips = read(store, CLIPS_TABLE, ["clip_id", "encode_status"]).to_pylist()
    lost = (c["clip_id"] for c in clips if c["encode_status"] == "ok" and c["clip_id"] not in keys)
    yield from _limited("encoded clip without a sample", lost)


def _previews(store: Store) -> Iterator[str]:
    """Faults of previews/: every clip that says it has one against its tar."""
    rows = read(store, CLIPS_TABLE, ["clip_id", "preview_tar", "preview_bytes"]).to_pylist()
    by_tar: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["preview_tar"]:
            by_tar.setdefault(row["preview_tar"], {})[row["clip_id"]] = row["preview_bytes"]
    again = "delete the file and run curate again"
    for tar, listed in sorted(by_tar.items()):
        try:
            there = load_samples(store, tar, "previews")
        except DatasetError as error:
            yield f"previews/{tar}: {error}; {again}"
            continue
        wrong = (key for key, size in listed.items() if sample_bytes(there.get(key, {})) != size)
        yield from _limited(f"previews/{tar}: preview lost or changed; {again}", wrong)


def _sample(where: str, row: Mapping[str, Any], sample: Sample | None) -> Iterator[str]:
    name = f"{where}: sample {row['sample_id']}"
    if sample is None:
        yield f"{name} is missing; run curate again, after deleting the file if it is there"
    elif sample_digest(sample) != row["digest"]:
        yield f"{name} has changed since it was written (digest differs); delete the file and run curate again"
    else:
        yield from (f"{name}: {fault}" for fault in _shape_faults(sample, row["chunks"]))


def _shape_faults(sample: Sample, chunks: int) -> Iterator[str]:
    """Members that are missing or do not have the shapes of the design."""
    needed = {"json", "text.npy", "speech.npy", "latents.npy", "reference.npy"}
    for name in sorted(needed - set(sample)):
        yield f"no {name}"
    if needed - set(sample):
        return
    try:
        arrays = {n: np.load(io.BytesIO(sample[n]), allow_pickle=False) for n in sample if n.endswith(".npy")}
        facts = json.loads(sample["json"])
    except ValueError as error:
        yield f"unreadable member ({error})"
        return
    if facts.get("chunks") != chunks:
        yield f"says {facts.get('chunks')} chunks, the table {chunks}"
    if arrays["speech.npy"].shape != (CHUNK_SPEECH_TOKENS * chunks,):
        yield f"speech.npy has shape {arrays['speech.npy'].shape}, not {(CHUNK_SPEECH_TOKENS * chunks,)}"
    if arrays["latents.npy"].ndim != 4 or len(arrays["latents.npy"]) != chunks + 1:
        yield f"latents.npy has shape {arrays['latents.npy'].shape}, not [{chunks + 1}, 128, h, w]"
    elif arrays["reference.npy"].shape != (4, *arrays["latents.npy"].shape[1:]):
        yield f"reference.npy has shape {arrays['reference.npy'].shape}"
    if (STATES in sample or FACT in facts) and (fault := states_fault(sample)):
        yield fault


def _profile(store: Store, profile: str) -> Iterator[str]:
    """Faults of a profile's verdicts and shards."""
    found = judge.verdicts(store, profile)
    assert found is not None
    clips = read(store, CLIPS_TABLE, ["clip_id"])["clip_id"].to_pylist()
    judged = found["clip_id"].to_pylist()
    if sorted(judged) != clips:
        yield f"verdicts/{profile}.parquet does not list the clips of the table; run: xstreamer judge {store.root}"
    folder = f"shards/{profile}"
    if not store.exists(folder):
        return
    kept = {row["clip_id"] for row in found.to_pylist() if (row["override"] or row["verdict"]) == KEEP}
    holds = {row["sample_id"]: set(row["clip_ids"].split()) for row in read(store, SAMPLES_TABLE).to_pylist()}
    digests = dict(zip(*read(store, SAMPLES_TABLE, ["sample_id", "digest"]).to_pydict().values(), strict=True))
    seen: Counter[str] = Counter()
    listed = {INDEX, "index-val.json"}
    for index in (INDEX, "index-val.json"):
        try:
            shards = read_index(store, folder, index)["shardlist"]
        except DatasetError as error:
            yield str(error)
            continue
        for shard in shards:
            listed.add(shard["url"])
            yield from _shard(store, folder, shard, digests, seen)
    yield from _limited(f"{folder}: file that no index lists", (n for n in store.names(folder) if n not in listed))
    yield from _limited(f"{folder}: sample packed twice", (key for key, times in seen.items() if times > 1))
    packed = {clip for key in seen for clip in holds.get(key, {key})}
    yield from _limited(f"{folder}: packed, but not kept", sorted(packed - kept))
    encoded = read(store, CLIPS_TABLE, ["clip_id", "encode_status"]).to_pylist()
    there = {c["clip_id"] for c in encoded if c["encode_status"] == "ok"}
    yield from _limited(f"{folder}: kept, but not packed (pack again)", sorted((kept & there) - packed))


def _shard(
    store: Store, folder: str, shard: Mapping[str, Any], digests: Mapping[str, str], seen: Counter[str]
) -> Iterator[str]:
    where = f"{folder}/{shard['url']}"
    try:
        content = store.read(where)
    except FileNotFoundError:
        yield f"{where} is missing; pack again"
        return
    if len(content) != shard["filesize"] or hashlib.sha256(content).hexdigest() != shard["sha256"]:
        yield f"{where} has changed since it was written (sha256 differs); pack again"
        return
    count = 0
    for key, sample in read_tar(io.BytesIO(content)):
        count += 1
        seen[key] += 1
        if sample_digest(sample) != digests.get(key):
            yield f"{where}: sample {key} is not the one of the samples table; pack again"
    if count != shard["nsamples"]:
        yield f"{where} holds {count} samples, the index says {shard['nsamples']}"
