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
    """A GPU. flops: dense bfloat16 FLOP/s that its maker states; memory: bytes; bandwidth: of it, bytes/s."""

    name: str
    flops: float
    memory: int
    bandwidth: float


CARDS = {
    "a100-80": Card("A100 80GB", 312e12, 80 * 1024**3, 2.039e12),
    "h100": Card("H100 SXM", 989e12, 80 * 1024**3, 3.35e12),
    "h200": Card("H200 SXM", 989e12, 141 * 10**9, 4.8e12),
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
    """Of one sample of `chunks` chunks of grid (h, w). widened: with queries and keys as wide as we compute them,
    which they are in samples longer than the window."""
    places, hidden = grid[0] * grid[1], config.hidden
    tokens = tokens_of(config, chunks, grid)
    inner, groups = config.heads * config.head_dim, config.kv_heads * config.head_dim
    multiplied = tokens * (2 * hidden * inner + 2 * hidden * groups + 3 * hidden * config.intermediate)
    multiplied += (tokens - places) * 2 * hidden * inner + states_of(chunks) * 2 * config.states * groups
    width = 2 * config.head_dim + (config.rotary if widened and chunks > config.window else 0)
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


HEARD = 2 * (SEGMENT_SPEECH_TOKENS + SEGMENT_TEXT_TOKENS)
"""States that are laid out for every chunk, whether it hears them or not (`models.actor.HEARD`)."""
RESERVE = 3 * 1024**3
"""Bytes of a GPU that no tensor gets: driver, NCCL's buffers, gaps between blocks. An assumption, not measured."""


@dataclass(frozen=True)
class Setup:
    """How a run lies on its GPUs. replicas: groups of GPUs that hold a whole copy each. micro_batch: samples of up to
    `chunks` chunks of `grid` at a time. parts: micro-batches of a step. ema: whether an average is kept. thinker: the
    one that runs beside the Actor, "" for none."""

    gpus: int
    replicas: int
    micro_batch: int
    chunks: int
    grid: tuple[int, int]
    parts: int = 1
    bfloat16: bool = True
    checkpointing: bool = False
    ema: bool = True
    thinker: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. weights, gradients, moments (AdamW's two), average: float32, split over a group's GPUs;
    gradients are whole on every GPU where a step has several micro-batches, since they are exchanged with the last.
    gathered: bfloat16 weights whole, and gradients on their way. activations: kept for the backward pass; backward:
    what it needs beside them. thinker: its weights. reserve: `RESERVE`."""

    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    activations: int
    backward: int
    thinker: int
    reserve: int = RESERVE

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def memory(config: ActorConfig, setup: Setup) -> Memory:
    """Of each GPU under `setup`, with FlexAttention and without torch.compile, which keeps less."""
    group = setup.gpus // setup.replicas
    whole, block = parameters(config), block_parameters(config)
    share = -(-4 * whole // group)
    alone = setup.gpus == 1
    # FSDP holds the weights outside the blocks, two blocks' weights, one block's gradient as it comes and as it leaves;
    # without it, autocast keeps a copy of every weight.
    in_flight = 2 * (whole - config.layers * block) + (2 * 2 + 2 + 4) * block
    size = 2 if setup.bfloat16 else 4
    sizes = (size, 4 if alone else size)
    facts = thinker_facts(setup.thinker) if setup.thinker else None
    return Memory(
        weights=share,
        gradients=4 * whole if setup.parts > 1 and not alone else share,
        moments=2 * share,
        average=share if setup.ema else 0,
        gathered=(2 * whole * setup.bfloat16) if alone else in_flight,
        activations=saved_bytes(
            config, setup.micro_batch, setup.chunks, setup.grid, sizes=sizes, checkpointing=setup.checkpointing
        ),
        backward=setup.micro_batch * _backward_bytes(config, setup, size),
        thinker=facts.parameters * (2 if setup.thinker == GLM_4_VOICE else 4) if facts else 0,
    )


def _backward_bytes(config: ActorConfig, setup: Setup, size: int) -> int:
    """The widest gradients of a block that live at once, the MLP's, and under checkpointing the block computed again."""
    tokens = tokens_of(config, setup.chunks, setup.grid)
    again = _block_numbers(config, setup.chunks, setup.grid, fused=True)[0] if setup.checkpointing else 0
    return size * (tokens * (4 * config.intermediate + 2 * config.hidden) + again)


def saved_bytes(
    config: ActorConfig,
    samples: int,
    chunks: int,
    grid: tuple[int, int],
    *,
    sizes: tuple[int, int] = (4, 4),
    checkpointing: bool = False,
    fused: bool = True,
) -> int:
    """What autograd keeps of a forward pass over `samples` samples of `chunks` chunks. sizes: bytes of a number, and
    of one of the residual stream. fused: FlexAttention and fused norms, as on a GPU; else dense, as on a CPU."""
    size, residual = sizes
    hidden, tokens = config.hidden, tokens_of(config, chunks, grid)
    places, moving = grid[0] * grid[1], tokens - grid[0] * grid[1]
    inside, streams = _block_numbers(config, chunks, grid, fused=fused)
    a_block = samples * (size * inside + residual * streams)
    if not fused:
        a_block += size * tokens**2  # the mask, as floats, one for all samples
    if checkpointing:
        a_block = samples * residual * tokens * hidden
    read = tokens * (config.channels + 2 * hidden) + (tokens // places) * (LEVEL_NUMBERS + 2 * hidden)
    heard = (1 if checkpointing else 2) * states_of(chunks) * config.states
    told = (moving if config.history != "teacher_forcing" else moving // 2) * hidden * (1 if fused else 2)
    return config.layers * a_block + samples * (size * (read + heard + told) + residual * tokens * hidden)


def _block_numbers(config: ActorConfig, chunks: int, grid: tuple[int, int], *, fused: bool) -> tuple[int, int]:
    """Numbers that a block keeps of one sample: those that it computes, and the residual stream before its norms.

    Norms: their result, unfused also before its weight. Attention: q, k, v, what came out, and that as the output
    projection takes it; dense, k and v repeated for every head and all as wide as q. Heads are wider in samples longer than the window. MLP: gate and up, gate after
    SiLU, their product.
    """
    tokens, hidden = tokens_of(config, chunks, grid), config.hidden
    moving = tokens - grid[0] * grid[1]
    inner, heads, groups = config.heads * config.head_dim, config.heads, config.kv_heads
    width = config.head_dim
    wide = width + config.rotary if chunks > config.window else width
    norms = (2 * tokens + moving) * hidden * (1 if fused else 2)
    if fused:
        attended = tokens * (heads * wide + groups * (wide + width) + 2 * inner)
    else:
        attended = tokens * (4 * heads * wide + inner)
    heard = (moving // (grid[0] * grid[1]) * HEARD + states_of(chunks)) * 2 * groups * width
    return norms + attended + 3 * moving * inner + heard + 4 * tokens * config.intermediate, 3 * tokens * hidden
