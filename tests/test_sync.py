"""The sync stage on files: a photograph that talks, shifted, swapped, at other rates, without sound or face."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made import write_movie
from talker import FPS, RATE, STEP, speech_level, talking, voice

from curation.clip import Clip
from curation.media import probe
from curation.speakers import CenterFaceSpeakers
from curation.stage import Result, Unmeasured
from curation.sync import CorrelationSync
from manifests.records import measures_of


def movie(path: Path, seconds: float = 8.0, *, seed: int = 1, heard: int | None = 1, late: int = 0, **how) -> Path:
    """A file of the portrait saying speech `seed`, with the sound of speech `heard`, `late` frames late."""
    images = talking(speech_level(seconds, seed)[STEP // 2 :: STEP], seed)[..., ::-1]
    audio = None
    if heard is not None:
        level = speech_level(seconds + 2, heard)
        level = np.roll(np.concatenate([level, np.zeros(2 * RATE)]), late * RATE // FPS)[: round(seconds * RATE)]
        audio = voice(level, heard)
    return write_movie(path, how.pop("pick", lambda x: x)(images), audio=audio, **how)


def opened(path: Path, start: float = 0.0, end: float | None = None) -> Clip:
    info = probe(str(path))
    stages = {"speakers": CenterFaceSpeakers(), "sync": CorrelationSync()}
    return Clip("clip", str(path), info, start, end or int(info.duration_s * FPS) / FPS, stages=stages)


def measured(path: Path, start: float = 0.0, end: float | None = None) -> Result:
    return CorrelationSync().measure(opened(path, start, end))


@pytest.fixture(scope="module")
def in_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return movie(tmp_path_factory.mktemp("sync") / "in sync.mp4")


@pytest.fixture(scope="module")
def clean(in_sync: Path) -> Result:
    return measured(in_sync)


def test_stage_measures_and_evidence(in_sync: Path, clean: Result):
    result = clean
    assert set(result.measures) == set(measures_of("sync"))
    assert abs(result.measures["sync_offset_frames"]) <= 1 and result.measures["sync_confidence"] > 7
    assert result.evidence is not None
    assert result.evidence["lags"] == list(range(-15, 16))
    for curve in ("curve", "corrected_curve"):
        values = result.evidence[curve]
        assert len(values) == 31 and values == [round(v, 4) for v in values]
    best = result.evidence["lags"][int(np.argmax(result.evidence["curve"]))]
    assert best == -result.measures["sync_offset_frames"]
    again = measured(in_sync)
    assert json.dumps([result.measures, result.evidence]) == json.dumps([again.measures, again.evidence])


@pytest.mark.parametrize("late", [-4, 6])
def test_stage_finds_and_corrects_a_shift(clean: Result, tmp_path: Path, late: int):
    shifted = measured(movie(tmp_path / "shifted.mkv", late=late)).measures
    assert shifted["sync_offset_frames"] - clean.measures["sync_offset_frames"] == pytest.approx(-late, abs=1)
    assert abs(shifted["sync_residual_frames"]) <= 1
    assert shifted["sync_residual_confidence"] > 0.85 * shifted["sync_confidence"] > 5


def test_stage_tells_a_foreign_sound(clean: Result, tmp_path: Path):
    foreign = measured(movie(tmp_path / "swapped.mp4", heard=3)).measures
    assert foreign["sync_confidence"] < 0.6 * clean.measures["sync_confidence"]


@pytest.mark.parametrize("fps", [15, 50])
def test_stage_agrees_across_frame_rates(clean: Result, tmp_path: Path, fps: int):
    def resampled(images: np.ndarray) -> list[np.ndarray]:
        return [images[min(len(images) - 1, int(k * FPS / fps))] for k in range(int(len(images) / FPS * fps))]

    path = movie(tmp_path / "other.mp4", pick=resampled, fps=fps)
    found = measured(path).measures
    assert found["sync_offset_frames"] == pytest.approx(clean.measures["sync_offset_frames"], abs=1)
    assert found["sync_confidence"] > 0.6 * clean.measures["sync_confidence"]


def test_stage_measures_a_clip_in_the_middle_of_its_source(tmp_path: Path):
    path = movie(tmp_path / "long.mp4", 11.0, late=5)
    found = measured(path, 4.0, 9.6).measures
    assert abs(found["sync_offset_frames"] + 5) <= 1 and abs(found["sync_residual_frames"]) <= 1


def test_stage_uses_what_there_is_of_the_sound(tmp_path: Path):
    path = movie(tmp_path / "late start.mkv", 9.0, late=-2)  # the sound ends early
    found = measured(path).measures
    assert abs(found["sync_offset_frames"] - 2) <= 1 and found["sync_confidence"] > 5


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("short.mp4", {"seconds": 3.0}, "too short"),
        ("mute.mp4", {"heard": None}, "no sound"),
        ("nobody.mp4", {"pick": lambda x: np.full_like(x, 90)}, "no face"),
        ("late.mkv", {"audio_start": 5.0, "seconds": 7.0}, "face and sound together"),
    ],
)
def test_stage_says_what_it_cannot_know(tmp_path: Path, name: str, how: dict, why: str):
    path = movie(tmp_path / name, **how)
    end = how.get("seconds", 8.0)
    with pytest.raises(Unmeasured, match=why):
        measured(path, 0.0, end)


def test_stage_takes_digital_silence_for_no_sound(tmp_path: Path):
    images = talking(speech_level(5.0, 1)[STEP // 2 :: STEP])[..., ::-1]
    path = write_movie(tmp_path / "silent.mp4", images, audio=np.zeros(5 * RATE, np.float32))
    with pytest.raises(Unmeasured, match="no sound"):
        measured(path)
