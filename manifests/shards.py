"""WebDataset shards and their index, which the `wids` package reads too."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from manifests.errors import DatasetError
from manifests.samples import Sample, add_sample
from manifests.store import Store

INDEX = "index.json"
SPLITS = ("train", "val")
_POINT = 1 << 32


@dataclass(frozen=True)
class Shard:
    """One shard file as the index lists it. seconds: of video; sha256 over the file."""

    url: str
    nsamples: int
    filesize: int
    sha256: str
    seconds: float

    def entry(self) -> dict[str, Any]:
        """As in the index: wids reads url, nsamples and filesize."""
        return {**self.__dict__, "seconds": round(self.seconds, 3)}


class _Hashing:
    """A file to write that hashes and counts what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self._file.write(content)


def place(key: str) -> int:
    """A number from 0 to 2^32 - 1 that depends on the key alone and looks random."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


def shuffled(keys: Iterable[str]) -> list[str]:
    """The keys in an order that mixes sources, the same each time."""
    return sorted(keys, key=lambda key: (place(key), key))


def validation_groups(groups: Iterable[str], share: float) -> set[str]:
    """The groups (identities or sources) held out: each by its own hash, so that growing data moves none.

    At least one of two or more groups when `share` > 0: a set without validation helps nobody.
    """
    names = set(groups)
    held = {name for name in names if place(f"val:{name}") < share * _POINT}
    if not held and share > 0 and len(names) > 1:
        held = {min(names, key=lambda name: (place(f"val:{name}"), name))}
    return held if len(held) < len(names) else set(sorted(held)[1:])


def write_shards(
    store: Store, folder: str, split: str, samples: Iterable[tuple[str, Sample, float]], per_shard: int, max_bytes: int
) -> Iterator[Shard]:
    """Writes FOLDER/SPLIT-000000.tar, ... of (key, members, seconds) in the order given; yields each shard.

    A shard closes at `per_shard` samples or once it exceeds `max_bytes`. No shard is empty.
    """
    source = iter(samples)
    held = next(source, None)
    number = 0
    while held is not None:
        name = f"{split}-{number:06d}.tar"
        count, seconds = 0, 0.0
        with store.writing(f"{folder}/{name}") as file:
            hashing = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
                while held is not None and count < per_shard and hashing.size < max_bytes:
                    add_sample(tar, held[0], held[1])
                    count, seconds = count + 1, seconds + held[2]
                    held = next(source, None)
        yield Shard(name, count, hashing.size, hashing.digest.hexdigest(), seconds)
        number += 1


def write_index(store: Store, folder: str, shards: Mapping[str, Sequence[Shard]], facts: Mapping[str, Any]) -> None:
    """Writes FOLDER/index.json (train) and index-val.json last, then deletes shards that no index lists."""
    listed = {INDEX, "index-val.json"}
    totals = {
        split: {
            "shards": len(found),
            "samples": sum(s.nsamples for s in found),
            "seconds": round(sum(s.seconds for s in found), 3),
            "bytes": sum(s.filesize for s in found),
        }
        for split, found in shards.items()
    }
    for split, name in (("val", "index-val.json"), ("train", INDEX)):
        entries = [shard.entry() for shard in shards.get(split, ())]
        listed |= {entry["url"] for entry in entries}
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": f"{facts['profile']}-{split}"}
        index |= {"split": split, "shardlist": entries, "totals": totals, **facts}
        store.write(f"{folder}/{name}", json.dumps(index, indent=1, sort_keys=True).encode() + b"\n")
    for name in store.names(folder):
        if name not in listed:
            store.remove(f"{folder}/{name}")


def read_index(store: Store, folder: str, name: str = INDEX) -> dict[str, Any]:
    """An index. Raises DatasetError when it is missing or damaged."""
    try:
        found = json.loads(store.read(f"{folder}/{name}"))
    except FileNotFoundError:
        raise DatasetError(f"no {store.url(f'{folder}/{name}')}; write it with: xstreamer pack {store.root}") from None
    except ValueError as error:
        raise DatasetError(f"{store.url(f'{folder}/{name}')} is damaged ({error}); pack again") from None
    if not isinstance(found, dict) or not isinstance(found.get("shardlist"), list):
        raise DatasetError(f"{store.url(f'{folder}/{name}')} is no shard index; pack again")
    return found
