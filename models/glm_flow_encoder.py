"""The front of GLM-4-Voice's flow: tokens to states, states to mel frames.

The encoder is a transformer with relative positions (Dai et al. 2019, arXiv:1901.02860, section 3.3) whose
attention is whole inside a block and sees every block before. It runs block by block: over the cached keys and
values of those before, attention needs no mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from models.glm_flow_config import FlowConfig

Past = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values [heads, tokens, width / heads] of each layer."""


class RelativeAttention(nn.Module):
    """Self-attention of a block over itself and its past; scores know distances, never places."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(width, width) for _ in range(4))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))

    def forward(
        self, states: Tensor, distances: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[n, width], the codes [m + 2 n - 1, width] of the distances from m + n - 1 down to 1 - n, and the (keys,
        values) of the m tokens before -> [n, width], (keys, values) of all."""
        query, key, value = (self._heads(linear(states)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        if past is not None:
            key, value = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
        place = self._heads(self.linear_pos(distances))
        by_distance = (query + self.pos_bias_v[:, None]) @ place.transpose(1, 2)
        count = len(states)
        rows = torch.arange(count - 1, -1, -1, device=states.device)[:, None]
        columns = rows + torch.arange(key.shape[1], device=states.device)
        bias = by_distance.gather(2, columns.expand(self.heads, -1, -1)) / math.sqrt(query.shape[2])
        seen = scaled_dot_product_attention(query + self.pos_bias_u[:, None], key, value, attn_mask=bias)
        return self.linear_out(seen.transpose(0, 1).flatten(1)), (key, value)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(1, (self.heads, -1)).transpose(0, 1)


class EncoderLayer(nn.Module):
    """Attention and a feed-forward net, each behind a norm and beside a shortcut."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config.width, config.heads)
        self.feed_forward = nn.ModuleDict(
            {"w_1": nn.Linear(config.width, config.inner), "w_2": nn.Linear(config.inner, config.width)}
        )
        self.norm_ff, self.norm_mha = nn.LayerNorm(config.width), nn.LayerNorm(config.width)

    def forward(
        self, states: Tensor, distances: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `RelativeAttention.forward`."""
        seen, kept = self.self_attn(self.norm_mha(states), distances, past)
        states = states + seen
        inner = silu(self.feed_forward["w_1"](self.norm_ff(states)))
        return states + self.feed_forward["w_2"](inner), kept


class BlockEncoder(nn.Module):
    """Embedded tokens to states, a block at a time."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.width = config.width
        projection = nn.Sequential(nn.Linear(config.embedding, config.width), nn.LayerNorm(config.width))
        self.embed = nn.ModuleDict({"out": projection})
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.after_norm = nn.LayerNorm(config.width)

    def forward(self, embedded: Tensor, past: Past | None, limit: int | None) -> tuple[Tensor, Past]:
        """One block [n, embedding] and what the blocks before left -> [n, width] and the same for the next block,
        at most `limit` tokens of it."""
        states = self.embed["out"](embedded) * math.sqrt(self.width)
        before = past[0][0].shape[1] if past else 0
        distances = torch.arange(before + len(states) - 1, -len(states), -1, device=states.device)
        codes = place_codes(distances, self.width).to(states.dtype)
        kept = []
        for at, layer in enumerate(self.encoders):
            states, (key, value) = layer(states, codes, past[at] if past else None)
            first = max(0, key.shape[1] - limit) if limit is not None else 0
            kept.append((key[:, first:], value[:, first:]))
        return self.after_norm(states), tuple(kept)


def place_codes(distances: Tensor, width: int) -> Tensor:
    """[n] -> [n, width] float32, sines and cosines by turns."""
    rates = torch.exp(torch.arange(0, width, 2, device=distances.device) * (-math.log(10_000.0) / width))
    angles = distances[:, None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


class LengthRegulator(nn.Module):
    """Smooths states that were spread over the frames of their tokens. Its norms are over all frames at once."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        stages = [(nn.Conv1d(bins, bins, 3, padding=1), nn.GroupNorm(1, bins), nn.Mish()) for _ in range(4)]
        self.model = nn.Sequential(*(part for stage in stages for part in stage), nn.Conv1d(bins, bins, 1))

    def forward(self, spread: Tensor) -> Tensor:
        """[frames, bins] -> [bins, frames]."""
        found: Tensor = self.model(spread.T[None])[0]
        return found
