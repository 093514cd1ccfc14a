"""The funnel: seconds and clips in, kept, rejected by each rule, undecided, failed, skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from manifests.records import CLIP_STAGES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, SOURCES_TABLE, read
from manifests.verdicts import KEEP, REJECT, UNDECIDED, Profile
from pipelines import judge

Row = dict[str, Any]


def _tally(mask: np.ndarray, seconds: np.ndarray) -> Row:
    return {"clips": int(mask.sum()), "seconds": round(float(seconds[mask].sum()), 3)}


def source_counts(store: Store) -> Row:
    """Files and seconds by status, and what failed: [{"source", "error"}]."""
    rows = read(store, SOURCES_TABLE, ["uri", "status", "error", "duration_s"]).to_pylist()
    out: Row = {"failed_sources": [{"source": r["uri"], "error": r["error"]} for r in rows if r["status"] == "failed"]}
    for status in ("ok", "duplicate", "failed"):
        some = [r for r in rows if r["status"] == status]
        out[status] = {"files": len(some), "seconds": round(sum(r["duration_s"] or 0.0 for r in some), 3)}
    return out


def stage_counts(clips: pa.Table) -> dict[str, dict[str, int]]:
    """{stage: {status: clips}}, for stages that ran."""
    out = {}
    for stage in CLIP_STAGES:
        counts = pc.value_counts(clips[f"{stage}_status"]).to_pylist()
        out[stage] = {str(c["values"]): int(c["counts"]) for c in counts if c["values"] is not None}
    return out


def funnel(store: Store, profiles: Sequence[Profile]) -> Row:
    """The whole funnel as data: sources, stages, and for each profile its verdicts and rules.

    A rule's `clips` and `seconds` are all that fail it; `only` are those that fail nothing else.
    """
    columns = ["duration_s", *(f"{stage}_status" for stage in CLIP_STAGES)]
    clips = read(store, CLIPS_TABLE, columns)
    seconds = clips["duration_s"].to_numpy()
    out: Row = {
        "sources": source_counts(store),
        "clips": _tally(np.ones(len(clips), bool), seconds),
        "stages": stage_counts(clips),
        "profiles": {},
    }
    for profile in profiles:
        judge.judge(store, profile)
        verdicts = judge.verdicts(store, profile.name)
        assert verdicts is not None
        out["profiles"][profile.name] = _profile(profile, verdicts, seconds)
    return out


def _profile(profile: Profile, verdicts: pa.Table, seconds: np.ndarray) -> Row:
    final = pc.coalesce(verdicts["override"], verdicts["verdict"].cast(pa.string()))
    out: Row = {name: _tally(np.asarray(pc.equal(final, name)), seconds) for name in (KEEP, REJECT, UNDECIDED)}
    failing = verdicts["failing"].combine_chunks()
    count = np.asarray(pc.list_value_length(failing))
    where, names = np.asarray(pc.list_parent_indices(failing)), np.asarray(pc.list_flatten(failing), object)
    lacking = verdicts["unmet"].combine_chunks()
    lacks, unmet = np.asarray(pc.list_parent_indices(lacking)), np.asarray(pc.list_flatten(lacking), object)
    out["rules"] = {}
    for rule in profile.rules:
        fails = np.zeros(len(verdicts), bool)
        fails[where[names == rule.name]] = True
        waits = np.zeros(len(verdicts), bool)
        waits[lacks[unmet == rule.name]] = True
        only = fails & (count == 1)
        out["rules"][rule.name] = _tally(fails, seconds) | {"only": int(only.sum()), "unmet": int(waits.sum())}
    return out


def show(found: Row, console: Console) -> None:
    """Prints the funnel as tables."""
    sources = found["sources"]
    table = RichTable(box=box.SIMPLE, title="sources", title_justify="left")
    for name, justify in (("status", "left"), ("files", "right"), ("time", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for status in ("ok", "duplicate", "failed"):
        table.add_row(status, str(sources[status]["files"]), duration(sources[status]["seconds"]))
    console.print(table)
    for failure in sources["failed_sources"][:20]:
        console.print(
            f"  failed: {failure['source']!r}: {failure['error']}", markup=False, highlight=False, soft_wrap=True
        )
    if len(sources["failed_sources"]) > 20:
        console.print(
            f"  ... and {len(sources['failed_sources']) - 20} more failed sources (xstreamer export lists them)"
        )
    console.print(_stages(found["stages"]))
    for name, profile in found["profiles"].items():
        console.print(_rules(name, found["clips"], profile))


def _stages(stages: Mapping[str, Mapping[str, int]]) -> RichTable:
    table = RichTable(box=box.SIMPLE, title="stages (clips)", title_justify="left")
    table.add_column("stage")
    names = ("ok", "unmeasured", "skipped", "failed")
    for name in names:
        table.add_column(name, justify="right")
    for stage, counts in stages.items():
        table.add_row(stage, *(str(counts.get(name, 0) or "") for name in names))
    return table


def _rules(name: str, total: Row, profile: Row) -> RichTable:
    table = RichTable(box=box.SIMPLE, title=f"profile {name}", title_justify="left")
    table.add_column("")
    for column in ("clips", "time", "only this", "unmet"):
        table.add_column(column, justify="right")
    table.add_row("in", str(total["clips"]), duration(total["seconds"]), "", "")
    for rule, counts in profile["rules"].items():
        if counts["clips"] or counts["unmet"]:
            row = (str(counts["clips"]), duration(counts["seconds"]), str(counts["only"]), str(counts["unmet"] or ""))
            table.add_row(f"  fails {rule}", *row)
    for verdict, style in ((REJECT, "red"), (UNDECIDED, "yellow"), (KEEP, "bold green")):
        counts = profile[verdict]
        table.add_row(f"[{style}]{verdict}[/]", str(counts["clips"]), duration(counts["seconds"]), "", "")
    return table


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_result(found: Row, as_json: bool) -> None:
    """Prints the result of a curation: tables, what was packed, notes; or one JSON object."""
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    show(found, console)
    for name, profile in found["profiles"].items():
        for split, packed in profile.get("packed", {}).items():
            shards, length = packed["shards"], duration(packed["seconds"])
            console.print(f"{name} {split}: {packed['samples']} samples, {length}, in {shards} shards", highlight=False)
        if profile.get("kept_without_sample"):
            console.print(
                f"{name}: {len(profile['kept_without_sample'])} kept clips have no sample (encode could not; its runs rows say why)"
            )
    for note in found.get("notes", ()):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"dataset: {found['dataset']}", highlight=False, markup=False, soft_wrap=True)
