"""Diffusion in pure functions: levels, velocity, DDIM, and the order in which chunks are denoised (the paper, 3.2, A.2).

A level is a number from 0, exactly clean, to 1, exactly noise (zero terminal SNR, arXiv:2305.08891: what training
ends at is what sampling begins with). In between, a quarter turn of a circle: alpha = cos, sigma = sin, so that
alpha^2 + sigma^2 = 1 and the velocity (v, arXiv:2202.00512) is the derivative along it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alpha_sigma(level: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of picture and noise at levels in [0, 1], in float32; exactly (1, 0) at 0 and (0, 1) at 1."""
    angle = level.double() * (math.pi / 2)
    one, zero = level >= 1, level <= 0
    alpha = angle.cos().masked_fill(one, 0).masked_fill(zero, 1)
    sigma = angle.sin().masked_fill(one, 1).masked_fill(zero, 0)
    return alpha.float(), sigma.float()


def _shares(level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of levels [B, C], shaped to multiply [B, C, ...]."""
    shape = (*level.shape, *[1] * (like.ndim - level.ndim))
    alpha, sigma = alpha_sigma(level)
    return alpha.view(shape), sigma.view(shape)


def noised(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """alpha clean + sigma noise; clean, noise [B, C, ...], level [B, C]."""
    alpha, sigma = _shares(level, clean)
    return alpha * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """The target v = alpha noise - sigma clean (equation 3 of the paper)."""
    alpha, sigma = _shares(level, clean)
    return alpha * noise - sigma * clean


def clean_of(noisy: Tensor, v: Tensor, level: Tensor) -> Tensor:
    """The picture that `v` means: alpha noisy - sigma v."""
    alpha, sigma = _shares(level, noisy)
    return alpha * noisy - sigma * v


def noise_of(noisy: Tensor, v: Tensor, level: Tensor) -> Tensor:
    """The noise that `v` means: sigma noisy + alpha v."""
    alpha, sigma = _shares(level, noisy)
    return sigma * noisy + alpha * v


def ddim_step(noisy: Tensor, v: Tensor, level: Tensor, lower: Tensor) -> Tensor:
    """From `level` to `lower` along the predicted v, without new noise (DDIM, arXiv:2010.02502, eta = 0).

    At lower 0 it is exactly the picture that v means.
    """
    return noised(clean_of(noisy, v, level), noise_of(noisy, v, level), lower)


def rounds(chunks: int, steps: int, stride: int) -> int:
    """Forward passes that `chunks` chunks take. Raises ValueError unless chunks >= 1 and 1 <= stride <= steps."""
    if not (chunks >= 1 and 1 <= stride <= steps):
        raise ValueError(f"{chunks} chunks, {steps} steps, stride {stride}: needs chunks >= 1, 1 <= stride <= steps")
    return stride * (chunks - 1) + steps


def schedule(chunks: int, steps: int, stride: int) -> Tensor:
    """[rounds + 1, chunks] int64, the chunk-wise pyramid (A.2): row r is the step of each chunk before round r, from
    `steps` (noise) down to 0 (clean); level = step / steps. Chunk c begins `stride` rounds after chunk c - 1.

    stride 1 is the paper's |c| + N - 1 rounds, stride `steps` the sequential |c| N.
    """
    begun = torch.arange(rounds(chunks, steps, stride) + 1)[:, None] - stride * torch.arange(chunks)[None]
    return steps - begun.clamp(0, steps)
