"""Block-sparse against dense attention under the Actor's mask, at several lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.train_spread import by_turns, ratio, spread
from benchmarks.train_step import GRID, speech
from models.actor import Actor, Context
from models.actor_config import ActorConfig, actor_config
from models.actor_facts import seen_pairs, thinker_facts
from models.attention import REFERENCE, REFERENCE_CHUNK, VIDEO, Roles, attend, block_mask, dense_mask, roles
from models.thinker import GLM_4_VOICE

PLACES = GRID[0] * GRID[1]
LAYERS, BATCH = 2, 2
Work = Callable[[], Any]


def sequence(chunks: int, device: torch.device) -> Roles:
    """The reference, then `chunks` chunks."""
    chunk = torch.arange(-1, chunks, device=device)
    kind = torch.where(chunk == REFERENCE_CHUNK, REFERENCE, VIDEO)
    return roles(chunk, kind, PLACES)


def in_blocks(device: torch.device, tokens: list[int], runs: int) -> list[dict[str, Any]]:
    """Forward and backward of LAYERS blocks of `base`, compiled, in bfloat16, both masks in the same blocks."""
    config = dataclasses.replace(actor_config("base", thinker_facts(GLM_4_VOICE).hidden), layers=LAYERS)
    rows = []
    for count in tokens:
        torch._dynamo.reset()
        with device:
            actor = Actor(config)
        actor.init_weights()
        for block in actor.blocks:
            block.compile()
        works = {name: _blocks(actor, count // PLACES - 1, device, flex) for name, flex in NAMES.items()}
        rows.append(_row("blocks, forward and backward", count, config, _timed(works, device, runs)))
    return rows


NAMES = {"sparse": True, "dense": False}


def _blocks(actor: Actor, chunks: int, device: torch.device, flex: bool) -> Work:
    shape = (BATCH, (1 + chunks) * PLACES, actor.config.hidden)
    x = torch.randn(shape, device=device, requires_grad=True)
    told, context = torch.randn_like(x), context_of(actor, chunks, x.detach(), flex)

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            found = x
            for block in actor.blocks:
                found = block(found, context, PLACES, PLACES)
        found.backward(told)
        actor.zero_grad()
        x.grad = None

    return work


def context_of(actor: Actor, chunks: int, like: Tensor, flex: bool) -> Context:
    """What the blocks share in training, under the sparse or the dense mask."""
    config, own = actor.config, sequence(chunks, like.device)
    mask, far = block_mask(actor.rule, own, own) if flex else None, chunks > config.window
    heard = speech(config, len(like), chunks, like.device)
    order = torch.arange(chunks, device=like.device)
    found = actor.context(own, own, order, heard, GRID, like=like, far=far, mask=mask)
    return dataclasses.replace(found, heard=found.heard.detach())


def alone(device: torch.device, tokens: list[int], runs: int) -> list[dict[str, Any]]:
    """Attention by itself, as wide as the Actor's. On a CPU forward alone, in float32, of `tiny`: FlexAttention has
    no backward there. sparse_plain: what it would take with heads that are not widened for the reference."""
    cuda = device.type == "cuda"
    config = actor_config("base" if cuda else "tiny", 1)
    what = "attention, forward and backward" if cuda else "attention, forward (no backward on a CPU)"
    rows = []
    for count in tokens:
        torch._dynamo.reset()
        rows.append(_row(what, count, config, _timed(_attention(config, count // PLACES - 1, device), device, runs)))
    return rows


def _attention(config: ActorConfig, chunks: int, device: torch.device) -> dict[str, Work]:
    from torch.nn.attention.flex_attention import flex_attention

    with torch.device("meta"):
        rule = Actor(dataclasses.replace(config, layers=1)).rule
    own, cuda = sequence(chunks, device), device.type == "cuda"
    sparse, dense = block_mask(rule, own, own), dense_mask(rule, own, own)
    flex = torch.compile(flex_attention)
    scale = config.head_dim**-0.5

    def by_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex(q, k, v, block_mask=sparse, scale=scale, enable_gqa=True)

    def by_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, dense, scale)

    wide = config.head_dim + config.rotary
    shapes = {"sparse": (by_flex, wide), "dense": (by_mask, wide), "sparse_plain": (by_flex, config.head_dim)}
    return {name: _work(config, len(own.chunk), width, run, cuda) for name, (run, width) in shapes.items()}


def _work(config: ActorConfig, count: int, width: int, run: Callable[..., Tensor], backward: bool) -> Work:
    device, kind = ("cuda", torch.bfloat16) if backward else ("cpu", torch.float32)
    batch = BATCH if backward else 1

    def made(heads: int, size: int) -> Tensor:
        return torch.randn(batch, heads, count, size, device=device, dtype=kind, requires_grad=backward)

    q, k, v = made(config.heads, width), made(config.kv_heads, width), made(config.kv_heads, config.head_dim)
    told = torch.randn(batch, config.heads, count, config.head_dim, device=device, dtype=kind)

    def work() -> None:
        with torch.set_grad_enabled(backward):
            found = run(q, k, v)
        if backward:
            found.backward(told)
            q.grad = k.grad = v.grad = None

    return work


def _timed(works: dict[str, Work], device: torch.device, runs: int) -> dict[str, list[float]]:
    for work in works.values():
        work()  # compiles
        work()
    return by_turns(works, device, runs, times=10 if device.type == "cuda" else 3)


def _row(what: str, tokens: int, config: ActorConfig, times: dict[str, list[float]]) -> dict[str, Any]:
    chunks = tokens // PLACES - 1
    found: dict[str, Any] = {"what": what, "preset": config.preset, "tokens": tokens}
    found["seen"] = seen_pairs(config, chunks, GRID) / tokens**2
    found |= {f"{name} ms": spread([1000 * each for each in values]) for name, values in times.items()}
    return found | {"dense / sparse": ratio(times["dense"], times["sparse"])}
