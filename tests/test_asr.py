"""Transcription by Whisper and Paraformer: languages and their routes, words in their places, none out of silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import SAID, TURBO, models_with, talk
from makers import paraformer as chinese_maker
from makers import whisper as maker
from spoken import NAMES, clip_with, pink, speech

from curation.audio import Audio
from curation.clip import Clip
from curation.denoise import SpectralGate
from curation.stage import Result, Unmeasured
from curation.whisper_transcribe import WhisperParaformerTranscribe
from manifests.errors import ModelError
from models.clock import STORED_RATE

Transcribe = Callable[..., Result]


@pytest.fixture
def transcribed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Transcribe:
    """The stage on a clip of a sound, with a Whisper made with options of its maker."""

    def run(sound: np.ndarray | None, *, fields: Mapping[str, Any] = {}, **options: Any) -> Result:
        monkeypatch.setenv("XSTREAMER_MODELS", str(models_with(**options)))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mkv"
        return stage_of(clip_with(path, sound, seconds=0.0 if sound is not None else 5.0), fields)

    return run


def stage_of(clip: Clip, fields: Mapping[str, Any] = {}) -> Result:
    clip.stages = {"denoise": SpectralGate()}
    return WhisperParaformerTranscribe(**fields).measure(clip)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * STORED_RATE), np.float32)


class TestRoutes:
    def test_english_words_come_from_whisper(self, transcribed: Transcribe) -> None:
        result = transcribed(talk())
        assert result.measures["transcript"] == maker.TEXT.strip()
        assert result.measures["word_count"] == len(SAID) and result.measures["spoken_language"] == "en"
        assert result.evidence is not None
        words = result.evidence["words"]
        assert [word for word, *_ in words] == SAID
        assert result.measures["asr_confidence"] == pytest.approx(np.mean([p for *_, p in words]), abs=1e-3)
        assert 0.9 < float(result.measures["asr_confidence"] or 0) < 1.0
        assert next(iter(result.evidence["language"].items())) == ("en", 1.0)

    def test_chinese_characters_come_from_paraformer(self, transcribed: Transcribe) -> None:
        sound = np.concatenate((talk(3.0), quiet(1.5), talk(2.0)))
        result = transcribed(sound, language="zh")
        assert result.evidence is not None
        words = result.evidence["words"]
        known = set(chinese_maker.TEXT) | {"hello", "world", "a", "i"}
        assert result.measures["spoken_language"] == "zh" and len(words) >= 10
        assert all(set(word.strip().lower()) <= set("".join(known)) for word, *_ in words)
        assert result.measures["transcript"] == "".join(word for word, *_ in words)
        assert result.measures["word_count"] == len(words)
        assert all(b <= 3.3 or a >= 4.2 for _, a, b, _ in words)
        assert 0 < float(result.measures["asr_confidence"] or 0) < 1

    @pytest.mark.parametrize(("language", "code"), [("de", "de"), ("yue", "yue"), ("jw", "jv")])
    def test_another_language_is_named_and_not_written_down(
        self, transcribed: Transcribe, language: str, code: str
    ) -> None:
        result = transcribed(talk(), language=language)
        assert result.measures == {
            "transcript": None, "word_count": None, "asr_confidence": None, "spoken_language": code,
        }  # fmt: skip
        assert result.evidence is not None and result.evidence["words"] == []
        assert next(iter(result.evidence["language"])) == code

    def test_an_uncertain_language_is_none(self, transcribed: Transcribe) -> None:
        result = transcribed(talk(), sharpness=0.7, language="en")
        assert result.evidence is not None
        share = result.evidence["language"]["en"]
        assert 0.1 < share < 0.5
        assert set(result.measures.values()) == {None}
        braver = transcribed(
            talk(), sharpness=0.7, fields={"language_probability": share - 0.05, "log_probability": -99.0}
        )
        assert braver.measures["spoken_language"] == "en"


class TestSilence:
    @pytest.mark.parametrize("sound", [quiet(5.0), pink(5 * STORED_RATE) * 0.1], ids=["silence", "noise"])
    def test_where_nobody_speaks_there_are_no_words(self, transcribed: Transcribe, sound: np.ndarray) -> None:
        """The made net says its text whatever it hears; so it was not asked."""
        result = transcribed(sound)
        assert result.measures == {
            "transcript": "", "word_count": 0, "asr_confidence": None, "spoken_language": None,
        }  # fmt: skip
        assert result.evidence == {"words": [], "language": {}}

    def test_it_never_hears_the_silence_between(self, transcribed: Transcribe) -> None:
        """A voice, four seconds of nothing, a voice: the words that lie 0.4 s apart go over the gap."""
        sound = np.concatenate((talk(2.0), quiet(4.0), talk(3.0)))
        result = transcribed(sound)
        assert result.evidence is not None
        words = result.evidence["words"]
        assert [word for word, *_ in words] == SAID
        assert all(end < 2.6 or start > 5.4 for _, start, end, _ in words)
        assert any(end < 2.6 for _, _, end, _ in words) and any(start > 5.4 for _, start, *_ in words)

    @pytest.mark.parametrize(
        "options",
        [{"no_speech": True}, {"sharpness": 2.0}, {"text": " one two three four five six seven eight nine ten" * 9}],
        ids=["nobody speaks", "guesses", "repeats"],
    )
    def test_what_is_not_believed_is_dropped(self, transcribed: Transcribe, options: dict[str, Any]) -> None:
        result = transcribed(talk(), **options)
        assert result.measures["transcript"] == "" and result.measures["spoken_language"] is None
        assert result.evidence is not None and result.evidence["words"] == []

    def test_a_decoder_that_hangs_is_heard_once(self, transcribed: Transcribe) -> None:
        result = transcribed(talk(), text=" yes no maybe so" * 3 + " hum" * 60)
        assert result.measures["transcript"] == " ".join(["yes no maybe so"] * 3 + ["hum"])

    def test_the_guards_are_what_drops_it(self, transcribed: Transcribe) -> None:
        lenient = {"no_speech": 1.0, "log_probability": -99.0}
        for options in ({"no_speech": True}, {"sharpness": 2.0}):
            result = transcribed(talk(), fields=lenient, **options)
            assert result.measures["word_count"] == len(SAID)

    def test_without_sound_nothing_is_measured(self, transcribed: Transcribe) -> None:
        with pytest.raises(Unmeasured, match="sound"):
            transcribed(None)


class TestTimes:
    def test_words_move_with_the_sound(self, transcribed: Transcribe) -> None:
        first = transcribed(np.concatenate((quiet(1.0), talk())))
        late = transcribed(np.concatenate((quiet(2.5), talk())))
        assert first.evidence is not None and late.evidence is not None
        moved = [b[1] - a[1] for a, b in zip(first.evidence["words"], late.evidence["words"], strict=True)]
        np.testing.assert_allclose(moved, 1.5, atol=0.06)

    def test_they_count_from_the_clip_not_from_its_margin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(models_with()))
        whole = clip_with(tmp_path / "whole.mkv", np.concatenate((quiet(2.0), talk(6.0))))
        everything = stage_of(whole)
        part = stage_of(Clip("part", whole.uri, whole.info, 1.0, 7.0))
        assert everything.evidence is not None and part.evidence is not None
        moved = [a[1] - b[1] for a, b in zip(everything.evidence["words"], part.evidence["words"], strict=True)]
        np.testing.assert_allclose(moved, 1.0, atol=0.06)

    def test_words_of_the_margins_belong_to_the_neighbours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(models_with()))
        whole = clip_with(tmp_path / "whole.mkv", np.concatenate((talk(2.0), quiet(2.0), talk(2.0))))
        silent = stage_of(Clip("part", whole.uri, whole.info, 2.28, 3.6))
        assert silent.measures["transcript"] == "" and silent.measures["spoken_language"] is None

    def test_a_long_clip_is_heard_in_windows(self, transcribed: Transcribe) -> None:
        """50 s of speech: three windows, each of which the made net takes for its text."""
        result = transcribed(np.concatenate([talk(10.0)] * 5))
        assert result.evidence is not None
        starts = [start for _, start, *_ in result.evidence["words"]]
        assert result.measures["word_count"] in (2 * len(SAID), 3 * len(SAID))
        assert starts == sorted(starts) and starts[-1] > 25


def test_the_same_again_whatever_came_between(transcribed: Transcribe) -> None:
    for language in ("en", "zh"):
        first = transcribed(talk(), language=language)
        transcribed(speech(NAMES[1])[: 4 * STORED_RATE], language=language)
        torch.manual_seed(3)
        assert transcribed(talk(), language=language) == first


def test_the_product_may_begin_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the source has no sound before it, the denoised sound begins later, and so do its words."""
    monkeypatch.setenv("XSTREAMER_MODELS", str(models_with()))
    clip = clip_with(tmp_path / "talk.mkv", talk())
    on_time = stage_of(clip_with(tmp_path / "again.mkv", talk()))
    clip.stages = {}
    clip.record("denoise", {}, None, Audio(talk(4.0), STORED_RATE, 0.8))
    late = WhisperParaformerTranscribe().measure(clip)
    assert on_time.evidence is not None and late.evidence is not None
    moved = [b[1] - a[1] for a, b in zip(on_time.evidence["words"], late.evidence["words"], strict=False)]
    np.testing.assert_allclose(moved, 0.8, atol=0.06)


def test_missing_weights_name_the_command(
    transcribed: Transcribe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_with(tmp_path / "talk.mkv", talk())
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=f"models fetch whisper-{TURBO}"):
        stage_of(clip)
    with pytest.raises(ModelError, match="models fetch .*paraformer-zh"):
        WhisperParaformerTranscribe().revision()
    with pytest.raises(ModelError, match="no model 'whisper-huge'"):
        WhisperParaformerTranscribe(model="huge").revision()


def test_a_device_that_is_not_there_is_an_error(transcribed: Transcribe) -> None:
    device = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ModelError, match="CUDA"):
        transcribed(talk(), fields={"device": device})
