"""Reads the clips table into compact arrays: of each key the last row, in the order of ids, a column at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import DatasetError
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RETIRED


@dataclass(frozen=True)
class Ids:
    """Ids of n clips in 12 bytes each, for a text of 36.

    sources: ids of sources, sorted; source: [n] int32, place of each clip's in them; start_ms, end_ms: [n] int32.
    order: [n] int64, row in the parts of each clip; None where they hold just these, in this order.
    """

    sources: list[str]
    source: np.ndarray
    start_ms: np.ndarray
    end_ms: np.ndarray
    order: np.ndarray | None


def pieces(
    store: Store, names: Sequence[str], columns: Sequence[str], dictionary: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The named parts one after another, as they are. Raises FileNotFoundError, DatasetError."""
    for name in names:
        path = f"{CLIPS_TABLE.folder}/{name}"
        try:
            with store.open(path) as file:
                piece = pq.read_table(file, columns=list(columns), read_dictionary=list(dictionary))
        except pa.ArrowException as error:
            raise DatasetError(f"{store.url(path)} cannot be read ({error}); delete it and run curate again") from error
        yield piece


def ids(store: Store, names: Sequence[str]) -> Ids:
    """Which clips the parts hold."""
    known: dict[str, int] = {}
    found = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))]
    for piece in pieces(store, names, ["clip_id", "scene"]):
        texts = piece["clip_id"].combine_chunks()
        coded = pc.utf8_slice_codeunits(texts, 0, 16).dictionary_encode()
        places = np.array([known.setdefault(one, len(known)) for one in coded.dictionary.to_pylist()], np.int32)
        start, end = (np.asarray(pc.cast(pc.utf8_slice_codeunits(texts, at, at + 9), pa.int32())) for at in (17, 27))
        alive = np.asarray(pc.fill_null(pc.not_equal(piece["scene"], RETIRED), True))
        found.append((places[np.asarray(coded.indices)], start, end, alive))
    sources = sorted(known)
    rank = np.empty(len(known), np.int32)
    rank[[known[one] for one in sources]] = np.arange(len(known), dtype=np.int32)
    source, start, end, alive = (np.concatenate(some) for some in zip(*found, strict=True))
    source = rank[source] if len(rank) else source
    order = _order(source, start, end, alive)
    if order is not None:
        source, start, end = source[order], start[order], end[order]
    return Ids(sources, source, start, end, order)


def _order(source: np.ndarray, start: np.ndarray, end: np.ndarray, alive: np.ndarray) -> np.ndarray | None:
    """[m] rows in the order of ids, of each id the last, without retired ones; None where that is every row as is."""
    if _rising(source, start, end):
        return None if alive.all() else np.flatnonzero(alive)
    order = np.lexsort((end, start, source))  # stable: of equal ids the last row is last
    keys = np.stack([source[order], start[order], end[order]])
    last = np.append((keys[:, 1:] != keys[:, :-1]).any(axis=0), True)
    chosen: np.ndarray = order[last]
    return chosen[alive[chosen]]


def _rising(source: np.ndarray, start: np.ndarray, end: np.ndarray) -> bool:
    """Whether every id is greater than the one before."""
    by_source, by_start, by_end = (np.sign(np.diff(some)) for some in (source, start, end))
    by_time = np.where(by_start != 0, by_start, by_end)
    return bool((np.where(by_source != 0, by_source, by_time) > 0).all())


def column(store: Store, names: Sequence[str], name: str, order: np.ndarray | None) -> pa.Array:
    """One column as one array; a category as places in its few names."""
    kind = CLIPS_TABLE.schema.field(name).type
    found = _coded(store, names, name) if pa.types.is_string(kind) else _whole(store, names, name, kind)
    return found if order is None else found.take(pa.array(order))


def _whole(store: Store, names: Sequence[str], name: str, kind: pa.DataType) -> pa.Array:
    chunks = [chunk for piece in pieces(store, names, [name]) for chunk in piece[name].chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], kind)


def _coded(store: Store, names: Sequence[str], name: str) -> pa.Array:
    known: dict[str | None, int] = {}
    codes = [np.zeros(0, np.int8)]
    for piece in pieces(store, names, [name], [name]):
        for chunk in piece[name].chunks:
            coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            places = [known.setdefault(value, len(known)) for value in coded.dictionary.to_pylist()]
            small = np.int8 if len(known) < 128 else np.int32
            table = np.array([*places, -1], small)
            codes.append(table[np.asarray(pc.fill_null(coded.indices, len(places)))])
    found = np.concatenate(codes)
    return pa.DictionaryArray.from_arrays(pa.array(found, mask=found < 0), pa.array(list(known), pa.string()))


def previews(store: Store, names: Sequence[str], order: np.ndarray | None) -> np.ndarray:
    """[n] int16: the number in the name of each clip's preview tar, -1 where it has none."""
    found = [np.zeros(0, np.int16)]
    for piece in pieces(store, names, ["preview_tar"]):
        texts = piece["preview_tar"].combine_chunks()
        numbered = pc.fill_null(pc.match_substring_regex(texts, r"^[0-9a-f]{16}-[0-2][0-9]{4}\.tar$"), False)
        digits = pc.if_else(numbered, pc.utf8_slice_codeunits(texts, 17, 22), "-1")
        found.append(np.asarray(pc.cast(digits, pa.int32())).astype(np.int16))
    whole = np.concatenate(found)
    return whole if order is None else whole[order]
