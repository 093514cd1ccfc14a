"""`xstreamer curate`: from source files to verdicts and shards, phase by phase, each resumable.

    register -> scenes -> measure -> long form -> judge -> pack

A phase reads the tables, does what is missing and commits it; stopping anywhere loses what was in flight.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.duplicates import near_duplicates
from manifests import dataset
from manifests.errors import DatasetError, UsageError
from manifests.records import CLIP_STAGES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, append, compact, is_compact, read
from manifests.verdicts import Profile, profile_content
from pipelines import judge, longform, measure, register
from pipelines.cluster import here, open_cluster
from pipelines.funnel import funnel
from pipelines.models_used import models_notes, models_used, require_devices, require_models
from pipelines.pack import PackOptions, pack
from pipelines.recipe import Recipe, build_stages, dependants, fingerprints
from pipelines.sources import SourceRequest

Row = dict[str, Any]


@dataclass(frozen=True)
class CurateOptions:
    """What the command line asks for."""

    recipe: Recipe
    profiles: tuple[Profile, ...]
    cluster: str | None = None
    exhaustive: bool = False
    retry_failed: bool = False
    change_recipe: bool = False
    pack: PackOptions = field(default_factory=PackOptions)
    quiet: bool = False


def curate(root: str, requests: Sequence[SourceRequest], options: CurateOptions) -> Row:
    """Runs every phase on `requests` (all known sources when empty); the funnel and what was packed.

    Raises DatasetError (other version or recipe, in use, full disk), UsageError, ModelError.
    """
    store = Store(root)
    register.check_listed(store, requests)
    require_models(options.recipe)
    if here(options.cluster):
        require_devices(options.recipe)
    prints = fingerprints(options.recipe)
    facts = _checked(store, options, prints)
    with open_cluster(options.cluster) as client, locked(store):
        if facts:
            dataset.save(store, facts)
        if requests:
            register.register_sources(client, store, requests, options.retry_failed, options.quiet)
        known = read(store, SOURCES_TABLE, ["uri"])["uri"].to_pylist()
        listed = {request.uri for request in requests} or set(known)
        register.cut_sources(client, store, options.recipe, prints["scenes"], listed, options.quiet)
        plan = make_plan(root, options, prints)
        todo = measure.pending(
            store,
            prints,
            options.profiles,
            exhaustive=options.exhaustive,
            retry_failed=options.retry_failed,
            readers={stage: dependants(options.recipe, {stage}) - {stage} for stage in CLIP_STAGES},
            sources=_ids(store, listed),
        )
        measure.measure_clips(client, store, plan, todo, options.quiet)
        tidy(store)
        longform.encode_long_form(client, store, plan, options.profiles, options.quiet)
        tidy(store)
    packed = {profile.name: pack(store, profile, options.pack, options.quiet) for profile in options.profiles}
    result = funnel(store, options.profiles)
    for name, found in packed.items():
        result["profiles"][name]["packed"] = found.counts()
        result["profiles"][name]["kept_without_sample"] = found.missing
    result["notes"] = [
        line
        for profile in options.profiles
        for line in judge.explain(profile, options.recipe.backends, _verdict_counts(result, profile), root)
    ]
    result["models"] = models_used(options.recipe)
    result["notes"] += models_notes(result["models"])
    result["notes"] += failures(result["stages"], store.root)
    result["dataset"], result["measured_clips"] = store.root, len(todo.rows)
    return result


def failures(stages: Row, root: str) -> list[str]:
    """A line where stages failed: how often, and the next move. stages: {stage: {status: clips}}."""
    failed = {stage: found["failed"] for stage, found in stages.items() if found.get("failed")}
    if not failed:
        return []
    counts = ", ".join(f"{stage} {count}" for stage, count in failed.items())
    again = f"xstreamer curate -o {shlex.quote(root)} --retry-failed"
    return [f"stages failed, clips by stage: {counts}; read why in: xstreamer report; try again with: {again}"]


def _verdict_counts(result: Row, profile: Profile) -> dict[str, int]:
    return {name: result["profiles"][profile.name][name]["clips"] for name in ("keep", "reject", "undecided")}


def make_plan(root: str, options: CurateOptions, prints: dict[str, str]) -> measure.Plan:
    """What workers are told."""
    profiles = tuple(profile_content(profile) for profile in options.profiles)
    recipe = json.dumps(options.recipe.data(), sort_keys=True)
    return measure.Plan(str(Store(root).root), recipe, prints, profiles, options.exhaustive)


def _ids(store: Store, listed: set[str]) -> set[str]:
    rows = read(store, SOURCES_TABLE, ["uri", "source_id", "duplicate_of"]).to_pylist()
    asked = {row["duplicate_of"] or row["uri"] for row in rows if row["uri"] in listed}
    return {row["source_id"] for row in rows if row["uri"] in asked and row["source_id"]}


def _checked(store: Store, options: CurateOptions, prints: dict[str, str]) -> Row | None:
    """What dataset.json must hold, None where it does already. Raises DatasetError when this run does not fit."""
    found = dataset.facts(store)
    recipe = options.recipe
    if found is None:
        _refuse_foreign(store)
    elif found["fingerprints"] != prints and not options.change_recipe:
        changed = {stage for stage in prints if found["fingerprints"].get(stage) != prints[stage]}
        raise DatasetError(
            f"{store.root} was made with recipe {found['recipe']['name']!r}, which measures {_named(changed)} otherwise; "
            f"--change-recipe measures {_named(dependants(recipe, changed))} again, or choose another -o"
        )
    content = {
        "recipe": recipe.data(),
        "fingerprints": prints,
        "revisions": {name: stage.revision() for name, stage in build_stages(recipe).items()},
        "models": models_used(recipe),
        "software": _software(),
    }
    return content if found is None or any(found.get(key) != value for key, value in content.items()) else None


def _named(stages: set[str]) -> str:
    return ", ".join(sorted(stages))


def _refuse_foreign(store: Store) -> None:
    names = [name for name in store.entries() if not name.startswith(".")]
    if names:
        raise DatasetError(f"{store.root} holds other files ({names[0]!r}) and no dataset; choose an empty or new -o")


def _software() -> dict[str, str]:
    return {name: version(name) for name in ("xstreamer", "av", "numpy", "onnxruntime", "torch", "webdataset")}


@contextlib.contextmanager
def locked(store: Store) -> Iterator[None]:
    """Holds the dataset for one writer. Raises DatasetError while another holds it. Local folders only:
    object stores offer no lock."""
    if store.remote:
        yield
        return
    path = store.local(".lock")
    with contextlib.ExitStack() as stack:
        with store.explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DatasetError(f"{store.root} is in use by another xstreamer; wait for it to end") from None
        for folder in ("samples", "verdicts", *(f"tables/{t.name}" for t in (SOURCES_TABLE, CLIPS_TABLE, RUNS_TABLE))):
            store.sweep(folder)
        yield


def tidy(store: Store) -> None:
    """Fills in near duplicates, a measure over all clips, and compacts the tables."""
    clips = read(store, CLIPS_TABLE, ["clip_id", "near_hash", "near_duplicate_of"])
    some = clips.filter(pc.is_valid(clips["near_hash"]))
    found = near_duplicates(some["clip_id"].to_pylist(), some["near_hash"].to_pylist())
    ids = clips["clip_id"].to_pylist()
    now = pa.array([found.get(key) for key in ids], pa.string())
    same = pc.fill_null(pc.equal(now, clips["near_duplicate_of"]), False).to_numpy(zero_copy_only=False)
    both_null = np.asarray(pc.and_(pc.is_null(now), pc.is_null(clips["near_duplicate_of"])))
    changed = np.flatnonzero(~(np.asarray(same) | both_null))
    if len(changed):
        whole = read(store, CLIPS_TABLE).take(pa.array(changed)).to_pylist()
        append(store, CLIPS_TABLE, [{**row, "near_duplicate_of": found.get(row["clip_id"])} for row in whole])
    for table in (SOURCES_TABLE, CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE):
        if not is_compact(store, table):
            compact(store, table)


def check_sources(requests: Sequence[SourceRequest], store: Store) -> None:
    """Raises UsageError when there is nothing to curate, DatasetError when `store` is something else's folder."""
    if dataset.facts(store) is None:
        if not requests:
            raise UsageError("name the videos to curate: files, folders, globs or lists")
        _refuse_foreign(store)
    register.check_listed(store, requests)
