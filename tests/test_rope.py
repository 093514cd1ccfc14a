"""Rotary positions: GLM's pairs, three axes, hours."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.rope import AXES, Turn, rotate, turn, turn_3d

PAIRS, THETA = 8, 10000.0
HOURS = 10**9
"""Chunks: ten years."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(a: Tensor, b: Tensor, at: tuple[int, ...], to: tuple[int, ...]) -> Tensor:
    """[rows]: of vectors [rows, 2 PAIRS], a turned to place `at` and b to place `to`, on three axes."""
    q, k = (rotate(x[:, None], turn_3d(torch.tensor([place]), PAIRS, THETA)) for x, place in ((a, at), (b, to)))
    return (q * k).sum((-1, -2))


@pytest.mark.parametrize(("head_dim", "theta"), [(16, 10000.0), (128, 10000.0), (64, 500.0)])
def test_one_axis_is_what_transformers_glm_computes(head_dim: int, theta: float) -> None:
    glm = pytest.importorskip("transformers.models.glm.modeling_glm")
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
    settings = glm.GlmConfig(hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, rope_parameters=rope)
    positions = torch.tensor([[0, 1, 2, 7, 100, 4095]])
    q, k = random(1, 2, 6, head_dim), random(1, 1, 6, head_dim, seed=1)
    wanted = glm.apply_rotary_pos_emb(q, k, *glm.GlmRotaryEmbedding(settings)(q, positions))
    by = turn(positions[0], head_dim // 4, theta)
    for x, want in zip((q, k), wanted, strict=True):
        found = torch.cat((rotate(x[..., : head_dim // 2], by), x[..., head_dim // 2 :]), -1)
        torch.testing.assert_close(found, want, atol=2e-3, rtol=0)  # float32 angles at 4095 err by 2e-4 a radian
        torch.testing.assert_close(found[..., :4, :], want[..., :4, :], atol=2e-6, rtol=0)


@given(
    st.tuples(*[st.integers(-1, 300)] * 3),
    st.tuples(*[st.integers(-1, 300)] * 3),
    st.integers(0, 2),
    st.integers(-(10**6), HOURS),
)
def test_only_the_difference_of_places_counts_on_every_axis(
    at: tuple[int, ...], to: tuple[int, ...], axis: int, shift: int
) -> None:
    a, b = random(4, 2 * PAIRS), random(4, 2 * PAIRS, seed=1)
    moved = [tuple(x + shift * (i == axis) for i, x in enumerate(place)) for place in (at, to)]
    torch.testing.assert_close(product(a, b, *moved), product(a, b, at, to), atol=2e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_turns_pairs_of_its_own_and_no_other(axis: int) -> None:
    here = turn_3d(torch.tensor([[5, 3, 2]]), PAIRS, THETA)
    there = turn_3d(torch.tensor([[5 + (axis == 0), 3 + (axis == 1), 2 + (axis == 2)]]), PAIRS, THETA)
    turned = (here.cos != there.cos)[0] | (here.sin != there.sin)[0]
    assert turned.tolist() == [AXES[i % 4] == axis for i in range(PAIRS)]


def test_time_keeps_the_pairs_and_the_speeds_of_glm() -> None:
    places = torch.tensor([0, 1, 9, 400])
    line = turn(places, PAIRS, THETA)
    still = torch.zeros_like(places)
    video = turn_3d(torch.stack((places, still, still), -1), PAIRS, THETA)
    mine = [i for i in range(PAIRS) if AXES[i % 4] == 0]
    assert len(mine) == PAIRS // 2
    assert torch.equal(video.cos[:, mine], line.cos[:, mine])
    assert torch.equal(video.sin[:, mine], line.sin[:, mine])


@pytest.mark.parametrize("head_dim", [16, 24, 32, 40, 56, 64, 128])
def test_every_head_that_a_config_lets_through_tells_rows_and_columns(head_dim: int) -> None:
    """Rows and columns, equal in number, turn by the same speeds, the fastest a radian a step."""
    pairs = head_dim // 4
    angles = [turn_3d(torch.tensor([[i == axis for i in range(3)]]).long(), pairs, THETA) for axis in (1, 2)]
    speeds = [torch.atan2(by.sin, by.cos)[0] for by in angles]
    rows, columns = (speed[speed != 0] for speed in speeds)
    assert rows[0] == columns[0] == 1 and torch.equal(rows[: len(columns)], columns)
    assert (rows.diff() < 0).all() and rows[-1] > 0.01
    assert len(rows) - len(columns) in (0, 1)


@given(st.integers(0, HOURS), st.integers(0, 31))
def test_after_years_a_step_turns_as_far_as_at_the_start(start: int, step: int) -> None:
    """In float32 the angle of chunk 10^9 would be off by up to 32 radians."""
    a, b = random(4, 2 * PAIRS), random(4, 2 * PAIRS, seed=1)
    early = product(a, b, (step, 1, 2), (0, 0, 0))
    late = product(a, b, (start + step, 1, 2), (start, 0, 0))
    torch.testing.assert_close(late, early, atol=2e-5, rtol=0)


def test_angles_are_those_of_exact_arithmetic() -> None:
    """Integers reduced with 60 digits of 2 pi; the first pair turns one radian a position."""
    two_pi = 6283185307179586476925286766559005768394338798750211641949889
    position = HOURS + 7
    exact = position * 10**60 % two_pi / 10**60
    found = turn(torch.tensor([position]), PAIRS, THETA)
    assert found.cos[0, 0].item() == pytest.approx(math.cos(exact), abs=3e-7)
    assert found.sin[0, 0].item() == pytest.approx(math.sin(exact), abs=3e-7)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_turning_keeps_type_and_length(kind: torch.dtype) -> None:
    x = random(2, 3, 5, 2 * PAIRS).to(kind)
    found = rotate(x, turn(torch.arange(5), PAIRS, THETA))
    assert found.dtype == kind and found.shape == x.shape
    torch.testing.assert_close(found.float().norm(dim=-1), x.float().norm(dim=-1), rtol=2e-2, atol=0)
    assert torch.equal(found[..., 0, :], x[..., 0, :])
    assert not torch.equal(found[..., 1, :], x[..., 1, :])


def test_turns_are_kept_in_float32_whatever_the_positions() -> None:
    for positions in (torch.arange(3), torch.arange(3).float(), torch.arange(3).double()):
        found: Turn = turn(positions, PAIRS, THETA)
        assert found.cos.dtype == found.sin.dtype == torch.float32
        assert torch.equal(found.cos, turn(torch.arange(3), PAIRS, THETA).cos)
