"""pyiqa's metrics on files that the tests make: built without a network, filled whole or not at all, equal to pyiqa's
own loading, and as a stage on films of a real photograph."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from makers import mirror
from makers import pyiqa as maker

from curation.clip import Clip
from curation.learned_quality import LearnedQuality
from curation.media import probe
from curation.quality import piqe
from curation.registry import build_stage
from curation.stage import Result, Unmeasured, fingerprint
from manifests.errors import ModelError, UsageError, XstreamerError
from manifests.records import measures_of
from models import image_quality
from models.image_quality import FILES, HUB, build, load_metric, metric_file, scale
from models.weights import ENV
from tests.made import write_movie

MADE = ("topiq_nr", "hyperiqa", "cnniqa")
BOX = {"crop_x": 100.0, "crop_y": 0.0, "crop_side": 300.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XSTREAMER_MODELS with made files of MADE."""
    root = tmp_path_factory.mktemp("models")
    mirror.unpublished(root, "pyiqa-topiq_nr", "pyiqa-hyperiqa")
    for metric in MADE:
        maker.make(root / f"pyiqa-{metric}", metric=metric)
    return root


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV, str(folder))
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV, str(tmp_path))
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def head(side: int = 240) -> np.ndarray:
    """[side, side, 3] uint8 BGR: the head of a photograph."""
    image = np.ascontiguousarray(skimage.data.astronaut()[0:240, 110:350, ::-1])
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def clip_of(path: Path, image: np.ndarray, seconds: float = 2.0, row: dict[str, Any] | None = None) -> Clip:
    """A film of `image` [h, w, 3] BGR, the portrait at BOX unless `row` says otherwise."""
    write_movie(path, [image[:, :, ::-1]] * round(seconds * 25))
    return Clip("made", str(path), probe(str(path)), 0.0, seconds, row=dict(BOX if row is None else row))


@pytest.mark.parametrize("metric", [name for name in FILES if not name.startswith("maniqa-")])
def test_each_metric_asks_pyiqa_for_the_one_file_that_we_name(metric: str, offline: None) -> None:
    with torch.device("cpu" if metric == "maniqa" else "meta"):  # maniqa computes while it is built
        net, key = build(metric)
    assert key in (None, "params")
    assert bool(list(net.parameters())) == bool(FILES[metric])


@pytest.mark.parametrize("metric", MADE)
def test_every_tensor_is_the_file_s(metric: str, models: Path, offline: None) -> None:
    path = models / f"pyiqa-{metric}" / FILES[metric]
    held = torch.load(path, weights_only=True)["params"]
    net = load_metric(metric).net
    assert net.state_dict().keys() == held.keys() and len(held) > 5
    assert all(torch.equal(value, held[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_it_scores_as_pyiqa_does_with_the_same_file(models: Path) -> None:
    import pyiqa

    path = str(models / "pyiqa-topiq_nr" / FILES["topiq_nr"])
    theirs = pyiqa.create_metric("topiq_nr", device="cpu", backbone_pretrain=False, pretrained_model_path=path)
    ours = load_metric("topiq_nr")
    images = head(), head(160), cv2.GaussianBlur(head(), (0, 0), 3)
    scores = [ours.score(image) for image in images]
    for image, score in zip(images, scores, strict=True):
        rgb = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))[None].float() / 255
        assert score == pytest.approx(100 * float(theirs(rgb)), abs=1e-4)
    assert len(set(scores)) == 3
    assert [ours.score(image) for image in reversed(images)] == scores[::-1]


def test_loading_draws_no_number_and_changes_no_library(models: Path) -> None:
    import timm
    import torchvision

    before = timm.create_model, torchvision.models.vgg16, torch.random.get_rng_state()
    image_quality._loaded.cache_clear()
    load_metric("cnniqa")
    assert (timm.create_model, torchvision.models.vgg16) == before[:2]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_scales_are_those_that_pyiqa_documents() -> None:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    found = {metric: scale(metric, DEFAULT_CONFIGS[metric]) for metric in FILES}
    koniq = {"topiq_nr", "hyperiqa", "maniqa", "dbcnn", "cnniqa", "nima-koniq"}
    assert all(found[metric] == (0.0, 1.0) for metric in koniq)
    assert found["musiq"] == found["tres"] == (0.0, 100.0)
    assert found["musiq-ava"] == (1.0, 10.0)
    assert found["piqe"] == (100.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("sharpest", "no metric 'sharpest'"),
        ("lpips", "with its original"),
        ("niqe", "lower is better"),
        ("inception_score", r"scores are 0 to ~"),
        ("unique", r"~-3 to ~3"),
        ("clipiqa+", "more weights than one file"),
        ("qalign", "more weights than one file"),
        ("topiq_nr-face", "more weights than one file"),
    ],
)
def test_a_metric_that_is_no_quality_of_100_is_refused_with_the_reason(metric: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        build_stage("quality", "pyiqa", {"metric": metric})
    assert "topiq_nr" in str(refused.value) and "\n" not in str(refused.value)


class TestStage:
    def test_a_sharp_portrait_scores_higher_than_a_soft_one(self, models: Path, tmp_path: Path) -> None:
        stage = LearnedQuality(metric="cnniqa")
        image = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
        soft = image.copy()
        soft[:310, 90:410] = cv2.GaussianBlur(image, (0, 0), 4)[:310, 90:410]
        good = stage.measure(clip_of(tmp_path / "good.mp4", image))
        poor = stage.measure(clip_of(tmp_path / "poor.mp4", soft))
        assert set(good.measures) == set(measures_of("quality"))
        assert [name for name, value in good.measures.items() if value is not None] == ["quality_score"]
        assert score_of(poor) < 0.6 * score_of(good)
        whole = LearnedQuality(metric="cnniqa", whole_frame=True)
        # what is outside of the portrait stayed sharp
        assert score_of(whole.measure(clip_of(tmp_path / "whole.mp4", soft))) > 1.5 * score_of(poor)

    def test_the_score_is_the_median_of_its_looks(self, models: Path, tmp_path: Path) -> None:
        path, image = tmp_path / "fade.mp4", np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
        frames = [(image * level).astype(np.uint8) for level in (1.0, 0.8, 0.2) for _ in range(25)]
        write_movie(path, (frame[:, :, ::-1] for frame in frames))
        found = LearnedQuality(metric="cnniqa").measure(Clip("made", str(path), probe(str(path)), 0, 3, row=dict(BOX)))
        evidence = found.evidence or {}
        first, second, third = evidence["per_frame"]
        assert first > second > third and score_of(found) == second
        assert evidence["looks_s"] == [0.48, 1.48, 2.48]

    def test_long_clips_are_looked_at_ten_times_at_most(self, models: Path, tmp_path: Path) -> None:
        clip = clip_of(tmp_path / "long.mp4", head(128), 13.0, {"crop_x": 0.0, "crop_y": 0.0, "crop_side": 128.0})
        found = LearnedQuality(metric="cnniqa").measure(clip)
        assert len((found.evidence or {})["per_frame"]) == 7

    @pytest.mark.parametrize(("side", "seen"), [(100, 256), (300, 300), (900, 512)])
    def test_a_portrait_is_seen_as_large_as_it_is_within_limits(self, side: int, seen: int, tmp_path: Path) -> None:
        row = {"crop_x": 10.0, "crop_y": 10.0, "crop_side": float(side)}
        clip = clip_of(tmp_path / "sized.mp4", head(960), 0.2, row)
        ((_, picture),) = LearnedQuality().pictures(clip)
        assert picture.shape == (seen, seen, 3)

    def test_without_a_face_only_the_whole_frame_is_measured(self, models: Path, tmp_path: Path) -> None:
        nobody = dict.fromkeys(BOX)
        with pytest.raises(Unmeasured, match="no face"):
            LearnedQuality(metric="cnniqa").measure(clip_of(tmp_path / "a.mp4", head(), 0.2, nobody))
        whole = LearnedQuality(metric="cnniqa", whole_frame=True)
        assert score_of(whole.measure(clip_of(tmp_path / "b.mp4", head(), 0.2, nobody))) > 10

    def test_piqe_needs_no_file_and_is_turned_round(self, empty: Path, tmp_path: Path) -> None:
        stage, clip = LearnedQuality(metric="piqe"), clip_of(tmp_path / "piqe.mp4", head(512), 0.2)
        ((_, picture),) = stage.pictures(clip)
        assert stage.revision().startswith("pyiqa ") and "," not in stage.revision()
        assert score_of(stage.measure(clip)) == pytest.approx(100 - piqe(picture), abs=1e-3)
        dark = clip_of(tmp_path / "dark.mp4", np.zeros((320, 400, 3), np.uint8), 0.2)
        with pytest.raises(Unmeasured, match="piqe has no number"):
            stage.measure(dark)

    def test_each_metric_is_a_backend_of_its_own(self, models: Path) -> None:
        stages = [LearnedQuality(metric=metric) for metric in ("topiq_nr", "hyperiqa", "cnniqa", "piqe")]
        assert [stage.backend for stage in stages] == [f"pyiqa-{stage.metric}" for stage in stages]
        assert stages[0].weights() == ("pyiqa", "pyiqa-topiq_nr")
        assert stages[2].weights() == ("pyiqa",) and FILES["cnniqa"] in stages[2].revision()
        reads = {"speakers": "0" * 16}
        assert len({fingerprint(stage, reads) for stage in stages}) == 4
        moved = LearnedQuality(metric="topiq_nr", device="cuda")
        assert fingerprint(moved, reads) == fingerprint(stages[0], reads)


def score_of(result: Result) -> float:
    found = result.measures["quality_score"]
    assert isinstance(found, float)
    return found


class Code:
    """Unpickles by making a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


class TestBadFiles:
    """Each is one line that says what and where."""

    def refused(self, kind: type[XstreamerError], match: str, metric: str = "cnniqa", device: str = "cpu") -> None:
        with pytest.raises(kind, match=match) as error:
            load_metric(metric, device)
        assert "\n" not in str(error.value)

    def put(self, root: Path, content: Any, metric: str = "cnniqa") -> Path:
        place = root / f"pyiqa-{metric}" / FILES[metric]
        place.parent.mkdir(parents=True)
        torch.save(content, place)
        return place

    def test_a_missing_file_says_how_to_get_it(self, empty: Path) -> None:
        self.refused(ModelError, "xstreamer models fetch pyiqa-topiq_nr", "topiq_nr")
        self.refused(ModelError, f"no weights of pyiqa's cnniqa at {empty}.*download {HUB}/{FILES['cnniqa']}")
        with pytest.raises(ModelError, match="models fetch pyiqa-topiq_nr"):
            LearnedQuality().revision()

    def test_code_is_not_run(self, empty: Path) -> None:
        path = self.put(empty, {"params": {"conv1.weight": torch.zeros(1), "more": Code(empty / "ran")}})
        self.refused(ModelError, "is refused.*could run code")
        assert not (empty / "ran").exists()
        torch.load(path, weights_only=False)  # the bait is live
        assert (empty / "ran").exists()

    def test_a_file_that_is_cut_off(self, empty: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = (models / "pyiqa-cnniqa" / FILES["cnniqa"]).read_bytes()
        monkeypatch.setenv(ENV, str(empty))
        self.put(empty, {}).write_bytes(whole[: len(whole) // 2])
        self.refused(ModelError, "no whole torch file|not readable")

    @pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(3), {"state": {}}, {"params": 3}])
    def test_a_file_without_the_table(self, content: Any, empty: Path) -> None:
        self.put(empty, content)
        self.refused(ModelError, "holds no CNNIQA: params is missing")

    def test_another_net_and_other_shapes(self, models: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = torch.load(metric_path(models, "cnniqa"), weights_only=True)["params"]
        monkeypatch.setenv(ENV, str(empty))
        place = self.put(empty, {"params": state | {"fc3.weight": torch.zeros(2, 800)}})
        self.refused(ModelError, r"fc3.weight is \[2, 800\], not \[1, 800\]")
        for wrong in (
            {name: value for name, value in state.items() if name != "fc1.bias"},
            {"x.weight": state["fc3.bias"]},
        ):
            torch.save({"params": wrong}, place)
            self.refused(ModelError, "holds no CNNIQA: .* is missing")

    def test_a_device_that_is_not_there(self, models: Path) -> None:
        self.refused(ModelError, "CUDA devices, not 'cuda:7'", device="cuda:7")

    def test_a_pyiqa_that_wants_another_file(self, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(FILES, "cnniqa", "older.pth")
        with pytest.raises(ModelError, match=r"not 'older.pth'; run: pip install pyiqa"):
            build("cnniqa")

    def test_metric_file_names_none_for_a_metric_without_weights(self, empty: Path) -> None:
        assert metric_file("piqe") is None


def metric_path(root: Path, metric: str) -> Path:
    return root / f"pyiqa-{metric}" / FILES[metric]
