"""`xstreamer train --plan`: what a run will be, take and cost, before anyone rents the cluster."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from manifests.errors import UsageError
from models.actor_facts import Memory, thinker_facts
from models.clock import MAX_CLIP_SECONDS, MAX_LONG_SECONDS
from pipelines.training.plan_figures import (
    MFU_SOURCE,
    NODE,
    PIXELS,
    Cluster,
    Corpus,
    Figures,
    advice,
    cluster_of,
    duration,
    figures,
    gb,
)
from pipelines.training.plan_options import PAPER_GPUS
from training.recipe import Recipe, load_recipe, override, shipped

EXIT_DONE = 0
PAPER = {
    "pretrain": (2_780_920, 4248.6 * 3600, MAX_CLIP_SECONDS),
    "finetune": (217_074, 331.64 * 3600, MAX_LONG_SECONDS),
}
"""The paper's corpora (A.1): samples, seconds, the longest."""
MEAN_SECONDS = 5.5
"""Of the paper's clips (4.1)."""


def run(options: argparse.Namespace) -> int:
    """Prints the plan of what the options of `train` mean; the exit code. Raises UsageError, DatasetError."""
    changes: dict[str, Any] = dict(override(text) for text in options.set)
    if options.steps is not None:
        changes["steps"] = options.steps
    if options.shards or options.weight:
        from pipelines.training.asked import named

        changes["datasets"] = named(options.shards, options.weight, options.profile)
    recipe = load_recipe(_named(options.recipe), changes)
    cluster = cluster_of(
        min(PAPER_GPUS, recipe.batch) if options.gpus is None else options.gpus, options.gpu, options.mfu
    )
    corpus = corpus_of(recipe, options)
    print_plan(recipe, corpus, cluster, options.json)
    return EXIT_DONE


def _named(recipe: str | None) -> str:
    if not recipe:
        raise UsageError(f"name a recipe: --recipe {', '.join(shipped())} or a TOML file")
    return recipe


def corpus_of(recipe: Recipe, options: argparse.Namespace) -> Corpus:
    """From the shards where there are any, else from --hours, else the paper's. Raises UsageError, DatasetError."""
    if recipe.datasets:
        if options.hours is not None or options.samples is not None:
            raise UsageError("the shards say how many hours and samples they have; leave --hours and --samples out")
        return _listed(recipe, options.longest)
    known = PAPER.get(recipe.name)
    size = 256 if options.size is None else options.size
    longest = options.longest or (known[2] if known else MAX_CLIP_SECONDS)
    if options.hours is not None:
        possible = 0 < options.hours < math.inf
        seconds = 3600 * options.hours
        samples = options.samples or max(1, round(seconds / MEAN_SECONDS)) if possible else 0
        origin = "--hours"
    elif known is None or options.samples is not None:
        raise UsageError("name shards to plan for, or --hours of video (with --samples, how many)")
    else:
        (samples, seconds, _), origin = known, "the paper's corpus (A.1)"
    if not (samples >= 1 and seconds / samples <= longest < math.inf and size >= 1 and not size % PIXELS):
        raise UsageError(
            f"{samples} samples of {seconds / 3600:g} h at {size} px, the longest {longest:g} s, cannot be; "
            f"--size divides by {PIXELS}"
        )
    return Corpus(samples, seconds, longest, size, options.states, thinker_facts(recipe.thinker).hidden, origin)


def _listed(recipe: Recipe, longest: float | None) -> Corpus:
    from training.contract import wanted_by
    from training.data import open_data

    data = open_data(recipe.datasets, wanted_by(recipe.thinker))
    listings = data.listings
    seconds = sum(listing.seconds * listing.weight for listing in listings)
    if not seconds:
        raise UsageError("the shards' index does not say how long they are; pack again, or give --hours and --samples")
    long = any("sft" in (dataset.profile, dataset.path.rstrip("/").split("/")[-1]) for dataset in recipe.datasets)
    return Corpus(
        data.plan(recipe).samples,
        seconds,
        longest or (MAX_LONG_SECONDS if long else MAX_CLIP_SECONDS),
        data.contract.grid[0] * PIXELS,
        bool(data.contract.thinker),
        data.contract.hidden or thinker_facts(recipe.thinker).hidden,
        ", ".join(listing.place for listing in listings),
    )


def as_json(recipe: Recipe, corpus: Corpus, cluster: Cluster) -> dict[str, Any]:
    """All figures, in bytes, FLOPs, seconds and hours."""
    found = figures(recipe, corpus, cluster)
    body = {key: value for key, value in asdict(found).items() if key != "trained_bytes"}
    memory_bytes = {**asdict(found.trained_bytes), "total": found.trained_bytes.total}
    settings = ("preset", "thinker", "batch", "micro_batch", "replicas", "checkpointing", "dtype", "compile", "ema")
    return {
        "recipe": {"name": recipe.name, **{key: getattr(recipe, key) for key in settings}},
        "corpus": asdict(corpus),
        "cluster": {"gpus": cluster.gpus, "gpu": cluster.card.name, "mfu": cluster.mfu, "mfu_source": MFU_SOURCE},
        **body,
        "memory_bytes": memory_bytes,
        "fits": found.fits,
        "gpu_hours": found.hours * cluster.gpus,
        "advice": advice(recipe, corpus, cluster),
    }


def print_plan(recipe: Recipe, corpus: Corpus, cluster: Cluster, as_object: bool = False) -> None:
    """To standard output: two tables, or one JSON object."""
    if as_object:
        print(json.dumps(as_json(recipe, corpus, cluster)))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found, console = figures(recipe, corpus, cluster), Console()
    title = f"{recipe.name}: {recipe.preset} Actor on {cluster.gpus} x {cluster.card.name}"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    for name, value, remark in _rows(recipe, corpus, cluster, found):
        table.add_row(name, value, f"[dim]{remark}[/dim]")
    console.print(table)
    console.print(_memory_table(found.trained_bytes, found.card_bytes, Table, box.SIMPLE_HEAD))
    said = advice(recipe, corpus, cluster)
    if not found.fits:
        total, card = found.trained_bytes.total, found.card_bytes
        console.print(f"[bold red]it does not fit:[/bold red] {gb(total)} of {gb(card)}")
    if said:
        console.print(said, soft_wrap=True)


def _rows(recipe: Recipe, corpus: Corpus, cluster: Cluster, found: Figures) -> Iterator[tuple[str, str, str]]:
    """(what, value, where it is from)."""
    hours = corpus.seconds / 3600
    longest = f"the longest {corpus.longest:g} s, {corpus.size} px"
    yield "data", f"{corpus.samples:,} samples, {hours:,.1f} h", f"{corpus.origin}; {longest}"
    yield "parameters", _count(found.parameters, ""), "all trained"
    length = "epochs" if recipe.epochs else "steps of the recipe"
    count = f"{recipe.epochs} {length}" if recipe.epochs else length
    passes = found.steps * found.samples_per_step / corpus.samples
    yield "steps", f"{found.steps:,}", count if recipe.epochs else f"{count}; {passes:,.0f} passes over the data"
    mean = f"{found.chunks} chunks of {(corpus.size // PIXELS) ** 2} in the mean sample"
    yield "tokens a step", f"{found.tokens_per_step:,}", f"{found.samples_per_step} samples, {mean}"
    each = f"micro_batch {recipe.micro_batch}, {found.parts} a step"
    yield "tokens a GPU", f"{found.tokens_per_step / cluster.gpus:,.0f}", f"a step; {each}"
    computed = f"computed {found.step_hardware_flops / found.step_flops:.2f} times that"
    yield "FLOPs a step", _flops(found.step_flops), f"forward and backward; {computed}"
    thinker = "its states are stored" if corpus.states else f"{recipe.thinker}, forward alone, for every sample anew"
    yield "  of the Thinker", _flops(found.thinker_step_flops), thinker
    yield "FLOPs of the run", _flops(found.run_flops), "both"
    stated = f"of {cluster.card.flops / 1e12:,.0f} TFLOP/s in bfloat16"
    slow = "; this recipe computes in float32, which is slower" if recipe.dtype == "float32" else ""
    yield "assumed MFU", f"{cluster.mfu:.0%}", f"{stated}{slow}; {MFU_SOURCE}"
    nodes = f"between nodes of {NODE}, {8 * cluster.network / 1e9:,.0f} Gbit/s a GPU, full"
    slower = "the limit" if found.network_s > found.compute_s else "hidden behind the computation"
    network = f"network {duration(found.network_s)} ({nodes}): {slower}" if found.network_s else "one node"
    yield "step", duration(found.compute_s), network
    spent = f"{found.hours * cluster.gpus:,.1f} GPU hours"
    yield "expected", duration(3600 * found.hours), f"{spent}; without saving, validation, failures and data wait"


PARTS = {
    "weights": "float32, split",
    "gradients": "float32, split; whole where a step has several micro-batches",
    "moments": "AdamW's two, float32, split",
    "average": "EMA, float32, split",
    "gathered": "bfloat16 weights in use, gradients on their way",
    "activations": "kept for the backward pass, of the longest samples",
    "backward": "what it needs beside them",
    "thinker": "frozen, whole",
    "reserve": "assumed: driver, network buffers, gaps",
}


def _memory_table(found: Memory, card: int, table_type: Any, style: Any) -> Any:
    table = table_type(title="memory of a GPU", box=style, title_justify="left")
    for name, side in (("part", "left"), ("GB", "right"), ("", "left"), ("", "left")):
        table.add_column(name, justify=side)
    for name, value in vars(found).items():
        table.add_row(name, f"{value / 1e9:,.1f}", _bar(value / card), f"[dim]{PARTS[name]}[/dim]")
    table.add_section()
    share = found.total / card
    table.add_row("all", f"{found.total / 1e9:,.1f}", _bar(share), f"{share:.0%} of {gb(card)}")
    return table


def _bar(share: float, width: int = 20) -> str:
    filled = min(width, round(share * width))
    return "█" * filled + "[dim]" + "·" * (width - filled) + "[/dim]"


def _flops(count: float) -> str:
    return _count(count, "FLOP") if count else "none"


def _count(count: float, unit: str) -> str:
    power = min(8, max(0, math.floor(math.log10(count) / 3)))
    prefix = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")[power] if unit else ("", "k", "M", "B", "T")[power]
    return f"{count / 1000**power:,.2f} {prefix}{unit}"
