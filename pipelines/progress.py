"""Progress bars with rates and time left, on standard error; plain lines where that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

LINE_EVERY_S = 15.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="cyan")


class Bar:
    """One bar: `with Bar("measure", total, "s of video") as bar: bar.add(3.2)`. begun: done before, by others."""

    def __init__(self, title: str, total: float, unit: str, quiet: bool = False, begun: float = 0.0) -> None:
        self.title, self.total, self.unit, self.quiet, self.begun = title, total, unit, quiet, begun
        self.done, self.note, self._began, self._last = begun, "", 0.0, 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> Bar:
        self._began = self._last = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            console = Console(stderr=True)
            one, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
            self._bar = Progress(
                TextColumn("{task.description:>10}", table_column=one.copy()),
                BarColumn(max(8, min(40, console.width - 92)), table_column=one.copy()),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}", table_column=one.copy()),
                _Rate(table_column=one.copy()),
                TimeElapsedColumn(table_column=one.copy()),
                TimeRemainingColumn(table_column=one.copy()),
                TextColumn("{task.fields[note]}", table_column=rest),  # has what the others leave
                console=console,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, unit=self.unit, note="")
            self._bar.update(self._task, completed=self.begun)
        return self

    def add(self, amount: float, note: str = "") -> None:
        """Advances by `amount` of the unit."""
        self.done += amount
        self.note = note or self.note
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif not self.quiet and time.monotonic() - self._last > LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        rate = (self.done - self.begun) / max(1e-9, self._last - self._began)
        left = (self.total - self.done) / rate if rate else 0.0
        text = (
            f"{self.title}: {self.done:.0f}/{self.total:.0f} {self.unit}, {rate:.1f}/s, {left:.0f} s left {self.note}"
        )
        print(text.rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif not self.quiet and self.total:
            self._line()
