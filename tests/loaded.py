"""Shards as the trainer reads them and as they are, for tests that compare."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.samples import Sample, read_tar
from manifests.shards import Shard, write_index, write_shards
from manifests.store import Store
from models.thinker import BUNDLED
from training.batch import Batch
from training.contract import wanted_by
from training.data import Data, open_data
from training.recipe import Dataset, Recipe, load_recipe

Samples = dict[str, dict[str, bytes]]
"""Members by extension, by key."""
LENIENT = {"max_damaged": 1.0}


def recipe(**changes: Any) -> Recipe:
    return load_recipe("tiny", {"batch": 3, "shuffle_buffer": 2, "workers": 0, "epochs": 1, **changes})


def opened(*places: Path | str, weights: Sequence[float] = (), thinker: str = BUNDLED, **options: Any) -> Data:
    named = [
        Dataset(str(place), "", weight) for place, weight in zip(places, weights or [1.0] * len(places), strict=True)
    ]
    return open_data(named, wanted_by(thinker), **options)


def stored(folder: Path, split: str = "train") -> Samples:
    """{key: members} of all shards, by the reader of manifests."""
    found: Samples = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with path.open("rb") as file:
            found |= dict(read_tar(file))
    return found


def ids(batches: Sequence[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


def array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def packed(folder: Path, samples: Mapping[str, Sample], per_shard: int = 3) -> Path:
    """Shards of `samples` in their order."""
    store = Store(folder)
    rows = ((key, members, 1.0) for key, members in samples.items())
    shards: dict[str, list[Shard]] = {"train": list(write_shards(store, "packed", "train", rows, per_shard, 1 << 28))}
    write_index(store, "packed", shards, {"profile": "packed", "rules": {}})
    return folder / "packed"


def relisted(folder: Path) -> None:
    """Makes the index list the files as long as they are, so that what is wrong is found on the way."""
    index = json.loads((folder / "index.json").read_text())
    for entry in index["shardlist"]:
        entry["filesize"] = (folder / entry["url"]).stat().st_size
    (folder / "index.json").write_text(json.dumps(index))


def npy(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values, **options), allow_pickle=True)
    return file.getvalue()


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)
