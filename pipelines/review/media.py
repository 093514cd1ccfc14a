"""Films and film strips over HTTP: whole, a range, or only what they are (RFC 9110, 13 and 14)."""

from __future__ import annotations

from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from pipelines.review.desk import Desk
from pipelines.review.previews import MEDIA, Member

MISSING = "no preview of this clip; run xstreamer curate again to make it"


def answer(desk: Desk, request: Request, clip_id: str, extension: str) -> Response:
    """What GET or HEAD of a member gets: 200, 206, 304, 404 or 416."""
    member = _member(desk, clip_id, extension)
    if member is None:
        return JSONResponse({"error": MISSING}, 404)
    tag = f'"{member.tag}"'
    common = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache", "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=common)
    header = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
    span = byte_range(header, member.size)
    if span is None:
        return Response(status_code=416, headers={**common, "Content-Range": f"bytes */{member.size}"})
    first, last, partial = span
    if partial:
        common["Content-Range"] = f"bytes {first}-{last}/{member.size}"
    status, length = 206 if partial else 200, last - first + 1
    if request.method == "HEAD":
        headers = {**common, "Content-Length": str(length)}
        return Response(status_code=status, media_type=MEDIA[extension], headers=headers)
    try:
        content = desk.previews.read(member, first, length)
    except OSError:
        return JSONResponse({"error": MISSING}, 404)
    return Response(content, status, media_type=MEDIA[extension], headers=common)


def _member(desk: Desk, clip_id: str, extension: str) -> Member | None:
    snapshot = desk.view.snapshot
    place = snapshot.place(clip_id) if extension in MEDIA else None
    tar = None if place is None else snapshot.preview_tar(place)
    return desk.previews.find(tar, clip_id, extension) if tar else None


def byte_range(header: str | None, size: int) -> tuple[int, int, bool] | None:
    """(first byte, last byte, whether it is a part) that a Range header asks for.

    The whole file without one, or with one that is to be ignored (several ranges, another unit, no range at all);
    None where nothing of it can be satisfied.
    """
    whole = (0, size - 1, False)
    unit, _, wanted = (header or "").partition("=")
    first, dash, last = wanted.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not all(_digits(part) for part in (first, last)):
        return whole
    if not first:
        return (max(0, size - int(last)), size - 1, True) if last and int(last) and size else None if last else whole
    if last and int(last) < int(first):
        return whole
    end = min(int(last), size - 1) if last else size - 1
    return (int(first), end, True) if int(first) < size else None


def _digits(part: str) -> bool:
    return part == "" or (part.isascii() and part.isdecimal() and len(part) <= 18)
