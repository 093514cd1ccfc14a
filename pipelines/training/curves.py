"""RUN/curves.png: the log of a run as people look at it. Loss by noise level and by position, validation, speed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.clock import CHUNK_SECONDS
from pipelines.training.log import LOG, Row, rows

CURVES = "curves.png"
POINTS = 150
"""Steps are put together to at most so many points."""
BINNED = ("by_level", "by_position")
"""Fields that hold a number for each bin."""
PARTS = 4
"""Curves of the loss by position: of so many equal parts of the run."""


@dataclass(frozen=True)
class Points:
    """Means over neighbouring steps. step: [n], the last of each point; values: {field: [n] or [n, bins]}, NaN where
    nothing was measured."""

    step: np.ndarray
    values: dict[str, np.ndarray]

    def of(self, name: str) -> np.ndarray:
        """One field; NaN throughout where no step has it."""
        return self.values.get(name, np.full(len(self.step), np.nan))


def draw(run: Path, title: str) -> Path | None:
    """Draws RUN/curves.png from RUN/log.jsonl, whole or not at all; None while there is nothing to draw.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    steps, validated = split(rows(run / LOG))
    if not steps:
        return None
    points = gathered(steps)
    figure = Figure(figsize=(13, 11), dpi=100, layout="constrained")
    axes = figure.subplots(3, 2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    _loss(axes[0, 0], points, validated)
    _levels(axes[0, 1], points)
    _positions(axes[1, 0], points)
    _gradient(axes[1, 1], points)
    _speed(axes[2, 0], points)
    _machine(axes[2, 1], points)
    path = run / CURVES
    partial = path.with_name(f".tmp-{os.getpid()}-{CURVES}")
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def split(log: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """(rows of steps, rows of validations)."""
    steps, validated = [], []
    for row in log:
        if row["kind"] == "step":
            steps.append(row)
        elif row["kind"] == "validated":
            validated.append(row)
    return steps, validated


def gathered(steps: Sequence[Row], most: int = POINTS) -> Points:
    """`steps` put together to at most `most` points."""
    parts = np.array_split(np.arange(len(steps)), min(most, len(steps)))
    names = [name for name, value in steps[-1].items() if isinstance(value, int | float) and name != "step"]
    values = {}
    for name in (*names, *BINNED):
        column = _column([row.get(name) for row in steps])
        values[name] = np.stack([_mean(column[part]) for part in parts])
    return Points(np.array([steps[part[-1]]["step"] for part in parts]), values)


def _column(found: Sequence[Any]) -> np.ndarray:
    """[n] or [n, bins] float64; None, at any depth, becomes NaN."""
    width = max((len(value) for value in found if isinstance(value, list)), default=0)
    empty: Any = [None] * width if width else None
    return np.array([empty if value is None else value for value in found], dtype=np.float64)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is no NaN; NaN where that is nothing."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0))


def _shades(count: int) -> list[Any]:
    """Colours from dark to light that go by order."""
    from matplotlib import colormaps

    return [colormaps["viridis"](at) for at in np.linspace(0, 0.9, count)]


def _axis(axis: Any, title: str, y: str, x: str = "step", *, log: bool = False, legend: str = "best") -> None:
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if log:
        axis.set_yscale("log")
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(lambda value, _: f"{value:g}")
        axis.tick_params(axis="y", which="minor", labelsize=7)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False, loc=legend)


def _line(axis: Any, x: np.ndarray, y: np.ndarray, label: str, **more: Any) -> None:
    known = ~np.isnan(y)
    if known.any():
        style: dict[str, Any] = {"linewidth": 1.4, "marker": "." if known.sum() < 20 else None}
        axis.plot(x[known], y[known], label=label, **style | more)


def _loss(axis: Any, points: Points, validated: Sequence[Row]) -> None:
    _line(axis, points.step, points.of("loss"), "training, all levels", color="#4878a8")
    _line(axis, points.step, points.of("loss_high"), "training, levels ≥ 0.5", color="#c2572b")
    if validated:
        at = np.array([row["step"] for row in validated])
        average = "average_" if validated[-1].get("average_loss") is not None else ""
        of = "of the weights' average, " if average else ""
        for name, colour, levels in (("loss", "#1c3a57", "all levels"), ("loss_high", "#7a2d10", "levels ≥ 0.5")):
            values = _column([row.get(average + name) for row in validated])
            _line(axis, at, values, f"validation {of}{levels}", color=colour, marker="o", ms=3)
    _axis(axis, "Loss", "mean squared error of v", log=True)


def _levels(axis: Any, points: Points) -> None:
    found = points.of("by_level")
    if found.ndim == 2:
        for at, colour in enumerate(_shades(found.shape[1])):
            _line(
                axis,
                points.step,
                found[:, at],
                f"{at / found.shape[1]:.1f}-{(at + 1) / found.shape[1]:.1f}",
                color=colour,
            )
    _axis(axis, "Loss by noise level", "mean squared error of v", log=True)
    if axis.get_legend():
        axis.legend(fontsize=7, frameon=False, ncols=2, title="level (1 is noise)", title_fontsize=8)


def _positions(axis: Any, points: Points) -> None:
    found = points.of("by_position")
    if found.ndim == 2 and not np.isnan(found).all():
        last = int(np.flatnonzero(~np.isnan(found).all(axis=0))[-1])
        from training.objective import POSITION_CHUNKS

        seconds = (np.arange(found.shape[1]) + 0.5) * POSITION_CHUNKS * CHUNK_SECONDS
        parts = list(np.array_split(np.arange(len(found)), min(PARTS, len(found))))
        for part, colour in zip(parts, _shades(len(parts)), strict=True):
            first = points.step[part[0] - 1] + 1 if part[0] else 1
            label = f"steps {first:,}-{points.step[part[-1]]:,}"
            _line(axis, seconds[: last + 1], _mean(found[part])[: last + 1], label, color=colour, marker="o", ms=3)
    _axis(axis, "Loss by position in the sample", "mean squared error of v", "seconds from the sample's beginning")


def _gradient(axis: Any, points: Points) -> None:
    _line(axis, points.step, points.of("grad_norm"), "norm of the gradient before clipping", color="#4878a8")
    rate = axis.twinx()
    _line(rate, points.step, points.of("lr"), "learning rate", color="#999999", linestyle="--")
    _right(rate)
    _axis(axis, "Gradient, and the learning rate (right, dashed)", "norm", log=True, legend="lower left")


def _speed(axis: Any, points: Points) -> None:
    _line(axis, points.step, points.of("samples_per_s"), "samples/s", color="#4878a8")
    _line(axis, points.step, points.of("tokens_per_s") / 1000, "video tokens/s, thousands", color="#c2572b")
    axis.set_ylim(bottom=0)
    _axis(axis, "Speed", "per second")


def _machine(axis: Any, points: Points) -> None:
    for name, label, colour in (
        ("wait_share", "waiting for data", "#c2572b"),
        ("thinker_share", "Thinker", "#8a6fb0"),
        ("mfu", "MFU", "#4878a8"),
    ):
        _line(axis, points.step, 100 * points.of(name), label, color=colour)
    axis.set_ylim(0, 100)
    memory = axis.twinx()
    _line(memory, points.step, points.of("memory_gb"), "memory", color="#999999", linestyle="--")
    _right(memory)
    _axis(axis, "Shares of a step's time, and peak memory in GB (right, dashed)", "%", legend="upper left")


def _right(axis: Any) -> None:
    """The look of a second axis, from 0 to a little over its line."""
    axis.set_ylim(0, max((1.25 * line.get_ydata().max() for line in axis.get_lines()), default=1) or 1)
    axis.tick_params(labelsize=8)
    axis.spines["top"].set_visible(False)
