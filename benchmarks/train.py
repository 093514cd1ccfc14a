"""What training costs: reading samples, sparse against dense attention, and on a GPU whole steps.

    python -m benchmarks.train [--only loader,attention,step] [--runs 5] [--json]

Needs torch, numpy and safetensors. loader: samples a second of the trainer's loader, with two workers and with none,
against plain in-process `webdataset` decoding of the same shards of 344 kB samples, which are made here; left out where
webdataset is not installed. attention: forward and backward of Actor blocks with block-sparse (FlexAttention) and with
dense (SDPA with a mask) attention at 1K, 2K and 4K tokens; on a CPU, where FlexAttention has no backward, the forward of
attention alone. step: whole updates of `base` in bfloat16, compiled block by block: MFU, peak memory beside what
`models.actor_facts` says. All that is compared runs by turns in one process; a step's setting has a process of its own,
so that its peak is its own and one that does not fit ends nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Row = Mapping[str, Any]
PARTS = ("loader", "attention", "step")
SETTINGS = "4x17,8x17,16x17,2x62,4x62"
"""micro-batch x chunks: 17 chunks are the paper's mean clip, 62 its longest."""


def table(title: str, rows: Sequence[Row]) -> None:
    """Columns as wide as what is in them."""
    print(f"\n{title}")
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *[[_cell(row.get(name)) for name in names] for row in rows]]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    for line in cells:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{_cell(value['median'])} ({_cell(value['least'])}-{_cell(value['most'])})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def loader(options: argparse.Namespace) -> Sequence[Row]:
    from benchmarks.train_loader import measure

    return measure(options.runs, options.samples)


def attention(options: argparse.Namespace) -> Sequence[Row]:
    from benchmarks.train_attention import alone, in_blocks

    if not torch.cuda.is_available():
        return alone(torch.device("cpu"), options.tokens, options.runs)
    device = torch.device("cuda")
    return [*in_blocks(device, options.tokens, options.runs), *alone(device, options.tokens, options.runs)]


def step(options: argparse.Namespace) -> Sequence[Row]:
    """Each setting in a process of its own, without and with checkpointing."""
    rows: list[Row] = []
    for setting in options.settings.split(","):
        for checkpointing in (False, True):
            wanted = {"setting": setting, "checkpointing": checkpointing}
            keys = ("preset", "runs", "any_length", "compile")
            asked = json.dumps({**wanted, **{key: getattr(options, key) for key in keys}})
            command = [sys.executable, "-m", "benchmarks.train", "--once", asked]
            done = subprocess.run(command, capture_output=True, text=True)
            last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            rows.append(json.loads(done.stdout) if done.returncode == 0 else {**wanted, "failed": last[:160]})
            print(
                f"{setting} checkpointing {checkpointing}: {'done' if not done.returncode else last}", file=sys.stderr
            )
    return rows


TITLES = {
    "loader": "loader: samples a second, median (least-most); ratio to webdataset of the run's same turn",
    "attention": "attention: ms, median (least-most); ratio: dense / sparse of the same turn",
    "step": "step: forward, backward and update; MFU counts no second forward; memory in GB",
}
MEASURES: dict[str, Callable[[argparse.Namespace], Sequence[Row]]] = {
    "loader": loader,
    "attention": attention,
    "step": step,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--json", action="store_true")
    options.add_argument("--samples", type=int, default=1000, help="of the loader's shards")
    options.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="of attention")
    options.add_argument("--settings", default=SETTINGS, help=f"of steps: micro-batch x chunks (default: {SETTINGS})")
    options.add_argument("--preset", help="of steps (default: base on a GPU, tiny on a CPU)")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    options.add_argument(
        "--any-length",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="blocks compiled for any length, as in training (default), or for the measured one",
    )
    options.add_argument("--once", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.once:
        from benchmarks.train_step import once

        print(json.dumps(once(**json.loads(chosen.once))))
        return
    wrong = set(chosen.only.split(",")) - set(PARTS)
    if wrong:
        options.error(f"--only {sorted(wrong)[0]}: choose from {', '.join(PARTS)}")
    chosen.preset = chosen.preset or ("base" if torch.cuda.is_available() else "tiny")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    found = {name: MEASURES[name](chosen) for name in chosen.only.split(",")}
    if chosen.json:
        print(json.dumps({"device": card, "torch": torch.__version__, **found}))
        return
    print(f"{card}, torch {torch.__version__}, {chosen.runs} runs")
    for name, rows in found.items():
        table(TITLES[name], rows)


if __name__ == "__main__":
    main()
