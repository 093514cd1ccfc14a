"""RUN/log.jsonl: one JSON object a line for each step that is logged and for what happened between the steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
LOG = "log.jsonl"


class Log:
    """Appends to the log of a run, a line at a time, each on its way to the disk before the next step.

    resumed: the step that the run goes on from; what was logged after it is cut off, since those steps come again.
    """

    def __init__(self, run: Path, resumed: int | None = None) -> None:
        self.path = run / LOG
        if resumed is not None:
            cut(self.path, resumed)
        self._file: IO[str] = self.path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Mapping[str, Any]) -> None:
        """One line."""
        self._file.write(json.dumps(finite(row), allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()


def cut(path: Path, step: int) -> None:
    """Takes away lines of steps after `step` and a line that was never finished: rewritten beside, then renamed."""
    if not path.exists():
        return
    partial = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows(path):
                if int(row.get("step", 0)) <= step:
                    file.write(json.dumps(row) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def rows(path: Path) -> Iterator[Row]:
    """The lines of a log, but one that a killed run never finished."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def finite(value: Any) -> Any:
    """`value` as JSON has it: numbers of six digits, none for those that are none."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
