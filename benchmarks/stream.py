"""What a stream costs: the Actor, the Thinker, and both on one device, against real time and what the GPU allows.

    python -m benchmarks.stream [--only actor,thinker,stream,endless] [--runs 5] [--json]

On a GPU: random weights of the true size (9B Actor, the numbers of GLM-4-Voice-9B), bfloat16, drawn on the device. On a
CPU: `tiny` and the bundled Thinker, the same tables, without goals. Needs torch, numpy and safetensors; thinker and
stream need transformers; dct3d and fsq need scipy, ltx needs diffusers: a setting that lacks something, fails or does
not fit is a row that says so.

actor: ms a chunk of an engine that has been running for long (ring full, all chunks in flight, states in time), against
all weights read once a pass and against the FLOPs of what a pass must do. thinker: tokens a second, read one by one:
`forward` alone, and `drawn`, as a dialogue does it: the next token sampled, its state on the host; against the weights
that a token reads. stream: the runner's own figures from a question on; first frame: from the first segment to the
first chunk that can be shown, decoded, with its sound. endless: whether time a chunk or memory rises over 10,000
chunks of one engine (small pictures, N = 4). Each N, each Thinker and each stream has a process of its own,
so that its memory is its own. Spreads are over repetitions in that process: median (least-most).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.stream_models import SMALL, TRUE, thinker_name
from benchmarks.train import table
from models.actor_config import actor_config
from models.actor_facts import parameters, thinker_facts
from training.watch import card_of

Row = Mapping[str, Any]
PARTS = ("actor", "thinker", "stream", "endless")
SETTINGS = {
    True: "none+none:25:1,dct3d+fsq:25:1,dct3d+fsq:25:5,dct3d+fsq:10:2,ltx-0.9.0+glm:25:1,ltx-0.9.0+glm:25:5,ltx-0.9.0+glm:10:2",
    False: "none+none:25:1,dct3d+fsq:25:1,dct3d+fsq:10:2",
}
"""Of streams, on a GPU and on a CPU."""
PAPER = {"thinker": 51.2, "actor": 58.2}
"""Seconds of work a minute on A100s (3.2)."""
TITLES = {
    "actor": f"actor, alone; the paper on an A100: {PAPER['actor']} s a minute",
    "thinker": f"thinker, alone; the paper on an A100: {PAPER['thinker']} s a minute",
    "stream": f"stream, both on one device; the paper on A100s: {PAPER['thinker']} + {PAPER['actor']} s a minute, 53 GB",
    "endless": "one engine that goes on and on",
}


def asked(part: str, options: argparse.Namespace, cuda: bool) -> Iterator[dict[str, Any]]:
    """What each process is asked for: the arguments of `actor_rows` and its like."""
    common = {"preset": options.preset, "runs": options.runs}
    grid = [int(side) for side in options.grid.split("x")]
    if part == "actor":
        for steps in options.steps:
            wanted = [steps if each == "N" else int(each) for each in options.strides.split(",")]
            yield {**common, "steps": steps, "strides": sorted({min(each, steps) for each in wanted}), "grid": grid}
    elif part == "thinker":
        for graphs in (True, False)[: 1 + cuda]:
            yield {**common, "graphs": graphs, "contexts": options.contexts, "tokens": options.tokens}
    elif part == "endless":
        yield {"preset": options.preset, "chunks": options.chunks, "steps": 4, "grid": [2, 2]}
    else:
        for setting in options.settings.split(","):
            yield {**common, "setting": setting, "seconds": options.seconds, "grid": grid}


def rows_of(part: str, wanted: Mapping[str, Any], patience: float) -> list[Row]:
    """Of a process of its own; what it said before it failed counts."""
    command = [sys.executable, "-m", "benchmarks.stream", "--once", json.dumps([part, wanted])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    failed = ""
    try:
        said, told = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        said, told = process.communicate()
        failed = f"no end after {patience:.0f} s"
    if process.returncode and not failed:
        failed = (told.strip().splitlines() or [f"ended with {process.returncode}"])[-1][:160]
    rows: list[Row] = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    if failed:
        names = {"actor": "N", "thinker": "CUDA graphs", "stream": "setting", "endless": "chunks"}
        value = wanted[{"actor": "steps", "thinker": "graphs", "stream": "setting", "endless": "chunks"}[part]]
        rows.append({names[part]: {True: "yes", False: "no"}[value] if part == "thinker" else value, "failed": failed})
    print(f"{part} {json.dumps(wanted)}: {failed or 'done'}", file=sys.stderr)
    return rows


def once(part: str, wanted: Mapping[str, Any]) -> None:
    """In a process of its own: a line a row, as they come."""
    if part == "stream":
        from benchmarks.stream_both import stream_rows as measure
    elif part == "endless":
        from benchmarks.stream_endless import endless_rows as measure  # type: ignore[assignment]
    elif part == "actor":
        from benchmarks.stream_parts import actor_rows as measure  # type: ignore[assignment]
    else:
        from benchmarks.stream_parts import thinker_rows as measure  # type: ignore[assignment]
    if not torch.cuda.is_available():
        from models.memory import keep_freed_memory

        keep_freed_memory()
    for row in measure(**wanted):
        print(json.dumps(row), flush=True)


def goals(found: Mapping[str, Sequence[Row]]) -> list[Row]:
    """What is wanted on one H200 beside the best that was found, and in which setting; the Thinker's counts where most
    was said before."""
    actor = [row for row in found.get("actor", ()) if row.get("N") == 25]
    longest = max((row["context"] for row in found.get("thinker", ()) if "context" in row), default=0)
    thinker = [
        row for row in found.get("thinker", ()) if (row.get("CUDA graphs"), row.get("context")) == ("yes", longest)
    ]
    stream = [row for row in found.get("stream", ()) if not str(row.get("setting")).startswith("none")]
    return [
        _goal("actor, N = 25: x real time", ">=", 5, actor, "x real time"),
        _goal("thinker: % of the bandwidth limit", ">=", 60, thinker, "drawn % of limit"),
        _goal("both on one device: x real time", ">=", 2, stream, "x real time"),
        _goal("first frame after the first segment, s", "<", 0.6, stream, "first frame s"),
    ]


def _goal(what: str, sense: str, wanted: float, rows: Sequence[Row], name: str) -> Row:
    """The best of the rows: its median."""
    values = [
        (row[name]["median"] if isinstance(row[name], Mapping) else row[name], row) for row in rows if name in row
    ]
    goal: dict[str, Any] = {"goal": what, "wanted": f"{sense} {wanted}"}
    if not values:
        return {**goal, "found": "not measured"}
    value, row = (min if sense == "<" else max)(values, key=lambda pair: pair[0])
    met = value < wanted if sense == "<" else value >= wanted
    where = ", ".join(f"{key} {row[key]}" for key in ("setting", "N", "stride", "context") if key in row)
    return {**goal, "found": float(value), "met": "yes" if met else "no", "where": where}


def facts(preset: str, cuda: bool) -> Row:
    """What ran: the machine, the models, what their GPU is said to do."""
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    thinker = thinker_facts(thinker_name(preset))
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "preset": preset}
    found["actor parameters"] = parameters(actor_config(preset, thinker.hidden))
    found["thinker parameters"] = thinker.parameters
    card = card_of(torch.device("cuda")) if cuda else None
    if card is not None:
        found |= {"TB/s": card.bandwidth / 1e12, "TFLOP/s": card.flops / 1e12}
    return found


def parsed() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--json", action="store_true")
    options.add_argument("--preset", help=f"of the Actor (default: {TRUE} on a GPU, {SMALL} on a CPU)")
    options.add_argument("--steps", type=int, nargs="+", default=[10, 25], help="N of the Actor")
    options.add_argument("--strides", default="1,2,5,N", help="of the Actor (default: 1,2,5,N)")
    options.add_argument("--grid", default="8x8", help="latents of a picture (default: 8x8, 256 x 256 px)")
    options.add_argument("--contexts", type=int, nargs="+", default=[512, 4096, 7936], help="tokens before the Thinker")
    options.add_argument("--tokens", type=int, default=39, help="that the Thinker reads a run (default: a segment)")
    options.add_argument(
        "--settings", help="of streams: PICTURES+SOUND:N:STRIDE,... (dct3d, ltx-0.9.0; fsq, glm; none)"
    )
    options.add_argument("--chunks", type=int, default=10_000, help="of the endless stream (default: 10000)")
    options.add_argument("--seconds", type=float, help="of a stream (default: 20 on a GPU, 2.56 on a CPU)")
    options.add_argument("--patience", type=float, default=1800, help="seconds that a process may take")
    options.add_argument("--once", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    wrong = set(chosen.only.split(",")) - set(PARTS)
    if wrong:
        options.error(f"--only {sorted(wrong)[0]}: choose from {', '.join(PARTS)}")
    return chosen


def main() -> None:
    options = parsed()
    if options.once:
        once(*json.loads(options.once))
        return
    cuda = torch.cuda.is_available()
    options.preset = options.preset or (TRUE if cuda else SMALL)
    options.settings = options.settings or SETTINGS[cuda]
    options.seconds = options.seconds or (20.0 if cuda else 2.56)
    told = facts(options.preset, cuda)
    found = {
        part: [row for wanted in asked(part, options, cuda) for row in rows_of(part, wanted, options.patience)]
        for part in options.only.split(",")
    }
    if cuda:
        found["goals"] = goals(found)
    if options.json:
        print(json.dumps({**told, "paper": PAPER, **found}))
        return
    print(", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in told.items()))
    for part, rows in found.items():
        table(TITLES.get(part, "goals on one H200: the best of the rows above"), rows)


if __name__ == "__main__":
    main()
