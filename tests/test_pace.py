"""Which stride a machine can hold: a pure decision over measured rounds, and real rounds of a small Actor."""

from __future__ import annotations

import pytest
from actors_made import GRID, PLACES, actor, portrait

from inference.pace import TIMED, WARM_UPS, choose, measure, strides
from inference.schedule import Plan
from manifests.errors import UsageError
from models.clock import CHUNK_SECONDS


def test_only_strides_that_no_other_beats_are_looked_at() -> None:
    assert strides(25) == [1, 2, 3, 4, 5, 7, 9, 13, 25]
    assert strides(4) == [1, 2, 4]
    assert strides(1) == [1]


def machine(width: float, fixed: float, steps: int = 25) -> dict[int, float]:
    """Rounds that take `fixed` s and `width` s a chunk."""
    return {stride: fixed + width * (-(-steps // stride) + 1) for stride in strides(steps)}


def test_the_smallest_latency_that_holds_real_time() -> None:
    times = machine(0.003, 0.006)
    pace = choose(times, 25)
    fits = {stride: each for stride, each in times.items() if stride * each <= 0.8 * CHUNK_SECONDS}
    assert pace.holds and pace.stride == min(fits, key=lambda stride: fits[stride]) == 13
    assert pace.latency == 25 * times[13] and pace.load == pytest.approx(13 * times[13] / CHUNK_SECONDS)


def test_a_slower_machine_takes_a_smaller_stride_and_a_larger_latency() -> None:
    paces = [choose(machine(0.002 * slow, 0.005 * slow), 25) for slow in (1, 2, 3, 4)]
    assert [pace.stride for pace in paces] == sorted((pace.stride for pace in paces), reverse=True)
    assert paces[0].stride > paces[-1].stride >= 1 and all(pace.holds for pace in paces)
    assert sorted(pace.latency for pace in paces) == [pace.latency for pace in paces]


def test_a_machine_that_cannot_keep_up_is_told_so() -> None:
    pace = choose(machine(0.1, 0.01), 25)
    assert not pace.holds and pace.load > 1 and pace.stride == 1
    assert choose({1: 0.3, 2: 0.14}, 4).stride == 2  # the one of least load
    assert not choose({1: 0.27}, 4).holds and choose({1: 0.27}, 4, share=0.9).holds


def test_nothing_measured() -> None:
    with pytest.raises(UsageError, match="no stride"):
        choose({}, 25)


def test_what_is_measured_are_the_passes_of_a_stream_that_runs() -> None:
    made, plan = actor(), Plan(6, ahead=2)
    seen: list[tuple[int, int]] = []

    def noted(_module: object, given: tuple, _out: object) -> None:
        x, context = given[0], given[1]
        seen.append((x.shape[1] // PLACES, int(context.mask.allowed.any(0).sum()) // PLACES))

    made.blocks[0].register_forward_hook(noted)
    times = measure(made, portrait()[0], plan)
    assert list(times) == [1, 2, 3, 6] and all(each > 0 for each in times.values())
    widths = [width for width, _ in seen]
    each = WARM_UPS + TIMED
    assert widths == [w for flight in (6, 3, 2, 1) for w in [1, *[flight + 1] * each]]
    window = made.config.window
    assert {seen_ - width for width, seen_ in seen if width > 1} == {1 + window - 1}  # the reference and a whole window
    assert list(measure(made, portrait()[0], plan, [2])) == [2]
    assert portrait()[0].shape[1:] == GRID
