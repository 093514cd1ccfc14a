"""The picture of a calibration: a chart a rule, of precision and recall over the bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.calibration.finding import IDLE, MOVES, Aim, Finding
from pipelines.calibration.say import Row, asked, percent, sentence, settling, suggestion, sweep
from pipelines.report.charts import Chart, plain
from pipelines.report.page import needed, render
from pipelines.report.words import value

KINDS = (("precision", "$series-1", "circle", "solid"), ("recall", "$series-2", "diamond", "dash"))
CLOSE = 0.02
"""Bounds closer than this share of the picture are shown once."""
HEAD = ["bound", "clips it fails alone", "precision", "95% interval", "recall", "95% interval"]


def rule_chart(found: Finding, aim: Aim) -> Chart:
    """Precision and recall over the bound, with whiskers of 95% and the bounds as upright lines."""
    rows = sweep(found)
    rule = found.evidence.scale.rule
    now, then = float(found.evidence.scale.bound), found.bound if found.state == MOVES else None
    data = [_trace(_apart(rows, (now, then)), kind) for kind in KINDS]
    lines = [(now, "now", "$text", "dash", "left" if then is None or then < now else "right")]
    if then is not None:
        lines.append((then, "suggested", "$keep", "solid", "right" if then < now else "left"))
    axis = {"title": {"text": plain(f"{rule.measure}: {asked(found)} now")}}
    layout: Row = {
        "xaxis": axis,
        "yaxis": {"title": {"text": "share"}, "tickformat": ".0%", "range": [0, 1.15], "dtick": 0.25},
        "shapes": [_line(*line) for line in lines],
        "annotations": [_label(*line) for line in lines],
    }
    table = [
        [value(row["bound"]), f"{row['fails']:,}", *_cells(row["precision"]), *_cells(row["recall"])] for row in rows
    ]
    label = (
        f"{rule.name}: precision {percent(found.precision)} and recall {percent(found.recall)} at the current bound. "
        f"{sentence(found, aim)}"
    )
    return Chart(
        f"rule-{rule.name}", rule.name, label, data, layout, 280, HEAD, table, [sentence(found, aim), *found.warnings]
    )


def _apart(rows: Sequence[Row], always: Sequence[float | None]) -> list[Row]:
    """Of rows by rising bound those that can be told apart in the picture, and those at the bounds `always`."""
    nearest = CLOSE * (rows[-1]["bound"] - rows[0]["bound"])
    shown = [row for row in rows if row["bound"] in always]
    for row in rows:
        if all(abs(row["bound"] - other["bound"]) >= nearest for other in shown):
            shown.append(row)
    return sorted(shown, key=lambda row: row["bound"])


def _trace(rows: Sequence[Row], kind: tuple[str, str, str, str]) -> Row:
    name, colour, symbol, dash = kind
    known = [row for row in rows if row[name]]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [row["bound"] for row in known],
        "y": [row[name]["value"] for row in known],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round(row[name]["high"] - row[name]["value"], 4) for row in known],
            "arrayminus": [round(row[name]["value"] - row[name]["low"], 4) for row in known],
            "color": colour,
            "thickness": 1,
            "width": 2,
        },
        "hovertext": [f"bound {value(row['bound'])}: {name} {' '.join(_cells(row[name]))}" for row in known],
        "hoverinfo": "text",
        "marker": {"color": colour, "symbol": symbol, "size": 6},
        "line": {"color": colour, "dash": dash, "width": 2},
    }


def _cells(share: Row | None) -> list[str]:
    if share is None:
        return ["–", ""]
    return [f"{100 * share['value']:.0f}%", f"{100 * share['low']:.0f} to {100 * share['high']:.0f}%"]


def _line(at: float, _: str, colour: str, dash: str, _anchor: str) -> Row:
    line = {"color": colour, "dash": dash, "width": 1.5}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}


def _label(at: float, text: str, colour: str, _dash: str, anchor: str) -> Row:
    return {
        "x": at,
        "y": 1.0,
        "yref": "paper",
        "yanchor": "top",
        "text": text,
        "showarrow": False,
        "font": {"color": colour},
        "xanchor": anchor,
    }


def calibration_page(content: Row, findings: Sequence[Finding], aim: Aim) -> bytes:
    """The page. content: what templates/calibration.html shows beside the rules. Raises XstreamerError when a
    package is missing."""
    needed()
    shown = [found for found in findings if found.evidence.scale.slides and len(found.evidence.edges) > 1]
    charts = [rule_chart(found, aim) for found in shown if found.precision or found.recall]
    rules = [
        [
            *(found.evidence.scale.rule.name, asked(found), f"{len(found.evidence.reviewed.bad):,}"),
            *(percent(found.precision), percent(found.recall), suggestion(found), settling(found)),
        ]
        for found in findings
    ]
    drawn = {chart.title for chart in charts}
    others = [
        (found.evidence.scale.rule.name, " ".join((sentence(found, aim), *found.warnings)))
        for found in findings
        if found.evidence.scale.rule.name not in drawn and found.state != IDLE
    ]
    whole: dict[str, Any] = {**content, "rules": rules, "charts": charts, "others": others}
    return render(whole, charts, "calibration.html")
