"""A dataset as it was at one moment: the parts of its tables are listed once, and read one at a time.

What a curation that runs meanwhile appends is not seen; when it rewrites the tables, `Moved` is raised and the
reader begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import DatasetError
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RETIRED, RUNS_TABLE, SOURCES_TABLE, Table, generation, parts
from pipelines.report.ids import hashes

ATTEMPTS = 5
Done = TypeVar("Done")


class Moved(Exception):
    """A part that was listed is gone: the table was rewritten."""


class Frozen:
    """Tables of `store` as they are now."""

    def __init__(self, store: Store, read: Callable[[], None] = lambda: None) -> None:
        """read: called after each part."""
        self.store, self._done = store, read
        self._names = {table.name: parts(store, table) for table in (SOURCES_TABLE, CLIPS_TABLE, RUNS_TABLE)}
        self._live: dict[str, list[np.ndarray] | None] = {}

    def batches(self, table: Table, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """(place, rows) of each part, one row a key in all of them together, categories dictionary-encoded, and what
        repeats: the clip ids of runs.

        Raises Moved, and DatasetError for a part that cannot be read.
        """
        live = self._rows_that_count(table)
        scene = ["scene"] if table is CLIPS_TABLE and "scene" not in columns else []
        for place, name in enumerate(self._names[table.name]):
            piece = self._read(table, name, [*columns, *scene])
            if live is not None:
                piece = piece.filter(pa.array(live[place]))
            if table is CLIPS_TABLE:
                piece = piece.filter(pc.not_equal(piece["scene"], RETIRED))
            yield place, piece.select(list(columns))
            self._done()

    def rows(self, table: Table, column: str, wanted: set[str], columns: Sequence[str]) -> dict[str, dict[str, object]]:
        """{key: row} of those whose `column` is one of `wanted`."""
        out: dict[str, dict[str, object]] = {}
        keys = pa.array(sorted(wanted), pa.string())
        for _, piece in self.batches(table, [column, *(name for name in columns if name != column)]) if wanted else ():
            for row in piece.filter(pc.is_in(piece[column].cast(pa.string()), keys)).to_pylist():
                out[row[column]] = row
        return out

    def _read(self, table: Table, name: str, columns: Sequence[str]) -> pa.Table:
        repeated = ["clip_id"] if table is RUNS_TABLE else []
        try:
            with self.store.open(f"{table.folder}/{name}") as file:
                return pq.read_table(
                    file, columns=list(columns), read_dictionary=[*table.categories(columns), *repeated]
                )
        except FileNotFoundError as error:
            raise Moved from error
        except pa.ArrowException as error:
            place = self.store.url(f"{table.folder}/{name}")
            raise DatasetError(f"{place} cannot be read ({error}); delete it and run curate again") from error

    def _rows_that_count(self, table: Table) -> list[np.ndarray] | None:
        """A mask for each part, of the last row of each key; None where no key can be there twice."""
        if table.name not in self._live:
            names = self._names[table.name]
            several = len({generation(name) for name in names}) > 1
            self._live[table.name] = self._last(table, names) if several else None
        return self._live[table.name]

    def _last(self, table: Table, names: Sequence[str]) -> list[np.ndarray]:
        keys = []
        for name in names:
            piece = self._read(table, name, table.key)
            found = hashes(piece[table.key[0]])
            for column in table.key[1:]:
                found = found * np.uint64(31) ^ hashes(piece[column])
            keys.append(found)
        whole = np.concatenate(keys)
        last = np.zeros(len(whole), bool)
        last[len(whole) - 1 - np.unique(whole[::-1], return_index=True)[1]] = True
        return list(np.split(last, np.cumsum([len(found) for found in keys])[:-1]))


def steadily(work: Callable[..., Done], *stores: Store, read: Callable[[], None] = lambda: None) -> Done:
    """What `work` makes of one state of each dataset; read: called after each part. Raises DatasetError when one is rewritten again and again."""
    for _ in range(ATTEMPTS):
        try:
            return work(*(Frozen(store, read) for store in stores))
        except Moved:
            continue
    names = " or ".join(store.root for store in stores)
    raise DatasetError(f"{names} is being rewritten faster than it can be read; try again in a minute")
