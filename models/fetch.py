"""Weights from their publishers: every file arrives whole and as it should be, or the old one stays."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from manifests.errors import ModelError
from models.download import Failed, Offer, Watch, discard, download
from models.lock import explained, facts_of, file_sha256, guard, read_lock, record, recorded, unlike
from models.weights import ENV, PARTIAL, WeightFile, Weights, entry, models_dir

OFFLINE = "XSTREAMER_OFFLINE"
SPARE_BYTES = 1 << 20
"""Left free on the disk."""
UNPACKED_RATIO = 100
"""A member whose size is not published may be as many times larger than its archive."""
BLOCK = 1 << 20


def offline() -> bool:
    """Whether this machine must not reach for the network."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def refuse_offline(names: Sequence[str], again: bool = False) -> None:
    """Raises ModelError that lists the files to copy by hand, when offline and one of `names` needs some."""
    folder = models_dir()
    paths = [f"{name}/{file.path}" for name in names for file in entry(name).files]
    wanted = [path for path in paths if again or not (folder / path).is_file()]
    if offline() and wanted:
        raise ModelError(
            f"{OFFLINE} is set, so nothing is fetched; copy {', '.join(wanted)} from a machine that has them into "
            f"{folder} and run: xstreamer models verify {' '.join(names)}"
        )


class _WrongFile(ModelError):
    """What came is whole and not what it should be."""


@dataclass(frozen=True)
class _Job:
    """One model being fetched. accept: whether another file than the recorded one is welcome."""

    model: Weights
    folder: Path
    watch: Watch
    accept: bool


def fetch(name: str, watch: Watch, again: bool = False, accept: bool = False) -> list[Path]:
    """Puts the files of model `name` that are missing in place; those that it fetched.

    again: fetches those that are there anew. accept: takes what the publisher offers now, where it publishes no
    hash and the lock remembers another file. Raises ModelError, a line, with every old file as it was.
    """
    job = _Job(entry(name), models_dir() / name, watch, accept)
    if not job.model.files:
        return []
    refuse_offline([name], again)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with guard(job.folder.with_name(f".{name}.guard"), lambda: watch.say(f"waiting for another fetch of {name}")):
            wanted = [file for file in job.model.files if again or not (job.folder / file.path).is_file()]
            for file in job.model.files:
                if file not in wanted:
                    recorded(name, file.path)
            return [place for files in _by_url(wanted) for place in _fetch_url(job, files)]
    except OSError as error:
        raise explained(error, job.folder) from error


def _by_url(files: Sequence[WeightFile]) -> list[list[WeightFile]]:
    """Files that one URL holds together; an archive is fetched once."""
    ordered = sorted(files, key=lambda file: file.url)
    return [list(some) for _, some in groupby(ordered, key=lambda file: file.url)]


def _fetch_url(job: _Job, files: Sequence[WeightFile]) -> list[Path]:
    first = files[0]
    name = PurePosixPath(urlsplit(first.url).path).name if first.member else first.path
    part = job.folder / f"{name}{PARTIAL}"
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        offer = download(first.url, part, job.watch, _room(job.folder), None if first.member else first.bytes)
        digest = file_sha256(part)
        if offer.sha256 and digest != offer.sha256:
            discard(part)
            raise Failed("came damaged (its hash is not the one that the hub states)", again=True)
        if first.member:
            return _unpack(job, files, part, offer)
        return [_keep(job, first, part, digest, offer)]
    except Failed as failure:
        raise ModelError(f"{job.model.name}: {first.url} {failure}; {_advice(job.model, first, failure)}") from None


def _advice(model: Weights, file: WeightFile, failure: Failed) -> str:
    if failure.again:
        return f"what came is kept, nothing else was changed; run later: xstreamer models fetch {model.name}"
    source = f"{file.member} of it" if file.member else "it"
    return (
        f"nothing was changed; get {source} by hand (see {model.homepage}), put it at "
        f"{models_dir() / model.name / file.path} and run: xstreamer models verify {model.name}"
    )


def _keep(job: _Job, file: WeightFile, part: Path, digest: str, offer: Offer) -> Path:
    """Moves a file that has arrived to its place, if it is the right one."""
    name, place = job.model.name, job.folder / file.path
    known = None if job.accept else read_lock().get(name, {}).get(file.path)
    fault = unlike(file, known, digest, part.stat().st_size)
    if fault:
        discard(part)
        raise _WrongFile(f"{name}: what {file.url} sent {fault}; nothing was changed; {_if_unlike(job.model, file)}")
    with part.open("rb") as written:
        os.fsync(written.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    part.replace(place)
    discard(part)
    _sync(place.parent)
    record(name, file.path, {**facts_of(place, digest), "url": file.url, "commit": offer.commit})
    if urlsplit(file.url).scheme == "http" and not (file.sha256 or known):
        job.watch.say(f"{name}: {file.path} came over plain http with no published hash; recorded sha256 {digest}")
    return place


def _if_unlike(model: Weights, file: WeightFile) -> str:
    command = f"xstreamer models fetch {model.name} --again"
    if file.sha256 or file.bytes is not None:
        return f"run: {command}; if it stays so, ask at {model.homepage}"
    return f"if {model.homepage} says that it changed, run: {command} --accept-changed"


def _unpack(job: _Job, files: Sequence[WeightFile], archive: Path, offer: Offer) -> list[Path]:
    """Takes the members of a zip archive that the catalogue names, each to the path that the catalogue gives.

    The archive stays where the disk alone was at fault.
    """
    out = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for file in files:
                part = job.folder / f"{file.path}{PARTIAL}"
                part.parent.mkdir(parents=True, exist_ok=True)
                try:
                    _extract(opened, file, part, archive.stat().st_size)
                    out.append(_keep(job, file, part, file_sha256(part), offer))
                finally:
                    discard(part)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        discard(archive)
        raise Failed(f"sent no zip archive that can be read ({error})") from None
    except (Failed, _WrongFile):
        discard(archive)
        raise
    discard(archive)
    return out


def _extract(opened: zipfile.ZipFile, file: WeightFile, part: Path, packed: int) -> None:
    """Writes one member to `part`. Raises Failed when it is missing or larger than it may be."""
    try:
        info = opened.getinfo(file.member)
    except KeyError:
        raise Failed(f"holds no {file.member}, only {', '.join(opened.namelist()[:5])}") from None
    limit = file.bytes if file.bytes is not None else packed * UNPACKED_RATIO
    if info.file_size > limit:
        raise Failed(f"holds a {file.member} of {info.file_size} bytes, more than the {limit} that it may have")
    _room(part.parent)(info.file_size)
    left = info.file_size
    with opened.open(info) as source, part.open("wb") as target:
        while block := source.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise Failed(f"holds a {file.member} that is larger than it says")
            target.write(block)


def _room(folder: Path) -> Callable[[int], None]:
    """Raises ModelError when the disk has no room for so many bytes."""

    def check(needed: int) -> None:
        free = shutil.disk_usage(folder).free
        if needed and needed + SPARE_BYTES > free:
            raise ModelError(
                f"{folder} needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free (some are kept free); "
                f"free some and run the same command, or set {ENV} to another disk"
            )

    return check


def _sync(folder: Path) -> None:
    """Makes a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
