"""A recorded stream once more, offline: the whole sequence in every round under the window's mask, without a cache.

What an engine computes with keys and values that it keeps is defined by this, which keeps none: the same noise,
reference, states and record give the same chunks. Work grows with the square of the length; it is for checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference.engine import Chunk, Noise, noise_of
from inference.schedule import Event, Plan, Row, rows
from inference.segments import Segment
from models.actor import HEARD, Actor, Speech
from models.attention import HISTORY, REFERENCE, REFERENCE_CHUNK, VIDEO, Dense, guarded, roles
from models.clock import segments_of
from models.diffusion import ddim_step


@dataclass(frozen=True, eq=False)
class Heard:
    """All states of a stream. states: [1, S, H] float32; ticks: [1, S]; spans: {(draw, segment): which of them}, the
    draw being how many interruptions came before the segment did."""

    states: Tensor
    ticks: Tensor
    spans: dict[tuple[int, int], range]

    def by(self, chunk: int, draw: int) -> list[int]:
        """The states that a chunk hears after `draw` interruptions: of each segment, the version that came last."""
        first, last = segments_of(chunk)
        found: list[int] = []
        for segment in range(first, last + 1):
            newest = next((d for d in range(draw, -1, -1) if (d, segment) in self.spans), None)
            found += self.spans[newest, segment] if newest is not None else ()
        return found


def heard(versions: Sequence[Iterable[Segment]], device: torch.device) -> Heard:
    """Of the segments that came before the first interruption, between it and the second, and so on."""
    states, ticks, spans, end = [], [], {}, 0
    for draw, segments in enumerate(versions):
        for segment in segments:
            begin, end = end, end + len(segment.states)
            spans[draw, segment.index] = range(begin, end)
            states.append(torch.from_numpy(segment.states).float())
            ticks.append(torch.from_numpy(segment.ticks))
    return Heard(torch.cat(states)[None].to(device), torch.cat(ticks)[None].to(device), spans)


class Replay:
    """Runs a record. versions: the segments that came before the first interruption, from it to the second, and so
    on; reference: [channels, h, w]; plan, noise: those of the run."""

    def __init__(
        self,
        actor: Actor,
        reference: Tensor,
        plan: Plan,
        versions: Sequence[Iterable[Segment]],
        *,
        noise: Noise | None = None,
    ) -> None:
        self.actor, self.reference, self.plan = actor, reference, plan
        self.noise = noise or noise_of(plan.seed, reference)
        self.heard = heard(versions, reference.device)
        self.latents: list[Tensor] = []  # of every chunk, finished or in flight
        self.draws: list[int] = []  # after how many interruptions each of them hears
        self.draw = 0
        self.committed = 0  # chunks whose clean keys and values have been taken, in the round after their last

    @torch.inference_mode()
    def chunks(self, events: Iterable[Event]) -> Iterator[Chunk]:
        """The chunks in the order in which they were finished; those dropped later are among them."""
        for row in rows(events, self.plan.steps):
            for last in row.drops:
                del self.latents[last + 1 :], self.draws[last + 1 :]
                self.draw, self.committed = self.draw + 1, min(self.committed, last + 1)
            for chunk, draw in row.starts.items():
                assert chunk == len(self.latents) and draw == self.draw, "a record whose chunks come out of order"
                self.latents.append(self.noise(chunk, draw))
                self.draws.append(draw)
            if not row.idle:
                yield from self._round(row)

    def _round(self, row: Row) -> Iterator[Chunk]:
        left = torch.tensor([row.left.get(chunk, 0) for chunk in range(len(self.latents))])
        now, then = ((each / self.plan.steps).to(self.reference.device) for each in (left, (left - 1).clamp(min=0)))
        clean = len(left) - len(row.left)
        noisy = torch.stack(self.latents)
        # until it is committed, a chunk hears what is current; then it has heard
        self.draws[self.committed :] = [self.draw] * (len(left) - self.committed)
        v = self.velocity(noisy, now, self.draws, clean)
        lower = ddim_step(noisy[None], v[None], now[None], then[None])[0]
        self.latents = [*self.latents[:clean], *lower[clean:]]
        self.committed = clean
        if row.left[clean] == 1:
            yield Chunk(clean, self.latents[clean].clone(), self.draw)

    def velocity(self, noisy: Tensor, levels: Tensor, draws: Sequence[int], clean: int) -> Tensor:
        """[C, channels, h, w] of chunks 0 ... C - 1, noisy [C, channels, h, w] at levels [C], by one pass over all.

        draws: [C], after how many interruptions each chunk hears; clean: so many of them are finished. With one draw
        for all it is `Actor.forward`, which cannot give neighbours different versions of a segment.
        """
        actor, grid = self.actor, (noisy.shape[-2], noisy.shape[-1])
        places = grid[0] * grid[1]
        chunks = torch.arange(len(noisy), device=noisy.device)
        kinds = torch.full_like(chunks, VIDEO)
        kinds[:clean] = HISTORY if actor.rule.teacher else VIDEO
        at, kind = (
            torch.cat((rest.new_tensor([first]), rest))
            for first, rest in ((REFERENCE_CHUNK, chunks), (REFERENCE, kinds))
        )
        own = roles(at, kind, places)
        x = torch.cat((actor.embed_reference(self.reference[None]), actor.embed(noisy[None], levels[None])), 1)
        x = x.flatten(1, 2)
        speech = Speech(self.heard.states, torch.full_like(self.heard.ticks, -1), self.heard.ticks)
        index, hears = self._hearing(draws)
        context = replace(actor.context(own, own, chunks, speech, grid, like=x), index=index, hears=hears)
        for block in actor.blocks:
            x = block(x, context, places, places)
        return actor.velocity(x[:, places:], grid)[0]

    def _hearing(self, draws: Sequence[int]) -> tuple[Tensor, Dense]:
        """As `models.actor.heard_by`, for chunks of different draws."""
        lists = [self.heard.by(chunk, draw) for chunk, draw in enumerate(draws)]
        index = torch.tensor([[*found, *[0] * (HEARD - len(found))] for found in lists])
        allowed = torch.arange(HEARD) < torch.tensor([len(found) for found in lists])[:, None]
        device = self.reference.device
        return index[None].to(device), guarded(allowed[:, None, None].to(device))
