"""A trained Actor's files, actor.safetensors and actor.json, and an Actor that begins as GLM-4-Voice.

actor.json says what the weights are and what they go with, and is the marker that both files are whole: it is written
last. The net is held against the tensors before any memory is taken for it, and the tensors stay views of the mapped
file where device and type allow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from manifests.errors import ModelError, UsageError, one_line
from models import clock
from models.actor import Actor
from models.actor_config import ActorConfig
from models.device import torch_device
from models.glm_weights import Numbers, named_weights, read_numbers

WEIGHTS, FACTS = "actor.safetensors", "actor.json"
FORMAT, FORMAT_VERSION = "xstreamer actor", 1
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Number types by safetensors' names."""
CODECS = ("video", "speech", "text")
CLOCK = {
    "fps": clock.FPS,
    "chunk_frames": clock.CHUNK_FRAMES,
    "speech_hz": clock.SPEECH_HZ,
    "segment_speech_tokens": clock.SEGMENT_SPEECH_TOKENS,
    "segment_text_tokens": clock.SEGMENT_TEXT_TOKENS,
}
"""Weights that learned times on another clock mean nothing on ours."""
SWITCHES = ("preset", "window", "history", "reference", "attention")
"""What may change from an Actor to one that begins with its weights."""
AGAIN = "export it again with: xstreamer export-actor RUN"


@dataclass(frozen=True)
class ActorFacts:
    """actor.json. codecs: name and fingerprint of CODECS that its latents and tokens are of; thinker: of the states
    that it follows. grid: (h, w) of a latent that it was trained on, None where unknown. step: updates; averaged:
    whether the weights are their moving average. licences: by model that it was built from. sha256, size: of
    actor.safetensors, in bytes; dtype: of its numbers. recipe: TOML. versions: of the software that wrote it."""

    config: ActorConfig
    codecs: Mapping[str, str]
    thinker: str
    grid: tuple[int, int] | None
    step: int
    averaged: bool
    dtype: str
    size: int
    sha256: str
    recipe: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> bytes:
        """The file; the same facts give the same bytes."""
        plain = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        config = dataclasses.asdict(plain.pop("config"))
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "actor": config, "clock": CLOCK, **plain}
        content |= {"recipe": self.recipe.splitlines(), "codecs": dict(self.codecs)}
        content |= {"licences": dict(self.licences), "versions": dict(self.versions)}
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def read_facts(path: Path) -> tuple[ActorFacts, Path]:
    """actor.json of an Actor and the place of its weights. path: their folder, or either file.

    Raises ModelError when one of the two is missing, cut off, of another format or another clock.
    """
    place = path.with_suffix(".json") if path.suffix in (".json", ".safetensors") else path / FACTS
    weights = place.with_suffix(".safetensors")
    try:
        content = json.loads(place.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}")
        if content["format_version"] == FORMAT_VERSION and content["clock"] == CLOCK:
            facts = _parsed(content)
        else:
            version, kind = content["format_version"], content["clock"]
            raise ModelError(
                f"{place} is of format version {version} and clock {kind}, this xstreamer goes by {FORMAT_VERSION} and "
                f"{CLOCK}; use the xstreamer that wrote it"
            )
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{place} is missing; name the folder that export-actor wrote, or {AGAIN}") from None
    except (ValueError, TypeError, KeyError, UsageError) as error:
        raise ModelError(f"{place} is no whole {FORMAT} ({one_line(error, 160)}); {AGAIN}") from None
    if not weights.is_file():
        raise ModelError(f"{weights} is missing; {AGAIN}")
    if weights.stat().st_size != facts.size:
        raise ModelError(
            f"{weights} has {weights.stat().st_size} bytes, not {facts.size} as {place.name} says; {AGAIN}"
        )
    return facts, weights


def _parsed(content: Mapping[str, Any]) -> ActorFacts:
    """Raises ValueError, TypeError, KeyError or UsageError for what `ActorFacts.as_json` does not write."""
    names = [entry.name for entry in dataclasses.fields(ActorFacts) if entry.name != "config"]
    found = {name: content[name] for name in names}
    for name, kind in (("thinker", str), ("step", int), ("averaged", bool), ("size", int), ("sha256", str)):
        if type(found[name]) is not kind:
            raise ValueError(f"{name} is {found[name]!r}")
    if set(found["codecs"]) != set(CODECS) or not all(isinstance(name, str) for name in found["codecs"].values()):
        raise ValueError(f"codecs are {found['codecs']!r}")
    if found["dtype"] not in DTYPES.values():
        raise ValueError(f"dtype is {found['dtype']!r}")
    grid = found["grid"]
    if grid is not None and not (len(grid) == 2 and all(type(side) is int and side > 0 for side in grid)):
        raise ValueError(f"grid is {grid!r}")
    found |= {"grid": grid and tuple(grid), "recipe": "".join(f"{line}\n" for line in found["recipe"])}
    found |= {name: dict(found[name]) for name in ("licences", "versions")}
    return ActorFacts(config=ActorConfig(**content["actor"]), **found)


def load_actor(
    path: str | Path, device: str = "cpu", dtype: str = "", *, verify: bool = False
) -> tuple[Actor, ActorFacts]:
    """A trained Actor, frozen, in eval mode, and what it goes with.

    path: folder that `xstreamer export-actor` wrote, or one of its two files. device: as
    `models.device.torch_device`. dtype: "bfloat16", "float16", "float32" or "" as stored. verify: hash the file
    first. Raises ModelError when a file is missing, damaged, of another Actor, or the device is not there.
    """
    facts, weights = read_facts(Path(path))
    if dtype not in ("", *DTYPES.values()):
        raise UsageError(f"an Actor runs in {', '.join(DTYPES.values())}, not {dtype!r}")
    if verify:
        check_hash(weights, facts)
    where, kind = torch_device(device), getattr(torch, dtype or facts.dtype)
    with _opened(weights) as file:
        actor = _outline(file, facts, weights)
        state = {name: file.get_tensor(name).to(device=where, dtype=kind) for name in actor.state_dict()}
    actor.load_state_dict(state, assign=True)
    return actor.requires_grad_(False).eval(), facts


@torch.no_grad()
def fill_actor(actor: Actor, path: Path) -> ActorFacts:
    """Copies the weights of a trained Actor into `actor`, which may differ in SWITCHES. Raises ModelError."""
    facts, weights = read_facts(path)
    check_numbers(facts.config, actor.config, weights)
    with _opened(weights) as file:
        _outline(file, facts, weights)
        for name, value in actor.state_dict().items():
            value.copy_(file.get_tensor(name))
    return facts


def check_numbers(found: ActorConfig, wanted: ActorConfig, path: Path) -> None:
    """Raises ModelError that names the number in which an Actor's weights at `path` are another net's."""
    theirs, ours = dataclasses.asdict(found), dataclasses.asdict(wanted)
    for name in theirs:
        if name not in SWITCHES and theirs[name] != ours[name]:
            raise ModelError(
                f"{path} is an Actor of preset {found.preset} with {name} = {theirs[name]}, the Actor to fill is "
                f"{wanted.preset} with {ours[name]}; train that preset, or name other weights"
            )


def check_hash(weights: Path, facts: ActorFacts) -> None:
    """Raises ModelError unless the file is the one that was exported."""
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != facts.sha256:
        raise ModelError(f"{weights} has SHA-256 {found}, not {facts.sha256} as {FACTS} says; {AGAIN}")


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({one_line(error, 100)}); {AGAIN}") from None


def _outline(file: Any, facts: ActorFacts, path: Path) -> Actor:
    """The net without storage. Raises ModelError unless the file holds its tensors, in its shapes, and no others."""
    stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    last = f"blocks.{facts.config.layers - 1}.mlp.down_proj.weight"
    if last not in stored:  # before the blocks are built: a number in a file must not cost time
        raise ModelError(f"{path} is of another Actor: {last} is missing; {AGAIN}")
    with torch.device("meta"):
        actor = Actor(facts.config)
    wanted = {name: list(value.shape) for name, value in actor.state_dict().items()}
    for name in (*wanted, *stored):
        found = stored[name].get_shape() if name in stored else None
        if found != wanted.get(name):
            raise ModelError(f"{path} is of another Actor: {name} is {found}, not {wanted.get(name)}; {AGAIN}")
        if DTYPES.get(stored[name].get_dtype()) != facts.dtype:
            raise ModelError(f"{path}: {name} is in {stored[name].get_dtype()}, not {facts.dtype}; {AGAIN}")
    return actor


@torch.no_grad()
def init_from_glm(actor: Actor, folder: Path) -> None:
    """Gives `actor`, whose own random weights are drawn already (`Actor.init_weights`), GLM-4-Voice's self-attention,
    MLPs and norms from the official files in `folder` (the paper, 3.1); one tensor is copied at a time.

    Everything else stays as it was drawn. So does the cross-attention: its keys and values read the Thinker's last
    states, and GLM's own layers, made for what lies between layers, know nothing of those; attention that begins
    nearly even lets its output, which is zero, learn from all states alike. Raises ModelError for files that are
    missing or damaged, or where the numbers of `actor` are not GLM's.
    """
    numbers = read_numbers(folder)
    _check_glm(actor.config, numbers, folder)
    own = actor.state_dict()
    for name, stored in named_weights(folder, numbers):
        place = name.removeprefix("model.").replace("layers.", "blocks.", 1)
        if place in own:  # GLM's embeddings and its output layer have no place here
            own[place].copy_(stored)


def _check_glm(config: ActorConfig, numbers: Numbers, folder: Path) -> None:
    pairs = {
        "hidden": numbers.hidden_size,
        "layers": numbers.num_hidden_layers,
        "heads": numbers.num_attention_heads,
        "kv_heads": numbers.num_key_value_heads,
        "head_dim": numbers.head_dim,
        "intermediate": numbers.intermediate_size,
        "norm_eps": numbers.rms_norm_eps,
        "rope_theta": numbers.rope_theta,
    }
    for name, theirs in pairs.items():
        if getattr(config, name) != theirs:
            raise ModelError(
                f"an Actor of preset {config.preset} with {name} = {getattr(config, name)} cannot begin as the GLM in "
                f"{folder}, which has {theirs}; choose preset 9b, or init = 'random'"
            )
