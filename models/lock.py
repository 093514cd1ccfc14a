"""What the weights on this machine are: hashes, recorded the first time a file is seen and held to ever after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manifests.errors import ModelError
from models.weights import catalogue, models_dir, weights_file

LOCK = "lock.json"
"""{model: {path: {sha256, bytes, mtime_ns}}} in the folder of all weights."""
READ_BYTES = 1 << 22


def identity(names: Sequence[str]) -> str:
    """What models `names` are: "name sha256[:16]" of their files together, "distribution version" of packaged ones.

    Raises ModelError when a file is missing or is no longer the one that was recorded.
    """
    parts = []
    for name in names:
        entry = catalogue()[name]
        if entry.package:
            parts.append(f"{entry.package} {version(entry.package)}")
            continue
        digests = [f"{file.path} {recorded(name, file.path)['sha256']}" for file in entry.files]
        parts.append(f"{name} {hashlib.sha256(chr(10).join(digests).encode()).hexdigest()[:16]}")
    return ", ".join(parts)


def recorded(name: str, path: str) -> dict[str, Any]:
    """The lock's entry of a file, made now when it has none. Raises ModelError when the file is another one."""
    place = weights_file(name, path)
    facts = place.stat()
    known = read_lock().get(name, {}).get(path)
    if known and (known["bytes"], known["mtime_ns"]) == (facts.st_size, facts.st_mtime_ns):
        return dict(known)
    found = {"sha256": file_sha256(place), "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    published = next(file.sha256 for file in catalogue()[name].files if file.path == path)
    wanted = published or (known and known["sha256"])
    if wanted and found["sha256"] != wanted:
        raise ModelError(
            f"{place} is not the file that was {'published' if published else 'recorded'} (sha256 {found['sha256'][:12]}"
            f", not {wanted[:12]}); run: xstreamer models fetch {name} --again"
        )
    record(name, path, found)
    return found


def record(name: str, path: str, facts: dict[str, Any]) -> None:
    """Writes one entry of the lock, whole or not at all."""
    lock = read_lock()
    lock.setdefault(name, {})[path] = facts
    place = models_dir() / LOCK
    part = place.with_name(f"{LOCK}.{os.getpid()}.part")
    part.write_text(json.dumps(lock, indent=1, sort_keys=True))
    part.replace(place)


def read_lock() -> dict[str, dict[str, dict[str, Any]]]:
    """The lock, empty where there is none. Raises ModelError when it is damaged."""
    place = models_dir() / LOCK
    if not place.is_file():
        return {}
    try:
        content = json.loads(place.read_text())
    except ValueError as error:
        raise ModelError(f"{place} is damaged ({error}); move it away and run: xstreamer models verify") from None
    return dict(content)


def file_sha256(path: Path) -> str:
    """SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
