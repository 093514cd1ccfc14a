"""The Thinker's process: a dialogue that is told what to do over a link, and gives its segments there.

`python -m inference.thinker_process FD PID` is started by `inference.remote` with one end of the link and its own
process id, and ends when the other end closes. Nothing heavy is imported before the dialogue is made.

It works a few segments ahead of what was taken, but never makes silence ahead: silence costs nothing, and a question
that comes meanwhile is answered where the other side stands. Of every segment that was not taken yet it remembers
where the dialogue stood, so that an interruption falls where the other side stands, too.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum
from math import inf
from typing import Any, Protocol

import numpy as np

from inference.link import TICK, Frame, Gone, Link, from_error, from_facts, from_segment, to_facts
from inference.segments import Segment
from manifests.errors import UsageError


class Told(IntEnum):
    """What the process is told. OPEN: facts and arrays of a `remote.Made`. TAKEN: one more segment was taken. WANT: a
    segment of silence. ASK (flag: text), SPEAK (flag: more pieces come, from source `number`): a turn, which is accepted
    or refused. PIECE (flag: there is one): as needed. INTERRUPT: begins `epoch`; from chunk `number` on where flag is set."""

    OPEN, TAKEN, WANT, ASK, SPEAK, PIECE, INTERRUPT = range(1, 8)


class Said(IntEnum):
    """What it says. READY: facts. ALIVE: a sign of life. SEGMENT (flag bit 1: idle after it). QUIET (flag: idle): it
    goes on when it is told to. NEED: the next piece from source `number`. ACCEPTED: as turn `number`. REFUSED, ERROR
    (flag: the last that it says): an error."""

    READY, ALIVE, SEGMENT, QUIET, NEED, ACCEPTED, REFUSED, ERROR = range(65, 73)


IDLE_AFTER = 2
"""Of a segment's flag."""


class Talking(Protocol):
    """What is served: see `inference.dialogue.Dialogue`."""

    @property
    def idle(self) -> bool: ...
    @property
    def quiet(self) -> bool: ...
    def ask(self, user: Any) -> int: ...
    def speak(self, speech: Any, text: Any = ()) -> int: ...
    def interrupt(self, chunk: int | None = None, since: Any = None) -> None: ...
    def step(self) -> Segment | None: ...
    def mark(self) -> Any: ...


def thinker_dialogue(
    silence: np.ndarray, *, name: str, device: str, dtype: str, sampling: dict[str, Any], **options: Any
) -> tuple[Talking, dict[str, Any]]:
    """A dialogue with the Thinker `name`, and who that is: {"identity", "hidden"}."""
    from inference.dialogue import Dialogue
    from inference.sampling import Sampling
    from models.thinker import load_thinker

    thinker = load_thinker(name, device, dtype)
    facts = {"identity": thinker.identity, "hidden": thinker.hidden}
    return Dialogue(thinker, silence, sampling=Sampling(**sampling), **options), facts


class _Interrupted(Exception):
    """An interruption came where a piece was waited for."""


class Serving:
    """Drives a dialogue. ahead: segments that may be made and not taken; alive: seconds between signs of life.

    made, taken: segments, of those that no interruption took back. epoch: interruptions.
    """

    def __init__(self, link: Link, dialogue: Talking, ahead: int, alive: float) -> None:
        self.link, self.dialogue, self.ahead, self.alive = link, dialogue, ahead, alive
        self.made = self.taken = self.epoch = 0
        self._marks: dict[int, Any] = {0: dialogue.mark()}
        self._told_quiet = False
        self._spoke = time.monotonic()
        self._interruption: Frame | None = None

    def run(self) -> None:
        """Serves until the link is closed: raises Gone then."""
        while True:
            works = not self.dialogue.quiet and self.made - self.taken < self.ahead
            if self.dialogue.quiet and not self._told_quiet:
                self._told_quiet = True
                self._say(Frame(Said.QUIET, flag=int(self.dialogue.idle)))
            frame, self._interruption = self._interruption or self.link.receive(0 if works else self.alive), None
            if frame is not None:
                self._obey(frame)
            elif works:
                self._step()

    def _say(self, frame: Frame) -> None:
        self.link.send(replace(frame, epoch=self.epoch))
        self._spoke = time.monotonic()

    def _step(self) -> None:
        self._told_quiet = False
        try:
            found = self.dialogue.step()
        except _Interrupted:
            return
        except UsageError as error:  # what it was given to say is wrong; it goes on, as a local dialogue would
            self._say(Frame(Said.ERROR, arrays=(from_error(error),)))
            return
        if found is not None:
            self.made += 1
            self._marks[self.made] = self.dialogue.mark()
            given = from_segment(found, Said.SEGMENT)
            self._say(replace(given, flag=given.flag | IDLE_AFTER * self.dialogue.idle))
        elif time.monotonic() - self._spoke > self.alive:
            self._say(Frame(Said.ALIVE))

    def _obey(self, frame: Frame) -> None:
        if frame.kind == Told.TAKEN:
            self._marks.pop(self.taken, None)
            self.taken += 1
        elif frame.kind == Told.WANT:
            made = self.made
            while self.made == made:
                self._step()
        elif frame.kind == Told.ASK:
            user = frame.arrays[0].tobytes().decode(errors="surrogatepass") if frame.flag else frame.arrays[0]
            self._answer(lambda: self.dialogue.ask(user))
        elif frame.kind == Told.SPEAK:
            speech, text = frame.arrays
            self._answer(
                lambda: self.dialogue.speak(self._pieces(frame.number, speech) if frame.flag else speech, text)
            )
        elif frame.kind == Told.INTERRUPT:
            self.epoch, self.made, self._told_quiet = frame.epoch, self.taken, False
            self.dialogue.interrupt(frame.number if frame.flag else None, self._marks[self.taken])
            self._marks = {self.taken: self.dialogue.mark()}

    def _answer(self, call: Callable[[], int]) -> None:
        try:
            said = Frame(Said.ACCEPTED, call())
            self._told_quiet = False
        except Exception as error:  # whatever it is, it is for who asked
            said = Frame(Said.REFUSED, arrays=(from_error(error),))
        self._say(said)

    def _pieces(self, source: int, first: np.ndarray) -> Iterator[np.ndarray]:
        """A turn's speech as the other side has it, each when it is needed."""
        yield first
        while True:
            self._say(Frame(Said.NEED, source))
            while (frame := self.link.receive(self.alive)) is None or frame.kind != Told.PIECE:
                if frame is not None and frame.kind == Told.INTERRUPT:
                    self._interruption = frame
                    raise _Interrupted
                if frame is not None:
                    self._obey(frame)
            if not frame.flag:
                return
            yield frame.arrays[0]


def serve(link: Link) -> None:
    """Makes the dialogue that it is told to, and serves it until the link is closed."""
    while (opening := link.receive(TICK)) is None:
        pass
    facts = to_facts(opening.arrays[0])
    module, _, name = facts["maker"].partition(":")
    arrays = dict(zip(facts["arrays"], opening.arrays[1:], strict=True))
    dialogue, known = getattr(importlib.import_module(module), name)(**arrays, **facts["facts"])
    serving = Serving(link, dialogue, facts["ahead"], facts["alive"])
    link.send(Frame(Said.READY, arrays=(from_facts(known),)))
    serving.run()


def main(fd: int, parent: int) -> None:
    """Never returns: the process ends with the link, or with its parent."""
    os.set_inheritable(fd, False)  # else a process that a compiler starts would keep the link open after our death
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side, which then closes the link
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def orphaned() -> None:
        if os.getppid() != parent:
            os._exit(0)

    link = Link(socket.socket(fileno=fd), inf, idle=orphaned, ended=lambda: os._exit(0))
    try:
        serve(link)
    except Gone:
        os._exit(0)
    except BaseException as error:
        link.send(Frame(Said.ERROR, flag=1, epoch=0, arrays=(from_error(error),)))
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
