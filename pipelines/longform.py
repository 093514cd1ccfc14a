"""Long-form samples: contiguous kept clips of one scene, joined up to a minute and encoded as one.

The paper's SFT set holds 5,406 samples longer than 20 s, 41 s on average (A.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.records import clip_id
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, read
from manifests.verdicts import Profile
from pipelines import judge, work
from pipelines.cluster import run_bounded
from pipelines.commit import Committer
from pipelines.measure import Plan, stored_samples
from pipelines.progress import Bar

Row = dict[str, Any]
OFFSET_SPREAD = 1
"""Frames by which the measured offsets of joined clips may differ: one correction must fit all."""
UNSPACED = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")
"""Chinese and Japanese characters and their punctuation."""
COLUMNS = (
    "clip_id", "source_id", "scene", "start_s", "end_s", "sync_offset_frames", "crop_x", "crop_y", "crop_side",
    "transcript", "encode_status",
)  # fmt: skip


def long_runs(clips: Sequence[Mapping[str, Any]], longest_s: float) -> list[list[Mapping[str, Any]]]:
    """Runs of two or more of `clips` (kept ones, in order) that touch in one scene and last `longest_s` at most."""
    runs: list[list[Mapping[str, Any]]] = []
    for clip in clips:
        if runs and _joins(runs[-1], clip, longest_s):
            runs[-1].append(clip)
        else:
            runs.append([clip])
    return [run for run in runs if len(run) > 1]


def _joins(run: Sequence[Mapping[str, Any]], clip: Mapping[str, Any], longest_s: float) -> bool:
    last = run[-1]
    offsets = [c["sync_offset_frames"] or 0 for c in (*run, clip)]
    return (
        (last["source_id"], last["scene"]) == (clip["source_id"], clip["scene"])
        and abs(last["end_s"] - clip["start_s"]) < 1e-6
        and clip["end_s"] - run[0]["start_s"] <= longest_s + 1e-6
        and max(offsets) - min(offsets) <= OFFSET_SPREAD
    )


def joined_row(run: Sequence[Mapping[str, Any]]) -> Row:
    """What the encode stage needs to know of a joined clip: one offset, one square for all."""
    side = max(c["crop_side"] for c in run)
    x, y = (float(np.mean([c[axis] + c["crop_side"] / 2 for c in run])) - side / 2 for axis in ("crop_x", "crop_y"))
    offset = int(np.median([c["sync_offset_frames"] or 0 for c in run]))
    ends = {"start_s": run[0]["start_s"], "end_s": run[-1]["end_s"]}
    crop = {"crop_x": max(0.0, x), "crop_y": max(0.0, y), "crop_side": side}
    text = joined_text([c["transcript"] for c in run if c["transcript"]])
    return {**ends, **crop, "source_id": run[0]["source_id"], "sync_offset_frames": offset, "transcript": text}


def joined_text(parts: Sequence[str]) -> str:
    """`parts` with a space between them, but between two characters of a script that writes none."""
    out = ""
    for part in parts:
        spaced = bool(out) and bool(part) and not (UNSPACED.match(out[-1]) and UNSPACED.match(part[0]))
        out += " " * spaced + part
    return out


def joined_id(run: Sequence[Mapping[str, Any]]) -> str:
    """Sample id of a run."""
    return clip_id(run[0]["source_id"], run[0]["start_s"], run[-1]["end_s"])


def runs_of(store: Store, profile: Profile) -> list[list[Row]]:
    """The long-form runs that `profile` asks for, from its verdicts now; none when it wants no long form."""
    if profile.long_form_s <= 0:
        return []
    wanted = pa.array(judge.kept(store, profile), pa.string())
    clips = read(store, CLIPS_TABLE, COLUMNS)
    kept = clips.filter(pc.and_(pc.is_in(clips["clip_id"], wanted), pc.equal(clips["encode_status"], "ok")))
    return [list(map(dict, run)) for run in long_runs(kept.to_pylist(), profile.long_form_s)]


def encode_long_form(client: Any, store: Store, plan: Plan, profiles: Sequence[Profile], quiet: bool = False) -> None:
    """Encodes the long-form samples of `profiles` that are not there yet."""
    runs = {joined_id(run): run for profile in profiles for run in runs_of(store, profile)}
    done = _done(store, plan.fingerprints["encode"])
    todo = {key: run for key, run in runs.items() if key not in done}
    total = sum(run[-1]["end_s"] - run[0]["start_s"] for run in todo.values())
    with Committer(store) as commit, Bar("long form", total, "s of video", quiet) as bar:
        for task, rows, error in run_bounded(client, work.encode_long, _tasks(store, plan, todo)):
            if error is not None:
                raise error
            commit.add("samples", rows["samples"])
            commit.add("runs", rows["runs"])
            bar.add(sum(order["row"]["end_s"] - order["row"]["start_s"] for order in task["runs"]))


def _done(store: Store, fingerprint: str) -> set[str]:
    """Ids that were encoded and are there, or could not be."""
    runs = read(store, RUNS_TABLE, ["clip_id", "stage", "fingerprint", "status"])
    fits = pc.and_(pc.equal(runs["stage"], "encode"), pc.equal(runs["fingerprint"], fingerprint))
    there = pc.or_(pc.not_equal(runs["status"], "ok"), pc.is_in(runs["clip_id"], stored_samples(store)))
    return set(runs.filter(pc.and_(fits, there))["clip_id"].to_pylist())


def _tasks(store: Store, plan: Plan, todo: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    clips = [clip["clip_id"] for run in todo.values() for clip in run]
    words = _words(store, clips)
    by_source: dict[str, list[Row]] = {}
    for run in todo.values():
        order = {"row": joined_row(run), "clips": [c["clip_id"] for c in run], "evidence": _joined_words(run, words)}
        by_source.setdefault(run[0]["source_id"], []).append(order)
    sources = {row["source_id"]: row for row in read(store, SOURCES_TABLE).to_pylist() if row["status"] == "ok"}
    for source, orders in sorted(by_source.items()):
        yield {
            "root": plan.root,
            "recipe": plan.recipe,
            "fingerprints": dict(plan.fingerprints),
            "source": {**sources[source], "cuts": None},
            "tar": f"{source}-long.tar",
            "runs": orders,
        }


def _words(store: Store, clips: Sequence[str]) -> dict[str, list[Any]]:
    runs = read(store, RUNS_TABLE, ["clip_id", "stage", "evidence"])
    fits = pc.and_(pc.equal(runs["stage"], "transcribe"), pc.is_in(runs["clip_id"], pa.array(clips, pa.string())))
    rows = runs.filter(fits).to_pylist()
    return {row["clip_id"]: json.loads(row["evidence"]).get("words", []) for row in rows if row["evidence"]}


def _joined_words(run: Sequence[Row], words: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Evidence of the joined clip: its words, in its own time."""
    zero = run[0]["start_s"]
    moved = [
        [word, round(start + clip["start_s"] - zero, 3), round(end + clip["start_s"] - zero, 3), *rest]
        for clip in run
        for word, start, end, *rest in words.get(clip["clip_id"], [])
    ]
    return {"transcribe": {"words": moved}}


def long_samples(store: Store, profile: Profile) -> dict[str, list[str]]:
    """{sample id: its clips} of the long-form samples of `profile` that are encoded."""
    there = set(read(store, SAMPLES_TABLE, ["sample_id"])["sample_id"].to_pylist())
    found = {joined_id(run): [c["clip_id"] for c in run] for run in runs_of(store, profile)}
    return {key: clips for key, clips in found.items() if key in there}
