"""What a training run tells while it goes: the same on every rank, `Sampled` on rank 0 alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LevelLoss = tuple[float | None, ...]
"""Mean squared error by noise level, bins of 0.1 from 0 to 1; None where nothing fell."""


@dataclass(frozen=True)
class Started:
    """The run is set up and takes its first step next. step: updates made before (by the run that it goes on from);
    steps: updates in all; epoch_steps: of an epoch; epoch_samples: its samples; parameters: trained; ranks: processes;
    device: kind of it; thinker: identity of the states."""

    step: int
    steps: int
    epoch_steps: int
    epoch_samples: int
    parameters: int
    ranks: int
    device: str
    thinker: str


@dataclass(frozen=True)
class Step:
    """An update. step: from 1; epoch: from 0. loss: mean over all ranks' numbers; by_level: as LevelLoss;
    by_position: by eight chunks. grad_norm: before clipping. samples, chunks, tokens (of video): in it, on all ranks;
    padding: share of computed chunks that were none; damaged: samples skipped since the run began. seconds: wall time
    of it, with wait_s: for data, and thinker_s: for the Thinker (the slowest rank's). memory: bytes at most, the
    fullest rank's: of the GPU, on a CPU of the process. flops: of training, of all ranks, None where unknown; mfu: share of
    the machines' peak, None on a CPU. notes: which samples were skipped and why, a line each, told once."""

    step: int
    epoch: int
    loss: float
    by_level: LevelLoss
    by_position: LevelLoss
    grad_norm: float
    lr: float
    samples: int
    chunks: int
    tokens: int
    padding: float
    damaged: int
    seconds: float
    wait_s: float
    thinker_s: float
    memory: int
    flops: float | None
    mfu: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validated:
    """The error on fixed samples with fixed noise at levels that are spread evenly. loss, by_level: of the weights;
    average_loss, average_by_level: of their moving average, None without one. split: "val", or "train" where the
    shards hold nothing back. samples: how many. notes: which were left out and why, a line each, told once."""

    step: int
    loss: float
    by_level: LevelLoss
    average_loss: float | None
    average_by_level: LevelLoss | None
    split: str
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sampled:
    """A rollout of one fixed sample's speech from its portrait. latents: [k, 128, h, w] float32, chunks 0 ... k - 1;
    portrait: [128, h, w] float32, latent 0. sample_id, split ("val" or "train"): which sample; members: as it is stored, by extension."""

    step: int
    latents: np.ndarray
    portrait: np.ndarray
    sample_id: str
    members: Mapping[str, bytes]
    split: str
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on its way (written beside the training) or, when `whole`, on the disk. seconds: that training
    stood still for it."""

    step: int
    path: str
    whole: bool
    seconds: float


Event = Started | Step | Validated | Sampled | Saved
