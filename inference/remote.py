"""A dialogue whose Thinker runs in a process of its own, on a device of its own, told and heard over a link.

The Thinker is the child and the Actor's side the parent: whoever asks, shows and writes the film sits here, and what
is in the other process can be made anew from a few facts.

Calls mean what they mean on a local `inference.dialogue.Dialogue` after as many segments were taken: the same
segments come of them, to the bit, though the Thinker was ahead meanwhile (states may differ by rounding where it
had dropped old turns and read the rest anew, ahead of an interruption).
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, Self

import numpy as np

from inference.child import Child
from inference.link import TICK, Frame, Gone, LinkError, from_facts, to_error, to_facts, to_segment
from inference.sampling import Sampling
from inference.segments import Segment
from inference.thinker_process import IDLE_AFTER, Said, Told
from inference.timeline import BACK
from manifests.errors import UsageError
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS

AHEAD = 2
"""Segments that may be made and not taken: one waits, one is being made."""
DEADLINE = 30.0
"""Seconds without a sign of life; every forward pass is one."""
LOADING = 900.0
"""Seconds that loading the Thinker may take."""


@dataclass(frozen=True, eq=False)
class Made:
    """What the child makes its dialogue of. maker: "module:function", called with `arrays` and `facts` (all that JSON
    can say), which gives the dialogue and what is to be known of it. where: its device, in messages."""

    maker: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    where: str = "cpu"


def thinker(
    name: str,
    silence: np.ndarray,
    *,
    device: str = "cpu",
    dtype: str = "",
    sampling: Sampling | None = None,
    **options: Any,
) -> Made:
    """A dialogue with the Thinker `name` on `device`. dtype: as `models.thinker.load_thinker`. The rest: as
    `inference.dialogue.Dialogue`."""
    given = {"name": name, "device": device, "dtype": dtype, "sampling": asdict(sampling or Sampling()), **options}
    return Made("inference.thinker_process:thinker_dialogue", given, {"silence": np.asarray(silence)}, device)


class RemoteDialogue:
    """Has the verbs of `inference.dialogue.Dialogue`. Its process is started at once and ends with `close`, with
    this object, or with our process, whatever kills that. One thread.

    ahead: segments that may be made and not taken. deadline: seconds without a sign of life while something is due;
    loading: seconds before it is ready. Every verb raises LinkError when the other side is late or dead, or what it
    died of: an error of the type that it had there, caused by a `link.RemoteTraceback`.

    link: for its figures, bytes sent and received. pid: of the child. taken: segments, those that came again
    included.
    """

    def __init__(self, made: Made, *, ahead: int = AHEAD, deadline: float = DEADLINE, loading: float = LOADING) -> None:
        if ahead < 1 or min(deadline, loading) <= 0:
            raise UsageError(
                f"the Thinker must be 1 segment ahead or more within more than 0 s, not {ahead}, {deadline:g}"
            )
        self.made, self.deadline, self.loading = made, deadline, loading
        self._child = Child("inference.thinker_process", deadline)
        self.link, self.pid = self._child.link, self._child.pid
        self.close = weakref.finalize(self, self._child.end)
        self.taken = self._epoch = self._given = 0
        self._coming: deque[Frame] = deque()
        self._known: dict[str, Any] | None = None
        self._reply: Frame | None = None
        self._failure: Exception | None = None
        self._quiet = self._idle = self._gone = False
        self._sources: dict[int, Iterator[np.ndarray]] = {}
        self._source = count()
        self._since = time.monotonic()
        facts = {"maker": made.maker, "facts": dict(made.facts), "arrays": list(made.arrays), "ahead": ahead}
        opening = from_facts({**facts, "alive": min(1.0, deadline / 4)})
        self._tell(Frame(Told.OPEN, arrays=(opening, *made.arrays.values())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it is told

    @property
    def known(self) -> dict[str, Any]:
        """What is to be known of the dialogue; of a Thinker {"identity", "hidden"}. Waits until it is ready."""
        self._wait(lambda: self._known is not None, "loading")
        return dict(self._known or {})

    def ask(self, user: str | Sequence[int] | np.ndarray) -> int:
        """As `Dialogue.ask`; waits until the forward pass that runs is done."""
        if isinstance(user, str):
            said = np.frombuffer(user.encode(errors="surrogatepass"), np.uint8)
            return self._accepted(Frame(Told.ASK, flag=1, arrays=(said,)))
        return self._accepted(Frame(Told.ASK, arrays=(_ids("speech", user),)))

    def speak(self, speech: np.ndarray | Iterable[np.ndarray], text: Sequence[int] | np.ndarray = ()) -> int:
        """As `Dialogue.speak`. Pieces that come one by one are taken inside of `step`, each when it is needed."""
        told = _ids("text", text)
        pieces = iter(() if isinstance(speech, np.ndarray) else speech)
        first = next((piece for piece in pieces if len(piece)), None)
        if first is None:
            whole = speech if isinstance(speech, np.ndarray) else ()
            return self._accepted(Frame(Told.SPEAK, arrays=(_ids("speech", whole), told)))
        source = next(self._source)
        number = self._accepted(Frame(Told.SPEAK, source, flag=1, arrays=(_ids("speech", first), told)))
        self._sources[source] = pieces
        return number

    def interrupt(self, chunk: int | None = None) -> None:
        """As `Dialogue.interrupt`, at once: what was made and not taken is dropped, and counts as never made."""
        self._check()
        if chunk is not None:
            tick = chunk * CHUNK_SPEECH_TOKENS
            if tick < max(0, self._given - BACK) * SEGMENT_SPEECH_TOKENS:
                raise ValueError(f"tick {tick} is more than {BACK} segments before segment {self._given}")
            self._given = min(self._given, tick // SEGMENT_SPEECH_TOKENS)
        self._epoch += 1
        self._coming = deque(frame for frame in self._coming if _last(frame))
        self._sources.clear()
        self._quiet = self._idle = False
        self._tell(Frame(Told.INTERRUPT, chunk or 0, int(chunk is not None), self._epoch))

    # What comes of it

    @property
    def idle(self) -> bool:
        """As `Dialogue.idle`; False as long as the other side has not said so."""
        self._drain()
        return self._idle and not any(frame.kind == Said.SEGMENT for frame in self._coming)

    @property
    def waiting(self) -> int:
        """Segments that have come and were not taken."""
        self._drain()
        return sum(frame.kind == Said.SEGMENT for frame in self._coming)

    def segments(self) -> Iterator[Segment]:
        """As `Dialogue.segments`; waits for each."""
        while True:
            found = self.step(TICK)
            if found is not None:
                yield found

    def step(self, wait: float = 0.0) -> Segment | None:
        """The next segment, if it has come or comes within `wait` seconds. None sooner when there is only silence
        to come: then it is the next call that asks for some."""
        self._check()
        end = time.monotonic() + wait
        self._drain()
        if self._quiet and not self._coming:
            self._quiet = self._idle = False
            self._tell(Frame(Told.WANT))
        while True:
            while not self._coming:
                left = end - time.monotonic()
                if not self._pump(min(max(0, left), TICK)):
                    self._check_other(f"segment {self._given}")
                    if left <= 0:
                        return None
            frame = self._coming.popleft()
            if frame.kind == Said.SEGMENT:
                return self._take(frame)
            if frame.kind == Said.QUIET:
                self._quiet, self._idle = True, bool(frame.flag)
                return None
            if frame.kind == Said.NEED:
                self._serve(frame.number)
            else:
                error = to_error(frame.arrays[0], self._name)
                raise self._failed(error) if _last(frame) else error

    def _take(self, frame: Frame) -> Segment:
        self._tell(Frame(Told.TAKEN))
        found = to_segment(frame)
        self.taken, self._given, self._idle = self.taken + 1, found.index + 1, bool(frame.flag & IDLE_AFTER)
        return found

    def _serve(self, source: int) -> None:
        """The next piece of a turn, from whoever has it."""
        piece = None
        try:
            piece = next(self._sources[source], None)
            said = None if piece is None else _ids("speech", piece)
        except BaseException:
            self._tell(Frame(Told.PIECE))
            raise
        if said is None:
            del self._sources[source]
        self._tell(Frame(Told.PIECE, flag=int(said is not None), arrays=() if said is None else (said,)))

    # The link

    @property
    def _name(self) -> str:
        return f"the Thinker's process ({self.made.where}, pid {self.pid})"

    def _accepted(self, frame: Frame) -> int:
        """Tells it, and waits for the answer. Raises what was raised there."""
        self._check()
        self._reply = None
        self._tell(frame)
        self._wait(lambda: self._reply is not None, "an answer")
        reply: Frame = self._reply  # type: ignore[assignment]
        if reply.kind == Said.REFUSED:
            raise to_error(reply.arrays[0], self._name)
        self._quiet = self._idle = False
        # what is on its way was said by one who did not know of this turn
        self._coming = deque(
            replace(frame, flag=frame.flag & ~IDLE_AFTER) if frame.kind == Said.SEGMENT else frame
            for frame in self._coming
            if frame.kind != Said.QUIET
        )
        return reply.number

    def _tell(self, frame: Frame) -> None:
        self._since = time.monotonic()
        try:
            self.link.send(frame)
        except Gone:
            pass  # what it said before is still to be heard; then `_pump` finds the end
        except LinkError as error:
            raise self._failed(LinkError(f"{self._name}: {error}; see what holds it up")) from None

    def _pump(self, timeout: float) -> bool:
        """Receives a frame, if there is one within `timeout` seconds."""
        try:
            frame = self.link.receive(timeout)
        except Gone:
            self._gone = True
            return False
        except LinkError as error:
            raise self._failed(error) from None
        if frame is None:
            return False
        if frame.kind == Said.READY:
            self._known = to_facts(frame.arrays[0])
        elif frame.kind in (Said.ACCEPTED, Said.REFUSED):
            self._reply = frame
        elif _last(frame) or (frame.epoch == self._epoch and frame.kind != Said.ALIVE):
            self._coming.append(frame)
        return True

    def _drain(self) -> None:
        while self._pump(0):
            pass

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        """Until `done`, which is due for `what`."""
        self._check()
        while not done():
            if not self._pump(TICK):
                self._check_other(what)

    # When it goes wrong

    def _check(self) -> None:
        if self._failure:
            raise self._failure
        if not self.close.alive:
            raise LinkError(f"{self._name} was closed; make another dialogue")

    def _check_other(self, what: str) -> None:
        """Raises LinkError when the other side is dead, or late with `what`."""
        if self._gone:
            last = next((frame for frame in self._coming if _last(frame)), None)
            raise self._failed(
                self._child.death(self._name, what) if last is None else to_error(last.arrays[0], self._name)
            )
        ready = self._known is not None
        limit = self.deadline if ready else self.loading
        if time.monotonic() - max(self._since, self.link.heard) <= limit or self._pump(TICK) or self._gone:
            return
        which = f"{what} was due" if ready else "it was loading"
        raise self._failed(
            LinkError(
                f"{self._name} has given no sign of life for {limit:g} s while {which}; see what holds it up, or give "
                f"it a longer {'deadline' if ready else 'time to load'}"
            )
        )

    def _failed(self, error: Exception) -> Exception:
        """Every verb raises it from now on."""
        self._failure = error
        return error


def _last(frame: Frame) -> bool:
    """Whether it tells what the other process died of."""
    return frame.kind == Said.ERROR and frame.flag == 1


def _ids(kind: str, values: Any) -> np.ndarray:
    """[n], as they are, so that the dialogue itself judges them. Raises UsageError for what cannot cross."""
    found = np.asarray(values)
    if found.ndim not in (1, 2) or found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
        raise UsageError(f"{kind} tokens must be [n] whole numbers, found {found.dtype} {list(found.shape)}")
    return found
