"""How many people faces and bodies are, and whether one face stays one person's.

A body without a face (a back, a head cut off by the edge) is a person; so is a face without a body (a close-up in
which the body detector finds nothing, a portrait on a wall). A face and the body that holds it are one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.faces import Faces, FaceTrack, area, overlap
from models.persons import Persons
from models.tracking import Tracking, most_lasting, presence

HELD = 0.5
"""Share of a face's box that lies in the body that it belongs to."""
INSIDE = 0.9
"""Share of a body's box inside another from which it is taken for a part of that one (an arm, the upper half)."""
PAIRED = 0.5
"""Share of the looks that show both in which a face lies in a body, from which they are one person."""
CONFIRM = 2
"""Sightings in a row that make an identity; one that is unlike is a blur, a hand, a turn of the head."""
FAINT = 0.5
"""Share of the median length of a track's embeddings under which one is too poor to compare: ArcFace's features
shrink with the quality of the crop (Kim et al. 2022, arXiv:2204.00964)."""

HOW = Tracking()


def pairs(faces: np.ndarray, bodies: np.ndarray) -> list[tuple[int, int]]:
    """(face, body) of boxes [n, 4] and [m, 4]: as many as can be, each face in one body and each body with one face,
    the face high and in the middle."""
    from scipy.optimize import linear_sum_assignment

    if not len(faces) or not len(bodies):
        return []
    held = np.stack([overlap(face, bodies) for face in faces]) >= HELD * area(faces)[:, None]
    centres = (faces[:, :2] + faces[:, 2:]) / 2
    tops = np.stack([(bodies[:, 0] + bodies[:, 2]) / 2, bodies[:, 1]], axis=1)
    sizes = np.maximum(bodies[:, 2:] - bodies[:, :2], 1e-6)
    off = np.abs((centres[:, None] - tops) / sizes).sum(axis=-1)
    rows, columns = linear_sum_assignment(np.where(held, off, 1e3))
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if held[r, c]]


def whole(persons: Persons, faces: Faces) -> Persons:
    """`persons` without those that are parts of another: boxes inside a larger one, unless that holds several faces
    and the smaller one a face of its own."""
    keep = []
    for box in persons.boxes:
        outer = (area(persons.boxes) > area(box)) & (overlap(box, persons.boxes) >= INSIDE * area(box))
        alone = len(_within(faces, box)) == 0
        keep.append(not any(alone or len(_within(faces, larger)) < 2 for larger in persons.boxes[outer]))
    return persons[np.array(keep, bool)]


def people_at_once(faces: Sequence[FaceTrack], bodies: Sequence[FaceTrack], how: Tracking = HOW) -> int:
    """Largest number of people who are there together for a moment.

    faces, bodies: the tracks that are people. Those that belong together, directly or through another, are as many
    people at a frame as there are faces or bodies, whichever are more.
    """
    groups = _grouped(faces, bodies)
    frames = 1 + max((int(track.frames[-1]) for track in (*faces, *bodies)), default=-1)
    there = presence(faces, frames), presence(bodies, frames)
    counts = np.zeros(frames, np.int64)
    for group in sorted(set(groups)):
        kinds = np.array(groups) == group
        counts += np.maximum(
            there[0][kinds[: len(faces)]].sum(axis=0),
            there[1][kinds[len(faces) :]].sum(axis=0),
        )
    return most_lasting(counts, how)


def runs(embeddings: np.ndarray, unlike: float, alike: float) -> np.ndarray:
    """[m] number of the identity that each of a track's embeddings [m, width] shows, in order of time; -1 where it
    shows none for certain.

    An identity starts with two sightings in a row whose cosine is at least `alike`; it ends when two such are
    less than `unlike` like all of it. Who comes back is a new number: the numbers count the changes.
    """
    labels = np.full(len(embeddings), -1, np.int64)
    if not len(embeddings):
        return labels
    lengths = np.linalg.norm(embeddings, axis=1)
    units = embeddings / np.maximum(lengths, 1e-9)[:, None]
    current: np.ndarray | None = None
    waiting: list[int] = []
    number = -1
    for at in np.nonzero((lengths > 0) & (lengths >= FAINT * np.median(lengths)))[0]:
        if current is not None and cosine(units[at], current) >= unlike:
            current, waiting, labels[at] = current + units[at], [], number
            continue
        if not waiting or cosine(units[at], units[waiting].sum(axis=0)) < alike:
            waiting = []
        waiting = [*waiting, int(at)]
        if len(waiting) == CONFIRM:
            current, number = units[waiting].sum(axis=0), number + 1
            labels[waiting], waiting = number, []
    return labels


def mean_identity(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """[width] mean direction of the identity (of `runs`) that is seen most; None where there is none."""
    known = labels[labels >= 0]
    if not len(known):
        return None
    main = embeddings[labels == np.bincount(known).argmax()]
    return np.asarray((main / np.linalg.norm(main, axis=1, keepdims=True)).mean(axis=0))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors [width]."""
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))


def linked(pieces: Sequence[FaceTrack]) -> FaceTrack:
    """One track of pieces that share no frame, in order of time."""
    order = np.argsort(np.concatenate([piece.frames for piece in pieces]), kind="stable")
    boxes, landmarks, scores, frames = (
        np.concatenate([getattr(piece, name) for piece in pieces])[order]
        for name in ("boxes", "landmarks", "scores", "frames")
    )
    return FaceTrack(frames, boxes, landmarks, scores)


def _within(faces: Faces, box: np.ndarray) -> np.ndarray:
    """Indices of the faces that `box` holds."""
    return np.nonzero(overlap(box, faces.boxes) >= HELD * area(faces.boxes))[0]


def _grouped(faces: Sequence[FaceTrack], bodies: Sequence[FaceTrack]) -> list[int]:
    """A number for each of `faces` and then of `bodies`, the same for those that belong together."""
    groups = list(range(len(faces) + len(bodies)))
    both, held = _votes(faces, bodies)
    for face, body in zip(*np.nonzero((held > 0) & (held >= PAIRED * both)), strict=True):
        old, new = groups[len(faces) + body], groups[face]
        groups = [new if group == old else group for group in groups]
    return groups


def _votes(faces: Sequence[FaceTrack], bodies: Sequence[FaceTrack]) -> tuple[np.ndarray, np.ndarray]:
    """([faces, bodies] looks that show both, and those in which they are a pair)."""
    both = np.zeros((len(faces), len(bodies)), np.int64)
    held = np.zeros_like(both)
    for frame in sorted({int(frame) for body in bodies for frame in body.frames}):
        seen = [
            [(k, track.boxes[track.frames == frame][0]) for k, track in enumerate(tracks) if frame in track.frames]
            for tracks in (faces, bodies)
        ]
        numbers = [[k for k, _ in some] for some in seen]
        boxes = [np.array([box for _, box in some]).reshape(-1, 4) for some in seen]
        both[np.ix_(*numbers)] += 1
        for face, body in pairs(*boxes):
            held[numbers[0][face], numbers[1][body]] += 1
    return both, held
