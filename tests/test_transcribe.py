"""Transcription: words that were said, where they were said, whatever came before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from spoken import NAMES, TEXTS, clip_with, pink, speech, words_of

from curation.clip import Clip
from curation.denoise import SpectralGate
from curation.stage import Result, Unmeasured
from curation.transcribe import PocketSphinxTranscribe, inside, spoken
from models.clock import STORED_RATE

RATE = STORED_RATE


def transcribed(path: Path, sound: np.ndarray | None, **options: float) -> Result:
    clip = clip_with(path, sound, **options)
    clip.stages = {"denoise": SpectralGate()}
    return PocketSphinxTranscribe().measure(clip)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    folder = tmp_path_factory.mktemp("spoken")
    return {name: transcribed(folder / f"{name}.mkv", speech(name)) for name in NAMES[:3]}


def test_most_known_words_are_found(heard: dict[str, Result]) -> None:
    for name, result in heard.items():
        said, found = words_of(TEXTS[name]), set(str(result.measures["transcript"]).split())
        assert sum(word in found for word in said) / len(said) > 0.6, (name, result.measures["transcript"])


def test_words_are_counted_timed_in_order_and_weighed(heard: dict[str, Result]) -> None:
    for name, result in heard.items():
        assert result.evidence is not None
        words = result.evidence["words"]
        assert result.measures["word_count"] == len(words) == len(str(result.measures["transcript"]).split())
        assert result.measures["spoken_language"] is None
        starts = [start for _, start, _, _ in words]
        assert starts == sorted(starts)
        assert all(0 <= a < b <= len(speech(name)) / RATE and 0 <= p <= 1 for _, a, b, p in words)
        assert result.measures["asr_confidence"] == pytest.approx(np.mean([p for *_, p in words]), abs=1e-3)


def test_words_move_with_the_sound(tmp_path: Path, heard: dict[str, Result]) -> None:
    """Sound that begins a second later says every word a second later."""
    late = np.concatenate((np.zeros(RATE, np.float32), speech(NAMES[0])))
    moved = transcribed(tmp_path / "late.mkv", late)
    assert heard[NAMES[0]].evidence is not None and moved.evidence is not None
    before = {w: a for w, a, _, _ in heard[NAMES[0]].evidence["words"]}
    after = {w: a for w, a, _, _ in moved.evidence["words"]}
    shared = [word for word in before if word in after]
    assert len(shared) > 8
    assert np.median([after[w] - before[w] for w in shared]) == pytest.approx(1.0, abs=0.06)


def test_the_result_depends_on_no_earlier_clip(tmp_path: Path, heard: dict[str, Result]) -> None:
    """The module's fixture decoded the others after the first; noise makes the decoder learn another room."""
    noisy = speech(NAMES[3])[: 4 * RATE] + pink(4 * RATE) * 0.03
    transcribed(tmp_path / "noisy.mkv", noisy)
    assert transcribed(tmp_path / "again.mkv", speech(NAMES[0])) == heard[NAMES[0]]


@pytest.mark.parametrize("sound", [np.zeros(5 * RATE, np.float32), pink(5 * RATE) * 0.1], ids=["silence", "noise"])
def test_where_nobody_speaks_there_are_no_words(tmp_path: Path, sound: np.ndarray) -> None:
    result = transcribed(tmp_path / "quiet.mkv", sound)
    assert result.measures["transcript"] == "" and result.measures["word_count"] == 0
    assert result.measures["asr_confidence"] is None and result.evidence == {"words": []}


def test_without_sound_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="sound"):
        transcribed(tmp_path / "mute.mkv", None, seconds=5.0)


def test_words_of_the_margins_belong_to_the_neighbours(tmp_path: Path, heard: dict[str, Result]) -> None:
    whole = clip_with(tmp_path / "whole.mkv", speech(NAMES[0]))
    part = Clip("part", whole.uri, whole.info, 3.0, 8.0, stages={"denoise": SpectralGate()})
    result = PocketSphinxTranscribe().measure(part)
    assert result.evidence is not None and result.evidence["words"]
    assert all(0 <= (a + b) / 2 < 5.0 for _, a, b, _ in result.evidence["words"])
    assert inside([("before", -0.4, 0.1, 1.0), ("in", -0.1, 0.4, 1.0), ("after", 4.9, 5.3, 1.0)], 5.0) == [
        ("in", -0.1, 0.4, 1.0)
    ]


def test_fillers_and_pronunciation_numbers_are_no_words() -> None:
    said = [("<s>", 0, 9), ("read(2)", 10, 29), ("[NOISE]", 30, 39), ("<sil>", 40, 49), ("++UM++", 50, 59)]
    segments = [SimpleNamespace(word=w, start_frame=a, end_frame=b, prob=1.0001) for w, a, b in said]
    assert spoken(segments, 100.0, 2.0) == [("read", 2.1, 2.3, 1.0)]
