"""A stream without end: after 10,000 chunks an engine holds, does and computes what it did at the beginning."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from actors_made import GRID, PLACES, STATES, actor, portrait
from segments_made import run, segment, segments
from tensors_alive import alive

from inference.engine import Chunk, Engine
from inference.schedule import Plan, event_line, from_lines, plan_line, rows
from inference.segments import Segment
from inference.snapshot import PERIOD, PERIOD_SEGMENTS, Snapshot, load, moved, take
from models.actor import Actor
from models.sampler import chunk_noise

CHUNKS = 10_000
WARM = 1_000
SMALLEST: dict[str, Any] = {"layers": 1, "hidden": 16, "heads": 1, "kv_heads": 1, "intermediate": 16}
"""Ten thousand forward passes take a while even so."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """What the process holds: bytes of all tensors, resident bytes, objects that Python tracks."""

    tensors: int
    resident: int
    objects: int


def weighed() -> Weight:
    gc.collect()
    tensors = {each.data_ptr(): each.untyped_storage().nbytes() for each in alive()}
    return Weight(sum(tensors.values()), psutil.Process().memory_info().rss, len(gc.get_objects()))


class Long:
    """One run of 10,000 chunks, and what was seen on the way."""

    def __init__(self, folder: Path) -> None:
        self.made, self.plan = actor(**SMALLEST), Plan(2, ahead=3)
        self.forwards: list[int] = []
        hook = self.made.blocks[0].register_forward_hook(lambda _m, given, _o: self.forwards.append(given[0].shape[1]))
        self.weights: dict[int, Weight] = {}
        self.work: dict[int, tuple[int, int]] = {}
        self.record = folder / "record.jsonl"
        with self.record.open("w") as file:
            print(plan_line(self.plan), file=file)
            self.engine = Engine(self.made, portrait()[0], self.plan, record=lambda e: print(event_line(e), file=file))
            self.forwards.clear()  # of the reference
            self._to_the_end()
        self.engine.pyramid.record = lambda event: None
        hook.remove()

    def _to_the_end(self) -> None:
        engine, passes, places = self.engine, 0, 0
        while engine.pyramid.finished < CHUNKS - 1:
            if engine.wants:
                engine.hear(segment(engine.heard))
            ran, chunk = engine.advance()
            assert ran
            passes, places = passes + 1, places + self.forwards.pop()
            if chunk is None:
                continue
            engine.show(chunk.index)
            if (chunk.index + 1) % WARM == 0:
                self.weights[chunk.index + 1] = weighed()
                self.work[chunk.index + 1] = (passes, places)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Long:
    return Long(tmp_path_factory.mktemp("long"))


def test_memory_is_flat(long: Long) -> None:
    begin, end = long.weights[WARM], long.weights[CHUNKS]
    assert end.tensors < 1.01 * begin.tensors
    assert end.resident < 1.01 * begin.resident
    assert end.objects < 1.01 * begin.objects


def test_work_per_chunk_is_constant(long: Long) -> None:
    assert long.work[CHUNKS][0] == long.engine.passes == CHUNKS + long.plan.steps - 1  # |c| + N - 1
    assert long.engine.pyramid.late == 0
    each = [(passes / chunks, chunks) for chunks, (passes, _) in long.work.items()]
    assert [round(rate * chunks) for rate, chunks in each] == [chunks + long.plan.steps - 1 for _, chunks in each]
    places = [places for _, places in long.work.values()]
    steps = {later - sooner for sooner, later in itertools.pairwise(places)}
    assert steps == {WARM * PLACES * (long.plan.flight + 1)}


def test_the_record_tells_it_all(long: Long) -> None:
    with long.record.open() as file:
        plan, events = from_lines(file)
    assert plan == long.plan and len(events) == long.engine.pyramid.next
    last = [row.left for row in rows(events, plan.steps) if row.round in (5_000, 9_999)]
    assert last == [{4_999: 1, 5_000: 2}, {9_998: 1, 9_999: 2}]


def restarted(made: Actor, plan: Plan, snapshot: Snapshot, by: int, seed: int = 0) -> Engine:
    """An engine that knows nothing but the snapshot, `by` chunks later on the clock, with the noise of the first."""
    shape = tuple(portrait()[0].shape)
    noise = lambda chunk, draw: chunk_noise(seed, chunk - by, shape, torch.device("cpu"), draw)  # noqa: E731
    found = Engine(made, portrait()[0], plan, noise=noise)
    load(found, moved(snapshot, by, made.config))
    return found


def elsewhere(told: Segment, by: int) -> Segment:
    segments_, ticks = by // PERIOD * PERIOD_SEGMENTS, 4 * by
    return dataclasses.replace(told, index=told.index + segments_, ticks=told.ticks + ticks)


def goes_on(one: Engine, other: Engine, by: int, chunks: int = 20) -> float:
    """Both for `chunks` chunks with the same states; the largest difference."""
    found: list[list[Chunk]] = []
    for engine, at in ((one, 0), (other, by)):
        begin = engine.heard - at // PERIOD * PERIOD_SEGMENTS
        told = [elsewhere(segment(begin + i, seed=9), at) for i in range(1 + chunks * 4 // 26)]
        found.append(run(engine, told, rounds=chunks, close=False))
    assert len(found[0]) >= chunks - 2 and [c.index + by for c in found[0]] == [c.index for c in found[1]]
    return max((a.latents - b.latents).abs().max().item() for a, b in zip(*found, strict=True))


def test_chunk_10000_with_the_counter_restarted_is_computed_alike(long: Long) -> None:
    window = long.made.config.window
    by = -((CHUNKS - 2 * window) // PERIOD) * PERIOD
    early = restarted(long.made, long.plan, take(long.engine), by)
    assert early.pyramid.next < 2 * window + 2 + PERIOD
    assert goes_on(long.engine, early, by) < 1e-4


@pytest.mark.parametrize("changes", [{}, {"reference": "none"}, {"history": "teacher_forcing"}], ids=str)
def test_the_millionth_chunk_is_computed_as_the_fortieth(changes: dict[str, Any]) -> None:
    """Five days of video; several layers, a wide window, chunks in flight, one pending."""
    made, plan = actor(layers=3, window=7, **changes), Plan(4, ahead=2)
    engine = Engine(made, portrait()[0], plan)
    run(engine, segments(7), rounds=44, close=False)
    assert engine.pyramid.pending and engine.pyramid.left == (1, 2, 3)
    by = 10**6 // PERIOD * PERIOD
    assert goes_on(engine, restarted(made, plan, take(engine), by), by) < 1e-4


def test_keys_that_were_not_turned_would_show() -> None:
    made, plan = actor(window=7), Plan(4, ahead=2)
    engine = Engine(made, portrait()[0], plan)
    run(engine, segments(7), rounds=44, close=False)
    held, by = take(engine), 100 * PERIOD
    late = restarted(made, plan, held, by)
    load(late, dataclasses.replace(moved(held, by, made.config), keys=held.keys))
    assert goes_on(engine, late, by) > 1e-2


def test_a_snapshot_is_a_copy_and_needs_no_more_than_the_window() -> None:
    made = actor(window=5)
    engine = Engine(made, portrait()[0], Plan(3, ahead=6))
    run(engine, segments(5), rounds=30, close=False)
    held = take(engine)
    assert held.keys.shape[3] == len(held.chunk) == 5 - 1 + 6 and held.keys.shape[4] == GRID[0] * GRID[1]
    assert held.chunk.tolist() == list(range(held.chunk[0], held.chunk[0] + 10))
    small = restarted(made, Plan(3, ahead=1), held, 0)
    assert goes_on(engine, small, 0) < 1e-4
    assert held.segments[0].states.shape[1] == STATES
    again = restarted(made, Plan(3, ahead=6), held, 0)  # the first one went on; its snapshot did not
    assert again.pyramid.next == held.pyramid.next < engine.pyramid.next


@pytest.mark.parametrize("by", [1, -26, 12])
def test_only_whole_periods_beyond_the_window(by: int) -> None:
    made = actor(window=5)
    engine = Engine(made, portrait()[0], Plan(2))
    run(engine, segments(5), rounds=26, close=False)
    with pytest.raises(ValueError, match=f"moved by {by}"):
        moved(take(engine), by, made.config)
