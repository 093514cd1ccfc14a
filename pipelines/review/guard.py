"""Who may ask what: hosts, token, origin, headers. A page of another site must neither read nor write here."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from manifests.errors import one_line
from pipelines.review.hosts import is_loopback

COOKIE = "xstreamer_review"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
SAFE = ("GET", "HEAD")
MAX_BODY = 64 * 1024
Next = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Guard:
    """token: "" on loopback, where whoever can connect is this machine's user; else every request needs it."""

    token: str = ""

    async def __call__(self, request: Request, call_next: Next) -> Response:
        response = self._refusal(request)
        if response is None and self.token and "token" in request.query_params:
            response = self._signed_in(request)
        if response is None:
            response = await _answered(request, call_next)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        kept = "no-store" if request.url.path.startswith("/api/") else "no-cache"
        response.headers.setdefault("Cache-Control", kept)
        return response

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self.token and not is_loopback(host):  # DNS rebinding: a name of theirs, an address of ours
            return _error(403, f"host {host[:100]!r} is not this machine; open http://127.0.0.1")
        if self.token and not self._known(request):
            return _error(401, "a token is needed; open the address that xstreamer review printed")
        if request.method in SAFE:
            return _error(403, "pages of other sites get nothing here") if _embedded_elsewhere(request) else None
        if not same_origin(request):
            return _error(403, "only the page itself may write; reload it")
        length = request.headers.get("content-length") or "0"
        if not length.isdecimal() or int(length) > MAX_BODY:
            return _error(413, f"at most {MAX_BODY} bytes")
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return _error(415, "send JSON")
        return None

    def _known(self, request: Request) -> bool:
        given = request.query_params.get("token") or request.cookies.get(COOKIE, "")
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    def _signed_in(self, request: Request) -> Response:
        """The page with the token in a cookie and no longer in the address."""
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, self.token, httponly=True, samesite="lax")  # lax: a link in a chat opens it too
        return response


async def _answered(request: Request, call_next: Next) -> Response:
    """The answer; an error that nobody foresaw is one line to the page and a trace to who runs the server."""
    try:
        return await call_next(request)
    except Exception as error:
        logging.getLogger(__name__).exception("%s %s", request.method, request.url.path)
        return _error(500, f"unexpected {one_line(error)}; see where xstreamer review runs, and report it")


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _embedded_elsewhere(request: Request) -> bool:
    """Whether a page of another origin asks; only following a link to the front page is let in from there."""
    other = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    return other and not (request.url.path == "/" and request.headers.get("sec-fetch-mode") == "navigate")


def same_origin(request: Request) -> bool:
    """Whether the request comes from a page of this very server: by Origin, which browsers send with every write."""
    origin = request.headers.get("origin")
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or not origin:
        return False
    try:
        found = urlsplit(origin)
    except ValueError:
        return False
    return found.scheme == request.url.scheme and found.netloc == request.headers.get("host", "")
