"""The Actor's side of a stream: segments of states in, finished chunks of latents out, for as long as one likes.

A round is one forward pass over the chunks in flight, each at its own level, and the chunk finished last, whose
clean keys and values go into the ring (`models.sampler`). All that an engine holds has a fixed size: the ring, with
the window and as many chunks as may be finished and unshown; the chunks in flight; the segments that they hear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inference.schedule import Event, Pass, Plan, Pyramid, ready_chunks, segments_heard
from inference.segments import SEGMENT_TOKENS, Segment
from models.actor import Actor, Speech
from models.clock import segments_of
from models.diffusion import ddim_step
from models.sampler import Ring, chunk_noise, prefill, step

LEVELS_HELD = 256
"""Sets of levels that are kept on the device: a stream that runs has a few for each stride, and making one anew has
the host wait for the device."""
Noise = Callable[[int, int], Tensor]
"""(chunk, draw) -> [channels, h, w] float32, what the chunk begins from; draw: interruptions before it."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A finished chunk. index: from 0 on the stream's clock. latents: [channels, h, w] float32, on the Actor's
    device. draw: interruptions before it; an index comes again when its chunk was dropped."""

    index: int
    latents: Tensor
    draw: int = 0


class Engine:
    """Denoises one stream. reference: [channels, h, w], the portrait's latent, on the Actor's device.

    noise: what chunks begin from; by default of (plan.seed, chunk, draw), so that a chunk that is made again after an
    interruption begins from other noise than the one that was dropped. record: is told every event of the schedule.

    `hear` segments in order, `advance` round by round, `show` what was shown, `interrupt` at will; one thread.
    """

    def __init__(
        self,
        actor: Actor,
        reference: Tensor,
        plan: Plan,
        *,
        noise: Noise | None = None,
        record: Callable[[Event], None] | None = None,
    ) -> None:
        self.actor, self.plan, self.reference = actor, plan, reference
        self.noise = noise or noise_of(plan.seed, reference)
        self._levels = lru_cache(LEVELS_HELD)(partial(_levels_of, plan.steps, reference.device))
        self.pyramid = Pyramid(plan) if record is None else Pyramid(plan, record)
        self.shown = -1
        self.flying = reference.new_zeros(1, 0, *reference.shape, dtype=torch.float32)
        self.kept = segments_heard(plan.flight + 2)
        self.segments: list[Segment] = []
        self.heard: int = 0  # segments that came: the index of the next
        self.passes = self.rows = 0
        self.speech = self._listened()
        places = reference.shape[-2] * reference.shape[-1]
        slots = max(1, actor.config.window - 1) + plan.ahead
        with torch.inference_mode():
            self.ring = Ring(actor, 1, places, plan.flight, slots=slots)
            prefill(actor, self.ring, reference[None])

    @property
    def wants(self) -> bool:
        """Whether there is room for the next segment: only what chunks in flight and the next one hear is held."""
        return self.heard - segments_of(self._first)[0] < self.kept

    @property
    def full(self) -> bool:
        """As many chunks are finished and unshown as may be: `advance` waits for `show`."""
        return self.pyramid.finishes and self.pyramid.finished - self.shown >= self.plan.ahead

    @property
    def late(self) -> bool:
        """The next chunk may start, but its states have not come."""
        return self.pyramid.may_start and self.pyramid.next >= ready_chunks(self.heard)

    def hear(self, segment: Segment) -> None:
        """Takes the next segment. Raises ValueError when it is not the next, is of another Thinker, or does not fit."""
        width = self.actor.config.states
        if segment.index != self.heard:
            raise ValueError(f"segment {segment.index} came where segment {self.heard} is next")
        if segment.states.shape[1] != width:
            raise ValueError(f"states of {segment.states.shape[1]} numbers, but this Actor hears {width}")
        if not self.wants:
            raise ValueError(f"segment {segment.index} came early: {self.kept} are held already")
        oldest = segments_of(self._first)[0]
        self.segments = [*(held for held in self.segments if held.index >= oldest), segment]
        self.heard += 1
        self.speech = self._listened()

    def close(self, chunks: int | None = None) -> None:
        """The stream ends after so many `chunks`, None: after those that have their states by now. No later one is
        denoised, and none is late; an interruption opens it again."""
        self.pyramid.until = ready_chunks(self.heard) if chunks is None else chunks

    def show(self, chunk: int) -> None:
        """Chunks up to this one have been shown and stay. Raises ValueError for one that is not finished."""
        if chunk > self.pyramid.finished:
            raise ValueError(f"chunk {chunk} cannot have been shown: the last finished is {self.pyramid.finished}")
        self.shown = max(self.shown, chunk)

    @torch.inference_mode()
    def advance(self) -> tuple[bool, Chunk | None]:
        """One round, if there is one to run: whether it ran, and the chunk that it finished."""
        todo = None if self.full else self.pyramid.begin(ready_chunks(self.heard))
        if todo is None:
            return False, None
        if todo.starts:
            new = self.noise(self.pyramid.next - 1, self.pyramid.draw)[None, None]
            self.flying = torch.cat((self.flying, new), 1)
        v = self._velocity(todo)
        committed, count = int(todo.commits), len(todo.left)
        flying, left = self.flying[:, committed:], todo.left[committed:]
        now, then = (self._levels(each) for each in (left, tuple(step - 1 for step in left)))
        self.flying = ddim_step(flying, v[:, committed:count], now[None], then[None])
        finished = self.pyramid.end()
        if finished is None:
            return True, None
        return True, Chunk(finished, self.flying[0, 0].clone(), self.pyramid.draw)

    def settle(self) -> None:
        """Waits until the device has done all rounds: for who times them."""
        if self.reference.is_cuda:
            torch.cuda.synchronize(self.reference.device)

    @torch.inference_mode()
    def interrupt(self, shown: int) -> int:
        """Drops every chunk after `shown`, finished or in flight, and goes on from there with new states.

        Gives the segment that must come next: the one in which the interruption falls, again and new from there on.
        Raises ValueError when `shown` lies before what was shown already, or is not finished.
        """
        if not self.shown <= shown <= self.pyramid.finished:
            raise ValueError(
                f"cannot go back to chunk {shown}: {self.shown} was shown, {self.pyramid.finished} is finished"
            )
        self.pyramid.drop(shown)
        self.flying = self.flying[:, : int(self.pyramid.pending)]
        self.ring.drop(shown)
        heard = segments_of(shown + 1)[0]
        self.restore(tuple(held for held in self.segments if held.index < heard), heard, shown)
        return self.heard

    def restore(self, segments: tuple[Segment, ...], heard: int, shown: int) -> None:
        """Takes the segments of another engine, the index of the next one and the last chunk shown."""
        self.segments, self.heard, self.shown = list(segments), heard, shown
        self.speech = self._listened()

    @property
    def _first(self) -> int:
        """The first chunk of the next pass."""
        return self.pyramid.next - len(self.pyramid.left) - self.pyramid.pending

    def _velocity(self, todo: Pass) -> Tensor:
        """[1, width, channels, h, w], of a pass padded to one of few widths: chunks of padding come after all others,
        so no other sees them."""
        count = len(todo.left)
        width = self.plan.width(count)
        noisy = F.pad(self.flying, (0, 0) * 3 + (0, width - count))
        levels = self._levels((*todo.left, *[self.plan.steps] * (width - count)))
        self.passes, self.rows = self.passes + 1, self.rows + width * self.ring.places
        return step(self.actor, self.ring, noisy, levels, todo.first, self.speech, finished=todo.commits)

    def _listened(self) -> Speech:
        """What the held segments say, padded to one length."""
        room = self.kept * SEGMENT_TOKENS
        states = np.zeros((room, self.actor.config.states), np.float16)
        places = np.full((2, room), -1, np.int64)
        end = 0
        for segment in self.segments:
            begin, end = end, end + len(segment.states)
            states[begin:end] = segment.states
            places[0, begin:end], places[1, begin:end] = segment.index, segment.ticks
        device = self.flying.device
        where = torch.from_numpy(places).to(device)
        return Speech(torch.from_numpy(states)[None].to(device), where[:1], where[1:])


def _levels_of(steps: int, device: torch.device, left: tuple[int, ...]) -> Tensor:
    """[C] float32: levels of chunks with so many of `steps` left."""
    return torch.tensor(left, device=device) / steps


def noise_of(seed: int, like: Tensor) -> Noise:
    """Noise of (seed, chunk, draw) in the shape and on the device of `like`."""
    return lambda chunk, draw: chunk_noise(seed, chunk, tuple(like.shape), like.device, draw)
