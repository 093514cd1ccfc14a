"""The Actor's side of a stream: it equals its own offline replay, stalls, pauses, and lets itself be interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from actors_made import CHANNELS, GRID, PLACES, STATES, WINDOW, actor, latents, levels, portrait
from segments_made import run, segment, segments, speech_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inference.engine import Chunk, Engine
from inference.replay import Replay
from inference.schedule import DROP, LATE, START, Event, Plan, event_line, from_lines, plan_line, segments_heard
from models.actor import Actor
from models.attention import EMPTY
from models.diffusion import rounds
from models.sampler import chunk_noise, rollout

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "teacher forcing": {"history": "teacher_forcing"},
    "no reference": {"reference": "none"},
    "token causal": {"attention": "token_causal"},
}
EXACT: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}


def engine(plan: Plan, made: Actor | None = None, record: Callable[[Event], None] | None = None) -> Engine:
    return Engine(made or actor(), portrait()[0], plan, record=record)


def agree(found: list[Chunk], wanted: list[Chunk]) -> None:
    assert [(chunk.index, chunk.draw) for chunk in found] == [(chunk.index, chunk.draw) for chunk in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.latents, theirs.latents, **EXACT)


# streamed equals offline


@pytest.mark.parametrize(
    ("name", "steps", "stride", "grain"),
    [*((name, 4, 1, 1) for name in VARIANTS), ("full", 5, 2, 3), ("full", 3, 3, 1), ("full", 1, 1, 1)],
)
def test_a_stream_equals_the_replay_of_its_record(name: str, steps: int, stride: int, grain: int) -> None:
    made, told = actor(**VARIANTS[name]), segments(2)
    events: list[Event] = []
    streaming = engine(Plan(steps, stride, grain=grain), made, events.append)
    found = run(streaming, told)
    assert len(found) == 13 > WINDOW + steps and streaming.pyramid.late == 0
    assert streaming.passes == rounds(13, steps, stride)
    plan, read = from_lines([plan_line(streaming.plan), *map(event_line, events)])
    agree(found, list(Replay(made, portrait()[0], plan, [told]).chunks(read)))
    assert torch.stack([chunk.latents for chunk in found]).std() > 0.3


def test_a_replay_is_the_actors_own_forward_pass_over_all_chunks() -> None:
    for name, changes in VARIANTS.items():
        made, told, clean = actor(**changes), segments(2), 6
        replay = Replay(made, portrait()[0], Plan(), [told])
        noisy, level = latents(11), levels(1, 11).index_fill(1, torch.arange(clean), 0)
        found = replay.velocity(noisy[0], level[0], [0] * 11, clean)
        given = {"clean": noisy} if made.rule.teacher else {}
        wanted = made(noisy, level, portrait(), speech_of(told), **given)[0]
        # under teacher forcing a chunk in flight has no clean twin yet, so the next sees less than in training
        count = clean + 1 if made.rule.teacher else 11
        start = clean if made.rule.teacher else 0
        torch.testing.assert_close(found[start:count], wanted[start:count], **EXACT, msg=name)


def test_it_is_the_rollout_that_training_looks_at() -> None:
    made, told = actor(), segments(2)
    found = run(engine(Plan(4, 2, seed=7), made), told)
    wanted = list(rollout(made, portrait(), speech_of(told), 13, steps=4, stride=2, seed=7))
    torch.testing.assert_close(torch.stack([chunk.latents for chunk in found]), torch.cat(wanted), **EXACT)


@pytest.mark.parametrize("stride", [1, 2])
def test_with_stalls_it_still_equals_its_replay(stride: int) -> None:
    """A segment comes while chunks are in flight, another when none is any more."""
    made, told = actor(), segments(4)
    events: list[Event] = []
    streaming = engine(Plan(4, stride), made, events.append)
    found = run(streaming, told[:1], rounds=6 * stride + 1, close=False)
    assert streaming.late and streaming.pyramid.left  # chunk 6 waits, others go on
    found += run(streaming, told[1:3], close=False)
    assert streaming.late and not streaming.pyramid.left and len(found) == 19
    passes = streaming.passes
    assert streaming.advance() == (False, None) and streaming.passes == passes
    found += run(streaming, told[3:])
    assert len(found) == 26
    assert [event.chunk for event in events if event.what == LATE] == [6, 19]
    assert streaming.pyramid.late == 2 and streaming.passes > rounds(26, 4, stride)
    agree(found, list(Replay(made, portrait()[0], streaming.plan, [told]).chunks(events)))


def test_when_states_come_late_the_same_chunks_are_seen_at_other_levels() -> None:
    made, told = actor(), segments(2)
    smooth = run(engine(Plan(4), made), told)
    stalled = engine(Plan(4), made)
    late = run(stalled, told[:1], close=False) + run(stalled, told[1:])
    for chunk in range(3):  # finished before the stall could show
        torch.testing.assert_close(late[chunk].latents, smooth[chunk].latents, **EXACT)
    assert (late[-1].latents - smooth[-1].latents).abs().max() > 1e-2


# what it takes and what it holds


def test_every_chunk_hears_its_states_and_only_held_ones() -> None:
    streaming, told = engine(Plan(5)), segments(9)
    limit = segments_heard(5 + 2)
    taken = 0
    while len(run(streaming, [], rounds=1, close=False)) or taken < len(told):
        while taken < len(told) and streaming.wants:
            streaming.hear(told[taken])
            taken += 1
        assert len(streaming.segments) <= limit
        assert streaming.speech.states.shape == (1, limit * 39, STATES)
    assert taken == 9


def test_the_engine_pauses_when_too_many_chunks_are_unshown() -> None:
    made, told, plan = actor(), segments(5), Plan(4, ahead=3)
    wanted = run(engine(plan, made), told)
    streaming, taken, shown = engine(plan, made), 0, -1
    found: list[Chunk] = []
    while len(found) < len(wanted):
        while taken < 5 and streaming.wants:
            streaming.hear(told[taken])
            taken += 1
        ran, chunk = streaming.advance()
        if chunk is not None:
            found.append(chunk)
        if not ran:
            assert streaming.full and len(found) - 1 - shown == 3
            shown += 2
            streaming.show(shown)
    agree(found, wanted)  # a pause is no stall: no round passes, nothing changes
    assert streaming.passes == rounds(len(wanted), 4, 1)


def test_segments_come_in_order_and_of_one_thinker() -> None:
    streaming = engine(Plan(2))
    with pytest.raises(ValueError, match="segment 1 came where segment 0"):
        streaming.hear(segment(1))
    with pytest.raises(ValueError, match="hears 20"):
        streaming.hear(segment(0, states=8))
    with pytest.raises(ValueError, match="came early"):
        for told in segments(9):
            streaming.hear(told)
    with pytest.raises(ValueError, match="the last finished is -1"):
        streaming.show(0)


def test_padding_and_place_of_computation_change_nothing() -> None:
    """Passes padded to few widths, and a portrait in half precision."""
    made, told = actor(), segments(2)
    wanted, padded = (run(engine(Plan(6, grain=grain), made), told) for grain in (1, 4))
    agree(padded, wanted)
    widths: set[int] = set()
    streaming = engine(Plan(6, grain=4), made)
    made.blocks[0].register_forward_hook(lambda _m, given, _out: widths.add(given[0].shape[1] // PLACES))
    run(streaming, told)
    assert widths == {4, 6, 7}


def test_bfloat16_weights_stream_too() -> None:
    made, told = actor(), segments(2)
    wanted = torch.stack([chunk.latents for chunk in run(engine(Plan(3), made), told)])
    found = torch.stack([chunk.latents for chunk in run(engine(Plan(3), made.bfloat16()), told)])
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_a_stream_that_ends_denoises_nothing_after_its_end() -> None:
    """Eight of the thirteen chunks whose states are there."""
    made, told = actor(), segments(2)
    streaming = engine(Plan(3), made)
    for each in told:
        streaming.hear(each)
    streaming.close(8)
    found = run(streaming, [], close=False)
    assert [chunk.index for chunk in found] == list(range(8)) and streaming.pyramid.late == 0 and not streaming.late
    assert streaming.passes == 8 + 3 - 1
    # each chunk in three passes, and once more to be committed, but for the last, after which none comes
    assert streaming.rows == (8 * 3 + 7) * PLACES
    agree(found, run(engine(Plan(3), made), told)[:8])
    streaming.interrupt(7)
    assert [chunk.index for chunk in run(streaming, segments(1, first=1))] == [8, 9, 10, 11, 12]


class Crossings(TorchDispatchMode):
    """Operations that make a tensor of the host's numbers, or give them back: each has the host wait for a GPU."""

    KINDS = ("lift_fresh", "_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found += [name] if name in self.KINDS else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_round_of_a_stream_that_runs_never_has_the_host_wait(stride: int) -> None:
    streaming, told = engine(Plan(4, stride)), segments(6)
    run(streaming, told[:4], rounds=18 * stride, close=False)
    with Crossings() as crossings:
        (torch.tensor([1]) + 1).item()
        seen = len(crossings.found)
        ran = [streaming.advance()[0] for _ in range(2 * stride)]
    assert all(ran) and seen == 2 and crossings.found[seen:] == []


# interruptions


def test_after_an_interruption_it_equals_the_replay_of_its_record() -> None:
    """Twice, in the middle of a segment: once with finished chunks unshown, once with the shown one uncommitted."""
    made, plan = actor(), Plan(4, ahead=5)
    events: list[Event] = []
    streaming = engine(plan, made, events.append)
    before = segments(4)
    found = run(streaming, before, rounds=18, close=False)
    assert [chunk.index for chunk in found][-1] == 14
    streaming.shown = 9
    assert streaming.interrupt(10) == 1  # chunk 11 lies in segment 1
    after = segments(3, first=1, seed=1)
    assert streaming.late and streaming.advance() == (False, None)  # nothing old is heard by new chunks
    found += run(streaming, after, rounds=7, close=False)
    assert streaming.pyramid.pending and found[-1].index == 14
    assert streaming.interrupt(14) == 2  # 15 begins at token 60 of 52 to 77
    last = segments(3, first=2, seed=2)
    found += run(streaming, last)
    assert [chunk.index for chunk in found] == [*range(15), *range(11, 15), *range(15, 32)]
    assert [chunk.draw for chunk in found] == [0] * 15 + [1] * 4 + [2] * 17
    replay = Replay(made, portrait()[0], plan, [before, after, last])
    agree(found, list(replay.chunks(events)))
    assert [event.chunk for event in events if event.what == DROP] == [10, 14]
    with pytest.raises(AssertionError):  # what was said counts: other states, other chunks
        agree(found, list(Replay(made, portrait()[0], plan, [before, after, segments(3, first=2)]).chunks(events)))


@pytest.mark.parametrize("ahead", [1, 3, 7])
def test_after_the_longest_way_back_a_whole_window_is_there(ahead: int) -> None:
    streaming, told = engine(Plan(3, ahead=ahead)), segments(4)
    run(streaming, told, rounds=15, close=False)
    shown = streaming.shown
    while not streaming.full:
        if streaming.late:
            streaming.hear(told[streaming.heard])
        streaming.advance()
    assert streaming.pyramid.finished - shown == ahead
    streaming.interrupt(shown)
    held = sorted(streaming.ring.chunk[streaming.ring.chunk < EMPTY].tolist())
    pending = [shown] if streaming.pyramid.pending else []
    kept = held[1:] + pending
    assert kept[-(WINDOW - 1) :] == list(range(shown - WINDOW + 2, shown + 1))


def test_the_history_goes_on_and_what_was_dropped_leaves_no_trace() -> None:
    """An engine that made chunks 6, 7, 8 and dropped them goes on as one that had only begun chunk 6."""
    made, plan, told = actor(), Plan(3, 3, ahead=5), segments(2)
    went, stood = engine(plan, made), engine(plan, made)
    run(went, told, rounds=3 * 9, close=False)
    run(stood, told, rounds=3 * 6 + 1, close=False)
    assert went.pyramid.finished == 8 and stood.pyramid.finished == 5
    went.shown = 5
    found = []
    for streaming in (went, stood):
        assert streaming.interrupt(5) == 0
        found.append(run(streaming, segments(2, seed=4)))
    assert len(found[0]) == 7
    agree(*found)


def test_a_chunk_made_again_begins_from_other_noise() -> None:
    made, told = actor(), segments(2)
    starts: list[tuple[tuple[int, int], Tensor]] = []
    streaming = Engine(made, portrait()[0], Plan(2, seed=3), noise=lambda c, d: noted(starts, c, d))
    run(streaming, told, rounds=4, close=False)
    streaming.interrupt(streaming.shown)
    run(streaming, told[: 2 - streaming.heard], rounds=2, close=False)
    assert [at for at, _ in starts] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 1)]
    drawn = dict(starts)
    assert not torch.equal(drawn[3, 0], drawn[3, 1])
    assert abs(torch.corrcoef(torch.stack((drawn[3, 0].flatten(), drawn[3, 1].flatten())))[0, 1]) < 0.5


def noted(into: list[tuple[tuple[int, int], Tensor]], chunk: int, draw: int) -> Tensor:
    made = chunk_noise(3, chunk, (CHANNELS, *GRID), torch.device("cpu"), draw)
    into.append(((chunk, draw), made))
    return made


def test_noise_is_of_seed_chunk_and_draw() -> None:
    shape = (128, 8, 8)
    keys = [(seed, chunk, draw) for seed in (0, 1) for chunk in (0, 1, 100_000) for draw in (0, 1, 2)]
    drawn = [chunk_noise(seed, chunk, shape, torch.device("cpu"), draw) for seed, chunk, draw in keys]
    alike = torch.corrcoef(torch.stack([each.flatten() for each in drawn])) - torch.eye(len(keys))
    assert alike.abs().max() < 0.06
    assert torch.equal(chunk_noise(1, 0, shape, torch.device("cpu"), 2), drawn[keys.index((1, 0, 2))])


@pytest.mark.parametrize("shown", [-2, 0, 9])
def test_an_interruption_goes_back_to_what_was_shown_and_no_further(shown: int) -> None:
    streaming = engine(Plan(2))
    run(streaming, segments(1), rounds=5, close=False)
    assert streaming.shown == streaming.pyramid.finished == 3
    with pytest.raises(ValueError, match=f"go back to chunk {shown}"):
        streaming.interrupt(shown)


def test_an_interruption_before_anything_was_shown_begins_anew() -> None:
    events: list[Event] = []
    streaming = engine(Plan(3), record=events.append)
    for told in segments(2):
        streaming.hear(told)
    for _ in range(4):
        streaming.advance()
    assert streaming.interrupt(-1) == 0
    found = run(streaming, segments(1, seed=5))
    assert [(chunk.index, chunk.draw) for chunk in found] == [(i, 1) for i in range(6)]
    agree(
        found,
        list(Replay(streaming.actor, portrait()[0], streaming.plan, [segments(2), segments(1, seed=5)]).chunks(events))[
            2:
        ],
    )
    assert [event.chunk for event in events if event.what == START] == [0, 1, 2, 3, *range(6)]
