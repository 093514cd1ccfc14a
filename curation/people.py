"""Who is in the picture, as the paper asks (A.1): persons by YOLOX, faces by SCRFD, followed and told apart by ArcFace.

A person is a body or a face that is seen for a moment; a face belongs to the body that holds it. So those who turn
their back count, as do faces in which no body is found: close-ups, and portraits on a wall, which are a second
visible face all the same. Far figures count only from a stated size.

One face is followed by place and size alone; who it is, is asked twice a second. Where another face takes its
place (a cut that the scenes stage missed, a dissolve, two who cross) the track goes on and the identity does not:
that is a switch. A face that was lost and comes back as the same person is one track again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.speakers import FollowedFaces, described, listed, look_indices, merged, outline, scaled
from curation.stage import Result, Unmeasured, package_version
from manifests.errors import UsageError
from models.crowd import cosine, linked, mean_identity, people_at_once, runs, whole
from models.faces import Faces, FaceTrack
from models.identity import PACK, contour, detect_faces, embed
from models.persons import MODELS, Persons, detect_persons
from models.tracking import Tracking, follow, main_track, people

if TYPE_CHECKING:
    from curation.clip import Clip

BODY_REACH = 0.75
"""As `Tracking.reach`, in sizes of a body's box: nobody moves by a body's width between two looks."""


@dataclass(frozen=True)
class PeopleSpeakers(FollowedFaces):
    """Speakers by YOLOX and InsightFace's buffalo_l.

    model: the YOLOX export, one of `models.persons.MODELS`; larger ones miss less and take longer.
    every: frames between looks for faces (0.16 s, so that half a second holds three).
    person_every: such looks between looks for persons (0.48 s).
    identity_every: sightings of the main face between two that are identified (0.48 s).
    coarse_side: the picture's longer side at each look for faces, px; enough for a face of a tenth of it.
    fine_every: looks between finer ones (about a second), which find faces in small insets.
    fine_side: the longer side at a finer look.
    weak: score under which a face is nothing at all.
    sure: score that a face reaches at least twice (the package's own bound is 0.5).
    min_face: a face's longer side over the picture's shorter side under which it is not counted.
    person_weak, person_sure: the same scores of persons (ByteTrack's high bound for YOLOX is 0.6).
    min_person: a person's longer side over the picture's shorter side under which it is not counted: passers-by
        and crowds far behind.
    unlike: cosine of two embeddings under which they are two persons: ten pairs of strangers in one photograph had
        0.05 to 0.35 by this network (cosanlab/py-feat#284), and a switch needs two such sightings that agree.
    alike: cosine from which they are one for certain (the package's own bound for a person's face).
    device: where the models run ("cpu", "cuda", "cuda:1" or "auto").
    """

    backend = "yolox-insightface"

    model: str = field(default="yolox-m", metadata={"choices": MODELS})
    every: int = 4
    person_every: int = 3
    identity_every: int = 3
    coarse_side: int = 320
    fine_every: int = 6
    fine_side: int = 640
    weak: float = 0.4
    sure: float = 0.6
    min_face: float = 0.04
    person_weak: float = 0.3
    person_sure: float = 0.6
    min_person: float = 0.2
    unlike: float = 0.3
    alike: float = 0.45
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"speakers.{self.backend} has no model {self.model!r}; choose from {', '.join(MODELS)}")

    def weights(self) -> tuple[str, ...]:
        return (self.model, PACK)

    def revision(self) -> str:
        return f"{super().revision()} {package_version('insightface')}"

    def measure(self, clip: Clip) -> Result:
        """Raises Unmeasured for a clip too short to tell a person from a wrong detection."""
        how = Tracking(sure=self.sure)
        if len(clip.small) <= how.moment:
            raise Unmeasured(f"{len(clip.small)} frames are too few to follow a person")
        looks = self.looks(clip.small)
        faces = people(follow(looks, how), how)
        bodies = self.bodies(clip.small, dict(looks))
        size = clip.small.shape[2], clip.small.shape[1]
        main, others, known = self.identified(clip.small, main_track(faces, *size), faces)
        evidence = {
            "looks": len(looks),
            "track": None if main is None else listed(scaled(main, clip.scale)),
            "others": [outline(scaled(track, clip.scale)) for track in others],
            "persons": [outline(scaled(track, clip.scale)) for track in bodies],
            "identity": known,
            "contour": None if main is None else self.contour(clip, main),
        }
        track = self.product(clip, evidence)
        count = people_at_once(faces, bodies, how)
        found = described(track, count, len(looks), clip.info.width, clip.info.height)
        return Result(found | {"face_identity_switches": known["switches"]}, evidence, track)

    def look(self, image: np.ndarray, number: int) -> Faces:
        """Faces of a picture; the places come from the coarse look, the finer one adds faces and scores."""
        faces = self.faces(image, self.coarse_side)
        if number % self.fine_every == self.fine_every // 2 and max(image.shape[:2]) > self.coarse_side:
            faces = merged(faces, self.faces(image, self.fine_side))
        return faces[_longer(faces.boxes) >= self.min_face * min(image.shape[:2])]

    def faces(self, image: np.ndarray, side: int) -> Faces:
        return detect_faces(image, side=side, threshold=self.weak, device=self.device)

    def bodies(self, frames: np.ndarray, faces: Mapping[int, Faces]) -> list[FaceTrack]:
        """Persons followed over the clip, as tracks that have no landmarks. faces: those of each look."""
        at = sorted({*list(faces)[:: self.person_every], max(faces)})
        found = detect_persons(
            [frames[i] for i in at], model=self.model, threshold=self.person_weak, device=self.device
        )
        least = self.min_person * min(frames.shape[1:3])
        how = Tracking(sure=self.person_sure, profile=0.0, reach=BODY_REACH)
        tall = [(i, persons[_longer(persons.boxes) >= least]) for i, persons in zip(at, found, strict=True)]
        return people(follow([(i, _faceless(whole(persons, faces[i]))) for i, persons in tall], how), how)

    def identified(
        self, frames: np.ndarray, main: FaceTrack | None, tracks: Sequence[FaceTrack]
    ) -> tuple[FaceTrack | None, list[FaceTrack], dict[str, Any]]:
        """(main track with the other pieces of the same person, other tracks, what is known of its identity)."""
        if main is None:
            return None, [], {"switches": None, "frames": [], "similarity": [], "identities": []}
        pieces, others = [main], []
        seen = self.sightings(frames, main)
        for track in tracks:
            if track is main:
                continue
            more = self.sightings(frames, track) if self.apart(track, pieces) else {}
            if more and self.same(seen, more):
                pieces, seen = [*pieces, track], {**seen, **more}
            else:
                others.append(track)
        return linked(pieces), others, self.told(seen)

    def sightings(self, frames: np.ndarray, track: FaceTrack) -> dict[int, np.ndarray]:
        """{frame: [512] embedding}, of every `identity_every`-th sighting and the last."""
        at = look_indices(len(track.frames), self.identity_every)
        return {
            int(track.frames[k]): embed(frames[track.frames[k]], track.landmarks[k : k + 1], device=self.device)[0]
            for k in at
        }

    def apart(self, track: FaceTrack, pieces: Sequence[FaceTrack]) -> bool:
        """Whether `track` is never seen beside `pieces`, so that it may be the same person."""
        return not any(np.isin(track.frames, piece.frames).any() for piece in pieces)

    def same(self, one: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> bool:
        """Whether the sightings of two tracks show one person."""
        (embeddings, labels), (others, other_labels) = self.known(one), self.known(other)
        mean, other_mean = mean_identity(embeddings, labels), mean_identity(others, other_labels)
        return mean is not None and other_mean is not None and cosine(mean, other_mean) >= self.alike

    def known(self, seen: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """([m, 512] embeddings in order of time, [m] the identity that each shows)."""
        embeddings = np.stack([seen[frame] for frame in sorted(seen)])
        return embeddings, runs(embeddings, self.unlike, self.alike)

    def told(self, seen: Mapping[int, np.ndarray]) -> dict[str, Any]:
        """Switches (None where no identity is certain), and what people look at: the frames that were identified,
        their likeness to the identity that is seen most, and which identity each shows (-1: none for certain)."""
        frames = sorted(seen)
        embeddings, labels = self.known(seen)
        mean = mean_identity(embeddings, labels)
        return {
            "switches": None if mean is None else int(labels.max()),
            "frames": frames,
            "similarity": [] if mean is None else [round(cosine(one, mean), 2) for one in embeddings],
            "identities": labels.tolist(),
        }

    def contour(self, clip: Clip, track: FaceTrack) -> dict[str, Any]:
        """The 106 landmarks where the face is surest, source pixels."""
        best = int(track.scores.argmax())
        frame = int(track.frames[best])
        points = contour(clip.small[frame], track.boxes[best], device=self.device) * clip.scale
        return {"frame": frame, "points": np.round(points).astype(int).tolist()}


def _faceless(persons: Persons) -> Faces:
    """Persons as the tracker takes them."""
    return Faces(persons.boxes, np.zeros((len(persons), 5, 2), np.float32), persons.scores)


def _longer(boxes: np.ndarray) -> np.ndarray:
    """[n] longer side of boxes [n, 4]."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0))
