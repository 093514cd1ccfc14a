"""The pyramid as a pure machine: what the matrix says, what late states do to it, and what a record tells."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.schedule import (
    DROP,
    LATE,
    START,
    STOP,
    Event,
    Plan,
    Pyramid,
    event_line,
    from_lines,
    plan_line,
    ready_chunks,
    rows,
    segments_heard,
)
from manifests.errors import UsageError
from models.clock import segments_of
from models.diffusion import rounds, schedule


def ran(plan: Plan, chunks: int, arrivals: dict[int, int] | None = None) -> tuple[Pyramid, list[Event], list[int]]:
    """A run to the end: the machine, its record, and the round in which each chunk was finished. arrivals: {round:
    chunks that have their states from then on}; all from the beginning by default."""
    events: list[Event] = []
    machine = Pyramid(plan, events.append)
    arrivals = arrivals or {0: chunks}
    finished: list[int] = []
    ready = 0
    while len(finished) < chunks:
        ready = max([ready, *(many for at, many in arrivals.items() if at <= machine.round)])
        machine.until = chunks if ready == chunks else None
        todo = machine.begin(ready)
        if todo is None:  # nothing in flight: no round passes until a state comes
            ready = min(many for many in arrivals.values() if many > ready)
            continue
        assert len(todo.left) <= plan.flight + 1 and list(todo.left) == sorted(todo.left)
        if machine.end() is not None:
            finished.append(todo.round)
    return machine, events, finished


@pytest.mark.parametrize(("chunks", "steps", "stride"), [(7, 5, 1), (7, 5, 2), (7, 5, 5), (4, 25, 3), (3, 1, 1)])
def test_with_all_states_in_time_it_is_the_matrix_of_the_paper(chunks: int, steps: int, stride: int) -> None:
    machine, events, finished = ran(Plan(steps, stride), chunks)
    wanted = schedule(chunks, steps, stride).tolist()
    assert machine.round == rounds(chunks, steps, stride) == stride * (chunks - 1) + steps
    assert machine.late == 0 and {event.what for event in events} == {START}
    assert finished == [stride * chunk + steps - 1 for chunk in range(chunks)]
    told = [row for row in rows(events, steps) if not row.idle]
    for before, row in zip(wanted, told, strict=False):
        started = [chunk for chunk in range(chunks) if row.round >= stride * chunk]
        assert row.left == {chunk: before[chunk] for chunk in started if before[chunk]}
    assert len(told) == len(wanted) - 1


def test_a_late_state_holds_up_new_chunks_and_none_in_flight() -> None:
    """4 steps, the states of chunks 2 and 3 come at round 4, those of chunk 4 when nothing is in flight any more."""
    machine, events, finished = ran(Plan(4), 5, {0: 2, 4: 4, 99: 5})
    assert [(event.round, event.what, event.chunk) for event in events] == [
        (0, START, 0),
        (1, START, 1),
        (2, LATE, 2),
        (4, START, 2),
        (5, START, 3),
        (6, LATE, 4),
        (9, START, 4),
    ]
    assert finished == [3, 4, 7, 8, 12]
    assert machine.late == 2
    told = list(rows(events, 4))
    assert [row.left for row in told[:6]] == [
        {0: 4},
        {0: 3, 1: 4},
        {0: 2, 1: 3},
        {0: 1, 1: 2},
        {1: 1, 2: 4},
        {2: 3, 3: 4},
    ]
    assert [row.late for row in told][2:7] == [(2,), (), (), (), (4,)]


def test_states_that_come_together_still_start_a_stride_apart() -> None:
    _, events, _ = ran(Plan(4, 2), 4, {0: 1, 3: 4})
    assert [event.round for event in events if event.what == START] == [0, 3, 5, 7]


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 9),
    stride=st.integers(1, 9),
    waits=st.lists(st.integers(0, 6), min_size=1, max_size=12),
)
def test_whenever_states_come_chunks_stay_in_order_and_a_stride_apart(
    steps: int, stride: int, waits: list[int]
) -> None:
    plan = Plan(steps, min(stride, steps))
    at = [sum(waits[: i + 1]) for i in range(len(waits))]
    machine, events, finished = ran(plan, len(waits), {when: i + 1 for i, when in enumerate(at)})
    starts = [event.round for event in events if event.what == START]
    assert finished == [start + steps - 1 for start in starts]
    assert all(later - sooner >= plan.stride for sooner, later in itertools.pairwise(starts))
    assert machine.late == len([event for event in events if event.what == LATE])
    if not machine.late:
        assert machine.round == rounds(len(waits), steps, plan.stride)
    told = {(row.round, chunk): left for row in rows(events, steps) for chunk, left in row.left.items()}
    assert told == {(start + i, chunk): steps - i for chunk, start in enumerate(starts) for i in range(steps)}


@pytest.mark.parametrize("ready", [1, 99])
def test_a_stream_that_ends_begins_nothing_after_that_and_waits_for_nothing(ready: int) -> None:
    events: list[Event] = []
    machine = Pyramid(Plan(2), events.append, until=1)
    for _ in range(2):
        todo = machine.begin(ready)
        assert todo is not None and len(todo.left) == 1
        machine.end()
    assert machine.begin(ready) is None and machine.late == 0
    assert [event.what for event in events] == [START]
    machine.drop(0)  # an interruption: the stream goes on
    assert machine.begin(1) is None and machine.late == 1


def test_an_interruption_forgets_what_was_not_shown() -> None:
    events: list[Event] = []
    machine = Pyramid(Plan(3, 2), events.append)
    for _ in range(8):
        machine.begin(99)
        machine.end()
    assert machine.finished == 2 and machine.left == (1,) and machine.pending is False
    machine.drop(1)
    assert machine.finished == 1 and machine.next == 2 and machine.left == () and machine.draw == 1
    todo = machine.begin(99)
    assert todo is not None and todo.left == (3,) and todo.first == 2 and todo.starts  # at once, whatever the stride
    assert events[-2:] == [Event(8, DROP, 1), Event(8, START, 2, draw=1)]


def test_an_interruption_keeps_a_finished_chunk_that_waits_to_be_committed_only_if_shown() -> None:
    for shown, commits in ((0, True), (-1, False)):
        machine = Pyramid(Plan(3))
        for _ in range(3):
            machine.begin(99)
            machine.end()
        assert machine.pending
        machine.drop(shown)
        todo = machine.begin(99)
        assert todo is not None and todo.commits == commits and todo.first == 0
        assert todo.left == ((0, 3) if commits else (3,))


def test_a_record_with_interruptions_reads_round_by_round() -> None:
    events = [Event(0, START, 0), Event(1, START, 1), Event(2, DROP, 0), Event(2, DROP, -1), Event(2, START, 0, 2)]
    events += [Event(4, STOP, -1)]
    told = list(rows(events, 3))
    assert [row.left for row in told] == [{0: 3}, {0: 2, 1: 3}, {0: 3}, {0: 2}, {0: 1}]
    assert told[2].drops == (0, -1) and told[2].starts == {0: 2}
    assert [row.idle for row in told] == [False] * 4 + [True]  # stopped with a chunk in flight


def test_a_record_is_lines_of_json_and_back() -> None:
    plan = Plan(7, 3, 5, 2, 11)
    _, events, _ = ran(plan, 4, {0: 1, 9: 4})
    file = io.StringIO("\n".join([plan_line(plan), *map(event_line, events)]))
    assert from_lines(file) == (plan, events)


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", '{"format": 2}', '{"format": 1, "steps": 0}', '{"format": 1}\n{}\n3']
)
def test_other_files_are_no_records(text: str) -> None:
    with pytest.raises(UsageError, match="no record|must be"):
        from_lines(text.splitlines())


def test_chunks_are_ready_with_the_last_segment_that_they_overlap() -> None:
    for segments in range(30):
        assert ready_chunks(segments) == sum(segments_of(chunk)[1] < segments for chunk in range(300))


def test_the_most_segments_that_neighbouring_chunks_hear() -> None:
    for chunks in range(1, 60):
        heard = [segments_of(first + chunks - 1)[1] - segments_of(first)[0] + 1 for first in range(26)]
        assert segments_heard(chunks) == max(heard)


def test_passes_have_few_widths() -> None:
    plan = Plan(25, 1, grain=4)
    assert plan.widths == (4, 8, 12, 16, 20, 24, 25, 26)
    assert [plan.width(chunks) for chunks in (1, 4, 5, 25, 26)] == [4, 4, 8, 25, 26]
    assert [Plan(25, 1).width(chunks) for chunks in range(1, 27)] == list(range(1, 27))
    assert Plan(25, 25, grain=4).widths == (1, 2)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"stride": 0}, {"stride": 26}, {"ahead": 0}, {"grain": 0}, {"steps": 2.5}, {"ahead": True}]
)
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Plan(**wrong)
