"""What the paper's models cost on this machine's CPU: weights of the true size (random values), one thread.

    python -m benchmarks.models [--stages sync,quality] [--seconds 10] [--runs 3]

Each backend runs in a process of its own on a made talking head; the stages that it reads are the bundled
recipe's and are not counted. `load` is the first clip less a later one. Random weights find nothing sensible, so what
depends on what was found (words decoded, texts read) is not what real weights cost: the columns say what ran.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
BUNDLED = ("duplicates", "preview", "speech")
"""Stages whose backend is the same in both recipes."""


def weights_of(stage: str, params: dict[str, Any]) -> list[str]:
    """Models that the paper's backend of `stage` fetches."""
    from curation.registry import build_stage
    from models.weights import catalogue

    names = build_stage(stage, params["backend"], {k: v for k, v in params.items() if k != "backend"}).weights()
    return [name for name in names if not catalogue()[name].package]


def once(stage: str, params: dict[str, Any], seconds: float, runs: int) -> dict[str, Any]:
    """Measures the clip `runs` + 1 times in this process."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    from curation.clip import Clip
    from curation.media import probe
    from curation.registry import build_stage
    from curation.stage import Unmeasured
    from pipelines.recipe import build_stages, load_recipe
    from pipelines.sample import Scene, make_video

    path = make_video(Path(os.environ["BENCH_FOLDER"]) / f"{stage}.mp4", [Scene("speech_en_1", seconds)])
    built = build_stage(stage, params["backend"], {k: v for k, v in params.items() if k != "backend"})
    others = build_stages(load_recipe("bundled"))
    row = {"clip_id": "0-0-0", "source_id": "0", "start_s": 0.0, "end_s": seconds}
    clip = Clip("0-0-0", str(path), probe(str(path)), 0.0, seconds, row=row, stages=others)
    for name, other in others.items():
        if name in closure(built.reads, others):
            result = other.measure(clip)
            clip.record(name, result.measures, result.evidence, result.product)
    took, before = [], clip.media_seconds
    for _ in range(runs + 1):
        began, media = time.perf_counter(), clip.media_seconds
        try:
            found: Any = dict(built.measure(clip).measures)
        except Unmeasured as reason:
            found = f"unmeasured: {reason}"
        took.append(time.perf_counter() - began - (clip.media_seconds - media))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "load_s": took[0] - statistics.median(took[1:]),
        "runs": took[1:],
        "peak_mb": peak,
        "found": str(found)[:300],
        "media": before,
    }


def closure(reads: tuple[str, ...], stages: Any) -> set[str]:
    """`reads` and all that they read."""
    return {found for name in reads for found in (name, *closure(stages[name].reads, stages))}


def measured(stage: str, params: dict[str, Any], seconds: float, runs: int) -> dict[str, Any]:
    """Makes the weights and measures in a process of its own."""
    sys.path.insert(0, str(TESTS))
    from makers import mirror

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "models"
        names = weights_of(stage, params)
        mirror.unpublished(root, *names)
        for name in names:
            code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from pathlib import Path; from makers import every; every.make({name!r}, Path({str(root)!r}), True)"
            subprocess.run([sys.executable, "-c", code], check=True)
        size = sum(file.stat().st_size for name in names for file in (root / name).iterdir())
        environment = {**os.environ, "XSTREAMER_MODELS": str(root), "BENCH_FOLDER": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.models", "--once", json.dumps([stage, params, seconds, runs])]
        told = subprocess.run(command, env=environment, capture_output=True, text=True)
        if told.returncode:
            return {"stage": stage, "models": names, "error": told.stderr.strip().splitlines()[-1][:300]}
        return {"stage": stage, "models": names, "size_mb": size / 1e6, **json.loads(told.stdout.splitlines()[-1])}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--stages", default="", help="some stages, comma-separated (default: all of the recipe)")
    options.add_argument("--seconds", type=float, default=10.0, help="of video (default: 10)")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--once", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.once:
        print(json.dumps(once(*json.loads(chosen.once))))
        return
    from pipelines.recipe import load_recipe

    recipe = load_recipe("paper").on("cpu")
    wanted = chosen.stages.split(",") if chosen.stages else [s for s in recipe.stages if s not in BUNDLED]
    print(f"{'stage':12} {'backend':20} {'MB':>7} {'load s':>7} {'ms/s of video (spread)':>28} {'peak MB':>8}  models")
    for stage in wanted:
        params = dict(recipe.stages[stage])
        found = measured(stage, params, chosen.seconds, chosen.runs)
        if "error" in found:
            print(f"{stage:12} {params['backend']:20} {found['error']}")
            continue
        cost = sorted(1000 * run / chosen.seconds for run in found["runs"])
        shown = f"{statistics.median(cost):.0f} ({cost[0]:.0f}-{cost[-1]:.0f})"
        print(
            f"{stage:12} {params['backend']:20} {found['size_mb']:7.0f} {found['load_s']:7.1f} {shown:>28} {found['peak_mb']:8.0f}  {', '.join(found['models'])}",
            flush=True,
        )
        print(f"{'':12} {found['found']}", flush=True)


if __name__ == "__main__":
    main()
