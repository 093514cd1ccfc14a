"""The sample videos: real input for the real models, and what they say they are."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.audio import read_audio
from curation.clip import Clip
from curation.media import probe
from curation.scenes import find_scenes
from curation.speakers import CenterFaceSpeakers
from manifests.errors import SourceError, UsageError
from models.clock import FPS, STORED_RATE
from models.faces import detect
from models.voice import voice_segments
from pipelines import sample
from pipelines.puppet import GAP, VIEW, motion_of
from pipelines.sample import DEMO, Scene, make_call, make_demo, make_video, scene_frames, scene_sound, speech, speeches

SIZE = 256


def frames_of(scene: Scene, size: int = SIZE) -> np.ndarray:
    """[n, size, size, 3] uint8 RGB."""
    return np.stack(list(scene_frames(scene, size=size)))


def heard(scene: Scene) -> np.ndarray:
    """The scene's sound at 16 kHz."""
    from scipy.signal import resample_poly

    return resample_poly(scene_sound(scene), 320, 441).astype(np.float32)


def envelope(scene: Scene) -> np.ndarray:
    """[n] loudness (RMS over 120 ms) of the scene's sound at each frame."""
    power = np.convolve(scene_sound(scene) ** 2, np.hanning(round(0.12 * STORED_RATE)), mode="same")
    return np.sqrt(power[:: STORED_RATE // FPS])[: scene.frames]


def drop(frames: np.ndarray, x: float, y: float, side: float = 20) -> np.ndarray:
    """[n] px by which the patch around photograph point (x, y) of frame 0 has gone down in each frame."""
    scale = frames.shape[1] / VIEW[2]
    half, reach = int(side * scale / 2), int(12 * scale)
    column, row = int((x - VIEW[0]) * scale), int((y - VIEW[1]) * scale)
    patch = frames[0, row - half : row + half, column - half : column + half]
    out = []
    for frame in frames:
        window = frame[row - half - reach : row + half + reach, column - half - 4 : column + half + 4]
        out.append(cv2.minMaxLoc(cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED))[3][1] - reach)
    return np.array(out, float)


def opening(frames: np.ndarray) -> np.ndarray:
    """[n] how far the chin is from the bridge of the nose, px, less frame 0's: the jaw, not the head."""
    return drop(frames, 225, 165) - drop(frames, 224, 112)


@pytest.fixture(scope="module")
def talking() -> np.ndarray:
    return frames_of(Scene("speech_en_1", 8.0), 384)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.name: path for path in make_demo(tmp_path_factory.mktemp("demo"), size=128)}


def test_speeches_are_short_plain_and_small() -> None:
    folder = Path(sample.__file__).parent / "demo_media"
    assert {path.stem for path in folder.glob("*.flac")} == set(speeches())
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 1_000_000
    for name in speeches():
        samples, rate = speech(name)
        assert rate == STORED_RATE
        assert samples.dtype == np.float32
        assert 6 <= len(samples) / rate <= 16
        assert 0.3 < np.abs(samples).max() <= 1


def test_every_word_is_in_the_pronouncing_dictionary() -> None:
    from models.onnx import package_file

    lines = package_file("pocketsphinx", "model", "en-us", "cmudict-en-us.dict").read_text().splitlines()
    known = {line.split(maxsplit=1)[0] for line in lines if line}
    for name in speeches():
        words = sample.transcript(name).lower().replace(".", " ").replace(",", " ").split()
        assert len(words) > 20
        assert set(words) <= known


def test_an_unknown_speech_is_one_line_that_names_the_known() -> None:
    with pytest.raises(UsageError, match="speech_en_1"):
        speech("speech_fr_9")


@settings(max_examples=15, deadline=None)
@given(seconds=st.floats(0.04, 15), lag=st.integers(-10, 10), name=st.sampled_from([None, "speech_en_2"]))
def test_sound_is_exactly_as_long_as_the_frames(seconds: float, lag: int, name: str | None) -> None:
    scene = Scene(name, seconds, lag_frames=lag)
    samples = scene_sound(scene)
    assert len(samples) == scene.frames * STORED_RATE // FPS
    assert np.abs(samples).max(initial=0) <= 1


@pytest.mark.parametrize("lag", [-5, 4])
def test_lagging_sound_is_the_same_sound_later(lag: int) -> None:
    plain, moved = scene_sound(Scene(seconds=6)), scene_sound(Scene(seconds=6, lag_frames=lag))
    step = abs(lag) * STORED_RATE // FPS
    early, late = (plain, moved) if lag > 0 else (moved, plain)
    assert np.corrcoef(early[:-step], late[step:])[0, 1] > 0.999


def test_noise_lies_as_far_under_the_speech_as_asked() -> None:
    quiet, noisy = scene_sound(Scene(seconds=6)), scene_sound(Scene(seconds=6, noise_snr_db=10.0))
    voiced = np.abs(quiet) > 0.02 * np.abs(quiet).max()
    ratio = 10 * np.log10(np.mean(quiet[voiced] ** 2) / np.mean((noisy - quiet) ** 2))
    assert ratio == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_file_holds_the_frames_and_the_sound_on_one_clock(tmp_path: Path, suffix: str) -> None:
    scenes = [Scene("speech_en_1", 1.2), Scene("speech_en_3", 0.8, mirrored=True)]
    path = make_video(tmp_path / f"two{suffix}", scenes, size=128)
    info = probe(str(path))
    assert (info.width, info.height, info.fps) == (128, 128, 25.0)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    want = np.concatenate([scene_sound(scene) for scene in scenes])
    got = read_audio(str(path), info, 0.0, 2.0, STORED_RATE)
    first = round(got.start_s * STORED_RATE)
    assert first == 0
    shared = min(len(want), len(got.samples))
    assert shared > 0.95 * len(want)
    spectrum = np.fft.rfft(got.samples[:shared], 2 * shared) * np.fft.rfft(want[:shared], 2 * shared).conj()
    late = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(late, 2 * shared - late) <= 2


def test_the_cut_is_where_the_first_scene_ends(tmp_path: Path) -> None:
    scenes = [Scene(seconds=1.0), Scene("speech_en_2", 1.0, mirrored=True)]
    path = str(make_video(tmp_path / "cut.mp4", scenes, size=128))
    small = Clip("cut", path, probe(path), 0.0, 2.0).small.astype(np.int16)
    assert len(small) == 50
    assert int(np.argmax(np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)))) == 24


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    scene = Scene(seconds=1.0, caption="HELLO", noise_snr_db=20.0)
    one, two = (make_video(tmp_path / f"{n}.mp4", [scene], size=128).read_bytes() for n in "ab")
    assert one == two
    other = Scene(seconds=1.0, caption="HELLO", noise_snr_db=20.0, seed=1)
    assert make_video(tmp_path / "c.mp4", [other], size=128).read_bytes() != one


def test_an_unknown_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="webm"):
        make_video(tmp_path / "video.gif", [Scene(seconds=0.2)], size=64)


def test_three_people_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or 2"):
        next(iter(scene_frames(Scene(people=3))))


def test_there_is_one_face_in_the_middle_of_every_frame(talking: np.ndarray) -> None:
    for frame in talking[::8]:
        faces = detect(np.ascontiguousarray(frame[..., ::-1]))
        assert len(faces) == 1
        x0, y0, x1, y1 = faces.boxes[0] / len(frame)
        assert 0.35 < (x0 + x1) / 2 < 0.65
        assert 0.35 < y1 - y0 < 0.55


def test_two_people_are_two_faces_and_only_the_left_one_speaks() -> None:
    frames = frames_of(Scene(seconds=3.0, people=2), 384)
    assert all(len(detect(np.ascontiguousarray(frame[..., ::-1]))) == 2 for frame in frames[::10])
    mouths = frames[:, 190:260].astype(np.int16)
    moving = np.abs(np.diff(mouths, axis=0)).mean(axis=(0, 1, 3))
    left, right = moving[: len(moving) // 2].max(), moving[len(moving) // 2 :].max()
    assert left > 1.5 * right


def test_the_mouth_opens_with_the_voice_and_at_the_same_time(talking: np.ndarray) -> None:
    jaw, loud = opening(talking), envelope(Scene("speech_en_1", 8.0))
    jaw = jaw - np.convolve(jaw, np.ones(25) / 25, mode="same")
    matches = {lag: np.corrcoef(jaw[10:-10], np.roll(loud, -lag)[10:-10])[0, 1] for lag in range(-8, 9)}
    assert max(matches, key=lambda lag: matches[lag]) in (-1, 0, 1)
    assert matches[0] > 0.6
    other = envelope(Scene("speech_en_2", 8.0))
    assert np.corrcoef(jaw[10:-10], other[10:-10])[0, 1] < 0.4
    assert 0.5 * GAP < np.ptp(opening(talking)) / (talking.shape[1] / VIEW[2]) < 1.5 * GAP


def test_a_silent_face_keeps_its_mouth_still() -> None:
    scene = Scene(None, 4.0, seed=3)
    assert np.ptp(opening(frames_of(scene, 384))) <= 2
    assert voice_segments(heard(scene)) == []


@pytest.mark.parametrize("name", ["speech_en_1", "speech_en_4"])
def test_a_voice_is_heard_most_of_the_time(name: str) -> None:
    found = voice_segments(heard(Scene(name, 8.0)))
    assert sum(end - start for start, end in found) > 0.7 * 8.0


@pytest.mark.parametrize("lag", [-4, 3])
def test_the_mouth_of_lagging_sound_moves_as_much_earlier(lag: int) -> None:
    samples, rate = speech("speech_en_1")
    plain, moved = motion_of(samples, rate, 150), motion_of(samples, rate, 150, lag_frames=lag)
    early, late = (moved, plain) if lag > 0 else (plain, moved)
    assert np.allclose(early.spread[: -abs(lag)], late.spread[abs(lag) :])


def measured_sync(path: Path, scene: Scene) -> tuple[Any, Any]:
    """(sync_confidence, sync_offset_frames) of a video of `scene`, by the bundled backends."""
    from curation.sync import CorrelationSync

    make_video(path, [scene], size=SIZE)
    stages = {"speakers": CenterFaceSpeakers(), "sync": CorrelationSync()}
    found = CorrelationSync().measure(Clip("clip", str(path), probe(str(path)), 0.0, scene.seconds, stages=stages))
    return found.measures["sync_confidence"], found.measures["sync_offset_frames"]


@pytest.mark.parametrize("lag", [0, 4])
def test_lips_are_surely_in_sync_and_the_lag_is_the_one_asked_for(tmp_path: Path, lag: int) -> None:
    confidence, offset = measured_sync(tmp_path / "own.mp4", Scene("speech_en_1", 6.0, lag_frames=lag))
    assert offset == -lag
    assert confidence > 10


def test_lips_are_out_of_sync_with_the_demo_s_wrong_sound(tmp_path: Path) -> None:
    (scene,) = DEMO["wrong_sound.mp4"]
    assert measured_sync(tmp_path / "wrong.mp4", scene)[0] < 4


def test_only_a_caption_is_read_as_text() -> None:
    from models.reader import read

    def words(scene: Scene) -> str:
        return " ".join(text.words for text in read(np.ascontiguousarray(frames_of(scene, 512)[0, ..., ::-1])))

    assert words(Scene(seconds=0.04)) == ""
    assert words(Scene(seconds=0.04, seed=5, mirrored=True, gains=(0.9, 1.0, 1.1))) == ""
    assert "SUBSCRIBE" in words(Scene(seconds=0.04, caption="SUBSCRIBE FOR MORE"))


def test_demo_sources_open_and_last_as_planned(demo: dict[str, Path]) -> None:
    total = 0.0
    for name, scenes in DEMO.items():
        if name == "damaged.mp4":
            continue
        info = probe(str(demo[name]))
        assert info.duration_s == pytest.approx(sum(scene.frames for scene in scenes) / FPS, abs=0.05)
        assert info.audio_codec is not None
        total += info.duration_s
    assert 50 < total < 75


def test_a_minute_for_the_portrait_to_say(tmp_path: Path) -> None:
    portrait, minute = make_call(tmp_path, size=256)
    picture = cv2.cvtColor(cv2.imread(str(portrait)), cv2.COLOR_BGR2RGB)
    first = frames_of(Scene(seconds=0.04), 256)[0]
    assert picture.shape == (256, 256, 3) and np.abs(picture.astype(int) - first).mean() < 4  # the camera's noise
    sound, rate = soundfile.read(minute, dtype="float32")
    assert (len(sound), rate) == (60 * 22_050, 22_050)
    for place, name in enumerate(speeches()):
        said, _ = speech(name)
        part = sound[place * len(sound) // 4 :][: len(said)]
        assert np.abs(part - said).max() < 1e-4, name
    assert sorted(each.name for each in tmp_path.iterdir()) == ["portrait.png", "speech.flac"]


def test_the_demo_has_one_file_that_does_not_open(demo: dict[str, Path]) -> None:
    with pytest.raises(SourceError):
        probe(str(demo["damaged.mp4"]))


def test_the_demo_s_cuts_are_found(demo: dict[str, Path]) -> None:
    path = str(demo["interview.mp4"])
    edges = np.cumsum([scene.frames / FPS for scene in DEMO["interview.mp4"]])[:-1]
    assert find_scenes(path, probe(path)).cuts == pytest.approx(tuple(edges), abs=0.02)
