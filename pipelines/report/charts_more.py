"""Charts of what the clips are made of, how the stages went, and what changed against another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from manifests.records import STATUSES
from pipelines.report.against import Compared
from pipelines.report.charts import ROW_PX, SERIES, Chart, bars, rows_layout
from pipelines.report.mix import LONGEST_S, Mix
from pipelines.report.stages import Runs, Statuses
from pipelines.report.words import length, share, unit

Row = dict[str, Any]
STATUS_COLOURS = dict(
    zip((*STATUSES, "not yet"), ("$keep", "$undecided", "$series-6", "$reject", "$heat-1"), strict=True)
)


def fact_charts(mix: Mix) -> list[Chart]:
    """Seconds of video by language, licence, codec ... all and kept, of facts that tell clips apart."""
    told = [(name, rows) for name, rows in mix.facts().items() if len(rows) > 1]
    return [_fact(mix, name, rows, place) for place, (name, rows) in enumerate(told)]


def same_for_all(mix: Mix) -> list[str]:
    """Facts that are the same for every clip: "licence of the source: not given"."""
    return [f"{name}: {rows[0]['value']}" for name, rows in mix.facts().items() if len(rows) == 1]


def _fact(mix: Mix, name: str, rows: Sequence[Row], place: int) -> Chart:
    scale, word = unit(max(row["seconds"] for row in rows))
    names = [row["value"] for row in rows]
    series = [
        (
            "all",
            "$series-6",
            [r["seconds"] / scale for r in rows],
            [f"{r['value']}: {length(r['seconds'])}" for r in rows],
        )
    ]
    for number, profile in enumerate(mix.profiles):
        kept = [row["kept"][profile] for row in rows]
        said = [f"{r['value']}: {length(k)} kept by {profile}" for r, k in zip(rows, kept, strict=True)]
        series.append((f"kept by {profile}", SERIES[number % 5], [k / scale for k in kept], said))
    layout, height = rows_layout(f"{word} of video", len(rows), "group", len(series))
    table = [
        [r["value"], length(r["seconds"]), *(f"{length(k)} ({share(k, r['seconds'])})" for k in r["kept"].values())]
        for r in rows
    ]
    head = [name, "time", *(f"kept by {profile}" for profile in mix.profiles)]
    title = name[:1].upper() + name[1:]
    label = f"{title}: " + ", ".join(f"{r['value']} {length(r['seconds'])}" for r in rows[:5])
    return Chart(f"mix-{place}", title, label, bars(names, series), layout, height, head, table)  # fmt: skip


def duration_chart(mix: Mix) -> Chart | None:
    """Seconds of video in clips of each length, all and kept."""
    if not mix.durations.any():
        return None
    scale, word = unit(float(mix.durations[:, 0].max()))
    last = int(np.flatnonzero(mix.durations[:, 0])[-1])
    spans = [f"{s} s and more" if s == LONGEST_S else f"{s} to {s + 1} s" for s in range(last + 1)]
    names = ["all", *(f"kept by {profile}" for profile in mix.profiles)]
    data = [
        {
            "type": "bar" if column == 0 else "scatter",
            **({} if column == 0 else {"mode": "lines+markers"}),
            "name": name,
            "x": [s + 0.5 for s in range(last + 1)],
            "y": [round(float(found[column]) / scale, 6) if found[0] else None for found in mix.durations[: last + 1]],
            "hovertext": [
                f"{span}: {length(v)} {name}" for span, v in zip(spans, mix.durations[:, column], strict=False)
            ],
            "hoverinfo": "text",
            "marker": {"color": "$series-6" if column == 0 else SERIES[(column - 1) % 5], "symbol": column},
            "line": {"color": SERIES[(column - 1) % 5], "dash": ("solid", "solid", "dash", "dot")[min(column, 3)]},
        }
        for column, name in enumerate(names)
    ]
    layout = {
        "bargap": 0.1,
        "xaxis": {"title": {"text": "length of the clip, s"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"{word} of video"}, "rangemode": "tozero"},
    }
    rows = [
        [span, *(length(float(v)) for v in found)]
        for span, found in zip(spans, mix.durations, strict=False)
        if found[0]
    ]
    label = "Lengths of clips: how much video is in clips of each length, all and kept."
    return Chart("durations", "Lengths of clips", label, data, layout, 280, ["length", *names], rows)


def status_chart(statuses: Statuses) -> Chart:
    """How each stage ended."""
    rows = statuses.rows()
    series = [
        (status, colour, [row[status] for row in rows], [f"{row['stage']}: {row[status]:,} {status}" for row in rows])
        for status, colour in STATUS_COLOURS.items()
        if any(row[status] for row in rows)
    ]
    layout, height = rows_layout("clips", len(rows))
    head = ["stage", *STATUS_COLOURS]
    table = [[row["stage"], *(f"{row[status]:,}" for status in STATUS_COLOURS)] for row in rows]
    label = "Stages: how many clips each measured, could not measure, skipped or failed at."
    return Chart("statuses", "How the stages ended", label, bars([r["stage"] for r in rows], series), layout, height, head, table)  # fmt: skip


def throughput_chart(runs: Runs) -> Chart | None:
    """Seconds of work a second of video."""
    rows = [row for row in runs.throughput() if row["rate"] is not None]
    if not rows:
        return None
    media = [row["rate"] * row["media_share"] for row in rows]
    own = [row["rate"] - part for row, part in zip(rows, media, strict=True)]
    said = [f"{row['stage']}: {row['rate']:.3g} s of work a second of video" for row in rows]
    read = [f"{r['stage']}: {m:.3g} s of it reading media ({100 * r['media_share']:.0f}%)" for r, m in zip(rows, media, strict=True)]  # fmt: skip
    series = [("measuring", "$series-1", own, said), ("reading picture and sound", "$series-2", media, read)]
    layout, height = rows_layout("s of work a second of video", len(rows))
    table = [
        [
            *(r["stage"], f"{r['runs']:,}", length(r["video_s"]), length(r["work_s"])),
            *(f"{r['rate']:.3g}", f"{100 * r['media_share']:.0f}%"),
        ]
        for r in rows
    ]
    head = ["stage", "runs", "video", "work", "s of work a s of video", "reading media"]
    total = sum(row["work_s"] for row in rows)
    label = f"Throughput: {length(total)} of work in all; " + "; ".join(said)
    notes = [
        "Wall time of each stage on one worker. The first stage of a clip that asks for a picture or sound pays for reading it."
    ]
    return Chart("throughput", "What the stages cost", label, bars([r["stage"] for r in rows], series), layout, height, head, table, notes)  # fmt: skip


def change_chart(compared: Compared, ident: str) -> Chart | None:
    """Rules that began or ceased to fail."""
    if not compared.rules:
        return None
    rows = compared.rules
    began, ceased = [row["began"] for row in rows], [row["ceased"] for row in rows]
    series = [
        ("ceased to fail", "$keep", ceased, [f"{r['rule']}: {r['ceased']:,} clips ceased to fail it" for r in rows]),
        ("began to fail", "$reject", began, [f"{r['rule']}: {r['began']:,} clips began to fail it" for r in rows]),
    ]
    layout, height = rows_layout("clips", len(rows), "group", 2)
    head = ["rule", "began to fail", "ceased to fail", "lost its value", "found a value", "of these with another verdict", "why", "bound before", "bound now"]  # fmt: skip
    table = [
        [
            *(row["rule"], *(f"{row[key]:,}" for key in ("began", "ceased", "lost", "found", "decisive"))),
            *("; ".join(f"{cause} for {count:,}" for cause, count in row["causes"].items()), *row["bounds"]),
        ]
        for row in rows
    ]
    label = "Rules that changed: how many clips began and ceased to fail each."
    height += ROW_PX
    asked = [was if was == now else f"{was}, now {now}" for was, now in (row["bounds"] for row in rows)]
    notes = [f"{row[0]} ({bound}): {row[6]} clips" for row, bound in zip(table[:12], asked, strict=False)]
    return Chart(ident, "Rules that began or ceased to fail", label, bars([r["rule"] for r in rows], series), layout, height, head, table, notes, wide=True)  # fmt: skip
