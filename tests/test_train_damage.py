"""Damaged shards: what is broken is counted, told of once and left out, up to a limit; no file can raise anything else."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from loaded import LENIENT, Samples, array, ids, npy, one_line, opened, packed, recipe, relisted
from shards_made import make_sample, make_shards

from manifests.errors import DatasetError
from manifests.samples import add_sample, read_tar
from models.thinker import STATES
from training import reading
from training.data import loader, validation_batches
from training.reading import Damaged, Handles, Shard, npy_array


@pytest.fixture(scope="module")
def made() -> Samples:
    """Six samples, by key."""
    return dict(make_sample(number, 2 + number % 3, (1, 1)) for number in range(6))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made"), 6, (1, 1), range(2, 5), per_shard=3)


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """The same shards, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


# what is damaged


def edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        members[name] = change(members[name])

    return edit


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        del members[name]

    return edit


def with_bits(content: bytes, bits: int) -> bytes:
    values = array(content).copy()
    values.reshape(-1).view(np.uint16)[7] = bits
    return npy(values)


def told(**facts: Any) -> Callable[[dict[str, bytes]], None]:
    return edited("json", lambda content: json.dumps(json.loads(content) | facts).encode())


def claiming(shape: bytes) -> bytes:
    """An empty array that says it has another shape."""
    plain = npy(np.empty(0, np.int32))
    header = plain[10:128].replace(b"(0,)", b"(" + shape + b")").rstrip() + b"\n"
    return plain[:8] + len(header).to_bytes(2, "little") + header


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("trapped"), "sprung"))


FAULTS = {
    "no latents": (without("latents.npy"), "no latents.npy"),
    "no json": (without("json"), "no json"),
    "no text": (without("text.npy"), "no text.npy"),
    "no states": (without(STATES), "no thinker.npy"),
    "json of nothing": (edited("json", lambda _: b"{"), "JSON that is none"),
    "json of a list": (edited("json", lambda _: b"[]"), "JSON that is no object"),
    "json nested too deep": (edited("json", lambda _: b"[" * 100_000), "JSON that is none"),
    "json of another encoding": (edited("json", lambda _: b"\xff\xfe{"), "JSON that is none"),
    "no codecs": (told(codecs=None), "which codecs"),
    "no chunks": (told(chunks=None), "has None chunks"),
    "negative chunks": (told(chunks=-3), "has -3 chunks"),
    "other chunks": (told(chunks=9), "not float16 [10, 128, n, n]"),
    "infinite": (edited("latents.npy", lambda c: with_bits(c, 0x7C00)), "numbers that are none"),
    "minus infinite": (edited("latents.npy", lambda c: with_bits(c, 0xFC00)), "numbers that are none"),
    "nan": (edited("reference.npy", lambda c: with_bits(c, 0x7E01)), "numbers that are none"),
    "nan states": (edited(STATES, lambda c: with_bits(c, 0xFE01)), "numbers that are none"),
    "float32": (edited("latents.npy", lambda c: npy(array(c).astype(np.float32))), "latents.npy is float32"),
    "big-endian": (edited("latents.npy", lambda c: npy(array(c).astype(">f2"))), "no .npy file of plain numbers"),
    "few references": (edited("reference.npy", lambda c: npy(array(c)[:3])), "reference.npy is float16 [3, 128"),
    "short speech": (edited("speech.npy", lambda c: npy(array(c)[:-1])), "speech.npy is int32"),
    "text in rows": (edited("text.npy", lambda c: npy(array(c)[None])), "text.npy is int32"),
    "few states": (edited(STATES, lambda c: npy(array(c)[:-1])), "states for"),
    "narrow states": (edited(STATES, lambda c: npy(array(c)[:, :8])), "thinker.npy is float16"),
    "cut short": (edited("latents.npy", lambda c: c[:-10]), "latents.npy holds"),
    "too long": (edited("latents.npy", lambda c: c + b"0"), "latents.npy holds"),
    "no npy": (edited("text.npy", lambda _: b"hello"), "text.npy is no .npy"),
    "empty": (edited("text.npy", lambda _: b""), "text.npy is no .npy"),
    "of objects": (edited("text.npy", lambda _: npy([Trap()], dtype=object)), "no .npy file of plain numbers"),
    "claims a terabyte": (edited("text.npy", lambda _: claiming(b"1 << 40,")), "no .npy file of plain numbers"),
    "claims too much": (edited("text.npy", lambda _: claiming(b"9999999999,")), "not 9999999999 numbers"),
    "claims far too much": (
        edited("text.npy", lambda _: claiming(b"9999999999," * 7)),
        "no .npy file of plain numbers",
    ),
    "claims less than nothing": (edited("text.npy", lambda _: claiming(b"-1,")), "no .npy file of plain numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_sample_is_counted_and_left_out(
    fault: str, made: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit, why = FAULTS[fault]
    bad = list(made)[1]
    samples = {key: dict(members) for key, members in made.items()}
    edit(samples[bad])
    batches = list(loader(recipe(**LENIENT, workers=1), opened(packed(tmp_path, samples))))
    assert sorted(ids(batches)) == sorted(set(made) - {bad})
    assert sum(batch.damaged for batch in batches) == 1
    (note,) = [note for batch in batches for note in batch.notes]
    assert f"sample {bad} in " in note and why in note
    assert not (tmp_path / "trapped").exists()


def test_a_damaged_sample_is_told_of_once_and_counted_every_time(made: Samples, tmp_path: Path) -> None:
    samples = made | {next(iter(made)): {**next(iter(made.values())), "json": b"{"}}
    batches = list(loader(recipe(epochs=3, **LENIENT), opened(packed(tmp_path, samples))))
    assert sum(batch.damaged for batch in batches) == 3
    assert sum(len(batch.notes) for batch in batches) == 1


def test_more_damage_than_the_recipe_allows_stops_the_run(made: Samples, tmp_path: Path) -> None:
    samples = {
        key: {**members, "speech.npy": b""} if at in (2, 4) else members
        for at, (key, members) in enumerate(made.items())
    }
    folder = packed(tmp_path, samples)
    assert len(ids(list(loader(recipe(epochs=3, max_damaged=0.4), opened(folder))))) == 12
    with pytest.raises(DatasetError, match="2 of 6 samples are damaged, more than max_damaged = 0.3") as raised:
        list(loader(recipe(max_damaged=0.3), opened(folder)))
    assert "speech.npy is no .npy" in one_line(raised)


CUTS = {
    "in a member": (lambda content, at: content[: at + 512 + 40], "in the middle of a member"),
    "in a header": (lambda content, at: content[: at + 200], "in the middle of a header"),
    "between members": (lambda content, at: content[:at], "fewer than its index lists"),
    "garbage": (lambda content, at: content[:at] + b"\x55" * (len(content) - at), "no number where"),
    "one bit": (lambda content, at: content[:at] + b"\xff" + content[at + 1 :], "no tar header"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_the_rest_of_a_damaged_shard_is_lost_and_told_of_once(cut: str, copy: Path, made: Samples) -> None:
    """The first of its three samples is read, whatever comes after it."""
    path = copy / "train-000001.tar"
    with tarfile.open(path) as tar:
        third = [entry for entry in tar if entry.name.endswith(".json")][1]
    change, why = CUTS[cut]
    path.write_bytes(change(path.read_bytes(), third.offset))
    relisted(copy)
    batches = list(loader(recipe(**LENIENT), opened(copy)))
    assert len(ids(batches)) == len(set(ids(batches))) == 4
    assert sum(batch.damaged for batch in batches) == 2
    notes = [note for batch in batches for note in batch.notes]
    assert any(why in note for note in notes) and all("train-000001.tar" in note for note in notes)
    assert len(notes) <= 2


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """(folder of one small shard, its bytes)"""
    folder = make_shards(tmp_path_factory.mktemp("victim"), 3, (1, 1), range(1, 3))
    return folder, (folder / "train-000000.tar").read_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=24)), max_size=4),
    length=st.none() | st.integers(0, 1 << 16),
)
def test_whatever_a_shard_holds_ends_in_samples_or_one_line(
    victim: tuple[Path, bytes], changes: list[tuple[int, bytes]], length: int | None
) -> None:
    folder, whole = victim
    content = bytearray(whole[:length])
    for at, put in changes:
        at %= len(content) or 1
        content[at : at + len(put)] = put
    (folder / "train-000000.tar").write_bytes(bytes(content))
    relisted(folder)
    try:
        batches = list(loader(recipe(**LENIENT), opened(folder)))
    except DatasetError as error:
        assert "\n" not in str(error)
        return
    assert len(ids(batches)) + sum(batch.damaged for batch in batches) == 3


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.int32, np.float64, np.uint8]),
        arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_an_npy_file_is_read_as_numpy_reads_it(values: np.ndarray, fortran: bool) -> None:
    content = npy(np.asfortranarray(values) if fortran else values)
    found, numpys = npy_array(content, "x"), array(content)
    assert found.dtype == numpys.dtype and found.shape == numpys.shape
    assert found.tobytes() == numpys.tobytes()


def test_damaged_validation_samples_are_noted(made: Samples, tmp_path: Path) -> None:
    folder = make_shards(tmp_path, 2, (1, 1), val=4)
    path = folder / "val-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    index = json.loads((folder / "index-val.json").read_text())
    index["shardlist"][0]["filesize"] = path.stat().st_size
    (folder / "index-val.json").write_text(json.dumps(index))
    batches = list(validation_batches(opened(folder), 4, 2))
    assert len(batches) == 2 and len(ids(batches)) + sum(batch.damaged for batch in batches) == 4
    assert any("val-000000.tar is damaged" in note for batch in batches for note in batch.notes)


# tars of others


def tars(path: Path) -> Samples:
    with path.open("rb") as file:
        return dict(read_tar(file))


def walked(path: Path) -> dict[str, dict[str, bytes]]:
    shard, found = Shard(str(path), Handles()), {}
    for number in range(10_000):
        try:
            entry = shard.entry(number)
        except Damaged:
            break
        found[entry.key] = {name: shard.read(entry, name) for name in entry.members}
    assert not shard.fault
    return found


def test_a_shard_is_walked_as_tarfile_reads_it(shards: Path) -> None:
    for path in shards.glob("*.tar"):
        assert walked(path) == dict(tars(path))


def test_shards_that_webdataset_wrote_are_read(made: Samples, tmp_path: Path) -> None:
    """Its tars tell times in pax headers."""
    with webdataset.TarWriter(str(tmp_path / "train-0.tar"), encoder=False) as tar:
        for key, members in made.items():
            tar.write({"__key__": key, **members})
    assert walked(tmp_path / "train-0.tar") == made


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_folders_and_long_names_are_read(kind: int, tmp_path: Path) -> None:
    samples = {f"{'deep.er/' * depth}{'k' * 60}{depth}": {"json": b"{}", "a.b.npy": b"12"} for depth in (0, 1, 4)}
    if kind != tarfile.USTAR_FORMAT:
        samples = {key: members for key, members in samples.items() if len(key) < 80}
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        folder = tarfile.TarInfo("deep.er")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for key, members in samples.items():
            add_sample(tar, key, members)
    assert walked(tmp_path / "x.tar") == samples


def test_what_is_no_file_ends_the_shard_in_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add_sample(tar, "a", {"json": b"{}"})
        link = tarfile.TarInfo("b.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    shard = Shard(str(tmp_path / "x.tar"), Handles())
    with pytest.raises(Damaged, match="type b'2'"):
        shard.entry(0)


def test_a_member_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        entry = tarfile.TarInfo("a.json")
        entry.size = reading.MAX_MEMBER + 1
        file.write(entry.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(entry.size + 4096)
    with pytest.raises(Damaged, match="268435457 bytes"):
        Shard(str(tmp_path / "x.tar"), Handles()).entry(0)
