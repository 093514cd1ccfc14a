"""Text over the picture: the reader on made pictures, the stage on made films of a real photograph."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from curation.clip import Clip
from curation.media import probe
from curation.overlay import RapidOcrOverlay
from curation.stage import Result
from manifests.errors import ModelError
from manifests.records import measures_of
from models import reader
from tests.made import write_movie

SECONDS = 4


def written(
    image: np.ndarray, words: str, at: tuple[int, int], size: int, alpha: int = 255, plate: int = 0
) -> np.ndarray:
    """`image` (RGB) with `words`, their letters `size` px high, white of opacity `alpha` on a plate of `plate`."""
    font = ImageFont.load_default(size)
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(at, words, font=font)
    layer = Image.new("RGBA", image.shape[1::-1], (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    draw.rectangle((box[0] - 6, box[1] - 6, box[2] + 6, box[3] + 6), fill=(0, 0, 0, plate))
    draw.text(at, words, font=font, fill=(255, 255, 255, alpha))
    return np.array(Image.alpha_composite(Image.fromarray(image).convert("RGBA"), layer).convert("RGB"))


def gradient(height: int, width: int) -> np.ndarray:
    """[h, w, 3] RGB, from dark to mid grey-blue."""
    level = np.linspace(30, 130, width)[None, :] + np.linspace(0, 40, height)[:, None]
    return np.stack([level, level, level * 1.1], axis=2).astype(np.uint8)


def swaying(frame: int, side: int = 512) -> np.ndarray:
    """[side, side, 3] RGB: a head of a photograph that drifts to and fro."""
    x, y = 120 + 12 * np.sin(frame / 9), 8 + 5 * np.cos(frame / 13)
    move = np.array([[1, 0, -x], [0, 1, -y]], np.float32) * (side / 200)
    return cv2.warpAffine(skimage.data.astronaut(), move, (side, side), flags=cv2.INTER_CUBIC)


def measured(path: Path, frames: Iterable[np.ndarray]) -> Result:
    write_movie(path, frames)
    info = probe(str(path))
    clip = Clip("made", str(path), info, 0.0, int(info.duration_s * 25) / 25)
    return RapidOcrOverlay().measure(clip)


def film(path: Path, draw: Callable[[int, np.ndarray], np.ndarray] = lambda _, image: image) -> Result:
    """What is found in SECONDS of the swaying head, on which `draw` may draw."""
    return measured(path, (draw(i, swaying(i)) for i in range(SECONDS * 25)))


@pytest.mark.parametrize(("words", "size", "at"), [("Studio 42", 40, (60, 100)), ("Breaking News", 24, (200, 300))])
def test_reads_what_is_written_where_it_is(words: str, size: int, at: tuple[int, int]) -> None:
    image = written(gradient(360, 640), words, at, size)[:, :, ::-1]
    (text,) = reader.read(image)
    assert text.words.replace(" ", "") == words.replace(" ", "")
    assert text.score > 0.9
    font = ImageFont.load_default(size)
    x0, y0, x1, y1 = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(at, words, font=font)
    assert np.allclose(text.box.min(axis=0), (x0, y0), atol=size / 2)
    assert np.allclose(text.box.max(axis=0), (x1, y1), atol=size / 2)


def test_boxes_are_in_the_pixels_of_the_picture_however_small_it_is_looked_at() -> None:
    image = written(gradient(720, 1280), "Breaking News", (400, 500), 60)[:, :, ::-1]
    fine, coarse = reader.locate(image), reader.locate(image, 640 * 360)
    assert fine.shape == coarse.shape == (1, 4, 2)
    assert np.allclose(fine, coarse, atol=12)


def test_locating_and_reading_do_not_disturb_each_other() -> None:
    image = written(gradient(360, 640), "Hello there", (60, 100), 36)[:, :, ::-1]
    first = reader.locate(image)
    text = reader.read(image)
    assert np.array_equal(reader.locate(image), first)
    assert [t.words for t in reader.read(image)] == [t.words for t in text] != []
    assert reader.locate(gradient(360, 640)).shape == (0, 4, 2)
    assert reader.read(gradient(360, 640)) == []


def test_a_missing_model_is_an_error_not_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "DETECTOR", "absent.onnx")
    with pytest.raises(ModelError, match=r"absent\.onnx.*pip install"):
        reader.engine.__wrapped__()


def test_reads_without_network_or_noise() -> None:
    code = """
import socket
def refuse(*args, **more): raise OSError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import cv2, numpy as np
from models.reader import read
image = np.full((200, 400, 3), 40, np.uint8)
cv2.putText(image, "OFFLINE", (40, 120), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 255, 255), 3, cv2.LINE_AA)
print(read(image)[0].words)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "OFFLINE\n", "")


def test_a_clean_film_has_none(tmp_path: Path) -> None:
    found = film(tmp_path / "clean.mp4")
    assert set(found.measures) == set(measures_of("overlay"))
    assert found.measures == {
        "overlay_text_count": 0,
        "overlay_area": 0.0,
        "overlay_seconds": 0.0,
        "overlay_text": "",
    }


def test_a_caption_of_a_second_is_found_and_timed(tmp_path: Path) -> None:
    found = film(
        tmp_path / "brief.mp4",
        lambda i, image: written(image, "Next: the weather", (110, 440), 34, plate=120) if 55 <= i < 80 else image,
    )
    assert found.measures["overlay_text_count"] == 1
    assert "weather" in str(found.measures["overlay_text"])
    assert found.measures["overlay_seconds"] == pytest.approx(1.0, abs=0.2)
    assert 0.02 < float(found.measures["overlay_area"] or 0) < 0.08
    (text,) = json.loads(json.dumps(found.evidence))["texts"]
    assert text["start_s"] == pytest.approx(2.2, abs=0.12)
    assert text["end_s"] == pytest.approx(3.2, abs=0.12)
    assert text["box"][1] == pytest.approx(440, abs=20)


def test_a_faint_watermark_is_one_text_all_along(tmp_path: Path) -> None:
    found = film(tmp_path / "mark.mp4", lambda _, image: written(image, "www.example.com", (320, 14), 22, alpha=150))
    assert found.measures["overlay_text_count"] == 1
    assert "example" in str(found.measures["overlay_text"])
    assert found.measures["overlay_seconds"] == pytest.approx(SECONDS, abs=0.5)


def test_a_small_watermark_of_a_large_picture(tmp_path: Path) -> None:
    plain = gradient(1080, 1920)
    marked = written(plain, "www.example.com", (1700, 1020), 20, alpha=170)
    found = measured(tmp_path / "large.mp4", [marked] * 50)
    assert found.measures["overlay_text_count"] == 1
    x0, y0, x1, y1 = found.evidence["texts"][0]["box"]  # type: ignore[index]
    assert x0 == pytest.approx(1700, abs=15) and y0 == pytest.approx(1022, abs=15)
    assert 15 < y1 - y0 < 45 and 100 < x1 - x0 < 220


def test_captions_that_follow_each_other_in_one_place_are_each_a_text(tmp_path: Path) -> None:
    lines = ["so this is the first", "and that was not all"]
    found = film(tmp_path / "lines.mp4", lambda i, image: written(image, lines[i * 2 // (SECONDS * 25)], (90, 440), 32))
    assert found.measures["overlay_text_count"] == 2
    first, second = found.evidence["texts"]  # type: ignore[index]
    assert first["end_s"] == pytest.approx(SECONDS / 2, abs=0.2)
    assert second["start_s"] == pytest.approx(SECONDS / 2, abs=0.2)


def test_a_lone_character_counts_only_where_it_stands(tmp_path: Path) -> None:
    brief = film(tmp_path / "blink.mp4", lambda i, im: written(im, "B", (440, 30), 40) if 30 <= i < 48 else im)
    stands = film(tmp_path / "stands.mp4", lambda _, im: written(im, "B", (440, 30), 40))
    assert brief.measures["overlay_text_count"] == 0
    assert stands.measures["overlay_text_count"] == 1


def test_text_that_moves_with_the_scene_is_no_overlay(tmp_path: Path) -> None:
    shirt = written(skimage.data.astronaut(), "RUNNER", (170, 150), 28, plate=160)

    def frame(i: int) -> np.ndarray:
        x, y = 100 + 30 * np.sin(i / 7), 30 + 25 * np.cos(i / 5)
        return cv2.warpAffine(shirt, np.array([[2, 0, -2 * x], [0, 2, -2 * y]], np.float32), (512, 512))

    found = measured(tmp_path / "shirt.mp4", (frame(i) for i in range(SECONDS * 25)))
    assert found.measures["overlay_text_count"] == 0
    assert any("RUN" in text["words"] for text in found.evidence["in_scene"])  # type: ignore[index]


def test_a_running_line_is_an_overlay(tmp_path: Path) -> None:
    words = "breaking news from all over the world and more"
    found = film(tmp_path / "line.mp4", lambda i, im: written(im, words, (60 - i, 460), 30, plate=160))
    assert int(found.measures["overlay_text_count"] or 0) >= 1
