"""`xstreamer export`: sources and clips with their verdicts, a JSON object or a CSV row each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import IO, Any

from manifests.decisions import overrides
from manifests.records import CLIP_STAGES, MEASURES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, SOURCES_TABLE, read
from manifests.verdicts import KEEP, REJECT, Profile
from pipelines import judge

Row = dict[str, Any]
_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""What JSON leaves as it is, and some readers take for the end of a line."""
_MEASURES = tuple(column.name for column in MEASURES)
_SOURCE_FACTS = (
    *("source_id", "duplicate_of", "duration_s", "width", "height", "fps", "bytes", "container", "video_codec"),
    *("audio_codec", "licence", "language", "origin", "identity"),
)


def export_rows(store: Store, profile: Profile) -> Iterator[Row]:
    """Sources in order, then clips in order, judged by `profile` now.

    A source: {"kind", "source", "status", "error", "cuts", facts}. A clip: {"kind", "source", "start_s", "end_s",
    "keep", "verdict", "reasons" (failing rules), "unmet", "measures", "backends"}.
    """
    for row in read(store, SOURCES_TABLE).to_pylist():
        facts = {name: row[name] for name in _SOURCE_FACTS}
        yield {
            "kind": "source",
            "source": row["uri"],
            "status": row["status"],
            "error": row["error"],
            "cuts": row["cuts"] or [],
            **facts,
        }
    clips, decided = read(store, CLIPS_TABLE), overrides(store, profile.name)
    for start in range(0, len(clips), 8192):
        part = clips.slice(start, 8192)
        pairs = zip(part.to_pylist(), judge.judged(profile, part, decided).to_pylist(), strict=True)
        yield from (_clip(clip, verdict) for clip, verdict in pairs)


def _clip(clip: Row, verdict: Row) -> Row:
    final = verdict["override"] or verdict["verdict"]
    return {
        "kind": "clip",
        "clip_id": clip["clip_id"],
        "source": clip["uri"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "keep": final == KEEP,
        "verdict": final,
        "reasons": verdict["failing"] if final == REJECT else [],
        "unmet": verdict["unmet"],
        "measures": {name: clip[name] for name in _MEASURES},
        "backends": {stage: clip[f"{stage}_backend"] for stage in CLIP_STAGES},
    }


def write_json(rows: Iterator[Row], out: IO[str]) -> None:
    """A JSON object a line; what is no number is null, so that every reader takes it."""
    for row in rows:
        line = json.dumps(_finite(row), ensure_ascii=False)
        out.write(line.translate(_LINE_ENDS) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def write_csv(rows: Iterator[Row], out: IO[str]) -> None:
    """One table of sources and clips; lists are joined by ';'. Cells that a spreadsheet would run are quoted."""
    facts = ["status", "error", "cuts", *_SOURCE_FACTS]
    names = ["kind", "source", *facts, "clip_id", "start_s", "end_s", "verdict", "reasons", "unmet", *_MEASURES]
    writer = csv.DictWriter(out, names, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        flat = {**row, **row.get("measures", {})}
        writer.writerow({name: _cell(flat.get(name)) for name in names})


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = ";".join(map(str, value))
    if isinstance(value, str) and value[:1] in "=+-@\t\r" and value:
        return "'" + value
    return value
