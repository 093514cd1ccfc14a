"""A script for a stream: a line each of what the avatar is told, in order.

# the avatar is asked, and answers
say Who are you?
# it hears somebody's question, and answers
listen question.wav
# it says this recording, as it is
speak greeting.wav
# and is silent for a while
wait 2.5
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import UsageError

SAY, LISTEN, SPEAK, WAIT = "say", "listen", "speak", "wait"
VERBS = (SAY, LISTEN, SPEAK, WAIT)
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Line:
    """verb: one of VERBS. what: text, a file, or seconds."""

    verb: str
    what: str


def read_script(path: Path) -> list[Line]:
    """The lines of a script; files are named as seen from its folder. Raises UsageError with the number of a line that
    is none, and for a script that says nothing."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"script {str(path)!r} cannot be read ({reason}); name a text file") from None
    lines = [_line(line, path, number) for number, line in enumerate(text.splitlines(), 1) if _says(line)]
    if not lines:
        raise UsageError(f"script {str(path)!r} says nothing; write a line such as: {SAY} Who are you?")
    return lines


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _line(line: str, path: Path, number: int) -> Line:
    verb, _, what = line.strip().partition(" ")
    what = what.strip()
    if verb not in VERBS or not what:
        raise UsageError(
            f"line {number} of {path} is {line.strip()[:60]!r}; write {', '.join(VERBS[:-1])} or {WAIT}, and what"
        )
    if verb in (LISTEN, SPEAK):
        return Line(verb, str(path.parent / what))
    if verb == WAIT:
        try:
            seconds = float(what)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= LONGEST_WAIT_S:
            raise UsageError(f"line {number} of {path}: wait takes seconds up to {LONGEST_WAIT_S:g}, not {what!r}")
    return Line(verb, what)
