"""InsightFace through our sessions: equal to its own pipeline; people counted and told apart, as properties."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from makers import graph, insightface, yolox

from manifests.errors import ModelError
from models import identity
from models.crowd import cosine, linked, mean_identity, pairs, people_at_once, runs, whole
from models.faces import Faces, FaceTrack, iou
from models.identity import contour, detect_faces, embed, embed_crops
from models.persons import Persons

MAGENTA, CYAN, WALL = (230, 0, 230), (230, 230, 0), 128
UNLIKE, ALIKE = 0.3, 0.45


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    insightface.make(root / "insightface")
    return root


@pytest.fixture(autouse=True)
def models(folder, monkeypatch):
    monkeypatch.setenv("XSTREAMER_MODELS", str(folder))


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A pack of the test's own."""
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    insightface.make(tmp_path / "insightface")
    return tmp_path / "insightface"


def wall(*faces: tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]], size=(360, 640)) -> np.ndarray:
    """[h, w, 3] BGR: ovals of (colour, centre, half axes) on grey."""
    image = np.full((*size, 3), WALL, np.uint8)
    for colour, centre, axes in faces:
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1)
    return image


def astronaut() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 90:346, ::-1])


# detection, landmarks, identity


def test_it_is_what_the_package_finds_through_its_own_pipeline(folder, tmp_path):
    """Boxes, landmarks, 106 points and embeddings of `insightface.app.FaceAnalysis` on the same files, bit for bit
    but for the edge of the picture, where only ours are cut off."""
    from insightface.app import FaceAnalysis

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "buffalo_l").symlink_to(folder / "insightface")
    image = wall((MAGENTA, (180, 130), (60, 80)), (CYAN, (480, 150), (50, 66)))
    app = FaceAnalysis(name="buffalo_l", root=str(tmp_path), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_thresh=0.4, det_size=(640, 384))
    theirs = sorted(app.get(image), key=lambda face: face.bbox[0])
    ours = detect_faces(image, threshold=0.4)
    ours = ours[np.argsort(ours.boxes[:, 0])]
    assert len(ours) == len(theirs) == 2
    for k, face in enumerate(theirs):
        np.testing.assert_array_equal(ours.boxes[k], face.bbox)
        np.testing.assert_array_equal(ours.landmarks[k], face.kps)
        assert ours.scores[k] == face.det_score
        np.testing.assert_array_equal(embed(image, ours.landmarks[k : k + 1])[0], face.embedding)
        np.testing.assert_array_equal(contour(image, ours.boxes[k]), face.landmark_2d_106)


def test_a_face_in_a_photograph_and_none_when_red_is_blue():
    faces = detect_faces(astronaut(), side=320)
    assert len(faces) == 1 and iou(faces.boxes[0], np.array([[70, 30, 195, 185]]))[0] > 0.7
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks[0]
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert faces.boxes.dtype == faces.landmarks.dtype == faces.scores.dtype == np.float32
    assert len(detect_faces(np.ascontiguousarray(astronaut()[:, :, ::-1]), side=320)) == 0
    assert len(detect_faces(astronaut(), threshold=0.9)) == 0


@pytest.mark.parametrize(("side", "coarse"), [(640, 8), (320, 16), (128, 40)])
@pytest.mark.parametrize("size", [(360, 640), (640, 360), (347, 611)])
def test_boxes_are_in_pixels_whatever_the_size_of_the_look(side, coarse, size):
    image = wall((MAGENTA, (180, 130), (90, 110)), size=size)
    (box,) = detect_faces(image, side=side).boxes
    assert np.abs(box - [90, 20, 270, 240]).max() < 2.2 * coarse


def test_faces_at_the_edge_have_boxes_inside_and_small_pictures_are_taken():
    (box,) = detect_faces(wall((MAGENTA, (10, 340), (90, 110)), size=(350, 640))).boxes
    assert box[0] == 0 and box[3] == 350, "the detector's last row of cells ends at 352"
    assert len(detect_faces(wall(size=(20, 30)))) == 0


def test_embeddings_tell_faces_apart_however_they_are_turned():
    still = wall((MAGENTA, (180, 130), (40, 55)), (CYAN, (480, 150), (40, 55)))
    points = detect_faces(still).landmarks
    one, other = embed(still, points)
    turned = cv2.warpAffine(still, cv2.getRotationMatrix2D((180, 130), 20, 0.8), (640, 360), borderValue=(WALL,) * 3)
    matrix = cv2.getRotationMatrix2D((180, 130), 20, 0.8)
    moved = points[:1] @ matrix[:, :2].T + matrix[:, 2]
    (again,) = embed(turned, moved)
    assert cosine(one, again) > 0.99 and cosine(one, other) < UNLIKE
    assert one.shape == (512,) and one.dtype == np.float32


def test_many_crops_are_as_each_alone_and_none_is_none():
    crops = list(np.random.default_rng(0).integers(0, 256, (21, 112, 112, 3), np.uint8))
    together = embed_crops(crops)
    assert together.shape == (21, 512) and embed_crops([]).shape == (0, 512)
    for k in (0, 15, 16, 20):
        np.testing.assert_allclose(together[k], embed_crops(crops[k : k + 1])[0], atol=1e-5)


def test_the_contour_lies_round_the_face():
    image = wall((MAGENTA, (300, 180), (60, 80)))
    points = contour(image, np.array([240, 100, 360, 260]))
    assert points.shape == (106, 2) and points.dtype == np.float32
    np.testing.assert_allclose(points.min(axis=0), [240, 100], atol=12)
    np.testing.assert_allclose(points.max(axis=0), [360, 260], atol=12)


def test_one_session_of_one_thread_serves_every_size_of_picture(folder):
    """The package opens a session, with threads as it likes, for every size; ours never leaves the one we opened."""
    for size in ((100, 200), (360, 640), (640, 360)):
        detect_faces(wall(size=size))
    detector = identity._detector(str(folder / "insightface" / "det_10g.onnx"), "cpu")
    assert all(session is detector.session for session in detector.resolution_sessions.values())
    options = detector.session.get_session_options()
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    assert detector.session.get_providers() == ["CPUExecutionProvider"]


def test_importing_and_running_leaves_no_trace_and_says_nothing(folder, tmp_path):
    code = (
        "import numpy as np\n"
        "from models.identity import detect_faces, embed, contour\n"
        "image = np.zeros((64, 64, 3), np.uint8); detect_faces(image)\n"
        "embed(image, np.array([[[20, 20], [40, 20], [30, 30], [22, 40], [38, 40]]], np.float32))\n"
        "contour(image, np.array([8, 8, 56, 56]))\n"
    )
    env = {"HOME": str(tmp_path), "XSTREAMER_MODELS": str(folder), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env=env)
    assert done.stdout == done.stderr == ""
    assert not (tmp_path / ".insightface").exists()


# files

RUN = {
    "det_10g.onnx": lambda device="cpu": detect_faces(astronaut(), device=device),
    "w600k_r50.onnx": lambda device="cpu": embed_crops([astronaut()[:112, :112]], device=device),
    "2d106det.onnx": lambda device="cpu": contour(astronaut(), np.array([70, 30, 195, 185]), device=device),
}


@pytest.mark.parametrize("file", RUN)
def test_missing_and_truncated_files_say_so(pack, file):
    content = (pack / file).read_bytes()
    (pack / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=f"{file} is not a readable ONNX model"):
        RUN[file]()
    (pack / file).unlink()
    with pytest.raises(ModelError, match=f"no weights of insightface at .*{file}.*xstreamer models fetch insightface"):
        RUN[file]()


@pytest.mark.parametrize(
    ("file", "wanted"), [("det_10g.onnx", "SCRFD"), ("w600k_r50.onnx", "[?, 512]"), ("2d106det.onnx", "[?, 212]")]
)
def test_a_file_of_another_model_says_what_was_expected(pack, file, wanted):
    yolox.colour_net(pack / file)
    with pytest.raises(ModelError) as error:
        RUN[file]()
    said = str(error.value)
    assert wanted in said and "[1, 8400, 85]" in said and "\n" not in said


def test_a_detector_for_one_size_of_picture_is_refused(pack):
    net = graph.Graph()
    for name, columns in zip(insightface.DETECTED, (1, 1, 1, 4, 4, 4, 10, 10, 10), strict=True):
        shape = net.constant([-1, columns], np.int64)
        net.node("Reshape", net.node("Concat", *["input.1"] * columns, axis=1), shape, name=name)
    shapes = {
        name: ["?", columns]
        for name, columns in zip(insightface.DETECTED, np.repeat((1, 4, 10), 3).tolist(), strict=True)
    }
    net.save(pack / "det_10g.onnx", {"input.1": [1, 3, 640, 640]}, shapes)
    with pytest.raises(ModelError, match="takes pictures of one size only"):
        RUN["det_10g.onnx"]()


@pytest.mark.parametrize("file", RUN)
def test_a_device_that_is_not_there_is_an_error(file, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ModelError, match="no CUDA provider, 'cuda' was asked for"):
        RUN[file]("cuda")


def test_a_missing_package_says_what_to_install(pack, monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface.model_zoo.scrfd", None)
    with pytest.raises(ModelError, match="pip install insightface"):
        RUN["det_10g.onnx"]()


# one identity or several


def person(number: int, spread: float, count: int, seed: int = 0) -> np.ndarray:
    """[count, 512] embeddings of one person, about cosine 1 / (1 + spread^2) from each other."""
    rng = np.random.default_rng((seed, number))
    middle, noise = rng.standard_normal(512), rng.standard_normal((count, 512))
    return ((middle + spread * noise) * rng.uniform(0.8, 1.2, (count, 1))).astype(np.float32)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.floats(0.1, 0.9), st.integers(0, 99))
def test_every_change_of_person_is_a_change_of_number(lengths, spread, seed):
    seen = np.concatenate([person(k, spread, length, seed) for k, length in enumerate(lengths)])
    assert runs(seen, UNLIKE, ALIKE).tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()


def test_who_comes_back_is_another_change():
    seen = np.concatenate([person(0, 0.5, 9)[:4], person(1, 0.5, 4), person(0, 0.5, 9)[4:]])
    assert runs(seen, UNLIKE, ALIKE).tolist() == [0] * 4 + [1] * 4 + [2] * 5


@given(st.integers(2, 8), st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_a_sighting_that_is_unlike_is_no_change(before, after, first, seed):
    """A hand, a turned head, a blur: alone, or two that are not alike either."""
    blurs = [person(k, 0.5, 1, seed) for k in (7, 8)]
    same = person(0, 0.5, before + after, seed)
    labels = runs(np.concatenate([same[:before], *blurs, same[before:]]), UNLIKE, ALIKE)
    assert labels.tolist() == [0] * before + [-1, -1] + [0] * after
    if first:
        labels = runs(np.concatenate([blurs[0], same, blurs[1]]), UNLIKE, ALIKE)
        assert labels.tolist() == [-1] + [0] * len(same) + [-1]


def test_blurs_that_are_alike_are_too_faint_to_be_a_person():
    blur = person(5, 0.3, 4) / 6
    labels = runs(np.concatenate([person(0, 0.5, 4), blur, person(0, 0.5, 4)]), UNLIKE, ALIKE)
    assert labels.tolist() == [0] * 4 + [-1] * 4 + [0] * 4


def test_a_head_that_turns_away_slowly_stays_who_it_is():
    front, side = person(0, 0, 1)[0], person(1, 0, 1)[0]
    weights = np.linspace(0, 1, 9)[:, None] * 0.95
    seen = (1 - weights) * front + weights * side * 1.2  # the last is hardly like the first
    assert cosine(seen[0], seen[-1]) < UNLIKE
    assert set(runs(seen, UNLIKE, ALIKE)) == {0}


def test_nobody_is_told_from_one_sighting_or_none():
    assert runs(np.zeros((0, 512)), UNLIKE, ALIKE).tolist() == []
    assert runs(person(0, 0.5, 1), UNLIKE, ALIKE).tolist() == [-1]
    assert runs(np.zeros((4, 512)), UNLIKE, ALIKE).tolist() == [-1] * 4
    assert mean_identity(person(0, 0.5, 1), np.array([-1])) is None


def test_the_mean_is_of_the_identity_seen_most():
    seen = np.concatenate([person(0, 0.5, 3), person(1, 0.5, 5)])
    mean = mean_identity(seen, runs(seen, UNLIKE, ALIKE))
    assert mean is not None and cosine(mean, seen[6]) > 0.8 and cosine(mean, seen[0]) < UNLIKE


# faces and bodies


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def faces_at(*rows: tuple[float, ...]) -> Faces:
    found = boxes(*rows)
    return Faces(found, np.zeros((len(found), 5, 2), np.float32), np.full(len(found), 0.9, np.float32))


def track(first: int, last: int, box: tuple[float, ...], every: int = 4) -> FaceTrack:
    frames = np.arange(first, last + 1, every)
    count = len(frames)
    return FaceTrack(frames, np.tile(boxes(box), (count, 1)), np.zeros((count, 5, 2), np.float32), np.ones(count))


BODY, FACE = (100.0, 50.0, 300.0, 400.0), (170.0, 70.0, 230.0, 150.0)
NEXT, NEXT_FACE = (320.0, 50.0, 520.0, 400.0), (390.0, 70.0, 450.0, 150.0)


def test_a_face_belongs_to_the_body_that_holds_it():
    assert pairs(boxes(NEXT_FACE, FACE), boxes(BODY, NEXT)) == [(0, 1), (1, 0)]
    assert pairs(boxes((600, 0, 640, 40)), boxes(BODY)) == []
    assert pairs(boxes(FACE), boxes()) == pairs(boxes(), boxes(BODY)) == []


def test_of_two_bodies_one_behind_the_other_each_gets_its_face():
    behind, her_face = (200.0, 20.0, 420.0, 400.0), (240.0, 40.0, 300.0, 120.0)
    assert sorted(pairs(boxes(FACE, her_face), boxes(behind, BODY))) == [(0, 1), (1, 0)]


def test_two_faces_in_one_box_are_one_pair_and_one_more():
    assert len(pairs(boxes(FACE, (110, 80, 160, 150)), boxes(BODY))) == 1


def test_parts_of_a_body_go_and_a_child_in_front_stays():
    def left(*faces):
        arm = (110.0, 200.0, 180.0, 380.0)
        found = Persons(boxes(BODY, arm, NEXT), np.array([0.9, 0.8, 0.7], np.float32))
        return whole(found, faces_at(*faces)).boxes[:, 0].tolist()

    assert left() == left(FACE) == [100, 320]
    assert left(FACE, (120, 210, 170, 270)) == [100, 110, 320], "with a face of its own it is somebody"
    assert len(whole(Persons(boxes(), np.zeros(0)), faces_at())) == 0


@pytest.mark.parametrize(
    ("faces", "bodies", "count"),
    [
        ([FACE], [BODY], 1),
        ([FACE], [], 1),  # a close-up, a portrait on a wall
        ([], [BODY], 1),  # the back throughout
        ([FACE], [BODY, NEXT], 2),
        ([FACE, NEXT_FACE], [BODY, NEXT], 2),
        ([FACE, NEXT_FACE], [BODY], 2),
        ([FACE, (110.0, 80.0, 160.0, 150.0)], [BODY], 2),  # one box round two people
        ([], [], 0),
    ],
)
def test_people_are_counted_by_faces_and_bodies(faces, bodies, count):
    assert people_at_once([track(0, 80, box) for box in faces], [track(0, 80, box, 12) for box in bodies]) == count


def test_a_body_that_is_found_late_or_twice_is_still_its_face():
    face = track(0, 96, FACE)
    assert people_at_once([face], [track(48, 96, BODY, 12)]) == 1
    assert people_at_once([face], [track(0, 36, BODY, 12), track(60, 96, BODY, 12)]) == 1
    assert people_at_once([track(0, 40, FACE), track(60, 96, FACE)], [track(0, 96, BODY, 12)]) == 1


def test_one_after_the_other_is_one_at_once_and_a_moment_is_needed():
    first = track(0, 40, FACE), track(0, 36, BODY, 12)
    second = track(44, 96, NEXT_FACE), track(48, 96, NEXT, 12)
    assert people_at_once([first[0], second[0]], [first[1], second[1]]) == 1
    early = track(36, 96, NEXT_FACE)
    assert people_at_once([first[0], early], [first[1], second[1]]) == 1, "five frames together are no moment"
    assert people_at_once([first[0], track(32, 96, NEXT_FACE)], [first[1], second[1]]) == 2


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_the_count_does_not_hang_on_the_order(faces_order, bodies_order):
    places = [tuple(np.array(FACE) + [150 * k, 0] * 2) for k in range(4)]
    faces = [track(0, 60 + 4 * k, place) for k, place in enumerate(places)]
    bodies = [track(0, 48, (p[0] - 40, p[1] - 20, p[2] + 40, p[3] + 200), 12) for p in places]
    mixed = people_at_once([faces[k] for k in faces_order[:3]], [bodies[k] for k in bodies_order])
    assert mixed == 4


def test_pieces_of_a_track_are_linked_in_time():
    joint = linked([track(40, 60, NEXT_FACE), track(0, 20, FACE)])
    assert joint.frames.tolist() == [*range(0, 21, 4), *range(40, 61, 4)]
    assert joint.boxes[0, 0] == FACE[0] and joint.boxes[-1, 0] == NEXT_FACE[0]
