"""What an Actor costs, from its config alone: parameters and FLOPs. No torch, no tensors.

FLOPs are those of matrix products, 2 m n k each. Attention counts the pairs that the mask lets through, at the head's
own width: that a rotation for the reference widens queries and keys is our way of computing, not the model's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from models.actor_config import ActorConfig
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS, segments_of
from models.thinker import BUNDLED, GLM_4_VOICE, kind_of

LEVEL_NUMBERS = 256
"""Sines and cosines that a noise level is shown as (`models.actor.LEVEL_WAVES` of each)."""
BACKWARD = 2
"""A matrix product's backward pass is two of the same size."""


@dataclass(frozen=True)
class Card:
    """A GPU. flops: dense bfloat16 FLOP/s that its maker states; memory: bytes."""

    name: str
    flops: float
    memory: int


CARDS = {
    "a100-80": Card("A100 80GB", 312e12, 80 * 1024**3),
    "h100": Card("H100 SXM", 989e12, 80 * 1024**3),
    "h200": Card("H200 SXM", 989e12, 141 * 10**9),
}


@dataclass(frozen=True)
class ThinkerFacts:
    """A frozen Thinker. parameters: all that lie in memory; computing: those that multiply when the last hidden
    state is asked for: neither the embedding, which is looked up, nor the output layer, which is not run."""

    hidden: int
    parameters: int
    computing: int


def _thinker(layers: int, hidden: int, inner: int, heads: int, groups: int, head: int, tables: int) -> ThinkerFacts:
    """Of GLM's shape. tables: numbers in the embedding and in an output layer of its own."""
    attention = hidden * (heads + 2 * groups) * head + (heads + 2 * groups) * head + heads * head * hidden
    computing = layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden
    return ThinkerFacts(hidden, computing + tables, computing)


THINKERS = {
    BUNDLED: _thinker(2, 192, 512, 6, 2, 32, 192 * (50_257 + 8 - 1 + 16_384)),
    GLM_4_VOICE: _thinker(40, 4096, 13696, 32, 2, 128, 2 * 4096 * 168_960),
}


def thinker_facts(name: str) -> ThinkerFacts:
    """Of the Thinker `name`. Raises UsageError when unknown."""
    return THINKERS[kind_of(name).name]


def thinker_flops(name: str, tokens: int) -> int:
    """Of the last hidden states of `tokens` tokens, forward alone: 2 a parameter that computes."""
    return 2 * thinker_facts(name).computing * tokens


def block_parameters(config: ActorConfig) -> int:
    """Of one of `config.layers` blocks."""
    hidden, inner, groups = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    either = 2 * hidden * inner + inner + 2 * groups  # q and o of self- or cross-attention, and the biases
    return 3 * hidden + 2 * either + 2 * (hidden + config.states) * groups + 3 * hidden * config.intermediate


def parameters(config: ActorConfig) -> int:
    """All of the Actor's; every one is trained."""
    hidden = config.hidden
    mlps = sum(hidden * (width + 1) + hidden * (hidden + 1) for width in (config.channels, LEVEL_NUMBERS))
    ends = 2 * hidden + config.states + config.channels * (hidden + 1)  # reference, norms, head
    return config.layers * block_parameters(config) + mlps + ends


def tokens_of(config: ActorConfig, chunks: int, grid: tuple[int, int]) -> int:
    """The sequence of a sample of `chunks` chunks of grid (h, w): reference, clean history if taught by it, video."""
    copies = 2 if config.history == "teacher_forcing" else 1
    return grid[0] * grid[1] * (1 + copies * chunks)


def states_of(chunks: int) -> int:
    """States that the Thinker has for `chunks` chunks, at most: 13 of text beside each 26 of speech."""
    return chunks * CHUNK_SPEECH_TOKENS * (SEGMENT_SPEECH_TOKENS + SEGMENT_TEXT_TOKENS) // SEGMENT_SPEECH_TOKENS


def seen_pairs(config: ActorConfig, chunks: int, grid: tuple[int, int]) -> int:
    """(query, key) pairs that `models.attention.visible` lets through in a sample."""
    places, window = grid[0] * grid[1], config.window
    own = places * (places + 1) // 2 if config.attention == "token_causal" else places**2
    before = [min(c, window - 1) * places**2 for c in range(chunks)]  # earlier chunks; for a noisy one, clean ones
    reference = [places**2 * (config.reference == "global" or c + 1 < window) for c in range(chunks)]
    copies = 2 if config.history == "teacher_forcing" else 1
    return places**2 + copies * (sum(before) + sum(reference) + own * chunks)


def heard_pairs(config: ActorConfig, chunks: int, grid: tuple[int, int]) -> int:
    """(query, state) pairs of the cross-attention in a sample whose text is as long as its speech."""
    copies = 2 if config.history == "teacher_forcing" else 1
    return copies * grid[0] * grid[1] * sum(_heard(chunk, chunks) for chunk in range(chunks))


def _heard(chunk: int, chunks: int) -> int:
    """States of the segments that `chunk` overlaps; the last one may be short."""
    first, last = segments_of(chunk)
    whole = SEGMENT_SPEECH_TOKENS + SEGMENT_TEXT_TOKENS
    return min((last + 1) * whole, states_of(chunks)) - first * whole


def forward_flops(config: ActorConfig, chunks: int, grid: tuple[int, int], *, widened: bool = False) -> int:
    """Of one sample of `chunks` chunks of grid (h, w). widened: with queries and keys as wide as we compute them."""
    places, hidden = grid[0] * grid[1], config.hidden
    tokens = tokens_of(config, chunks, grid)
    inner, groups = config.heads * config.head_dim, config.kv_heads * config.head_dim
    multiplied = tokens * (2 * hidden * inner + 2 * hidden * groups + 3 * hidden * config.intermediate)
    multiplied += (tokens - places) * 2 * hidden * inner + states_of(chunks) * 2 * config.states * groups
    width = 2 * config.head_dim + (config.rotary if widened else 0)
    attended = seen_pairs(config, chunks, grid) * config.heads * width
    attended += heard_pairs(config, chunks, grid) * config.heads * 2 * config.head_dim
    ends = tokens * (config.channels + hidden) * hidden + chunks * places * hidden * config.channels
    ends += tokens // places * (LEVEL_NUMBERS + hidden) * hidden
    return 2 * (config.layers * (multiplied + attended) + ends)


def train_flops(config: ActorConfig, chunks: Iterable[int], grid: tuple[int, int]) -> int:
    """Forward and backward of samples of `chunks` chunks each, on grid (h, w): what MFU counts. What checkpointing
    computes again is no part of it, nor is the Thinker (`thinker_flops`)."""
    return (1 + BACKWARD) * sum(forward_flops(config, each, grid) for each in chunks)


def hardware_flops(config: ActorConfig, chunks: Iterable[int], grid: tuple[int, int], checkpointing: bool) -> int:
    """What a GPU really computes for them: with the widened heads, and the blocks once more under checkpointing."""
    passes = 1 + BACKWARD + int(checkpointing)
    return passes * sum(forward_flops(config, each, grid, widened=True) for each in chunks)


def mfu(flops: float, seconds: float, card: Card, cards: int = 1) -> float:
    """Share of the cards' stated FLOP/s that `flops` in `seconds` are."""
    return flops / (seconds * card.flops * cards)
