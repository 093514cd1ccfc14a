"""`xstreamer review`: finds a port, opens the dataset, serves until Ctrl-C."""

from __future__ import annotations

import contextlib
import getpass
import re
import secrets
import socket
import sys
from dataclasses import dataclass
from urllib.parse import quote

from manifests.decisions import Decision
from manifests.errors import UsageError, XstreamerError
from manifests.verdicts import KEEP
from pipelines.review.hosts import is_loopback

PORT = 8321
EXTRA = 'pip install "xstreamer[review]"'


@dataclass(frozen=True)
class Asked:
    """What to serve. profiles: more of them, by TOML file or name; reviewer: None = the user of this machine."""

    root: str
    profiles: tuple[str, ...] = ()
    reviewer: str | None = None
    host: str = "127.0.0.1"
    port: int = PORT


def serve(asked: Asked, quiet: bool = False) -> None:
    """Serves the review page until interrupted.

    Beyond loopback every request needs the token in the printed address. Raises UsageError (a port in use, a name
    that is none), DatasetError, XstreamerError when the web packages are missing.
    """
    try:
        import uvicorn

        from pipelines.review.app import make_app
        from pipelines.review.desk import Desk
    except ImportError as error:
        raise XstreamerError(f"the review page needs {error.name}, which is not installed; run: {EXTRA}") from error
    reviewer = named(asked.reviewer)
    with bound(asked.host, asked.port) as listening:
        if not quiet:
            print(f"reading {asked.root} ...", file=sys.stderr)
        desk = Desk(asked.root, asked.profiles, reviewer)
        token = "" if is_loopback(bracketed(asked.host)) else secrets.token_urlsafe(24)
        shown = socket.gethostname() if asked.host in ("0.0.0.0", "::") else bracketed(asked.host)
        address = f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={quote(token)}" if token else "")
        print(f"review {desk.store.root} at {address}", flush=True)
        if desk.read_only:
            print(f"read-only: {desk.read_only}", file=sys.stderr)
        config = uvicorn.Config(make_app(desk, token), log_level="warning", access_log=False, server_header=False)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
            uvicorn.Server(config).run(sockets=[listening])


def bracketed(host: str) -> str:
    """The host as an address has it: an IPv6 one in brackets."""
    return f"[{host}]" if ":" in host else host


def named(reviewer: str | None) -> str:
    """The name that decisions carry. Raises UsageError for one that cannot be."""
    if reviewer is None:
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a container's user without a name
            user = ""
        return re.sub(r"[^\w.@+ -]", "-", user)[:80] or "reviewer"
    try:
        return Decision("", "", KEEP, reviewer).reviewer
    except ValueError as error:
        raise UsageError(f"--reviewer: {error}") from None


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UsageError when the port is taken or the address is none of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named so: asyncio then sends at once
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen at {host}:{port} ({reason}); choose another --port, or 0 for any") from None
    return listening
