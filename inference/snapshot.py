"""Everything that an engine remembers, taken out, put back, and moved to another place on the clock.

What a stream computes depends on distances in time, never on how long it has run: moved by whole periods of 13 chunks
(two segments, after which chunks and segments lie to each other as before), it goes on exactly as it would have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import torch
from torch import Tensor

from inference.engine import Engine
from inference.schedule import Pyramid
from inference.segments import Segment
from models.actor_config import ActorConfig
from models.attention import EMPTY
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS
from models.rope import rotate, turn_3d

PERIOD = SEGMENT_SPEECH_TOKENS // gcd(CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS)
"""Chunks after which chunks and segments lie to each other as before: 13."""
PERIOD_SEGMENTS = PERIOD * CHUNK_SPEECH_TOKENS // SEGMENT_SPEECH_TOKENS


@dataclass(frozen=True, eq=False)
class Snapshot:
    """keys: [layers, 1, groups, chunks, places, wide head]; values: the same, narrow; chunk: [chunks], whose they
    are, rising. flying: [1, F, channels, h, w], the finished chunk that is not committed yet before those in flight.
    pyramid: where the schedule stands. segments: held; heard: index of the next; shown: the last chunk shown."""

    keys: Tensor
    values: Tensor
    chunk: Tensor
    flying: Tensor
    pyramid: Pyramid
    segments: tuple[Segment, ...]
    heard: int
    shown: int


@torch.inference_mode()
def take(engine: Engine) -> Snapshot:
    """A copy of what `engine` remembers, in the order of time."""
    ring = engine.ring
    order = ring.chunk[1:].argsort()
    order = order[ring.chunk[1:][order] < EMPTY]
    keys, values = (
        held[:, :, :, ring.places : ring.lasting].unflatten(3, (-1, ring.places))[:, :, :, order]
        for held in (ring.keys, ring.values)
    )
    return Snapshot(
        keys,
        values,
        ring.chunk[1:][order],
        engine.flying.clone(),
        replace(engine.pyramid),
        tuple(engine.segments),
        engine.heard,
        engine.shown,
    )


@torch.inference_mode()
def load(engine: Engine, snapshot: Snapshot) -> None:
    """Puts a snapshot into an engine of the same Actor, reference and plan, which goes on from there; it keeps its own
    record. Chunks that its ring has no room for, the oldest, are left out."""
    ring = engine.ring
    last = snapshot.chunk[-ring.slots :]
    slots = 1 + last % ring.slots
    ring.chunk[1:] = EMPTY
    ring.chunk[slots] = last
    for held, kept in ((ring.keys, snapshot.keys), (ring.values, snapshot.values)):
        places = held[:, :, :, : ring.lasting].unflatten(3, (-1, ring.places))
        places[:, :, :, slots] = kept[:, :, :, -ring.slots :]
    engine.flying = snapshot.flying.clone()
    engine.pyramid = replace(snapshot.pyramid, record=engine.pyramid.record)
    engine.restore(snapshot.segments, snapshot.heard, snapshot.shown)


@torch.inference_mode()
def moved(snapshot: Snapshot, chunks: int, config: ActorConfig) -> Snapshot:
    """The same, so many chunks later on the clock, or earlier where negative: keys turned, numbers counted on.

    Raises ValueError unless `chunks` are whole periods and every chunk that is still computed is and was beyond the
    window's length, before which the distance to the reference still grows.
    """
    first = snapshot.pyramid.finished + 1 - snapshot.pyramid.pending
    if chunks % PERIOD or min(first, first + chunks) < config.window - 1:
        raise ValueError(
            f"chunk {first} moved by {chunks}: by a multiple of {PERIOD}, and from {config.window - 1} on alone"
        )
    segments, ticks = chunks // PERIOD * PERIOD_SEGMENTS, chunks * CHUNK_SPEECH_TOKENS
    by = turn_3d(torch.tensor([[chunks, 0, 0]], device=snapshot.keys.device), config.rotary // 2, config.rope_theta)
    keys = snapshot.keys.clone()
    keys[..., : config.rotary] = rotate(keys[..., : config.rotary], by)
    pyramid = snapshot.pyramid
    return replace(
        snapshot,
        keys=keys,
        chunk=snapshot.chunk + chunks,
        pyramid=replace(
            pyramid,
            next=pyramid.next + chunks,
            told=max(-1, pyramid.told + chunks),
            until=None if pyramid.until is None else pyramid.until + chunks,
        ),
        segments=tuple(
            replace(each, index=each.index + segments, ticks=each.ticks + ticks) for each in snapshot.segments
        ),
        heard=snapshot.heard + segments,
        shown=snapshot.shown + chunks,
    )
