"""Quality of the face: each measure against known damage to a real photograph, the stage on made films."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from curation.clip import Clip
from curation.media import probe
from curation.quality import FaceCropQuality, piqe, repetition, resolution, sharpness
from curation.speakers import CenterFaceSpeakers
from curation.stage import Result, Unmeasured
from manifests.records import measures_of
from tests.made import write_movie

ENLARGE = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def face(side: int = 240) -> np.ndarray:
    """[side, side, 3] BGR: the head of a photograph that has about 240 px for it."""
    image = np.ascontiguousarray(skimage.data.astronaut()[0:240, 110:350, ::-1])
    return image if side == 240 else cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def enlarged(side: int, how: str, to: int = 240) -> np.ndarray:
    """The head in `side` px, grown to `to` px."""
    return cv2.resize(face(side), (to, to), interpolation=ENLARGE[how])


def blurred(sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(face(), (0, 0), sigma)


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, sigma, image.shape[:2])[..., None]
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def test_resolution_falls_with_blur() -> None:
    found = [resolution(face())] + [resolution(blurred(sigma)) for sigma in (1, 2, 3, 5, 7)]
    assert found == sorted(found, reverse=True) and len(set(found)) == len(found)
    assert found[0] > 140
    assert found[3] < 60


@pytest.mark.parametrize("how", ENLARGE)
def test_resolution_falls_with_the_size_that_was_enlarged(how: str) -> None:
    sides = (160, 100, 64, 40, 28)
    found = [resolution(enlarged(side, how)) for side in sides]
    assert found == sorted(found, reverse=True)
    # twice as many as were there would pass for a picture of another class
    assert all(0.6 * side < value < 1.75 * side for side, value in zip(sides, found, strict=True))


@pytest.mark.parametrize("quality", [60, 85])
def test_repeated_pixels_show_through_compression(quality: int) -> None:
    kept, data = cv2.imencode(".jpg", enlarged(30, "nearest"), [cv2.IMWRITE_JPEG_QUALITY, quality])
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert kept and image is not None
    assert resolution(image) < 75 < 0.6 * resolution(face())


@pytest.mark.parametrize("factor", [2, 3, 5, 8])
def test_repetition_is_the_factor(factor: int) -> None:
    gray = cv2.cvtColor(enlarged(240 // factor, "nearest"), cv2.COLOR_BGR2GRAY).astype(np.float32)
    assert repetition(gray) == pytest.approx(factor, rel=0.2)
    assert repetition(cv2.cvtColor(face(), cv2.COLOR_BGR2GRAY).astype(np.float32)) < 1.3


@pytest.mark.parametrize("side", [64, 100, 160])
def test_a_small_sharp_face_has_the_pixels_that_it_has(side: int) -> None:
    assert 0.7 * side < resolution(face(side)) <= side


def test_grain_hides_no_blur() -> None:
    assert resolution(noisy(blurred(4), 3)) < 1.4 * resolution(blurred(4))
    assert resolution(noisy(face(), 3)) > 0.6 * resolution(face())


def test_less_light_changes_little() -> None:
    dim = (face() * 0.5).astype(np.uint8)
    assert resolution(dim) == pytest.approx(resolution(face()), rel=0.15)
    assert sharpness(dim) == pytest.approx(sharpness(face()), rel=0.15)


def test_sharpness_and_piqe_tell_blur() -> None:
    sharp = [sharpness(blurred(sigma)) for sigma in (0.5, 1, 2, 4)]
    assert sharp == sorted(sharp, reverse=True) and sharp[0] > 3 * sharp[-1]
    poor = [piqe(image) for image in (face(256), blurred(1.5), blurred(4))]
    assert poor == sorted(poor) and poor[0] < poor[-1] - 10
    assert 0 <= poor[0] <= 100 and piqe(np.zeros((256, 256, 3), np.uint8)) == 100.0


@pytest.mark.parametrize("side", [1, 5, 15, 16, 17, 33])
@pytest.mark.parametrize("level", [0, 128])
def test_flat_and_tiny_pictures_have_a_number(side: int, level: int) -> None:
    flat = np.full((side, side, 3), level, np.uint8)
    assert 0 < resolution(flat) <= max(side, 2)
    assert sharpness(flat) == 0.0


def measured(path: Path, image: np.ndarray, speakers: bool = True) -> Result:
    """What the stage finds in 2 s of a picture [h, w, 3] BGR that drifts a little."""
    shifts = [np.roll(image, (int(2 * np.sin(i / 5)), int(3 * np.cos(i / 7))), (0, 1)) for i in range(50)]
    write_movie(path, (frame[:, :, ::-1] for frame in shifts))
    clip = Clip("made", str(path), probe(str(path)), 0.0, 2.0)
    clip.stages = {"speakers": CenterFaceSpeakers()}
    return FaceCropQuality().measure(clip)


def test_the_stage_tells_a_good_face_from_damaged_ones(tmp_path: Path) -> None:
    image = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
    good = measured(tmp_path / "good.mp4", image)
    soft = measured(tmp_path / "soft.mp4", cv2.GaussianBlur(image, (0, 0), 4))
    small = cv2.resize(image, (100, 100), interpolation=cv2.INTER_AREA)
    blocks = measured(tmp_path / "blocks.mp4", cv2.resize(small, (512, 512), interpolation=cv2.INTER_NEAREST))
    assert set(good.measures) == set(measures_of("quality")) and good.measures["quality_score"] is None
    for damaged in (soft, blocks):
        assert float(damaged.measures["quality_resolution"] or 0) < 0.6 * float(
            good.measures["quality_resolution"] or 0
        )
    assert float(soft.measures["quality_sharpness"] or 0) < 0.5 * float(good.measures["quality_sharpness"] or 0)
    assert float(soft.measures["quality_piqe"] or 0) > float(good.measures["quality_piqe"] or 0)
    assert len(json.loads(json.dumps(good.evidence))["per_frame"]) == 2


def test_without_a_face_it_is_unmeasured(tmp_path: Path) -> None:
    room = cv2.resize(skimage.data.coffee()[:, :, ::-1], (320, 240), interpolation=cv2.INTER_AREA)
    with pytest.raises(Unmeasured, match="no face"):
        measured(tmp_path / "room.mp4", room)
