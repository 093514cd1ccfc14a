"""A process of our own at the other end of a link.

It is started as a program: not forked, which CUDA forbids, and not by `multiprocessing`, which runs the caller's main
module once more and leaves a tracker of shared memory behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from inference.link import Link, LinkError

CLOSING = 2.0
"""Seconds that it has to end by itself."""


class Child:
    """`python -m module FD PID`, with one end of a link, and the id of our process. It is to end when that end closes.

    It finds the modules that we find, prints to our stderr, reads nothing, and is in a group of its own, so that
    Ctrl-C reaches us alone. deadline: as `link.Link`.
    """

    def __init__(self, module: str, deadline: float) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path)
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours may be read by a program
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        self.pid, self.link = self._process.pid, Link(ours, deadline)

    def death(self, name: str, what: str) -> LinkError:
        """How the process called `name` ended, whose end of the link is closed, while `what` was due."""
        try:
            code = self._process.wait(CLOSING)
        except subprocess.TimeoutExpired:
            return LinkError(f"{name} has closed its link while {what} was due; see what it printed")
        if code >= 0:
            return LinkError(f"{name} ended with exit code {code} while {what} was due; see what it printed")
        hint = "is there memory enough?" if code == -signal.SIGKILL else "see what it printed"
        how = signal.Signals(-code).name
        return LinkError(f"{name} was killed by {how} (exit code {code}) while {what} was due; {hint}")

    def end(self) -> None:
        """Closes the link, upon which the process ends, or is made to. Leaves neither it nor a zombie."""
        self.link.close()
        try:
            self._process.wait(CLOSING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
