"""First phases: which sources there are, which repeat another, and where they are cut into clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import UsageError, XstreamerError, one_line
from manifests.records import CLIP_STAGES, clip_id
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RETIRED, RUNS_TABLE, SOURCES_TABLE, append, read
from pipelines import work
from pipelines.cluster import run_bounded
from pipelines.commit import Committer
from pipelines.progress import Bar
from pipelines.recipe import Recipe
from pipelines.sources import LIST_FACTS, SourceRequest

Row = dict[str, Any]
GIVEN = ("window_start_s", "window_end_s", "box", *LIST_FACTS)
BATCH = 16
SCAN_BATCH_S = 60.0


def register_sources(
    client: Any, store: Store, requests: Sequence[SourceRequest], retry_failed: bool, quiet: bool
) -> None:
    """Hashes and probes the sources that are new or changed, then marks those that repeat an earlier one."""
    known = {row["uri"]: row for row in read(store, SOURCES_TABLE).to_pylist()}
    new = [request for request in requests if request.uri not in known]
    base = 1 + max((row["order"] for row in known.values()), default=-1)
    listed = [
        {"uri": r.uri, "path": r.path, "order": base + n, "status": "pending", **r.facts} for n, r in enumerate(new)
    ]
    append(store, SOURCES_TABLE, listed)  # before any work, so that a run that is cut short keeps their order
    known |= {row["uri"]: row for row in listed}
    todo = [
        {**_given(known[r.uri]), "uri": r.uri, "path": r.path, "order": known[r.uri]["order"], **r.facts}
        for r in requests
        if _changed(known[r.uri], r, retry_failed)
    ]
    with Committer(store) as commit, Bar("register", len(todo), "files", quiet) as bar:
        for batch, rows, error in run_bounded(client, work.register, _batched(todo)):
            commit.add("sources", rows if error is None else [_lost(item, error) for item in batch])
            bar.add(len(batch))
    mark_duplicates(store)
    retire_orphans(store)


def _given(row: Row) -> Row:
    """What a list said of the source earlier; naming its folder later does not unsay it."""
    return {name: row[name] for name in GIVEN if row.get(name) is not None}


def _changed(row: Row, request: SourceRequest, retry_failed: bool) -> bool:
    if row["status"] == "pending" or (retry_failed and row["status"] == "failed"):
        return True
    if any(row[name] != value for name, value in request.facts.items()):
        return True
    try:
        now = work.stamp(request.path)
    except OSError:
        return row["status"] != "failed"
    return any(now[name] != row[name] for name in now)


def _lost(item: Row, error: BaseException) -> Row:
    if isinstance(error, XstreamerError):
        raise error
    return {**item, "status": "failed", "error": f"gave up on it: {one_line(error)}"}


def _batched(items: Sequence[Row]) -> Iterator[list[Row]]:
    size = max(1, min(BATCH, len(items) // 8))
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def mark_duplicates(store: Store) -> None:
    """Of readable sources with one content the first in order is canonical, the others its duplicates."""
    rows = read(store, SOURCES_TABLE).to_pylist()  # in order
    first: dict[str, str] = {}
    with Committer(store) as commit:
        for row in rows:
            if row["status"] in ("failed", "pending"):
                continue
            canonical = first.setdefault(row["source_id"], row["uri"])
            wanted = ("ok", None) if canonical == row["uri"] else ("duplicate", canonical)
            if (row["status"], row["duplicate_of"]) != wanted:
                commit.add("sources", [{**row, "status": wanted[0], "duplicate_of": wanted[1]}])


def retire_orphans(store: Store) -> None:
    """Retires the clips of contents that no source has any more: the file was replaced."""
    sources = set(read(store, SOURCES_TABLE, ["source_id"])["source_id"].to_pylist())
    clips = read(store, CLIPS_TABLE, ["clip_id", "source_id", "uri"])
    lost = [row for row in clips.to_pylist() if row["source_id"] not in sources] if len(clips) else []
    append(store, CLIPS_TABLE, [{**row, "scene": RETIRED} for row in lost])


def cut_sources(client: Any, store: Store, recipe: Recipe, fingerprint: str, listed: set[str], quiet: bool) -> None:
    """Finds the scenes of canonical sources that this recipe has not cut yet, and lists their clips; also of
    those that lost rows of clips."""
    rows = read(store, SOURCES_TABLE).to_pylist()
    torn = {key.split("-")[0] for key in lost_clips(store)}
    todo = [
        row
        for row in rows
        if row["uri"] in listed
        and row["status"] == "ok"
        and (row["scenes_fingerprint"] != fingerprint or row["source_id"] in torn)
    ]
    before = _clips_of({row["source_id"] for row in todo}, store)
    by_uri = {row["uri"]: row for row in todo}
    options = dict(recipe.scenes)
    tasks = ({"options": options, "sources": group} for group in _by_length(todo))
    with Committer(store) as commit, Bar("scenes", sum(r["duration_s"] for r in todo), "s of video", quiet) as bar:
        for task, found, error in run_bounded(client, work.scan, tasks):
            if isinstance(error, XstreamerError):
                raise error
            if error is not None:
                found = [{"uri": s["uri"], "error": f"gave up on it: {one_line(error)}"} for s in task["sources"]]
            for result in found:
                source = by_uri[result["uri"]]
                _commit_scenes(commit, source, result, before.get(source["source_id"], {}), fingerprint)
                bar.add(source["duration_s"])


def lost_clips(store: Store) -> list[str]:
    """Ids of clips that were measured and whose rows are gone, sorted.

    A retired clip is none of them: its source is no more, or clips of a later cut cover its time.
    """
    runs = read(store, RUNS_TABLE, ["clip_id", "stage"])
    ran = runs.filter(pc.is_in(runs["stage"], pa.array(CLIP_STAGES)))["clip_id"].unique()
    clips = read(store, CLIPS_TABLE, ["clip_id", "source_id"])
    gone = ran.filter(pc.invert(pc.is_in(ran, clips["clip_id"].combine_chunks()))).to_pylist()
    rows = read(store, SOURCES_TABLE, ["source_id", "status"]).to_pylist() if gone else []
    sources = {row["source_id"] for row in rows if row["status"] == "ok"} & {key.split("-")[0] for key in gone}
    there: dict[str, list[tuple[int, int]]] = {source: [] for source in sources}
    beside = clips.filter(pc.is_in(clips["source_id"], pa.array(sorted(sources), pa.string())))
    for key in beside["clip_id"].to_pylist():
        source, start, end = _span(key)
        there[source].append((start, end))
    spans = {key: _span(key) for key in gone}
    return sorted(
        key
        for key, (source, start, end) in spans.items()
        if source in sources and not any(a < end and start < b for a, b in there[source])
    )


def _span(key: str) -> tuple[str, int, int]:
    """(source id, start and end in ms) of a clip id."""
    source, start, end = key.split("-")
    return source, int(start), int(end)


def _by_length(rows: Sequence[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    seconds = 0.0
    for row in rows:
        group.append(row)
        seconds += row["duration_s"] or 0.0
        if seconds >= SCAN_BATCH_S or len(rows) < 64:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group


def _clips_of(sources: set[str], store: Store) -> dict[str, dict[str, Row]]:
    """{source id: {clip id: row}} of clips that are there already."""
    out: dict[str, dict[str, Row]] = {}
    if sources:
        columns = ["clip_id", "source_id", "uri", "scene", "start_s", "end_s"]
        for row in read(store, CLIPS_TABLE, columns).to_pylist():
            if row["source_id"] in sources:
                out.setdefault(row["source_id"], {})[row["clip_id"]] = row
    return out


def _commit_scenes(commit: Committer, source: Row, result: Row, before: dict[str, Row], fingerprint: str) -> None:
    key = source["source_id"]
    status = "failed" if result["error"] else "ok"
    run = {"clip_id": key, "stage": "scenes", "fingerprint": fingerprint, "status": status}
    commit.add("runs", [{**run, "seconds": result.get("seconds"), "error": result["error"]}])
    if result["error"]:
        commit.add("sources", [{**source, "status": "failed", "error": result["error"]}])
        return
    clips = {}
    for scene, start, end in result["spans"]:
        name = clip_id(key, start, end)
        row = {"clip_id": name, "source_id": key, "uri": source["uri"], "scene": scene, "start_s": start, "end_s": end}
        clips[name] = row | {"duration_s": round(end - start, 3)}
    commit.add("clips", [row for name, row in clips.items() if name not in before])
    commit.add("clips", [{**row, "scene": RETIRED} for name, row in before.items() if name not in clips])
    commit.add("sources", [{**source, "cuts": result["cuts"], "scenes_fingerprint": fingerprint}])


def check_listed(store: Store, requests: Sequence[SourceRequest]) -> None:
    """Raises UsageError when a source lies inside the dataset folder, which curate writes to."""
    inside = [r.path for r in requests if r.path.startswith(store.root.rstrip("/") + "/")]
    if inside:
        raise UsageError(f"{inside[0]!r} lies inside the dataset folder; choose another -o")
