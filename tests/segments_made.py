"""Segments of states for engines to hear, and engines that run to the end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from actors_made import STATES

from inference.engine import Chunk, Engine
from inference.segments import Segment
from models.actor import Speech
from models.clock import SEGMENT_SPEECH_TOKENS
from models.dialogue_layout import turn_of


def segment(index: int, *, seed: int = 0, text: int = 13, states: int = STATES) -> Segment:
    """Of random states; the same index and seed give the same. text: tokens of text, 0 where it has run out."""
    turn = turn_of(text, SEGMENT_SPEECH_TOKENS)
    dice = np.random.default_rng((seed, index))
    return Segment(
        index,
        dice.standard_normal((len(turn), states)).astype(np.float16),
        turn.speech,
        np.rint(turn.times * 12.5).astype(np.int64) + SEGMENT_SPEECH_TOKENS * index,
        dice.integers(0, 16384, SEGMENT_SPEECH_TOKENS).astype(np.int32),
        np.arange(text, dtype=np.int32),
    )


def segments(count: int, *, first: int = 0, seed: int = 0) -> list[Segment]:
    """Every third has no text."""
    return [segment(i, seed=seed, text=0 if i % 3 == 2 else 13) for i in range(first, first + count)]


def speech_of(told: Iterable[Segment]) -> Speech:
    """As `Actor.forward` takes it."""
    each = list(told)
    numbers = np.concatenate([np.full(len(one.ticks), one.index) for one in each])
    states, ticks = (np.concatenate([getattr(one, name) for one in each]) for name in ("states", "ticks"))
    return Speech(*(torch.from_numpy(x)[None] for x in (states, numbers, ticks)))


def run(engine: Engine, told: Iterable[Segment], *, rounds: int = 0, close: bool = True) -> list[Chunk]:
    """What the engine finishes from these segments, each heard as soon as there is room, everything shown at once.
    rounds: stops after so many, with chunks in flight."""
    found, left = [], list(told)
    end = engine.pyramid.round + rounds
    while not rounds or engine.pyramid.round < end:
        while left and engine.wants:
            engine.hear(left.pop(0))
        if close and not left:
            engine.close()
        ran, chunk = engine.advance()
        if not ran:
            break
        if chunk is not None:
            found.append(chunk)
            engine.show(chunk.index)
    return found
