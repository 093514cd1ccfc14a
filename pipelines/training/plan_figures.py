"""What a run takes on a cluster that nobody has rented yet: memory, FLOPs, hours, and what to change.

Computed from the recipe and the size of the data; no GPU is asked. What is assumed and not computed (MFU, network,
reserve of memory) stands here by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from manifests.errors import UsageError
from models.actor_config import ActorConfig, actor_config
from models.actor_facts import (
    CARDS,
    Card,
    Memory,
    Setup,
    hardware_flops,
    memory,
    parameters,
    states_of,
    thinker_flops,
    train_flops,
)
from models.clock import CHUNK_SECONDS
from training.recipe import Recipe

PIXELS = 32
"""Pixels of a latent's side."""
PROMPT_TOKENS = 64
"""Of the Thinker's prompt before a sample, about."""
NODE = 8
"""GPUs that share a fast link; between nodes, each has a network card of its own."""
MFU = {"a100-80": 0.45, "h100": 0.33, "h200": 0.33}
MFU_SOURCE = (
    "torchtitan publishes 52-58% on 64 A100 (70B, 8B) and 33-39% on H100 (8B), at 8,192 tokens a GPU and more; "
    "a run with fewer has less"
)
NETWORK = {"a100-80": 25e9, "h100": 50e9, "h200": 50e9}
"""Bytes a second of a GPU's network card: 200 Gbit/s beside an A100, 400 beside an H100 or H200."""


@dataclass(frozen=True)
class Corpus:
    """What is trained on. samples: an epoch's, weights in; seconds: of video; longest: s of one sample at most; size:
    pixels of a side; states: whether samples store the Thinker's; hidden: numbers of a state; origin: where it is from."""

    samples: int
    seconds: float
    longest: float
    size: int
    states: bool
    hidden: int
    origin: str


@dataclass(frozen=True)
class Cluster:
    """gpus of a kind; mfu: the share of their stated FLOP/s that is assumed; network: bytes/s of each between nodes."""

    gpus: int
    card: Card
    mfu: float
    network: float


@dataclass(frozen=True)
class Figures:
    """What comes out. seconds of a step: its FLOPs at the assumed MFU, and its traffic between nodes, which hides behind
    them. chunks: of the mean sample; hardware_flops: with what is computed for no model's sake."""

    parameters: int
    trained_bytes: Memory
    card_bytes: int
    steps: int
    samples_per_step: int
    chunks: int
    tokens_per_step: int
    parts: int
    step_flops: int
    step_hardware_flops: int
    thinker_step_flops: int
    run_flops: int
    compute_s: float
    network_s: float
    hours: float

    @property
    def fits(self) -> bool:
        return self.trained_bytes.total <= self.card_bytes


def cluster_of(gpus: int, gpu: str, mfu: float | None = None) -> Cluster:
    """Raises UsageError for numbers that no cluster has."""
    if gpu not in CARDS:
        raise UsageError(f"unknown GPU {gpu!r}; choose from {', '.join(sorted(CARDS))}")
    share = MFU[gpu] if mfu is None else mfu
    if gpus < 1 or not 0 < share <= 1:
        raise UsageError(f"--gpus {gpus} must be 1 or more and --mfu {share} above 0, 1 at most")
    return Cluster(gpus, CARDS[gpu], share, NETWORK[gpu])


def config_of(recipe: Recipe, corpus: Corpus) -> ActorConfig:
    switches = {name: getattr(recipe, name) for name in ("window", "history", "reference", "attention")}
    return actor_config(recipe.preset, corpus.hidden, **switches)


def figures(recipe: Recipe, corpus: Corpus, cluster: Cluster) -> Figures:
    """Raises UsageError for a batch that the GPUs cannot share or replicas that do not divide them."""
    if cluster.gpus % recipe.replicas:
        raise UsageError(f"replicas = {recipe.replicas} does not divide {cluster.gpus} GPUs; choose a divisor")
    samples = min(recipe.batch, corpus.samples)
    if samples < cluster.gpus:
        raise UsageError(f"{cluster.gpus} GPUs for {samples} samples a step: raise batch, or take fewer GPUs")
    config, side = config_of(recipe, corpus), corpus.size // PIXELS
    grid = (side, side)
    chunks = max(1, round(corpus.seconds / corpus.samples / CHUNK_SECONDS))
    slots = -(-samples // cluster.gpus)  # samples of the fullest GPU
    parts = -(-slots // recipe.micro_batch)
    setup = Setup(
        cluster.gpus,
        recipe.replicas,
        min(recipe.micro_batch, slots),
        max(1, int(corpus.longest / CHUNK_SECONDS)),
        grid,
        parts,
        recipe.dtype == "bfloat16",
        recipe.checkpointing,
        recipe.ema > 0,
        "" if corpus.states else recipe.thinker,
    )
    flops = samples * train_flops(config, [chunks], grid)
    heard = 0 if corpus.states else samples * thinker_flops(recipe.thinker, states_of(chunks) + PROMPT_TOKENS)
    steps = recipe.steps or recipe.epochs * -(-corpus.samples // samples)
    speed = cluster.card.flops * cluster.mfu
    compute = (flops + heard) / samples * slots / speed
    network = network_seconds(parameters(config), cluster, recipe.replicas, parts)
    return Figures(
        parameters=parameters(config),
        trained_bytes=memory(config, setup),
        card_bytes=cluster.card.memory,
        steps=steps,
        samples_per_step=samples,
        chunks=chunks,
        tokens_per_step=samples * chunks * side * side,
        parts=parts,
        step_flops=flops,
        step_hardware_flops=samples * hardware_flops(config, [chunks], grid, recipe.checkpointing),
        thinker_step_flops=heard,
        run_flops=steps * (flops + heard),
        compute_s=compute,
        network_s=network,
        hours=steps * max(compute, network) / 3600,
    )


def network_seconds(whole: int, cluster: Cluster, replicas: int, parts: int) -> float:
    """Of a step's traffic between nodes. Within a group that spans nodes, every node receives all weights (bfloat16)
    for each forward and each backward pass, and gives all gradients (float32) once; copies then sum theirs."""
    group = cluster.gpus // replicas
    node = min(NODE, cluster.gpus)
    moved = 0.0
    if group > NODE:
        moved += parts * 2 * 2 * whole + 4 * whole
    if replicas > 1 and cluster.gpus > NODE:
        moved += 2 * 4 * whole * max(1, node / group) * min(1, node / group)
    return moved / (node * cluster.network)


def advice(recipe: Recipe, corpus: Corpus, cluster: Cluster) -> str:
    """What to change where it does not fit, or to be faster; "" where nothing is to be said."""
    now = figures(recipe, corpus, cluster)
    if not now.fits:
        return _fitting(recipe, corpus, cluster) or _larger(recipe, corpus, cluster)
    if now.network_s <= now.compute_s:
        return ""
    for count in _divisors(cluster.gpus):
        changed = replace(recipe, replicas=max(count, recipe.replicas))
        found = figures(changed, corpus, cluster) if cluster.gpus % changed.replicas == 0 else now
        if found.fits and found.hours < 0.95 * now.hours:
            return (
                f"the network is the limit; {' '.join(_changes(recipe, changed))} takes {duration(3600 * found.hours)}"
            )
    return "the network is the limit: a larger batch, or fewer GPUs"


def _fitting(recipe: Recipe, corpus: Corpus, cluster: Cluster) -> str:
    """How it fits these GPUs; "" where it never does."""
    for states in dict.fromkeys((corpus.states, True)):
        for changed in _ways(recipe, cluster.gpus):
            found = figures(changed, replace(corpus, states=states), cluster)
            if found.fits:
                stored = [] if states == corpus.states else ["the Thinker's states stored with the samples (--states)"]
                said = " and ".join([*_changes(recipe, changed), *stored])
                return f"it fits ({gb(found.trained_bytes.total)}) with {said}"
    return ""


def _larger(recipe: Recipe, corpus: Corpus, cluster: Cluster) -> str:
    """From how many GPUs on it fits."""
    gpus = 2 * cluster.gpus
    while gpus <= min(recipe.batch, corpus.samples):
        said = _fitting(replace(recipe, replicas=1), corpus, replace(cluster, gpus=gpus))
        if said:
            return f"no setting fits; on {gpus} GPUs {said}"
        gpus *= 2
    return "no setting fits: larger GPUs, a larger batch over more of them, shorter samples or a smaller preset"


def _ways(recipe: Recipe, gpus: int) -> Iterator[Recipe]:
    """Settings that may take less memory, those that change least first. A larger micro_batch is one of them: a step of
    a single one exchanges its gradients at once and never holds them whole."""
    micro = [recipe.micro_batch]
    while micro[-1] > 1:
        micro.append(micro[-1] // 2)
    micro.append(max(recipe.micro_batch, -(-recipe.batch // gpus)))
    fewer = [count for count in reversed(_divisors(gpus)) if count <= recipe.replicas]
    found = product(sorted({recipe.checkpointing, True}), dict.fromkeys(micro), fewer)
    ways = [replace(recipe, checkpointing=c, micro_batch=m, replicas=r) for c, m, r in found]
    yield from sorted(ways, key=lambda way: len(_differing(recipe, way)))


def _divisors(number: int) -> list[int]:
    return [count for count in range(1, number + 1) if number % count == 0]


def _differing(old: Recipe, new: Recipe) -> list[str]:
    return [key for key in ("checkpointing", "micro_batch", "replicas") if getattr(old, key) != getattr(new, key)]


def _changes(old: Recipe, new: Recipe) -> list[str]:
    """As options, which the shell takes as they are."""
    return [f"--set {key}={json.dumps(getattr(new, key))}" for key in _differing(old, new)]


def gb(size: int) -> str:
    """For people."""
    return f"{size / 1e9:,.0f} GB"


def duration(seconds: float) -> str:
    """For people."""
    for least, size, unit in ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "hours"), (120, 60, "minutes"), (1, 1, "s")):
        if seconds >= least:
            return f"{seconds / size:,.1f} {unit}"
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 2}f} ms"
