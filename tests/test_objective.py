"""The loss: what chance gives a sample, what is counted, and that neither batch nor padding changes it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.actor import Actor, Speech
from models.actor_config import ActorConfig
from models.diffusion import noised, velocity
from training.objective import (
    LEVEL_BINS,
    POSITION_BINS,
    POSITION_CHUNKS,
    REFERENCES,
    Draw,
    Inputs,
    draw,
    elements,
    fixed_draw,
    inputs_of,
    loss_of,
    no_inputs,
)

SHAPE = (128, 2, 2)
CPU = torch.device("cpu")


def small(**changes: object) -> Actor:
    """An Actor whose output is no constant."""
    numbers: dict[str, object] = {
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "intermediate": 48,
        "states": 12,
    }
    actor = Actor(ActorConfig("tiny", **(numbers | {"window": 4} | changes)))  # type: ignore[arg-type]
    actor.init_weights(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in actor.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return actor


def stored(chunks: int, padded: int, seed: int = 0) -> tuple[Tensor, Tensor, Speech]:
    """(latents [1, 1 + padded, ...], references, speech) of a sample; beyond its chunks the latents are wild."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 1 + chunks, *SHAPE, generator=generator)
    beyond = torch.full((1, padded - chunks, *SHAPE), 60000.0)
    references = torch.randn(1, 4, *SHAPE, generator=generator)
    ticks = torch.arange(4 * chunks)[None]
    speech = Speech(torch.randn(1, 4 * chunks, 12, generator=generator), ticks // 26, ticks)
    return torch.cat((latents, beyond), 1).half(), references.half(), speech


def beside(*samples: tuple[Tensor, Tensor, Speech]) -> tuple[Tensor, Tensor, Speech]:
    """Samples of equally padded latents side by side, their speech padded too."""
    longest = max(s.states.shape[1] for _, _, s in samples)

    def wide(value: Tensor, fill: float) -> Tensor:
        extra = value.new_full((1, longest - value.shape[1], *value.shape[2:]), fill)
        return torch.cat((value, extra), 1)

    speech = Speech(
        torch.cat([wide(s.states, 0) for _, _, s in samples]),
        torch.cat([wide(s.segments, -1) for _, _, s in samples]),
        torch.cat([wide(s.ticks, 0) for _, _, s in samples]),
    )
    return torch.cat([one for one, _, _ in samples]), torch.cat([two for _, two, _ in samples]), speech


def test_chance_depends_on_seed_epoch_and_sample_alone() -> None:
    torch.manual_seed(1)
    first = draw(5, 2, "a", 9, SHAPE, 0.3)
    torch.manual_seed(2)
    torch.randn(3)
    again = draw(5, 2, "a", 9, SHAPE, 0.3)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.levels, again.levels)
    assert first.reference == again.reference
    for other in (draw(6, 2, "a", 9, SHAPE, 0.3), draw(5, 3, "a", 9, SHAPE, 0.3), draw(5, 2, "b", 9, SHAPE, 0.3)):
        assert not torch.equal(first.noise, other.noise) and not torch.equal(first.levels, other.levels)
    assert not torch.equal(first.noise[0], first.noise[1])


def test_chance_is_the_same_on_every_machine() -> None:
    """Noise that is keyed is part of what a run means; a change of it is a change of all runs. Values of torch 2.15's
    CPU generator."""
    found = draw(0, 0, "x", 2, (1, 1, 2), 0.0)
    assert found.reference == GOLDEN[0]
    assert found.levels.tolist() == pytest.approx(GOLDEN[1], abs=1e-4)


GOLDEN = (1, [0.4239, 0.5081])


def test_levels_are_even_and_some_chunks_are_clean() -> None:
    levels = torch.cat([draw(0, 0, str(at), 50, (1, 1, 1), 0.2).levels for at in range(200)])
    assert (levels == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    noisy = levels[levels > 0]
    assert noisy.max() <= 1 and noisy.min() > 0
    shares = torch.histc(noisy, 10, 0, 1) / len(noisy)
    assert (shares - 0.1).abs().max() < 0.02
    assert (draw(0, 0, "a", 500, (1, 1, 1), 0.0).levels > 0).all()


def test_any_latent_that_shows_the_person_may_be_the_reference() -> None:
    found = [draw(0, 0, str(at), 1, (1, 1, 1), 0.1) for at in range(200)]
    assert {each.reference for each in found} == set(range(REFERENCES))
    first = [draw(0, 0, str(at), 1, (1, 1, 1), 0.1, first=True) for at in range(200)]
    assert {each.reference for each in first} == {0}
    assert all(torch.equal(a.levels, b.levels) for a, b in zip(found, first, strict=True))


@pytest.mark.parametrize("chunks", [10, 37])
def test_validation_spreads_levels_evenly(chunks: int) -> None:
    found = fixed_draw(0, "a", chunks, (1, 1, 1))
    counts = torch.histc(found.levels, LEVEL_BINS, 0, 1)
    assert counts.max() - counts.min() <= 1
    assert found.levels.min() > 0 and found.levels.max() <= 1 and found.reference == 0
    assert torch.equal(found.levels, fixed_draw(0, "a", chunks, (1, 1, 1)).levels)


def test_the_loss_is_the_squared_error_of_the_velocity_of_what_is_counted() -> None:
    actor, (latents, references, speech) = small(), stored(5, 5)
    chance = draw(0, 0, "a", 5, SHAPE, 0.0)
    levels = chance.levels.clone()
    levels[2] = 0
    chance = Draw(levels, chance.noise, 3)
    loss = loss_of(actor, inputs_of(latents, references, [chance], speech, CPU))
    clean, noise = latents[:, 1:].float(), chance.noise[None]
    found = actor(noised(clean, noise, levels[None]), levels[None], references[:, 2].float(), speech)
    error = (found - velocity(clean, noise, levels[None])).square()[:, [0, 1, 3, 4]]
    assert loss.total.item() == pytest.approx(error.sum().item(), rel=1e-6)
    assert loss.count == error.numel() == elements([chance])
    assert loss.by_level[0].sum().item() == pytest.approx(loss.total.item(), rel=1e-6)
    assert loss.by_level[1].sum().item() == loss.by_position[1].sum().item() == loss.count
    for at in (0, 1, 3, 4):
        bin_ = math.ceil(levels[at].item() * LEVEL_BINS) - 1
        assert loss.by_level[1, bin_] >= 512


def test_the_loss_by_position_knows_where_chunks_are() -> None:
    actor, chunks = small(), POSITION_CHUNKS + 3
    latents, references, speech = stored(chunks, chunks)
    loss = loss_of(actor, inputs_of(latents, references, [draw(0, 0, "a", chunks, SHAPE, 0.0)], speech, CPU))
    assert loss.by_position[1].tolist() == [8 * 512.0, 3 * 512.0, *[0.0] * (POSITION_BINS - 2)]


@pytest.mark.parametrize("history", ["diffusion_forcing", "teacher_forcing"])
def test_neither_padding_nor_company_changes_a_samples_loss_or_gradient(history: str) -> None:
    actor = small(history=history)
    one, two = stored(3, 7, seed=1), stored(7, 7, seed=2)
    draws = [draw(0, 0, "a", 3, SHAPE, 0.2), draw(0, 0, "b", 7, SHAPE, 0.2)]

    def gradient(inputs: list[Inputs]) -> tuple[float, list[Tensor]]:
        actor.zero_grad()
        losses = [loss_of(actor, each) for each in inputs]
        total = torch.stack([each.total for each in losses]).sum() / sum(each.count for each in losses)
        total.backward()
        return total.item(), [value.grad.clone() for value in actor.parameters() if value.grad is not None]

    apart = gradient(
        [inputs_of(*each[:2], [chance], each[2], CPU) for each, chance in zip((one, two), draws, strict=True)]
    )
    both = beside(one, two)
    side_by_side = gradient([inputs_of(*both[:2], draws, both[2], CPU), no_inputs(SHAPE, 12, CPU)])
    assert side_by_side[0] == pytest.approx(apart[0], rel=1e-6)
    assert len(apart[1]) == len(list(actor.parameters()))
    for mine, theirs in zip(apart[1], side_by_side[1], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_nothing_to_learn_weighs_nothing_and_still_has_gradients() -> None:
    actor = small()
    loss = loss_of(actor, no_inputs(SHAPE, 12, CPU))
    loss.total.backward()
    assert (loss.total.item(), loss.count) == (0.0, 0)
    assert all(value.grad is not None and not value.grad.any() for value in actor.parameters())
    latents, references, speech = stored(4, 4)
    clean = Draw(torch.zeros(4), torch.randn(4, *SHAPE), 0)
    assert loss_of(actor, inputs_of(latents, references, [clean], speech, CPU)).total.item() == 0.0


def test_latent_0_is_a_reference_and_never_a_chunk() -> None:
    latents, references, speech = stored(3, 3)
    for number in range(REFERENCES):
        chance = draw(0, 0, "a", 3, SHAPE, 0.0)
        inputs = inputs_of(latents, references, [Draw(chance.levels, chance.noise, number)], speech, CPU)
        wanted = latents[0, 0] if number == 0 else references[0, number - 1]
        assert torch.equal(inputs.reference[0], wanted.float())
        assert torch.equal(inputs.clean, latents[:, 1:].float())


def test_teacher_forcing_is_given_the_clean_past() -> None:
    """A chunk's loss then does not depend on the noise of the chunks before it; under diffusion forcing it does."""
    latents, references, speech = stored(4, 4)
    chance = draw(0, 0, "a", 4, SHAPE, 0.0)
    other = chance.noise.clone()
    other[0] = -other[0]
    for history, same in (("teacher_forcing", True), ("diffusion_forcing", False)):
        actor = small(history=history)
        losses = []
        for noise in (chance.noise, other):
            levels = chance.levels.clone()
            inputs = inputs_of(latents, references, [Draw(levels, noise, 0)], speech, CPU)
            only_last = inputs.counted.clone()
            only_last[:, :3] = False
            one = Inputs(inputs.clean, inputs.noise, levels[None], inputs.reference, only_last, 512, speech)
            losses.append(loss_of(actor, one).total.item())
        assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) == same
