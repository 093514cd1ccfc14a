"""When which chunk is denoised: the chunk-wise pyramid (the paper, A.2) while states come as they come. No torch.

Time is counted in rounds, a forward pass each. A chunk starts `stride` rounds after the one before it, or as soon
after that as the states exist that it hears, and then goes down a step every round: chunks in flight never wait for
a late state, only chunks that have not begun do. So neighbours are never closer than `stride` steps, a chunk's level
follows from the round in which it started, and a record of the starts is a record of the whole schedule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from manifests.errors import UsageError
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS

START, LATE, DROP, STOP = "start", "late", "drop", "stop"
"""What a record tells: a chunk starts; it should have started, but its states are not there; chunks after this one
are dropped; no rounds from here on."""


MOST_STEPS = 1000
"""The noise schedule's own steps (the paper's T); more tell apart what is the same."""


@dataclass(frozen=True)
class Plan:
    """How a stream is denoised.

    steps: N, denoising steps a chunk. stride: rounds between the starts of neighbours, 1 (the paper's) to N (one
    after the other). ahead: chunks that may be finished and not yet shown; with so many the engine
    pauses, so it must be more than the decoder looks ahead (`inference.pictures`). grain:
    passes are padded to multiples of so many chunks, so that few shapes occur; 1 pads nothing. seed: of the noise.
    Raises UsageError for numbers out of range.
    """

    steps: int = 25
    stride: int = 1
    ahead: int = 16
    grain: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "stride", "ahead", "grain"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} must be a whole number from 1 on, not {value!r}")
        if self.steps > MOST_STEPS:
            raise UsageError(f"{self.steps} denoising steps are too many; choose 1 to {MOST_STEPS}")
        if self.stride > self.steps:
            raise UsageError(f"stride {self.stride} is more than the {self.steps} steps; choose 1 to {self.steps}")

    @property
    def flight(self) -> int:
        """Chunks in flight at most; one more takes part in a pass, to be committed."""
        return -(-self.steps // self.stride)

    @property
    def widths(self) -> tuple[int, ...]:
        """Chunks of a pass, padding included: every size that occurs, rising."""
        return (*range(self.grain, self.flight, self.grain), self.flight, self.flight + 1)

    def width(self, chunks: int) -> int:
        """The smallest of them that holds `chunks`."""
        return next(width for width in self.widths if width >= chunks)


@dataclass(frozen=True)
class Event:
    """A line of a record. round: the pass before which it happened, from 0. chunk: which. draw: at a start, how many
    interruptions came before, on which the chunk's noise depends."""

    round: int
    what: str
    chunk: int
    draw: int = 0


@dataclass(frozen=True)
class Pass:
    """A round about to run. first: its first chunk. left: steps left of each chunk of the pass, 0 for one that is
    only there to be committed. starts: its last chunk begins with it, from noise."""

    round: int
    first: int
    left: tuple[int, ...]
    starts: bool

    @property
    def commits(self) -> bool:
        """Whether the first chunk is finished, and there for its keys and values alone."""
        return self.left[0] == 0


@dataclass
class Pyramid:
    """Where a stream stands: a pure state machine, `begin` and `end` around each forward pass.

    next: the chunk that starts next; due: the round from which it may; left: steps left of each chunk in flight,
    oldest first; pending: the chunk before them is finished and waits for the next round to be committed; draw:
    interruptions so far; until: chunks from this one on never start, so none of them is late (None: the stream goes
    on); late: chunks that waited for their states.
    """

    plan: Plan
    record: Callable[[Event], None] = field(default=lambda event: None, repr=False)
    round: int = 0
    next: int = 0
    due: int = 0
    left: tuple[int, ...] = ()
    pending: bool = False
    draw: int = 0
    until: int | None = None
    late: int = 0
    told: int = -1  # the last chunk that was told to be late

    @property
    def finished(self) -> int:
        """The last finished chunk, -1 before any."""
        return self.next - len(self.left) - 1

    @property
    def finishes(self) -> bool:
        """Whether the next round, if there is one, finishes a chunk."""
        return self.plan.steps == 1 or (bool(self.left) and self.left[0] == 1)

    @property
    def may_start(self) -> bool:
        """Whether the next chunk is due, if its states are there."""
        return self.round >= self.due and (self.until is None or self.next < self.until)

    def begin(self, ready: int) -> Pass | None:
        """The next round, when chunks before `ready` have their states; None when there is nothing to denoise."""
        due = self.may_start
        starts = due and self.next < ready
        if due and not starts and self.told < self.next:
            self.late, self.told = self.late + 1, self.next
            self.record(Event(self.round, LATE, self.next))
        if not (starts or self.left):
            return None
        first = self.next - len(self.left) - self.pending
        if starts:
            self.record(Event(self.round, START, self.next, self.draw))
            self.left, self.next, self.due = (*self.left, self.plan.steps), self.next + 1, self.round + self.plan.stride
        return Pass(self.round, first, (0,) * self.pending + self.left, starts)

    def end(self) -> int | None:
        """The round has run: the chunk that it finished, if any."""
        self.round, self.pending = self.round + 1, self.left[0] == 1
        self.left = tuple(each - 1 for each in self.left[self.pending :])
        return self.finished if self.pending else None

    def drop(self, shown: int) -> None:
        """An interruption: everything after chunk `shown` is forgotten, and the next chunk may start at once. The
        stream goes on."""
        self.record(Event(self.round, DROP, shown))
        self.pending = self.pending and self.finished == shown
        self.next, self.due, self.left = shown + 1, self.round, ()
        self.draw, self.told, self.until = self.draw + 1, shown, None

    def stop(self) -> None:
        """Ends the record."""
        self.record(Event(self.round, STOP, self.finished))


def ready_chunks(segments: int) -> int:
    """How many chunks have all that they hear when segments 0 ... segments - 1 exist: 6.5 a segment."""
    return segments * SEGMENT_SPEECH_TOKENS // CHUNK_SPEECH_TOKENS


def segments_heard(chunks: int) -> int:
    """Segments that so many neighbouring chunks hear at most, wherever they lie."""
    spare = 2  # chunks begin at every second token of a segment: the last place from which a token is still inside
    return (chunks * CHUNK_SPEECH_TOKENS - 1 + SEGMENT_SPEECH_TOKENS - spare) // SEGMENT_SPEECH_TOKENS + 1


@dataclass(frozen=True)
class Row:
    """A round of a record. drops: the last chunks kept by interruptions right before it. left: {chunk: steps left
    before the round} of the chunks in flight; a chunk's level is left / steps. starts: {chunk: draw}. late: chunks
    that found no states. idle: no pass, only what happened after the last one."""

    round: int
    drops: tuple[int, ...]
    left: dict[int, int]
    starts: dict[int, int]
    late: tuple[int, ...]
    idle: bool = False


def rows(events: Iterable[Event], steps: int) -> Iterator[Row]:
    """A record, round by round, to its STOP, or without one until every chunk is finished."""
    by_round: dict[int, list[Event]] = {}
    for event in events:
        by_round.setdefault(event.round, []).append(event)
    left: dict[int, int] = {}
    round_, stopped = 0, False
    while not stopped and (left or any(at >= round_ for at in by_round)):
        drops, starts, late = [], {}, []
        for event in by_round.get(round_, ()):
            if event.what == DROP:
                drops.append(event.chunk)
                left = {chunk: step for chunk, step in left.items() if chunk <= event.chunk}
            elif event.what == START:
                starts[event.chunk], left[event.chunk] = event.draw, steps
            elif event.what == LATE:
                late.append(event.chunk)
            stopped = stopped or event.what == STOP
        stopped = stopped or not left
        yield Row(round_, tuple(drops), dict(left), starts, tuple(late), idle=stopped)
        left = {chunk: step - 1 for chunk, step in left.items() if step > 1}
        round_ += 1


def plan_line(plan: Plan) -> str:
    """The first line of a record, in JSON."""
    return json.dumps({"format": 1, **asdict(plan)})


def event_line(event: Event) -> str:
    """Any other line of a record."""
    return json.dumps([event.round, event.what, event.chunk, event.draw])


def from_lines(lines: Iterable[str]) -> tuple[Plan, list[Event]]:
    """A record of lines, such as an open file has. Raises UsageError for anything else."""
    try:
        first, *rest = [json.loads(line) for line in lines]
        facts: dict[str, Any] = dict(first)
        if facts.pop("format") != 1:
            raise ValueError("another format")
        return Plan(**facts), [Event(*each) for each in rest]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"this is no record of a schedule ({error}); give the file that a stream wrote") from None
