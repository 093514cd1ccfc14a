"""Who may ask what: hosts, token, origin, headers. A page of another site must neither read nor write here."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

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
        refused = self._refusal(request)
        if refused is None and self.token and "token" in request.query_params:
            refused = self._signed_in(request)
        response = refused if refused is not None else await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.url.path.startswith("/api/"):
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self.token and not is_loopback(host):  # DNS rebinding: a name of theirs, an address of ours
            return _error(403, f"host {host[:100]!r} is not this machine; open http://127.0.0.1")
        if self.token and not self._known(request):
            return _error(401, "a token is needed; open the address that xstreamer review printed")
        if request.method not in SAFE:
            if not same_origin(request):
                return _error(403, "only the page itself may write; reload it")
            if int(request.headers.get("content-length") or 0) > MAX_BODY:
                return _error(413, f"at most {MAX_BODY} bytes")
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                return _error(415, "send JSON")
        return None

    def _known(self, request: Request) -> bool:
        given = request.query_params.get("token") or request.cookies.get(COOKIE, "")
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _signed_in(self, request: Request) -> Response:
        """The same page with the token in a cookie and no longer in the address."""
        response = RedirectResponse(request.url.path, 303)
        response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        return response


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine's loopback."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


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
