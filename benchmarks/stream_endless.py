"""Whether a stream stays as fast and as small as it began: thousands of chunks of one engine."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.stream_models import device_here, random_actor, states_of
from benchmarks.stream_parts import finish, running
from inference.schedule import Plan

BLOCK = 100
"""Chunks whose median is one point: what the machine does besides is not the stream's."""
WARM = 2
"""Blocks that are left out at the beginning."""


@torch.inference_mode()
def endless_rows(preset: str, chunks: int, steps: int, grid: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row: how time a chunk and memory went over `chunks` chunks, of N `steps`, stride 1."""
    engine = running(random_actor(preset, device_here()), Plan(steps), grid)
    states = states_of(engine.actor.config.states)
    times, peaks = np.empty(chunks), []
    for chunk in range(chunks):
        if chunk % BLOCK == 0:
            peaks.append(peak_memory())
        begin = time.perf_counter()
        finish(engine, states, 1)
        times[chunk] = time.perf_counter() - begin
    yield {"chunks": chunks, "N": steps, **gone(times), "MB more at the peak": (peak_memory() - peaks[WARM]) / 1e6}


def gone(times: np.ndarray) -> dict[str, Any]:
    """times: seconds of each chunk, [n]. The median of the first and the last tenth in ms, and by how many per cent time a
    chunk rises from the first to the last, with its 95% interval: a line through the medians of blocks, least squares."""
    blocks = np.median(times[: len(times) // BLOCK * BLOCK].reshape(-1, BLOCK), 1)[WARM:]
    place = np.linspace(-0.5, 0.5, len(blocks))
    slope = (place @ blocks) / (place @ place)
    left = blocks - blocks.mean() - slope * place
    error = np.sqrt(left @ left / max(1, len(blocks) - 2) / (place @ place))
    tenth = max(1, len(blocks) // 10)
    return {
        "ms a chunk, first tenth": 1000 * float(np.median(blocks[:tenth])),
        "last tenth": 1000 * float(np.median(blocks[-tenth:])),
        "rise %": 100 * float(slope / blocks.mean()),
        "least %": 100 * float((slope - 2 * error) / blocks.mean()),
        "most %": 100 * float((slope + 2 * error) / blocks.mean()),
    }


def peak_memory() -> float:
    """Bytes: the most that this process had resident, and the GPU gave it."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return float(resident + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0))
