"""What is written beside a checkpoint's tensors, to read and to refuse by, and which checkpoints a run has."""

from __future__ import annotations

import dataclasses
import json
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from manifests.errors import ModelError, UsageError, one_line
from models.actor_config import ActorConfig
from models.actor_weights import CLOCK, CODECS
from training.tensor_files import Damaged, read_table

FORMAT_VERSION = 1
FOLDER, META = "checkpoints", "meta.json"
PREFIX, PARTIAL, ASIDE = "step-", ".part", ".aside"


@dataclass(frozen=True)
class Identity:
    """What weights go with: a checkpoint of another is refused. codecs: name and fingerprint of CODECS, as samples
    record them; thinker: likewise."""

    actor: ActorConfig
    codecs: Mapping[str, str]
    thinker: str


@dataclass(frozen=True)
class Progress:
    """Where a run is: updates made, the epoch, and steps made in it. The last two are the whole cursor of the data."""

    step: int
    epoch: int
    epoch_step: int


@dataclass(frozen=True)
class Meta:
    """meta.json. recipe: TOML. facts: what else goes with the weights (the grid, licences). world: ranks that wrote
    it."""

    identity: Identity
    progress: Progress
    recipe: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    world: int = 1

    def as_json(self) -> bytes:
        """The file."""
        content = {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self.progress),
            "preset": self.identity.actor.preset,
            "actor": dataclasses.asdict(self.identity.actor),
            "codecs": dict(self.identity.codecs),
            "thinker": self.identity.thinker,
            "clock": CLOCK,
            "world": self.world,
            "facts": dict(self.facts),
            "versions": versions(),
            "recipe": self.recipe.splitlines(),
        }
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def versions() -> dict[str, str]:
    """Of what wrote a file."""
    import torch

    try:
        own = version("xstreamer")
    except PackageNotFoundError:  # run from a checkout
        own = "unknown"
    return {"xstreamer": own, "torch": str(torch.__version__), "python": platform.python_version()}


def read_meta(path: Path) -> Meta:
    """Of the checkpoint `path`. Raises ModelError for another format version or clock, Damaged for no whole file."""
    place = path / META
    try:
        content = json.loads(place.read_bytes())
        found = content["format_version"]
        if found == FORMAT_VERSION:
            return _parsed(content, path)
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{place} is missing") from None
    except (ValueError, TypeError, KeyError, UsageError) as error:
        raise Damaged(f"{place} is no whole one ({one_line(error, 160)})") from None
    raise ModelError(
        f"checkpoint {path} has format version {found}, this xstreamer reads {FORMAT_VERSION}; "
        "use the xstreamer that wrote it"
    )


def _parsed(content: Mapping[str, Any], path: Path) -> Meta:
    """Raises ValueError, TypeError, KeyError or UsageError for another content than `Meta.as_json` writes."""
    if content["clock"] != CLOCK:
        raise ModelError(f"checkpoint {path} goes by the clock {content['clock']}, not {CLOCK}; train anew")
    numbers = {name: content[name] for name in ("step", "epoch", "epoch_step", "world")}
    for name, value in numbers.items():
        if type(value) is not int or not (name == "world") <= value <= 1 << 40:
            raise ValueError(f"{name} is {value!r}")
    codecs, thinker = content["codecs"], content["thinker"]
    if set(codecs) != set(CODECS) or not all(isinstance(name, str) for name in (*codecs.values(), thinker)):
        raise ValueError(f"codecs are {codecs!r}, thinker is {thinker!r}")
    recipe = "".join(f"{line}\n" for line in content["recipe"])
    tomllib.loads(recipe)
    world = numbers.pop("world")
    identity = Identity(ActorConfig(**content["actor"]), codecs, thinker)
    return Meta(identity, Progress(**numbers), recipe, dict(content["facts"]), world)


def check_identity(found: Identity, wanted: Identity, path: Path) -> None:
    """Raises ModelError that names what the checkpoint `path` was trained on, where that is not `wanted`."""
    ours = {"preset": wanted.actor.preset, **dataclasses.asdict(wanted.actor)}
    theirs = {"preset": found.actor.preset, **dataclasses.asdict(found.actor)}
    for part in CODECS:
        ours[f"{part} codec"], theirs[f"{part} codec"] = wanted.codecs[part], found.codecs[part]
    ours["thinker"], theirs["thinker"] = wanted.thinker, found.thinker
    unlike = [name for name in ours if ours[name] != theirs[name]]
    if unlike:
        name = unlike[0]
        raise ModelError(
            f"checkpoint {path} is of another run: its {name} is {theirs[name]}, this run's is {ours[name]}; "
            f"resume with its own recipe and data ({META} holds them) or train into another folder"
        )


def folder_of(run: Path, step: int) -> Path:
    """Of the checkpoint after `step` updates."""
    return run / FOLDER / f"{PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """Of a checkpoint by its folder's name."""
    return int(path.name.removeprefix(PREFIX))


def whole_ones(run: Path) -> list[Path]:
    """Folders of finished checkpoints, oldest first."""
    found = (run / FOLDER).glob(f"{PREFIX}*") if (run / FOLDER).is_dir() else ()
    return sorted((path for path in found if path.name.removeprefix(PREFIX).isdecimal()), key=step_of)


def latest(run: Path) -> Path | None:
    """The newest finished checkpoint of a run, None without one."""
    found = whole_ones(run)
    return found[-1] if found else None


def newest(place: Path) -> Path:
    """A checkpoint's folder: `place` itself, or the newest of the run there. Raises UsageError when there is none."""
    found = place if place.name.startswith(PREFIX) and place.is_dir() else latest(place)
    if found is None:
        raise UsageError(f"{place} holds no checkpoint; name a run's folder or one of its {FOLDER}/{PREFIX}...")
    return found


def way_on(path: Path) -> str:
    """Where a run may go on from when the checkpoint `path` is damaged: the newest whole one before it."""
    run = path.parent.parent
    for other in reversed(whole_ones(run)):
        if path.name.removeprefix(PREFIX).isdecimal() and step_of(other) < step_of(path):
            try:
                read_meta(other)
                read_table(other)
            except ModelError:
                continue
            return f"go on from the whole one before it with --resume {other}"
    return "there is no whole one before it, train anew"
