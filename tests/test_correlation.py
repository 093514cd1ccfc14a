"""Lip-sync by correlation: its parts on analytic signals, the whole on a photograph that talks."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talker import FPS, LANDMARKS, RATE, STEP, portrait, speech_level, talking, voice

from models.correlation import (
    LAG_COST,
    MAX_LAG,
    TEMPLATE,
    USUAL_LAG,
    Agreement,
    Mouth,
    agreement,
    components,
    distinct,
    face_crops,
    flow_steps,
    held_out,
    lag_correlation,
    landmark_paths,
    loudness,
    mouth_of,
    similarities,
    soft_clip,
    syllables,
)


@functools.cache
def mouth(seconds: float, seed: int) -> Mouth:
    """The mouth of the portrait talking."""
    images = talking(speech_level(seconds, seed)[STEP // 2 :: STEP], seed)
    looks = np.arange(0, len(images), 5)
    points = landmark_paths(looks, np.tile(LANDMARKS, (len(looks), 1, 1)), len(images))
    return mouth_of(face_crops(images, points), distinct(images))


def sound(seconds: float, seed: int, lag: int = 0) -> np.ndarray:
    """[n, 40] the loudness of that speech, `lag` frames late."""
    samples = voice(speech_level(seconds + 2, seed), seed)
    begin = RATE - lag * RATE // FPS
    padded = np.concatenate([np.zeros(RATE, np.float32), samples])
    return loudness(padded[begin : begin + round(seconds * RATE)], 0.0, round(seconds * FPS))


# the whole, on arrays


@settings(max_examples=12, deadline=None)
@given(lag=st.integers(-9, 9), seed=st.sampled_from([1, 2]))
def test_the_lag_of_the_sound_is_found_exactly(lag: int, seed: int):
    shift = agreement(mouth(8.0, seed), sound(8.0, seed, lag)).lag - agreement(mouth(8.0, seed), sound(8.0, seed)).lag
    assert shift == lag


def test_true_sound_is_nearly_in_place_and_far_above_foreign_sound():
    for seed in (1, 2):
        found = agreement(mouth(8.0, seed), sound(8.0, seed))
        assert abs(found.lag) <= 1 and found.confidence > 8
        for other in (3, 4, 5):
            assert agreement(mouth(8.0, seed), sound(8.0, other)).confidence < 0.6 * found.confidence


def test_confidence_grows_with_length_for_the_true_sound_only():
    def confidence(seconds: float, seed: int) -> float:
        frames = round(seconds * FPS)
        return agreement(mouth(16.0, 6).part(0, frames), sound(16.0, seed)[:frames]).confidence

    assert confidence(16.0, 6) > 1.2 * confidence(8.0, 6) > 1.2 * 1.1 * confidence(5.0, 6)
    assert confidence(16.0, 7) < 0.6 * confidence(16.0, 6)


@pytest.mark.parametrize("snr_db", [5, 10])
def test_noise_moves_neither_lag_nor_verdict(snr_db: int):
    samples = voice(speech_level(8.0, 1), 1)
    noise = np.cumsum(np.random.default_rng(0).standard_normal(len(samples)))  # brown, as rooms are
    noise = np.diff(noise - np.convolve(noise, np.ones(800) / 800, "same"), prepend=0.0)
    noise *= np.sqrt((samples**2).mean() / (noise**2).mean()) / 10 ** (snr_db / 20)
    clean = agreement(mouth(8.0, 1), loudness(samples, 0.0, 200))
    noisy = agreement(mouth(8.0, 1), loudness(samples + noise.astype(np.float32), 0.0, 200))
    assert noisy.lag == clean.lag and noisy.confidence > 0.75 * clean.confidence


def test_a_frozen_picture_agrees_with_nothing():
    images = np.repeat(portrait()[None], 150, axis=0)
    crops = face_crops(images, np.tile(LANDMARKS, (150, 1, 1)))
    shown = distinct(images)
    assert shown.tolist() == [0]
    assert agreement(mouth_of(crops, shown), sound(6.0, 1)).confidence < 0.1


def test_silence_and_gaps_of_sound():
    with pytest.raises(ValueError, match="frames with sound"):
        agreement(mouth(8.0, 1), np.full((200, 40), np.nan))
    late = sound(8.0, 1).copy()
    late[:50] = np.nan
    found = agreement(mouth(8.0, 1), late)
    assert found.frames == 150 and abs(found.lag) <= 1
    assert agreement(mouth(8.0, 1), np.ones((200, 40))).confidence < 0.1


# the score


def test_unusual_lags_pay_and_the_taken_out_lag_counts():
    curve = np.zeros(31)
    curve[MAX_LAG + 2], curve[MAX_LAG + 9] = 0.50, 0.53
    plain = Agreement(curve, 100)
    assert plain.lag == 2 and plain.confidence == pytest.approx(5.0)
    alone = Agreement(np.where(np.arange(31) == MAX_LAG + 9, curve, 0), 100)
    assert alone.lag == 9 and alone.confidence == pytest.approx(5.3 - LAG_COST * (9 - USUAL_LAG))
    centred = Agreement(np.roll(alone.curve, -9), 100, corrected=9)
    assert centred.lag == 0 and centred.confidence == pytest.approx(alone.confidence)


# its parts


@settings(max_examples=40, deadline=None)
@given(lag=st.integers(-MAX_LAG, MAX_LAG), seed=st.integers(0, 2**16))
def test_lag_correlation_finds_a_delay_and_its_sign(lag: int, seed: int):
    source = np.random.default_rng(seed).standard_normal(300)
    picture, late = source[50:200], source[50 - lag : 200 - lag]
    curve = lag_correlation(picture, late)
    assert curve.argmax() - MAX_LAG == lag and curve.max() == pytest.approx(1.0)
    assert lag_correlation(picture, -late).max() < 0.6  # opposite motion is no agreement


def test_lag_correlation_of_two_cosines_is_a_cosine():
    t = np.arange(500)
    curve = lag_correlation(np.cos(2 * np.pi * t / 10), np.cos(2 * np.pi * (t - 3) / 10))
    expected = np.cos(2 * np.pi * (np.arange(-MAX_LAG, MAX_LAG + 1) - 3) / 10)
    np.testing.assert_allclose(curve, expected, atol=0.02)
    assert not lag_correlation(np.ones(50), np.arange(50.0)).any()


def test_syllables_keep_their_band_and_phase():
    t = np.arange(1000) / FPS

    def gain(hertz: float) -> float:
        return float(np.std(syllables(np.sin(2 * np.pi * hertz * t))[200:800]) * np.sqrt(2))

    assert gain(4.0) > 0.9 and gain(0.3) < 0.05 and gain(0.75) < 0.35
    wave = np.sin(2 * np.pi * 4 * t)
    assert np.corrcoef(syllables(wave)[200:800], wave[200:800])[0, 1] > 0.999


def test_soft_clip_bounds_outliers_and_leaves_the_rest():
    x = np.random.default_rng(0).standard_normal(1000)
    hit = x.copy()
    hit[500] = 1000.0
    bent = soft_clip(hit)
    assert bent.max() < 3.0 and np.corrcoef(bent, x)[0, 1] > 0.98
    resting = np.zeros(100)
    resting[40:60] = 1.0
    assert soft_clip(resting)[50] > 0.2  # more than half at rest is no reason to flatten the rest


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.3, 6.0), turn=st.floats(-0.6, 0.6), x=st.floats(-500, 500), y=st.floats(-500, 500)
)  # fmt: skip
def test_similarities_bring_landmarks_to_the_template(scale: float, turn: float, x: float, y: float):
    spin = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = TEMPLATE @ spin.T + (x, y)
    (warp,) = similarities(points[None])
    np.testing.assert_allclose(points @ warp[:, :2].T + warp[:, 2], TEMPLATE, atol=1e-6)


@pytest.mark.parametrize(("scale", "x", "y"), [(0.7, 40, 30), (1.0, 100, 60), (3.5, 30, 20), (2.0, -60, -80)])
def test_crops_hold_the_landmarks_where_the_template_says(scale: float, x: int, y: int):
    points = TEMPLATE * scale + (x, y)
    image = np.zeros((500, 600, 3), np.uint8)
    inside = [k for k, (px, py) in enumerate(points) if 8 < px < 592 and 8 < py < 492]
    for k in inside:
        cv2.circle(image, tuple(round(v * 16) for v in points[k]), round(4 * scale * 16), (255, 255, 255), -1, shift=4)
    (crop,) = face_crops(image[None], points[None])
    assert inside
    for k in inside:
        left, top = (TEMPLATE[k] - 8).astype(int)
        part = crop[top : top + 17, left : left + 17].astype(float)
        yy, xx = np.mgrid[top : top + 17, left : left + 17]
        centre = (part * xx).sum() / part.sum(), (part * yy).sum() / part.sum()
        np.testing.assert_allclose(centre, TEMPLATE[k], atol=0.4)


def test_landmark_paths_interpolate_and_hold():
    marks = np.zeros((3, 5, 2))
    marks[1:, :, 0] = 10.0
    path = landmark_paths(np.array([10, 40, 60]), marks, 100)
    assert path.shape == (100, 5, 2)
    assert path[25, 0, 0] == pytest.approx(5.0, abs=1e-6) and path[99, 0, 0] == pytest.approx(10.0, abs=1e-6)
    assert path[0, 0, 0] == pytest.approx(0.0, abs=0.05) and not path[..., 1].any()


def test_flow_steps_see_the_jaw_and_not_the_head():
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (140, 140)).astype(np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    still = texture[6:134, 6:134]
    nod = texture[4:132, 5:133]  # the whole picture moves 1 right, 2 down
    jaw = still.copy()
    jaw[94:] = texture[98:132, 6:134]  # the part under the lips moves 2 down
    step = flow_steps(np.stack([still, nod]))[0]
    np.testing.assert_allclose(step, 0, atol=0.15)
    step = flow_steps(np.stack([still, jaw]))[0]
    assert step[5:, 1:5, 1].mean() == pytest.approx(2.0, abs=0.3)
    assert abs(step[:3, :, 1]).max() < 0.5 and abs(step[5:, 1:5, 0]).mean() < 0.2


def test_motion_of_a_repeated_picture_is_spread_over_the_time_between():
    images = talking(np.linspace(0, 1, 40) ** 2)
    held = images[np.arange(40) // 2 * 2]
    shown = distinct(held)
    assert shown.tolist() == list(range(0, 40, 2)) and distinct(images).tolist() == list(range(40))
    points = np.tile(LANDMARKS, (40, 1, 1))
    full = mouth_of(face_crops(images, points), distinct(images)).flow[..., 1].mean((1, 2))
    half = mouth_of(face_crops(held, points), shown).flow[..., 1].mean((1, 2))
    assert half[5:35].mean() == pytest.approx(full[5:35].mean(), rel=0.15)
    assert half[5:35].std() < 1.3 * full[5:35].std()  # no stop and go


def test_loudness_is_timed_and_follows_the_cube_root_of_power():
    samples = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) * 1e-3
    samples[RATE : RATE + RATE // 25] *= 100
    plain = loudness(samples, 0.0, 50)
    assert plain.shape == (50, 40) and abs(int(np.nanargmax(plain[:, 20])) - 25) <= 1
    np.testing.assert_allclose(loudness(samples, -0.4, 40)[2:], plain[12:], rtol=1e-4)
    np.testing.assert_allclose(loudness(samples * 8, 0.0, 50), plain * 4, rtol=1e-3)
    part = loudness(samples[: RATE // 2], 0.5, 50)
    assert np.isnan(part[:12]).all() and np.isnan(part[26:]).all() and not np.isnan(part[14:24]).any()
    assert np.isnan(loudness(samples[:100], 0.0, 5)).all()


def test_held_out_predictions_never_see_their_fold():
    x = np.random.default_rng(0).standard_normal((100, 3))
    hat = held_out(x, folds=5, gap=5)
    for fold in range(5):
        rows = slice(20 * fold, 20 * fold + 20)
        assert not hat[rows, max(0, 20 * fold - 5) : 20 * fold + 25].any()
    target = x @ np.array([1.0, -2.0, 0.5])
    train = np.arange(25, 100)
    weights = np.linalg.solve(x[train].T @ x[train] + 0.3 * 75 * np.eye(3), x[train].T @ target[train])
    np.testing.assert_allclose((hat @ target)[:20], x[:20] @ weights)


def test_components_are_strongest_first_and_ignore_slow_drift():
    t = np.arange(400) / FPS
    rng = np.random.default_rng(0)
    mix = np.sin(2 * np.pi * 4 * t)[:, None] * rng.standard_normal(10)
    drift = 50 * np.sin(2 * np.pi * 0.05 * t)[:, None] * rng.standard_normal(10)
    found = components(mix + drift + 0.01 * rng.standard_normal((400, 10)), 3)
    assert found.shape == (400, 3) and (np.diff(found.std(0)) < 0).all()
    assert abs(np.corrcoef(found[50:350, 0], np.sin(2 * np.pi * 4 * t)[50:350])[0, 1]) > 0.95
