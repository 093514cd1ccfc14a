"""One URL into one file: resumed where it broke off, never spliced from two versions, and every way in which a
server lets one down has a sentence."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import requests

CONNECT_S, READ_S = 10.0, 30.0
"""A server that says nothing for as long is given up."""
ATTEMPTS = 4
"""Failures in a row without one byte more, after which it is given up."""
BACKOFF_S, LONGEST_WAIT_S = 1.0, 60.0
"""First pause, doubled each time; the longest that a server may ask for."""
MAX_REDIRECTS = 8
MAX_BYTES = 1 << 40
BLOCK = 1 << 16
STATE = ".json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Failed(Exception):
    """The URL did not give the file. again: whether the same request may work later."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class _Broken(Exception):
    """An attempt that is worth repeating, after `wait_s` seconds at least."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Meter(Protocol):
    """A progress bar at work."""

    def add(self, amount: float) -> None:
        """`amount` more bytes."""
        ...


@dataclass(frozen=True)
class Watch:
    """Who looks on. bar: makes a progress bar over so many bytes (0: not known); say: takes a line of news."""

    bar: Callable[[int], AbstractContextManager[Meter]]
    say: Callable[[str], None]


@dataclass(frozen=True)
class Offer:
    """What a server says about the file before it comes.

    total: bytes, None where it does not say. sha256: as the hub states it, "" elsewhere. commit: that the hub
    resolved the revision to. tag: an ETag or date by which a changed file is told from the same one, "" for none.
    """

    url: str
    total: int | None
    sha256: str = ""
    commit: str = ""
    tag: str = ""

    def continues(self, known: Offer) -> bool:
        """Whether its bytes go on where those of `known` end."""
        if (self.url, self.total) != (known.url, known.total):
            return False
        same = self.sha256 == known.sha256 if self.sha256 and known.sha256 else self.tag == known.tag
        return same or not (self.tag or self.sha256)  # a 206 need not repeat the date that If-Range was judged by


def download(url: str, part: Path, watch: Watch, room: Callable[[int], None], size: int | None = None) -> Offer:
    """Fills `part` with what `url` holds; goes on after its end when it is the rest of the same file.

    size: bytes as published. room: called with the bytes still to come before the first is written; may raise.
    Raises Failed, OSError when the disk refuses. What came stays in `part` for the next time.
    """
    failures, furthest = 0, _length(part)
    while True:
        try:
            return _attempt(url, part, watch, room, size)
        except _Broken as error:
            failures = 1 if _length(part) > furthest else failures + 1
            furthest = max(furthest, _length(part))
            if failures >= ATTEMPTS:
                raise Failed(f"{error} ({ATTEMPTS} attempts)", again=True) from None
            wait_s = max(error.wait_s, BACKOFF_S * 2 ** (failures - 1))
            watch.say(f"{url} {error}; trying again in {wait_s:.0f} s")
            time.sleep(wait_s)


def discard(part: Path) -> None:
    """Deletes a partial file and what is known of it."""
    for path in (part, _state(part)):
        path.unlink(missing_ok=True)


def _attempt(url: str, part: Path, watch: Watch, room: Callable[[int], None], size: int | None) -> Offer:
    known, have = _begun(url, part)
    if known and have == known.total:
        return known
    headers = {"Accept-Encoding": "identity"}
    if known and have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": known.tag} if known.tag else {})
    import requests

    try:
        with (
            _session(url) as session,
            session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response,
        ):
            _check_status(response, part)
            offer, start = _offer(response, url), have if response.status_code == 206 else 0
            if start and not (known and offer.continues(known) and _starts_at(response, start)):
                discard(part)
                raise _Broken("the file changed while it was fetched")
            _check_offer(offer, response, size)
            room((offer.total or size or start) - start)
            if not start:
                discard(part)
                _state(part).write_text(json.dumps(asdict(offer)))
            return _receive(response, offer, part, start, watch)
    except requests.RequestException as error:
        raise _explained(error) from None


def _receive(response: requests.Response, offer: Offer, part: Path, start: int, watch: Watch) -> Offer:
    """Appends the body to `part`."""
    limit = MAX_BYTES if offer.total is None else offer.total
    have = start
    with part.open("ab") as file, watch.bar((offer.total or start) - start) as meter:
        for block in response.iter_content(BLOCK):
            have += len(block)
            if have > limit:
                raise Failed(f"sent more than the {limit} bytes that it had announced")
            file.write(block)
            file.flush()
            meter.add(len(block))
        os.fsync(file.fileno())
    if offer.total is not None and have < offer.total:
        raise _Broken(f"broke off at {have} of {offer.total} bytes")
    return offer


def _session(url: str) -> requests.Session:
    """A session that follows redirects to https alone; plain http only to the host that the URL itself names."""
    import requests

    session = requests.Session()
    session.max_redirects = MAX_REDIRECTS
    parts = urlsplit(url)
    http = session.adapters["http://"]
    session.adapters.pop("http://")
    if parts.scheme == "http":
        session.mount(f"http://{parts.netloc}/", http)
    return session


def _check_status(response: requests.Response, part: Path) -> None:
    code = response.status_code
    if code in (200, 206):
        return
    if code == 416:  # nothing after what is there: it was not the beginning of this file
        discard(part)
        raise _Broken("the file changed while it was fetched")
    if code in (408, 425, 429) or code >= 500:
        what = "asks for patience" if code == 429 else "is out of order"
        raise _Broken(f"answered {code} ({what})", _asked_wait(response.headers.get("Retry-After", "")))
    reasons = {401: "wants an account", 403: "refuses access", 404: "holds no such file", 410: "holds no such file"}
    raise Failed(f"answered {code} ({reasons.get(code, response.reason)})")


def _asked_wait(text: str) -> float:
    """Seconds that Retry-After asks for (a date counts as none)."""
    return min(float(text), LONGEST_WAIT_S) if text.isdecimal() else 0.0


def _check_offer(offer: Offer, response: requests.Response, size: int | None) -> None:
    """Raises Failed when what is about to come cannot be the file."""
    kind = response.headers.get("Content-Type", "").split(";")[0].strip()
    encoding = response.headers.get("Content-Encoding", "identity")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "")
    if kind == "text/html" and not urlsplit(offer.url).path.endswith((".html", ".htm")):
        raise Failed("sent a web page in place of the file")
    if encoding != "identity":
        raise Failed(f"sent the file in {encoding} encoding, which was not asked for")
    if offer.total is None and not chunked and size is None:
        raise Failed("does not say how long the file is, so that half of it would look whole")
    if size is not None and offer.total not in (None, size):
        raise Failed(f"offers {offer.total} bytes, not the {size} that were published")


def _offer(response: requests.Response, url: str) -> Offer:
    """The offer in the headers of the answer and of the redirects before it."""
    chain = [*response.history, response]
    sha256 = commit = ""
    for one in chain:
        linked = one.headers.get("X-Linked-Etag", "")
        if not linked and "X-Repo-Commit" in one.headers:  # on the hub itself an ETag is the file's own hash
            linked = one.headers.get("ETag", "")
        if _SHA256.fullmatch(linked.strip('"')):
            sha256 = linked.strip('"')
        commit = one.headers.get("X-Repo-Commit", commit)
    return Offer(url, _total(response), sha256, commit, _tag(response.headers))


def _total(response: requests.Response) -> int | None:
    """Bytes of the whole file."""
    text = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdecimal() else None


def _tag(headers: Any) -> str:
    """What If-Range may name: a strong ETag, else the date of change."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(headers.get("Last-Modified", ""))


def _starts_at(response: requests.Response, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _begun(url: str, part: Path) -> tuple[Offer | None, int]:
    """What is known of `part` and its bytes, where it can be gone on with."""
    try:
        known = Offer(**json.loads(_state(part).read_text()))
    except (OSError, ValueError, TypeError):  # none, or torn by a power cut: begin anew
        return None, 0
    have = _length(part)
    same = part.is_file() and known.url == url and bool(known.tag or known.sha256)
    return (known, have) if same and known.total is not None and have <= known.total else (None, 0)


def _explained(error: requests.RequestException) -> Failed | _Broken:
    """The library's error in a few words."""
    import requests

    if isinstance(error, requests.exceptions.InvalidSchema):
        return Failed("leads to a place that is not https")
    if isinstance(error, requests.TooManyRedirects):
        return Failed(f"leads in circles (over {MAX_REDIRECTS} redirects)")
    if isinstance(error, requests.exceptions.InvalidURL):
        return Failed("leads to an address that is none")
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return _Broken(f"did not answer within {READ_S:.0f} s")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return _Broken("broke off in the middle")
    return _Broken(f"cannot be reached ({_innermost(error)})")


def _innermost(error: BaseException) -> str:
    """The cause at the bottom of a chain of wrapped errors, one line."""
    seen: Any = error
    while True:
        inner = getattr(seen, "reason", None) or next((a for a in seen.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            text = " ".join(str(seen).split())
            return re.sub(r"^.*?: Failed to ", "failed to ", text) or type(seen).__name__
        seen = inner


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _state(part: Path) -> Path:
    return part.with_name(part.name + STATE)
