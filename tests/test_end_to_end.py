"""The bundled recipe through the real command: made videos in, verdicts for the right reasons, shards that open.

One curation serves every test here.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
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
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE, TABLES, read
from models.clock import CHUNK_SECONDS, FPS, STORED_RATE, frames_of, samples_of
from models.speech_codec import FsqMel, log_mel
from models.text_codec import WhisperBpe
from models.video_codec import Dct3d
from pipelines import judge
from pipelines.cli import main
from pipelines.sample import Scene, make_video, speech, transcript

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
        make_video(sources / name, [scene], size=SIZE * scene.people)  # two share the width
    content = head.path.read_bytes()
    (sources / "damaged.mp4").write_bytes(content[: len(content) // 2])
    made = Curated(folder / "dataset", sources, {}, 0)
    done = xstreamer(*made.arguments())
    assert done.stdout, done.stderr
    return Curated(made.root, sources, json.loads(done.stdout), done.returncode)


def content(root: Path) -> dict[str, Any]:
    """Bytes of samples, verdicts and shards, rows of the tables."""
    files = [
        p for p in root.rglob("*") if p.is_file() and p.parts[len(root.parts)] in ("samples", "verdicts", "shards")
    ]
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


REASONS = {
    "pretrain": {
        "in_sync.mp4": ("keep", set(), set()),
        "late.mp4": ("keep", set(), set()),
        "caption.mp4": ("reject", {"overlay_text"}, set()),
        "swapped.mp4": ("reject", {"sync_confidence"}, {"overlay_text"}),
        "two_people.mp4": ("reject", {"speaker_count"}, {"overlay_text"}),
        "silent.mp4": ("reject", {"speech_share", "sync_confidence"}, set()),
    },
    "listening": {
        "in_sync.mp4": ("reject", {"speech_share"}, set()),
        "late.mp4": ("reject", {"speech_share"}, set()),
        "caption.mp4": ("reject", {"speech_share", "overlay_text"}, set()),
        "swapped.mp4": ("reject", {"speech_share"}, {"overlay_text"}),
        "two_people.mp4": ("reject", {"speech_share", "speaker_count"}, {"overlay_text"}),
        "silent.mp4": ("keep", set(), set()),
    },
}
"""Unmet rules are of stages that a clip which every profile rejects already is spared."""
REASONS["sft"] = REASONS["pretrain"]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_video_is_kept_or_rejected_for_what_is_wrong_with_it(curated: Curated, profile: str) -> None:
    assert curated.verdicts(profile) == REASONS[profile]
    counts = curated.found["profiles"][profile]
    kept = [name for name, (verdict, *_) in REASONS[profile].items() if verdict == "keep"]
    assert [counts[v]["clips"] for v in ("keep", "reject", "undecided")] == [len(kept), 6 - len(kept), 0]
    assert sum(split["samples"] for split in counts["packed"].values()) == len(kept)


def test_the_transcript_has_words_that_were_said(curated: Curated) -> None:
    for name, said in (("in_sync.mp4", "speech_en_1"), ("late.mp4", "speech_en_4")):
        words = set(curated.clips()[name]["transcript"].split())
        truth = set(transcript(said).lower().replace(",", "").replace(".", "").split())
        assert len(words & truth) >= 6, (words, truth)


# -- the shards, opened with what the world opens shards with ---------------------------------------------------


def check_arrays(sample: dict[str, Any], prefix: str = "") -> int:
    """Shapes and types of the design; the chunks of the sample."""
    latents, reference = sample[f"{prefix}latents.npy"], sample[f"{prefix}reference.npy"]
    tokens, text = sample[f"{prefix}speech.npy"], sample[f"{prefix}text.npy"]
    chunks = len(latents) - 1
    assert chunks >= 15
    assert (latents.shape, latents.dtype) == ((1 + chunks, 128, SIZE // 32, SIZE // 32), np.float16)
    assert (reference.shape, reference.dtype) == ((4, 128, SIZE // 32, SIZE // 32), np.float16)
    assert (tokens.shape, tokens.dtype) == ((4 * chunks,), np.int32)
    assert text.ndim == 1 and text.dtype == np.int32
    assert np.isfinite(latents).all() and np.isfinite(reference).all()
    assert tokens.min() >= 0 and tokens.max() < 4**7
    return chunks


@pytest.mark.parametrize("profile", PROFILES)
def test_plain_webdataset_opens_the_shards(curated: Curated, profile: str) -> None:
    tars = curated.tars(profile)
    samples = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False).decode())
    packed = curated.found["profiles"][profile]["packed"].values()
    assert len(samples) == sum(split["samples"] for split in packed) >= 1
    seconds = 0.0
    for sample in samples:
        chunks = check_arrays(sample)
        assert sample["json"]["chunks"] == chunks and sample["json"]["sample_id"] == sample["__key__"]
        seconds += chunks * CHUNK_SECONDS
    assert seconds == pytest.approx(sum(split["seconds"] for split in packed))


@pytest.mark.parametrize("profile", PROFILES)
def test_wids_opens_the_index(curated: Curated, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wids

    monkeypatch.setenv("WIDS_CACHE", str(tmp_path))
    clips = {row["clip_id"]: name for name, row in curated.clips().items()}
    seen = []
    for index in sorted((curated.root / "shards" / profile).glob("index*.json")):
        listed = json.loads(index.read_bytes())
        for entry in listed["shardlist"]:
            file = (index.parent / entry["url"]).read_bytes()
            assert (entry["filesize"], entry["sha256"]) == (len(file), hashlib.sha256(file).hexdigest())
        if not listed["shardlist"]:
            continue
        dataset = wids.ShardListDataset(str(index))
        assert len(dataset) == listed["totals"][listed["split"]]["samples"]
        for at in range(len(dataset)):
            check_arrays(dataset[at], ".")
            seen.append(clips[dataset[at]["__key__"]])
    assert sorted(seen) == sorted(name for name, reason in REASONS[profile].items() if reason[0] == "keep")


def test_validation_shares_no_source_with_training(curated: Curated) -> None:
    splits = {split: set() for split in ("train", "val")}  # type: dict[str, set[str]]
    for tar in curated.tars("pretrain"):
        splits[tar.name.split("-")[0]] |= {key for key, _ in read_tar(io.BytesIO(tar.read_bytes()))}
    sources = {split: {key.split("-")[0] for key in keys} for split, keys in splits.items()}
    assert all(sources.values()) and not sources["train"] & sources["val"]


# -- what the samples say and show ------------------------------------------------------------------------------


def aligned(heard: np.ndarray, said: np.ndarray, reach: int) -> int:
    """By how many samples `heard` is later than `said`, within `reach`: the peak of their cross-correlation."""
    padded = np.pad(said, reach)
    found = [float(heard @ padded[shift : shift + len(heard)]) for shift in range(2 * reach + 1)]
    return reach - int(np.argmax(found))


@pytest.mark.parametrize(("name", "offset"), [("in_sync.mp4", 0), ("late.mp4", -LATE)])
def test_stored_sound_lies_where_the_lips_are(curated: Curated, name: str, offset: int) -> None:
    """The speech as it was before it was made late, within a frame of where the sample says that it is."""
    assert curated.clips()[name]["sync_offset_frames"] == offset
    assert abs(curated.clips()[name]["sync_residual_frames"]) <= 1
    sample = curated.sample(name)
    facts = json.loads(sample["json"])
    heard, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
    assert rate == STORED_RATE and len(heard) == samples_of(facts["chunks"], STORED_RATE)
    said = speech("speech_en_1" if name == "in_sync.mp4" else "speech_en_4")[0]
    shown = round((facts["start_s"] + 1 / FPS) * STORED_RATE)  # the sound begins with frame 1
    frame = STORED_RATE // FPS
    late = aligned(heard, said[shown : shown + len(heard)], 6 * frame)
    assert abs(late) < frame


def test_latents_show_the_face_that_was_filmed(curated: Curated, head: Head) -> None:
    sample = curated.sample("in_sync.mp4")
    facts = json.loads(sample["json"])
    first = round(facts["start_s"] * FPS)
    truth = head.frames[first : first + frames_of(facts["chunks"])]
    assert facts["crop"] == [0, 0, SIZE]
    shown = Dct3d().decode(array(sample["latents.npy"]))
    assert shown.shape == truth.shape
    assert psnr(shown, truth) > 23
    likeness = [psnr(shown[4:-4], truth[4 + shift : len(truth) - 4 + shift]) for shift in range(-4, 5)]
    assert int(np.argmax(likeness)) == 4  # these very frames, none before or after
    alone = Dct3d().decode(array(sample["reference.npy"])[1:2])[0]
    assert psnr(alone, truth[3 * len(truth) // 8]) > 23


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float32) - b) ** 2)))


def test_speech_tokens_sound_like_the_stored_sound(curated: Curated) -> None:
    sample = curated.sample("late.mp4")
    heard = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0]
    made = FsqMel().decode(array(sample["speech.npy"]))
    assert made.shape == heard.shape
    before, after = log_mel(heard), log_mel(made)
    alike = [np.corrcoef(np.roll(after, shift, 0).ravel(), before.ravel())[0, 1] for shift in range(-7, 8)]
    assert int(np.argmax(alike)) == 7 and max(alike) > 0.8


def test_text_tokens_are_the_words_of_the_transcript(curated: Curated) -> None:
    for name in ("in_sync.mp4", "late.mp4"):
        sample = curated.sample(name)
        facts = json.loads(sample["json"])
        text = WhisperBpe().decode(array(sample["text.npy"]))
        assert text == facts["text"] == " ".join(word for word, *_ in facts["words"])
        assert text and text in curated.clips()[name]["transcript"]


# -- again, and damaged -----------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_it(curated: Curated) -> None:
    done = xstreamer("verify", curated.root, "--quiet")
    assert (done.returncode, done.stdout.strip()) == (0, f"{curated.root}: no fault found")


def test_a_second_run_measures_nothing_and_leaves_everything(curated: Curated) -> None:
    before = content(curated.root)
    done = xstreamer(*curated.arguments())
    assert json.loads(done.stdout)["measured_clips"] == 0, done.stderr
    after = content(curated.root)
    assert after.keys() == before.keys()
    for name in before:
        assert after[name] == before[name], name


def flip_a_byte(path: Path, at: int) -> None:
    found = bytearray(path.read_bytes())
    found[at] ^= 0x10
    path.write_bytes(found)


def flip_in_shard(root: Path) -> str:
    path = next(root.glob("shards/pretrain/train-*.tar"))
    flip_a_byte(path, path.stat().st_size // 2)
    return "shards/pretrain/train-000000.tar"


def lose_shard(root: Path) -> str:
    next(root.glob("shards/listening/train-*.tar")).unlink()
    return "shards/listening/train-000000.tar"


def lose_sample(root: Path) -> str:
    path = sorted(root.glob("samples/*.tar"))[0]
    with path.open("wb") as file:
        write_tar(file, {})
    return f"samples/{path.name}"


def flip_in_sample(root: Path) -> str:
    path = sorted(root.glob("samples/*.tar"))[0]
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith("latents.npy"))
    flip_a_byte(path, member.offset_data + member.size // 2)
    return f"samples/{path.name}"


def cut_index(root: Path) -> str:
    path = root / "shards/pretrain/index.json"
    path.write_bytes(path.read_bytes()[:100])
    return "shards/pretrain/index.json"


def stray_shard(root: Path) -> str:
    shutil.copy(root / "shards/pretrain/train-000000.tar", root / "shards/pretrain/train-000007.tar")
    return "train-000007.tar"


def cut_table(root: Path) -> str:
    path = next(root.glob("tables/runs/*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    return f"tables/runs/{path.name}"


def lose_row(root: Path) -> str:
    path = next(root.glob("tables/clips/*.parquet"))
    pq.write_table(pq.read_table(path).slice(1), path)
    return "tables/clips"


FAULTS: tuple[Callable[[Path], str], ...] = (
    flip_in_shard, lose_shard, lose_sample, flip_in_sample, cut_index, stray_shard, cut_table, lose_row,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_verify_names_what_is_damaged(
    curated: Curated, fault: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(curated.root, root)
    named = fault(root)
    assert main(["verify", str(root), "--quiet"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(named in line for line in lines), lines


def test_a_damaged_sample_is_not_packed(curated: Curated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "copy"
    shutil.copytree(curated.root, root)
    named = flip_in_sample(root)
    assert main(["pack", str(root), "--quiet"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert named in line and "delete the file and run curate again" in line


def test_what_was_lost_is_measured_again_and_all_is_as_before(curated: Curated, tmp_path: Path) -> None:
    """A row of the clips table, and the tar of another clip's sample."""
    root = tmp_path / "copy"
    shutil.copytree(curated.root, root)
    lose_row(root)
    sorted(root.glob("samples/*.tar"))[-1].unlink()
    mended = Curated(root, curated.sources, {}, 0)
    done = xstreamer(*mended.arguments())
    assert json.loads(done.stdout)["measured_clips"] == 2, done.stderr
    assert xstreamer("verify", root, "--quiet").returncode == 0
    before, after = content(curated.root), content(root)
    for found in (before, after):
        found["runs"] = [{**row, "seconds": 0, "media_seconds": 0} for row in found["runs"]]
    assert after == before
