"""Denoising: noise falls, speech stays, clean sound is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import NAMES, clip_with, pink, si_sdr, speech, with_noise

from curation.clip import Clip
from curation.denoise import FRAME, MARGIN_S, PROFILE_S, SpectralGate, background, resampled, snr_db
from curation.stage import Unmeasured
from models.clock import STORED_RATE

RATE = STORED_RATE


def hum(count: int) -> np.ndarray:
    t = np.arange(count) / RATE
    return sum(np.sin(2 * np.pi * 50 * k * t) / k for k in range(1, 9)).astype(np.float32) + 0.03 * pink(count)


def white(count: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(count).astype(np.float32)


def talk(name: str = NAMES[0]) -> np.ndarray:
    quiet = np.zeros(RATE // 2, np.float32)
    return np.concatenate((quiet, speech(name)[: 7 * RATE], quiet))


def denoised(path: Path, sound: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Measures of the stage and its product, aligned with `sound` and as long."""
    clip = clip_with(path, sound)
    result = SpectralGate().measure(clip)
    first = round(result.product.start_s * RATE)
    assert result.product.rate == RATE and first == 0
    return dict(result.measures), result.product.samples


@pytest.mark.parametrize("noise", [pink, white, hum])
@pytest.mark.parametrize("name", NAMES[:2])
def test_five_decibels_are_gained_at_five(tmp_path: Path, noise, name: str) -> None:
    clean = talk(name)
    noisy = with_noise(clean, noise(len(clean)), 5.0)
    measures, out = denoised(tmp_path / "noisy.mkv", noisy)
    count = min(len(out), len(clean))
    assert si_sdr(clean[:count], out[:count]) - si_sdr(clean[:count], noisy[:count]) >= 5.0
    assert measures["noise_snr_db"] == pytest.approx(5.0, abs=3.0)
    assert measures["noise_removed_db"] > 10.0


@pytest.mark.parametrize("snr", [10.0, 15.0, 20.0])
def test_less_noise_is_a_smaller_gain_and_never_a_loss(tmp_path: Path, snr: float) -> None:
    clean = talk(NAMES[3])
    noisy = with_noise(clean, pink(len(clean), 3), snr)
    measures, out = denoised(tmp_path / "noisy.mkv", noisy)
    count = min(len(out), len(clean))
    assert si_sdr(clean[:count], out[:count]) - si_sdr(clean[:count], noisy[:count]) >= 2.0
    assert measures["noise_snr_db"] == pytest.approx(snr, abs=3.0)


@pytest.mark.parametrize("snr", [45.0, 90.0])
def test_clean_speech_is_left_alone(tmp_path: Path, snr: float) -> None:
    sound = with_noise(talk(), pink(len(talk())), snr)
    measures, out = denoised(tmp_path / "clean.mkv", sound)
    np.testing.assert_array_equal(out, sound[: len(out)])
    assert measures["noise_snr_db"] > 35.0 and measures["noise_removed_db"] == 0.0


def test_a_faint_background_is_hardly_touched(tmp_path: Path) -> None:
    sound = with_noise(talk(), pink(len(talk())), 27.0)
    _, out = denoised(tmp_path / "faint.mkv", sound)
    assert si_sdr(sound[: len(out)], out) >= 20.0


def test_the_profile_comes_from_gaps_where_nobody_pauses(tmp_path: Path) -> None:
    clean = speech(NAMES[0])[round(0.2 * RATE) : round(5.2 * RATE)]
    noisy = with_noise(clean, pink(len(clean), 5), 5.0)
    _, out = denoised(tmp_path / "dense.mkv", noisy)
    count = min(len(out), len(clean))
    assert si_sdr(clean[:count], out[:count]) - si_sdr(clean[:count], noisy[:count]) >= 4.0


def test_breath_in_a_pause_is_no_background() -> None:
    sound = pink(6 * RATE) * 0.001
    sound[RATE : 2 * RATE] += speech(NAMES[0])[RATE : 2 * RATE]
    sound[3 * RATE : 3 * RATE + RATE // 2] += white(RATE // 2) * 0.02
    found = background(sound, RATE, [(1.0, 2.0)])
    assert not np.any((found >= 3 * RATE) & (found < 3 * RATE + RATE // 2))
    assert len(found) > 3 * RATE


def test_without_a_voice_the_sound_stays_as_it_is(tmp_path: Path) -> None:
    sound = pink(5 * RATE) * 0.05
    measures, out = denoised(tmp_path / "hiss.mkv", sound)
    assert measures == {"noise_snr_db": None, "noise_removed_db": 0.0}
    np.testing.assert_array_equal(out, sound[: len(out)])


def test_without_sound_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="sound"):
        SpectralGate().measure(clip_with(tmp_path / "mute.mkv", None, seconds=5.0))


def test_the_product_has_margins_and_is_the_same_when_made_again(tmp_path: Path) -> None:
    sound = with_noise(talk(), pink(len(talk())), 10.0)
    whole = clip_with(tmp_path / "long.mkv", sound)
    clip, again = (Clip("part", whole.uri, whole.info, 1.0, 6.0) for _ in range(2))
    result = SpectralGate().measure(clip)
    made = SpectralGate().product(again, {})
    assert made.start_s == result.product.start_s == -MARGIN_S
    assert made.end_s == pytest.approx(5.0 + MARGIN_S, abs=1 / RATE)
    np.testing.assert_array_equal(made.samples, result.product.samples)
    assert result.product.samples.dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.floats(0.6, 6.0), st.floats(0, 1), st.floats(0, 1))
def test_a_profile_is_long_enough_ascending_and_inside(seed: int, seconds: float, a: float, b: float) -> None:
    sound = np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)
    found = background(sound, RATE, [(min(a, b) * seconds, max(a, b) * seconds)])
    assert np.all(np.diff(found) > 0) and found[0] >= 0 and found[-1] < len(sound)
    assert len(found) >= min(PROFILE_S * RATE, len(sound) // FRAME * FRAME)


@given(st.floats(-10, 40))
@settings(max_examples=20, deadline=None)
def test_the_ratio_is_that_of_the_powers(ratio: float) -> None:
    noise, voice = white(RATE), pink(RATE)
    mixed = voice * 10 ** (ratio / 20) + noise
    assert snr_db(mixed * 0.01, noise * 0.01) == pytest.approx(ratio, abs=1.5)


def test_resampling_keeps_a_tone_and_its_time() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    out = resampled(tone, RATE, 16_000)
    want = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    assert len(out) == 16_000
    np.testing.assert_allclose(out[200:-200], want[200:-200], atol=0.01)
