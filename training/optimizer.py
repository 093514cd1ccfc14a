"""AdamW as the Actor is trained with: which weights decay, and how the learning rate goes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.parallel import local, whole
from training.recipe import Recipe

NEVER_DECAYED = ("level_mlp.", "reference_embedding")
"""Embeddings: of the noise level and of what the reference is."""


def adamw(actor: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW (the paper, 4.1), fused on CUDA. Matrices decay; norms, biases and embeddings do not."""
    decayed, others = list[Tensor](), list[Tensor]()
    for name, value in actor.named_parameters():
        (decayed if value.ndim > 1 and not name.startswith(NEVER_DECAYED) else others).append(value)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=device.type == "cuda" or None)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Of update `step`, from 1, of `steps`: rises linearly over the warm-up, stays, falls linearly in the cooldown
    (Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024)."""
    rise = step / recipe.warmup if recipe.warmup else 1.0
    falling = recipe.cooldown * steps
    fall = (steps + 1 - step) / falling if falling else 1.0
    return recipe.lr * max(0.0, min(1.0, rise, fall))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Of all gradients together, over all ranks; no number when one of them is none."""
    found = [value.grad for value in parameters if value.grad is not None]
    return whole(nn.utils.get_total_norm(found))


def clip(parameters: Iterable[Tensor], norm: Tensor, limit: float) -> None:
    """Scales gradients of total `norm` down to `limit` where they are above it."""
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    grads = [local(value.grad) for value in parameters if value.grad is not None]
    torch._foreach_mul_(grads, scale.to(grads[0].device))
