"""Which of torchrun's processes this is, and how its errors are told."""

from __future__ import annotations

import os
import time

OTHERS_WAIT_S = 3.0
"""The first process tells an error that all have; torchrun then ends the others, which by then have said nothing."""


def rank() -> int:
    """0 where nobody started several."""
    found = os.environ.get("RANK", "")
    return int(found) if found.isdecimal() and "WORLD_SIZE" in os.environ else 0


def heading(command: str) -> str:
    """What stands before an error; on another process than the first it waits, so that an error of all is told once."""
    if command != "train" or rank() == 0:
        return "xstreamer: "
    time.sleep(OTHERS_WAIT_S)
    return f"xstreamer: rank {rank()}: "
