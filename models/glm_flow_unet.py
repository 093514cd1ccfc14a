"""The velocity of GLM-4-Voice's flow: Matcha-TTS's 1-D U-Net (Mehta et al. 2024, arXiv:2309.03199, section 3.2) as
CosyVoice widened it. Every stage is a residual block and transformer blocks that see all frames of the window."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, mish, scaled_dot_product_attention, silu

from models.glm_flow_config import GROUPS, FlowConfig

TIME_SCALE = 1000.0


class Block(nn.Module):
    """Convolution, norm over all frames, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.Mish())

    def forward(self, frames: Tensor) -> Tensor:
        """[batch, inputs, frames] -> [batch, outputs, frames]."""
        found: Tensor = self.block(frames)
        return found


class Residual(nn.Module):
    """Two blocks, the time added between them, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, outputs))
        self.block1, self.block2 = Block(inputs, outputs), Block(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, frames: Tensor, time: Tensor) -> Tensor:
        """[batch, inputs, frames], time [time] -> [batch, outputs, frames]."""
        inner = self.block1(frames) + self.mlp[1](mish(time))[:, None]
        found: Tensor = self.block2(inner) + self.res_conv(frames)
        return found


class Attention(nn.Module):
    """Self-attention over all frames."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, width)])

    def forward(self, states: Tensor) -> Tensor:
        """[batch, frames, width] -> the same."""
        parts = (linear(states).unflatten(2, (self.heads, -1)) for linear in (self.to_q, self.to_k, self.to_v))
        seen = scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        found: Tensor = self.to_out[0](seen.transpose(1, 2).flatten(2))
        return found


class Widening(nn.Module):
    """Four times the width, through GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, states: Tensor) -> Tensor:
        """[..., width] -> [..., 4 width]."""
        return gelu(self.proj(states))


class Transformer(nn.Module):
    """Attention and a feed-forward net, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_dim)
        net = [Widening(width), nn.Identity(), nn.Linear(4 * width, width)]
        self.ff = nn.ModuleDict({"net": nn.ModuleList(net)})

    def forward(self, states: Tensor) -> Tensor:
        """[batch, frames, width] -> the same."""
        states = states + self.attn1(self.norm1(states))
        inner = self.norm3(states)
        for layer in cast("nn.ModuleList", self.ff["net"]):
            inner = layer(inner)
        return states + inner


class Halving(nn.Module):
    """Every second frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """[batch, width, n] -> [batch, width, n / 2, rounded up]."""
        found: Tensor = self.conv(frames)
        return found


class Doubling(nn.Module):
    """Two frames for every one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """[batch, width, n] -> [batch, width, 2 n]."""
        found: Tensor = self.conv(frames)
        return found


class Stage(nn.ModuleList):
    """A residual block, transformer blocks, and mostly a convolution after them."""

    def __init__(self, config: FlowConfig, inputs: int, outputs: int, *after: nn.Module) -> None:
        deep = [Transformer(outputs, config.unet_heads, config.head_dim) for _ in range(config.depth)]
        super().__init__([Residual(inputs, outputs, 4 * config.channels[0]), nn.ModuleList(deep), *after])

    def forward(self, frames: Tensor, time: Tensor) -> Tensor:
        """[batch, inputs, n] -> [batch, outputs, n]; transformer blocks take frames for tokens."""
        states: Tensor = self[0](frames, time).transpose(1, 2)
        for block in cast("nn.ModuleList", self[1]):
            states = block(states)
        return states.transpose(1, 2)

    def after(self, frames: Tensor) -> Tensor:
        """The convolution."""
        found: Tensor = self[2](frames)
        return found


class Estimator(nn.Module):
    """The U-Net, by the official names."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.inputs, first, last = 4 * config.bins, config.channels[0], config.channels[-1]
        time, downs, ups = 4 * first, (self.inputs, *config.channels), (*config.channels[::-1], first)
        resizes = len(config.channels) - 1

        def same(width: int) -> nn.Module:
            return nn.Conv1d(width, width, 3, padding=1)

        self.time_mlp = nn.ModuleDict({"linear_1": nn.Linear(self.inputs, time), "linear_2": nn.Linear(time, time)})
        self.down_blocks = nn.ModuleList(
            Stage(config, before, width, (Halving if at < resizes else same)(width))
            for at, (before, width) in enumerate(pairwise(downs))
        )
        self.mid_blocks = nn.ModuleList(Stage(config, last, last) for _ in range(config.middle))
        self.up_blocks = nn.ModuleList(
            Stage(config, 2 * before, width, (Doubling if at < resizes else same)(width))
            for at, (before, width) in enumerate(pairwise(ups))
        )
        self.final_block = Block(first, first)
        self.final_proj = nn.Conv1d(first, config.bins, 1)

    def time_states(self, time: Tensor) -> Tensor:
        """[] in 0 ... 1 -> [4 channels], in the net's precision; the sines themselves need float32."""
        half = self.inputs // 2
        rates = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / (half - 1)))
        angles = TIME_SCALE * time.float() * rates
        codes = torch.cat([angles.sin(), angles.cos()]).to(self.final_proj.weight.dtype)
        found: Tensor = self.time_mlp["linear_2"](silu(self.time_mlp["linear_1"](codes)))
        return found

    def forward(self, inputs: Tensor, time: Tensor) -> Tensor:
        """[batch, 4 bins, frames] (noisy mel, states, speaker, known mel) at time [] -> velocity [batch, bins,
        frames]."""
        states, frames, skips = self.time_states(time), inputs, []
        for stage in cast("list[Stage]", self.down_blocks):
            frames = stage(frames, states)
            skips.append(frames)
            frames = stage.after(frames)
        for stage in cast("list[Stage]", self.mid_blocks):
            frames = stage(frames, states)
        for stage in cast("list[Stage]", self.up_blocks):
            skip = skips.pop()
            frames = stage.after(stage(torch.cat([frames[:, :, : skip.shape[2]], skip], 1), states))
        found: Tensor = self.final_proj(self.final_block(frames))
        return found
