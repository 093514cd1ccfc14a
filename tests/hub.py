"""A weights hub on this machine: a real HTTP server with Range and If-Range that can be told to let one down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Answer = Callable[["Handler", "Page"], None]


@dataclass
class Page:
    """One file of the hub. headers: more than the usual ones; answers: of the next requests, the usual one after."""

    body: bytes
    etag: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self.hub.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        page = self.hub.pages.get(self.path)
        if page is None:
            self.answer(404, b"no such page")
        else:
            (page.answers.pop(0) if page.answers else whole)(self, page)

    def answer(self, code: int, body: bytes, length: int | None = None, **headers: Any) -> None:
        """Sends `body`, having announced `length` bytes of it."""
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True


def facts(page: Page) -> dict[str, Any]:
    return {**({"ETag": page.etag} if page.etag else {}), **page.headers}


def whole(handler: Handler, page: Page) -> None:
    """The usual answer: the file, or the rest of it where the condition holds."""
    start, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    if not start or (condition and condition not in (page.etag, page.headers.get("Last-Modified"))):
        handler.answer(200, page.body, **facts(page))
        return
    first = int(start.removeprefix("bytes=").rstrip("-"))
    if first >= len(page.body):
        handler.answer(416, b"")
        return
    span = f"bytes {first}-{len(page.body) - 1}/{len(page.body)}"
    handler.answer(206, page.body[first:], **facts(page), Content_Range=span)


def cut(count: int) -> Answer:
    """Announces what is asked for, sends `count` bytes of it and hangs up."""

    def answer(handler: Handler, page: Page) -> None:
        first = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest, more = page.body[first:], {}
        if first:
            more["Content_Range"] = f"bytes {first}-{len(page.body) - 1}/{len(page.body)}"
        handler.answer(206 if first else 200, rest[:count], len(rest), **facts(page), **more)
        handler.hang_up()

    return answer


def stall(count: int) -> Answer:
    """Sends `count` bytes, then nothing until the hub closes."""

    def answer(handler: Handler, page: Page) -> None:
        cut(count)(handler, page)
        handler.hub.closing.wait(30)

    return answer


def status(code: int, **headers: Any) -> Answer:
    return lambda handler, page: handler.answer(code, b"<html>sorry</html>", Content_Type="text/html", **headers)


def leads_to(url: str, **headers: Any) -> Answer:
    return lambda handler, page: handler.answer(302, b"", Location=url, **headers)


def web_page(handler: Handler, page: Page) -> None:
    handler.answer(200, b"<html>Please log in</html>", Content_Type="text/html; charset=utf-8")


def silence(handler: Handler, page: Page) -> None:
    handler.hub.closing.wait(30)
    handler.hang_up()


@dataclass
class Hub:
    """url: of the hub; pages: by path; asked: (path, Range, If-Range) of every request so far."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, body: bytes, *answers: Answer, hashed: bool = False, **headers: str) -> Page:
        """A page with an ETag of its content; hashed: with the hub's own hash header too."""
        sha256 = hashlib.sha256(body).hexdigest()
        if hashed:
            headers["X-Linked-Etag"] = f'"{sha256}"'
        page = Page(body, f'"{sha256[:8]}"', headers, list(answers))
        self.pages[f"/{path}"] = page
        return page


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """The other side may hang up whenever it likes; every other fault of an answer is one of a test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            traceback.print_exc()


@contextlib.contextmanager
def open_hub() -> Iterator[Hub]:
    kind: Any = type("OneHub", (Handler,), {})
    server = _Server(("127.0.0.1", 0), kind)
    hub = kind.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def some_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8).tobytes()


def model_toml(name: str, *files: Mapping[str, object]) -> str:
    """A model of the catalogue."""

    def value(of: object) -> str:
        return str(of) if isinstance(of, int) else f'"{of}"'

    lines = ["{" + ", ".join(f"{key} = {value(v)}" for key, v in file.items()) + "}" for file in files]
    return (
        f'[{name}]\npurpose = "tests"\nhomepage = "https://example.org/{name}"\nrevision = "1"\n'
        f'licence = "CC BY-NC 4.0"\ncommercial = false\nfiles = [{", ".join(lines)}]\n'
    )


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small disk of its own at `place`; skips where mounting is not permitted."""
    place.mkdir(exist_ok=True)
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
