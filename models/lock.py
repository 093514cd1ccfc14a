"""What the weights on this machine are: hashes, recorded the first time a file is seen and held to ever after."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from manifests.errors import ModelError
from models.weights import ENV, WeightFile, entry, models_dir, require, weights_file

LOCK = "lock.json"
"""{model: {path: {sha256, bytes, mtime_ns; url, commit where it was fetched}}} in the folder of all weights."""
READ_BYTES = 1 << 22
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Facts = dict[str, Any]


def identity(names: Sequence[str]) -> str:
    """What models `names` are: "name sha256[:16]" of their files together, "distribution version" of packaged ones.

    Raises ModelError when files are missing (all of them named) or are no longer those that were recorded.
    """
    require(names)
    return ", ".join(_identity(name) for name in names)


def _identity(name: str) -> str:
    model = entry(name)
    if model.package:
        return packaged(model.package)
    digests = [f"{file.path} {recorded(name, file.path)['sha256']}" for file in model.files]
    return f"{name} {hashlib.sha256(chr(10).join(digests).encode()).hexdigest()[:16]}"


def packaged(package: str) -> str:
    """ "distribution version". Raises ModelError when it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise ModelError(f"package {package} is not installed; run: pip install {package}") from None


def recorded(name: str, path: str) -> Facts:
    """The lock's entry of a file, made now when it has none; in a folder that cannot be written it is not kept.

    Hashes the file unless size and time are those of the entry. Raises ModelError when the file is another one.
    """
    place = weights_file(name, path)
    facts = place.stat()
    known = read_lock().get(name, {}).get(path)
    if known and (known["bytes"], known["mtime_ns"]) == (facts.st_size, facts.st_mtime_ns):
        return known
    return hashed(name, path, _sha256_of(place, facts.st_size, facts.st_mtime_ns, facts.st_ino))


def hashed(name: str, path: str, sha256: str) -> Facts:
    """The entry of a file whose hash was just taken, recorded. Raises ModelError when it is not the published or
    recorded file."""
    place = weights_file(name, path)
    known = read_lock().get(name, {}).get(path)
    fault = unlike(entry(name).file(path), known, sha256, place.stat().st_size)
    if fault:
        raise ModelError(f"{place} {fault}; run: xstreamer models fetch {name} --again")
    facts = {**(known or {}), **facts_of(place, sha256)}
    if facts == known:
        return facts
    try:
        record(name, path, facts)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise explained(error, place) from error
    return facts


def facts_of(place: Path, sha256: str) -> Facts:
    """What the lock keeps of a file."""
    found = place.stat()
    return {"sha256": sha256, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def unlike(file: WeightFile, known: Facts | None, sha256: str, size: int) -> str:
    """Why a file of this hash and size is not `file` as published or as recorded; "" when it is."""
    if file.bytes is not None and size != file.bytes:
        return f"is of {size} bytes, not the {file.bytes} that were published"
    for wanted, origin in ((file.sha256, "published"), (known and known["sha256"], "recorded at first fetch")):
        if wanted and sha256 != wanted:
            return f"is not the file that was {origin} (sha256 {sha256[:12]}..., not {wanted[:12]}...)"
    return ""


def record(name: str, path: str, facts: Facts) -> None:
    """Writes one entry of the lock, whole or not at all; entries that others write at the same time stay.

    Raises OSError where the folder cannot be written.
    """
    folder = models_dir()
    with guard(folder / f".{LOCK}.guard"):
        lock = read_lock()
        lock.setdefault(name, {})[path] = facts
        part = folder / f".{LOCK}.part"
        with part.open("w") as file:
            file.write(json.dumps(lock, indent=1, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / LOCK)


def read_lock() -> dict[str, dict[str, Facts]]:
    """The lock, empty where there is none. Raises ModelError when it is damaged."""
    place = models_dir() / LOCK
    try:
        content = json.loads(place.read_text())
        for files in content.values():
            for facts in files.values():
                _ = facts["sha256"][:12], facts["bytes"] + facts["mtime_ns"]
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{place} is damaged ({error}); move it away and run: xstreamer models verify") from None
    return dict(content)


@contextmanager
def guard(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds `path` for this process and thread alone; a killed holder lets go.

    waiting: called once when another holds it. Raises OSError where the folder cannot be written.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def explained(error: OSError, place: Path) -> ModelError:
    """The line that says what the disk refused and what to do."""
    if error.errno in FULL:
        return ModelError(f"no space left for {place}; free some and run the same command, or set {ENV} elsewhere")
    if error.errno in READ_ONLY:
        return ModelError(f"{place} cannot be written ({error.strerror}); change its rights or set {ENV} elsewhere")
    return ModelError(f"{place}: {error.strerror or error}; set {ENV} to a folder that can be written")


@functools.lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Hash of the file as it is now, once a process: a read-only folder keeps no record of it."""
    return file_sha256(path)


def file_sha256(path: Path, read: Callable[[int], None] | None = None) -> str:
    """SHA-256 in hex; `read` is told the bytes of every block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            if read:
                read(len(block))
    return digest.hexdigest()
