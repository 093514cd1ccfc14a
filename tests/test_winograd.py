"""Winograd's products are the convolution that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.winograd import Winograd, Workspace, matrices


@settings(max_examples=25)
@given(
    m=st.integers(1, 6), r=st.integers(1, 4), height=st.integers(4, 15), width=st.integers(4, 15),
    padding=st.integers(0, 2), count=st.integers(1, 3),
)  # fmt: skip
def test_winograd_is_a_convolution(m: int, r: int, height: int, width: int, padding: int, count: int):
    if m + r - 1 > 8:
        with pytest.raises(ValueError, match="points"):
            matrices(m, r)
        return
    if m + r < 3:
        return  # one product an output: nothing to transform
    draw = torch.Generator().manual_seed(m * 1000 + height * 16 + width)
    pictures = torch.randn(count, height, width, 3, generator=draw)
    kernel = torch.randn(5, 3, r, r, generator=draw, dtype=torch.float64)
    wanted = torch.nn.functional.conv2d(pictures.permute(0, 3, 1, 2).double(), kernel, padding=padding)
    found = Winograd(kernel, m)(pictures, padding, Workspace("cpu")).permute(0, 3, 1, 2)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4


def test_its_matrices_correlate() -> None:
    rng = np.random.default_rng(0)
    data, taps = rng.standard_normal(8), rng.standard_normal(3)
    a, g, b = matrices(6, 3)
    assert np.allclose(a @ ((g @ taps) * (b @ data)), np.correlate(data, taps, "valid"), atol=1e-12)


def test_a_workspace_gives_the_same_memory_again() -> None:
    space = Workspace("cpu")
    first = space.take("x", 4, 5)
    assert space.take("x", 3, 2).data_ptr() == first.data_ptr() and space.take("y", 3).data_ptr() != first.data_ptr()
    assert space.take("x", 50).shape == (50,)
