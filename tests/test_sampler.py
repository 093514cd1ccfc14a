"""The sampler: cached equals uncached, the pyramid, a ring that never grows, streams without end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from actors_made import CHANNELS, GRID, PERIOD, PLACES, WINDOW, actor, latents, levels, noise, portrait, speech
from torch import Tensor

from models import sampler
from models.actor import Actor, Speech
from models.attention import EMPTY
from models.diffusion import ddim_step, schedule
from models.sampler import Ring, chunk_noise, prefill, rollout, step

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "teacher forcing": {"history": "teacher_forcing"},
    "no reference": {"reference": "none"},
    "token causal": {"attention": "token_causal"},
    "window of one": {"window": 1},
    "window of two, no reference": {"window": 2, "reference": "none"},
}
CHUNKS = 11
CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(autouse=True)
def no_graph() -> Any:
    with torch.inference_mode():
        yield


def ring_of(made: Actor, batch: int = 1, flight: int = 1, **how: Any) -> Ring:
    ring = Ring(made, batch, PLACES, flight, **how)
    prefill(made, ring, portrait(batch))
    return ring


@pytest.mark.parametrize("slots", [None, WINDOW + 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_cached_is_what_the_whole_sequence_gives(name: str, slots: int | None) -> None:
    """A chunk after a clean past, for so long that the ring wraps several times; a larger ring changes nothing."""
    made = actor(**VARIANTS[name])
    clean, noisy, at, told = (
        latents(CHUNKS, 2),
        latents(CHUNKS, 2, seed=1),
        levels(1, CHUNKS).expand(2, -1),
        speech(CHUNKS, 2),
    )
    ring = ring_of(made, 2, slots=slots)
    for c in range(CHUNKS):
        pass_ = torch.stack((clean[:, c - 1], noisy[:, c]), 1) if c else noisy[:, :1]
        seen = torch.cat((torch.zeros(1), at[0, c : c + 1])) if c else at[0, :1]
        found = step(made, ring, pass_, seen, max(c - 1, 0), told, finished=c > 0)[:, -1]
        if made.rule.teacher:
            wanted = made(noisy[:, : c + 1], at[:, : c + 1], portrait(2), told, clean[:, : c + 1])
        else:
            mixed = torch.cat((clean[:, :c], noisy[:, c : c + 1]), 1)
            mixed_levels = torch.cat((torch.zeros(2, c), at[:, c : c + 1]), 1)
            wanted = made(mixed, mixed_levels, portrait(2), told)
        torch.testing.assert_close(found, wanted[:, -1], **CLOSE)


def uncached(made: Actor, told: Speech, chunks: int, steps: int, stride: int, seed: int) -> Tensor:
    """The pyramid by whole sequences: every round all chunks that have begun, at the schedule's levels."""
    table = schedule(chunks, steps, stride)
    now = torch.cat([chunk_noise(seed, c, (1, 1, CHANNELS, *GRID), torch.device("cpu")) for c in range(chunks)], 1)
    for before, after in pairwise(table):
        begun = int(((before < steps) | (after < before)).sum())
        level, lower = (row[None, :begun] / steps for row in (before, after))
        clean = now[:, :begun] if made.rule.teacher else None  # only what is finished is seen of it: stride = steps
        v = made(now[:, :begun], level, portrait(), told, clean)
        moves = (level != lower)[..., None, None, None]
        now[:, :begun] = torch.where(moves, ddim_step(now[:, :begun], v, level, lower), now[:, :begun])
    return now


@pytest.mark.parametrize(
    ("name", "steps", "stride"),
    [
        ("full", 5, 1),  # more chunks in flight than the window holds
        ("full", 5, 2),
        ("full", 5, 3),
        ("full", 4, 4),
        ("full", 1, 1),
        ("no reference", 4, 1),
        ("token causal", 3, 1),
        ("window of one", 3, 1),
        ("window of two, no reference", 3, 2),
        ("teacher forcing", 3, 3),
    ],
)
def test_a_rollout_is_the_pyramid_over_whole_sequences(name: str, steps: int, stride: int) -> None:
    made, told = actor(**VARIANTS[name]), speech(CHUNKS)
    made.head.weight *= 0.3  # a random net's velocities are no denoiser's: keep the path from blowing up
    found = torch.stack(list(rollout(made, portrait(), told, CHUNKS, steps=steps, stride=stride, seed=6)), 1)
    wanted = uncached(made, told, CHUNKS, steps, stride, seed=6)
    assert found.shape == (1, CHUNKS, CHANNELS, *GRID) and found.dtype == torch.float32
    assert 0.1 < wanted.std() < 30
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize(("chunks", "steps", "stride"), [(9, 6, 1), (9, 6, 6), (7, 5, 2), (1, 25, 1), (5, 1, 1)])
def test_passes_are_counted_and_no_pass_holds_more_than_is_in_flight(chunks: int, steps: int, stride: int) -> None:
    made = actor(layers=1)
    sizes: list[int] = []
    made.blocks[0].register_forward_pre_hook(lambda _m, args: sizes.append(args[0].shape[1] // PLACES))
    assert len(list(rollout(made, portrait(), speech(chunks), chunks, steps=steps, stride=stride))) == chunks
    assert sizes[0] == 1  # the reference
    assert len(sizes) - 1 == stride * (chunks - 1) + steps == len(schedule(chunks, steps, stride)) - 1
    assert max(sizes) <= -(-steps // stride) + 1
    if stride == 1:
        assert len(sizes) - 1 == chunks + steps - 1
    if stride == steps:
        assert len(sizes) - 1 == chunks * steps


def test_chunks_come_as_soon_as_they_are_done() -> None:
    made = actor(layers=1)
    passes: list[int] = []
    made.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    when = [len(passes) - 1 for _ in rollout(made, portrait(), speech(6), 6, steps=4)]
    assert when == [4, 5, 6, 7, 8, 9]


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    rings: list[Ring] = []
    made_ring = sampler.Ring
    monkeypatch.setattr(sampler, "Ring", lambda *a, **k: rings.append(made_ring(*a, **k)) or rings[-1])
    made = actor(layers=1)
    sizes = set()
    for _ in rollout(made, portrait(), speech(30), 30, steps=3):
        (ring,) = rings
        sizes.add((ring.keys.data_ptr(), ring.keys.shape, ring.values.data_ptr(), ring.values.shape, ring.chunk.shape))
    ((_, keys, _, values, held),) = sizes
    places = (1 + (WINDOW - 1) + 3 + 1) * PLACES
    assert keys == (1, 1, 2, places, 24) and values == (1, 1, 2, places, 16) and held == (WINDOW,)
    assert sorted(ring.chunk.tolist()) == [-1, 26, 27, 28]  # reference, and the last that were committed


def test_places_that_hold_nothing_are_not_seen() -> None:
    """An empty ring with numbers in it, even before the reference is there."""
    made, told = actor(), speech(3)
    outputs = []
    for filled in (0.0, 50.0):
        ring = Ring(made, 1, PLACES, 1)
        ring.keys.fill_(filled), ring.values.fill_(filled)
        assert ring.chunk.eq(EMPTY).all()
        outputs.append(step(made, ring, latents(1), torch.ones(1), 0, told, finished=False))
    assert torch.equal(*outputs)


def test_only_finished_chunks_go_into_the_ring() -> None:
    made, told, ring = actor(), speech(5), ring_of(actor(), flight=2)
    step(made, ring, latents(2), torch.tensor([0.5, 1.0]), 0, told, finished=False)
    assert ring.chunk.tolist() == [-1, EMPTY, EMPTY, EMPTY]
    step(made, ring, latents(2), torch.tensor([0.0, 0.5]), 0, told, finished=True)
    assert ring.chunk.tolist() == [-1, 0, EMPTY, EMPTY]


def test_a_rollout_is_of_its_seed() -> None:
    made, told = actor(), speech(5)
    one, same, other = (torch.stack(list(rollout(made, portrait(), told, 5, steps=3, seed=s))) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len({chunk_noise(s, c, (4,), torch.device("cpu")).sum().item() for s in range(9) for c in range(99)}) == 891


def test_samples_of_a_batch_are_rolled_out_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is drawn for the batch, so each sample has its own; given the same noise, alone it comes out the same."""
    made, told = actor(), speech(7, 2)
    together = torch.stack(list(rollout(made, portrait(2), told, 7, steps=4)), 1)
    drawn = chunk_noise

    for i in range(2):

        def own(seed: int, chunk: int, shape: tuple[int, ...], device: torch.device, row: int = i) -> Tensor:
            return drawn(seed, chunk, (2, *shape[1:]), device)[row : row + 1]

        monkeypatch.setattr(sampler, "chunk_noise", own)
        heard = Speech(*(x[i : i + 1] for x in vars(told).values()))
        alone = torch.stack(list(rollout(made, portrait(2)[i : i + 1], heard, 7, steps=4)), 1)
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)
    assert not torch.equal(together[0], together[1])


def streamed(made: Actor, start: int, chunks: int) -> Tensor:
    """Velocities of `chunks` chunks from period `start` on, each after the clean ones before it since then."""
    first, told = PERIOD * start, speech(chunks, later=start)
    ring = ring_of(made)
    clean, noisy = latents(chunks), latents(chunks, seed=1)
    found = [step(made, ring, noisy[:, :1], torch.ones(1) * 0.7, first, told, finished=False)]
    for c in range(1, chunks):
        pass_ = torch.stack((clean[:, c - 1], noisy[:, c]), 1)
        found.append(step(made, ring, pass_, torch.tensor([0.0, 0.7]), first + c - 1, told, finished=True)[:, -1:])
    return torch.cat(found, 1)


@pytest.mark.parametrize("late", [2, 800, 10**8])
@pytest.mark.parametrize("reference", ["global", "none"])
def test_chunk_ten_thousand_and_chunk_a_billion_compute_what_a_minute_does(late: int, reference: str) -> None:
    """Chunks and segments lie to each other as before every 13 chunks. Beyond the window only differences count."""
    made = actor(reference=reference)
    torch.testing.assert_close(streamed(made, late, 9), streamed(made, 1, 9), **CLOSE)


def test_before_the_window_is_full_the_reference_is_nearer() -> None:
    made = actor()
    early, late = streamed(made, 0, 9), streamed(made, 1, 9)
    apart = (early - late).abs().flatten(2).amax(2)[0]
    reach = 2 * (WINDOW - 1)  # of two layers: what the ring remembers was seen from nearer
    assert (apart[:reach] > 1e-3).all() and (apart[reach:] < 1e-4).all()
    once, again = (streamed(actor(layers=1), start, 9) for start in (0, 1))
    apart = (once - again).abs().flatten(2).amax(2)[0]
    assert (apart[: WINDOW - 1] > 1e-3).all() and (apart[WINDOW - 1 :] < 1e-4).all()


@pytest.mark.parametrize("name", ["full", "teacher forcing"])
def test_a_rollout_in_bfloat16(name: str) -> None:
    made, exact = actor(**VARIANTS[name]).bfloat16(), actor(**VARIANTS[name])
    for each in (made, exact):
        each.head.weight *= 0.3
    found, wanted = (
        torch.stack(list(rollout(each, portrait(), speech(8), 8, steps=4, stride=4))) for each in (made, exact)
    )
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert (found - wanted).norm() < 0.2 * wanted.norm()


@pytest.mark.parametrize(("chunks", "steps", "stride"), [(0, 5, 1), (3, 5, 6), (3, 5, 0), (3, 0, 1)])
def test_no_such_rollout(chunks: int, steps: int, stride: int) -> None:
    with pytest.raises(ValueError, match="1 <= stride <= steps"):
        next(rollout(actor(), portrait(), speech(3), chunks, steps=steps, stride=stride))


def test_noise_of_a_chunk_does_not_depend_on_who_asks() -> None:
    torch.manual_seed(1)
    one = chunk_noise(3, 7, (2, 5), torch.device("cpu"))
    noise(8)
    torch.manual_seed(2)
    assert torch.equal(one, chunk_noise(3, 7, (2, 5), torch.device("cpu")))
    assert not torch.equal(one, chunk_noise(3, 8, (2, 5), torch.device("cpu")))
