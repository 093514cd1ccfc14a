"""Encoded samples: members KEY.json, KEY.text.npy, ... in tar files whose bytes depend on their content alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

from manifests.errors import DatasetError
from manifests.store import Store

Sample = Mapping[str, bytes]
"""Members of one sample by extension: {"json": ..., "text.npy": ...}."""


def write_tar(file: IO[bytes], samples: Mapping[str, Sample]) -> None:
    """A tar of `samples` in the order of their keys, members sorted, no times, no owners."""
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for key in sorted(samples):
            add_sample(tar, key, samples[key])


def add_sample(tar: tarfile.TarFile, key: str, sample: Sample) -> None:
    """Appends the members of one sample."""
    for extension in sorted(sample):
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(sample[extension])
        member.mode = 0o644
        tar.addfile(member, io.BytesIO(sample[extension]))


def read_tar(file: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) in file order. Raises DatasetError for a damaged tar or a member that is no file."""
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                content = tar.extractfile(entry)
                if content is None or "." not in entry.name:
                    raise DatasetError(f"unexpected member {entry.name!r} in a sample tar")
                found, extension = entry.name.split(".", 1)
                if found != key and members:
                    yield key, members
                    members = {}
                key = found
                members[extension] = content.read()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DatasetError(f"damaged tar: {error}") from error
    if members:
        yield key, members


def load_samples(store: Store, tar: str, folder: str = "samples") -> dict[str, dict[str, bytes]]:
    """Every sample of `folder`/`tar`, none when the file is not there."""
    try:
        with store.open(f"{folder}/{tar}") as file:
            return dict(read_tar(file))
    except FileNotFoundError:
        return {}


def sample_digest(sample: Sample) -> str:
    """SHA-256 in hex over the members: names, lengths and contents."""
    digest = hashlib.sha256()
    for extension in sorted(sample):
        digest.update(f"{extension}\0{len(sample[extension])}\0".encode())
        digest.update(sample[extension])
    return digest.hexdigest()


def sample_bytes(sample: Sample) -> int:
    """Bytes of all members."""
    return sum(map(len, sample.values()))
