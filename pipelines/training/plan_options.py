"""The options of `train` that go with --plan, apart from what they mean, so that `--help` loads nothing."""

from __future__ import annotations

import argparse

PAPER_GPUS, PAPER_GPU = 256, "a100-80"


def plan_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds them."""
    group = sub.add_argument_group("with --plan")
    group.add_argument(
        "--gpus", type=int, metavar="N", help=f"(default: {PAPER_GPUS}, the paper's; fewer where batch is less)"
    )
    group.add_argument("--gpu", default=PAPER_GPU, help=f"a100-80, h100 or h200 (default: {PAPER_GPU}, the paper's)")
    group.add_argument("--mfu", type=float, metavar="SHARE", help="of the GPUs' FLOP/s (default: what is published)")
    group.add_argument("--hours", type=float, metavar="H", help="of video, where there are no shards yet")
    group.add_argument("--samples", type=int, metavar="N", help="that they are cut into (default: 5.5 s each)")
    group.add_argument(
        "--longest", type=float, metavar="S", help="seconds of the longest sample (default: 20; sft: 60)"
    )
    group.add_argument("--size", type=int, metavar="PX", help="of the video, where there are no shards (default: 256)")
    group.add_argument("--states", action="store_true", help="samples will store the Thinker's states")
