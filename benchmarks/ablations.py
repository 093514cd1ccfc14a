"""The paper's Table 2 in small: the Actor as it is, and without each of its three ideas, rolled out for a minute.

    python -m benchmarks.ablations SHARDS -o RUNS [--steps 1000] [--seeds 3] [--seconds 60] [--jobs 2] [--docs docs]

SHARDS is a profile's folder of shards whose samples store the bundled Thinker's states, few and small ones (128 x 128)
for a CPU. Every variant is the recipe `tiny` with a short window and one switch turned, nothing else; every seed
trains anew. Then four portraits, the first frame of each of two clips and another frame of it, say the same minute of
speech, chunk after chunk (stride = denoising steps: the one order in which a teacher-forced Actor too sees the history
that it was trained on). The whole Actor is rolled out once more as it streams, at stride 1. A run that is there already is
not computed again. `benchmarks.ablation_figures` measures, and draws what --docs is for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation_figures import Rollouts, write_docs
from manifests.samples import read_tar
from manifests.shards import read_index
from manifests.store import Store
from models.actor import Speech
from models.actor_weights import load_actor
from models.clock import CHUNK_SECONDS, CHUNK_SPEECH_TOKENS, SPEECH_HZ
from models.dialogue_layout import layout
from models.memory import keep_freed_memory
from models.sampler import rollout
from models.thinker import BUNDLED, hidden_states, load_thinker
from training.events import Step, Validated
from training.export import export_actor
from training.reading import npy_array
from training.recipe import Dataset, load_recipe
from training.trainer import Run, train

VARIANTS: dict[str, dict[str, str]] = {
    "X-Streamer": {},
    "w/o diffusion forcing": {"history": "teacher_forcing"},
    "w/o global ID ref": {"reference": "none"},
    "token-wise causal attn": {"attention": "token_causal"},
}
"""The rows of the paper's Table 2, and the one switch that each turns."""
PORTRAITS = 4
WINDOW = 8
"""Chunks that are seen, 2.56 s: half of a short clip, so that training sees it slide; a minute leaves it behind 23
times."""
DENOISING = 10
"""Denoising steps a chunk, for every variant; the paper's 25 would take most of the time and change little at 128 px."""


@dataclass(frozen=True, eq=False)
class Material:
    """What rollouts need. portraits: [PORTRAITS, 128, h, w]; real: latents [k, 128, h, w] of every sample; text,
    speech: tokens of all samples, one after another."""

    portraits: torch.Tensor
    real: list[np.ndarray]
    text: np.ndarray
    speech: np.ndarray


def material(shards: str) -> Material:
    """Reads the training split of `shards`."""
    found = list(samples(shards, "index.json"))
    latents = [sample["latents"].astype(np.float32) for sample in found]
    faces = [face for sample in found for face in (sample["latents"][0], sample["reference"][-1])]
    portraits = torch.from_numpy(np.stack(faces[:PORTRAITS]).astype(np.float32))
    tokens = (np.concatenate([sample[name] for sample in found]) for name in ("text", "speech"))
    return Material(portraits, latents, *tokens)


def samples(shards: str, index: str) -> Iterator[dict[str, np.ndarray]]:
    """Latents, text and speech of every sample that an index lists."""
    parent, _, folder = shards.rstrip("/").rpartition("/")
    store = Store(parent or ".")
    for shard in read_index(store, folder, index)["shardlist"]:
        with store.open(f"{folder}/{shard['url']}") as file:
            for _, members in read_tar(file):
                yield {
                    name: npy_array(members[f"{name}.npy"], name) for name in ("latents", "reference", "text", "speech")
                }


def minute(found: Material, chunks: int, batch: int) -> Speech:
    """`chunks` chunks of all that anybody says, from the beginning again where it ends; the same for each portrait."""
    thinker = load_thinker(BUNDLED)
    needed = chunks * CHUNK_SPEECH_TOKENS
    sequence = layout(thinker.vocabulary, found.text, np.resize(found.speech, needed))
    states = torch.from_numpy(hidden_states(thinker, sequence)).float()
    segments, ticks = torch.from_numpy(sequence.turn.segment), torch.from_numpy(sequence.turn.times * SPEECH_HZ)
    return Speech(*(each.expand(batch, *each.shape) for each in (states, segments, ticks)))


def one(arguments: argparse.Namespace) -> None:
    """Trains and rolls out one variant with one seed; writes its losses and latents."""
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = run_folder(arguments.output, arguments.one, arguments.seed)
    trained(arguments, folder)
    export_actor(folder / "run", folder / "actor")
    actor, _ = load_actor(folder / "actor", "cpu", "float32")
    found, chunks = material(arguments.shards), round(arguments.seconds / CHUNK_SECONDS)
    speech = minute(found, chunks, PORTRAITS)
    rolls = {"latents": DENOISING} | ({} if VARIANTS[arguments.one] else {"streamed": 1})
    made = {
        key: torch.stack(
            list(rollout(actor, found.portraits, speech, chunks, steps=DENOISING, stride=stride, seed=arguments.seed)),
            1,
        )
        for key, stride in rolls.items()
    }
    part = folder / "rollout.part.npz"
    arrays: dict[str, Any] = {key: value.numpy().astype(np.float16) for key, value in made.items()}
    np.savez(part, **arrays)
    part.replace(folder / "rollout.npz")


def trained(arguments: argparse.Namespace, folder: Path) -> None:
    """Trains unless that is done; FOLDER/losses.json is written last."""
    losses = folder / "losses.json"
    if losses.is_file():
        return
    name = arguments.one
    changes: dict[str, Any] = {
        "seed": arguments.seed,
        "window": WINDOW,
        "cooldown": 0.0,  # as the figures of docs/ablations.md were made
        "steps": arguments.steps,
        "datasets": (Dataset(arguments.shards),),
        "validate_every": max(1, arguments.steps // 5),
        "validate_samples": 4,
        "sample_every": 0,
        "save_every": arguments.steps,
        **VARIANTS[name],
    }
    steps, validated = [], []
    for event in train(Run(load_recipe("tiny", changes), folder / "run", device="cpu")):
        if isinstance(event, Step):
            steps.append((event.step, round(event.loss, 4), event.by_level))
        if isinstance(event, Validated):
            validated.append((event.step, event.average_loss))
            recent = float(np.mean([loss for _, loss, _ in steps[-50:]]))
            print(f"{name} {arguments.seed}: step {event.step} of {arguments.steps}, {recent:.3f}", flush=True)
    losses.write_text(json.dumps({"steps": steps, "validated": validated}))


def run_folder(output: Path, name: str, seed: int) -> Path:
    """Where a variant's run with a seed lies."""
    return output / f"{'-'.join(name.replace('/', '').split())}-{seed}"


def compute(arguments: argparse.Namespace) -> None:
    """Every run that is not there yet, `jobs` at a time, each in a process of its own."""
    missing = [
        (name, seed)
        for seed in range(arguments.seeds)
        for name in VARIANTS
        if not (run_folder(arguments.output, name, seed) / "rollout.npz").is_file()
    ]

    def process(task: tuple[str, int]) -> None:
        name, seed = task
        command = [sys.executable, "-m", "benchmarks.ablations", arguments.shards, "-o", str(arguments.output)]
        command += ["--steps", str(arguments.steps), "--seconds", str(arguments.seconds)]
        subprocess.run([*command, "--one", name, "--seed", str(seed)], check=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(process, missing))


def gathered(arguments: argparse.Namespace) -> list[Rollouts]:
    """What the runs left, by variant; the whole Actor twice: chunk after chunk, and as it streams."""
    rows = []
    for name, key in [*((name, "latents") for name in VARIANTS), ("X-Streamer", "streamed")]:
        files = [np.load(run_folder(arguments.output, name, seed) / "rollout.npz") for seed in range(arguments.seeds)]
        latents = [file[key].astype(np.float32) for file in files]
        rows.append(
            Rollouts(
                name, key == "streamed", latents, [final_loss(arguments, name, seed) for seed in range(arguments.seeds)]
            )
        )
    return rows


def final_loss(arguments: argparse.Namespace, name: str, seed: int) -> float:
    """Mean training loss of the last tenth of the steps."""
    steps = json.loads((run_folder(arguments.output, name, seed) / "losses.json").read_text())["steps"]
    return float(np.mean([loss for _, loss, _ in steps[-max(1, len(steps) // 10) :]]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments)
        return
    compute(arguments)
    found = material(arguments.shards)
    figures = write_docs(gathered(arguments), found.portraits.numpy(), found.real, arguments.docs or arguments.output)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
