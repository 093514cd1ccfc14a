"""The coordinator's pen: the only writer of tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, append

FLUSH_ROWS = 20_000
FLUSH_S = 20.0
_ORDER = (SAMPLES_TABLE, CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE)
"""Runs come after what they vouch for, sources after the clips cut from them."""


class Committer:
    """Collects rows and appends them as table parts, every 20 s and at the end, also after an error."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: dict[str, dict[tuple[Any, ...], Mapping[str, Any]]] = {t.name: {} for t in _ORDER}
        self._last = time.monotonic()

    def add(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Queues rows of `table`; a later row replaces one of the same key."""
        key = next(t.key for t in _ORDER if t.name == table)
        for row in rows:
            self._rows[table][tuple(row[k] for k in key)] = row
        if len(self._rows[table]) > FLUSH_ROWS or time.monotonic() - self._last > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what is queued."""
        for table in _ORDER:
            append(self.store, table, list(self._rows[table.name].values()))
            self._rows[table.name] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
