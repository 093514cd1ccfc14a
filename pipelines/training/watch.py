"""What people see of a run while it goes: a bar, RUN/log.jsonl, TensorBoard, curves, the sample film."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from manifests.errors import one_line
from models.clock import CHUNK_SECONDS
from pipelines.progress import Bar
from pipelines.training import curves
from pipelines.training.log import Log, Row
from training.events import Event, Sampled, Started, Step, Validated
from training.objective import POSITION_CHUNKS
from training.recipe import Recipe
from training.trainer import due

BOARD, FILMS = "tensorboard", "samples"
HIGH = 0.5
"""From this noise level on a loss is called high: there the picture comes from the speech, not from the noisy input."""
DRAW_EVERY_S = 60.0
"""Curves are drawn with every film, and with a validation when so long ago: it takes a second."""
EXTRA = 'pip install "xstreamer[train]"'
Filmer = Callable[[Sampled, Path], None]
"""Writes the film of a sample to a path."""


class Watch:
    """Shows the events of a run: `with Watch(...) as watch: watch.see(event)`.

    resumed: whether the run goes on; steps that were logged after the checkpoint it goes on from come again. Whatever
    keeps a film or the curves from being made is told, and costs nobody a run of days.
    """

    def __init__(self, run: Path, recipe: Recipe, filmer: Filmer, resumed: bool, quiet: bool) -> None:
        self.run, self.recipe, self.quiet, self.title = run, recipe, quiet, f"recipe {recipe.name}"
        self.last: dict[str, Row] = {}
        self._filmer, self._resumed = filmer, resumed
        self._open = ExitStack()
        self._log: Log | None = None
        self._board: Any = None
        self._bar: Bar | None = None
        self._done, self._steps, self._told = 0, 0, set[str]()
        self._drawn = time.monotonic()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if self._log:
                self._curves()

    def see(self, event: Event) -> None:
        """Shows one event; the first must be `Started`."""
        if isinstance(event, Started):
            self._begin(event)
        row = row_of(event)
        if isinstance(event, Sampled):
            row |= self._film(event)
        if isinstance(event, Sampled | Validated) and event.split == "train" and not self.quiet:
            self._tell("the shards hold nothing back (curate --val-share): validation and film use training samples")
        for text in row.get("notes", ()):
            self._tell(f"skipped: {text}")
        self.last[row["kind"]] = row
        if isinstance(event, Step) and self._bar:
            filming = due(event.step, self.recipe.sample_every, event.step >= self._steps)
            self._bar.add(event.step - self._done, note(row) + " (a film is made)" * filming)
            self._done = event.step
            if event.step % self.recipe.log_every and event.step < self._steps and not event.notes:
                return
        if self._log:
            self._log.write(row)
        if self._board:
            for name, value in scalars(row):
                self._board.add_scalar(name, value, event.step)
        if isinstance(event, Sampled) or (
            isinstance(event, Validated) and time.monotonic() - self._drawn > DRAW_EVERY_S
        ):
            self._curves()

    def _begin(self, event: Started) -> None:
        self._done, self._steps = event.step, event.steps
        many = f"{event.ranks} processes" if event.ranks > 1 else "one process"
        self.title += (
            f": preset {self.recipe.preset}, {event.parameters / 1e6:,.1f}M parameters, {self.recipe.batch} samples a "
        )
        self.title += f"step, {event.epoch_steps:,} steps an epoch, {many} on {event.device}"
        if not self.quiet:
            on = f", goes on from step {event.step:,}" if event.step else ""
            print(self.title + on, file=sys.stderr, flush=True)
        self._log = Log(self.run, event.step if self._resumed else None)
        self._open.callback(self._log.close)
        self._board = self._opened(event.step)
        if self._board:
            self._open.callback(self._board.close)
        self._bar = self._open.enter_context(Bar("train", event.steps, "steps", self.quiet, begun=event.step))

    def _opened(self, step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._tell(f"no TensorBoard here, everything is in log.jsonl; to have it: {EXTRA}")
            return None
        return SummaryWriter(str(self.run / BOARD), purge_step=step + 1 if self._resumed else None, flush_secs=20)

    def _curves(self) -> None:
        self._drawn = time.monotonic()
        try:
            curves.draw(self.run, self.title)
        except ImportError:
            self._tell(f"no matplotlib here, so no {curves.CURVES}; to have it: {EXTRA}")
        except Exception as error:
            self._tell(f"no {curves.CURVES}: {one_line(error)}")

    def _film(self, event: Sampled) -> Row:
        """What the log says of the film."""
        path = self.run / FILMS / f"step-{event.step:08d}.mp4"
        try:
            self._filmer(event, path)
        except Exception as error:
            self._tell(f"no film of step {event.step}: {one_line(error)}")
            return {"error": one_line(error)}
        return {"film": str(path.relative_to(self.run))}

    def _tell(self, text: str) -> None:
        """One line on standard error, once; the bar, where there is one, moves down."""
        if text not in self._told:
            print(f"xstreamer: {text}", file=sys.stderr, flush=True)
        self._told.add(text)


def row_of(event: Event) -> Row:
    """The line of the log that tells `event`: its own figures, and rates made of them."""
    kind = type(event).__name__.lower()
    if isinstance(event, Sampled):
        return {"kind": kind, "step": event.step, "sample_id": event.sample_id, "split": event.split} | {
            "chunks": len(event.latents),
            "seconds": event.seconds,
        }
    row = {"kind": kind, **vars(event)}
    if isinstance(event, Step | Validated):
        row["loss_high"] = high(event.by_level)
    if isinstance(event, Step):
        spent = max(event.seconds, 1e-9)
        row |= {"samples_per_s": event.samples / spent, "tokens_per_s": event.tokens / spent}
        row |= {"wait_share": event.wait_s / spent, "thinker_share": event.thinker_s / spent}
        row["memory_gb"] = row.pop("memory") / 1e9
    if isinstance(event, Validated) and event.average_by_level is not None:
        row["average_loss_high"] = high(event.average_by_level)
    return row


def high(by_level: Sequence[float | None]) -> float | None:
    """Mean of the bins from level HIGH on in which something fell; None where nothing did."""
    known = [loss for loss in by_level[round(HIGH * len(by_level)) :] if loss is not None]
    return sum(known) / len(known) if known else None


TAGS = {
    "step": {
        "loss": "loss/training",
        "loss_high": "loss/training, levels from 0.5",
        "grad_norm": "optimizer/gradient norm",
        "lr": "optimizer/learning rate",
        "samples_per_s": "speed/samples per s",
        "tokens_per_s": "speed/video tokens per s",
        "mfu": "speed/MFU",
        "seconds": "speed/seconds a step",
        "wait_share": "speed/share waiting for data",
        "thinker_share": "speed/share of the Thinker",
        "padding": "speed/share of padding",
        "memory_gb": "machine/memory GB",
        "damaged": "machine/damaged samples",
    },
    "validated": {
        "loss": "loss/validation",
        "loss_high": "loss/validation, levels from 0.5",
        "average_loss": "loss/validation of the average",
        "average_loss_high": "loss/validation of the average, levels from 0.5",
    },
}
"""Fields of the log as TensorBoard shows them."""


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """(tag, value) of a line of the log; what was not measured is left out."""
    for name, tag in TAGS.get(row["kind"], {}).items():
        if row.get(name) is not None:
            yield tag, float(row[name])
    if row["kind"] not in TAGS:
        return
    kind = "training" if row["kind"] == "step" else "validation"
    for at, loss in enumerate(row["by_level"]):
        if loss is not None:
            yield f"{kind} loss by level/{at / len(row['by_level']):.1f}", loss
    for at, loss in enumerate(row.get("by_position", ())):
        if loss is not None:
            yield f"{kind} loss by position/{at * POSITION_CHUNKS * CHUNK_SECONDS:04.1f} s", loss


def note(row: Row) -> str:
    """What stands behind the bar."""
    parts = [f"loss {row['loss']:.4f}"]
    if row["loss_high"] is not None:
        parts.append(f"high {row['loss_high']:.4f}")
    parts += [f"{row['samples_per_s']:.2f} samples/s", f"{row['tokens_per_s']:,.0f} tokens/s"]
    parts.append(f"data {row['wait_share']:.0%}")
    if row["mfu"] is not None:
        parts.append(f"MFU {row['mfu']:.0%}")
    if row["damaged"]:
        parts.append(f"{row['damaged']} damaged")
    return " ".join(parts)
