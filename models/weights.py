"""Weights on disk: which models there are, where their files lie, what exactly they are.

Files lie in XSTREAMER_MODELS/NAME (~/.cache/xstreamer/models without it). `models.fetch` puts them there and
`models.lock` remembers their hashes; nothing here reaches for the network.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from manifests.errors import ModelError

ENV = "XSTREAMER_MODELS"


@dataclass(frozen=True)
class WeightFile:
    """One file. path: under the model's folder; bytes, sha256: as published, None where they are not;
    member: the file inside the zip archive at `url`, "" where the URL is the file itself."""

    path: str
    url: str
    bytes: int | None = None
    sha256: str | None = None
    member: str = ""


@dataclass(frozen=True)
class Weights:
    """A model of the catalogue.

    name: its folder, and what commands and datasets call it. purpose: what it is for, a few words.
    homepage: who publishes it. revision: release, tag or commit. licence: of the weights, as published.
    commercial: whether that licence allows commercial use; None where it does not say.
    package: the distribution that carries the weights itself; "" for those that are fetched.
    """

    name: str
    purpose: str
    homepage: str
    revision: str
    licence: str
    commercial: bool | None
    package: str = ""
    files: tuple[WeightFile, ...] = ()


@cache
def catalogue() -> dict[str, Weights]:
    """Every model by name, in the order of the file."""
    content = tomllib.loads((resources.files("models") / "catalogue.toml").read_text())
    return {name: _parsed(name, body) for name, body in content.items()}


def _parsed(name: str, body: dict[str, object]) -> Weights:
    facts = dict(body)
    files = facts.pop("files", [])
    commercial = facts.pop("commercial", None)
    assert isinstance(files, list)
    return Weights(name, commercial=commercial, files=tuple(WeightFile(**one) for one in files), **facts)  # type: ignore[arg-type]


def models_dir() -> Path:
    """The folder of all weights."""
    return Path(os.environ.get(ENV) or Path.home() / ".cache" / "xstreamer" / "models")


def weights_file(name: str, path: str = "") -> Path:
    """File `path` of model `name` (its first one by default). Raises ModelError when it is not there."""
    entry = catalogue()[name]
    place = models_dir() / name / (path or entry.files[0].path)
    if not place.is_file():
        raise ModelError(f"no weights of {name} at {place}; run: xstreamer models fetch {name}, or set {ENV}")
    return place


def weights_folder(name: str) -> Path:
    """Folder of model `name` with every file of it in place. Raises ModelError when one is missing."""
    for file in catalogue()[name].files:
        weights_file(name, file.path)
    return models_dir() / name
