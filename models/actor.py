"""The Actor: a video transformer that denoises chunks while it listens to the Thinker's states (the paper, section 3).

A block is GLM-4-Voice's with a cross-attention after the self-attention, whose output projection starts at zero: at
first, video ignores speech. Sequences are [reference | clean history under teacher forcing | chunks], a latent
pixel a token. The reference is seen at a clamped distance: chunk c sees it min(c + 1, window) chunks away, in
training as in a stream, by a second rotation of the query alone; so its keys never change and no distance leaves the
trained range. Both rotations stand side by side in a widened head, and one softmax serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.actor_config import ActorConfig
from models.actor_init import initialised
from models.attention import (
    HISTORY,
    REFERENCE,
    REFERENCE_CHUNK,
    VIDEO,
    Dense,
    Roles,
    Rule,
    attend,
    block_mask,
    dense_mask,
    guarded,
    roles,
)
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS, segments_of
from models.rope import Turn, rotate, turn, turn_3d

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEVEL_WAVES = 128
"""Sine waves, and as many cosines, that a noise level is shown as."""
LEVEL_SCALE = 1000.0
HEARD = 2 * (SEGMENT_SPEECH_TOKENS + SEGMENT_TEXT_TOKENS)
"""States that a chunk hears at most: those of two whole segments."""


@dataclass(frozen=True, eq=False)
class Speech:
    """What a batch hears. states: [B, S, H]; segments: [B, S] int64, rising, -1 for padding at the end; ticks:
    [B, S], when each state is, in speech tokens (0.08 s) from the beginning."""

    states: Tensor
    segments: Tensor
    ticks: Tensor


@dataclass(frozen=True, eq=False)
class Context:
    """What every block of a forward pass shares. turned: of the tokens as they lie in time [n, pairs]; clamped: of
    queries as they look at the reference, None where all are near enough that it is the same; heard: states [B, S, H] after their norm; index: [B, C, HEARD] which of
    them each chunk hears; hears: mask of those; chunk_turn, state_turn: of the cross-attention."""

    mask: Any
    reference: Tensor
    turned: Turn
    clamped: Turn | None
    heard: Tensor
    index: Tensor
    hears: Dense
    chunk_turn: Turn
    state_turn: Turn


class SelfAttention(nn.Module):
    """GLM's: grouped keys and values, biases on q, k and v."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        inner, groups = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, inner)
        self.k_proj = nn.Linear(config.hidden, groups)
        self.v_proj = nn.Linear(config.hidden, groups)
        self.o_proj = nn.Linear(inner, config.hidden, bias=False)

    def forward(self, x: Tensor, context: Context, store: Store | None = None) -> Tensor:
        """x [B, n, hidden]. store: takes keys and values of these tokens, gives those of all that may be seen."""
        config = self.config
        q, k, v = (_heads(proj(x), config.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = wide_queries(q, context, config.rotary), wide_keys(k, context, config.rotary)
        if store is not None:
            k, v = store(k, v)
        found = attend(q, k, v, context.mask, config.head_dim**-0.5)
        return self.o_proj(found.transpose(1, 2).flatten(2))


Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, n, heads * head_dim] -> [B, heads, n, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def wide_queries(q: Tensor, context: Context, rotary: int) -> Tensor:
    """[..., n, d] -> [..., n, d + rotary]: the turned part as video keys see it, as reference keys see it, the rest.
    Where nothing is clamped both are one, and heads stay as wide as they are."""
    if context.clamped is None:
        return _rotated(q, context.turned, rotary)
    moving = q[..., :rotary]
    return torch.cat((rotate(moving, context.turned), rotate(moving, context.clamped), q[..., rotary:]), -1)


def wide_keys(k: Tensor, context: Context, rotary: int) -> Tensor:
    """[..., n, d] -> [..., n, d + rotary]: zeros where the other kind of key has its turned part."""
    if context.clamped is None:
        return _rotated(k, context.turned, rotary)
    moving = rotate(k[..., :rotary], context.turned)
    reference = context.reference[:, None]
    return torch.cat((moving.masked_fill(reference, 0), moving.masked_fill(~reference, 0), k[..., rotary:]), -1)


class CrossAttention(nn.Module):
    """The tokens of a chunk to the Thinker's states of every segment that the chunk overlaps."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        inner, groups = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, inner)
        self.k_proj = nn.Linear(config.states, groups)
        self.v_proj = nn.Linear(config.states, groups)
        self.o_proj = nn.Linear(inner, config.hidden, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, C, places, hidden], chunk by chunk; the same shape comes back."""
        config, (batch, chunks) = self.config, x.shape[:2]
        q = _heads(self.q_proj(x).flatten(0, 1), config.head_dim)
        k, v = (_heads(proj(context.heard), config.head_dim) for proj in (self.k_proj, self.v_proj))
        k = _rotated(k, context.state_turn, config.rotary)
        by = Turn(*(each.repeat(batch, 1)[:, None, None] for each in (context.chunk_turn.cos, context.chunk_turn.sin)))
        q = _rotated(q, by, config.rotary)
        k, v = (_gathered(each, context.index) for each in (k, v))
        grouped = q.unflatten(1, (config.kv_heads, -1)).flatten(2, 3)  # all queries of a chunk hear the same
        found = attend(grouped, k, v, context.hears, config.head_dim**-0.5).reshape(q.shape)
        return self.o_proj(found.transpose(1, 2).flatten(2)).unflatten(0, (batch, chunks))


def _rotated(x: Tensor, by: Turn, rotary: int) -> Tensor:
    return torch.cat((rotate(x[..., :rotary], by), x[..., rotary:]), -1)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """x [B, groups, S, d], index [B, C, K] -> [B C, groups, K, d]."""
    batch, chunks, heard = index.shape
    where = index.view(batch, 1, chunks * heard, 1).expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, where).unflatten(2, (chunks, heard)).transpose(1, 2).flatten(0, 1)


class Mlp(nn.Module):
    """SwiGLU, gate and up in one matrix, as in GLM."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden, 2 * config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Self-attention, cross-attention, MLP, each after a norm and added."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.cross_layernorm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.cross_attn = CrossAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, context: Context, still: int, places: int, store: Store | None = None) -> Tensor:
        """x [B, n, hidden], whose first `still` tokens are the reference's: they hear nothing."""
        x = x + self.self_attn(self.input_layernorm(x), context, store)
        if x.shape[1] > still:
            moving = x[:, still:].unflatten(1, (-1, places))
            x = torch.cat(
                (x[:, :still], (moving + self.cross_attn(self.cross_layernorm(moving), context)).flatten(1, 2)), 1
            )
        return x + self.mlp(self.post_attention_layernorm(x))


class Actor(nn.Module):
    """The video transformer. flex: whole samples by FlexAttention (None: on a GPU).
    checkpointing: blocks are computed again in the backward pass instead of kept."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        self.flex: bool | None = None
        self.checkpointing = False
        self._masks: dict[Any, BlockMask] = {}
        hidden = config.hidden
        self.latent_mlp = nn.Sequential(nn.Linear(config.channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.level_mlp = nn.Sequential(nn.Linear(2 * LEVEL_WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.reference_embedding = nn.Parameter(torch.zeros(hidden))
        self.states_norm = nn.RMSNorm(config.states, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(hidden, config.norm_eps)
        self.head = nn.Linear(hidden, config.channels)

    @property
    def rule(self) -> Rule:
        """Who sees whom."""
        config = self.config
        return Rule(
            config.window,
            reference=config.reference == "global",
            teacher=config.history == "teacher_forcing",
            token_causal=config.attention == "token_causal",
        )

    def init_weights(self, seed: int = 0) -> None:
        """Random weights of `seed`, as `models.actor_init` has them."""
        initialised(self, self.config, seed)

    def forward(
        self, noisy: Tensor, levels: Tensor, reference: Tensor, speech: Speech, clean: Tensor | None = None
    ) -> Tensor:
        """The velocity [B, C, channels, h, w] of a whole sample's chunks 0 ... C - 1.

        noisy: [B, C, channels, h, w] at `levels` [B, C]; reference: [B, channels, h, w], clean. clean: the chunks
        without noise, under teacher forcing and only there. Padding chunks at the end are seen by no earlier one.
        """
        rule, (h, w) = self.rule, noisy.shape[-2:]
        if rule.teacher != (clean is not None):
            raise ValueError("clean chunks go with history = teacher_forcing, and with nothing else")
        chunks = torch.arange(noisy.shape[1], device=noisy.device)
        parts = [self.embed_reference(reference), self.embed(noisy, levels)]
        order, kinds = [chunks], [torch.full_like(chunks, VIDEO)]
        if clean is not None:
            parts.insert(1, self.embed(clean, torch.zeros_like(levels)))
            order, kinds = [chunks, *order], [torch.full_like(chunks, HISTORY), *kinds]
        x = torch.cat([part.flatten(1, 2) for part in parts], 1)
        chunk, kind = torch.cat(order), torch.cat(kinds)
        own = roles(_after(REFERENCE_CHUNK, chunk), _after(REFERENCE, kind), h * w)
        far = len(chunks) > self.config.window
        mask = self._mask(own, h * w) if (x.is_cuda if self.flex is None else self.flex) else None
        context = self.context(own, own, chunk, speech, (h, w), like=x, far=far, mask=mask)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, context, h * w, h * w, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, context, h * w, h * w)
        return self.velocity(x[:, -chunks.numel() * h * w :], (h, w))

    def _mask(self, own: Roles, places: int) -> BlockMask:
        """Of a whole sample for FlexAttention, kept: lengths come again, and all pairs of a minute are many."""
        key = self.rule, len(own.chunk), places, own.chunk.device, torch.is_inference_mode_enabled()
        if key not in self._masks:
            self._masks[key] = block_mask(self.rule, own, own)
        return self._masks[key]

    def embed(self, latents: Tensor, levels: Tensor) -> Tensor:
        """[B, C, channels, h, w] at levels [B, C] -> [B, C, h w, hidden]: the sum of both MLPs (the paper, 3.2)."""
        kind = self.reference_embedding.dtype
        shown = self.level_mlp(_waves(levels).to(kind))
        return self.latent_mlp(latents.flatten(3).transpose(2, 3).to(kind)) + shown[:, :, None]

    def embed_reference(self, reference: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, 1, h w, hidden]."""
        zero = torch.zeros(reference.shape[0], 1, device=reference.device)
        return self.embed(reference[:, None], zero) + self.reference_embedding

    def velocity(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, C h w, hidden] -> [B, C, channels, h, w] float32."""
        found = self.head(self.norm(x)).unflatten(1, (-1, grid[0] * grid[1]))
        return found.transpose(2, 3).unflatten(-1, grid).float().contiguous()

    def context(
        self,
        own: Roles,
        seen: Roles,
        chunks: Tensor,
        speech: Speech,
        grid: tuple[int, int],
        *,
        like: Tensor,
        far: bool = True,
        mask: BlockMask | None = None,
    ) -> Context:
        """What the blocks share. own: the tokens of the pass; seen: those that they may see, in the order of the
        store; chunks: [C] those of `own` that hear; like: whose type the states take; far: some chunk of the pass may
        be as far as the window from the reference's first place; mask: for long passes; None makes a dense one."""
        config = self.config
        row, column = own.place // grid[1], own.place % grid[1]
        pairs = config.rotary // 2
        clamped = own.chunk.clamp(max=config.window - 1)
        heard = self.states_norm(speech.states.to(self.states_norm.weight.dtype)).to(like.dtype)
        index, hears = heard_by(chunks, speech.segments)
        return Context(
            mask=dense_mask(self.rule, own, seen) if mask is None else mask,
            reference=own.kind == REFERENCE,
            turned=turn_3d(torch.stack((own.chunk, row, column), -1), pairs, config.rope_theta),
            clamped=turn_3d(torch.stack((clamped, row, column), -1), pairs, config.rope_theta) if far else None,
            heard=heard,
            index=index,
            hears=hears,
            chunk_turn=turn(chunks * CHUNK_SPEECH_TOKENS, pairs, config.rope_theta),
            state_turn=_over_heads(turn(speech.ticks, pairs, config.rope_theta)),
        )


def heard_by(chunks: Tensor, segments: Tensor) -> tuple[Tensor, Dense]:
    """Which states [B, S] each of `chunks` [C] hears: index [B, C, HEARD] and the mask [B C, 1, 1, HEARD].

    They are those of every segment that it overlaps, which lie side by side.
    """
    first, last = segments_of(chunks)
    padded = segments.masked_fill(segments < 0, torch.iinfo(segments.dtype).max).contiguous()
    begin = torch.searchsorted(padded, first.expand(len(segments), -1).contiguous())
    index = begin[..., None] + torch.arange(HEARD, device=chunks.device)
    inside = index < segments.shape[1]
    index = index.clamp(max=segments.shape[1] - 1)
    segment = torch.take_along_dim(padded, index.flatten(1), 1).view_as(index)
    allowed = inside & (segment >= first[:, None]) & (segment <= last[:, None])
    return index, guarded(allowed.flatten(0, 1)[:, None, None])


def _after(first: int, rest: Tensor) -> Tensor:
    return torch.cat((rest.new_full((1,), first), rest))


def _over_heads(by: Turn) -> Turn:
    return Turn(by.cos[:, None], by.sin[:, None])


def _waves(levels: Tensor) -> Tensor:
    """[..., 2 LEVEL_WAVES] float32 sines and cosines of levels in [0, 1], from one turn of the scale to 1/10,000."""
    rates = 10000.0 ** -(torch.arange(LEVEL_WAVES, device=levels.device) / LEVEL_WAVES)
    angles = levels.float()[..., None] * LEVEL_SCALE * rates
    return torch.cat((angles.sin(), angles.cos()), -1)
