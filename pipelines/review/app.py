"""The server behind the review page: questions are GET with JSON in `q`, decisions are POST. FastAPI.

Every answer to a question carries `took_ms`. Errors are {"error": one line}.
"""

from __future__ import annotations

import time
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from manifests.errors import UsageError, XstreamerError
from manifests.verdicts import Profile
from pipelines.review.asked import body, flag, question, whole
from pipelines.review.desk import Desk
from pipelines.review.guard import Guard
from pipelines.review.media import answer
from pipelines.review.query import PER_PAGE, Filter, counts, histogram, languages, page
from pipelines.review.sheet import sheet

MAX_PER_PAGE = 500


def make_app(desk: Desk, token: str = "") -> FastAPI:
    """The application over `desk`. token: what every request must carry when it listens beyond loopback."""
    app = FastAPI(title="xstreamer review", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    app.middleware("http")(Guard(token))
    app.exception_handler(XstreamerError)(_refused)
    app.exception_handler(HTTPException)(_no_such)
    app.exception_handler(RequestValidationError)(_invalid)
    _pages(app)
    _questions(app, desk)
    _clips(app, desk)
    _writes(app, desk)

    @app.api_route("/media/{clip_id}.{extension}", methods=["GET", "HEAD"])
    def _preview(request: Request, clip_id: str, extension: str) -> Response:
        return answer(desk, request, clip_id, extension)

    return app


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400 if isinstance(error, UsageError) else 409)


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{request.method}: {error.detail}"}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the question lacks something or is no text"}, 422)


def _pages(app: FastAPI) -> None:
    with resources.as_file(resources.files("pipelines.review") / "static") as static:
        app.mount("/static", StaticFiles(directory=static), name="static")
        index = (static / "index.html").read_bytes()
    with resources.as_file(resources.files("pipelines.web") / "theme.css") as file:
        theme = Path(file).read_bytes()

    @app.get("/")
    def _index() -> Response:
        return Response(index, media_type="text/html; charset=utf-8")

    @app.get("/theme.css")
    def _theme() -> Response:
        return Response(theme, media_type="text/css; charset=utf-8")


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
        if not isinstance(value, (bool, type(None)) if name == "decided" else type(known[name].default)):
            raise UsageError(f"filter {name}: {str(value)[:40]!r} is of the wrong type")
    return Filter(**given)


def _questions(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/dataset")
    def _dataset() -> Any:
        return {**desk.described(), "languages": languages(desk.view.snapshot)}

    @app.get("/api/counts")
    def _counts(q: str = "") -> Any:
        began, view = time.perf_counter(), desk.view
        profile = _profile(desk, question(q))
        found = counts(view.snapshot, view.judged(profile))
        return {**found, "decisions": len(view.places(profile.name)), "took_ms": _since(began)}

    @app.get("/api/histogram")
    def _histogram(measure: str) -> Any:
        began = time.perf_counter()
        try:
            found = histogram(desk.view.snapshot, measure)
        except KeyError:
            raise UsageError(f"no numeric measure {measure[:80]!r}") from None
        return {**found, "measure": measure, "took_ms": _since(began)}

    @app.get("/api/last")
    def _last(q: str = "") -> Any:
        asked = question(q)
        return {"decision": desk.last_decision(str(asked.get("reviewer", "")), str(asked.get("profile", "")))}


def _clips(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/clips")
    def _page(q: str = "") -> Any:
        began, view = time.perf_counter(), desk.view
        asked = question(q)
        profile, sort = _profile(desk, asked), str(asked.get("sort") or "")
        judged, wanted = view.judged(profile), _filter(asked)
        found = page(
            view.snapshot,
            profile,
            judged,
            wanted,
            listed=desk.listed(profile, view) if wanted.listed else (),
            decided=view.places(profile.name),
            backends=desk.backends,
            sort=sort,
            descending=flag(asked, "descending"),
            number=whole(asked, "page", 0, 0, 10**9),
            per_page=whole(asked, "per_page", PER_PAGE, 1, MAX_PER_PAGE),
        )
        values = view.snapshot.values(sort) if sort else None
        rows = [view.row(profile, judged, at, values) for at in found.places]
        return {"total": found.total, "seconds": found.seconds, "rows": rows, "took_ms": _since(began)}

    @app.get("/api/clips/{clip_id}")
    def _clip(clip_id: str, q: str = "") -> Any:
        return desk.clip(clip_id, _profile(desk, question(q)))

    @app.get("/api/export.csv")
    def _export(q: str = "") -> Response:
        asked = question(q)
        profile = _profile(desk, asked)
        view, wanted = desk.view, _filter(asked)
        lines = sheet(view, profile, wanted, desk.backends, desk.listed(profile, view) if wanted.listed else ())
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(profile.name)}.csv"}
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)


def _writes(app: FastAPI, desk: Desk) -> None:
    @app.post("/api/decisions")
    async def _decide(request: Request) -> Any:
        asked = question(await body(request))
        decision, row = await run_in_threadpool(desk.decide, asked)  # waits for the disk
        return {"decision_id": decision.decision_id, "choice": decision.choice, "time": decision.time, "row": row}

    @app.post("/api/profiles")
    async def _save(request: Request) -> Any:
        asked = question(await body(request))
        name, base, bounds = str(asked.get("name", "")), str(asked.get("profile", "")), asked.get("bounds") or {}
        if not isinstance(bounds, dict):
            raise UsageError("bounds must be an object, {rule: bound}")
        return {"path": await run_in_threadpool(desk.save_profile, name, base, bounds)}

    @app.post("/api/reload")
    def _reload() -> Any:
        return {"clips": len(desk.reload().snapshot)}

    @app.post("/api/refresh")
    def _refresh() -> Any:
        return {"decisions": desk.take_in_decisions(), "stale": desk.stale()}
