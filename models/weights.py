"""Weights on disk: which models there are, where their files lie, what exactly they are.

Files lie in XSTREAMER_MODELS/NAME (~/.cache/xstreamer/models without it). `models.fetch` puts them there and
`models.lock` remembers their hashes; nothing here reaches for the network. A catalogue.toml in that folder adds
models of your own (for backends of your own) and replaces ours of the same name (a mirror).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from manifests.errors import ModelError

ENV = "XSTREAMER_MODELS"
CATALOGUE = "catalogue.toml"
PARTIAL = ".part"
"""Ending of files that are still being fetched."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightFile:
    """One file. path: under the model's folder; bytes, sha256: of that file as published, None where they are not;
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
    homepage: who publishes it. licence: of the weights, as published. revision: release, tag or commit.
    commercial: whether that licence allows commercial use; None where it does not say.
    package: the distribution that carries the model itself; "" for those that are fetched.
    needs: a module of the extra `paper` without which it does not run.
    """

    name: str
    purpose: str
    homepage: str
    licence: str
    revision: str = ""
    commercial: bool | None = None
    package: str = ""
    needs: str = ""
    files: tuple[WeightFile, ...] = ()

    def file(self, path: str) -> WeightFile:
        """Its file `path`. Raises ModelError when it has none of that name."""
        for file in self.files:
            if file.path == path:
                return file
        raise ModelError(f"model {self.name} has no file {path!r} in the catalogue; it has {_listed(self.files)}")


def catalogue() -> dict[str, Weights]:
    """Every model by name: the shipped ones, then those of XSTREAMER_MODELS/catalogue.toml.

    Raises ModelError when that file is wrong.
    """
    own = models_dir() / CATALOGUE
    if not own.is_file():
        return _shipped()
    try:
        text = own.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{own} is not valid TOML: {error}") from None
    return {**_shipped(), **read_catalogue(text, str(own))}


@cache
def _shipped() -> dict[str, Weights]:
    return read_catalogue((resources.files("models") / CATALOGUE).read_text(), CATALOGUE)


def read_catalogue(text: str, origin: str) -> dict[str, Weights]:
    """Models of a catalogue in TOML. Raises ModelError that names what is wrong in it."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{origin} is not valid TOML: {error}") from None
    return {name: _parsed(name, body, f"{origin}: [{name}]") for name, body in content.items()}


def _parsed(name: str, body: Any, where: str) -> Weights:
    if not _NAME.fullmatch(name) or not isinstance(body, dict):
        raise ModelError(f"{where} must be a table with a plain name (letters, digits, '.', '_', '-')")
    files = body.get("files", [])
    if not isinstance(files, list) or bool(files) == bool(body.get("package")):
        raise ModelError(f"{where} needs either files = [...] or package = '...'")
    facts = {key: value for key, value in body.items() if key != "files"}
    model: Weights = _built(Weights, {"name": name, **facts}, where)
    parsed = tuple(_file(one, f"{where} file {at}") for at, one in enumerate(files, 1))
    if len({file.path for file in parsed}) != len(parsed):
        raise ModelError(f"{where} names a path twice")
    return replace(model, files=parsed)


def _file(body: Any, where: str) -> WeightFile:
    file: WeightFile = _built(WeightFile, body, where)
    path, url = PurePosixPath(file.path), urlsplit(file.url)
    if not file.path or path.is_absolute() or ".." in path.parts or file.path.endswith(PARTIAL) or "\\" in file.path:
        raise ModelError(f"{where}: path {file.path!r} must lie inside the model's folder")
    if url.scheme not in ("https", "http") or not url.hostname:
        raise ModelError(f"{where}: url {file.url!r} must be https://... (or http://..., where there is no other)")
    if file.sha256 is not None and not _SHA256.fullmatch(file.sha256):
        raise ModelError(f"{where}: sha256 {file.sha256!r} must be 64 lower-case hex digits")
    return file


def _built(kind: type, body: Any, where: str) -> Any:
    """`kind` from a TOML table. Raises ModelError for a key that is unknown, missing or of another type."""
    if not isinstance(body, Mapping):
        raise ModelError(f"{where} must be a table")
    known = {field.name for field in fields(kind) if field.name != "files"}
    for key, value in body.items():
        if key not in known:
            raise ModelError(f"{where} has unknown key {key!r}; known: {', '.join(sorted(known))}")
        wanted = {"bytes": int, "commercial": bool}.get(key, str)
        if type(value) is not wanted:
            raise ModelError(f"{where} {key} = {value!r} must be of type {wanted.__name__}")
    try:
        return kind(**body)
    except TypeError as error:
        raise ModelError(f"{where} is not complete: {error}") from None


def models_dir() -> Path:
    """The folder of all weights."""
    return Path(os.environ.get(ENV) or Path.home() / ".cache" / "xstreamer" / "models")


def entry(name: str) -> Weights:
    """Model `name` of the catalogue. Raises ModelError when there is none, and names those that there are."""
    known = catalogue()
    if name not in known:
        raise ModelError(f"no model {name!r} in the catalogue; there is {', '.join(known)}")
    return known[name]


def weights_file(name: str, path: str = "") -> Path:
    """File `path` of model `name` (its first one by default). Raises ModelError when it is not there."""
    model = entry(name)
    if not model.files:
        raise ModelError(f"model {name} has no files to load: package {model.package} carries it")
    place = models_dir() / name / model.file(path or model.files[0].path).path
    if not place.is_file():
        raise ModelError(f"no weights of {name} at {place}; run: xstreamer models fetch {name}, or set {ENV}")
    return place


def weights_folder(name: str) -> Path:
    """Folder of model `name` with every file of it in place. Raises ModelError when one is missing."""
    for file in entry(name).files:
        weights_file(name, file.path)
    return models_dir() / name


def missing(names: Sequence[str]) -> list[str]:
    """Those of `names` that lack a file. Raises ModelError for an unknown name."""
    folder = models_dir()
    return [name for name in names if not all((folder / name / file.path).is_file() for file in entry(name).files)]


def require(names: Sequence[str]) -> None:
    """Raises one ModelError that names all of `names` that are not there, and the command that fetches them; one
    that names the packages to install, where those are missing."""
    modules = sorted({entry(name).needs for name in names} - {""})
    lacking = [module for module in modules if find_spec(module) is None]
    if lacking:
        raise ModelError(f"no package {', '.join(lacking)}; run: pip install 'xstreamer[paper]'")
    absent = missing(names)
    if absent:
        raise ModelError(
            f"no weights of {', '.join(absent)} under {models_dir()}; "
            f"run: xstreamer models fetch {' '.join(absent)}, or set {ENV}"
        )


def _listed(files: Sequence[WeightFile]) -> str:
    return ", ".join(file.path for file in files) or "none"
