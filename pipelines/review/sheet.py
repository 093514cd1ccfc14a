"""The clips of a filter as CSV, for a spreadsheet; cells that a spreadsheet would run are made text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manifests.verdicts import Profile
from pipelines.review.query import Filter, page
from pipelines.review.view import View

COLUMNS = ("clip_id", "source", "start_s", "seconds", "verdict", "decision", "reviewer", "reason", "failing", "unmet")
PIECE = 1 << 16


def sheet(
    view: View, profile: Profile, wanted: Filter, backends: Mapping[str, str], listed: Sequence[int] = ()
) -> Iterator[str]:
    """The table in pieces. Raises UsageError before the first for a filter that is none."""
    judged = view.judged(profile)
    every, decided = max(1, len(view.snapshot)), view.places(profile.name)
    found = page(
        view.snapshot, profile, judged, wanted, decided=decided, backends=backends, listed=listed, per_page=every
    )
    return _pieces(view, profile, found.places)


def _pieces(view: View, profile: Profile, places: list[int]) -> Iterator[str]:
    judged, out = view.judged(profile), io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for at in places:
        row = view.row(profile, judged, at)
        decision = row["decision"] or {"choice": "", "reviewer": "", "reason": ""}
        cells = {**row, **decision, "decision": decision["choice"]}
        cells |= {name: " ".join(row[name]) for name in ("failing", "unmet")}
        writer.writerow([inert(cells[name]) for name in COLUMNS])
        if out.tell() > PIECE:
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()


def inert(cell: Any) -> Any:
    """The cell, behind an apostrophe where a spreadsheet would take it for a formula."""
    runs = isinstance(cell, str) and (cell.lstrip()[:1] in ("=", "+", "-", "@") or cell[:1] in ("\t", "\r", "\n"))
    return f"'{cell}" if runs and cell else cell
