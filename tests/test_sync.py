"""Lip-sync by correlation: its parts on analytic signals, the whole on a photograph made to talk."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from made import write_movie

from curation.clip import Clip
from curation.media import probe
from curation.speakers import CenterFaceSpeakers
from curation.stage import Result, Unmeasured
from curation.sync import CorrelationSync
from manifests.records import measures_of
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

RATE, FPS, STEP = 16_000, 25, 640
LANDMARKS = np.array([[133.3, 101.6], [177.2, 103.2], [153.4, 124.7], [133.1, 142.5], [171.2, 143.4]])
"""Of the astronaut in `portrait`, as CenterFace sees them."""


# a photograph that talks


def speech_level(seconds: float, seed: int) -> np.ndarray:
    """[n] 0-1 at 16 kHz, how open and loud: syllables of uneven length and strength, a pause now and then."""
    rng = np.random.default_rng(seed)
    level, at = np.zeros(round(seconds * RATE)), 0.2
    while at < seconds:
        length = rng.uniform(0.12, 0.32)
        first, last = round(at * RATE), round((at + length) * RATE)
        bump = np.sin(np.linspace(0, np.pi, max(2, last - first))) ** 1.5 * rng.uniform(0.4, 1.0)
        room = len(level[first:last])
        level[first:last] = np.maximum(level[first:last], bump[:room])
        at += length * rng.uniform(0.7, 1.0) + (rng.uniform(0.2, 0.6) if rng.random() < 0.15 else 0.0)
    return level


def voice(level: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n] float32 at 16 kHz: a buzz with formant-like noise, as loud as `level` [n]."""
    rng = np.random.default_rng(seed)
    time = np.arange(len(level)) / RATE
    buzz = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    return (level * (0.15 * buzz + 0.1 * rng.standard_normal(len(level)))).astype(np.float32)


@functools.cache
def portrait() -> np.ndarray:
    """[320, 320, 3] uint8 BGR."""
    return np.ascontiguousarray(skimage.data.astronaut()[0:320, 70:390, ::-1])


def talking(level: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n, 320, 320, 3] uint8 BGR: the portrait whose jaw drops by `level` [n], with a swaying head and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:320, 0:320].astype(np.float32)
    across = np.exp(-(((x - 153) / 26) ** 2))
    below = np.clip((y - 146) / 6, 0, 1) * np.clip((205 - y) / 40, 0, 1)
    out = np.empty((len(level), 320, 320, 3), np.uint8)
    for k, open_ in enumerate(level):
        drop = 9.0 * open_ * across * below
        sway_x, sway_y = 2.0 * np.sin(k / 17), 1.5 * np.sin(k / 23)
        from_x, from_y = (x - sway_x).astype(np.float32), (y - drop - sway_y).astype(np.float32)
        image = cv2.remap(portrait(), from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        centre = (round(153 + sway_x), round(147 + sway_y + 4 * open_))
        cv2.ellipse(image, centre, (11, max(1, round(4 * open_))), 0, 0, 360, (20, 20, 45), -1)
        out[k] = np.clip(image + rng.normal(0, 2.0, image.shape), 0, 255)
    return out


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
            assert agreement(mouth(8.0, seed), sound(8.0, other)).confidence < 5.5


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
    assert plain.shape == (50, 40) and abs(int(plain[:, 20].argmax()) - 25) <= 1
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


# the stage, on files


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


def test_stage_measures_and_evidence(in_sync: Path):
    result = measured(in_sync)
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
def test_stage_finds_and_corrects_a_shift(in_sync: Path, tmp_path: Path, late: int):
    clean = measured(in_sync).measures
    shifted = measured(movie(tmp_path / "shifted.mkv", late=late)).measures
    assert shifted["sync_offset_frames"] - clean["sync_offset_frames"] == pytest.approx(-late, abs=1)
    assert abs(shifted["sync_residual_frames"]) <= 1
    assert shifted["sync_residual_confidence"] > 0.85 * shifted["sync_confidence"] > 5


def test_stage_tells_a_foreign_sound(in_sync: Path, tmp_path: Path):
    foreign = measured(movie(tmp_path / "swapped.mp4", heard=3)).measures
    assert foreign["sync_confidence"] < 0.6 * measured(in_sync).measures["sync_confidence"]


@pytest.mark.parametrize("fps", [15, 50])
def test_stage_agrees_across_frame_rates(in_sync: Path, tmp_path: Path, fps: int):
    def resampled(images: np.ndarray) -> list[np.ndarray]:
        return [images[min(len(images) - 1, int(k * FPS / fps))] for k in range(int(len(images) / FPS * fps))]

    path = movie(tmp_path / "other.mp4", pick=resampled, fps=fps)
    found, clean = measured(path).measures, measured(in_sync).measures
    assert found["sync_offset_frames"] == pytest.approx(clean["sync_offset_frames"], abs=1)
    assert found["sync_confidence"] > 0.6 * clean["sync_confidence"]


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
        ("nobody.mp4", {"pick": lambda x: np.roll(x, 1, axis=2) // 8 * 0 + 90}, "no face"),
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
