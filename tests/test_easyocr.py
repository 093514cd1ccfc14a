"""EasyOCR as a text reader, on files that the tests make: a detector of strokes and a recogniser that is random but
sure (tests/makers/easyocr.py). What is read means nothing; where it is, and that the same is read the same, does."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from makers import easyocr as maker
from makers import mirror
from PIL import Image, ImageDraw, ImageFont

from curation.clip import Clip
from curation.media import probe
from curation.overlay import EasyOcrOverlay, RapidOcrOverlay
from curation.registry import build_stage
from curation.stage import Result, fingerprint
from manifests.errors import ModelError
from manifests.records import measures_of
from models import easyocr_reader
from models.easyocr_reader import DETECTOR, RECOGNISER, EasyOcrReader, engine
from models.weights import ENV
from tests.made import write_movie


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XSTREAMER_MODELS with made files."""
    root = tmp_path_factory.mktemp("models")
    mirror.unpublished(root, "easyocr")
    maker.make(root / "easyocr")
    return root


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV, str(folder))
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XSTREAMER_MODELS with a folder for files and none in it."""
    monkeypatch.setenv(ENV, str(tmp_path))
    (tmp_path / "easyocr").mkdir()
    return tmp_path


def written(image: np.ndarray, words: str, at: tuple[int, int], size: int) -> np.ndarray:
    """`image` [h, w, 3] with white `words`."""
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text(at, words, font=ImageFont.load_default(size), fill=(255, 255, 255))
    return np.array(canvas)


def extent(words: str, at: tuple[int, int], size: int) -> tuple[float, ...]:
    """x0, y0, x1, y1 of what `written` writes."""
    return ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(at, words, font=ImageFont.load_default(size))


def plain(height: int, width: int) -> np.ndarray:
    """[h, w, 3] uint8 grey, from dark to mid."""
    level = np.linspace(40, 110, width)[None, :] + np.linspace(0, 30, height)[:, None]
    return np.repeat(level.astype(np.uint8)[..., None], 3, axis=2)


PAGE = written(written(plain(192, 320), "Studio 42", (40, 30), 26), "Breaking News", (120, 120), 22)


class TestReader:
    def test_boxes_stand_where_text_is(self, models: Path) -> None:
        image = written(plain(192, 320), "Studio 42", (60, 70), 28)
        (box,) = EasyOcrReader().locate(image)
        x0, y0, x1, y1 = extent("Studio 42", (60, 70), 28)
        assert box.shape == (4, 2) and box.dtype == np.float32
        # the made detector's blur reaches some 20 px further
        assert np.allclose(box.min(axis=0), (x0, y0), atol=24) and (box.min(axis=0) <= (x0, y0)).all()
        assert np.allclose(box.max(axis=0), (x1, y1), atol=24) and (box.max(axis=0) >= (x1, y1)).all()
        assert EasyOcrReader().locate(plain(192, 320)).shape == (0, 4, 2)

    def test_boxes_are_in_the_pixels_of_the_picture_however_small_it_is_looked_at(self, models: Path) -> None:
        image = written(plain(384, 640), "Breaking", (200, 150), 70)
        coarse = EasyOcrReader().locate(image, 320 * 192)
        x0, y0, x1, y1 = extent("Breaking", (200, 150), 70)
        assert coarse.shape == (1, 4, 2)
        assert np.allclose(coarse[0].min(axis=0), (x0, y0), atol=60) and (coarse[0].min(axis=0) <= (x0, y0)).all()
        assert np.allclose(coarse[0].max(axis=0), (x1, y1), atol=60) and (coarse[0].max(axis=0) >= (x1, y1)).all()

    def test_a_picture_of_any_shape_is_looked_at(self, models: Path) -> None:
        for height, width in ((1, 1), (31, 200), (90, 33)):
            assert EasyOcrReader().locate(np.full((height, width, 3), 90, np.uint8)).shape == (0, 4, 2)

    def test_words_are_of_the_languages_and_do_not_depend_on_what_is_read_beside(self, models: Path) -> None:
        reader = EasyOcrReader()
        texts = reader.read(PAGE)
        assert len(texts) == 2
        known = set(engine().lang_char)
        assert all(text.words and set(text.words) <= known and 0 <= text.score <= 1 for text in texts)
        assert texts[0].words != texts[1].words
        boxes = np.array([text.box for text in texts])
        alone = [reader.recognise(PAGE, box[None])[0] for box in boxes[::-1]]
        assert [(t.words, t.score) for t in alone[::-1]] == [(t.words, t.score) for t in texts]
        assert np.array_equal(reader.locate(PAGE), boxes)

    def test_slanted_and_empty_boxes_are_read_too(self, models: Path) -> None:
        slanted = np.array([[40, 40], [200, 20], [205, 60], [45, 80]], np.float32)
        flat = np.array([[40, 40], [200, 40], [200, 40], [40, 40]], np.float32)
        tilted, none = EasyOcrReader().recognise(PAGE, np.array([slanted, flat]))
        assert np.array_equal(tilted.box, slanted) and 0 <= tilted.score <= 1
        assert (none.words, none.score) == ("", 0.0)
        assert EasyOcrReader().recognise(PAGE, np.zeros((0, 4, 2), np.float32)) == []

    def test_it_reads_as_easyocr_s_own_reader_does(self, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from easyocr import Reader, config

        where = models / "easyocr"
        recogniser = config.recognition_models["gen2"]["zh_sim_g2"]
        for entry, file in ((config.detection_models["craft"], DETECTOR), (recogniser, RECOGNISER)):
            monkeypatch.setitem(entry, "md5sum", hashlib.md5((where / file).read_bytes()).hexdigest())
        theirs = Reader(
            ["ch_sim", "en"],
            gpu=False,
            quantize=False,
            verbose=False,
            download_enabled=False,
            model_storage_directory=str(where),
            user_network_directory=str(where),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = theirs.readtext(PAGE, min_size=10)  # of one grey, so that the order of colours is none
        ours = EasyOcrReader().read(PAGE)
        assert [text.words for text in ours] == [words for _, words, _ in found] and len(found) == 2
        for text, (box, _, score) in zip(ours, found, strict=True):
            assert np.allclose(text.box, box) and text.score == pytest.approx(score, abs=1e-4)

    def test_it_is_silent_and_touches_nothing(
        self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        import easyocr.easyocr as library

        monkeypatch.setattr(library, "MODULE_PATH", str(tmp_path / "home"))
        held, imports = sorted(models.rglob("*")), list(sys.path)
        easyocr_reader._engine.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            EasyOcrReader().read(PAGE)
        assert sorted(models.rglob("*")) == held and sys.path == imports
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr() == ("", "")


def swaying(frame: int, height: int = 160, width: int = 256) -> np.ndarray:
    """[h, w, 3] RGB: a soft picture that drifts to and fro."""
    photo = cv2.GaussianBlur(skimage.data.astronaut(), (0, 0), 5)
    x, y = 20 + 10 * np.sin(frame / 9), 20 + 8 * np.cos(frame / 13)
    return cv2.warpAffine(photo, np.array([[0.8, 0, -x], [0, 0.8, -y]], np.float32), (width, height))


def film(path: Path, draw: Callable[[int, np.ndarray], np.ndarray] = lambda _, image: image) -> Result:
    """What is found in 3 s of the swaying picture, on which `draw` may draw."""
    frames: Iterable[np.ndarray] = (draw(at, swaying(at)) for at in range(75))
    write_movie(path, frames)
    clip = Clip("made", str(path), probe(str(path)), 0.0, 3.0)
    return EasyOcrOverlay(fine_area=320 * 192).measure(clip)


class TestStage:
    def test_a_clean_film_has_none(self, models: Path, tmp_path: Path) -> None:
        found = film(tmp_path / "clean.mp4")
        assert set(found.measures) == set(measures_of("overlay"))
        assert (found.measures["overlay_text_count"], found.measures["overlay_seconds"]) == (0, 0.0)

    def test_a_caption_is_found_followed_and_timed(self, models: Path, tmp_path: Path) -> None:
        def draw(at: int, image: np.ndarray) -> np.ndarray:
            return written(image, "Next: the weather", (40, 110), 20) if 30 <= at < 60 else image

        found = film(tmp_path / "brief.mp4", draw)
        assert found.measures["overlay_text_count"] == 1
        assert found.measures["overlay_seconds"] == pytest.approx(1.2, abs=0.2)
        (text,) = (found.evidence or {})["texts"]
        assert text["start_s"] == pytest.approx(1.2, abs=0.12) and text["end_s"] == pytest.approx(2.4, abs=0.12)
        x0, y0, x1, y1 = extent("Next: the weather", (40, 110), 20)
        assert np.allclose(text["box"], (x0, y0, x1, y1), atol=24)

    def test_it_is_the_bundled_stage_with_another_reader(self, models: Path) -> None:
        ours, bundled = build_stage("overlay", "easyocr", {}), build_stage("overlay", "rapidocr", {})
        assert isinstance(ours, EasyOcrOverlay) and isinstance(bundled, RapidOcrOverlay)
        assert {key for key, value in ours.params().items() if bundled.params()[key] != value} == {"min_score"}
        assert ours.weights() == ("easyocr",) and "easyocr 1." in ours.revision()
        assert fingerprint(EasyOcrOverlay(device="cuda"), {}) == fingerprint(ours, {}) != fingerprint(bundled, {})


class Code:
    """Unpickles by making a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def refused(match: str, device: str = "cpu") -> None:
    with pytest.raises(ModelError, match=match) as error:
        EasyOcrReader(device).locate(PAGE)
    assert "\n" not in str(error.value)


class TestBadFiles:
    """Each is one line that says what and where."""

    def links(self, models: Path, root: Path, *names: str) -> None:
        for name in names:
            (root / "easyocr" / name).symlink_to(models / "easyocr" / name)

    def test_missing(self, folder: Path, empty: Path) -> None:
        refused(f"no weights of easyocr at {empty}.*{DETECTOR}.*xstreamer models fetch easyocr")
        self.links(folder, empty, DETECTOR)
        refused(f"{RECOGNISER}.*xstreamer models fetch easyocr")

    def test_code_is_not_run(self, folder: Path, empty: Path) -> None:
        self.links(folder, empty, RECOGNISER)
        torch.save({"module.x": Code(empty / "ran")}, empty / "easyocr" / DETECTOR)
        refused("is refused.*could run code")
        assert not (empty / "ran").exists()
        torch.load(empty / "easyocr" / DETECTOR, weights_only=False)  # the bait is live
        assert (empty / "ran").exists()

    def test_cut_off(self, folder: Path, empty: Path) -> None:
        self.links(folder, empty, DETECTOR)
        whole = (folder / "easyocr" / RECOGNISER).read_bytes()
        (empty / "easyocr" / RECOGNISER).write_bytes(whole[: len(whole) // 2])
        refused("no whole torch file|not readable")

    def test_each_other_s_file(self, folder: Path, empty: Path) -> None:
        (empty / "easyocr" / DETECTOR).symlink_to(folder / "easyocr" / RECOGNISER)
        (empty / "easyocr" / RECOGNISER).symlink_to(folder / "easyocr" / DETECTOR)
        refused("holds no CRAFT: .* is missing")

    def test_a_recogniser_of_other_languages(self, folder: Path, empty: Path) -> None:
        self.links(folder, empty, DETECTOR)
        state = torch.load(folder / "easyocr" / RECOGNISER, weights_only=True)
        other = {"module.Prediction.weight": torch.zeros(97, 256), "module.Prediction.bias": torch.zeros(97)}
        torch.save(state | other, empty / "easyocr" / RECOGNISER)
        refused(r"holds no Model: Prediction.weight is \[97, 256\], not \[\d{4}, 256\]")

    def test_no_table(self, folder: Path, empty: Path) -> None:
        self.links(folder, empty, RECOGNISER)
        torch.save([torch.zeros(1)], empty / "easyocr" / DETECTOR)
        refused("holds no CRAFT: it is no table of tensors")

    def test_a_device_that_is_not_there(self, models: Path) -> None:
        refused("CUDA devices, not 'cuda:7'", "cuda:7")
