"""Datasets that were never curated: tables of made rows, for what the review page asks of tables alone."""

from __future__ import annotations

import io
import json
import math
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import strategies as st

from manifests import dataset
from manifests.records import CLIP_STAGES, MEASURES, measures_of
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, SOURCES_TABLE, append
from manifests.verdicts import Profile
from pipelines.recipe import load_recipe
from pipelines.review.app import make_app
from pipelines.review.desk import Desk
from pipelines.review.serve import bound

Row = dict[str, Any]
SOURCE = "0123456789abcdef"
ADDRESS = "http://127.0.0.1:8321"
BACKENDS = load_recipe("bundled").backends
KEPT: Row = {
    "duration_s": 6.0,
    "audio_present": True,
    "speech_share": 0.8,
    "speaker_count": 1,
    "face_coverage": 1.0,
    "face_size_px": 200.0,
    "sync_confidence": 8.0,
    "sync_offset_frames": 2,
    "quality_resolution": 150.0,
    "quality_sharpness": 20.0,
    "quality_piqe": 60.0,
    "overlay_text_count": 0,
    "transcript": "a few words that were said",
}
"""What passes every rule of `pretrain`."""


def clip_row(at: int, source: str = SOURCE, **more: Any) -> Row:
    """The `at`-th clip of `source`, as `KEPT` but for `more`; every stage has measured."""
    start, end = at * 6000, (at + 1) * 6000
    backends = {f"{stage}_{what}": name for stage in CLIP_STAGES for what, name in _ran(stage)}
    times = {"start_s": start / 1000, "end_s": end / 1000}
    clip = {"clip_id": f"{source}-{start:09d}-{end:09d}", "source_id": source, "uri": f"/videos/{source}.mp4"}
    return {**clip, **times, "scene": 0, **KEPT, **backends, **more}


def _ran(stage: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("backend", BACKENDS[stage]), ("status", "ok")


def source_row(source: str = SOURCE, uri: str = "") -> Row:
    """A source of those clips."""
    uri = uri or f"/videos/{source}.mp4"
    facts: Row = {"container": "mp4", "duration_s": 60.0, "start_pts_s": 0.0, "width": 640, "height": 480}
    facts |= {"rotation": 0, "pixel_aspect": 1.0, "fps": 25.0, "video_codec": "h264"}
    return {"uri": uri, "path": uri, "source_id": source, "status": "ok", "order": 0, **facts}


def write(root: Path, clips: Sequence[Row], sources: Sequence[Row] | None = None, recipe: str = "bundled") -> Store:
    """A dataset of these rows."""
    store = Store(root)
    begin(store, recipe)
    append(store, CLIPS_TABLE, clips)
    append(store, SOURCES_TABLE, [source_row()] if sources is None else sources)
    return store


def begin(store: Store, recipe: str = "bundled") -> None:
    """dataset.json alone."""
    prints = dict.fromkeys(("scenes", *CLIP_STAGES), "0" * 16)
    dataset.save(store, {"recipe": load_recipe(recipe).data(), "fingerprints": prints})


def put_previews(store: Store, name: str, members: Mapping[str, bytes]) -> None:
    """previews/NAME with `members`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, content in members.items():
            facts = tarfile.TarInfo(member)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    store.write(f"previews/{name}", out.getvalue())


def measured_around(profile: Profile) -> st.SearchStrategy[list[Row]]:
    """Clips whose measures lie at, under and over the bounds of `profile`, or are missing; stages that did not run."""
    columns: dict[str, st.SearchStrategy[Any]] = {}
    kinds = {column.name: column.kind for column in MEASURES}
    for rule in profile.rules:
        values: list[Any] = [None]
        for edge in rule.bounds.values():
            values += _beside(edge, kinds.get(rule.measure, "float32"))
        columns[rule.measure] = st.sampled_from(values)
    columns["duration_s"] = st.sampled_from([4.0, 4.8, 5.5, 7.25])
    columns["spoken_language"] = st.sampled_from([None, "en", "zh", "fr"])
    columns["transcript"] = st.sampled_from([None, "", "Good morning", "the CITY [sic] .*", "\u00dcber <b>"])
    skipped = dict.fromkeys(("quality_backend", *measures_of("quality")))
    ran = st.sampled_from([{}, {}, {}, skipped])
    rows = st.lists(st.tuples(st.fixed_dictionaries(columns), ran).map(lambda both: both[0] | both[1]), max_size=30)
    sources = (SOURCE, "fedcba9876543210")
    return rows.map(lambda found: [clip_row(at, sources[at % 2], **row) for at, row in enumerate(found)])


def _beside(bound: Any, kind: str) -> list[Any]:
    if isinstance(bound, bool):
        return [True, False]
    if isinstance(bound, list):
        return [*bound, "fr"]
    return [bound - 1, bound, bound + 1, -bound] if kind == "int32" else [bound - 0.25, bound, bound + 0.25, -bound]


@contextmanager
def live(store: Store, token: str = "", profiles: tuple[str, ...] = (), port: int = 0) -> Iterator[int]:
    """The port of a review server over `store`."""
    app = make_app(Desk(store.root, profiles, "ann"), token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", server_header=False))
    with bound("127.0.0.1", port) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def client(desk: Desk) -> TestClient:
    return TestClient(make_app(desk), base_url=ADDRESS, headers={"Origin": ADDRESS})


def asked(page: TestClient, path: str, /, expect: int = 200, **question: Any) -> Any:
    path += ("&" if "?" in path else "?") + urlencode({"q": json.dumps({"profile": "pretrain", **question})})
    answer = page.get(path)
    assert answer.status_code == expect, answer.text
    return answer.json()


def decided(page: TestClient, clip: str, choice: str, expect: int = 200, **more: str) -> Any:
    answer = page.post("/api/decisions", json={"clip_id": clip, "profile": "pretrain", "choice": choice, **more})
    assert answer.status_code == expect, answer.text
    return answer.json()


def name(at: int) -> str:
    return str(clip_row(at)["clip_id"])


def shown(page: TestClient, /, **question: Any) -> list[int]:
    """Numbers of the clips on the page that is asked for."""
    return [round(row["start_s"] / 6) for row in asked(page, "/api/clips", **question)["rows"]]


@pytest.fixture(name="root")
def root_fixture(tmp_path: Path) -> Path:
    """Eight clips: 0 kept, 1 rejected by two rules, 2 by one, 3 undecided, 4 to 7 kept."""
    changes: list[dict[str, Any]] = [
        {}, {"speaker_count": 2, "overlay_text_count": 3}, {"sync_confidence": 3.9}, {"overlay_text_count": None},
        {"quality_piqe": 91.0}, {"transcript": "An Island"}, {"quality_piqe": math.nan}, {"duration_s": 9.0},
    ]  # fmt: skip
    write(tmp_path / "data", [clip_row(at, **change) for at, change in enumerate(changes)])
    return tmp_path / "data"


@pytest.fixture(name="page")
def page_fixture(root: Path) -> TestClient:
    return client(Desk(str(root)))
