"""Light stages whose evidence is worth looking at: a face box that moves, speech, a sync curve, texts; and the
dataset that `curate` makes of made films with them, its previews real."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import light
import numpy as np
from command import call
from made import write_movie

from curation.clip import Clip
from curation.stage import Result
from manifests.records import CLIP_STAGES
from manifests.store import Store

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
SAID = "<script>alert(1)</script> and then, <b>quite</b> calmly, they went on to talk about the weather. "
LATE = 5
"""Frames by which the sound of the made films is late."""
SPOKEN = ((0.8, 2.0), (3.0, 4.4))
"""Seconds of the picture in which it is spoken."""
RATE = 16_000
LIGHT = ("speech", "speakers", "sync", "overlay", "transcribe")
FILMS = ("calm.mp4", HOSTILE, "dark.mp4", "dim.mp4", "grey.mp4", "light.mp4")
"""Each a little brighter than the one before."""
PROFILE = """name = "pretrain"
[rules.duration]
measure = "duration_s"
min = 4.0
[rules.speaker_count]
equals = 1
[rules.sync_confidence]
source = "made up"
above = { light = 4.0 }
[rules.sync_offset]
measure = "sync_offset_frames"
within = 10
[rules.overlay_text]
measure = "overlay_text_count"
max = 0
[rules.audio_present]
equals = true
"""


def level(clip: Clip) -> int:
    """Which of FILMS it is, by its brightness."""
    return round((float(clip.small[0, :8].mean()) - 40) / 30)


@dataclass(frozen=True)
class Speech(light.Speech):
    def found(self, clip: Clip) -> Result:
        heard = [[round(start + LATE / 25, 3), round(end + LATE / 25, 3)] for start, end in SPOKEN]
        return Result({"audio_present": True, "speech_share": 0.5}, {"segments": heard})


@dataclass(frozen=True)
class Speakers(light.Speakers):
    def found(self, clip: Clip) -> Result:
        side = float(min(clip.info.width, clip.info.height))
        frames = list(range(0, clip.frame_count, 25))
        boxes = [[80.0 + at, 40.0, 240.0 + at, 210.0] for at in frames]
        track = {"frames": frames, "boxes": boxes, "landmarks": [], "scores": []}
        others = [{"frames": [25, 75], "box": [10, 10, 60, 70]}] if level(clip) == 2 else []
        found = {"speaker_count": 2 if others else 1, "crop_x": 0.0, "crop_y": 0.0, "crop_side": side}
        return Result(found, {"track": track, "others": others}, "track")

    def product(self, clip: Clip, evidence: object) -> str:
        return "track"


@dataclass(frozen=True)
class Sync(light.Sync):
    def found(self, clip: Clip) -> Result:
        lags = list(range(-15, 16))
        curve = [round(math.exp(-(((lag - LATE) / 2) ** 2)), 3) for lag in lags]
        after = [round(math.exp(-((lag / 2) ** 2)), 3) for lag in lags]
        measures = {"sync_confidence": 2.5 + level(clip), "sync_offset_frames": -LATE, "sync_residual_frames": 0}
        return Result(measures, {"lags": lags, "curve": curve, "corrected_curve": after})


@dataclass(frozen=True)
class Overlay(light.Overlay):
    def found(self, clip: Clip) -> Result:
        if level(clip) != 4:
            return Result({"overlay_text_count": 0}, {"texts": []})
        text: dict[str, Any] = {"words": "<b>BUY NOW</b>", "box": [20, 200, 150, 230], "start_s": 0.0, "end_s": 3.0}
        return Result({"overlay_text_count": 1, "overlay_text": text["words"]}, {"texts": [text]})


@dataclass(frozen=True)
class Transcribe(light.Transcribe):
    def found(self, clip: Clip) -> Result:
        return Result({"transcript": SAID * (1 + 20 * (level(clip) == 1)), "word_count": 12})


def recipe_toml(folder: Path) -> str:
    """Light stages, and the preview that people look at as it is."""
    lines = ['name = "reviewed"', "[scenes]", "threshold = 3.0"]
    for stage in CLIP_STAGES:
        module = "review_stages" if stage in LIGHT else "light"
        body: dict[str, Any] = {"backend": f"{module}:{stage.capitalize()}", "folder": str(folder)}
        body = {"backend": "h264"} if stage == "preview" else body
        lines += [f"[stages.{stage}]", *(f"{key} = {json.dumps(value)}" for key, value in body.items())]
    return "\n".join(lines)


def made_film(path: Path, portrait: np.ndarray, number: int, seconds: float = 6.0) -> None:
    """A film of `portrait` [240, 320, 3] uint8 RGB, its sound LATE frames late. number: its place in FILMS."""
    frames = []
    for at in range(round(seconds * 25)):
        frame = np.roll(portrait, round(6 * math.sin(at / 20)), axis=1).copy()
        frame[:24] = 40 + 30 * number
        frames.append(frame)
    times = np.arange(round(seconds * RATE)) / RATE - LATE / 25
    spoken = np.any([(times >= start) & (times < end) for start, end in SPOKEN], axis=0)
    sound = np.where(spoken, 0.5 * np.sin(2 * np.pi * 220 * times), 0.0).astype(np.float32)
    write_movie(path, frames, audio=sound, rate=RATE)


def reviewable(folder: Path, portrait: np.ndarray) -> Store:
    """A dataset that `curate` made of FILMS, and beside it profile.toml."""
    films = folder / "films"
    films.mkdir()
    for number, name in enumerate(FILMS):
        made_film(films / name, portrait, number)
    (folder / "recipe.toml").write_text(recipe_toml(folder))
    (folder / "profile.toml").write_text(PROFILE)
    given = (
        "--recipe",
        folder / "recipe.toml",
        "--profile",
        folder / "profile.toml",
        "--cluster",
        "1",
        "--exhaustive",
        "--quiet",
    )
    done = call("curate", films, "-o", folder / "data", *given)
    assert done.code == 0, done.err
    return Store(folder / "data")
