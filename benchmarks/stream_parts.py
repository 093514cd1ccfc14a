"""The Actor and the Thinker of a stream, each by itself, against what their GPU allows at best."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.stream_models import device_here, random_actor, segment_of, states_of, thinker_name, thinker_of
from benchmarks.train_spread import seconds, spread
from inference.engine import Engine
from inference.sampling import Sampling, dice, drawn
from inference.schedule import Plan, segments_heard
from inference.segments import SEGMENT_TOKENS
from models.actor import Actor
from models.actor_config import ActorConfig
from models.actor_facts import LEVEL_NUMBERS, Card, parameters, thinker_facts
from models.clock import CHUNK_SECONDS, SEGMENT_SECONDS, segments_of
from models.dialogue_layout import CONTEXT_TOKENS
from models.thinker import Thinker
from models.thinker_stream import ThinkerStream
from training.watch import card_of, memory_used

Row = dict[str, Any]
ROUNDS = 8
"""Rounds, at least, that are timed together."""
TOKENS_A_SECOND = SEGMENT_TOKENS / SEGMENT_SECONDS
"""That the Thinker reads and gives in a second of a stream: 18.75."""
STRADDLING = 13
"""Every 13th chunk hears two segments, the others one: two segments are 13 chunks."""
BYTES = 2
"""Of a bfloat16 number."""


def forget() -> None:
    """Gives memory back, and counts its peak from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def guarded(wanted: Row, measured: Callable[[], Row]) -> Row:
    """The row of a setting; one that does not fit in memory says so, and the next may still fit."""
    forget()
    try:
        return {**wanted, **measured()}
    except torch.OutOfMemoryError as error:
        return {**wanted, "failed": f"out of memory: {str(error).splitlines()[0][:120]}"}


# The Actor


def actor_rows(preset: str, steps: int, strides: Sequence[int], runs: int, grid: Sequence[int]) -> Iterator[Row]:
    """A row a stride, of an engine that has been running for long: its ring full, all chunks in flight."""
    device = device_here()
    actor = random_actor(preset, device)
    for stride in strides:
        plan = Plan(steps, stride)
        yield guarded({"N": steps, "stride": stride}, partial(_actor_row, actor, plan, runs, grid))


@torch.inference_mode()
def _actor_row(actor: Actor, plan: Plan, runs: int, grid: Sequence[int]) -> Row:
    device = actor.head.weight.device
    engine = running(actor, plan, grid)
    states = states_of(actor.config.states)
    chunks = -(-ROUNDS // plan.stride)
    finish(engine, states, -(-plan.steps // plan.stride) + 1)  # all chunks in flight, every shape seen
    times = [seconds(lambda: finish(engine, states, chunks), device) / chunks for _ in range(runs)]
    return actor_figures(actor.config, plan, times, grid[0] * grid[1], device)


@torch.inference_mode()
def running(actor: Actor, plan: Plan, grid: Sequence[int]) -> Engine:
    """An engine whose ring is full of random keys and values, right before the next chunk."""
    device = actor.head.weight.device
    engine = Engine(actor, torch.randn(actor.config.channels, *grid, device=device), plan)
    begin = engine.ring.slots
    for held in (engine.ring.keys, engine.ring.values):
        held.normal_()
    engine.ring.chunk[1:] = torch.arange(begin, device=device)
    engine.pyramid.next = begin
    engine.restore((), segments_of(begin)[0], begin - 1)
    return engine


def finish(engine: Engine, states: np.ndarray, chunks: int) -> None:
    """Goes on until so many more chunks are finished; states always come in time."""
    while chunks:
        while engine.wants:
            engine.hear(segment_of(engine.heard, states))
        chunks -= engine.advance()[1] is not None
        engine.show(engine.pyramid.finished)


def actor_figures(config: ActorConfig, plan: Plan, times: list[float], places: int, device: torch.device) -> Row:
    """times: seconds a chunk."""
    each = spread([1000 * taken for taken in times])
    found: Row = {
        "in flight": plan.flight,
        "ms a round": each["median"] / plan.stride,
        "ms a chunk": each,
        "s a minute": each["median"] / 1000 * 60 / CHUNK_SECONDS,
        "x real time": spread([CHUNK_SECONDS / taken for taken in times]),
        "latency s": plan.steps * each["median"] / 1000 / plan.stride,
    }
    card = card_of(device)
    if card is not None:
        limits = actor_limits(config, plan, places, card)
        found |= {f"{name} ms a chunk": 1000 * limit for name, limit in limits.items()}
        found["% of limit"] = 100 * 1000 * max(limits.values()) / each["median"]
    return {**found, "GB": memory_used(device) / 1e9}


def actor_limits(config: ActorConfig, plan: Plan, places: int, card: Card) -> dict[str, float]:
    """{"weights", "FLOPs"}: s a chunk at least, when each pass reads all weights once, or does only what it must."""
    weights = plan.stride * parameters(config) * BYTES / card.bandwidth
    chunks = plan.steps / plan.stride + 1 / plan.stride  # in a pass, in the mean: in flight, and to be committed
    return {"weights": weights, "FLOPs": plan.stride * pass_flops(config, chunks, places) / card.flops}


def pass_flops(config: ActorConfig, chunks: float, places: int) -> float:
    """Of a pass over `chunks` chunks of `places` latent pixels that see a whole window and the reference."""
    hidden, tokens = config.hidden, chunks * places
    inner, groups = config.heads * config.head_dim, config.kv_heads * config.head_dim
    multiplied = tokens * (4 * hidden * inner + 2 * hidden * groups + 3 * hidden * config.intermediate)
    multiplied += segments_heard(max(1, round(chunks))) * SEGMENT_TOKENS * 2 * config.states * groups
    heard = SEGMENT_TOKENS * (1 + 1 / STRADDLING)
    attended = tokens * ((1 + config.window) * places + heard) * 2 * inner
    ends = tokens * (2 * config.channels + hidden) * hidden + chunks * (LEVEL_NUMBERS + hidden) * hidden
    return 2 * (config.layers * (multiplied + attended) + ends)


# The Thinker


def thinker_rows(preset: str, graphs: bool, contexts: Sequence[int], runs: int, tokens: int) -> Iterator[Row]:
    """A row a length of what was said before, of tokens that are read one by one."""
    device = device_here()
    thinker = thinker_of(preset, device)
    name = thinker_name(preset)
    wanted: Row = {"Thinker": name, "CUDA graphs": ("yes" if graphs else "no") if device.type == "cuda" else "none"}
    stream = ThinkerStream(thinker, CONTEXT_TOKENS, graphs=graphs)
    stream.warm()
    for context in contexts:
        row = guarded({**wanted, "context": context}, partial(_thinker_row, stream, context, runs, tokens))
        if "forward tokens/s" in row and (card := card_of(device)) is not None:
            limit = card.bandwidth / (BYTES * read_numbers(name, thinker))
            row["limit tokens/s"] = limit
            row |= {
                f"{kind} % of limit": 100 * row[f"{kind} tokens/s"]["median"] / limit for kind in ("forward", "drawn")
            }
        yield {**row, "GB": memory_used(device) / 1e9}


def read_numbers(name: str, thinker: Thinker) -> int:
    """Numbers that a token must read: all weights but the embedding, of which it is one row."""
    return thinker_facts(name).computing + thinker.model.lm_head.weight.numel()


def _thinker_row(stream: ThinkerStream, context: int, runs: int, tokens: int) -> Row:
    device = stream.keys.device
    ids = np.random.default_rng(context).integers(0, stream.thinker.model.config.vocab_size, context + tokens)
    said, following = ids[:context], ids[context:]

    def again() -> None:
        stream.rewind(0)
        stream.read(said)

    def forward() -> None:
        stream.rewind(context)
        for token in following:
            stream.read(np.array([token]))

    def dialogue() -> None:
        stream.rewind(context)
        token, numbers = int(following[0]), dice(0, 0)
        for _ in range(tokens):
            read = stream.read(np.array([token]))
            read.states.to(torch.float16).cpu().numpy()
            token = drawn(read.logits, Sampling(), numbers.random())

    again()
    reading = [1000 * seconds(again, device) for _ in range(runs)]
    speeds = {}
    for name, work in (("forward", forward), ("drawn", dialogue)):
        work()
        speeds[name] = [tokens / seconds(work, device) for _ in range(runs)]
    found: Row = {f"{name} tokens/s": spread(each) for name, each in speeds.items()}
    found["x real time"] = spread([each / TOKENS_A_SECOND for each in speeds["drawn"]])
    found["s a minute"] = 60 / found["x real time"]["median"]
    return {**found, "ms to read all again": spread(reading)}
