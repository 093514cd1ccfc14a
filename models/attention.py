"""Who sees whom in the Actor (the paper, 3.1 and 3.2): one predicate, from which every mask is made.

Inside a chunk everybody sees everybody; across chunks the past is seen, `window` chunks of it with one's own; the
reference is seen always. Two of the paper's ablations are other values of `Rule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

REFERENCE, HISTORY, VIDEO = 0, 1, 2
"""Kinds of tokens: of the reference portrait; of clean chunks that teacher forcing lays beside the noisy ones; of
the video that is denoised."""
EMPTY = 1 << 40
"""The chunk of a place in a cache that holds nothing yet: later than any, so nobody sees it."""
VARIANTS = 64
"""Programs that one function may become."""
REFERENCE_CHUNK = -1
"""Where the reference stands in time until the clamp moves it along: latent 0's place, right before chunk 0."""


@dataclass(frozen=True)
class Rule:
    """window: chunks seen, the own one among them. reference: seen always (else like a chunk -1, while inside the
    window). teacher: history is clean (`HISTORY` tokens), and a noisy chunk sees of noisy ones only itself.
    token_causal: inside a chunk, only tokens up to the own one are seen."""

    window: int
    reference: bool = True
    teacher: bool = False
    token_causal: bool = False


@dataclass(frozen=True, eq=False)
class Roles:
    """What n tokens are: chunk, kind, place (in raster order inside the chunk), each [n] int64."""

    chunk: Tensor
    kind: Tensor
    place: Tensor

    def __getitem__(self, index: Any) -> Roles:
        return Roles(self.chunk[index], self.kind[index], self.place[index])


def roles(chunks: Tensor, kinds: Tensor, places: int) -> Roles:
    """Of whole chunks [c] of `kinds` [c], `places` tokens each: [c * places]."""
    place = torch.arange(places, device=chunks.device).repeat(len(chunks))
    return Roles(chunks.repeat_interleave(places), kinds.repeat_interleave(places), place)


def visible(rule: Rule, q: Roles, k: Roles) -> Tensor:
    """bool, broadcast over both: whether a query sees a key."""
    q_reference, k_reference = q.kind == REFERENCE, k.kind == REFERENCE
    begun, near = k.chunk <= q.chunk, q.chunk - k.chunk < rule.window
    seen = k_reference & (begun if rule.reference else begun & (q_reference | near))
    past = begun & near & ~q_reference & ~k_reference
    if rule.teacher:
        same, before = k.chunk == q.chunk, k.chunk < q.chunk
        noisy, clean = k.kind == VIDEO, k.kind == HISTORY
        past = past & torch.where(q.kind == VIDEO, (noisy & same) | (clean & before), clean)
    if rule.token_causal:
        past = past & ((k.chunk != q.chunk) | (k.place <= q.place))
    return seen | past


@dataclass(frozen=True, eq=False)
class Dense:
    """A mask for SDPA. allowed: bool, broadcast to [B, heads, q, k], in which a row that sees nothing is open.
    live: bool, broadcast to [B, heads, q, 1]: rows that see something; None when all do."""

    allowed: Tensor
    live: Tensor | None = None


def dense_mask(rule: Rule, q: Roles, k: Roles) -> Dense:
    """The mask [q, k] of tokens that each see something at least: themselves."""
    return Dense(visible(rule, q[:, None], k[None]))


def guarded(allowed: Tensor) -> Dense:
    """A mask in which some rows may see nothing; their attention is zero and its gradient too."""
    live = allowed.any(-1, keepdim=True)
    return Dense(allowed | ~live, live)


BLOCK = 128
"""Tokens a side of the blocks that FlexAttention computes or leaves out."""
KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}
"""Of FlexAttention on a GPU: not its kernel for a few queries, which refuses less than a block of them when eight heads
or more share keys."""
PAIRS = 1 << 23
"""Pairs of tokens that are looked at together while blocks are sorted: some 200 MB, however long the sample."""


def block_mask(rule: Rule, q: Roles, k: Roles) -> BlockMask:
    """The same as FlexAttention takes it: blocks of 128 x 128 that nobody sees are never computed, and those that all
    see need no mask. `create_block_mask` gives the same from all pairs at once, gigabytes of them for a minute."""
    from torch.nn.attention.flex_attention import BlockMask

    def seen(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return visible(rule, q[i], k[j])

    lengths = len(q.chunk), len(k.chunk)
    strip = max(1, PAIRS // (BLOCK * lengths[1])) * BLOCK
    counts = torch.cat([_counted(rule, q[at : at + strip], k) for at in range(0, lengths[0], strip)])
    partly, fully = _listed((counts > 0) & (counts < BLOCK**2)), _listed(counts == BLOCK**2)
    return BlockMask.from_kv_blocks(*partly, *fully, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=lengths)


def _counted(rule: Rule, q: Roles, k: Roles) -> Tensor:
    """How many pairs of each block are seen; places beyond the last token see nothing and are not seen."""
    pairs = visible(rule, q[:, None], k[None])
    pairs = F.pad(pairs, (0, -pairs.shape[1] % BLOCK, 0, -pairs.shape[0] % BLOCK))
    return pairs.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).sum((1, 3))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of `blocks` [rows, columns] bool, as `BlockMask` has them: how many a row, and which, first those that are."""
    which = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], which.int()[None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Dense | BlockMask | None, scale: float) -> Tensor:
    """q [B, heads, n, d], k [B, groups, m, d], v [B, groups, m, e] -> [B, heads, n, e]; rows that see nothing: 0."""
    if mask is not None and not isinstance(mask, Dense):
        how = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1], "kernel_options": dict(KERNEL)}
        return _flex(q.is_cuda)(q, k, v, block_mask=mask, **how)
    each = q.shape[1] // k.shape[1]
    if each > 1:
        k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    wide, narrow = q.shape[-1], v.shape[-1]
    v = F.pad(v, (0, wide - narrow))  # the fused kernels want all heads of one width
    found = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.allowed, scale=scale)[..., :narrow]
    return found if mask is None or mask.live is None else found * mask.live


def _flex(compiled: bool) -> Any:
    """FlexAttention; where it is not compiled it computes densely, which only tests want. Inside of what
    torch.compile traces it is compiled with the rest."""
    from torch.nn.attention.flex_attention import flex_attention

    return _compiled_flex() if compiled and not torch.compiler.is_compiling() else flex_attention


@cache
def _compiled_flex() -> Any:
    """For any length, after the second. Never densely without a word: that would be an error."""
    from torch.nn.attention.flex_attention import flex_attention

    compile_often()
    return torch.compile(flex_attention, fullgraph=True)


def compile_often() -> None:
    """Lets dynamo compile a function VARIANTS times; from its ninth on it would run as it stands, slowly. Samples within
    the window and beyond, one at a time or several, with a gradient and without are as many programs: 17 in a run."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
