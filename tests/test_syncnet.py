"""SyncNet: equal to its authors' code, and a stage that finds, corrects and measures again.

tests/golden/syncnet.npz holds what joonson/syncnet_python at commit 6efbb1c305c2 and python_speech_features 0.6 give
(torch 2.15.0, numpy 2.4.6, scipy 1.17.1, OpenCV 5.0.0, one thread of a CPU) for the weights and the input that
`makers.syncnet` makes from seeds: `SyncNetInstance.evaluate` as it is, with `cuda()` doing nothing and with the
frames and samples handed over in place of ffmpeg's JPEG and WAV files; `mfcc` of a second of sound; the pictures
that `crop_video` of run_pipeline.py writes for a face that jumps about, as means of 16 x 16 px, every fourth.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import write_movie
from makers import mirror
from makers import syncnet as maker

from curation.clip import Clip
from curation.media import probe
from curation.stage import Result, Unmeasured
from curation.syncnet import SyncNetSync, crops, heard, loaded
from manifests.errors import ModelError
from manifests.records import measures_of
from models.clock import FPS
from models.faces import FaceTrack
from models.mfcc import mfcc
from models.syncnet import EPSILON, SyncNet, crop, crop_paths, load, score, sound_windows, windows_in
from models.syncnet_fast import FastSyncNet

GOLDEN = np.load(Path(__file__).parent / "golden" / "syncnet.npz")
RATE, FRAME = 16_000, 640


@pytest.fixture(scope="module")
def random_net() -> FastSyncNet:
    net = SyncNet().eval()
    net.load_state_dict({name: torch.from_numpy(v) for name, v in maker.state().items()}, strict=False)
    return FastSyncNet(net)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights whose net tells sync."""
    folder = tmp_path_factory.mktemp("models")
    mirror.unpublished(folder, "syncnet")
    save(folder, {name: torch.from_numpy(v) for name, v in maker.hearing().items()})
    return folder


def save(folder: Path, content: Any, **how: Any) -> Path:
    path = folder / "syncnet" / "syncnet_v2.model"
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, **how)
    return path


class TestEqualToTheAuthors:
    def test_cepstra(self):
        assert np.abs(mfcc(maker.made_second()) - GOLDEN["mfcc"]).max() < 1e-4

    def test_features_and_score(self, random_net: FastSyncNet):
        frames, samples = maker.made_input()
        count = windows_in(len(frames), len(samples))
        lips, sound = random_net.lips(frames)[:count], random_net.sound(mfcc(samples)[: 4 * (count + 4)])
        assert np.abs(lips[:5] - GOLDEN["lips"]).max() < 1e-4
        assert np.abs(sound[:5] - GOLDEN["sound"]).max() < 1e-4
        assert GOLDEN["lips"].std(0).mean() > 0.01 and GOLDEN["sound"].std(0).mean() > 0.01  # inputs tell
        found = score(lips, sound)
        assert np.abs(found.distances - GOLDEN["distances"]).max() < 1e-4
        assert -found.lag == GOLDEN["offset"]
        assert found.confidence == pytest.approx(float(GOLDEN["confidence"]), abs=1e-4)
        assert np.abs(found.frames - GOLDEN["frames"]).max() < 1e-4

    def test_crop(self):
        (frames, boxes), pictures = maker.made_track()
        paths = crop_paths(frames, boxes, int(frames[0]), int(frames[-1]) + 1)
        cut = np.stack([crop(pictures[frames[0] + at], *path) for at, path in enumerate(paths)][::4])
        means = cut.reshape(len(cut), 14, 16, 14, 16, 3).mean((2, 4))
        assert np.abs(means - GOLDEN["crop_means"]).max() < 0.1

    def test_parameters(self):
        assert sum(p.numel() for p in SyncNet().parameters()) == 13_631_616

    def test_the_net_itself(self, random_net: FastSyncNet):
        net = SyncNet().eval()
        net.load_state_dict({name: torch.from_numpy(v) for name, v in maker.state().items()}, strict=False)
        frames, samples = maker.made_input()
        windows = torch.from_numpy(np.stack([frames[:5], frames[1:6]])).float().permute(0, 4, 1, 2, 3)
        cepstra = sound_windows(mfcc(samples))[:2].astype(np.float32)
        with torch.inference_mode():
            assert np.abs(net.lips(windows).numpy() - GOLDEN["lips"][:2]).max() < 1e-5
            assert np.abs(net.sound(torch.from_numpy(cepstra)[:, None]).numpy() - GOLDEN["sound"][:2]).max() < 1e-5


class TestFeatures:
    @settings(max_examples=5)
    @given(batch=st.integers(1, 7))
    def test_batches_change_nothing(self, random_net: FastSyncNet, batch: int):
        frames, cepstra = maker.made_input()[0], mfcc(maker.made_input()[1][: 11 * FRAME])
        assert np.abs(random_net.lips(frames[:9], batch) - random_net.lips(frames[:9])).max() < 2e-5
        assert np.abs(random_net.sound(cepstra, batch) - random_net.sound(cepstra)).max() < 2e-5

    def test_the_same_bytes_again(self, random_net: FastSyncNet):
        frames, samples = maker.made_input()
        assert random_net.lips(frames[:7]).tobytes() == random_net.lips(frames[:7]).tobytes()
        cepstra = mfcc(samples)
        assert random_net.sound(cepstra).tobytes() == random_net.sound(cepstra).tobytes()

    def test_too_few_frames_have_none(self, random_net: FastSyncNet):
        assert random_net.lips(np.zeros((4, 224, 224, 3), np.uint8)).shape == (0, 1024)

    @given(length=st.integers(1, 3000))
    def test_cepstra_of_any_length(self, length: int):
        found = mfcc(np.arange(length).astype(np.int16))
        assert found.shape == (1 if length <= 400 else 1 + math.ceil((length - 400) / 160), 13)
        assert np.isfinite(found).all()


class TestScore:
    @settings(max_examples=30)
    @given(late=st.integers(-15, 15), count=st.integers(40, 90), seed=st.integers(0, 99))
    def test_late_sound_has_a_negative_offset(self, late: int, count: int, seed: int):
        said = np.random.default_rng(seed).standard_normal((count + 30, 16)) + 0.2
        at = np.arange(15, 15 + count)
        found = score(said[at], said[at - late])
        assert found.lag == late
        assert found.confidence == pytest.approx(np.median(found.means) - found.least)
        assert found.curve[found.lag + 15] == found.curve.max() == found.confidence

    @given(seed=st.integers(0, 99), same=st.booleans())
    def test_distances_are_torchs(self, seed: int, same: bool):
        rng = np.random.default_rng(seed)
        lips = rng.standard_normal((9, 1024)) * 3
        sound = lips.copy() if same else rng.standard_normal((9, 1024))
        padded = torch.nn.functional.pad(torch.from_numpy(sound), (0, 0, 15, 15))
        wanted = [
            torch.nn.functional.pairwise_distance(
                torch.from_numpy(lips[at : at + 1]), padded[at : at + 31], eps=EPSILON
            )
            for at in range(9)
        ]
        assert np.abs(score(lips, sound).distances - torch.stack(wanted).numpy()).max() < 1e-6


class TestCrop:
    @settings(max_examples=40)
    @given(x=st.floats(0, 99), y=st.floats(0, 79), half=st.floats(0.5, 150))
    def test_any_face_inside_the_picture_has_one(self, x: float, y: float, half: float):
        assert crop(np.zeros((80, 100, 3), np.uint8), x, y, half).shape == (224, 224, 3)

    def test_it_follows_and_fills_with_grey(self):
        picture = np.zeros((100, 100, 3), np.uint8)
        picture[40:60, 40:60] = 255
        cut = crop(picture, 50, 50, 40)
        assert cut[0, 112].tolist() == [0, 0, 0]  # x -6 ... 106, y 10 ... 122
        assert cut[0, 0].tolist() == cut[-1, 112].tolist() == [110, 110, 110]
        rows = np.flatnonzero(cut[:, 112, 0] == 255)
        assert abs(rows[0] - 60) <= 2 and abs(rows[-1] - 99) <= 2  # 40 ... 60 of 10 ... 122, times 2

    def test_one_wild_box_moves_little(self):
        frames, boxes = np.arange(0, 60, 4), np.tile([10.0, 20.0, 50.0, 70.0], (15, 1))
        calm = crop_paths(frames, boxes, 0, 60)
        boxes[7] += 300
        assert np.array_equal(crop_paths(frames, boxes, 0, 60)[:20], calm[:20])
        assert np.abs(crop_paths(frames, boxes, 0, 60) - calm).max() < 100
        assert calm[30].tolist() == [30.0, 45.0, 25.0]


class Seen:
    """A face that stands still, as the stage before would hand it on."""

    def __init__(self, box: list[float] | None, frames: int) -> None:
        at = np.arange(0, frames, 4)
        boxes = np.tile(np.array(box or [0.0] * 4, np.float32), (len(at), 1))
        self.track = FaceTrack(at, boxes, np.zeros((len(at), 5, 2), np.float32), np.ones(len(at), np.float32))
        self.found = box is not None

    def product(self, clip: Clip, evidence: Mapping[str, Any]) -> FaceTrack | None:
        return self.track if self.found else None


def levels(count: int, seed: int = 0) -> np.ndarray:
    """[count] 0-1, held for a moment each."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.uniform(0.05, 1, count), rng.integers(2, 5, count))[:count]


def movie(path: Path, seconds: float = 2.8, *, late: int = 0, heard: int | None = 0, size=(96, 96), **how) -> Path:
    """A grey picture and noise that go up and down together, the noise `late` frames late."""
    count = round(seconds * FPS)
    level = levels(count + 60)
    shown = [np.full((*size, 3), round(40 + 180 * value), np.uint8) for value in level[20 : 20 + count]]
    audio = None
    if heard is not None:
        loud = 100 * 100 ** levels(count + 60, heard)[20 - late : 20 - late + count + 16]
        noise = np.random.default_rng(5).standard_normal(len(loud) * FRAME).clip(-3, 3)
        audio = (noise * loud.repeat(FRAME) / 32768).astype(np.float32)[: how.pop("samples", None)]
    return write_movie(path, shown, audio=audio, **how)


def opened(path: Path, start: float = 0.0, end: float = 2.8, box=(34.0, 34.0, 62.0, 62.0)) -> Clip:
    stages = {"speakers": Seen(box and list(box), round((end - start) * FPS))}
    return Clip("clip", str(path), probe(str(path)), start, end, stages=stages)


@pytest.fixture
def stage(models: Path, monkeypatch: pytest.MonkeyPatch) -> SyncNetSync:
    monkeypatch.setenv("XSTREAMER_MODELS", str(models))
    return SyncNetSync(min_seconds=1.6)


@pytest.fixture(scope="module")
def clean(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A file in sync and what the stage finds in it."""
    path = movie(tmp_path_factory.mktemp("clean") / "a.mkv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(models))
        return path, SyncNetSync(min_seconds=1.6).measure(opened(path))


class TestStage:
    def test_measures_and_evidence(self, stage: SyncNetSync, clean: tuple[Path, Result]):
        path, result = clean
        assert set(result.measures) == set(measures_of("sync"))
        assert result.measures["sync_offset_frames"] == result.measures["sync_residual_frames"] == 0
        assert result.measures["sync_confidence"] == result.measures["sync_residual_confidence"] > 2
        shown = result.evidence
        assert shown is not None and shown["lags"] == list(range(-15, 16)) and len(shown["curve"]) == 31
        assert max(shown["curve"]) == pytest.approx(result.measures["sync_confidence"], abs=1e-4)
        assert shown["lags"][int(np.argmax(shown["curve"]))] == 0
        assert 0 < shown["min_distance"] < 4
        assert shown["first_frame"] == 0 and len(shown["frame_confidence"]) == 70 - 5
        again = stage.measure(opened(path))
        assert json.dumps([result.measures, shown]) == json.dumps([again.measures, again.evidence])

    @pytest.mark.parametrize("late", [-4, 6])
    def test_a_shift_is_found_and_corrected(self, stage: SyncNetSync, tmp_path: Path, late: int):
        found = stage.measure(opened(movie(tmp_path / "a.mkv", 4.0, late=late), 0.6, 3.4)).measures
        assert found["sync_offset_frames"] == -late and found["sync_residual_frames"] == 0
        assert found["sync_residual_confidence"] > 0.9 * found["sync_confidence"] > 2

    def test_the_sound_is_cut_anew_to_the_sample(self, tmp_path: Path):
        clip = opened(movie(tmp_path / "a.mkv", 4.0), 0.6, 3.4)
        begin, plain = heard(clip, 3, 60, 0)
        moved, later = heard(clip, 3, 60, 7)
        assert begin == moved == 3 and len(plain) == len(later) == 57 * FRAME
        assert np.abs(later[: -7 * FRAME].astype(int) - plain[7 * FRAME :]).max() <= 1

    def test_a_foreign_sound_has_little_confidence(
        self, stage: SyncNetSync, clean: tuple[Path, Result], tmp_path: Path
    ):
        foreign = stage.measure(opened(movie(tmp_path / "b.mkv", heard=9)))
        assert foreign.measures["sync_confidence"] < 0.6 * clean[1].measures["sync_confidence"]

    def test_sound_that_begins_late_and_ends_early(self, stage: SyncNetSync, tmp_path: Path):
        path = movie(tmp_path / "a.mkv", late=5 + 3, samples=50 * FRAME, audio_start=5 / FPS)
        result = stage.measure(opened(path))
        assert result.measures["sync_offset_frames"] == -13 and result.evidence["first_frame"] in (5, 6)
        assert result.measures["sync_residual_frames"] in (0, None)

    def test_small_faces_are_decoded_at_full_size(self, stage: SyncNetSync, tmp_path: Path):
        path = movie(tmp_path / "a.mkv", 1.2, size=(1080, 1920), codec="mpeg4")
        clip = opened(path, end=1.2, box=(900.0, 500.0, 1000.0, 600.0))
        wide = opened(path, end=1.2, box=(500.0, 200.0, 1100.0, 800.0))
        small, large = (crops(one, one.product("speakers"), 0, 28) for one in (clip, wide))
        assert clip.scale == 3 and np.abs(small.astype(int) - large).max() <= 3
        assert "frames" not in clip.__dict__ and "frames" in wide.__dict__

    @pytest.mark.parametrize(
        ("how", "box", "why"),
        [
            ({"seconds": 1.2}, (34.0, 34.0, 62.0, 62.0), "face and sound together for 1.20 s only, 1.6 s needed"),
            ({"heard": None}, (34.0, 34.0, 62.0, 62.0), "no sound"),
            ({"samples": 8000}, (34.0, 34.0, 62.0, 62.0), "face and sound together"),
            ({}, None, "no face"),
        ],
    )
    def test_it_says_what_it_cannot_know(self, stage: SyncNetSync, tmp_path: Path, how: dict, box: Any, why: str):
        path = movie(tmp_path / "a.mkv", **how)
        with pytest.raises(Unmeasured, match=why):
            stage.measure(opened(path, end=how.get("seconds", 2.8), box=box))

    def test_where_it_runs_is_not_what_it_measures(self, stage: SyncNetSync):
        assert stage.params() == {"min_seconds": 1.6} and stage.weights() == ("syncnet",)
        assert stage.revision().startswith("syncnet ")


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


class TestBadCheckpoints:
    @pytest.mark.parametrize("old", [True, False])
    def test_both_of_torchs_formats_load(self, tmp_path: Path, old: bool):
        content = {name: torch.from_numpy(v) for name, v in maker.state().items()}
        path = save(tmp_path, content, _use_new_zipfile_serialization=not old)
        assert torch.equal(load(path).netfcaud[3].weight, content["netfcaud.3.weight"])

    def bad(self, path: Path, why: str) -> None:
        with pytest.raises(ModelError, match=why) as error:
            load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)

    def test_of_another_model(self, tmp_path: Path):
        self.bad(save(tmp_path, torch.nn.Linear(3, 4).state_dict()), "no SyncNet: netcnnaud.0.weight is missing")

    def test_of_other_shapes(self, tmp_path: Path):
        content = {name: torch.from_numpy(v) for name, v in maker.state().items()}
        content["netfclip.3.bias"] = torch.zeros(512)
        self.bad(save(tmp_path, content), r"netfclip.3.bias is \[512\], not \[1024\]")

    def test_of_no_names(self, tmp_path: Path):
        self.bad(save(tmp_path, torch.zeros(3)), "holds a Tensor, not SyncNet's weights")

    @pytest.mark.parametrize("old", [True, False])
    def test_with_code_inside(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: bool):
        self.bad(save(tmp_path, {"x": Evil()}, _use_new_zipfile_serialization=not old), "refused")
        assert "code ran" not in capsys.readouterr().out

    @pytest.mark.parametrize("old", [True, False])
    def test_cut_off(self, tmp_path: Path, old: bool):
        path = save(tmp_path, {"x": torch.zeros(9000)}, _use_new_zipfile_serialization=not old)
        path.write_bytes(path.read_bytes()[:9000])
        self.bad(path, "no whole torch file")

    def test_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        with pytest.raises(ModelError, match="xstreamer models fetch syncnet"):
            SyncNetSync().revision()

    def test_a_device_that_is_not_there(self, stage: SyncNetSync, tmp_path: Path):
        with pytest.raises(ModelError, match="CUDA devices, not 'cuda:99'"):
            SyncNetSync(device="cuda:99").measure(opened(movie(tmp_path / "a.mkv", 0.4), end=0.4))


def test_the_net_loads_once(models: Path):
    path = str(models / "syncnet" / "syncnet_v2.model")
    assert loaded("cpu", path) is loaded("cpu", path)
    assert pickle.loads(pickle.dumps(SyncNetSync())) == SyncNetSync()
