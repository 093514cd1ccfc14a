"""The measuring phase: which stages of which clips are missing, grouped into tasks, run, committed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from distributed import KilledWorker

from manifests.decisions import read_decisions, standing
from manifests.records import ALWAYS_MEASURED, CLIP_STAGES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, read
from manifests.verdicts import KEEP, REJECT, Profile, judge_table
from pipelines import work
from pipelines.cluster import KILLS, run_bounded
from pipelines.commit import Committer
from pipelines.progress import Bar

Row = dict[str, Any]
GROUP_S = 60.0
"""Seconds of clips of one source that share a sample tar: what a killed worker loses at most."""
SKIPPABLE = tuple(stage for stage in CLIP_STAGES if stage not in ALWAYS_MEASURED)


@dataclass(frozen=True)
class Plan:
    """What the workers need to know: plain data, sent with every task."""

    root: str
    recipe: str
    fingerprints: Mapping[str, str]
    profiles: tuple[Mapping[str, Any], ...]
    exhaustive: bool

    def task(self, groups: Sequence[Row]) -> Row:
        """Input of `work.measure`."""
        return {
            "root": self.root,
            "recipe": self.recipe,
            "fingerprints": dict(self.fingerprints),
            "profiles": list(self.profiles),
            "exhaustive": self.exhaustive,
            "groups": list(groups),
        }


@dataclass(frozen=True)
class Pending:
    """Clips with something to measure. rows: places in the clips table; wanted: stages of each, by place; kept: ids
    of clips that people keep whatever the rules say, so that nothing of theirs is skipped."""

    clips: pa.Table
    rows: np.ndarray
    wanted: Mapping[int, frozenset[str]]
    kept: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        """Seconds of video to measure."""
        return float(np.sum(self.clips["duration_s"].to_numpy()[self.rows]))


EVERYTHING = frozenset(CLIP_STAGES)


def pending(
    store: Store,
    fingerprints: Mapping[str, str],
    profiles: Sequence[Profile],
    *,
    exhaustive: bool = False,
    retry_failed: bool = False,
    readers: Mapping[str, Collection[str]] | None = None,
    sources: set[str] | None = None,
) -> Pending:
    """What a run must measure: stages without a current run, and skipped ones that no longer should be.

    readers: the stages that read each stage, directly or not; they are tried again with one that failed.
    sources: ids of the sources asked for, all by default. Runs are current when their fingerprint is.
    """
    clips = read(store, CLIPS_TABLE)
    runs = read(store, RUNS_TABLE, ["clip_id", "stage", "fingerprint", "status"])
    keys = pc.binary_join_element_wise(runs["stage"].cast(pa.string()), runs["fingerprint"].cast(pa.string()), " ")
    current = pc.is_in(keys, pa.array([f"{stage} {fingerprints[stage]}" for stage in CLIP_STAGES]))
    if retry_failed:
        current = pc.and_(current, pc.invert(_to_retry(runs, current, readers or {})))
    done = _held(runs.filter(current).select(["clip_id", "stage"]), clips, store)
    counted = done.group_by("clip_id").aggregate([("stage", "count")])
    complete = counted.filter(pc.equal(counted["stage_count"], len(CLIP_STAGES)))["clip_id"]
    lacking = ~np.asarray(pc.is_in(clips["clip_id"], complete.combine_chunks()))
    kept = kept_by_people(store, profiles)
    unskip = needless_skips(clips, profiles, exhaustive, kept)
    asked = np.ones(len(clips), bool)
    if sources is not None:
        asked = np.asarray(pc.is_in(clips["source_id"], pa.array(sorted(sources), pa.string())))
    rows = np.flatnonzero((lacking | unskip) & asked)
    return Pending(clips, rows, _wanted(clips, rows, done, unskip), kept)


def _to_retry(runs: pa.Table, current: Any, readers: Mapping[str, Collection[str]]) -> Any:
    """Mask of the current runs that failed, and of those that had to do without what such a one should have found."""
    stages = runs["stage"].cast(pa.string())
    again = failed = pc.and_(current, pc.equal(runs["status"].cast(pa.string()), "failed"))
    for stage, after in readers.items():
        clips = runs.filter(pc.and_(failed, pc.equal(stages, stage)))["clip_id"].combine_chunks()
        if len(clips) and after:
            theirs = pc.and_(pc.is_in(runs["clip_id"], clips), pc.is_in(stages, pa.array(sorted(after), pa.string())))
            again = pc.or_(again, theirs)
    return again


def kept_by_people(store: Store, profiles: Sequence[Profile]) -> frozenset[str]:
    """Ids of the clips that people keep under any of `profiles`."""
    decided = read_decisions(store)
    found = (standing(decided, profile.name).values() for profile in profiles)
    return frozenset(decision.clip_id for some in found for decision in some if decision.choice == KEEP)


def stored_samples(store: Store) -> pa.Array:
    """Ids of the samples that are listed and whose tar is there."""
    rows = read(store, SAMPLES_TABLE, ["sample_id", "tar"])
    there = pc.is_in(rows["tar"], pa.array(store.names("samples"), pa.string()))
    return rows.filter(there)["sample_id"].combine_chunks()


def _held(done: pa.Table, clips: pa.Table, store: Store) -> pa.Table:
    """The runs whose findings are there: not those of a clip whose row was lost and listed again, nor the
    making of a sample or a preview that was lost."""
    kept = {
        "encode": pc.is_in(clips["clip_id"], stored_samples(store)),
        "preview": pc.is_in(clips["preview_tar"], pa.array(store.names("previews"), pa.string())),
    }
    for stage in CLIP_STAGES:
        lost = pc.is_null(clips[f"{stage}_status"])
        if stage in kept:
            made = pc.fill_null(pc.equal(clips[f"{stage}_status"], "ok"), False)
            lost = pc.or_(lost, pc.and_(made, pc.invert(kept[stage])))
        keys = clips.filter(lost)["clip_id"]
        if len(keys):
            of_stage = pc.equal(done["stage"].cast(pa.string()), stage)
            done = done.filter(pc.invert(pc.and_(of_stage, pc.is_in(done["clip_id"], keys.combine_chunks()))))
    return done


def _wanted(clips: pa.Table, rows: np.ndarray, done: pa.Table, unskip: np.ndarray) -> dict[int, frozenset[str]]:
    if not len(done):
        return dict.fromkeys(map(int, rows), EVERYTHING)
    ids = clips["clip_id"].take(pa.array(rows))
    some = done.filter(pc.is_in(done["clip_id"], ids.combine_chunks()))
    have: dict[str, set[str]] = {}
    for clip, stage in zip(some["clip_id"].to_pylist(), some["stage"].to_pylist(), strict=True):
        have.setdefault(clip, set()).add(stage)
    skipped = {
        stage: np.asarray(pc.fill_null(pc.equal(clips[f"{stage}_status"], "skipped"), False)) for stage in SKIPPABLE
    }
    out = {}
    for row, clip in zip(rows, ids.to_pylist(), strict=True):
        again = {stage for stage in SKIPPABLE if unskip[row] and skipped[stage][row]}
        out[int(row)] = frozenset((EVERYTHING - have.get(clip, set())) | again)
    return out


def needless_skips(
    clips: pa.Table, profiles: Sequence[Profile], exhaustive: bool, kept: frozenset[str] = frozenset()
) -> np.ndarray:
    """[n] bool: a stage of the clip was skipped, but some profile no longer rejects it by then, or it is in `kept`."""
    out = np.zeros(len(clips), bool)
    held = np.asarray(pc.is_in(clips["clip_id"], pa.array(sorted(kept), pa.string())))
    for place, stage in enumerate(CLIP_STAGES):
        if stage not in SKIPPABLE or not len(clips):
            continue
        skipped = np.asarray(pc.fill_null(pc.equal(clips[f"{stage}_status"], "skipped"), False))
        if skipped.any():
            out |= skipped & ~(_rejected(clips, profiles, CLIP_STAGES[:place]) & ~held & (not exhaustive))
    return out


def _rejected(clips: pa.Table, profiles: Sequence[Profile], stages: Sequence[str]) -> np.ndarray:
    """[n] bool: every profile rejects the clip on geometry and `stages`."""
    out = np.ones(len(clips), bool)
    for profile in profiles:
        rules = tuple(rule for rule in profile.rules if not rule.stage or rule.stage in stages)
        verdicts = judge_table(replace(profile, rules=rules), clips)["verdict"]
        out &= np.asarray(pc.equal(verdicts.cast(pa.string()), REJECT))
    return out & bool(profiles)


def tar_names(clips: pa.Table) -> np.ndarray:
    """[n] object: the sample tar of each clip (sorted by id): source id and number of its 60 s of clips.

    A function of the source's clips alone, so that resumed runs put samples where undisturbed ones do.
    """
    out = np.empty(len(clips), object)
    last, seconds, number = None, 0.0, 0
    durations = clips["duration_s"].to_numpy()
    for place, source in enumerate(clips["source_id"].to_pylist()):
        if source != last:
            last, seconds, number = source, 0.0, 0
        elif seconds + durations[place] > GROUP_S:
            seconds, number = 0.0, number + 1
        seconds += durations[place]
        out[place] = f"{source}-{number:05d}.tar"
    return out


def groups(store: Store, todo: Pending) -> Iterator[tuple[Row, float]]:
    """(group for `work.measure`, its seconds of video), a sample tar each, in order."""
    sources = read(store, SOURCES_TABLE)
    canonical = sources.filter(pc.equal(sources["status"].cast(pa.string()), "ok"))
    place_of = {key: place for place, key in enumerate(canonical["source_id"].to_pylist())}
    tars = tar_names(todo.clips)
    for start in range(0, len(todo.rows), 2048):
        yield from _groups(store, todo, todo.rows[start : start + 2048], canonical, place_of, tars)


def _groups(
    store: Store, todo: Pending, rows: np.ndarray, sources: pa.Table, place_of: Mapping[str, int], tars: np.ndarray
) -> Iterator[tuple[Row, float]]:
    clips = todo.clips.take(pa.array(rows)).to_pylist()
    evidence = _evidence(
        store, [c["clip_id"] for c, r in zip(clips, rows, strict=True) if todo.wanted[int(r)] != EVERYTHING]
    )
    group: Row | None = None
    seconds = 0.0
    for row, clip in zip(rows, clips, strict=True):
        if clip["source_id"] not in place_of:
            continue  # its source failed since: nothing to measure it from
        if group is None or group["tar"] != tars[row]:
            if group is not None:
                yield group, seconds
            source = sources.slice(place_of[clip["source_id"]], 1).to_pylist()[0]
            group, seconds = {"source": {**source, "cuts": None}, "tar": tars[row], "clips": []}, 0.0
        wanted = sorted(todo.wanted[int(row)])
        known = evidence.get(clip["clip_id"], {})
        order = {"row": clip, "stages": wanted, "evidence": known, "kept": clip["clip_id"] in todo.kept}
        group["clips"].append(order)
        seconds += clip["duration_s"]
    if group is not None:
        yield group, seconds


def _evidence(store: Store, clips: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{clip id: {stage: evidence}} of clips of which some stages are measured already."""
    out: dict[str, dict[str, Any]] = {}
    if clips:
        runs = read(store, RUNS_TABLE, ["clip_id", "stage", "evidence"])
        for row in runs.filter(pc.is_in(runs["clip_id"], pa.array(clips))).to_pylist():
            if row["evidence"]:
                out.setdefault(row["clip_id"], {})[row["stage"]] = json.loads(row["evidence"])
    return out


def tasks(found: Iterator[tuple[Row, float]], plan: Plan, total_s: float, workers: int) -> Iterator[Row]:
    """Inputs of `work.measure`, of at most about a minute of video each and ever smaller towards the end, so that
    the workers end together."""
    held: list[Row] = []
    seconds = 0.0
    for group, length in found:
        held.append(group)
        seconds += length
        total_s -= length
        if seconds >= min(GROUP_S, total_s / (4 * workers)) or len(held) >= 64:
            yield plan.task(held)
            held, seconds = [], 0.0
    if held:
        yield plan.task(held)


def measure_clips(client: Any, store: Store, plan: Plan, todo: Pending, quiet: bool = False) -> None:
    """Measures what is pending and commits it as it comes. A clip that kills its workers ends as failed.

    Raises what a worker raised for the run as a whole: a full disk, a dataset that cannot be written.
    """
    workers = max(1, len(client.nthreads()))
    with Committer(store) as commit, Bar("measure", todo.seconds, "s of video", quiet) as bar:
        killed = _measure(client, commit, tasks(groups(store, todo), plan, todo.seconds, workers), bar)
        for wave in zip_longest(*map(_singles, killed)):  # one clip of a group at a time: groups share a tar
            alone = [task for task in wave if task is not None]
            for task in _measure(client, commit, iter(alone), bar):
                _give_up(commit, task)


def _measure(client: Any, commit: Committer, work_items: Iterator[Row], bar: Bar) -> list[Row]:
    """Runs tasks and commits their rows; returns those that killed their workers."""
    killed = []
    for task, rows, error in run_bounded(client, work.measure, work_items):
        if isinstance(error, KilledWorker):
            killed.append(task)
            continue
        if error is not None:
            raise error
        for table in ("samples", "clips", "runs"):
            commit.add(table, rows[table])
        failed = sum(run["status"] == "failed" for run in rows["runs"])
        note = f"{failed} stage runs failed" if failed else ""
        bar.add(sum(row["duration_s"] for row in rows["clips"]), note)
    return killed


def _singles(task: Row) -> list[Row]:
    """`task` as tasks of one clip each."""
    return [{**task, "groups": [{**group, "clips": [clip]}]} for group in task["groups"] for clip in group["clips"]]


def _give_up(commit: Committer, task: Row) -> None:
    [group] = task["groups"]
    [order] = group["clips"]
    error = f"took {KILLS} workers with it (out of memory?); see it alone with --limit 1, or leave it out"
    row = dict(order["row"])
    for stage in order["stages"]:
        row[f"{stage}_status"] = "failed"
    commit.add("clips", [row])
    run = {"clip_id": row["clip_id"], "status": "failed", "error": error}
    commit.add("runs", [{**run, "stage": s, "fingerprint": task["fingerprints"][s]} for s in order["stages"]])
