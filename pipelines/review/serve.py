"""`xstreamer review`: opens the dataset, finds a port, serves until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
import sys
from urllib.parse import quote

from manifests.errors import UsageError
from pipelines.review.desk import Desk
from pipelines.review.guard import is_loopback

PORT = 8321


def serve(root: str, profiles: tuple[str, ...], reviewer: str, host: str, port: int, quiet: bool = False) -> None:
    """Serves the review page of `root` at `host`:`port` (0: any free one) until interrupted.

    Beyond loopback every request needs the token in the printed address. Raises UsageError for a port in use,
    DatasetError, ModelError when the web packages are missing.
    """
    import uvicorn

    from pipelines.review.app import make_app

    listening = bound(host, port)
    if not quiet:
        print(f"reading {root} ...", file=sys.stderr)
    desk = Desk(root, profiles, reviewer)
    token = "" if is_loopback(host if ":" not in host else f"[{host}]") else secrets.token_urlsafe(24)
    app = make_app(desk, token)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={quote(token)}" if token else "")
    print(f"review {desk.store.root} at {address}", flush=True)
    if desk.read_only:
        print(f"read-only: {desk.read_only}", file=sys.stderr)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UsageError when the port is taken or the address is none of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen at {host}:{port} ({reason}); choose another --port, or 0 for any") from None
    return listening
