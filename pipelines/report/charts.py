"""Charts as data for plotly.js, each with the sentence and the table that say the same.

A colour is the name of a token of pipelines/web/theme.css ("$keep"); the page puts in what the theme makes of it.
Every text goes through `plain`: plotly reads tags in texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pipelines.report.mix import Mix
from pipelines.report.spread import Key, Spread
from pipelines.report.tally import Tally, edges
from pipelines.report.words import bound, length, share, unit, value

Row = dict[str, Any]
SERIES = tuple(f"$series-{number}" for number in (1, 2, 3, 4, 5, 6))
ROW_PX = 24


@dataclass(frozen=True)
class Chart:
    """label: what it shows, for those who hear it; head, rows: the same as a table."""

    id: str
    title: str
    label: str
    data: list[Row]
    layout: Row
    height: int
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    wide: bool = False

    def spec(self) -> Row:
        """What the page's script draws."""
        return {"data": self.data, "layout": self.layout}


def plain(text: Any, most: int = 0) -> str:
    """`text` as plotly shows it letter by letter, cut to `most` letters."""
    cut = str(text)
    cut = cut if not most or len(cut) <= most else cut[: most - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def bars(names: Sequence[str], series: Sequence[tuple[str, str, Sequence[float], Sequence[str]]]) -> list[Row]:
    """Horizontal bars; series: (name, colour, lengths, what each says)."""
    shown = [plain(name, 26) for name in names]
    shown = [name if shown.count(name) == 1 else f"{name} ({at + 1})" for at, name in enumerate(shown)]
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(title),
            "y": shown,
            "x": [round(float(x), 6) for x in lengths],
            "hovertext": [plain(text) for text in said],
            "hoverinfo": "text",
            "marker": {"color": colour},
        }
        for title, colour, lengths, said in series
    ]


def rows_layout(title: str, count: int, mode: str = "stack", groups: int = 1) -> tuple[Row, int]:
    """(layout, height) of `count` rows of horizontal bars."""
    layout: Row = {
        "barmode": mode,
        "bargap": 0.25,
        "xaxis": {"title": {"text": title}, "rangemode": "tozero"},
        "yaxis": {"type": "category", "autorange": "reversed", "ticks": ""},
    }
    return layout, 96 + count * (ROW_PX if groups < 3 else 10 * groups + 8)


def steps(most: float) -> Row:
    """Ticks of an axis of whole numbers up to `most`: none between two of them."""
    return {"dtick": 1} if most <= 6 else {}


def funnel_steps(tally: Tally, mix: Mix) -> list[Row]:
    """{"name", "left", "lost"} ({"clips", "seconds"}) from what was read to what is kept."""
    total = tally.total()
    read = mix.statuses().get("ok", {"files": 0, "seconds": 0.0})
    outside = {"clips": 0, "seconds": max(0.0, read["seconds"] - total["seconds"])}
    steps = [{"name": "cut into clips", "left": dict(total), "lost": outside}]
    left = dict(total)
    people = tally.people()
    undecided = tally.total(verdict="undecided")
    lost = [(row["rule"], row["lost"]) for row in tally.rule_rows()] + [("undecided", undecided)]
    if people["rejected"]["clips"]:
        lost.append(("people reject", people["rejected"]))
    for name, gone in lost:
        left = {key: left[key] - gone[key] for key in left}
        steps.append({"name": name, "left": left, "lost": gone})
    if people["kept"]["clips"]:
        left = {key: left[key] + people["kept"][key] for key in left}
        steps.append({"name": "people keep", "left": left, "lost": {"clips": 0, "seconds": 0.0}})
    steps.append({"name": "kept", "left": tally.total("keep"), "lost": {"clips": 0, "seconds": 0.0}})
    return steps


def funnel_chart(tally: Tally, mix: Mix) -> Chart:
    """What is left after each rule, and what is lost there."""
    name, steps = tally.profile.name, funnel_steps(tally, mix)
    scale, word = unit(max(s["left"]["seconds"] + s["lost"]["seconds"] for s in steps))
    names = [step["name"] for step in steps]
    said = [f"{s['name']}: {length(s['left']['seconds'])} in {s['left']['clips']:,} clips left" for s in steps]
    gone = [f"{s['name']}: {length(s['lost']['seconds'])} in {s['lost']['clips']:,} clips lost" for s in steps]
    data = bars(
        names,
        [
            ("left", "$series-1", [s["left"]["seconds"] / scale for s in steps], said),
            ("lost here", "$reject", [s["lost"]["seconds"] / scale for s in steps], gone),
        ],
    )
    data[0]["marker"]["color"] = ["$keep" if n == "kept" else "$series-1" for n in names]
    data[1]["marker"]["pattern"] = {
        "shape": "/",
        "size": 5,
        "fgcolor": "$surface",
        "solidity": 0.2,
        "fillmode": "overlay",
    }
    layout, height = rows_layout(f"{word} of video", len(steps))
    kept, total = tally.total("keep"), tally.total()
    label = (
        f"Funnel of profile {name}: of {length(total['seconds'])} in {total['clips']:,} clips, "
        f"{length(kept['seconds'])} in {kept['clips']:,} clips are kept."
    )
    rows = [
        [
            *(s["name"], f"{s['lost']['clips']:,}", length(s["lost"]["seconds"]), f"{s['left']['clips']:,}"),
            *(length(s["left"]["seconds"]), share(s["left"]["seconds"], total["seconds"])),
        ]
        for s in steps
    ]
    head = ["step", "clips lost", "time lost", "clips left", "time left", "share left"]
    notes = ["A clip is lost at the first rule that it fails, in the order of the stages."]
    return Chart(f"funnel-{name}", "Funnel", label, data, layout, height, head, rows, notes, wide=True)


def rules_chart(tally: Tally) -> Chart:
    """What each rule fails, and what it alone fails."""
    name, rows = tally.profile.name, tally.rule_rows()
    only = [row["only"]["clips"] for row in rows]
    also = [row["fails"]["clips"] - row["only"]["clips"] for row in rows]
    data = bars(
        [row["rule"] for row in rows],
        [
            ("fails this rule alone", "$series-2", only, [f"{r['rule']}: {r['only']['clips']:,} fail it alone" for r in rows]),
            ("fails others too", "$series-6", also, [f"{r['rule']}: {n:,} fail others too" for r, n in zip(rows, also, strict=True)]),
        ],
    )  # fmt: skip
    layout, height = rows_layout("clips", len(rows))
    layout["xaxis"] |= steps(max((row["fails"]["clips"] for row in rows), default=0))
    table = [
        [row["rule"], row["stage"], f"{row['fails']['clips']:,}", length(row["fails"]["seconds"])]
        + [f"{row['only']['clips']:,}", length(row["only"]["seconds"]), f"{row['unmet']['clips']:,}"]
        + ([f"{row['near'][0]:,}", f"{row['near'][1]:,}"] if row["near"] else ["", ""])
        for row in rows
    ]
    head = [
        "rule",
        "stage",
        "clips fail",
        "time",
        "fail it alone",
        "time",
        "no value",
        "near, passing",
        "near, failing",
    ]
    label = f"Rules of profile {name}: how many clips fail each, and how many fail that one alone."
    notes = ["What fails one rule alone is what moving that bound would win."]
    return Chart(f"rules-{name}", "What each rule costs", label, data, layout, height, head, table, notes)


def overlap_chart(tally: Tally) -> Chart:
    """How many clips fail both of two rules."""
    name, counts = tally.profile.name, tally.overlap()
    names = [row["rule"] for row in tally.rule_rows()]
    shown = [plain(n, 22) for n in names]
    said = [
        [f"{a}: {n:,} clips fail it" if a == b else f"{a} and {b}: {n:,} clips fail both" for b, n in zip(names, row, strict=True)]
        for a, row in zip(names, counts, strict=True)
    ]  # fmt: skip
    data: list[Row] = [
        {
            "type": "heatmap",
            "z": counts,
            "x": shown,
            "y": shown,
            "text": [[plain(text) for text in row] for row in said],
            "hoverinfo": "text",
            "colorscale": [[0, "$heat-0"], [0.5, "$heat-1"], [1, "$heat-2"]],
            "xgap": 2,
            "ygap": 2,
            "colorbar": {
                "thickness": 10,
                "outlinewidth": 0,
                "title": {"text": "clips"},
                **steps(max(map(max, counts), default=0)),
            },
        }
    ]
    axis = {"type": "category", "ticks": "", "showgrid": False}
    layout = {"xaxis": {**axis, "tickangle": -60}, "yaxis": {**axis, "autorange": "reversed"}}
    rows = [[a, *(f"{n:,}" for n in row)] for a, row in zip(names, counts, strict=True)]
    label = f"Overlap of the rules of profile {name}: how many clips fail both of two."
    height = 200 + ROW_PX * len(names)
    return Chart(f"overlap-{name}", "Which rules fail together", label, data, layout, height, ["rule", *names], rows)


def measure_chart(key: Key, spread: Spread, tallies: Sequence[Tally]) -> Chart:
    """A histogram with the bounds of every profile, or bars of the values that occur."""
    name, backend = key
    lines, texts = _bounds(key, tallies)
    if len(spread.counts):
        data, layout, rows = _histogram(spread, lines)
    else:
        data, layout, rows = _values(spread)
    facts = f"{spread.known:,} measured" + (f", {spread.missing:,} without a value" if spread.missing else "")
    if len(spread.counts):
        facts += f"; median {value(spread.p50)}, 5th to 95th percentile {value(spread.p5)} to {value(spread.p95)}"
    doc = spread.column.doc if len(spread.column.doc) > 2 else f"in {spread.column.doc}"
    notes = [doc, facts, *texts]
    label = f"{name}" + (f" by {backend}" if backend else "") + f": {facts}."
    title = name + (f" ({backend})" if backend else "")
    ident = f"measure-{name}-{''.join(c if c.isalnum() else '_' for c in backend)}"
    head = ["from", "to", "clips"] if len(spread.counts) else ["value", "clips"]
    height = 200 if len(spread.counts) else 72 + ROW_PX * max(2, len(rows))
    return Chart(ident, title, label, data, layout, height, head, rows, notes)


def _bounds(key: Key, tallies: Sequence[Tally]) -> tuple[list[float], list[str]]:
    """(where lines stand, what the profiles ask)."""
    lines: list[float] = []
    asked: dict[str, list[str]] = {}
    for tally in tallies:
        for rule in tally.rules:
            if rule.measure != key[0] or not rule.applies(key[1]) or not {"", key[1]} & set(rule.bounds):
                continue
            near, turns = tally.near.get(rule.name), edges(rule, key[1])
            lines += [turn for turn in turns if turn not in lines]
            text = bound(rule, key[1])
            if near and turns:
                text += f"; near it {near[0]:,} that pass, {near[1]:,} that fail"
            asked.setdefault(text, []).append(tally.profile.name)
    return lines, [f"{', '.join(names)}: {text}" for text, names in asked.items()]


def _histogram(spread: Spread, lines: Sequence[float]) -> tuple[list[Row], Row, list[list[str]]]:
    edge = [float(e) for e in spread.edges]
    spans = list(pairwise(edge))
    whole = spread.column.kind.startswith("int") and edge[1] - edge[0] == 1
    middles = [round((a + b) / 2, 6) for a, b in spans]
    ranges = [value(round(m)) if whole else f"{value(a)} to {value(b)}" for m, (a, b) in zip(middles, spans, strict=True)]  # fmt: skip
    counts = [int(count) for count in spread.counts]
    data: list[Row] = [
        {
            "type": "bar",
            "x": middles,
            "y": counts,
            "width": 0.9 if whole else round(edge[1] - edge[0], 9),
            "hovertext": [f"{where}: {count:,} clips" for where, count in zip(ranges, counts, strict=True)],
            "hoverinfo": "text",
            "marker": {"color": "$series-1"},
        }
    ]
    span = edge[-1] - edge[0]
    seen = [at for at in lines if edge[0] - span <= at <= edge[-1] + span]
    low, high = min([edge[0], *seen]), max([edge[-1], *seen])
    room = 0.03 * (high - low)
    layout = {
        "xaxis": {"range": [low - room, high + room], **(steps(high - low) if whole else {})},
        "yaxis": {"title": {"text": "clips"}, "rangemode": "tozero", "nticks": 4, **steps(max(counts))},
        "shapes": [
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "$reject", "width": 2, "dash": "dash"}}
            for at in seen
        ],
    }  # fmt: skip
    rows = [
        [value(a), value(b), f"{count:,}"]
        for (a, b), count in zip(spans, counts, strict=True)
        if count
    ]  # fmt: skip
    return data, layout, rows


def _values(spread: Spread) -> tuple[list[Row], Row, list[list[str]]]:
    found = spread.values.most_common(20)
    names = [name for name, _ in found]
    said = [f"{name}: {count:,} clips" for name, count in found]
    data = bars(names, [("clips", "$series-1", [count for _, count in found], said)])
    layout = rows_layout("clips", len(names))[0]
    layout["xaxis"] |= steps(found[0][1])
    return data, layout, [[name, f"{count:,}"] for name, count in found]
