"""The order of training as properties: every sample once, the same batch at any number of ranks, equal steps."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import DatasetError, UsageError
from training.plan import Plan, Span, lanes_of

Sample = tuple[int, int, int]
"""(dataset, shard, place in it)"""
SIZES = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6).map(tuple), min_size=1, max_size=3)


@st.composite
def plans(draw: st.DrawFn, whole: bool = True) -> Plan:
    """Plans of a few shards; `whole`: every weight 1."""
    sizes = draw(SIZES.filter(lambda found: sum(map(sum, found)) > 0))
    weights = [1.0 if whole else draw(st.sampled_from([0.5, 1.0, 1.75, 2.0, 3.0])) for _ in sizes]
    batch, buffer, seed = draw(st.integers(1, 9)), draw(st.integers(1, 7)), draw(st.integers(0, 3))
    try:
        return Plan(tuple(sizes), tuple(weights), batch, buffer, seed)
    except DatasetError:
        return Plan(((1, 5),), (1.0,), batch, buffer, seed)


def samples_of(spans: list[Span]) -> list[Sample]:
    return [(span.dataset, span.shard, at) for span in spans for at in range(span.first, span.first + span.count)]


def length(sample: Sample) -> int:
    """Chunks that a sample is made to have."""
    return 5 + (sample[0] * 31 + sample[1] * 17 + sample[2] * 7) % 13


def slots(plan: Plan, epoch: int, step: int, lanes: range) -> list[Sample | None]:
    """What `lanes` give in a step, by the rule of the plan: the round, sorted by length, at the step's place."""
    number, at = plan.round_of(step)
    place = plan.ranks(epoch, number)[at]
    found: list[Sample | None] = []
    for lane in lanes:
        row = sorted(samples_of(plan.lane(epoch, lane, number * plan.buffer, plan.buffer)), key=length)
        found.append(row[place] if place < len(row) else None)
    return found


@given(plans(), st.integers(0, 2))
def test_every_sample_comes_exactly_once_an_epoch(plan: Plan, epoch: int) -> None:
    seen = Counter(
        sample for step in range(plan.steps) for sample in slots(plan, epoch, step, range(plan.lanes)) if sample
    )
    everything = {(d, s, n) for d, sizes in enumerate(plan.sizes) for s, size in enumerate(sizes) for n in range(size)}
    assert seen == Counter(everything)


@given(plans(whole=False), st.integers(1, 9), st.integers(0, 2))
def test_the_batch_of_a_step_does_not_depend_on_the_number_of_ranks(plan: Plan, world: int, epoch: int) -> None:
    world = min(world, plan.batch, plan.samples)
    ranks = [lanes_of(plan, rank, world) for rank in range(world)]
    assert [lane for lanes in ranks for lane in lanes] == list(range(plan.lanes))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    for step in range(plan.steps):
        together = [sample for lanes in ranks for sample in slots(plan, epoch, step, lanes)]
        assert together == slots(plan, epoch, step, range(plan.lanes))


@given(plans(whole=False))
def test_lanes_differ_by_one_sample_at_most_and_only_one_step_has_empty_slots(plan: Plan) -> None:
    lengths = [len(samples_of(plan.lane(0, lane))) for lane in range(plan.lanes)]
    assert sum(lengths) == plan.samples
    assert max(lengths) - min(lengths) <= 1 and max(lengths) == plan.steps
    short = [step for step in range(plan.steps) if None in slots(plan, 0, step, range(plan.lanes))]
    assert len(short) <= 1


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_every_rank_has_something_to_do_with_fewer_shards_than_ranks(samples: int, batch: int, world: int) -> None:
    plan = Plan(((samples,),), (1.0,), batch, 4)
    world = min(world, batch, samples)
    for rank in range(world):
        assert any(slot for step in range(plan.steps) for slot in slots(plan, 0, step, lanes_of(plan, rank, world)))


@given(plans(whole=False))
def test_a_weight_is_the_number_of_passes(plan: Plan) -> None:
    seen = Counter(sample for lane in range(plan.lanes) for sample in samples_of(plan.lane(0, lane)))
    for dataset, (sizes, weight) in enumerate(zip(plan.sizes, plan.weights, strict=True)):
        counts = Counter({key: count for key, count in seen.items() if key[0] == dataset})
        assert counts.total() == int(weight) * sum(sizes) + round(weight % 1 * sum(sizes))
        assert not counts or max(counts.values()) <= int(weight) + 1
        assert not counts or int(weight) == 0 or min(counts.values()) >= int(weight)


@given(plans(whole=False), st.integers(0, 2))
def test_passes_over_a_dataset_are_told_apart(plan: Plan, epoch: int) -> None:
    seen = Counter(
        (span.turn, sample)
        for lane in range(plan.lanes)
        for span in plan.lane(epoch, lane)
        for sample in samples_of([span])
    )
    assert max(seen.values()) == 1


@given(plans(), st.integers(0, 30), st.sampled_from([(2, 0), (0, 17)]))
def test_a_cursor_resumes_with_exactly_the_rest(plan: Plan, taken: int, end: tuple[int, int]) -> None:
    whole = list(plan.cursors((0, 0), *end))
    assert len(whole) == (end[1] or end[0] * plan.steps)
    assert all(0 <= step < plan.steps for _, step in whole)
    epoch, step = whole[min(taken, len(whole) - 1)]
    assert list(plan.cursors((epoch, step), *end)) == whole[min(taken, len(whole) - 1) :]
    assert list(plan.cursors((epoch, step + 1), *end)) == whole[min(taken, len(whole) - 1) + 1 :]


@given(plans(), st.integers(0, 2))
def test_a_part_of_a_lane_is_that_part_of_it(plan: Plan, epoch: int) -> None:
    for lane in range(plan.lanes):
        whole = samples_of(plan.lane(epoch, lane))
        for first in range(0, len(whole), 3):
            assert samples_of(plan.lane(epoch, lane, first, 2)) == whole[first : first + 2]


def test_batches_are_of_like_length() -> None:
    plan = Plan(((64,) * 8,), (1.0,), 8, 64)
    spread = [
        max(lengths) - min(lengths)
        for lengths in ([length(s) for s in slots(plan, 0, at, range(8)) if s] for at in range(plan.steps))
    ]
    unsorted = Plan(((64,) * 8,), (1.0,), 8, 1)
    chance = [
        max(lengths) - min(lengths)
        for lengths in ([length(s) for s in slots(unsorted, 0, at, range(8)) if s] for at in range(plan.steps))
    ]
    assert sum(spread) < sum(chance) / 5


def test_lengths_come_in_no_order_and_differently_in_every_round_and_epoch() -> None:
    plan = Plan(((512,),), (1.0,), 2, 64)
    orders = [plan.ranks(epoch, number) for epoch in range(2) for number in range(4)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    assert tuple(range(64)) not in map(tuple, orders)


def test_another_epoch_or_seed_is_another_order_and_the_same_is_the_same() -> None:
    def order(seed: int, epoch: int) -> list[Sample]:
        return samples_of(Plan(((7, 5, 9),), (1.0,), 1, 4, seed).lane(epoch, 0))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(3)}) == 6


def test_few_samples_mix_across_epochs() -> None:
    """One shard of eight: the batches of an epoch are not those of the epoch before."""
    plan = Plan(((8,),), (1.0,), 4, 1)
    batches = {frozenset(slots(plan, epoch, step, range(4))) for epoch in range(6) for step in range(plan.steps)}
    assert len(batches) > 6


def test_many_shards_are_read_whole() -> None:
    plan = Plan(((10,) * 64,), (1.0,), 4, 8)
    spans = [span for lane in range(4) for span in plan.lane(0, lane)]
    assert len(spans) == 64 and {span.count for span in spans} == {10}


def test_an_order_is_found_fast_at_the_papers_size() -> None:
    """2.78M samples in 5,430 shards, 512 lanes: a step's spans come without the samples being listed."""
    plan = Plan(((512,) * 5430,), (1.0,), 512, 64)
    assert plan.steps == 5430
    lane = plan.lane(2, 511, 5400, 64)
    assert sum(span.count for span in lane) == 30
    assert list(islice(plan.cursors((2, 5429), epochs=3), 3)) == [(2, 5429)]


@pytest.mark.parametrize(
    ("sizes", "weights", "error", "told"),
    [
        (((),), (1.0,), DatasetError, "no sample to train on"),
        (((0, 0),), (1.0,), DatasetError, "no sample to train on"),
        (((3,),), (0.1,), DatasetError, "raise the weight"),
        (((3,),), (0.0,), UsageError, "weight above 0"),
        (((3,),), (-1.0,), UsageError, "weight above 0"),
        (((3,),), (float("nan"),), UsageError, "weight above 0"),
    ],
)
def test_nothing_to_train_on_is_one_line(
    sizes: tuple[tuple[int, ...], ...], weights: tuple[float, ...], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as raised:
        Plan(sizes, weights, 2, 4)
    assert "\n" not in str(raised.value)


def test_fewer_samples_or_a_smaller_batch_than_ranks_is_one_line() -> None:
    with pytest.raises(DatasetError, match="3 samples an epoch are fewer than 4 ranks"):
        lanes_of(Plan(((2, 1),), (1.0,), 8, 4), 0, 4)
    with pytest.raises(UsageError, match="a batch of 2 samples a step is fewer than 4 ranks"):
        lanes_of(Plan(((9,),), (1.0,), 2, 4), 0, 4)
