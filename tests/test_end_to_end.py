"""The bundled recipe through the real command: made videos in, verdicts for the right reasons, shards that open.

One curation serves every test here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
from conftest import Head

from manifests.records import CLIP_STAGES
from manifests.samples import read_tar, write_tar
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, TABLES, read
from models.clock import CHUNK_SECONDS, FPS, STORED_RATE, frames_of, samples_of
from models.speech_codec import FsqMel, log_mel
from models.text_codec import WhisperBpe
from models.video_codec import Dct3d
from pipelines import judge
from pipelines.sample import Scene, make_video, scene_frames, scene_sound, speech, transcript

SIZE = 256
LATE = 4
PROFILES = ("pretrain", "sft", "listening")
SCENES = {
    "caption.mp4": Scene("speech_en_3", 5.6, caption="SUBSCRIBE FOR MORE", seed=1, mirrored=True),
    "late.mp4": Scene("speech_en_4", 6.4, lag_frames=LATE, seed=3, mirrored=True),
    "silent.mp4": Scene(None, 5.6, seed=5),
    "swapped.mp4": Scene("speech_en_1", 6.4, heard="speech_en_2", seed=4),
    "two_people.mp4": Scene("speech_en_3", 5.6, seed=6, people=2),
}


def xstreamer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Curated:
    """The dataset that the command made of the sources, and what it said."""

    root: Path
    sources: Path
    found: dict[str, Any]
    code: int

    @property
    def store(self) -> Store:
        return Store(self.root)

    def arguments(self) -> list[str | Path]:
        return ["curate", self.sources, "-o", self.root, "--quiet", "--json"]

    def clips(self) -> dict[str, dict[str, Any]]:
        """The only clip of each source, by file name."""
        rows = read(self.store, CLIPS_TABLE).to_pylist()
        named = {Path(row["uri"]).name: row for row in rows}
        assert len(named) == len(rows)
        return named

    def verdicts(self, profile: str) -> dict[str, tuple[str, set[str], set[str]]]:
        """(verdict, failing rules, unmet rules) by file name."""
        table = judge.verdicts(self.store, profile)
        assert table is not None
        by_id = {row["clip_id"]: row for row in table.to_pylist()}
        rows = {name: by_id[clip["clip_id"]] for name, clip in self.clips().items()}
        return {name: (r["verdict"], set(r["failing"]), set(r["unmet"])) for name, r in rows.items()}

    def tars(self, profile: str) -> list[Path]:
        return sorted(self.root.glob(f"shards/{profile}/*.tar"))

    def sample(self, name: str) -> dict[str, bytes]:
        """Members of the sample of a file, as packed for pretrain."""
        key = self.clips()[name]["clip_id"]
        for tar in self.tars("pretrain"):
            for found, members in read_tar(io.BytesIO(tar.read_bytes())):
                if found == key:
                    return members
        raise AssertionError(f"{name} is not packed")


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Curated:
    folder = tmp_path_factory.mktemp("end to end")
    sources = folder / "videos"
    sources.mkdir()
    shutil.copy(head.path, sources / "in_sync.mp4")
    for name, scene in SCENES.items():
        make_video(sources / name, [scene], size=SIZE)
    content = head.path.read_bytes()
    (sources / "damaged.mp4").write_bytes(content[: len(content) // 2])
    made = Curated(folder / "dataset", sources, {}, 0)
    done = xstreamer(*made.arguments())
    assert done.stdout, done.stderr
    return Curated(made.root, sources, json.loads(done.stdout), done.returncode)


def content(root: Path) -> dict[str, Any]:
    """Bytes of samples, verdicts and shards, rows of the tables."""
    files = [p for p in root.rglob("*") if p.is_file() and p.parts[len(root.parts)] in ("samples", "verdicts", "shards")]
    return {
        **{str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        **{table.name: read(Store(root), table).to_pylist() for table in TABLES},
    }


def array(content: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


# -- what is kept, and why the rest is not --------------------------------------------------------------------


def test_the_one_damaged_file_is_told_and_the_rest_is_done(curated: Curated) -> None:
    assert curated.code == 3
    files = {status: curated.found["sources"][status]["files"] for status in ("ok", "failed", "duplicate")}
    assert files == {"ok": 6, "failed": 1, "duplicate": 0}
    [failed] = [row for row in read(curated.store, SOURCES_TABLE).to_pylist() if row["status"] == "failed"]
    assert Path(failed["uri"]).name == "damaged.mp4"
    assert failed["error"] and "\n" not in failed["error"]


def test_no_stage_failed_and_every_stage_is_accounted_for(curated: Curated) -> None:
    runs = [row for row in read(curated.store, RUNS_TABLE).to_pylist() if row["stage"] in CLIP_STAGES]
    assert [row for row in runs if row["status"] == "failed"] == []
    assert len(runs) == 6 * len(CLIP_STAGES)
    assert all(row["error"] for row in runs if row["status"] == "unmeasured")


def test_pretraining_keeps_those_in_sync_and_says_what_is_wrong_with_the_others(curated: Curated) -> None:
    for name, value in curated.verdicts("pretrain").items():
        print(name, value)
    verdicts = curated.verdicts("pretrain")
    assert verdicts["in_sync.mp4"] == ("keep", set(), set())
    assert verdicts["late.mp4"] == ("keep", set(), set())
    assert verdicts["caption.mp4"] == ("reject", {"overlay_text"}, set())


def test_printing(curated: Curated) -> None:
    print(json.dumps(curated.found, indent=1)[:6000])
    for name, row in curated.clips().items():
        print(name, row)
    for profile in PROFILES:
        print(profile, curated.verdicts(profile))
    assert 0
