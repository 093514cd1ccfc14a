"""Samples a second: the trainer's loader and plain `webdataset`, on the same shards."""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train_spread import by_turns, ratio, spread
from manifests.shards import Shard, write_index, write_shards
from manifests.store import Store
from models.clock import CHUNK_FRAMES, CHUNK_SECONDS, CHUNK_SPEECH_TOKENS, FPS, SPEECH_HZ
from models.video_codec import CHANNELS
from training.contract import REFERENCES, Wanted
from training.data import Data, loader, open_data
from training.recipe import Dataset

CHUNKS, GRID, PER_SHARD = 16, (8, 8), 250
"""Of a sample: 344 kB at 256 x 256, like the paper's mean clip of 5.5 s."""
FOLDER = "shards/pretrain"


@dataclass(frozen=True)
class Reading:
    """What the loader asks of a recipe."""

    workers: int
    seed: int = 0
    epochs: int = 1
    steps: int = 0
    batch: int = 32
    shuffle_buffer: int = 16
    max_damaged: float = 0.0


def samples(count: int) -> Iterator[tuple[str, dict[str, bytes], float]]:
    """(key, members, seconds) with the members that training reads."""
    rng = np.random.default_rng(0)
    facts = {"fps": FPS, "chunk_frames": CHUNK_FRAMES, "speech_hz": SPEECH_HZ, "chunks": CHUNKS}
    codecs = {"video": "noise 0", "speech": "noise 0", "text": "noise 0"}
    for number in range(count):
        latents = rng.standard_normal((1 + CHUNKS + REFERENCES, CHANNELS, *GRID), np.float32).astype(np.float16)
        members = {
            "json": json.dumps({"sample_id": f"{number:08d}", "codecs": codecs, **facts}).encode(),
            "text.npy": _npy(rng.integers(50_000, size=20).astype(np.int32)),
            "speech.npy": _npy(rng.integers(16_384, size=CHUNKS * CHUNK_SPEECH_TOKENS).astype(np.int32)),
            "latents.npy": _npy(latents[: 1 + CHUNKS]),
            "reference.npy": _npy(latents[1 + CHUNKS :]),
        }
        yield f"{number:08d}", members, CHUNKS * CHUNK_SECONDS


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def make(root: Path, count: int) -> list[Shard]:
    store = Store(root)
    found = list(write_shards(store, FOLDER, "train", samples(count), PER_SHARD, 1 << 30))
    write_index(store, FOLDER, {"train": found}, {"profile": "pretrain"})
    return found


def ours(data: Data, workers: int) -> int:
    """An epoch; how many samples came."""
    return sum(len(batch) for batch in loader(Reading(workers), data))


def theirs(urls: list[str]) -> int:
    """webdataset in this process: tar, grouping, decoding by its own handlers."""
    import webdataset

    found = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return sum(1 for sample in found if sample["latents.npy"].size and sample["reference.npy"].size)


def measure(runs: int, count: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        shards = make(Path(place), count)
        folder = Path(place) / FOLDER
        data = open_data([Dataset(str(folder))], Wanted())
        urls = [str(folder / shard.url) for shard in shards]
        works: dict[str, Callable[[], int]] = {
            "ours, 2 workers": lambda: ours(data, 2),
            "ours, in process": lambda: ours(data, 0),
        }
        if importlib.util.find_spec("webdataset"):
            works = {"webdataset, in process": lambda: theirs(urls), **works}
        return _rates(works, runs, count)


def _rates(works: dict[str, Callable[[], int]], runs: int, count: int) -> list[dict[str, Any]]:
    for name, work in works.items():  # warm; and every sample really comes
        if (came := work()) != count:
            raise RuntimeError(f"{name} gave {came} of {count} samples")
    taken = by_turns(works, torch.device("cpu"), runs)
    plain = taken.get("webdataset, in process")
    rows = []
    for name, times in taken.items():
        compared = {"ratio": ratio(plain, times)} if plain else {"ratio": "webdataset is not installed"}
        rows.append({"reader": name, "samples/s": spread([count / each for each in times]), **compared})
    return rows
