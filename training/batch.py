"""A batch: samples side by side, padded to the longest, as the Actor takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.clock import CHUNK_SECONDS, SPEECH_HZ
from models.dialogue_layout import Turn
from models.video_codec import CHANNELS
from training.contract import REFERENCES, Sample

NO_SEGMENT = -1
"""The segment of a state that is padding."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one rank computes of a step: b samples, perhaps none, of up to C chunks.

    ids: of the samples; a further pass of an epoch over a sample ends in "#2", "#3". latents: [b, 1+C, 128, h, w]
    float16, zero beyond a sample's end. chunks: [b] int64. references: [b, 4, 128, h, w] float16. text, speech: each
    sample's tokens, int32. states, segments, ticks: as `pad_states` makes them, None where samples store no states.
    epoch, step: the step of the epoch that this is part of. damaged: slots of the step that are empty because their
    samples are damaged; notes: what of it has not been told before, a line each. wait_s: seconds that the loop waited
    for this batch.
    """

    ids: tuple[str, ...]
    latents: torch.Tensor
    chunks: torch.Tensor
    references: torch.Tensor
    text: tuple[np.ndarray, ...]
    speech: tuple[np.ndarray, ...]
    states: torch.Tensor | None
    segments: torch.Tensor | None
    ticks: torch.Tensor | None
    epoch: int = 0
    step: int = 0
    damaged: int = 0
    notes: tuple[str, ...] = ()
    wait_s: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seconds(self) -> float:
        """Of video."""
        return int(self.chunks.sum()) * CHUNK_SECONDS

    def part(self, first: int, count: int) -> Batch:
        """Samples first ... first + count - 1, fewer at the end, perhaps none, padded no longer than they need."""
        rows = slice(first, first + count)
        chunks = self.chunks[rows]
        longest = 1 + int(chunks.max()) if len(chunks) else 1
        found = replace(
            self,
            ids=self.ids[rows],
            latents=self.latents[rows, :longest],
            chunks=chunks,
            references=self.references[rows],
            text=self.text[rows],
            speech=self.speech[rows],
        )
        if self.states is None or self.segments is None or self.ticks is None:
            return found
        used = (self.segments[rows] != NO_SEGMENT).sum(dim=1)
        tokens = slice(0, max(1, int(used.max())) if len(used) else 1)
        return replace(
            found,
            states=self.states[rows, tokens],
            segments=self.segments[rows, tokens],
            ticks=self.ticks[rows, tokens],
        )


def sent(values: torch.Tensor, device: torch.device, kind: torch.dtype | None = None) -> torch.Tensor:
    """`values` of the host on `device`, in type `kind`. A GPU fetches them when it gets there: nobody waits until it
    has done what it was given before, so that the next micro-batch is queued while this one is computed."""
    held = values.contiguous().pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values
    return held.to(device, kind or values.dtype, non_blocking=True)


def micro_batches(batch: Batch, size: int, count: int) -> list[Batch]:
    """`batch` in `count` parts of at most `size` samples, the same number on every rank: the last ones may be empty.

    Raises ValueError where that is too few.
    """
    if size * count < len(batch):
        raise ValueError(f"{count} parts of {size} samples are too few for {len(batch)}")
    return [batch.part(at * size, size) for at in range(count)]


def collate(samples: Sequence[Sample], grid: tuple[int, int], hidden: int) -> Batch:
    """The batch of `samples`, perhaps none, of latents of `grid` (h, w), and `hidden` numbers in a state (0: none)."""
    longest = max((sample.chunks for sample in samples), default=0)
    latents = np.empty((len(samples), 1 + longest, CHANNELS, *grid), np.float16)
    references = np.empty((len(samples), REFERENCES, CHANNELS, *grid), np.float16)
    for row, sample in enumerate(samples):
        latents[row, : 1 + sample.chunks] = sample.latents
        latents[row, 1 + sample.chunks :] = 0
        references[row] = sample.reference
    heard = [(sample.states, sample.turn) for sample in samples if sample.states is not None]
    states, segments, ticks = pad_states(heard, hidden) if hidden else (None, None, None)
    return Batch(
        tuple(sample.id for sample in samples),
        torch.from_numpy(latents),
        torch.tensor([sample.chunks for sample in samples], dtype=torch.int64),
        torch.from_numpy(references),
        tuple(sample.text for sample in samples),
        tuple(sample.speech for sample in samples),
        states,
        segments,
        ticks,
    )


def pad_states(rows: Sequence[tuple[np.ndarray, Turn]], hidden: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(states [b, S, hidden] float16, segments [b, S] int64, ticks [b, S] int64) of b samples' states [n, hidden] and
    what they are of.

    Beyond a sample's n states are zeros, of segment -1; S is 1 at least. A tick is a speech token, 0.08 s; the times of tokens are
    whole ticks.
    """
    longest = max((1, *(len(turn) for _, turn in rows)))
    states = np.zeros((len(rows), longest, hidden), np.float16)
    segments = np.full((len(rows), longest), NO_SEGMENT, np.int64)
    ticks = np.zeros((len(rows), longest), np.int64)
    for row, (found, turn) in enumerate(rows):
        states[row, : len(turn)] = found
        segments[row, : len(turn)] = turn.segment
        ticks[row, : len(turn)] = np.rint(turn.times * SPEECH_HZ)
    return torch.from_numpy(states), torch.from_numpy(segments), torch.from_numpy(ticks)
