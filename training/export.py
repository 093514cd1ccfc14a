"""A run's weights on their own: one safetensors file and its JSON, for streaming and for training that begins there."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from manifests.errors import DatasetError, ModelError, UsageError, one_line
from manifests.store import TEMPORARY, Store
from models.actor import Actor
from models.actor_config import ActorConfig
from models.actor_weights import DTYPES, FACTS, WEIGHTS, ActorFacts, check_numbers, fill_actor
from training.checkpoint import EMA, MODEL, read_tensors
from training.checkpoint_meta import Identity, Meta, check_identity, newest, read_meta, versions
from training.recipe import RANDOM
from training.tensor_files import Damaged, Table, read_table, sync

SOURCES = {"glm_4_voice": "glm-4-voice-tokenizer", "glm_4_bpe": "glm-4-voice-text", "whisper_bpe": "whisper-bpe"}
"""Models of the catalogue behind codecs of other names."""


def export_actor(place: Path, output: Path, *, ema: bool | None = None, dtype: str = "") -> ActorFacts:
    """Writes OUTPUT/actor.safetensors and OUTPUT/actor.json, the same bytes for the same checkpoint.

    place: a run's folder, for its newest checkpoint, or a checkpoint's. ema: the weights' moving average, or not; None:
    where there is one. dtype: "float32", "bfloat16", "float16", or "" for the type that the recipe computes in. Needs
    memory for the weights once, in that type. Raises UsageError, ModelError for a damaged checkpoint, DatasetError
    where `output` cannot be written. Killed in between, it leaves no JSON rather than one of other weights.
    """
    path = newest(place)
    meta, table = _opened(path)
    averaged = _averaged(table) if ema is None else ema
    kind = dtype or tomllib.loads(meta.recipe).get("dtype", "float32")
    if kind not in DTYPES.values():
        raise UsageError(f"an Actor is exported in {', '.join(DTYPES.values())}, not {kind!r}")
    names = _shapes(meta.identity.actor, table, path)
    if averaged and not _averaged(table):
        raise UsageError(f"checkpoint {path} keeps no moving average; export its weights as they are")
    tensors = {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, shape in names.items()}
    _read(path, table, tensors, EMA if averaged else MODEL)
    facts = ActorFacts(
        config=meta.identity.actor,
        codecs=meta.identity.codecs,
        thinker=meta.identity.thinker,
        grid=tuple(meta.facts["grid"]) if meta.facts.get("grid") else None,
        step=meta.progress.step,
        averaged=averaged,
        dtype=kind,
        size=0,
        sha256="",
        recipe=meta.recipe,
        licences=licences(meta),
        versions=versions(),
    )
    return _written(output, tensors, facts)


@torch.no_grad()
def fill_from(actor: Actor, place: Path, identity: Identity | None = None) -> None:
    """Begins `actor` with weights that were trained before: those of an export, or of a run's newest or a named
    checkpoint, their moving average where one is kept. The switches may differ; with `identity`, codecs and Thinker
    may not. Raises UsageError, ModelError."""
    if place.suffix in (".json", ".safetensors") or (place / FACTS).is_file():
        facts = fill_actor(actor, place)
        found = Identity(facts.config, facts.codecs, facts.thinker)
    else:
        path = newest(place)
        meta, table = _opened(path)
        found = meta.identity
        check_numbers(found.actor, actor.config, path)
        _shapes(found.actor, table, path)
        own = {name: value.detach() for name, value in actor.state_dict().items()}
        _read(path, table, own, EMA if _averaged(table) else MODEL)
    if identity is not None:
        check_identity(dataclasses.replace(found, actor=identity.actor), identity, place)


def licences(meta: Meta) -> dict[str, str]:
    """Of the models that the weights were learned with, by name in the catalogue, where the catalogue knows them."""
    from models.weights import catalogue

    named = [*meta.identity.codecs.values(), meta.identity.thinker, tomllib.loads(meta.recipe).get("init", RANDOM)]
    first = [name.split()[0] if name.split() else "" for name in named]
    wanted = {SOURCES.get(name, name.replace("ltx_video_", "ltx-video-")) for name in first}
    known = catalogue()
    return {name: known[name].licence for name in sorted(wanted) if name in known}


def _opened(path: Path) -> tuple[Meta, Table]:
    try:
        return read_meta(path), read_table(path)
    except Damaged as error:
        raise _damage(path, error) from None


def _read(path: Path, table: Table, into: Mapping[str, Tensor], prefix: str) -> None:
    try:
        read_tensors(path, table, {f"{prefix}{name}": value for name, value in into.items()})
    except Damaged as error:
        raise _damage(path, error) from None


def _damage(path: Path, error: Damaged) -> ModelError:
    return ModelError(f"checkpoint {path} is damaged: {error}; name an earlier one")


def _averaged(table: Table) -> bool:
    return any(name.startswith(EMA) for name in table.tensors)


def _shapes(config: ActorConfig, table: Table, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the Actor's tensors by name. Raises ModelError unless the checkpoint holds them all, before memory is
    taken."""
    last = f"{MODEL}blocks.{config.layers - 1}.mlp.down_proj.weight"
    if last not in table.tensors:  # before the blocks are built: a number in a file must not cost time
        raise ModelError(f"checkpoint {path} is damaged: {last} is missing; name an earlier one")
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in Actor(config).state_dict().items()}
    for name, shape in wanted.items():
        for stored in (f"{MODEL}{name}", *([f"{EMA}{name}"] if _averaged(table) else [])):
            found = table.shape(stored) if stored in table.tensors else None
            if found != shape:
                raise ModelError(f"checkpoint {path} is damaged: {stored} is {found}, not {shape}; name an earlier one")
    return wanted


def _written(output: Path, tensors: dict[str, Tensor], facts: ActorFacts) -> ActorFacts:
    """The facts with size and hash. The old JSON goes first: at no time does one tell of other weights."""
    with Store(output).explained():
        output.mkdir(parents=True, exist_ok=True)
        temporary = output / f"{TEMPORARY}{uuid.uuid4().hex}-{WEIGHTS}"
        try:
            _save(tensors, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            facts = dataclasses.replace(facts, size=temporary.stat().st_size, sha256=digest)
            (output / FACTS).unlink(missing_ok=True)
            temporary.replace(output / WEIGHTS)
            sync(output)
        finally:
            temporary.unlink(missing_ok=True)
    Store(output).write(FACTS, facts.as_json())
    return facts


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)  # safetensors makes files for their owner alone
    except SafetensorError as error:  # what the system said is in its text alone
        raise DatasetError(f"{path.parent} cannot be written ({one_line(error, 120)}); free some space there") from None
