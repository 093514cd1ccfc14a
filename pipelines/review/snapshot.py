"""The clips table in memory as the review page asks of it: one consistent state, whatever is written meanwhile."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import DatasetError
from manifests.records import CLIPS, MEASURES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, parts
from manifests.verdicts import Rule, evaluate
from pipelines.review.loading import Ids, column, ids, pieces, previews

MEASURED = tuple(c.name for c in MEASURES if c.kind not in ("string", "int64"))
"""Measures that are held in memory: those that can be bounded, sorted by and drawn."""
NUMERIC = ("duration_s", *(c.name for c in MEASURES if c.kind in ("int32", "float32")))
WHOLE = tuple(c.name for c in MEASURES if c.kind == "int32")
"""Of them those that count."""
BACKENDS = tuple(c.name for c in CLIPS if c.name.endswith("_backend"))
COLUMNS = ("duration_s", *MEASURED, *BACKENDS)
ATTEMPTS = 20
SEARCHES = 8
"""Full-text searches whose answers are kept."""
RULES = 36
"""Rules, each under one bound, whose failures are kept; a byte a clip each."""


@dataclass
class Snapshot:
    """Clips in the order of their ids.

    table: COLUMNS, categories dictionary-encoded, each column one array. ids: which clips, packed.
    preview: [n] int16, number of the tar that holds its preview, -1 without one.
    parts: the files that it was read from; others mean that the dataset has moved on.
    """

    store: Store
    table: pa.Table
    ids: Ids
    preview: np.ndarray
    parts: tuple[str, ...]
    _fails: OrderedDict[object, np.ndarray] = field(default_factory=OrderedDict)
    _lacks: dict[object, np.ndarray] = field(default_factory=dict)
    _found: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)
    _spreads: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.ids.source)

    @cached_property
    def seconds(self) -> np.ndarray:
        """[n] float32."""
        return np.nan_to_num(self.values("duration_s"))

    def values(self, measure: str) -> np.ndarray:
        """[n] float32, NaN where there is no value. Raises KeyError for what is not numeric."""
        if measure not in NUMERIC:
            raise KeyError(measure)
        found = self.table[measure].chunk(0) if len(self) else pa.array([], pa.float32())
        return np.asarray(found.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False), np.float32)

    def source(self, place: int) -> str:
        """Id of the source of a clip."""
        return self.ids.sources[self.ids.source[place]]

    def clip_id(self, place: int) -> str:
        return f"{self.source(place)}-{self.ids.start_ms[place]:09d}-{self.ids.end_ms[place]:09d}"

    def preview_tar(self, place: int) -> str | None:
        """Name of the file under previews/ that holds the clip's preview."""
        number = self.preview[place]
        return f"{self.source(place)}-{number:05d}.tar" if number >= 0 else None

    def place(self, clip_id: str) -> int | None:
        """Where a clip is; None where it is not in the snapshot."""
        source, _, span = clip_id.partition("-")
        code = self.source_code(source)
        if code is None:
            return None
        low, high = np.searchsorted(self.ids.source, np.array([code, code + 1], np.int32))
        for at in range(int(low), int(high)):
            if f"{self.ids.start_ms[at]:09d}-{self.ids.end_ms[at]:09d}" == span:
                return at
        return None

    def source_code(self, source: str) -> int | None:
        """Place of a source in `ids.sources`."""
        return self._source_codes.get(source)

    @cached_property
    def _source_codes(self) -> dict[str, int]:
        return {source: code for code, source in enumerate(self.ids.sources)}

    def masks(self, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
        """([n] fails, [n] has no value) under `rule`; the last ones asked for are kept.

        Raises UsageError when the rule has no bound for what measured.
        """
        key = (rule.measure, rule.test, repr(sorted(rule.bounds.items())), rule.blind)
        unbounded = (rule.measure, rule.blind)  # what lacks a value does so under any bound
        with self._lock:
            if key in self._fails:
                self._fails.move_to_end(key)
                return self._fails[key], self._lacks[unbounded]
        fails, lacks = evaluate(rule, self.table)
        with self._lock:
            self._fails[key] = fails
            lacks = self._lacks.setdefault(unbounded, lacks)
            while len(self._fails) > RULES:
                self._fails.popitem(last=False)
        return fails, lacks

    def spread(self, measure: str) -> tuple[float, float]:
        """5th and 95th percentile of the values that are there; (0, 0) without any."""
        if measure not in self._spreads:
            values = self.values(measure)
            known = values[np.isfinite(values)]
            low, high = np.percentile(known, [5, 95]) if len(known) else (0.0, 0.0)
            self._spreads[measure] = float(low), float(high)
        return self._spreads[measure]

    def row(self, place: int) -> dict[str, Any]:
        """COLUMNS of one clip."""
        return {name: self.table[name][place].as_py() for name in COLUMNS}

    def search(self, text: str) -> np.ndarray:
        """[n] bool: clips whose transcript holds `text`, whatever the case. Reads the transcripts from the disk, in
        bounded memory. Raises DatasetError when the dataset has moved on."""
        with self._lock:
            if text in self._found:
                return self._found[text]
        try:
            words = (piece["transcript"] for piece in pieces(self.store, self.parts, ["transcript"]))
            hits = [pc.fill_null(pc.match_substring(some, text, ignore_case=True), False) for some in words]
        except FileNotFoundError:
            raise DatasetError("the dataset has changed since the page was loaded; load it again to search") from None
        found = np.concatenate([np.zeros(0, bool), *(np.asarray(some) for some in hits)])
        found = found if self.ids.order is None else found[self.ids.order]
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
    for attempt in range(ATTEMPTS):
        names = parts_of(store)
        if parts_of(store) == names:  # else a listing may have missed both the old file and the new one
            try:
                return _loaded(store, names)
            except FileNotFoundError:  # compacted while it was read
                pass
        time.sleep(0.01 * attempt)
    raise DatasetError(f"{store.root} is being written too fast to read; try again in a minute")


def _loaded(store: Store, names: tuple[str, ...]) -> Snapshot:
    """A column at a time, so that no second copy of the table is ever held."""
    found = ids(store, names)
    columns = {name: column(store, names, name, found.order) for name in COLUMNS}
    snapshot = Snapshot(store, pa.table(columns), found, previews(store, names, found.order), names)
    pa.default_memory_pool().release_unused()
    return snapshot
