"""Diffusion forcing's loss (the paper, equation 3 and 3.2): every chunk at a level of its own, v predicted, summed.

Noise, levels and the reference are drawn by (seed, epoch, sample id) alone, on the CPU: which rank draws them, with
which samples beside and how much padding behind, changes no bit. Sums and counts stay apart, so that the caller can
divide by the count over all ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.actor import Actor, Speech
from models.diffusion import noised, velocity
from training.batch import sent

LEVEL_BINS = 10
"""Bins of (0, 1] in which the loss is watched."""
POSITION_CHUNKS, POSITION_BINS = 8, 24
"""Chunks a bin of the loss by position, and bins; the last takes all that is later than 60 s."""
REFERENCES = 5
"""Latents of a sample that may be its reference: latent 0 and four frames encoded alone."""


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance gives one sample. levels: [chunks] in [0, 1]; noise: [chunks, channels, h, w]; reference: 0 for
    latent 0, 1 ... 4 for a frame encoded alone."""

    levels: Tensor
    noise: Tensor
    reference: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """Samples side by side, on the device. clean, noise: [b, C, channels, h, w]; levels: [b, C]; reference: [b,
    channels, h, w], float32. counted: [b, C] bool, chunks in the loss: neither padding nor at level 0. count: numbers
    in the loss."""

    clean: Tensor
    noise: Tensor
    levels: Tensor
    reference: Tensor
    counted: Tensor
    count: int
    speech: Speech


@dataclass(frozen=True, eq=False)
class Loss:
    """Sums of squared errors over `count` numbers. total: the sum, with its graph. by_level [2, LEVEL_BINS],
    by_position [2, POSITION_BINS]: sums, then counts, without, float64."""

    total: Tensor
    count: int
    by_level: Tensor
    by_position: Tensor


def draw(
    seed: int, epoch: int, sample_id: str, chunks: int, shape: Sequence[int], clean_share: float, *, first: bool = False
) -> Draw:
    """Levels uniform in (0, 1], or 0 with probability `clean_share`; one reference of REFERENCES.

    shape: of a latent [channels, h, w]. first: always latent 0, which an Actor without a reference begins from; all
    else is drawn as ever.
    """
    chance = _generator(f"train {seed} {epoch} {sample_id}")
    reference = int(torch.randint(REFERENCES, (), generator=chance)) * (not first)
    levels = 1 - torch.rand(chunks, generator=chance)
    clean = torch.rand(chunks, generator=chance) < clean_share
    return Draw(levels.masked_fill(clean, 0), torch.randn(chunks, *shape, generator=chance), reference)


def fixed_draw(seed: int, sample_id: str, chunks: int, shape: Sequence[int]) -> Draw:
    """The same in every validation: each of LEVEL_BINS bins of levels as often as the next, by turns in a shuffled
    order; latent 0 as the reference."""
    chance = _generator(f"validate {seed} {sample_id}")
    rounds = -(-chunks // LEVEL_BINS)
    bins = torch.cat([torch.randperm(LEVEL_BINS, generator=chance) for _ in range(rounds)])[:chunks]
    levels = (bins + 1 - torch.rand(chunks, generator=chance)) / LEVEL_BINS
    return Draw(levels, torch.randn(chunks, *shape, generator=chance), 0)


def _generator(key: str) -> torch.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def inputs_of(
    latents: Tensor, references: Tensor, draws: Sequence[Draw], speech: Speech, device: torch.device
) -> Inputs:
    """Samples and their draws, padded to the longest.

    latents: [b, 1+C, channels, h, w], chunk c of sample i at [i, 1+c], anything behind the sample's last chunk; C may
    exceed the longest sample. references: [b, 4, channels, h, w].
    """
    longest = max((len(draw.levels) for draw in draws), default=0)
    clean = sent(latents[:, 1 : 1 + longest], device, torch.float32)
    noise, levels = torch.zeros(clean.shape), torch.zeros(clean.shape[:2])
    own = torch.zeros(clean.shape[:2], dtype=torch.bool)
    for at, chance in enumerate(draws):
        n = len(chance.levels)
        noise[at, :n], levels[at, :n], own[at, :n] = chance.noise, chance.levels, True
    choices = [latents[at, 0] if d.reference == 0 else references[at, d.reference - 1] for at, d in enumerate(draws)]
    reference = sent(torch.stack(choices), device, torch.float32)
    levels, noise, own = (sent(each, device) for each in (levels, noise, own))
    clean = clean.masked_fill(~own[:, :, None, None, None], 0)
    return Inputs(clean, noise, levels, reference, own & (levels > 0), elements(draws), speech)


def elements(draws: Sequence[Draw]) -> int:
    """Numbers in the loss of samples so drawn."""
    return sum(int((draw.levels > 0).sum()) * draw.noise[0].numel() for draw in draws if len(draw.levels))


def no_inputs(shape: Sequence[int], hidden: int, device: torch.device) -> Inputs:
    """A stand-in for no sample, of no weight: what a rank without one computes while the others wait for it."""
    zero = torch.zeros(1, 1, *shape, device=device)
    nothing = torch.zeros(1, 1, device=device)
    silence = Speech(nothing.new_zeros(1, 1, hidden), nothing.long() - 1, nothing)
    return Inputs(zero, zero, nothing, zero[:, 0], nothing.bool(), 0, silence)


def loss_of(actor: Actor, inputs: Inputs) -> Loss:
    """The Actor's error on `inputs`, in one forward pass."""
    noisy = noised(inputs.clean, inputs.noise, inputs.levels)
    teacher = actor.config.history == "teacher_forcing"
    found = actor(noisy, inputs.levels, inputs.reference, inputs.speech, inputs.clean if teacher else None)
    error = (found.float() - velocity(inputs.clean, inputs.noise, inputs.levels)).square().flatten(2).sum(-1)
    error = error.masked_fill(~inputs.counted, 0)
    with torch.no_grad():
        level_bin = (inputs.levels * LEVEL_BINS).ceil().long().clamp(1, LEVEL_BINS) - 1
        position = (torch.arange(error.shape[1], device=error.device) // POSITION_CHUNKS).clamp(max=POSITION_BINS - 1)
        size = inputs.clean[0, 0].numel()
        by_level = _binned(error, inputs.counted, level_bin, LEVEL_BINS, size)
        by_position = _binned(error, inputs.counted, position.expand_as(level_bin), POSITION_BINS, size)
    return Loss(error.sum(), inputs.count, by_level, by_position)


def _binned(error: Tensor, counted: Tensor, index: Tensor, bins: int, size: int) -> Tensor:
    """[2, bins] float64: sums of `error` by `index`, and how many numbers went into each."""
    found = torch.zeros(2, bins, dtype=torch.float64, device=error.device)
    found[0].index_add_(0, index.flatten(), error.flatten().double())
    found[1].index_add_(0, index.flatten(), counted.flatten().double() * size)
    return found
