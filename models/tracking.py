"""Faces followed over time: which detections are one person, and how many people are there at once.

Tracking by detection in the manner of SORT (Bewley et al. 2016, arXiv:1602.00763): constant velocity and the
Hungarian method; weak detections may extend a track and never start one (ByteTrack, arXiv:2110.06864).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.clock import FPS
from models.faces import Faces, FaceTrack, area

RECENT = 5
"""Sightings (0.8 s) from which a track's size and speed are taken."""


@dataclass(frozen=True)
class Tracking:
    """How detections are joined.

    start: score that starts a track, 0-1; lesser ones only extend it.
    sure: score that makes a person. CenterFace gives heads down to a tenth of the picture's height that and
        more, and textures less.
    profile: added to `sure` where both eyes fall in one place, which is how textures most often pass.
    max_gap: frames that a track survives unseen (2 s: a head turned away, somebody passing in front).
    coast: frames for which an unseen face is taken to move on; it waits there afterwards.
    reach: how far a detection may lie from where its track expects it, in face sizes; less for a changed
        size and a poor score, twice as far after a second. Someone who walks moves his head's height in 0.16 s.
    moment: frames from first to last sighting that make a person (0.32 s), and for which people must be seen
        together; one wrong detection lasts none.
    """

    start: float = 0.5
    sure: float = 0.65
    profile: float = 0.1
    max_gap: int = 2 * FPS
    coast: int = FPS
    reach: float = 1.5
    moment: int = 8


@dataclass
class _Path:
    """A track that grows. Size and speed are medians of the last sightings, since the box of a face that
    goes behind another shrinks to what is left of it."""

    frames: list[int] = field(default_factory=list)
    faces: list[Faces] = field(default_factory=list)

    def add(self, frame: int, face: Faces) -> None:
        self.frames.append(frame)
        self.faces.append(face)

    def size(self) -> float:
        """Side of the face, px."""
        return max(1e-6, float(np.median([_sizes(face.boxes[0]) for face in self.faces[-RECENT:]])))

    def expected(self, frame: int, coast: int) -> np.ndarray:
        """Where the centre should be at `frame`."""
        centres = np.array([_centres(face.boxes[0]) for face in self.faces[-RECENT:]])
        if len(centres) == 1:
            return centres[0]
        speeds = np.diff(centres, axis=0) / np.diff(self.frames[-RECENT:])[:, None]
        return np.asarray(centres[-1] + np.median(speeds, axis=0) * min(frame - self.frames[-1], coast))

    def track(self) -> FaceTrack:
        return FaceTrack(
            np.array(self.frames, np.int64),
            np.concatenate([face.boxes for face in self.faces]),
            np.concatenate([face.landmarks for face in self.faces]),
            np.concatenate([face.scores for face in self.faces]),
        )


def follow(looks: Sequence[tuple[int, Faces]], how: Tracking = Tracking()) -> list[FaceTrack]:
    """Every track, one-frame ones included, in order of first sighting.

    looks: (frame, faces found in it), frames ascending; frames need not be evenly spaced.
    """
    alive: list[_Path] = []
    ended: list[_Path] = []
    for frame, faces in looks:
        ended += [path for path in alive if frame - path.frames[-1] > how.max_gap]
        alive = [path for path in alive if frame - path.frames[-1] <= how.max_gap]
        pairs = _matched(alive, frame, faces, how)
        for path, found in pairs:
            alive[path].add(frame, faces[found : found + 1])
        taken = {found for _, found in pairs}
        for new in range(len(faces)):
            if new not in taken and faces.scores[new] >= how.start:
                alive.append(_Path())
                alive[-1].add(frame, faces[new : new + 1])
    return sorted((path.track() for path in ended + alive), key=lambda track: int(track.frames[0]))


def people(tracks: Sequence[FaceTrack], how: Tracking = Tracking()) -> list[FaceTrack]:
    """The tracks that are people: seen for a moment, and surely at least twice."""
    return [track for track in tracks if np.ptp(track.frames) >= how.moment and _sure(track, how).sum() >= 2]


def most_at_once(tracks: Sequence[FaceTrack], how: Tracking = Tracking()) -> int:
    """Largest number of tracks that are there together for a moment; a track is there while it is hidden."""
    return most_lasting(presence(tracks).sum(axis=0), how)


def presence(tracks: Sequence[FaceTrack], frames: int | None = None) -> np.ndarray:
    """[tracks, frames] bool: from its first to its last sighting a track is there. frames: as many as there are up
    to the last sighting of all, when not given."""
    last = max((int(track.frames[-1]) for track in tracks), default=-1)
    there = np.zeros((len(tracks), last + 1 if frames is None else frames), bool)
    for row, track in zip(there, tracks, strict=True):
        row[track.frames[0] : track.frames[-1] + 1] = True
    return there


def most_lasting(counts: np.ndarray, how: Tracking = Tracking()) -> int:
    """Largest count that [n] `counts`, one a frame, hold or exceed for a moment."""
    if not len(counts):
        return 0
    window = min(how.moment + 1, len(counts))
    return int(np.lib.stride_tricks.sliding_window_view(counts, window).min(axis=1).max())


def main_track(tracks: Sequence[FaceTrack], width: int, height: int) -> FaceTrack | None:
    """The face that the clip is about: seen long, large and in the middle of `width` x `height` px."""
    return max(tracks, key=lambda track: _weight(track, width, height), default=None)


def _sure(track: FaceTrack, how: Tracking) -> np.ndarray:
    """[m] bool: sightings beyond doubt."""
    apart = np.linalg.norm(track.landmarks[:, 1] - track.landmarks[:, 0], axis=1)
    both_eyes = apart >= 0.1 * (track.boxes[:, 2] - track.boxes[:, 0])
    return np.asarray(track.scores >= np.where(both_eyes, how.sure, how.sure + how.profile))


def _weight(track: FaceTrack, width: int, height: int) -> float:
    """Sightings x size x (1 in the middle of the picture, 1/2 in its corners)."""
    middle = np.array([width, height]) / 2
    off = np.linalg.norm(_centres(track.boxes) - middle, axis=1) / np.linalg.norm(middle)
    return float(np.sum(_sizes(track.boxes) * (1 - off / 2)))


def _matched(paths: list[_Path], frame: int, faces: Faces, how: Tracking) -> list[tuple[int, int]]:
    """(path, face) pairs of least total cost; pairs beyond reach are left out."""
    from scipy.optimize import linear_sum_assignment

    if not paths or not len(faces):
        return []
    cost = np.stack([_cost(path, frame, faces, how) for path in paths])
    beyond = cost > how.reach
    rows, columns = linear_sum_assignment(np.where(beyond, 1e3, cost))
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if not beyond[r, c]]


def _cost(path: _Path, frame: int, faces: Faces, how: Tracking) -> np.ndarray:
    """[n] distance in face sizes from where `path` expects to be, plus the change of size and poor score."""
    off = np.linalg.norm(_centres(faces.boxes) - path.expected(frame, how.coast), axis=1)
    slack = path.size() * (1 + (frame - path.frames[-1]) / FPS)
    growth = np.abs(np.log(np.maximum(_sizes(faces.boxes), 1e-6) / path.size()))
    return np.asarray(off / slack + growth + (1 - faces.scores) / 2)


def _centres(boxes: np.ndarray) -> np.ndarray:
    """[..., 2] of boxes [..., 4]."""
    return np.asarray((boxes[..., :2].astype(np.float64) + boxes[..., 2:]) / 2)


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """[n] geometric mean of width and height."""
    return np.asarray(np.sqrt(area(boxes.astype(np.float64))))
