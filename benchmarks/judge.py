"""Six rules over the paper's corpus, 2,780,920 clip rows of the real schema, every failing reason written back.

    python -m benchmarks.judge [--rows N] [--runs 5]

Each run is a process of its own, so that its peak memory is its own. Beside it, in the same run, the time
that one plain pyarrow read of the same columns takes: the floor that any way of judging stands on.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.records import CLIPS
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, ROWS_PER_PART, batches, parts
from manifests.verdicts import parse_profile

ROWS = 2_780_920
PROFILE = {
    "name": "six",
    "rules": {
        "duration": {"measure": "duration_s", "min": 4.8},
        "speech_share": {"min": {"silero": 0.3}},
        "speaker_count": {"equals": {"centerface": 1}},
        "sync_confidence": {"above": {"correlation": 3.5}},
        "quality_sharpness": {"min": {"piqe": 0.3}},
        "overlay_text": {"measure": "overlay_text_count", "max": 0},
    },
}
BACKENDS = {
    "speech": "silero", "speakers": "centerface", "sync": "correlation", "quality": "piqe", "duplicates": "dct3",
    "overlay": "rapidocr", "denoise": "noisereduce", "transcribe": "pocketsphinx", "encode": "bundled", "preview": "h264",
}  # fmt: skip


def part(first: int, count: int) -> pa.Table:
    """Rows `first` ... of a corpus in which each rule fails some clips and one stage in ten was skipped."""
    rng = np.random.default_rng(first)
    missing = rng.random(count) < 0.1
    columns = {}
    for column in CLIPS:
        kind = CLIPS_TABLE.schema.field(column.name).type
        if column.name == "clip_id":
            ids = [
                f"{(first + i) // 12:016x}-{(first + i) % 12 * 5500:09d}-{((first + i) % 12 + 1) * 5500:09d}"
                for i in range(count)
            ]
            columns[column.name] = pa.array(ids)
        elif column.name == "scene":
            columns[column.name] = pa.array(np.zeros(count, np.int32))
        elif column.name.endswith("_backend"):
            columns[column.name] = pa.array([BACKENDS[column.stage]] * count)
        elif column.name == "speaker_count":
            columns[column.name] = pa.array(rng.choice([0, 1, 2], count, p=[0.03, 0.9, 0.07]).astype(np.int32))
        elif column.name == "overlay_text_count":
            columns[column.name] = pa.array(rng.choice([0, 1], count, p=[0.85, 0.15]).astype(np.int32), mask=missing)
        elif pa.types.is_floating(kind):
            scale = 10.0 if "sync" in column.name or column.name.endswith("_s") else 1.0
            columns[column.name] = pa.array((rng.random(count) * scale).astype(kind.to_pandas_dtype()))
        elif pa.types.is_string(kind):
            columns[column.name] = pa.array(rng.choice(["ok", "a few words that were said", ""], count))
        else:
            columns[column.name] = pa.array(rng.integers(0, 2, count)).cast(kind)
    return pa.table(columns, schema=CLIPS_TABLE.schema)


def make(root: Path, rows: int) -> None:
    """Writes the clips table as `compact` leaves it."""
    folder = root / "tables" / "clips"
    folder.mkdir(parents=True)
    for index, first in enumerate(range(0, rows, ROWS_PER_PART)):
        content = part(first, min(ROWS_PER_PART, rows - first))
        pq.write_table(
            content,
            folder / f"00000000-{index:05d}.parquet",
            compression="zstd",
            use_dictionary=CLIPS_TABLE.categories(),
        )


def once(root: str, what: str) -> dict[str, float]:
    """One timed run in this process: seconds after imports, MB of its peak that the work added."""
    from pipelines.judge import judge

    store, profile = Store(root), parse_profile(PROFILE, "benchmark")
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    if what == "judge":
        counts = judge(store, profile)
    else:
        counts = {"rows": sum(len(t) for t in batches(store, CLIPS_TABLE, profile.columns()))}
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, "idle_mb": idle, **counts}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=ROWS)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--once", nargs=2, metavar=("ROOT", "WHAT"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.once:
        print(json.dumps(once(*chosen.once)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), chosen.rows)
        print(f"{chosen.rows} rows, {len(CLIPS)} columns, {len(parts(Store(folder), CLIPS_TABLE))} parts")
        found: dict[str, list[dict[str, float]]] = {"judge": [], "read": []}
        for _ in range(chosen.runs):
            for what in found:
                command = [sys.executable, "-m", "benchmarks.judge", "--once", folder, what]
                found[what].append(
                    json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                )
        for what, runs in found.items():
            seconds = sorted(r["seconds"] for r in runs)
            peak = max(r["peak_mb"] for r in runs)
            print(
                f"{what:6s} {statistics.median(seconds):.2f} s ({seconds[0]:.2f}-{seconds[-1]:.2f}), peak {peak:.0f} MB"
            )
        ratio = statistics.median(
            j["seconds"] / r["seconds"] for j, r in zip(found["judge"], found["read"], strict=True)
        )
        print(f"judge / plain read of the same columns: {ratio:.2f}")
        print({k: v for k, v in found["judge"][0].items() if k in ("keep", "reject", "undecided")})


if __name__ == "__main__":
    main()
