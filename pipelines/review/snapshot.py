"""The clips table in memory as the review page asks of it: one consistent state, whatever is written meanwhile."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import DatasetError
from manifests.records import CLIPS, MEASURES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, batches, parts
from manifests.verdicts import Rule, evaluate

MEASURED = tuple(c.name for c in MEASURES if c.kind not in ("string", "int64"))
"""Measures that are held in memory: those that can be bounded, sorted by and drawn."""
NUMERIC = tuple(c.name for c in MEASURES if c.kind in ("int32", "float32"))
BACKENDS = tuple(c.name for c in CLIPS if c.name.endswith("_backend"))
COLUMNS = ("duration_s", *MEASURED, *BACKENDS)
ATTEMPTS = 5
SEARCHES = 8
"""Full-text searches whose answers are kept."""


@dataclass
class Snapshot:
    """Clips in the order of their ids.

    table: COLUMNS, categories dictionary-encoded, each column one array.
    sources, source: ids of sources and the place of each clip's in them. start_ms, end_ms: [n] int32.
    preview: [n] int16, number of the tar that holds its preview, -1 without one.
    parts: the files that it was read from; others mean that the dataset has moved on.
    """

    store: Store
    table: pa.Table
    sources: list[str]
    source: np.ndarray
    start_ms: np.ndarray
    end_ms: np.ndarray
    preview: np.ndarray
    parts: tuple[str, ...]
    _masks: OrderedDict[object, tuple[np.ndarray, np.ndarray]] = field(default_factory=OrderedDict)
    _found: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def seconds(self) -> np.ndarray:
        """[n] float32."""
        return np.nan_to_num(self.values("duration_s"))

    def values(self, measure: str) -> np.ndarray:
        """[n] float32, NaN where there is no value. Raises KeyError for what is not numeric."""
        if measure not in (*NUMERIC, "duration_s"):
            raise KeyError(measure)
        column = self.table[measure].chunk(0) if len(self) else pa.array([], pa.float32())
        return np.asarray(column.cast(pa.float32()).to_numpy(zero_copy_only=False), np.float32)

    def clip_id(self, place: int) -> str:
        return f"{self.sources[self.source[place]]}-{self.start_ms[place]:09d}-{self.end_ms[place]:09d}"

    def preview_tar(self, place: int) -> str | None:
        """Name of the file under previews/ that holds the clip's preview."""
        number = self.preview[place]
        return f"{self.sources[self.source[place]]}-{number:05d}.tar" if number >= 0 else None

    def place(self, clip_id: str) -> int | None:
        """Where a clip is; None where it is not in the snapshot."""
        try:
            source, start, end = clip_id.split("-")
            code = self._source_codes.get(source)
            wanted = int(start), int(end)
        except ValueError:
            return None
        if code is None:
            return None
        low, high = np.searchsorted(self.source, [code, code + 1])
        for at in range(int(low), int(high)):
            if (self.start_ms[at], self.end_ms[at]) == wanted:
                return at
        return None

    @cached_property
    def _source_codes(self) -> dict[str, int]:
        return {source: code for code, source in enumerate(self.sources)}

    def masks(self, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
        """([n] fails, [n] has no value) under `rule`; the last ones asked for are kept.

        Raises UsageError when the rule has no bound for what measured.
        """
        key = (rule.name, rule.measure, rule.test, repr(sorted(rule.bounds.items())), rule.blind)
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        found = evaluate(rule, self.table)
        with self._lock:
            self._masks[key] = found
            while len(self._masks) > 48:
                self._masks.popitem(last=False)
        return found

    def search(self, text: str) -> np.ndarray:
        """[n] bool: clips whose transcript holds `text`, whatever the case. Reads the transcripts from the disk, in
        bounded memory. Raises DatasetError when the dataset has moved on."""
        with self._lock:
            if text in self._found:
                return self._found[text]
        if parts_of(self.store) != self.parts:
            raise DatasetError("the dataset has changed since the page was loaded; reload it to search")
        columns = (batch["transcript"] for batch in batches(self.store, CLIPS_TABLE, ["transcript"]))
        hits = [pc.fill_null(pc.match_substring(words, text, ignore_case=True), False) for words in columns]
        found = np.concatenate([np.zeros(0, bool), *(np.asarray(some) for some in hits)])
        with self._lock:
            self._found[text] = found
            while len(self._found) > SEARCHES:
                self._found.popitem(last=False)
        return found


def parts_of(store: Store) -> tuple[str, ...]:
    """The files of the clips table as they are now."""
    return tuple(parts(store, CLIPS_TABLE))


def load_snapshot(store: Store) -> Snapshot:
    """The clips table as it is now. Raises DatasetError when it cannot be read or changes faster than it reads."""
    for _ in range(ATTEMPTS):
        names = parts_of(store)
        try:
            snapshot = _loaded(store, names)
        except FileNotFoundError:  # compacted while it was read
            continue
        if parts_of(store) == names:
            return snapshot
    raise DatasetError(f"{store.root} is being written too fast to read; try again in a minute")


def _loaded(store: Store, names: tuple[str, ...]) -> Snapshot:
    """A column at a time, so that no second copy of the table is ever held."""
    sources, source, starts, ends = _ids(store)
    columns = {name: _column(store, name) for name in COLUMNS}
    return Snapshot(store, pa.table(columns), sources, source, starts, ends, _previews(store), names)


def _previews(store: Store) -> np.ndarray:
    """[n] int16: the number in the name of each clip's preview tar, -1 where it has none."""
    found = [np.zeros(0, np.int16)]
    for batch in batches(store, CLIPS_TABLE, ["preview_tar"]):
        names = batch["preview_tar"].combine_chunks()
        numbered = pc.match_substring_regex(names, r"^[0-9a-f]{16}-[0-9]{5}\.tar$")
        digits = pc.if_else(pc.fill_null(numbered, False), pc.utf8_slice_codeunits(names, 17, 22), "-1")
        found.append(np.asarray(pc.cast(digits, pa.int32())).astype(np.int16))
    return np.concatenate(found)


def _column(store: Store, name: str) -> pa.Array:
    """One column as one array; a category as int8 places in its few names."""
    field = CLIPS_TABLE.schema.field(name)
    if not pa.types.is_string(field.type):
        pieces = [batch[name] for batch in batches(store, CLIPS_TABLE, [name])]
        chunks = [chunk for piece in pieces for chunk in piece.chunks]
        return pa.concat_arrays(chunks) if chunks else pa.array([], field.type)
    names: dict[str | None, int] = {}
    codes = [np.zeros(0, np.int8)]
    for batch in batches(store, CLIPS_TABLE, [name], [name]):
        for chunk in batch[name].chunks:
            coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            places = [names.setdefault(value, len(names)) for value in coded.dictionary.to_pylist()]
            table = np.array([*places, -1], np.int8)
            codes.append(table[np.asarray(pc.fill_null(coded.indices, len(places)))])
    found = np.concatenate(codes)
    indices = pa.array(found, mask=found < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(names), pa.string()))


def _ids(store: Store) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(source ids, place of each clip's in them, start_ms, end_ms): 12 bytes a clip for a text of 36."""
    known: dict[str, int] = {}
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in batches(store, CLIPS_TABLE, ["clip_id"]):
        ids = batch["clip_id"].combine_chunks()
        coded = pc.utf8_slice_codeunits(ids, 0, 16).dictionary_encode()
        places = np.array([known.setdefault(one, len(known)) for one in coded.dictionary.to_pylist()], np.int32)
        start, end = (np.asarray(pc.cast(pc.utf8_slice_codeunits(ids, at, at + 9), pa.int32())) for at in (17, 27))
        found.append((places[np.asarray(coded.indices)], start, end))
    if not len(known):
        empty = np.zeros(0, np.int32)
        return [], empty, empty, empty
    order = np.argsort(np.array(list(known)))
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    source, start, end = (np.concatenate(some) for some in zip(*found, strict=True))
    return sorted(known), rank[source], start, end


def decided_places(snapshot: Snapshot, decided: Mapping[str, str]) -> dict[int, str]:
    """{place: choice} of what people decided about clips of the snapshot."""
    found = ((snapshot.place(clip), choice) for clip, choice in decided.items())
    return {at: choice for at, choice in found if at is not None}
