"""The stage that counts persons by YOLOX and follows and identifies faces by InsightFace, on drawn scenes and a head."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import cv2
import numpy as np
import pytest
from makers import insightface, mirror, yolox

from curation.clip import Clip, Frames
from curation.media import MediaInfo, probe
from curation.people import PeopleSpeakers
from curation.registry import build_stage
from curation.speakers import rebuilt
from curation.stage import Unmeasured, fingerprint
from manifests.errors import ModelError, UsageError
from manifests.records import measures_of
from models.crowd import cosine
from models.faces import iou
from models.persons import MODELS

GREEN, BLUE, MAGENTA, CYAN, WALL = (0, 200, 0), (200, 0, 0), (230, 0, 230), (230, 230, 0), 128
"""Clothes, faces and the wall, BGR."""
STAGE = PeopleSpeakers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for model in MODELS:
        yolox.make(root / model)
    insightface.make(root / "insightface")
    mirror.unpublished(root, *MODELS, "insightface")
    return root


@pytest.fixture(autouse=True)
def models(folder, monkeypatch):
    monkeypatch.setenv("XSTREAMER_MODELS", str(folder))


def scene(count: int = 100, **parts) -> np.ndarray:
    """[count, 360, 640, 3] BGR: a grey room. parts: painters of (image, frame), in order."""
    out = np.full((count, 360, 640, 3), WALL, np.uint8)
    for at, image in enumerate(out):
        for paint in parts.values():
            paint(image, at)
    return out


def body(colour, x=100, y=60, width=160, height=300, when=range(1000)):
    def paint(image, at):
        if at in when:
            image[y : y + height, x : x + width] = colour

    return paint


def face(colour, x=180, y=130, size=40, when=range(1000), sway=3):
    """An oval `size` px wide on either side; `colour` may be a function of the frame."""

    def paint(image, at):
        if at in when:
            here = colour(at) if callable(colour) else colour
            cv2.ellipse(image, (x + round(sway * np.sin(at / 6)), y), (size, round(1.3 * size)), 0, 0, 360, here, -1)

    return paint


def shown(frames: np.ndarray, times: int = 2) -> Clip:
    """A clip whose small frames are `frames`, of a source `times` as large."""
    height, width = frames.shape[1:3]
    info = MediaInfo("mp4", len(frames) / 25, 0.0, width * times, height * times, 0, 1.0, 25.0, "h264", None, None)
    return Clip("0-0-0", "", info, 0.0, len(frames) / 25, decode=lambda clip: Frames(frames, {}))


def measured(stage: PeopleSpeakers = STAGE, count: int = 100, **parts) -> Any:
    return stage.measure(shown(scene(count, **parts)))


def counted(stage: PeopleSpeakers = STAGE, count: int = 100, **parts) -> int:
    return measured(stage, count, **parts).measures["speaker_count"]


# who is there


def test_one_person_is_measured_in_pixels_of_the_source():
    result = measured(her=body(GREEN), face=face(MAGENTA))
    found = result.measures
    assert set(found) == set(measures_of("speakers"))
    assert all(type(value) in (int, float) for value in found.values())
    assert found["speaker_count"] == 1 and found["face_coverage"] == 1.0 and found["face_identity_switches"] == 0
    x, y, w, h = (found[name] for name in ("face_x", "face_y", "face_w", "face_h"))
    assert iou(np.array([x, y, x + w, y + h]), 2 * np.array([[140, 78, 220, 182]]))[0] > 0.7
    assert found["face_size_px"] == pytest.approx(h, rel=0.1)
    assert found["crop_x"] <= x and x + w <= found["crop_x"] + found["crop_side"]
    (person,) = result.evidence["persons"]
    assert iou(np.array(person["box"]), 2 * np.array([[100, 60, 260, 360]]))[0] > 0.9
    assert person["frames"] == [0, 99] and result.evidence["others"] == []


def test_its_evidence_is_small_and_makes_the_track_again():
    clip = shown(scene(100, her=body(GREEN), face=face(MAGENTA)))
    result: Any = STAGE.measure(clip)
    stored = json.loads(json.dumps(result.evidence, allow_nan=False))
    assert len(json.dumps(stored)) < 10_000
    again: Any = STAGE.product(clip, stored)
    for field in dataclasses.fields(again):
        ours, theirs = getattr(again, field.name), getattr(result.product, field.name)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    unstored: Any = STAGE.product(clip, {})
    assert unstored.frames.tolist() == again.frames.tolist() == [*range(0, 100, 4), 99]
    identity = stored["identity"]
    assert len(identity["frames"]) == len(identity["similarity"]) == len(identity["identities"]) >= 8
    assert min(identity["similarity"]) > 0.9 and set(identity["identities"]) == {0}
    points = np.array(stored["contour"]["points"])
    assert points.shape == (106, 2) and stored["contour"]["frame"] in again.frames
    assert np.abs(points.mean(axis=0) - again.landmarks[0].mean(axis=0)).max() < 60


def test_two_people_are_two():
    her = {"her": body(GREEN), "face": face(MAGENTA)}
    assert counted(**her, him=body(BLUE, x=400), other=face(CYAN, x=480)) == 2
    assert counted(**her, him=body(BLUE, x=400)) == 2, "who is seen from behind is somebody"
    assert counted(**her, poster=face(CYAN, x=480)) == 2, "a face in no body is a second visible face"


def test_a_face_alone_and_a_back_alone_are_one():
    assert counted(face=face(MAGENTA, x=320, y=180, size=110)) == 1
    turned = measured(him=body(BLUE))
    assert turned.measures["speaker_count"] == 1 and turned.measures["face_coverage"] == 0.0
    assert turned.product is None and turned.measures["face_identity_switches"] is None


def test_a_person_needs_no_landmarks_to_be_sure():
    assert yolox.SCORE == 0.9 and counted(dataclasses.replace(STAGE, person_sure=0.85), him=body(BLUE)) == 1
    assert counted(dataclasses.replace(STAGE, person_sure=0.95), him=body(BLUE)) == 0


def test_nobody_is_nobody():
    result = measured()
    assert result.measures["speaker_count"] == 0 and result.measures["face_coverage"] == 0.0
    unknown = set(measures_of("speakers")) - {"speaker_count", "face_coverage"}
    assert all(result.measures[name] is None for name in unknown)
    assert result.product is None and result.evidence["track"] is None and result.evidence["contour"] is None
    assert STAGE.product(shown(scene()), result.evidence) is None


def test_small_figures_far_behind_do_not_count():
    far = {"her": body(GREEN), "face": face(MAGENTA), "far": body(BLUE, x=500, y=100, width=24, height=56)}
    assert counted(**far) == 1
    assert counted(dataclasses.replace(STAGE, min_person=0.1), **far) == 2
    tiny = {"her": body(GREEN), "face": face(MAGENTA), "poster": face(CYAN, x=500, size=16, sway=0)}
    assert counted(**tiny) == 2
    assert counted(dataclasses.replace(STAGE, min_face=0.2), **tiny) == 1


def test_people_must_be_there_together_for_a_moment():
    her = {"her": body(GREEN), "face": face(MAGENTA)}
    assert counted(**her, him=body(BLUE, x=400, when=range(47, 50))) == 1
    assert counted(**her, him=body(BLUE, x=400, when=range(36, 62))) == 2
    leaves, comes = range(48), range(60, 100)
    one_by_one = {"her": body(GREEN, when=leaves), "face": face(MAGENTA, when=leaves)}
    assert counted(**one_by_one, him=body(BLUE, x=400, when=comes), other=face(CYAN, x=480, when=comes)) == 1


# who it is


def turns(*changes: tuple[int, tuple[int, int, int]]):
    """The colour of a face that changes at frames."""
    return lambda at: next(colour for first, colour in reversed(changes) if at >= first)


@pytest.mark.parametrize(
    ("colours", "switches"),
    [
        (((0, MAGENTA),), 0),
        (((0, MAGENTA), (50, CYAN)), 1),
        (((0, MAGENTA), (30, CYAN), (70, MAGENTA)), 2),
        (((0, MAGENTA), (46, CYAN), (50, MAGENTA)), 0),  # one look
        (((0, CYAN), (3, MAGENTA)), 0),  # the first look
        (((0, MAGENTA), (40, (190, 90, 190)), (80, MAGENTA)), 0),  # pale for a while
    ],
)
def test_another_face_in_the_same_place_is_a_switch(colours, switches):
    result = measured(her=body(GREEN), face=face(turns(*colours), sway=0))
    assert result.measures["face_identity_switches"] == switches
    assert result.measures["speaker_count"] == 1 and result.measures["face_coverage"] > 0.95


def test_a_hand_over_to_somebody_beside_is_a_switch_too():
    """The jump is within the tracker's reach: she ends where he begins, as at a cut that nobody saw."""
    first, then = range(48), range(48, 100)
    parts = {
        "her": body(GREEN, when=first), "face": face(MAGENTA, when=first),
        "him": body(BLUE, x=120, when=then), "other": face(CYAN, x=200, size=44, when=then),
    }  # fmt: skip
    result = measured(**parts)
    assert result.measures["face_identity_switches"] == 1 and result.evidence["others"] == []
    assert result.evidence["identity"]["identities"][0] == 0 and result.evidence["identity"]["identities"][-1] == 1


@pytest.mark.parametrize(("again", "joined"), [(MAGENTA, True), (CYAN, False)])
def test_who_was_lost_and_comes_back_elsewhere_is_one_track(again, joined):
    first, then = range(60), range(120, 200)
    parts = {"face": face(MAGENTA, when=first), "later": face(again, x=500, y=220, when=then)}
    result = measured(count=200, **parts)
    assert result.measures["speaker_count"] == 1 and result.measures["face_identity_switches"] == 0
    frames = result.product.frames
    assert np.isin([0, 196], frames).tolist() == [joined, True]
    assert len(result.evidence["others"]) == (not joined)
    assert (result.measures["face_coverage"] > 0.6) == joined
    assert (np.diff(frames) > 0).all()


def test_a_smaller_gap_to_tell_people_apart_is_a_parameter():
    parts = {"her": body(GREEN), "face": face(turns((0, MAGENTA), (50, CYAN)), sway=0)}
    curve = measured(**parts).evidence["identity"]["similarity"]
    assert min(curve) < STAGE.unlike
    blind = dataclasses.replace(STAGE, unlike=-0.99, alike=0.45)
    assert measured(blind, **parts).measures["face_identity_switches"] == 0


# a real head


def test_a_talking_head_is_one_person(head):
    clip = Clip("0-0-0", str(head.path), probe(str(head.path)), 0.0, 4.0)
    result: Any = STAGE.measure(clip)
    found = result.measures
    assert found["speaker_count"] == 1 and found["face_coverage"] > 0.95 and found["face_identity_switches"] == 0
    box = np.median(result.product.boxes, axis=0)
    assert iou(box, np.array([[70, 20, 200, 180]]))[0] > 0.7
    left_eye, right_eye = result.product.landmarks[:, 0], result.product.landmarks[:, 1]
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert min(result.evidence["identity"]["similarity"]) > 0.9


def test_the_same_clip_gives_the_same_bytes():
    frames = scene(60, her=body(GREEN), face=face(MAGENTA), him=body(BLUE, x=400))
    one: Any = STAGE.measure(shown(frames))
    again = STAGE.measure(shown(frames.copy()))
    assert json.dumps([dict(one.measures), one.evidence]) == json.dumps([dict(again.measures), again.evidence])
    assert rebuilt(one.evidence["track"]).boxes.tobytes() == again.product.boxes.tobytes()


def test_a_clip_too_short_to_follow_anybody_is_unmeasured():
    with pytest.raises(Unmeasured, match="8 frames are too few"):
        measured(count=8, face=face(MAGENTA))
    assert measured(count=9, face=face(MAGENTA, size=90)).measures["speaker_count"] == 1


# models


def test_it_is_registered_and_says_what_it_runs(tmp_path, monkeypatch):
    built = build_stage("speakers", "yolox-insightface", {"model": "yolox-s", "device": "auto"})
    assert isinstance(built, PeopleSpeakers) and built.backend == "yolox-insightface"
    assert built.weights() == ("yolox-s", "insightface")
    assert "insightface" in built.revision() and "yolox-s" in built.revision()
    assert fingerprint(built, {}) == fingerprint(dataclasses.replace(built, device="cuda"), {})
    assert fingerprint(built, {}) != fingerprint(dataclasses.replace(built, model="yolox-l"), {})
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match="xstreamer models fetch yolox-s"):
        built.revision()


def test_an_unknown_model_is_a_usage_error():
    with pytest.raises(UsageError, match="no model 'yolox-nano'; choose from yolox-s"):
        build_stage("speakers", "yolox-insightface", {"model": "yolox-nano"})


def test_a_device_that_is_not_there_stops_it(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ModelError, match="'cuda' was asked for"):
        measured(dataclasses.replace(STAGE, device="cuda"), count=20, face=face(MAGENTA))
    assert counted(dataclasses.replace(STAGE, device="auto"), count=20, face=face(MAGENTA)) == 1


def test_faces_of_the_made_pack_are_as_far_apart_as_the_bounds_need():
    """What the scenes above rest on."""
    from models.identity import detect_faces, embed

    image = scene(1, a=face(MAGENTA), b=face(CYAN, x=480))[0]
    one, other = embed(image, detect_faces(image).landmarks)
    assert cosine(one, other) < STAGE.unlike < STAGE.alike
