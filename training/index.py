"""Datasets as a run names them: where their shards are, what their index lists, and whether the files are those.

A dataset is a folder of shards with an index.json, local or behind any fsspec URL, as `xstreamer pack` writes it.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manifests.errors import DatasetError, one_line
from manifests.shards import INDEX
from manifests.store import Store
from training.reading import Handles, is_remote

VALIDATION = "index-val.json"
KIND = "wids-shard-index-v1"
HASHED = 1 << 22
"""Bytes read at a time to be hashed."""


class Named(Protocol):
    """A dataset in a recipe. path: a folder of shards, its index, or with `profile` a dataset. weight: passes an epoch."""

    @property
    def path(self) -> str: ...

    @property
    def profile(self) -> str: ...

    @property
    def weight(self) -> float: ...


@dataclass(frozen=True)
class Listed:
    """A shard as its index lists it. place: path or URL; filesize -1 and sha256 "" where the index does not say."""

    place: str
    nsamples: int
    filesize: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Listing:
    """A dataset's shards: to train on and to validate with (perhaps none). place: folder, path or URL."""

    place: str
    weight: float
    train: tuple[Listed, ...]
    val: tuple[Listed, ...]

    @property
    def samples(self) -> int:
        """To train on."""
        return sum(shard.nsamples for shard in self.train)

    @property
    def seconds(self) -> float:
        """Of video to train on."""
        return sum(shard.seconds for shard in self.train)


def listed(dataset: Named) -> Listing:
    """What the indexes of `dataset` list. Raises DatasetError: no index, a damaged one, no sample to train on, a local
    shard that is missing or not of its size."""
    folder, name = _index_of(dataset.path, dataset.profile)
    store = Store(folder)
    train = _shards(store, name)
    if not sum(shard.nsamples for shard in train):
        raise DatasetError(f"{store.url(name)} lists no samples; choose another profile, or curate more and pack again")
    val = _shards(store, VALIDATION) if name == INDEX and _there(store, VALIDATION) else ()
    if not store.remote:
        for shard in (*train, *val):
            check_size(shard, _local_size(shard.place))
    return Listing(store.root, float(dataset.weight), train, val)


def check_size(shard: Listed, size: int) -> None:
    """Raises DatasetError when a shard's file is not as long as its index says."""
    if shard.filesize not in (-1, size):
        raise DatasetError(
            f"{shard.place} has {size} bytes, its index lists {shard.filesize}; copy it again or pack again"
        )


def verify(listings: Sequence[Listing], read: Callable[[int], None] = lambda size: None) -> None:
    """Hashes every shard. read: told the bytes of each block, for a progress bar. Raises DatasetError for the first
    whose content is not what its index says."""
    handles = Handles()
    for listing in listings:
        for shard in (*listing.train, *listing.val):
            check_size(shard, handles.size(shard.place))
            digest, offset = hashlib.sha256(), 0
            while block := handles.read(shard.place, offset, HASHED):
                digest.update(block)
                offset += len(block)
                read(len(block))
            if digest.hexdigest() != shard.sha256:
                raise DatasetError(
                    f"{shard.place} is not the file that its index lists (sha256 {digest.hexdigest()[:12]}..., not "
                    f"{shard.sha256[:12] or 'known'}...); copy it again or pack again"
                )


def _index_of(path: str, profile: str) -> tuple[str, str]:
    """(folder, name of the index in it)."""
    path = path.rstrip("/")
    if profile:
        return posixpath.join(path, "shards", profile), INDEX
    if path.endswith(".json"):
        folder, name = posixpath.split(path)
        return folder or ".", name
    return path, INDEX


def _there(store: Store, name: str) -> bool:
    try:
        return store.exists(name)
    except Exception as error:  # every file system has errors of its own
        raise DatasetError(f"{store.url(name)} cannot be looked for: {one_line(error)}") from error


def _shards(store: Store, name: str) -> tuple[Listed, ...]:
    """The shards of an index. Raises DatasetError."""
    place = store.url(name)
    try:
        found = json.loads(store.read(name))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"there is no {place}; {_instead(store)}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place} is damaged ({one_line(error)}); pack again") from None
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{place} cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict) or found.get("__kind__") != KIND or not isinstance(found.get("shardlist"), list):
        raise DatasetError(f"{place} is no index of shards ({KIND}); pack again")
    return tuple(_shard(store, entry, place) for entry in found["shardlist"])


def _shard(store: Store, entry: Any, place: str) -> Listed:
    url = entry.get("url") if isinstance(entry, dict) else None
    count = entry.get("nsamples") if isinstance(entry, dict) else None
    size = entry.get("filesize", -1) if isinstance(entry, dict) else None
    if not isinstance(url, str) or not isinstance(count, int) or not isinstance(size, int) or count < 0:
        raise DatasetError(f"{place} is damaged: a shard without url and nsamples; pack again")
    seconds = entry.get("seconds")
    return Listed(
        url if is_remote(url) else store.url(url),
        count,
        size,
        str(entry.get("sha256") or ""),
        float(seconds) if isinstance(seconds, int | float) else 0.0,
    )


def _instead(store: Store) -> str:
    """What to name where a folder holds no index."""
    inside = Store(store.url("shards"))
    try:
        profiles = [name for name in inside.entries() if inside.exists(f"{name}/{INDEX}")]
    except Exception:  # a hint that cannot be had is none
        profiles = []
    if profiles:
        return f"name a profile of this dataset: {', '.join(profiles)}"
    return "name a folder that `xstreamer pack` wrote, DATASET/shards/PROFILE"


def _local_size(place: str) -> int:
    try:
        return Path(place).stat().st_size
    except OSError as error:
        raise DatasetError(
            f"{place} is listed by its index, but: {error.strerror}; copy it too or pack again"
        ) from None
