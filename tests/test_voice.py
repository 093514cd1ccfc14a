"""Voice activity: speech is found, nothing else is, and the pieces in which sound comes do not matter."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import NAMES, clip_with, pink, speech, with_noise

from curation.speech import SileroSpeech
from models.clock import ANALYSIS_RATE
from models.voice import (
    WINDOW,
    WINDOW_S,
    SpeechDetector,
    pauses,
    segments,
    speech_probabilities,
    voice_segments,
)

RATE = ANALYSIS_RATE


def share(samples: np.ndarray) -> float:
    return sum(end - start for start, end in voice_segments(samples)) / (len(samples) / RATE)


def chords(seconds: float) -> np.ndarray:
    """[n] float32: struck chords, three a second, each of decaying harmonics."""
    t = np.arange(round(seconds * RATE)) / RATE
    since, notes = t % (1 / 3), 220 * 2 ** (np.array([0, 4, 7, 12])[(t * 3).astype(int) % 4] / 12)
    tones = sum(np.sin(2 * np.pi * notes * k * t) / k for k in range(1, 6))
    return (0.2 * tones * np.exp(-6 * since)).astype(np.float32)


SECONDS = 6.0
TIME = np.arange(round(SECONDS * RATE)) / RATE
NO_VOICE = {
    "zeros": np.zeros(len(TIME), np.float32),
    "white": np.random.default_rng(1).standard_normal(len(TIME)).astype(np.float32) * 0.1,
    "pink": pink(len(TIME)) * 0.1,
    "tone": (0.3 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32),
    "hum": sum(0.1 * np.sin(2 * np.pi * 50 * k * TIME) / k for k in range(1, 9)).astype(np.float32),
    "chords": chords(SECONDS),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gain", [1.0, 0.03])
def test_speech_is_found_loud_or_quiet(name: str, gain: float) -> None:
    assert share(speech(name, RATE) * gain) > 0.7


@pytest.mark.parametrize("name", NO_VOICE)
def test_noise_tones_and_silence_are_no_speech(name: str) -> None:
    assert share(NO_VOICE[name]) < 0.05


def test_speech_is_found_where_it_stands_and_under_noise() -> None:
    gap = np.zeros(2 * RATE, np.float32)
    voice = speech(NAMES[0], RATE)[: 4 * RATE]
    sound = with_noise(np.concatenate((gap, voice, gap)), pink(8 * RATE), 5.0)
    found = voice_segments(sound, min_silence_s=0.5)
    assert found[0][0] == pytest.approx(2.0, abs=0.25)
    assert found[-1][1] == pytest.approx(6.0, abs=0.4)


def test_probabilities_are_those_of_the_package() -> None:
    import torch
    from silero_vad import load_silero_vad

    sound = speech(NAMES[0], RATE)[: 5 * RATE + 100]
    theirs = load_silero_vad(onnx=True).audio_forward(torch.from_numpy(sound)[None], RATE).numpy().reshape(-1)
    np.testing.assert_array_equal(speech_probabilities(sound), theirs)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40_000), max_size=12), st.integers(0, 4 * WINDOW))
def test_pieces_of_any_size_give_the_same_probabilities(cuts: list[int], beyond: int) -> None:
    sound = speech(NAMES[1], RATE)[: 40_000 + beyond]
    detector = SpeechDetector()
    parts = [detector.probabilities(piece) for piece in np.split(sound, sorted(cuts))]
    together = np.concatenate([*parts, detector.finish()])
    np.testing.assert_array_equal(together, speech_probabilities(sound))
    assert len(together) == -(-len(sound) // WINDOW)


def test_a_long_stream_needs_no_more_memory() -> None:
    detector, minute = SpeechDetector(), np.zeros(60 * RATE, np.float32)
    detector.probabilities(minute)
    tracemalloc.start()
    detector.probabilities(minute)
    first = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        detector.probabilities(minute)
    assert tracemalloc.get_traced_memory()[0] < first + 64_000
    tracemalloc.stop()


def test_one_sample_that_is_no_number_spoils_nothing_after_it() -> None:
    sound = np.concatenate((np.full(10, np.nan, np.float32), speech(NAMES[0], RATE)))
    assert np.isfinite(speech_probabilities(sound)).all()
    assert share(sound) > 0.7


PROBABILITIES = st.lists(st.floats(0, 1, width=32), max_size=300).map(lambda p: np.array(p, np.float32))


@given(PROBABILITIES, st.floats(0.2, 0.9), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.3))
def test_segments_are_ordered_apart_inside_and_long_enough(
    probabilities: np.ndarray, threshold: float, speech_s: float, silence_s: float, pad_s: float
) -> None:
    total = len(probabilities) * WINDOW_S
    found = segments(probabilities, threshold=threshold, min_speech_s=speech_s, min_silence_s=silence_s, pad_s=pad_s)
    edges = [edge for segment in found for edge in segment]
    assert all(a < b for a, b in pairwise(edges))
    assert all(0.0 <= edge <= total for edge in edges)
    assert all(b - a >= speech_s for a, b in found)
    for start, end in found:
        inside = probabilities[round(start / WINDOW_S) : max(1, round(end / WINDOW_S))]
        assert inside.max() >= np.float32(threshold)
    rest = pauses(found, total)
    assert sum(b - a for a, b in rest) + sum(b - a for a, b in found) == pytest.approx(total)


def test_hysteresis_bridges_a_dip_that_stays_above_the_lower_threshold() -> None:
    dip = np.array([0.0] * 10 + [0.9] * 10 + [0.4] * 10 + [0.9] * 10 + [0.0] * 10, np.float32)
    found = segments(dip, pad_s=0.0)
    assert found == [(10 * WINDOW_S, 40 * WINDOW_S)]
    assert len(segments(np.where(dip == np.float32(0.4), 0.2, dip), pad_s=0.0)) == 2


def test_a_blip_is_no_speech_and_a_short_pause_no_pause() -> None:
    blip = np.zeros(50, np.float32)
    blip[20:25] = 1.0  # 160 ms
    assert segments(blip, min_speech_s=0.25) == []
    gap = np.ones(50, np.float32)
    gap[20:24] = 0.0  # 128 ms
    assert len(segments(gap, min_silence_s=0.2)) == 1
    assert len(segments(gap, min_silence_s=0.1)) == 2


def test_the_stage_tells_speech_from_noise_and_from_nothing(tmp_path: Path) -> None:
    voice = speech(NAMES[2])[: 5 * 22_050]
    half = np.concatenate((voice, np.zeros(5 * 22_050, np.float32)))
    stage = SileroSpeech()
    talk = stage.measure(clip_with(tmp_path / "talk.mkv", half))
    assert talk.measures["audio_present"] is True
    assert 0.35 < talk.measures["speech_share"] < 0.55
    assert talk.evidence is not None and all(0 <= a < b <= 5.5 for a, b in talk.evidence["segments"])
    hiss = stage.measure(clip_with(tmp_path / "hiss.mkv", pink(5 * 22_050) * 0.05)).measures
    assert hiss["audio_present"] is True and hiss["speech_share"] == 0.0
    nothing = stage.measure(clip_with(tmp_path / "zeros.mkv", np.zeros(5 * 22_050, np.float32))).measures
    assert nothing == {"audio_present": False, "speech_share": 0.0}
    deaf = stage.measure(clip_with(tmp_path / "mute.mkv", None, seconds=5.0)).measures
    assert deaf == {"audio_present": False, "speech_share": None}
