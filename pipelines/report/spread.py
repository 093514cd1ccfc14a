"""How the values of each measure are spread: range and percentiles first, then counts in bins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.records import GEOMETRY, MEASURES, Column
from manifests.tables import CLIPS_TABLE
from pipelines.report.frozen import Frozen

NUMERIC = tuple(
    c for c in (*GEOMETRY, *MEASURES) if c.kind in ("int32", "int64", "float32") and c.name not in ("scene", "start_s")
)
COUNTED = tuple(c for c in MEASURES if c.kind in ("bool", "category"))
BINS = 60
LIMIT = 200_000
"""Values that percentiles are taken from at most; of more every second one, every fourth ... stands for the rest."""
NEAR = 0.05
"""A clip lies near a bound when it is within this share of the measure's 5th to 95th percentile."""
Where = np.ndarray | slice
Key = tuple[str, str]
"""(measure, backend): values of two backends are no one scale. Backend "" for geometry."""


def columns_read() -> list[str]:
    """Columns of the clips table that spreads need."""
    stages = {c.stage for c in (*NUMERIC, *COUNTED) if c.stage}
    return [*(c.name for c in (*NUMERIC, *COUNTED)), *(f"{stage}_backend" for stage in sorted(stages))]


@dataclass
class Spread:
    """Of one measure by one backend. counts: of bins between `edges`, ends included; outliers are in the end bins."""

    column: Column
    backend: str
    known: int = 0
    missing: int = 0
    low: float = np.inf
    high: float = -np.inf
    p5: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    edges: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: Counter[str] = field(default_factory=Counter)
    _sample: list[np.ndarray] = field(default_factory=list)
    _held: int = 0
    _stride: int = 1

    @property
    def reach(self) -> float:
        """How far from a bound is near."""
        return NEAR * (self.p95 - self.p5)

    def see(self, values: np.ndarray) -> None:
        """First pass: range and percentiles."""
        first = -self.known % self._stride
        self.known += len(values)
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self._sample.append(values[first :: self._stride])
        self._held += len(self._sample[-1])
        if self._held > LIMIT:
            whole = np.concatenate(self._sample)[::2]
            self._sample, self._held, self._stride = [whole], len(whole), self._stride * 2

    def settle(self) -> None:
        """Between the passes: percentiles, and the bins that they give."""
        if not self._sample:
            return
        self.p5, self.p50, self.p95 = (float(q) for q in np.percentile(np.concatenate(self._sample), [5, 50, 95]))
        self._sample = []
        room = 4 * (self.p95 - self.p5)
        first, last = max(self.low, self.p5 - room), min(self.high, self.p95 + room)
        if self.column.kind.startswith("int") and last - first <= BINS:
            self.edges = np.arange(np.floor(first), np.floor(last) + 2) - 0.5
        else:
            room = 0.0 if last > first else 0.1 * abs(first) or 0.5
            self.edges = np.linspace(first - room, last + room, BINS + 1)
        self.counts = np.zeros(len(self.edges) - 1, np.int64)

    def count(self, values: np.ndarray) -> None:
        """Second pass: the bins."""
        if len(self.edges) and len(values):
            low, high = self.edges[0], self.edges[-1]
            at = ((np.clip(values, low, high) - low) * (len(self.counts) / (high - low))).astype(np.int64)
            self.counts += np.bincount(np.minimum(at, len(self.counts) - 1), minlength=len(self.counts))


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """[n] float64, NaN for null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def by_backend(rows: pa.Table) -> dict[str, list[tuple[str, Where]]]:
    """{stage: [(backend, where)]} of what measured `rows`; stage "" is geometry, measured by ""."""
    out: dict[str, list[tuple[str, Where]]] = {"": [("", slice(None))]}
    for stage in (name.removesuffix("_backend") for name in rows.schema.names if name.endswith("_backend")):
        names, codes = codes_of(rows[f"{stage}_backend"])
        found = np.flatnonzero(np.bincount(codes + 1, minlength=len(names) + 1)) - 1
        whole = len(found) == 1
        out[stage] = [(names[code], slice(None) if whole else codes == code) for code in found if code >= 0]
    return out


def codes_of(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """(names, [n] int64 places in them) of a column of strings; -1 for null."""
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string())
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return encoded.dictionary.to_pylist(), np.asarray(pc.fill_null(encoded.indices, -1), np.int64)


def measure_spreads(frozen: Frozen) -> dict[Key, Spread]:
    """The first pass over the clips, in the order of the glossary."""
    found: dict[Key, Spread] = {}
    for _, rows in frozen.batches(CLIPS_TABLE, columns_read()):
        backends = by_backend(rows)
        for column in (*NUMERIC, *COUNTED):
            values = rows[column.name] if column in COUNTED else numbers(rows[column.name])
            for backend, where in backends[column.stage]:
                spread = found.setdefault((column.name, backend), Spread(column, backend))
                _look(spread, values, where)
    for spread in found.values():
        spread.settle()
    order = {c.name: place for place, c in enumerate((*NUMERIC, *COUNTED))}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1])))


def _look(spread: Spread, values: np.ndarray | pa.ChunkedArray, where: Where) -> None:
    if isinstance(values, np.ndarray):
        some = values[where]
        finite = some[np.isfinite(some)]
        spread.missing += len(some) - len(finite)
        spread.see(finite)
        return
    some = values.filter(pa.array(where)) if isinstance(where, np.ndarray) else values
    for entry in pc.value_counts(some.cast(pa.string())).to_pylist():
        if entry["values"] is None:
            spread.missing += entry["counts"]
        else:
            spread.values[entry["values"]] += entry["counts"]
            spread.known += entry["counts"]


def count_bins(spreads: dict[Key, Spread], rows: pa.Table) -> None:
    """The second pass over some clips; `rows`: at least `columns_read()`."""
    backends = by_backend(rows)
    for column in NUMERIC:
        values = numbers(rows[column.name])
        for backend, where in backends[column.stage]:
            some = values[where]
            spreads[column.name, backend].count(some[np.isfinite(some)])
