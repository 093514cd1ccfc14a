"""Shards behind a URL give what local ones give; what the network does is tried again, then told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from loaded import ids, one_line, opened, recipe
from shards_made import make_shards

from manifests.errors import DatasetError
from training import reading
from training.data import loader


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made"), 6, (1, 1), range(2, 5), per_shard=3)


# behind a URL


@pytest.fixture
def remote(shards: Path) -> Iterator[str]:
    """The same shards, in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/bucket/shards", recursive=True)
    yield "memory://bucket/shards"
    memory.rm("/bucket", recursive=True)


def test_shards_behind_a_url_give_the_same_batches(shards: Path, remote: str) -> None:
    for workers in (0, 2):
        asked = recipe(epochs=2, workers=workers)
        near, far = list(loader(asked, opened(shards))), list(loader(asked, opened(remote)))
        assert [batch.ids for batch in near] == [batch.ids for batch in far]
        for here, there in zip(near, far, strict=True):
            assert here.latents.equal(there.latents)
    rest = list(loader(recipe(epochs=2), opened(remote), start=(1, 1)))
    assert len(rest) == 1 and rest[0].ids == near[-1].ids


def test_a_shard_behind_a_url_of_another_size_is_one_line(remote: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/shards/train-000000.tar", b"x" * 512)
    with pytest.raises(DatasetError, match="has 512 bytes, its index lists") as raised:
        opened(remote)
    one_line(raised)


def test_a_url_that_nothing_opens_is_one_line() -> None:
    with pytest.raises(DatasetError, match="nosuch://bucket/shards") as raised:
        opened("nosuch://bucket/shards")
    one_line(raised)


class Flaky:
    """A file whose reads fail now and then, as a network's do."""

    def __init__(self, path: str, faults: list[str]) -> None:
        self._file, self._faults = reading.LocalFile(path), faults
        self.size = self._file.size

    def read_at(self, offset: int, size: int) -> bytes:
        if self._faults:
            raise OSError(self._faults.pop())
        return self._file.read_at(offset, size)


def test_a_read_that_fails_is_tried_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = ["reset by peer"] * (reading.ATTEMPTS - 1)
    monkeypatch.setattr(reading, "open_source", lambda place: Flaky(place, faults))
    monkeypatch.setattr(reading, "PAUSE_S", 0.0)
    assert len(ids(list(loader(recipe(), opened(shards))))) == 6 and not faults
    faults += ["reset by peer"] * reading.ATTEMPTS
    with pytest.raises(DatasetError, match="cannot be read .*reset by peer.* resume") as raised:
        list(loader(recipe(), opened(shards)))
    one_line(raised)
