"""YOLOX: equal to the official code, whole on every picture, and clear about files that are none of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from makers import graph, insightface, mirror, yolox

from manifests.errors import ModelError, UsageError
from models.faces import iou
from models.persons import MODELS, Persons, decode, detect_persons, letterbox, yolox_file

GOLDEN = Path(__file__).parent / "golden" / "yolox.npz"
SIZE = (64, 96)
GREEN, BLUE, WALL = (0, 200, 0), (200, 0, 0), 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    yolox.make(root / "yolox-m")
    return root


@pytest.fixture(autouse=True)
def models(folder, monkeypatch):
    monkeypatch.setenv("XSTREAMER_MODELS", str(folder))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where yolox-m is looked for in a folder of the test's own."""
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    (tmp_path / "yolox-m").mkdir()
    return tmp_path / "yolox-m" / "yolox_m.onnx"


def seeded() -> np.ndarray:
    """The picture of the golden figures, [54, 90, 3] BGR."""
    return np.random.default_rng(7).integers(0, 256, (54, 90, 3), np.uint8)


def standing(width: int, height: int, *people: tuple[tuple[int, int, int], tuple[int, int, int, int]]) -> np.ndarray:
    image = np.full((height, width, 3), WALL, np.uint8)
    for colour, (x0, y0, x1, y1) in people:
        image[y0:y1, x0:x1] = colour
    return image


# equal to the official code


def test_input_boxes_and_scores_equal_the_official_ones():
    """Golden figures: Megvii-BaseDetection/YOLOX at 6ddff48, a YOLOX of depth 0.33 and width 0.125 with weights,
    batch norms and heads from torch.manual_seed(0) and a generator seeded with 1, exported by torch.onnx (opset 11,
    decode_in_inference off) for 64 x 96, run by onnxruntime 1.32 on `seeded()`; `preproc` (the same as
    `ValTransform`), `demo_postprocess`, and class 0 of `multiclass_nms` (class-aware, NMS 0.45) at two thresholds;
    torch 2.15, OpenCV 5.0."""
    golden = np.load(GOLDEN)
    blob, ratio = letterbox(seeded(), SIZE)
    assert blob.dtype == np.float32 and np.abs(blob - golden["blob"]).max() <= 1  # another OpenCV may round otherwise
    assert ratio == pytest.approx(float(golden["ratio"]), abs=1e-12)
    for tenths, at_least in ((1, 20), (3, 10)):
        theirs = golden[f"persons_{tenths}"]
        ours = decode(golden["raw"], SIZE, ratio, tenths / 10)
        assert len(ours) == len(theirs) >= at_least
        np.testing.assert_allclose(ours.boxes, theirs[:, :4], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(ours.scores, theirs[:, 4], atol=1e-4)
    likely = golden["raw"][:, 4] * golden["raw"][:, 5] > 0.1
    assert likely.sum() > len(golden["persons_1"]), "nothing to suppress proves no suppression"


def test_the_whole_way_through_a_session_equals_the_official_result(place):
    """The golden head's output as the constant answer of an export: what is left is all ours."""
    golden, net = np.load(GOLDEN), graph.Graph()
    nothing = net.node("Mul", net.node("ReduceMax", "images", axes=[1, 2, 3], keepdims=0), net.constant(0.0))
    net.node("Add", net.constant(golden["raw"][None]), nothing, name="output")
    net.save(place, {"images": [1, 3, *SIZE]}, {"output": [1, len(golden["raw"]), 85]})
    (found,) = detect_persons([seeded()], threshold=0.3)
    theirs = golden["persons_3"]
    np.testing.assert_allclose(found.boxes, np.clip(theirs[:, :4], 0, [90, 54, 90, 54]), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.scores, theirs[:, 4], atol=1e-4)


# on pictures


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (1280, 720), (200, 200), (97, 61), (640, 8)])
def test_boxes_are_in_pixels_of_the_picture_whatever_its_shape(width, height):
    share = np.array([0.25, 0.25, 0.5, 0.875])
    box = np.round(share * np.tile([width, height], 2)).astype(int)
    (found,) = detect_persons([standing(width, height, (GREEN, tuple(box)))])
    cell = 8 * max(width, height) / 640
    if min(box[2] - box[0], box[3] - box[1]) < 3 * cell:
        assert len(found) <= 1  # thinner than the small net sees
        return
    assert len(found) == 1 and np.abs(found.boxes[0] - box).max() <= 1.01 * cell
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_several_pictures_are_as_each_alone_in_order():
    pictures = [
        standing(640, 360, (GREEN, (100, 60, 260, 360))),
        standing(640, 360),
        standing(300, 400, (GREEN, (40, 80, 120, 400)), (BLUE, (180, 80, 260, 400))),
    ]
    together = detect_persons(pictures)
    assert [len(persons) for persons in together] == [1, 0, 2]
    for one, picture in zip(together, pictures, strict=True):
        (alone,) = detect_persons([picture])
        assert np.array_equal(one.boxes, alone.boxes) and np.array_equal(one.scores, alone.scores)
    assert detect_persons([]) == []


def test_an_export_with_an_open_batch_takes_several_at_once(place):
    net = graph.Graph()  # one person a picture, as sure as the picture is bright
    cells = (40 * 40) + (20 * 20) + (10 * 10)
    mean = net.node("ReduceMean", "images", axes=[1, 2, 3], keepdims=1)
    sure = net.node("Reshape", net.node("Div", mean, net.constant(255.0)), net.constant([-1, 1, 1], np.int64))
    row = net.node("Concat", *[net.node("Mul", sure, net.constant(v)) for v in (0.0, 0.0, 0.0, 0.0, 1.0)], axis=2)
    ones = net.node("Add", net.node("Mul", sure, net.constant(np.zeros((1, 1, 80)))), net.constant(1.0))
    first = net.node("Concat", row, ones, axis=2)
    pads = net.constant([0, 0, 0, 0, cells - 1, 0], np.int64)
    net.node("Pad", first, pads, net.constant(0.0), name="output")
    net.save(place, {"images": ["batch", 3, 320, 320]}, {"output": ["batch", cells, 85]})
    pictures = [np.full((320, 320, 3), level, np.uint8) for level in range(100, 230, 12)]
    found = detect_persons(pictures, threshold=0.1)
    assert [float(persons.scores[0]) for persons in found] == pytest.approx(
        [i.mean() / 255 for i in pictures], abs=1e-3
    )


def test_the_threshold_and_the_astronaut():
    import skimage.data

    image = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
    (found,) = detect_persons([image])
    assert len(found) == 1 and iou(found.boxes[0], np.array([[60, 0, 460, 512]]))[0] > 0.6
    assert len(detect_persons([image], threshold=0.95)[0]) == 0


def test_the_letterbox_is_grey_and_keeps_the_picture_in_the_corner():
    blob, ratio = letterbox(np.full((10, 40, 3), 7, np.uint8), (640, 640))
    assert ratio == 16 and (blob[:, :160] == 7).all() and (blob[:, 160:] == 114).all()
    tall, _ = letterbox(cv2.resize(seeded(), (3, 900)), (640, 640))
    assert tall.shape == (3, 640, 640) and (tall[:, :, 3:] == 114).all()


def test_picking_persons():
    persons = Persons(np.arange(8, dtype=np.float32).reshape(2, 4), np.array([0.9, 0.4], np.float32))
    assert len(persons[persons.scores > 0.5]) == 1 and len(persons[np.array([], int)]) == 0


# files


def test_each_model_has_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    for model in MODELS:
        with pytest.raises(ModelError, match=f"xstreamer models fetch {model}"):
            detect_persons([seeded()], model=model)
        yolox.make(tmp_path / model)
        assert yolox_file(model).name == f"yolox_{model[-1]}.onnx"


def test_unknown_models_are_named_with_those_there_are():
    with pytest.raises(UsageError, match="'yolox-nano'; choose from yolox-s, yolox-m, yolox-l, yolox-x"):
        detect_persons([seeded()], model="yolox-nano")


def test_a_truncated_file_says_so(place):
    yolox.make(place.parent)
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    with pytest.raises(ModelError, match="yolox_m.onnx is not a readable ONNX model") as error:
        detect_persons([seeded()])
    assert "fetch it again" in str(error.value)


def test_a_file_of_another_model_says_what_was_expected(place):
    insightface.identity(place)
    with pytest.raises(ModelError) as error:
        detect_persons([seeded()])
    said = str(error.value)
    assert "no YOLOX export" in said and "[?, 3, 112, 112]" in said and "[?, ?, 85]" in said and "\n" not in said


@pytest.mark.parametrize(("side", "cells", "wanted"), [(640, 8000, "8400, 85"), (600, 8400, "3, 640, 640")])
def test_an_export_with_other_grids_is_refused(place, side, cells, wanted):
    """A P6 model, one trained on other classes, sides that are no multiple of 32."""
    net = graph.Graph()
    nothing = net.node("Mul", net.node("ReduceMax", "images", axes=[1, 2, 3], keepdims=0), net.constant(0.0))
    net.node("Add", net.constant(np.zeros((1, cells, 85))), nothing, name="output")
    net.save(place, {"images": [1, 3, side, side]}, {"output": [1, cells, 85]})
    with pytest.raises(ModelError, match=wanted):
        detect_persons([seeded()])


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ModelError, match="no CUDA provider, 'cuda' was asked for"):
        detect_persons([seeded()], device="cuda")
    with pytest.raises(UsageError, match="gpu"):
        detect_persons([seeded()], device="gpu")


def test_the_catalogue_offers_every_model(tmp_path, monkeypatch):
    from models.weights import catalogue

    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    for model in MODELS:
        (file,) = catalogue()[model].files
        assert file.path == file.url.rsplit("/")[-1] and file.sha256 and catalogue()[model].commercial
    mirror.unpublished(tmp_path, *MODELS)
    assert not catalogue()["yolox-x"].files[0].sha256
