"""The end of a process."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends the process with `code`, after what libraries registered for its end, past the interpreter's own
    shutdown: native threads of the libraries behind us are torn down there in any order, which now and then
    aborts a run that has ended well."""
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
