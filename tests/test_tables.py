"""Storage: what is written appears whole or not at all; of two rows with one key the later counts."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import dataset
from manifests.errors import DatasetError
from manifests.records import CLIPS, clip_id, file_digest, source_id
from manifests.samples import load_samples, read_tar, sample_digest, write_tar
from manifests.shards import place, read_index, shuffled, validation_groups, write_index, write_shards
from manifests.store import TEMPORARY, Store
from manifests.tables import (
    CLIPS_TABLE,
    RETIRED,
    RUNS_TABLE,
    Table,
    append,
    batches,
    compact,
    is_compact,
    lookup,
    parts,
    read,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data set")


def clip(name: str, **more: object) -> dict[str, object]:
    return {"clip_id": name, "source_id": "s", "scene": 0, "start_s": 0.0, "end_s": 5.0, "duration_s": 5.0, **more}


# -- ids ---------------------------------------------------------------------------------------------------

spans = st.tuples(st.integers(0, 10**7), st.integers(1, 10**6)).map(lambda p: (p[0] / 25, (p[0] + p[1]) / 25))


@given(spans, spans)
def test_ids_differ_when_spans_do_sort_by_time_and_have_no_dots(a: tuple[float, float], b: tuple[float, float]) -> None:
    one, two = (clip_id("0" * 16, *span) for span in (a, b))
    assert (one == two) == (a == b)
    assert "." not in one
    assert (one < two) == (a < b)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_source_id_depends_on_content_not_on_pieces(content: bytes, size: int) -> None:
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    assert source_id(file_digest(pieces)) == source_id(file_digest([content]))
    assert source_id(file_digest([content + b"x"])) != source_id(file_digest([content]))


# -- files -------------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_old_file_and_no_trace(store: Store) -> None:
    store.write("a/b.bin", b"old")
    with pytest.raises(RuntimeError), store.writing("a/b.bin") as file:
        file.write(b"half of the ne")
        raise RuntimeError
    assert store.read("a/b.bin") == b"old"
    assert os.listdir(store.local("a")) == ["b.bin"]


def test_leftovers_of_killed_writers_are_neither_listed_nor_kept(store: Store) -> None:
    store.write("t/real", b"1")
    store.local("t").joinpath(f"{TEMPORARY}dead-real").write_bytes(b"torn")
    assert store.names("t") == ["real"]
    store.sweep("t")
    assert os.listdir(store.local("t")) == ["real"]


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "no space left"), (errno.EROFS, "cannot be written"), (errno.EACCES, "cannot be written")],
)
def test_disk_errors_name_the_folder_and_the_next_move(store: Store, code: int, says: str) -> None:
    with pytest.raises(DatasetError, match=says) as caught, store.writing("x"):
        raise OSError(code, "injected")
    assert store.root in str(caught.value) and "\n" not in str(caught.value)
    assert not store.exists("x")


def test_a_file_where_the_dataset_must_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="in the way"):
        Store(tmp_path / "file").write("dataset.json", b"{}")


def test_remote_store_is_like_a_local_one() -> None:
    store = Store("memory://bucket/set")
    store.write("a/x", b"1")
    store.write("a/x", b"2")
    assert (store.read("a/x"), store.names("a"), store.size("a/x"), store.exists("a/y")) == (b"2", ["x"], 1, False)
    append(store, CLIPS_TABLE, [clip("k")])
    assert read(store, CLIPS_TABLE, ["clip_id"]).to_pylist() == [{"clip_id": "k"}]
    store.remove("a/x")
    assert store.names("a") == []


# -- tables ------------------------------------------------------------------------------------------------

edits = st.lists(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 99)), unique_by=lambda e: e[0]), max_size=6
)


@settings(deadline=None, max_examples=40)
@given(edits)
def test_the_last_row_of_a_key_counts_before_and_after_compaction(history: list[list[tuple[str, int]]]) -> None:
    store = Store(f"memory://t{id(history)}-{os.urandom(4).hex()}")
    expected: dict[str, int] = {}
    for batch in history:
        append(store, CLIPS_TABLE, [clip(k, word_count=v) for k, v in batch])
        expected |= dict(batch)
    rows = [{"clip_id": k, "word_count": v} for k, v in sorted(expected.items())]
    assert read(store, CLIPS_TABLE, ["clip_id", "word_count"]).to_pylist() == rows
    compact(store, CLIPS_TABLE)
    assert is_compact(store, CLIPS_TABLE)
    assert read(store, CLIPS_TABLE, ["clip_id", "word_count"]).to_pylist() == rows
    assert [r for part in batches(store, CLIPS_TABLE, ["clip_id", "word_count"]) for r in part.to_pylist()] == rows


def test_a_compaction_that_died_half_way_doubles_nothing(store: Store) -> None:
    append(store, CLIPS_TABLE, [clip("a", word_count=1), clip("b", word_count=1)])
    append(store, CLIPS_TABLE, [clip("a", word_count=2)])
    before = read(store, CLIPS_TABLE)
    old = {name: store.read(f"tables/clips/{name}") for name in parts(store, CLIPS_TABLE)}
    compact(store, CLIPS_TABLE)
    for name, content in old.items():  # the state after a kill between writing and deleting
        store.write(f"tables/clips/{name}", content)
    assert read(store, CLIPS_TABLE).equals(before)


def test_retired_clips_are_gone(store: Store) -> None:
    append(store, CLIPS_TABLE, [clip("a"), clip("b")])
    append(store, CLIPS_TABLE, [clip("a", scene=RETIRED)])
    assert read(store, CLIPS_TABLE, ["clip_id"]).to_pylist() == [{"clip_id": "b"}]
    compact(store, CLIPS_TABLE)
    assert read(store, CLIPS_TABLE, ["clip_id"]).to_pylist() == [{"clip_id": "b"}]


def test_empty_tables_have_their_columns(store: Store) -> None:
    assert read(store, CLIPS_TABLE).schema.names == [c.name for c in CLIPS]
    compact(store, CLIPS_TABLE)
    assert list(batches(store, CLIPS_TABLE, ["clip_id"])) == []


def test_unknown_columns_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="no column syncness"):
        append(store, CLIPS_TABLE, [clip("a", syncness=1)])


def test_a_damaged_part_is_named(store: Store) -> None:
    append(store, RUNS_TABLE, [{"clip_id": "a", "stage": "sync"}])
    [name] = parts(store, RUNS_TABLE)
    store.write(f"tables/runs/{name}", b"PAR1 this is none")
    with pytest.raises(DatasetError, match=name):
        read(store, RUNS_TABLE)


def test_dataset_json_of_another_version_or_damaged(store: Store) -> None:
    with pytest.raises(DatasetError, match="is no dataset"):
        dataset.load(store.root)
    dataset.save(store, {"recipe": {}})
    assert dataset.load(store.root)[1]["recipe"] == {}
    store.write("dataset.json", b'{"format_version": 99}')
    with pytest.raises(DatasetError, match="format version 99"):
        dataset.load(store.root)
    store.write("dataset.json", b"{")
    with pytest.raises(DatasetError, match="damaged"):
        dataset.load(store.root)


# -- samples and shards --------------------------------------------------------------------------------------

keys = st.text("abc0123-", min_size=1, max_size=12)
members = st.dictionaries(st.sampled_from(["json", "text.npy", "flac"]), st.binary(max_size=2000), min_size=1)


@given(st.dictionaries(keys, members, max_size=6))
def test_a_tar_depends_on_its_content_alone_and_reads_back(samples: dict[str, dict[str, bytes]]) -> None:
    one, two = io.BytesIO(), io.BytesIO()
    write_tar(one, samples)
    write_tar(two, dict(reversed(list(samples.items()))))
    assert one.getvalue() == two.getvalue()
    one.seek(0)
    assert dict(read_tar(one)) == samples


def test_a_torn_tar_is_an_error_not_a_shorter_tar() -> None:
    whole = io.BytesIO()
    write_tar(whole, {"k": {"a": b"x" * 3000}})
    with pytest.raises(DatasetError, match="damaged"):
        dict(read_tar(io.BytesIO(whole.getvalue()[:1500])))


@given(members, members)
def test_a_digest_tells_samples_apart(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    assert (sample_digest(a) == sample_digest(b)) == (a == b)


def test_no_samples_where_there_is_no_tar(store: Store) -> None:
    assert load_samples(store, "none.tar") == {}


@settings(deadline=None, max_examples=30)
@given(st.sets(keys, max_size=30), st.integers(1, 7))
def test_shards_hold_every_sample_once_and_none_is_empty(names: set[str], per_shard: int) -> None:
    store = Store(f"memory://s{os.urandom(6).hex()}")
    samples = [(key, {"json": key.encode()}, 1.0) for key in shuffled(names)]
    shards = list(write_shards(store, "shards/p", "train", samples, per_shard, 1 << 30))
    found = [key for shard in shards for key, _ in read_tar(io.BytesIO(store.read(f"shards/p/{shard.url}")))]
    assert sorted(found) == sorted(names)
    assert all(0 < shard.nsamples <= per_shard for shard in shards)
    assert all(shard.filesize == store.size(f"shards/p/{shard.url}") for shard in shards)


def test_repacking_leaves_no_shard_of_before(store: Store) -> None:
    for count in (5, 2):
        samples = [(f"k{i}", {"json": b"{}"}, 1.0) for i in range(count)]
        shards = {"train": list(write_shards(store, "shards/p", "train", samples, 1, 1 << 30))}
        write_index(store, "shards/p", shards, {"profile": "p"})
    assert store.names("shards/p") == ["index-val.json", "index.json", "train-000000.tar", "train-000001.tar"]
    assert [s["url"] for s in read_index(store, "shards/p")["shardlist"]] == ["train-000000.tar", "train-000001.tar"]


@given(st.sets(keys, min_size=1, max_size=40), st.sets(keys, max_size=10), st.floats(0, 0.9))
def test_growing_data_moves_no_group_out_of_training_but_the_fallback(
    groups: set[str], more: set[str], share: float
) -> None:
    before, after = validation_groups(groups, share), validation_groups(groups | more, share)
    assert before < groups or not before
    hashed = {g for g in groups if place(f"val:{g}") < share * 2**32}
    if 0 < len(hashed) < len(groups) and len(hashed & (groups | more)) < len(groups | more):
        assert before == hashed
        assert after & groups == before
    if share > 0 and len(groups) > 1:
        assert before


def test_tar_members_carry_no_time_and_no_owner(store: Store) -> None:
    content = io.BytesIO()
    write_tar(content, {"k": {"json": b"{}"}})
    content.seek(0)
    [member] = tarfile.open(fileobj=content).getmembers()
    assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_types_of_the_clips_table() -> None:
    assert CLIPS_TABLE.schema.field("start_s").type == pa.float64()
    assert CLIPS_TABLE.schema.field("sync_offset_frames").type == pa.int32()


# -- a few rows without the rest ---------------------------------------------------------------------------

few = st.sampled_from([f"{at:016x}-{at:09d}-{at + 1:09d}" for at in range(6)])


@settings(max_examples=40)
@given(
    generations=st.lists(
        st.lists(st.tuples(few, st.booleans(), st.integers(0, 9)), max_size=6, unique_by=lambda row: row[0]), max_size=5
    ),
    compacted=st.booleans(),
    ids=st.lists(st.one_of(few, st.just("none"), st.just("")), max_size=4),
    columns=st.sampled_from([None, ["duration_s"], ["clip_id", "transcript"]]),
)
def test_lookup_finds_what_read_has(
    generations: list[list[tuple[str, bool, int]]],
    compacted: bool,
    ids: list[str],
    columns: list[str] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = Store(tmp_path_factory.mktemp("d"))
    for rows in generations:
        append(
            store,
            CLIPS_TABLE,
            [clip(name, scene=RETIRED if gone else 0, duration_s=1.0 * n, transcript=f"{n}") for name, gone, n in rows],
        )
    if compacted:
        compact(store, CLIPS_TABLE)
    whole = read(store, CLIPS_TABLE)
    expected = whole.filter(pc.is_in(whole["clip_id"], pa.array(ids, pa.string())))
    expected = expected.select(columns) if columns else expected
    assert lookup(store, CLIPS_TABLE, ids, columns).to_pylist() == expected.to_pylist()


def test_lookup_finds_every_row_of_a_key_of_several_columns(store: Store) -> None:
    rows = [{"clip_id": f"c{at:04d}", "stage": s, "status": "ok"} for at in range(3000) for s in ("sync", "speech")]
    append(store, RUNS_TABLE, rows)
    append(store, RUNS_TABLE, [{"clip_id": "c1500", "stage": "sync", "status": "failed", "error": "why"}])
    compact(store, RUNS_TABLE)
    append(store, RUNS_TABLE, [{"clip_id": "c1500", "stage": "overlay", "status": "skipped"}])
    found = lookup(store, RUNS_TABLE, ["c1500", "c2999"], ["clip_id", "stage", "status"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("c1500", "overlay", "skipped"),
        ("c1500", "speech", "ok"),
        ("c1500", "sync", "failed"),
        ("c2999", "speech", "ok"),
        ("c2999", "sync", "ok"),
    ]


@pytest.mark.parametrize("table", (CLIPS_TABLE, RUNS_TABLE))
def test_lookup_reads_few_row_groups(store: Store, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"clip_id": f"c{at:06d}", "stage": "sync", "scene": 0} for at in range(3 * RUNS_TABLE.row_group)]
    append(store, table, [{k: v for k, v in row.items() if k in table.schema.names} for row in rows])
    seen: list[int] = []
    whole = pq.ParquetFile.read_row_groups

    def counted(self: pq.ParquetFile, groups: list[int], **more: object) -> pa.Table:
        seen.extend(groups)
        return whole(self, groups, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    assert len(lookup(store, table, [rows[-1]["clip_id"]])) == 1  # type: ignore[list-item]
    assert len(seen) == 1


def test_lookup_of_a_damaged_part_is_one_line(store: Store) -> None:
    append(store, CLIPS_TABLE, [clip("a")])
    store.write(f"tables/clips/{parts(store, CLIPS_TABLE)[0]}", b"no parquet")
    with pytest.raises(DatasetError, match="delete it and run curate again") as error:
        lookup(store, CLIPS_TABLE, ["a"])
    assert "\n" not in str(error.value)
