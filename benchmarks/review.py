"""The review server on the paper's corpus, 2,780,920 clip rows: what a reviewer waits for, over HTTP.

    python -m benchmarks.review [--rows N] [--moves 40] [--keep FOLDER]

The server is a process of its own, started as the command starts it. Goals: the first page in 0.5 s, a move of a
slider in 0.3 s, at most 1 GB of memory. --keep: where the made dataset lies and stays, to be used again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.judge import ROWS, part
from manifests import dataset
from manifests.records import CLIP_STAGES
from manifests.store import Store
from manifests.tables import ROWS_PER_PART, SOURCES_TABLE
from pipelines.recipe import load_recipe

GOALS = {"first page": 500.0, "a slider moves": 300.0}
GOAL_MB = 1024
WORDS = np.array(["we", "were", "going", "to", "the", "city", "and", "nobody", "said", "it", "would", "rain", "there"])
CLIPS_A_SOURCE = 12
SPREAD = {
    "duration_s": (4.0, 20.0), "speech_share": (0.1, 1.0), "face_coverage": (0.9, 1.0), "face_size_px": (60.0, 500.0),
    "sync_confidence": (1.0, 15.0), "quality_resolution": (30.0, 256.0), "quality_sharpness": (4.0, 40.0),
    "quality_piqe": (30.0, 100.0),
}  # fmt: skip
"""From ... to, evenly: every rule fails some clips, and about a fifth are kept."""


def make(root: Path, rows: int) -> None:
    """Writes a dataset of `rows` clips, compact, with previews named, transcripts and languages."""
    recipe = load_recipe("bundled")
    dataset.save(Store(root), {"recipe": recipe.data(), "fingerprints": dict.fromkeys(("scenes", *CLIP_STAGES), "0")})
    for table in ("clips", "sources"):
        (root / "tables" / table).mkdir(parents=True)
    for index, first in enumerate(range(0, rows, ROWS_PER_PART)):
        content = reviewable(part(first, min(ROWS_PER_PART, rows - first)), first)
        pq.write_table(content, root / "tables" / "clips" / f"00000000-{index:05d}.parquet", compression="zstd")
    pq.write_table(sources(-(-rows // CLIPS_A_SOURCE)), root / "tables" / "sources" / "00000000-00000.parquet")


def reviewable(content: pa.Table, first: int) -> pa.Table:
    """`content` with what the review page looks at beyond what judging does."""
    rng, count = np.random.default_rng(first), len(content)
    said = [" ".join(WORDS[at]) for at in rng.integers(0, len(WORDS), (count, 18))]
    ids = content["clip_id"].to_pylist()
    columns = {
        "transcript": pa.array(said, pa.string()),
        "spoken_language": pa.array(rng.choice(["en", "zh"], count)),
        "preview_tar": pa.array([f"{one[:16]}-00000.tar" for one in ids]),
        "sync_offset_frames": pa.array(rng.integers(-12, 13, count).astype(np.int32)),
        "audio_present": pa.array(rng.random(count) < 0.98),
    }
    for name, (low, high) in SPREAD.items():
        columns[name] = pa.array(rng.uniform(low, high, count).astype(np.float32))
    for name, values in columns.items():
        content = content.set_column(content.schema.get_field_index(name), name, values)
    return content


def sources(count: int) -> pa.Table:
    """A row for each source of the clips."""
    ids = [f"{at:016x}" for at in range(count)]
    given = {
        "uri": pa.array([f"/corpus/part-{at // 1000:04d}/video-{at:07d}.mp4" for at in range(count)]),
        "source_id": pa.array(ids),
        "status": pa.array(["ok"] * count),
        "order": pa.array(range(count), pa.int64()),
    }
    columns = [given.get(one.name, pa.nulls(count, one.type)) for one in SOURCES_TABLE.schema]
    return pa.table(columns, schema=SOURCES_TABLE.schema)


@dataclass
class Server:
    """A server that runs. port, pid: where and which; ready_s: from start to the address it printed."""

    port: int
    pid: int
    ready_s: float
    connection: HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, path: str, question: dict[str, Any] | None = None) -> tuple[float, Any]:
        """(milliseconds until the whole answer was there, the answer)."""
        address = path + (f"?q={quote(json.dumps(question))}" if question is not None else "")
        began = time.perf_counter()
        self.connection.request("GET", address)
        content = self.connection.getresponse().read()
        took = (time.perf_counter() - began) * 1000
        found = json.loads(content)
        if "error" in found:
            raise RuntimeError(found["error"])
        return took, found

    def memory_mb(self, what: str) -> float:
        """VmHWM (the peak) or VmRSS (now) of the server."""
        found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """The review server over `root`, once it answers."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "review", str(root), "--port", "0", "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.search(r":(\d+)/", line)
        if port is None:
            raise RuntimeError(f"the server did not start: {line}")
        yield Server(int(port[1]), process.pid, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait()


def times(ask: Callable[[int], float], count: int) -> str:
    """Median, 95th percentile and worst of `count` calls, ms."""
    took = [ask(at) for at in range(count)]
    return f"median {np.median(took):6.0f}   95 % {np.percentile(took, 95):6.0f}   worst {max(took):6.0f} ms"


def measure(server: Server, moves: int) -> None:
    """Prints what each act of a reviewer takes, cold ones first."""
    one = {"profile": "pretrain"}
    rules = next(p for p in server.ask("/api/dataset")[1]["profiles"] if p["name"] == "pretrain")["rules"]
    sliding = [rule for rule in rules if rule["slides"]]
    first = server.ask("/api/clips", one)[0]
    print(f"{'first page, the very first':34} {first:6.0f} ms (goal {GOALS['first page']:.0f})")
    rng = np.random.default_rng(0)
    reach = {rule["rule"]: server.ask(f"/api/histogram?measure={rule['measure']}")[1] for rule in sliding}

    def move(at: int) -> float:
        rule = sliding[at % len(sliding)]
        return server.ask("/api/counts", {**one, "bounds": {rule["rule"]: somewhere(reach[rule["rule"]], rng)}})[0]

    def clips(more: Callable[[int], dict[str, Any]]) -> Callable[[int], float]:
        return lambda at: server.ask("/api/clips", {**one, **more(at)})[0]

    measures = ("sync_confidence", "quality_piqe", "duration_s", "face_size_px")
    some = [rule["rule"] for rule in sliding]
    acts: dict[str, tuple[Callable[[int], float], int]] = {
        "first page": (clips(lambda at: {}), 10),
        "a slider moves": (move, moves),
        "histogram under a slider": (lambda at: histogram(server, sliding[at % len(sliding)]["measure"]), len(sliding)),
        "any page": (clips(lambda at: {"page": at * 4000}), 10),
        "sorted by a measure": (clips(lambda at: {"sort": measures[at % 4], "descending": at % 2 == 0}), 12),
        "verdict": (clips(lambda at: {"filter": {"verdict": ("keep", "reject", "undecided")[at % 3]}}), 9),
        "fails one rule only, sorted": (
            clips(lambda at: {"filter": {"rule": some[at % len(some)], "only": True}, "sort": measures[at % 4]}), 12),
        "near a bound": (clips(lambda at: {"filter": {"near": some[at % len(some)]}}), 12),
        "language": (clips(lambda at: {"filter": {"language": "en"}}), 4),
        "search the transcripts": (clips(lambda at: {"filter": {"text": f"{WORDS[at]} {WORDS[-at - 1]}"}}), 4),
        "one clip": (lambda at: server.ask(f"/api/clips/{clip_id(at * 57_000)}", one)[0], 8),
    }  # fmt: skip
    for name, (act, count) in acts.items():
        goal = f" (goal {GOALS[name]:.0f})" if name in GOALS else ""
        print(f"{name:34} {times(act, count)}{goal}", flush=True)


def histogram(server: Server, measure: str) -> float:
    return server.ask(f"/api/histogram?measure={measure}")[0]


def somewhere(spread: dict[str, Any], rng: np.random.Generator) -> float:
    """A bound among the values of a measure."""
    value = spread["low"] + rng.random() * (spread["high"] - spread["low"])
    return round(value) if spread["whole"] else round(value, 4)


def clip_id(at: int) -> str:
    """As `benchmarks.judge.part` names them."""
    start = at % CLIPS_A_SOURCE * 5500
    return f"{at // CLIPS_A_SOURCE:016x}-{start:09d}-{start + 5500:09d}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=ROWS)
    options.add_argument("--moves", type=int, default=40)
    options.add_argument("--keep", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = chosen.keep or Path(folder)
        if not (root / dataset.DATASET_FILE).exists():
            make(root, chosen.rows)
        with serving(root) as server:
            clips = server.ask("/api/dataset")[1]["clips"]
            print(f"{clips:,} clips, ready to answer {server.ready_s:.1f} s after the start")
            print(f"{'memory once read':34} {server.memory_mb('VmRSS'):6.0f} MB")
            measure(server, chosen.moves)
            print(f"{'memory at most':34} {server.memory_mb('VmHWM'):6.0f} MB (goal {GOAL_MB})")


if __name__ == "__main__":
    main()
