"""How the stages went: what failed or could not be measured and why, and how fast they were."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.records import CLIP_STAGES, STAGES, STATUSES
from manifests.tables import RUNS_TABLE
from pipelines.report.frozen import Frozen
from pipelines.report.ids import hashes, seconds
from pipelines.report.spread import codes_of, numbers

Row = dict[str, Any]
GROUPS = 2_000
"""Kinds of errors that are told apart; the rest is counted as one."""
SHOWN = 40
OTHER = "errors of other kinds"
_FIGURES = re.compile(r"\d+(?:\.\d+)?")


class Statuses:
    """{stage: {status: clips}}; "not yet" where a stage has not run."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {stage: {} for stage in CLIP_STAGES}

    def see(self, rows: pa.Table) -> None:
        """Counts `rows`, with the status columns."""
        for stage, held in self.counts.items():
            names, codes = codes_of(rows[f"{stage}_status"])
            for name, count in zip(["not yet", *names], np.bincount(codes + 1, minlength=len(names) + 1), strict=True):
                if count:
                    held[name] = held.get(name, 0) + int(count)

    def rows(self) -> list[Row]:
        """{"stage", and clips by status}, in funnel order."""
        names = (*STATUSES, "not yet")
        return [{"stage": stage, **{n: held.get(n, 0) for n in names}} for stage, held in self.counts.items()]


class Runs:
    """What tables/runs says of the clips that are there."""

    def __init__(self) -> None:
        self.work = np.zeros((len(STAGES), 4))
        self.errors: dict[tuple[str, str, str], Row] = {}

    def read(self, frozen: Frozen, clips: np.ndarray, length: Callable[[pa.Array], np.ndarray]) -> None:
        """clips: sorted hashes of the ids that exist; length: seconds of a source by its id."""
        columns = ["clip_id", "stage", "status", "seconds", "media_seconds", "error"]
        for _, rows in frozen.batches(RUNS_TABLE, columns):
            encoded = rows["clip_id"].combine_chunks()
            ids, at = encoded.dictionary, np.asarray(encoded.indices)
            video = seconds(ids)
            source = np.isnan(video)
            video[source] = length(ids.filter(pa.array(source)))
            there = source & ~np.isnan(video)
            if len(clips):
                found = hashes(ids)
                there |= clips[np.minimum(np.searchsorted(clips, found), len(clips) - 1)] == found
            self._see(rows.filter(pa.array(there[at])), video[at][there[at]])

    def _see(self, rows: pa.Table, video: np.ndarray) -> None:
        statuses, status = codes_of(rows["status"])
        names, codes = codes_of(rows["stage"])
        places = np.array([STAGES.index(name) if name in STAGES else -1 for name in names] or [-1])
        stage = places[codes] if len(codes) else codes
        ran = (stage >= 0) & np.array([name != "skipped" for name in statuses] or [False])[status]
        spent, media = np.nan_to_num(numbers(rows["seconds"])), np.nan_to_num(numbers(rows["media_seconds"]))
        for column, weights in enumerate((np.ones(len(video)), np.nan_to_num(video), spent, media)):
            self.work[:, column] += np.bincount(stage[ran], weights[ran], minlength=len(STAGES))
        said = rows.filter(pc.is_valid(rows["error"])).select(["clip_id", "stage", "status", "error"])
        self._note(said)

    def _note(self, said: pa.Table) -> None:
        plain = pa.table({name: said[name].cast(pa.string()) for name in said.schema.names})
        grouped = plain.group_by(["stage", "status", "error"]).aggregate([("clip_id", "min"), ("clip_id", "count")])
        for row in grouped.to_pylist():
            key = (row["stage"], row["status"], _FIGURES.sub("#", row["error"]))
            if key not in self.errors and len(self.errors) >= GROUPS:
                key = (row["stage"], row["status"], OTHER)
            held = self.errors.setdefault(key, {"count": 0, "clip_id": row["clip_id_min"], "error": row["error"]})
            held["count"] += row["clip_id_count"]
            if row["clip_id_min"] < held["clip_id"]:
                held |= {"clip_id": row["clip_id_min"], "error": row["error"]}

    def error_rows(self) -> list[Row]:
        """{"stage", "status", "error" (an example), "clip_id", "count"}, in funnel order, most first."""
        found = [
            {"stage": stage, "status": status, **held, **({"error": OTHER} if text == OTHER else {})}
            for (stage, status, text), held in self.errors.items()
            if status != "skipped"
        ]
        rank = {name: place for place, name in enumerate(STAGES)}
        return sorted(found, key=lambda r: (rank.get(r["stage"], 99), r["status"], -r["count"], r["error"]))[:SHOWN]

    def skipped(self) -> list[Row]:
        """Why stages were skipped, as `error_rows`."""
        rank = {name: place for place, name in enumerate(STAGES)}
        found = [{"stage": s, **held} for (s, status, _), held in self.errors.items() if status == "skipped"]
        return sorted(found, key=lambda r: (rank.get(r["stage"], 99), -r["count"], r["error"]))[:SHOWN]

    def throughput(self) -> list[Row]:
        """For each stage that ran: {"stage", "runs", "video_s", "work_s", "media_s", "rate", "media_share"}; rate:
        seconds of work a second of video; media_share: of the work, reading and scaling picture and sound."""
        out = []
        for name, (count, video, spent, media) in zip(STAGES, self.work.tolist(), strict=True):
            if count:
                rate, share = spent / video if video else None, media / spent if spent else 0.0
                row = {"stage": name, "runs": int(count), "video_s": video, "work_s": spent, "media_s": media}
                out.append(row | {"rate": rate, "media_share": share})
        return out
