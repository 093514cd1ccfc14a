"""Diffusion's pure functions, and the pyramid's order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.diffusion import (
    alpha_sigma,
    clean_of,
    ddim_step,
    noise_of,
    noised,
    rounds,
    schedule,
    velocity,
)

LEVELS = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6)
PYRAMIDS = st.integers(1, 40).flatmap(
    lambda steps: st.tuples(st.integers(1, 60), st.just(steps), st.integers(1, steps))
)


def pair(levels: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """A picture and noise [2, C, 3, 2], and levels [2, C]."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, len(levels), 3, 2, generator=generator)
    return clean, noise, torch.tensor([levels, levels[::-1]])


def test_the_ends_are_exactly_picture_and_exactly_noise() -> None:
    clean, noise, _ = pair([0.0, 0.0])
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    assert torch.equal(noised(clean, noise, zero), clean)
    assert torch.equal(noised(clean, noise, one), noise)  # zero terminal SNR: nothing of the picture is left
    assert torch.equal(velocity(clean, noise, zero), noise)
    assert torch.equal(velocity(clean, noise, one), -clean)
    assert [x.tolist() for x in alpha_sigma(torch.tensor([0.0, 1.0]))] == [[1, 0], [0, 1]]


def test_a_picture_beyond_all_bounds_leaves_no_trace_in_pure_noise() -> None:
    clean, noise, _ = pair([1.0])
    assert torch.equal(noised(clean * 1e30, noise, torch.ones(2, 1)), noise)


@given(LEVELS)
def test_shares_lie_on_a_circle_and_the_picture_fades(levels: list[float]) -> None:
    alpha, sigma = alpha_sigma(torch.tensor(sorted(levels)))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(len(levels)), atol=3e-7, rtol=0)
    assert bool((alpha.diff() <= 0).all() and (sigma.diff() >= 0).all())
    assert alpha.dtype == sigma.dtype == torch.float32


@given(LEVELS)
def test_picture_and_noise_come_back_out_of_the_velocity(levels: list[float]) -> None:
    clean, noise, level = pair(levels)
    noisy, v = noised(clean, noise, level), velocity(clean, noise, level)
    torch.testing.assert_close(clean_of(noisy, v, level), clean, atol=2e-6, rtol=0)
    torch.testing.assert_close(noise_of(noisy, v, level), noise, atol=2e-6, rtol=0)


@given(st.floats(0.01, 0.99))
def test_the_velocity_is_the_slope_along_the_circle(level: float) -> None:
    clean, noise, at = pair([level])
    wide = 1e-3
    slope = (noised(clean, noise, at + wide) - noised(clean, noise, at - wide)) / (2 * wide * torch.pi / 2)
    torch.testing.assert_close(slope, velocity(clean, noise, at), atol=2e-3, rtol=0)


@given(LEVELS)
def test_a_step_to_zero_is_exactly_the_picture_that_v_means(levels: list[float]) -> None:
    noisy, v, level = pair(levels)  # any v, not a true one
    assert torch.equal(ddim_step(noisy, v, level, torch.zeros_like(level)), clean_of(noisy, v, level))


@given(LEVELS, st.floats(0, 1))
def test_a_step_to_the_same_level_changes_nothing(levels: list[float], scale: float) -> None:
    noisy, v, level = pair(levels)
    torch.testing.assert_close(ddim_step(noisy, scale * v, level, level), noisy, atol=2e-6, rtol=0)


@given(st.lists(st.floats(0, 1), min_size=0, max_size=8))
def test_along_a_true_v_any_steps_land_where_one_does(stops: list[float]) -> None:
    clean, noise, _ = pair([0.0, 0.0, 0.0])
    path, now = [1.0, *sorted(stops, reverse=True), 0.0], noise
    for high, low in pairwise(path):
        level, lower = torch.full((2, 3), high), torch.full((2, 3), low)
        now = ddim_step(now, velocity(clean, noise, level), level, lower)
        torch.testing.assert_close(now, noised(clean, noise, lower), atol=1e-5, rtol=0)
    torch.testing.assert_close(now, clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 100])
def test_a_perfect_model_lands_on_the_picture_from_any_number_of_steps(steps: int) -> None:
    """One that knows the picture and tells v from what it is given, as a model does."""
    clean, noise, _ = pair([0.0])
    now = noise
    for left in range(steps, 0, -1):
        level = torch.full((2, 1), left) / steps
        alpha, sigma = (share[..., None, None] for share in alpha_sigma(level))
        v = (alpha * now - clean) / sigma  # the v whose picture is `clean`
        now = ddim_step(now, v, level, torch.full((2, 1), left - 1) / steps)
    torch.testing.assert_close(now, clean, atol=1e-5, rtol=0)


@given(PYRAMIDS)
def test_the_pyramid(shape: tuple[int, int, int]) -> None:
    chunks, steps, stride = shape
    table = schedule(chunks, steps, stride)
    assert table.shape == (rounds(chunks, steps, stride) + 1, chunks)
    assert table[0].eq(steps).all() and table[-1].eq(0).all()
    fall = -table.diff(dim=0)
    assert set(fall.unique().tolist()) <= {0, 1}  # no level rises, none falls by more than a step
    for chunk in range(chunks):
        falls = fall[:, chunk].nonzero().flatten().tolist()
        assert falls == list(range(stride * chunk, stride * chunk + steps))  # once begun, a step every round
    assert (table[:, 1:] >= table[:, :-1]).all()  # an earlier chunk is never noisier than a later one
    assert fall.any(1).all()  # no round for nothing


@given(st.integers(1, 80), st.integers(1, 60))
def test_rounds_are_those_of_the_paper(chunks: int, steps: int) -> None:
    assert len(schedule(chunks, steps, 1)) - 1 == chunks + steps - 1
    assert len(schedule(chunks, steps, steps)) - 1 == chunks * steps


@pytest.mark.parametrize("shape", [(0, 25, 1), (3, 25, 0), (3, 25, 26), (3, 0, 0), (-1, 5, 1)])
def test_no_such_pyramid(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"needs chunks >= 1, 1 <= stride <= steps$"):
        schedule(*shape)
