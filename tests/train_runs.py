"""`xstreamer train` as the tests run it: short, on a CPU, on small shards; and what a run leaves, read back."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

SETTINGS = {
    "validate_every": 2,
    "validate_samples": 2,
    "sample_every": 4,
    "sample_steps": 2,
    "save_every": 2,
    "batch": 4,
    "workers": 1,
}


def asked(shards: Path | str, run: Path, *more: str | Path, **settings: Any) -> list[str]:
    """`train` with the tiny recipe made short."""
    chosen = [f"--set={name}={json.dumps(value)}" for name, value in (SETTINGS | settings).items()]
    options = ["--recipe", "tiny", "-o", str(run), "--device", "cpu", "--quiet"]
    return ["train", str(shards), *options, *chosen, *map(str, more)]


def log_of(run: Path) -> list[dict[str, Any]]:
    """The finished lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines(keepends=True) if line[-1] == "\n"]


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Its steps."""
    return [row for row in log_of(run) if row["kind"] == "step"]


def damage(folder: Path, shard: int, sample: int, split: str = "train") -> None:
    """Overwrites the beginning of the latents of a sample, in place."""
    path = sorted(folder.glob(f"{split}-*.tar"))[shard]
    with tarfile.open(path) as tar:
        place = [member for member in tar if member.name.endswith(".latents.npy")][sample].offset_data
    content = bytearray(path.read_bytes())
    content[place : place + 6] = b"XXXXXX"
    path.write_bytes(bytes(content))
