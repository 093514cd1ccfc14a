"""Everything a report shows of one dataset: two passes over the clips, one over the runs, one for what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.decisions import Decision, read_decisions, standing
from manifests.records import CLIP_STAGES, GEOMETRY, MEASURES
from manifests.tables import CLIPS_TABLE
from manifests.verdicts import Profile
from pipelines.report.choose import Chooser
from pipelines.report.frozen import Frozen
from pipelines.report.ids import hashes
from pipelines.report.mix import Mix
from pipelines.report.spread import Key, Spread, columns_read, count_bins, measure_spreads, numbers
from pipelines.report.stages import Runs, Statuses
from pipelines.report.tally import Tally, judge

Row = dict[str, Any]
SHOWN_COLUMNS = tuple(
    c.name for c in (*GEOMETRY, *MEASURES) if c.name not in ("near_hash", "sample_tar", "start_s", "end_s")
)


@dataclass
class Gathered:
    """What was found. decisions: every one, withdrawn ones included; clips: those that are shown, whole rows."""

    profiles: tuple[Profile, ...]
    spreads: dict[Key, Spread]
    tallies: list[Tally]
    mix: Mix
    statuses: Statuses
    chooser: Chooser
    decisions: list[Decision]
    runs: Runs = field(default_factory=Runs)
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    seconds: float = 0.0
    clips: dict[str, Row] = field(default_factory=dict)


def gather(frozen: Frozen, profiles: Sequence[Profile], more: frozenset[str] = frozenset()) -> Gathered:
    """more: ids of clips that are shown besides those chosen here.

    Raises UsageError when a rule has no bound for what measured, DatasetError, `frozen.Moved`.
    """
    found = Gathered(
        tuple(profiles),
        measure_spreads(frozen),
        [Tally(profile) for profile in profiles],
        Mix(frozen, [profile.name for profile in profiles]),
        Statuses(),
        Chooser(),
        read_decisions(frozen.store),
    )
    held = [standing(found.decisions, profile.name) for profile in profiles]
    ids = [np.zeros(0, np.uint64)]
    for _, rows in frozen.batches(CLIPS_TABLE, columns_needed(profiles)):
        ids.append(_count(found, rows, held))
    found.ids = np.sort(np.concatenate(ids))
    found.runs.read(frozen, found.ids, found.mix.lengths())
    found.clips = shown_rows(frozen, found.chooser.ids() | more)
    return found


def shown_rows(frozen: Frozen, ids: set[str]) -> dict[str, Row]:
    """{clip id: row} of clips that are shown."""
    backends = [f"{stage}_backend" for stage in CLIP_STAGES]
    return frozen.rows(CLIPS_TABLE, "clip_id", ids, [*SHOWN_COLUMNS, "start_s", "end_s", *backends])


def columns_needed(profiles: Sequence[Profile]) -> list[str]:
    """Columns of the clips table that the second pass reads."""
    wanted = ["clip_id", "source_id", *columns_read(), *(f"{stage}_status" for stage in CLIP_STAGES)]
    for profile in profiles:
        wanted += profile.columns()
    return list(dict.fromkeys(wanted))


def _count(found: Gathered, rows: pa.Table, held: Sequence[Mapping[str, Decision]]) -> np.ndarray:
    """Counts `rows`; hashes of their ids."""
    lots, seconds = hashes(rows["clip_id"]), np.nan_to_num(numbers(rows["duration_s"]))
    found.seconds += float(seconds.sum())
    count_bins(found.spreads, rows)
    found.statuses.see(rows)
    kept = []
    for tally, decided in zip(found.tallies, held, strict=True):
        judged = judge(tally.profile, rows, decided)
        tally.add(rows, judged, seconds)
        found.chooser.see(tally, rows, judged, lots, found.spreads)
        kept.append(judged.final == 0)
    found.mix.see(rows, seconds, kept)
    return lots
