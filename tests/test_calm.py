"""The calmest motion: it has the coefficients, and nothing that has them is calmer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct

from models.calm import calmest

CHUNK = dct(np.eye(8), axis=0, norm="ortho")
NONE = CHUNK[:0, :0]


def unrest(signal: np.ndarray) -> float:
    return float(sum((np.diff(signal, n=order) ** 2).sum() for order in (1, 2)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0, 1, 8]), st.booleans(), st.integers(0, 2**16))
def test_nothing_with_these_coefficients_is_calmer(kept: int, before: int, after: bool, seed: int) -> None:
    rng, known = np.random.default_rng(seed), CHUNK[:kept]
    parts = [np.eye(before) if before < 8 else known, known, known if after else NONE]
    widths = [part.shape[1] for part in parts]
    lengths = [len(part) for part in parts]
    given_ = rng.standard_normal(sum(lengths))
    # the whole signal, each part as the middle one of a wider problem would give it
    rows = np.zeros((sum(lengths), sum(widths)))
    for part, top, left in zip(parts, np.cumsum([0, *lengths]), np.cumsum([0, *widths]), strict=False):
        rows[top : top + part.shape[0], left : left + part.shape[1]] = part
    middle = calmest(*(parts[at] for at in (1, 0, 2))) @ given_
    assert np.allclose(known @ middle, given_[lengths[0] : lengths[0] + kept], atol=1e-9)
    free = np.linalg.svd(rows)[2][len(rows) :]  # what the coefficients leave open
    some = np.linalg.lstsq(rows, given_, rcond=None)[0]
    steps = np.concatenate([np.diff(np.eye(rows.shape[1]), n=order, axis=0) for order in (1, 2)])
    best = some + free.T @ np.linalg.lstsq(steps @ free.T, -steps @ some, rcond=None)[0]
    assert np.allclose(middle, best[widths[0] : widths[0] + 8], atol=1e-7)
    assert unrest(best) <= unrest(some + free.T @ rng.standard_normal(len(free))) + 1e-9


@pytest.mark.parametrize("before", [NONE, np.eye(1), CHUNK[:2]])
def test_what_stands_still_stays(before: np.ndarray) -> None:
    known = CHUNK[:2]
    still = [part @ np.full(part.shape[1], 7.0) for part in (before, known, known)]
    assert np.allclose(calmest(known, before, known) @ np.concatenate(still), 7.0)


def test_a_line_through_three_averages_is_nearly_straight() -> None:
    line = np.arange(24.0)
    given_ = np.concatenate([CHUNK[:1] @ part for part in np.split(line, 3)])
    found = calmest(CHUNK[:1], CHUNK[:1], CHUNK[:1]) @ given_
    assert np.abs(found - line[8:16]).max() < 1  # of 3.5 that a step is away
    alone = calmest(CHUNK[:1], NONE, NONE) @ given_[1:2]
    assert np.allclose(alone, 11.5)  # by itself it is a step
