"""Light stages of the tests' own, for what the graph promises whatever the stages measure: they read the real
picture and sound, count every call in a file, and can be told to hang, fail or kill their worker."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from curation.clip import Clip
from curation.stage import Result, Stage, Unmeasured
from manifests.errors import ModelError
from manifests.records import CLIP_STAGES, measures_of
from models.clock import chunks_in


def count(folder: str, stage: str, clip: Clip) -> None:
    """Notes one call; appending a short line is atomic."""
    if folder:
        with Path(folder, "calls.txt").open("a") as file:
            file.write(f"{stage} {clip.clip_id}\n")


def calls(folder: Path) -> list[tuple[str, str]]:
    """(stage, clip id) of every call so far."""
    path = folder / "calls.txt"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []  # type: ignore[misc]


@dataclass(frozen=True)
class Light(Stage):
    """Measures next to nothing, once."""

    folder: str = ""
    salt: int = 0
    sleep_s: float = 0.0
    hurdle: str = ""
    """A file that makes it fail while it is there; ending in .model: for want of weights."""
    backend: ClassVar[str] = "light"

    def measure(self, clip: Clip) -> Result:
        count(self.folder, self.name, clip)
        time.sleep(self.sleep_s)
        if self.hurdle and Path(self.hurdle).exists():
            raise ModelError("no weights; fetch them") if self.hurdle.endswith(".model") else RuntimeError("hurdle")
        return self.found(clip)

    def found(self, clip: Clip) -> Result:
        return Result({})

    def params(self) -> dict[str, object]:
        return {"salt": self.salt}


@dataclass(frozen=True)
class Speech(Light):
    name: ClassVar[str] = "speech"
    measures: ClassVar[tuple[str, ...]] = measures_of("speech")

    def found(self, clip: Clip) -> Result:
        sound = clip.audio(16_000).samples
        return Result(
            {"audio_present": len(sound) > 0, "speech_share": float(np.abs(sound).mean()) if len(sound) else None}
        )


@dataclass(frozen=True)
class Speakers(Light):
    name: ClassVar[str] = "speakers"
    measures: ClassVar[tuple[str, ...]] = measures_of("speakers")

    def found(self, clip: Clip) -> Result:
        side = float(min(clip.info.width, clip.info.height))
        count = int(clip.small[0].mean() > self.salt)
        return Result(
            {"speaker_count": count, "crop_x": 0.0, "crop_y": 0.0, "crop_side": side}, {"track": [1, 2]}, "track"
        )

    def product(self, clip: Clip, evidence: object) -> str:
        assert evidence == {"track": [1, 2]}
        return "track"


@dataclass(frozen=True)
class Sync(Light):
    name: ClassVar[str] = "sync"
    measures: ClassVar[tuple[str, ...]] = measures_of("sync")
    reads: ClassVar[tuple[str, ...]] = ("speakers",)
    murder: str = ""

    def found(self, clip: Clip) -> Result:
        assert clip.product("speakers") == "track"
        if self.murder and clip.clip_id.endswith(self.murder):
            os.kill(os.getpid(), signal.SIGKILL)
        if clip.seconds < 1.0:
            raise Unmeasured("too short")
        return Result({"sync_confidence": 5.0, "sync_offset_frames": 0})


@dataclass(frozen=True)
class Quality(Light):
    name: ClassVar[str] = "quality"
    measures: ClassVar[tuple[str, ...]] = measures_of("quality")
    broken: bool = False

    def found(self, clip: Clip) -> Result:
        if self.broken:
            raise RuntimeError("a bug of\nthis stage")
        return Result({"quality_sharpness": float(clip.small[-1].std())})


@dataclass(frozen=True)
class Duplicates(Light):
    name: ClassVar[str] = "duplicates"
    measures: ClassVar[tuple[str, ...]] = measures_of("duplicates")

    def found(self, clip: Clip) -> Result:
        return Result({"near_hash": f"{int(clip.small.mean() * 1000):016x}"})


@dataclass(frozen=True)
class Overlay(Light):
    name: ClassVar[str] = "overlay"
    measures: ClassVar[tuple[str, ...]] = measures_of("overlay")

    def found(self, clip: Clip) -> Result:
        return Result({"overlay_text_count": 0})


@dataclass(frozen=True)
class Denoise(Light):
    name: ClassVar[str] = "denoise"
    measures: ClassVar[tuple[str, ...]] = measures_of("denoise")


@dataclass(frozen=True)
class Transcribe(Light):
    name: ClassVar[str] = "transcribe"
    measures: ClassVar[tuple[str, ...]] = measures_of("transcribe")
    reads: ClassVar[tuple[str, ...]] = ("denoise",)

    def found(self, clip: Clip) -> Result:
        return Result({"transcript": clip.clip_id, "word_count": 1}, {"words": [["word", 0.0, 0.2, 1.0]]})


@dataclass(frozen=True)
class Encode(Light):
    name: ClassVar[str] = "encode"
    measures: ClassVar[tuple[str, ...]] = measures_of("encode")
    reads: ClassVar[tuple[str, ...]] = ("speakers", "sync", "denoise", "transcribe")

    def found(self, clip: Clip) -> Result:
        chunks = chunks_in(clip.frame_count)
        facts = {"start_s": clip.start_s, "chunks": chunks, "text_tokens": 1, "text": clip.row["transcript"]}
        files = {
            "json": json.dumps({**clip.facts, **facts}, sort_keys=True).encode(),
            "text.npy": npy(np.zeros(1, np.int32)),
            "speech.npy": npy(np.full(4 * chunks, clip.first_frame, np.int32)),
            "latents.npy": npy(np.zeros((chunks + 1, 2, 1, 1), np.float16)),
            "reference.npy": npy(np.zeros((4, 2, 1, 1), np.float16)),
        }
        return Result({"sample_chunks": chunks, "sample_text_tokens": 1, "sample_bytes": 9}, files=files)


@dataclass(frozen=True)
class Preview(Light):
    name: ClassVar[str] = "preview"
    measures: ClassVar[tuple[str, ...]] = measures_of("preview")

    def found(self, clip: Clip) -> Result:
        return Result({"preview_bytes": 5}, files={"mp4": b"film", "jpg": b"\xff"})


def npy(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def recipe_toml(folder: Path, **params: dict[str, object]) -> str:
    """A recipe of these stages that counts its calls in `folder`; params: of a stage, by its name."""
    lines = ['name = "light"', "[scenes]", "threshold = 3.0"]
    for stage in CLIP_STAGES:
        body = {"backend": f"light:{stage.capitalize()}", "folder": str(folder), **params.get(stage, {})}
        lines += [f"[stages.{stage}]", *(f"{key} = {json.dumps(value)}" for key, value in body.items())]
    return "\n".join(lines)


PROFILE = """name = "pretrain"
long_form_s = 60
[rules.duration]
measure = "duration_s"
min = 1.0
[rules.speaker_count]
equals = 1
[rules.sync_confidence]
min = {{ light = {sync} }}
[rules.overlay_text]
measure = "overlay_text_count"
max = 0
"""
