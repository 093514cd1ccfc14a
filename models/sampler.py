"""Chunks out of noise: the pyramid of the paper (A.2) over a ring of keys and values, for as long as one likes.

A pass holds the chunks in flight, each at its own level, and the chunk that was finished last, whose clean keys and
values it puts into the ring: no pass of its own for that (the paper commits nothing it would have to compute again).
The ring holds the window and nothing else, so memory does not grow with time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.actor import Actor, Context, Speech, Store, heard_by
from models.attention import EMPTY, HISTORY, REFERENCE, REFERENCE_CHUNK, VIDEO, Roles, roles
from models.diffusion import ddim_step, rounds

STEPS = 25
"""Denoising steps a chunk: the least that the paper found stable (3.2)."""


class Ring:
    """Keys and values of the reference and of the last window of finished chunks; then those of the pass that runs.

    keys: [layers, B, groups, places, wide head]; values: [layers, B, groups, places, head]. The first `1 + slots`
    chunks' places last from pass to pass, the rest is scratch. chunk: [1 + slots], EMPTY where nothing is.
    """

    def __init__(self, actor: Actor, batch: int, places: int, flight: int, *, slots: int | None = None) -> None:
        config, weight = actor.config, actor.head.weight
        self.places = places
        self.slots = slots or max(1, config.window - 1)
        self.kind = HISTORY if actor.rule.teacher else VIDEO
        shape = (config.layers, batch, config.kv_heads, (1 + self.slots + flight + 1) * places)
        self.keys = weight.new_zeros(*shape, config.head_dim + config.rotary)
        self.values = weight.new_zeros(*shape, config.head_dim)
        self.chunk = torch.full((1 + self.slots,), EMPTY, device=weight.device)

    @property
    def lasting(self) -> int:
        """Places that last from pass to pass."""
        return (1 + self.slots) * self.places

    def store(self, layer: int, at: int) -> Store:
        """Writes what a layer computes to place `at` on, and shows all up to there."""

        def written(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            end = at + keys.shape[2]
            self.keys[layer, :, :, at:end], self.values[layer, :, :, at:end] = keys, values
            return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

        return written

    def roles(self) -> Roles:
        """What the lasting places hold."""
        kinds = torch.full_like(self.chunk, self.kind)
        kinds[0] = REFERENCE
        return roles(self.chunk, kinds, self.places)

    def commit(self, chunk: int) -> None:
        """The first chunk of the pass that just ran is finished: it takes the place of the oldest."""
        slot = 1 + chunk % self.slots
        old, new = slot * self.places, self.lasting
        for held in (self.keys, self.values):
            held[:, :, :, old : old + self.places] = held[:, :, :, new : new + self.places]
        self.chunk[slot] = chunk

    def drop(self, last: int) -> None:
        """Forgets every chunk after `last`. The window before it is whole if no more than slots - window + 1 go."""
        self.chunk.masked_fill_(self.chunk > last, EMPTY)


def prefill(actor: Actor, ring: Ring, reference: Tensor) -> None:
    """Puts the reference [B, channels, h, w] into the ring, once and for all."""
    x = actor.embed_reference(reference).flatten(1, 2)
    where = torch.full((1,), REFERENCE_CHUNK, device=x.device)
    own = roles(where, torch.full_like(where, REFERENCE), ring.places)
    silence = Speech(x.new_zeros(len(x), 1, actor.config.states), where.expand(len(x), 1), where.expand(len(x), 1))
    context = actor.context(own, own, where, silence, _grid(reference), like=x)
    _through(actor, x, context, ring, at=0, still=ring.places)
    ring.chunk[0] = REFERENCE_CHUNK


def step(
    actor: Actor, ring: Ring, noisy: Tensor, levels: Tensor, first: int, speech: Speech, *, finished: bool
) -> Tensor:
    """The velocity [B, C, channels, h, w] of chunks first ... first + C - 1, noisy [B, C, channels, h, w] at levels
    [C]. finished: the first of them is clean; its keys and values go into the ring. One forward pass."""
    chunks = torch.arange(first, first + noisy.shape[1], device=noisy.device)
    kinds = torch.full_like(chunks, VIDEO)
    kinds[: int(finished)] = ring.kind
    own, kept = roles(chunks, kinds, ring.places), ring.roles()
    seen = Roles(*(torch.cat(pair) for pair in zip(vars(kept).values(), vars(own).values(), strict=True)))
    x = actor.embed(noisy, levels.expand(len(noisy), -1)).flatten(1, 2)
    context = actor.context(own, seen, chunks, speech, _grid(noisy), like=x)
    x = _through(actor, x, context, ring, at=ring.lasting, still=0)
    if finished:
        ring.commit(first)
    return actor.velocity(x, _grid(noisy))


def _through(actor: Actor, x: Tensor, context: Context, ring: Ring, *, at: int, still: int) -> Tensor:
    for layer, block in enumerate(actor.blocks):
        x = block(x, context, still, ring.places, ring.store(layer, at))
    return x


def _grid(latents: Tensor) -> tuple[int, int]:
    return latents.shape[-2], latents.shape[-1]


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...], device: torch.device, draw: int = 0) -> Tensor:
    """The noise that chunk `chunk` of a stream begins from: of these numbers alone. Made on the CPU, so that every
    device begins alike. draw: another one gives other noise, for a chunk that is made again."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + chunk + draw * 2_654_435_769) % (1 << 63))
    pinned = device.type == "cuda"  # so that the host need not wait until it is there
    return torch.randn(shape, generator=generator, pin_memory=pinned).to(device, non_blocking=pinned)


@torch.inference_mode()
def rollout(
    actor: Actor,
    reference: Tensor,
    speech: Speech,
    chunks: int,
    *,
    steps: int = STEPS,
    stride: int = 1,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Chunks 0 ... chunks - 1 as they get finished, each [B, channels, h, w] float32.

    reference: [B, channels, h, w]; speech: of all chunks. Takes stride (chunks - 1) + steps forward passes, beside
    the reference's own. Raises ValueError unless chunks >= 1 and 1 <= stride <= steps.
    """
    passes, batch, (h, w) = rounds(chunks, steps, stride), len(reference), _grid(reference)
    ring = Ring(actor, batch, h * w, flight=-(-steps // stride))
    prefill(actor, ring, reference)
    near = _neighbourhoods(speech, chunks)
    first, finished = 0, False  # the first chunk of the pass, and whether it is only there to be committed
    flying = reference.new_zeros(batch, 0, *reference.shape[1:]).float()
    left: list[int] = []  # steps left of each; on the host, so that no round waits for the device
    for round_ in range(passes):
        if round_ % stride == 0 and round_ // stride < chunks:
            noise = chunk_noise(seed, round_ // stride, (batch, 1, *reference.shape[1:]), reference.device)
            flying, left = torch.cat((flying, noise), 1), [*left, steps]
        around = slice(near[first].start, near[first + len(left) - 1].stop)
        heard = Speech(speech.states[:, around], speech.segments[:, around], speech.ticks[:, around])
        v = step(actor, ring, flying, _levels(left, steps, flying), first, heard, finished=finished)
        if finished:
            flying, left, v, first, finished = flying[:, 1:], left[1:], v[:, 1:], first + 1, False
        now, left = left, [each - 1 for each in left]
        levels = (_levels(each, steps, flying).expand(batch, -1) for each in (now, left))
        flying = ddim_step(flying, v, *levels)
        if left[0] == 0:
            finished = True
            yield flying[:, 0].clone()


def _levels(left: list[int], steps: int, like: Tensor) -> Tensor:
    """[C] float32 levels of chunks with so many of `steps` left."""
    return torch.tensor(left).to(like.device) / steps


def _neighbourhoods(speech: Speech, chunks: int) -> list[slice]:
    """Where the states that each chunk hears lie, in any sample of the batch: a pass need not look at the others."""
    index, hears = heard_by(torch.arange(chunks, device=speech.segments.device), speech.segments)
    heard = hears.live.view_as(index[..., :1]) if hears.live is not None else index[..., :1] >= 0
    begin = index.amin((0, 2)).flip(0).cummin(0).values.flip(0).tolist()
    end = (torch.where(heard, index, 0).amax((0, 2)) + 1).cummax(0).values.tolist()
    return list(map(slice, begin, end))
