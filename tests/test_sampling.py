"""Drawing tokens: temperature, best k, nucleus, seeds, values out of range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.sampling import SHORTLIST, Sampling, dice, drawn, picked
from manifests.errors import ModelError, UsageError

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.02, 0.3, 0.18]))


def frequencies(logits: torch.Tensor, sampling: Sampling, draws: int = 4000) -> np.ndarray:
    """How often each token comes when `number` runs evenly over 0 ... 1."""
    tokens = [drawn(logits, sampling, (at + 0.5) / draws) for at in range(draws)]
    return np.bincount(tokens, minlength=len(logits)) / draws


class TestDrawn:
    def test_everything_comes_as_often_as_it_is_probable(self) -> None:
        found = frequencies(LOGITS, Sampling(temperature=1, top_p=1))
        np.testing.assert_allclose(found, [0.1, 0.4, 0.02, 0.3, 0.18], atol=1e-3)

    def test_temperature_sharpens_or_flattens(self) -> None:
        for temperature in (0.5, 2.0):
            wanted = LOGITS.exp() ** (1 / temperature)
            found = frequencies(LOGITS, Sampling(temperature, top_p=1))
            np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-3)

    def test_the_nucleus_is_the_fewest_that_reach_the_probability(self) -> None:
        for top_p, kept in ((0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.75, [1, 3, 4]), (0.9, [1, 3, 4, 0])):
            found = frequencies(LOGITS, Sampling(1, top_p), 500)
            assert np.flatnonzero(found).tolist() == sorted(kept)
        np.testing.assert_allclose(frequencies(LOGITS, Sampling(1, 0.69))[[1, 3]], [4 / 7, 3 / 7], atol=1e-3)

    def test_the_best_k_are_taken_before_the_nucleus(self) -> None:
        assert np.flatnonzero(frequencies(LOGITS, Sampling(1, 1, top_k=2), 500)).tolist() == [1, 3]
        # of the best two, the first has 4/7, so half of the probability is its own
        assert np.flatnonzero(frequencies(LOGITS, Sampling(1, 0.5, top_k=2), 500)).tolist() == [1]
        assert np.flatnonzero(frequencies(LOGITS, Sampling(1, 1, top_k=99), 500)).tolist() == [0, 1, 2, 3, 4]

    @given(st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
    def test_without_temperature_the_best_comes(self, seed: int, number: float) -> None:
        logits = torch.from_numpy(np.random.default_rng(seed).standard_normal(50))
        assert drawn(logits, Sampling(0), number) == int(logits.argmax())

    @pytest.mark.parametrize("top_k", [0, 5, 1500])
    @pytest.mark.parametrize("top_p", [0.05, 0.8, 1.0])
    def test_the_shortlist_changes_nothing(self, top_p: float, top_k: int) -> None:
        """Against sorting everything, on flat logits, whose nucleus does not fit in the list, and on steep ones."""
        for steep in (0.01, 4.0):
            logits = torch.from_numpy(np.random.default_rng(3).standard_normal(3 * SHORTLIST)) * steep
            order = logits.argsort(descending=True)[: top_k or None].numpy()
            chances = logits.softmax(0).numpy()[order]
            chances = chances / chances.sum()
            kept = int(np.searchsorted(chances.cumsum(), top_p)) + 1
            for number in (0.0, 0.3, 0.77, 1 - 2**-53):
                reached = chances[:kept].cumsum()
                wanted = order[min(np.searchsorted(reached, number * reached[-1], side="right"), len(reached) - 1)]
                assert drawn(logits, Sampling(1, top_p, top_k), number) == wanted

    def test_what_may_not_come_never_does(self) -> None:
        logits = LOGITS.clone()
        logits[[1, 3]] = -torch.inf
        for number in (0.0, 0.5, 1 - 2**-53):
            assert drawn(logits, Sampling(5, 1), number) in (0, 2, 4)

    @pytest.mark.parametrize("fill", [torch.nan, -torch.inf])
    def test_no_numbers_are_one_line(self, fill: float) -> None:
        with pytest.raises(ModelError, match="gives no numbers for what comes next; fetch"):
            drawn(torch.full((9,), fill), Sampling(), 0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(any), st.floats(0.01, 1), st.floats(0, 1, exclude_max=True))  # fmt: skip
def test_only_what_is_possible_is_picked(weights: list[float], top_p: float, number: float) -> None:
    chances = np.sort(weights)[::-1] / np.sum(weights)
    assert chances[picked(chances, top_p, number)] > 0


class TestDice:
    def test_seed_and_turn_decide(self) -> None:
        rows = [dice(seed, turn).random(4).tolist() for seed in (0, 1) for turn in (0, 1)]
        assert rows == [dice(seed, turn).random(4).tolist() for seed in (0, 1) for turn in (0, 1)]
        assert len({tuple(row) for row in rows}) == 4

    def test_the_worlds_generators_are_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        drawn(LOGITS, Sampling(), dice(0, 0).random())
        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1, not 1.01"),
        ({"top_k": -1}, r"top_k must be 0 \(all\) or more, not -1"),
    ],
)
def test_values_out_of_range_are_one_line(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**values)  # type: ignore[arg-type]


def test_a_seed_below_zero_is_one_line() -> None:
    with pytest.raises(UsageError, match="the seed must be 0 or more, not -1"):
        dice(-1, 0)
