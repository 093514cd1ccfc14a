"""A Thinker that reads on: token after token over keys and values that lie where they were put.

The cache is allocated once, for the whole context; nothing is joined, moved or grown, and going back is forgetting a
length. Layers, norms and the rotation are those of transformers' GLM; only the way through them is here, because
its caches either grow (dynamic) or make every query head a copy of all keys (static, masked).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manifests.errors import ModelError
from models.dialogue_layout import CONTEXT_TOKENS
from models.thinker import Thinker

LEAST_PLACES = 256
"""A single token looks at this many places, or twice, four times ... as many: few shapes, so that each is captured
once as a CUDA graph."""

Attend = Callable[[int, Tensor], Tensor]
"""(layer, queries [heads, n, width]) -> [n, heads * width]."""


@dataclass(frozen=True, eq=False)
class Read:
    """What tokens gave where they were the input. states: [n, H], in the Thinker's type; logits: [vocabulary] float32
    of what follows the last of them; [0] where nobody asked."""

    states: Tensor
    logits: Tensor


class ThinkerStream:
    """One sequence before a Thinker. keys, values: [layers, groups, context, width]; ids: [context] int64, of which
    the first `length` have been read; forwards: passes so far.

    graphs: on CUDA a single token runs as a captured graph (9B launches a thousand kernels a token, which takes
    longer than they do).
    """

    def __init__(self, thinker: Thinker, context: int = CONTEXT_TOKENS, *, graphs: bool = True) -> None:
        from transformers.models.glm.modeling_glm import apply_rotary_pos_emb

        config: Any = thinker.model.config
        self.thinker, self.context, self.length, self.forwards = thinker, context, 0, 0
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.ids = np.zeros(context, np.int64)
        embedding = thinker.model.model.embed_tokens.weight
        shape = (config.num_hidden_layers, self.groups, context, config.head_dim)
        self.keys, self.values = embedding.new_zeros(shape), embedding.new_zeros(shape)
        self._scale = config.head_dim**-0.5
        self._rotate: Callable[..., tuple[Tensor, Tensor]] = apply_rotary_pos_emb
        self._head = _head(thinker.model.lm_head.weight)
        self._places = torch.arange(context, device=embedding.device)
        self._token = torch.zeros(1, 1, dtype=torch.long, device=embedding.device)
        self._at = torch.zeros(1, dtype=torch.long, device=embedding.device)
        self._graphs: dict[int, tuple[Any, Read]] | None = {} if graphs and embedding.is_cuda else None

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.context - self.length

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Raises ValueError when fewer have been read."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{self.length} tokens have been read, there are no first {length}")
        self.length = length

    def shared(self, ids: np.ndarray) -> int:
        """How many tokens from the beginning are those of `ids` [n] already."""
        count = min(self.length, len(ids))
        other = np.flatnonzero(self.ids[:count] != ids[:count])
        return int(other[0]) if len(other) else count

    @torch.inference_mode()
    def read(self, ids: np.ndarray, *, logits: bool = True) -> Read:
        """Reads tokens [n], n >= 1, after those before; one forward pass. logits: whether what follows matters.

        Raises ValueError when they do not fit, ModelError for ids that the Thinker does not have.
        """
        ids = np.asarray(ids, np.int64)
        if not 0 < len(ids) <= self.room:
            raise ValueError(f"{len(ids)} tokens to read, there is room for 1 to {self.room}")
        size = self.thinker.model.config.vocab_size
        if ids.min() < 0 or ids.max() >= size:
            raise ModelError(
                f"ids {ids.min()} ... {ids.max()} are not all among the {size} of thinker {self.thinker.identity}; "
                "were the tokens made by its own codecs?"
            )
        found = self._one(int(ids[0])) if len(ids) == 1 else self._many(ids, logits)
        self.ids[self.length : self.length + len(ids)] = ids
        self.length += len(ids)
        self.forwards += 1
        return found

    @torch.inference_mode()
    def warm(self) -> None:
        """Captures every graph now, so that no token of the dialogue waits for it; nothing where there are none.
        Forgets what has been read."""
        self.length = 0
        if self._graphs is not None:
            for places in {self._looked_at(at) for at in range(self.context)}:
                self._captured(places)

    def _many(self, ids: np.ndarray, logits: bool) -> Read:
        """Tokens [n] in one pass."""
        first, last = self.length, self.length + len(ids)
        positions = self._places[first:last]
        seen = None if first == 0 else positions[:, None] >= self._places[:last]

        def attend(layer: int, queries: Tensor) -> Tensor:
            keys, values = (
                held[layer, :, :last].repeat_interleave(self.heads // self.groups, 0)[None]
                for held in (self.keys, self.values)
            )
            out = scaled_dot_product_attention(
                queries[None], keys, values, attn_mask=seen, is_causal=seen is None, scale=self._scale
            )
            return out[0].transpose(0, 1).flatten(1)

        row = torch.from_numpy(ids)[None].to(self._token.device)
        return self._through(row, positions, attend, logits)

    def _one(self, token: int) -> Read:
        """A single token: the same few shapes every time."""
        self._token.fill_(token)
        self._at.fill_(self.length)
        places = self._looked_at(self.length)
        if self._graphs is None:
            return self._decoded(places)
        graph, found = self._captured(places)
        graph.replay()
        return Read(found.states.clone(), found.logits.clone())

    def _looked_at(self, at: int) -> int:
        """Places that the token at `at` looks over; those after it are masked."""
        return min(self.context, max(LEAST_PLACES, 1 << at.bit_length()))

    def _decoded(self, places: int) -> Read:
        """Of the token in `_token` at the place in `_at`; no number of them is on the host, as a graph needs it."""
        hidden = self._places[:places] > self._at
        mask = torch.zeros(places, dtype=self.keys.dtype, device=hidden.device).masked_fill(hidden, -torch.inf)

        def attend(layer: int, queries: Tensor) -> Tensor:
            rows = queries.reshape(self.groups, self.heads // self.groups, -1)  # the heads of a group share its keys
            keys, values = self.keys[layer, :, :places], self.values[layer, :, :places]
            scores = torch.baddbmm(mask[None, None], rows, keys.transpose(1, 2), alpha=self._scale)
            weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
            return torch.bmm(weights, values).view(1, -1)

        return self._through(self._token, self._at, attend, True)

    def _through(self, ids: Tensor, positions: Tensor, attend: Attend, logits: bool) -> Read:
        """ids: [1, n] at `positions` [n]; their keys and values go into the cache."""
        model = self.thinker.model.model
        x = model.embed_tokens(ids)
        cos, sin = model.rotary_emb(x, positions[None])
        for at, layer in enumerate(model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            queries, keys, values = (part(normed).unflatten(-1, (-1, self.keys.shape[-1])).transpose(1, 2) for part in parts)  # fmt: skip
            queries, keys = self._rotate(queries, keys, cos, sin)
            self.keys[at].index_copy_(1, positions, keys[0])
            self.values[at].index_copy_(1, positions, values[0])
            x = x + attention.o_proj(attend(at, queries[0])[None])
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        states = model.norm(x)[0]
        return Read(states, (states[-1] @ self._head if logits else states.new_empty(0)).float())

    def _captured(self, places: int) -> tuple[Any, Read]:
        """The graph of `_decoded(places)` and where it leaves its results."""
        assert self._graphs is not None
        if places not in self._graphs:
            device = self._token.device
            with torch.cuda.device(device):
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):  # kernels are chosen and memory is taken before the capture
                    for _ in range(2):
                        self._decoded(places)
                torch.cuda.current_stream().wait_stream(aside)
                graph = torch.cuda.CUDAGraph()
                pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
                with torch.cuda.graph(graph, pool=pool):
                    found = self._decoded(places)
            self._graphs[places] = graph, found
        return self._graphs[places]


def _head(weight: Tensor) -> Tensor:
    """[H, vocabulary], of weight [vocabulary, H]: on a CPU a row times a tall matrix takes ten times as long from the
    other side (MKL's), so there it is turned round in memory."""
    turned = weight.detach().t()
    return turned if weight.is_cuda else turned.contiguous()
