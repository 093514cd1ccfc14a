"""Which stride a machine can hold: its rounds are timed once, then the smallest latency that keeps up is taken.

A wide stride has few chunks in flight: a round is short, so a chunk, N rounds long, is done soon, but a chunk is
only finished every `stride` rounds. The paper's stride 1 finishes one every round and lets each take the longest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.schedule import Plan, segments_heard
from inference.segments import SEGMENT_TOKENS
from manifests.errors import UsageError
from models.actor import Actor, Speech
from models.clock import CHUNK_SECONDS, segments_of
from models.sampler import Ring, chunk_noise, prefill, step

SHARE = 0.8
"""Of a chunk's 0.32 s that denoising may take; the rest is for decoding, sound and the unforeseen."""
WARM_UPS, TIMED = 2, 3
"""Passes of each kind before the clock runs (kernels are chosen, masks compiled), and with it."""


@dataclass(frozen=True)
class Pace:
    """stride: the choice. latency: s from a chunk's first round to its last. load: share of real time that it takes,
    1 where it just keeps up. holds: whether that leaves enough room; if no stride does, the one of least load."""

    stride: int
    latency: float
    load: float
    holds: bool


def strides(steps: int) -> list[int]:
    """The strides worth a look, rising: for each number of chunks in flight the one that finishes most often."""
    return sorted(
        {
            min(stride for stride in range(1, steps + 1) if -(-steps // stride) == -(-steps // each))
            for each in range(1, steps + 1)
        }
    )


def choose(times: Mapping[int, float], steps: int, share: float = SHARE) -> Pace:
    """The stride of the smallest latency that holds real time. times: {stride: s a round}.

    Raises UsageError without any.
    """
    if not times:
        raise UsageError("no stride was measured, so none can be chosen")
    loads = {stride: stride * each / CHUNK_SECONDS for stride, each in times.items()}
    holding = [stride for stride, load in loads.items() if load <= share]
    best = (
        min(holding, key=lambda stride: (times[stride], loads[stride]))
        if holding
        else min(loads, key=lambda s: loads[s])
    )
    return Pace(best, steps * times[best], loads[best], bool(holding))


@torch.inference_mode()
def measure(actor: Actor, reference: Tensor, plan: Plan, wanted: Iterable[int] | None = None) -> dict[int, float]:
    """{stride: s a round} of the passes of a stream that runs: a full ring, all chunks in flight, one to commit.

    reference: [channels, h, w] on the Actor's device. wanted: strides; by default those worth a look.
    """
    found = {}
    for stride in strides(plan.steps) if wanted is None else wanted:
        here = Plan(plan.steps, stride, plan.ahead, plan.grain, plan.seed)
        ring = Ring(actor, 1, reference[0].numel(), here.flight, slots=max(1, actor.config.window - 1) + plan.ahead)
        prefill(actor, ring, reference[None])
        found[stride] = _round_time(actor, ring, reference, here)
    return found


def _round_time(actor: Actor, ring: Ring, reference: Tensor, plan: Plan) -> float:
    """The middle of a few passes, s."""
    width, device = plan.flight + 1, reference.device
    noisy = chunk_noise(plan.seed, 0, (1, width, *reference.shape), device)
    levels = torch.linspace(0, 1, width, device=device)
    ring.chunk[1:] = torch.arange(ring.slots, device=device)
    taken = []
    for at in range(WARM_UPS + TIMED):
        first = ring.slots + at
        speech = _speech(actor, first, width, device)
        _settle(device)
        begin = time.perf_counter()
        step(actor, ring, noisy, levels, first, speech, finished=True)
        _settle(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[WARM_UPS:])


def _speech(actor: Actor, first: int, chunks: int, device: torch.device) -> Speech:
    """States for these chunks, all that they may hear."""
    segments = segments_of(first)[0] + torch.arange(segments_heard(chunks + 1), device=device)
    index = segments.repeat_interleave(SEGMENT_TOKENS)[None]
    states = torch.ones(1, index.shape[1], actor.config.states, dtype=torch.float16, device=device)
    return Speech(states, index, index * SEGMENT_TOKENS)


def _settle(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
