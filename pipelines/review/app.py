"""The server behind the review page: questions are GET with JSON in `q`, decisions are POST. FastAPI.

Every answer carries `took_ms`. Errors are {"error": one line}.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from manifests.decisions import Decision
from manifests.errors import UsageError, XstreamerError
from manifests.verdicts import Profile
from pipelines.review.desk import Desk
from pipelines.review.guard import Guard
from pipelines.review.previews import MEDIA, byte_range
from pipelines.review.query import PER_PAGE, VERDICTS, Filter, Judged, counts, failing_rules, histogram, languages, page

MAX_QUESTION = 16_384
MAX_PER_PAGE = 500


def make_app(desk: Desk, token: str = "") -> FastAPI:
    """The application over `desk`. token: what every request must carry when it listens beyond loopback."""
    app = FastAPI(title="xstreamer review", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    app.middleware("http")(Guard(token))
    app.exception_handler(XstreamerError)(_refused)
    _pages(app)
    _questions(app, desk)
    _writes(app, desk)
    _media(app, desk)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400 if isinstance(error, UsageError) else 409)


def _pages(app: FastAPI) -> None:
    with resources.as_file(resources.files("pipelines.review") / "static") as static:
        app.mount("/static", StaticFiles(directory=static), name="static")
        index = (static / "index.html").read_bytes()
    with resources.as_file(resources.files("pipelines.web") / "theme.css") as file:
        theme = Path(file).read_bytes()

    @app.get("/")
    def _index() -> Response:
        return Response(index, media_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @app.get("/theme.css")
    def _theme() -> Response:
        return Response(theme, media_type="text/css; charset=utf-8")


def question(q: str) -> dict[str, Any]:
    """The JSON object in `q`. Raises UsageError."""
    if len(q) > MAX_QUESTION:
        raise UsageError(f"a question has at most {MAX_QUESTION} characters")
    try:
        found = json.loads(q or "{}")
    except ValueError:
        raise UsageError("q is no JSON") from None
    if not isinstance(found, dict):
        raise UsageError("q must be a JSON object")
    return found


def _profile(desk: Desk, asked: dict[str, Any]) -> Profile:
    bounds = asked.get("bounds") or {}
    if not isinstance(bounds, dict):
        raise UsageError("bounds must be an object, {rule: bound}")
    return desk.profile(str(asked.get("profile", "")), bounds)


def _filter(asked: dict[str, Any]) -> Filter:
    given = asked.get("filter") or {}
    known = {one.name: one for one in fields(Filter)}
    if not isinstance(given, dict) or set(given) - known.keys():
        raise UsageError(f"filter must be an object of {', '.join(known)}")
    for name, value in given.items():
        wanted = (bool, type(None)) if name == "decided" else (bool,) if name == "only" else (str,)
        if not isinstance(value, wanted):
            raise UsageError(f"filter {name}: {str(value)[:40]!r} is of the wrong type")
    return Filter(**given)


def _whole(asked: dict[str, Any], name: str, default: int, most: int) -> int:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UsageError(f"{name} must be a whole number from 0 to {most}")
    return value


def _questions(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/dataset")
    def _dataset() -> Any:
        return {**desk.described(), "languages": languages(desk.snapshot)}

    @app.get("/api/counts")
    def _counts(q: str = "") -> Any:
        began = time.perf_counter()
        profile = _profile(desk, question(q))
        found = counts(desk.snapshot, desk.judged(profile))
        return {**found, "decisions": len(desk.decided(profile.name)), "took_ms": _since(began)}

    @app.get("/api/clips")
    def _clips(q: str = "") -> Any:
        began = time.perf_counter()
        asked = question(q)
        profile, number = _profile(desk, asked), _whole(asked, "page", 0, 10**9)
        per_page = max(1, _whole(asked, "per_page", PER_PAGE, MAX_PER_PAGE))
        sort = str(asked.get("sort") or "")
        found = page(
            desk.snapshot,
            profile,
            desk.judged(profile),
            _filter(asked),
            decided=desk.decided_places(profile.name),
            backends=desk.recipe.backends,
            sort=sort,
            descending=bool(asked.get("descending")),
            number=number,
            per_page=per_page,
        )
        stands, values = desk.decided(profile.name), desk.snapshot.values(sort) if sort else None
        rows = [_row(desk, stands, found.judged, at, values) for at in found.places]
        return {"total": found.total, "seconds": found.seconds, "rows": rows, "took_ms": _since(began)}

    @app.get("/api/histogram")
    def _histogram(measure: str) -> Any:
        began = time.perf_counter()
        try:
            found = histogram(desk.snapshot, measure)
        except KeyError:
            raise UsageError(f"no numeric measure {measure[:80]!r}") from None
        return {**found, "measure": measure, "took_ms": _since(began)}

    @app.get("/api/clips/{clip_id}")
    def _clip(clip_id: str, q: str = "") -> Any:
        return desk.clip(clip_id, _profile(desk, question(q)))

    @app.get("/api/export.csv")
    def _export(q: str = "") -> Response:
        asked = question(q)
        profile = _profile(desk, asked)
        headers = {"Content-Disposition": f'attachment; filename="{profile.name}.csv"'}
        return StreamingResponse(_csv(desk, profile, _filter(asked)), media_type="text/csv", headers=headers)


def _row(
    desk: Desk, decided: Mapping[str, Decision], judged: Judged, at: int, values: np.ndarray | None
) -> dict[str, Any]:
    """What the grid shows of a clip. decided: decisions that stand; values: [n] of the measure it is sorted by."""
    failing, unmet = failing_rules(judged, at)
    clip_id = desk.snapshot.clip_id(at)
    stands = decided.get(clip_id)
    value = None if values is None else float(values[at])
    return {
        "clip_id": clip_id,
        "source": desk.uri(at),
        "start_s": int(desk.snapshot.start_ms[at]) / 1000,
        "seconds": round(float(desk.snapshot.seconds[at]), 2),
        "verdict": VERDICTS[judged.codes[at]],
        "decision": stands and {"choice": stands.choice, "reviewer": stands.reviewer, "reason": stands.reason},
        "failing": failing,
        "unmet": unmet,
        "value": None if value is None or np.isnan(value) else round(value, 4),
        "has_preview": desk.snapshot.preview_tar(at) is not None,
    }


def _csv(desk: Desk, profile: Profile, wanted: Filter) -> Iterator[str]:
    """The clips of a filter, all pages, as CSV; cells that a spreadsheet would run are made text."""
    judged = desk.judged(profile)
    stands, places, backends = desk.decided(profile.name), desk.decided_places(profile.name), desk.recipe.backends
    every = max(1, len(desk.snapshot))
    found = page(desk.snapshot, profile, judged, wanted, decided=places, backends=backends, per_page=every)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(
        ["clip_id", "source", "start_s", "seconds", "verdict", "decision", "reviewer", "reason", "failing", "unmet"]
    )
    for at in found.places:
        row = _row(desk, stands, judged, at, None)
        decision = row["decision"] or {"choice": "", "reviewer": "", "reason": ""}
        cells = [row["clip_id"], row["source"], row["start_s"], row["seconds"], row["verdict"], *decision.values()]
        writer.writerow([_safe(cell) for cell in (*cells, " ".join(row["failing"]), " ".join(row["unmet"]))])
        if out.tell() > 1 << 16:
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()


def _safe(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)


def _writes(app: FastAPI, desk: Desk) -> None:
    @app.post("/api/decisions")
    async def _decide(request: Request) -> Any:
        asked = question((await request.body()).decode(errors="replace"))
        decision = await run_in_threadpool(desk.decide, asked)  # waits for the disk
        return {"decision_id": decision.decision_id, "choice": decision.choice, "time": decision.time}

    @app.post("/api/profiles")
    async def _save(request: Request) -> Any:
        asked = question((await request.body()).decode(errors="replace"))
        name, base, bounds = str(asked.get("name", "")), str(asked.get("profile", "")), asked.get("bounds") or {}
        return {"path": await run_in_threadpool(desk.save_profile, name, base, bounds)}

    @app.post("/api/reload")
    def _reload() -> Any:
        desk.reload()
        return {"clips": len(desk.snapshot)}

    @app.post("/api/refresh")
    def _refresh() -> Any:
        return {"decisions": desk.take_in_decisions(), "stale": desk.stale()}


def _media(app: FastAPI, desk: Desk) -> None:
    @app.api_route("/media/{clip_id}.{extension}", methods=["GET", "HEAD"])
    def _preview(request: Request, clip_id: str, extension: str) -> Response:
        place = desk.snapshot.place(clip_id) if extension in MEDIA else None
        tar = None if place is None else desk.snapshot.preview_tar(place)
        member = tar and desk.previews.find(tar, clip_id, extension)
        if not member:
            return JSONResponse({"error": "no preview of this clip; run curate again to make it"}, 404)
        span = byte_range(request.headers.get("range"), member.size)
        common = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
        if span is None:
            return Response(status_code=416, headers={**common, "Content-Range": f"bytes */{member.size}"})
        first, last = span
        partial = bool(request.headers.get("range")) and (first, last) != (0, member.size - 1)
        partial = partial or (request.headers.get("range") or "").startswith("bytes=")
        if partial:
            common["Content-Range"] = f"bytes {first}-{last}/{member.size}"
        if request.method == "HEAD":
            headers = {**common, "Content-Length": str(last - first + 1)}
            return Response(status_code=206 if partial else 200, media_type=MEDIA[extension], headers=headers)
        content = desk.previews.read(member, first, last - first + 1)
        return Response(content, 206 if partial else 200, media_type=MEDIA[extension], headers=common)
