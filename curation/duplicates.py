"""Clips that look alike: a perceptual hash over picture and time, and the search for near ones.

Copies of a video come re-encoded, resized, brighter, captioned. Clips that merely share a person and a
background, as all clips of an interview do, are no copies: most of the hash is about what moves, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import cv2
import numpy as np

from curation.clip import Clip
from curation.stage import Result, Stage, Unmeasured
from manifests.records import measures_of

BITS = 64
SIDE = 32
"""Side, px, of the grey pictures that are hashed."""
TIMES = 16
"""Equal parts of the clip, of whose mean pictures the hash is made."""


@dataclass(frozen=True)
class PerceptualHash(Stage):
    """Signs of the low frequencies of a 3-D cosine transform of the clip (Coskun, Sankur & Memon, "Spatio-temporal
    transform based video hashing", IEEE TMM 2006), those of time first.

    near_duplicate_of needs the other clips: `near_duplicates` makes it from the hashes.
    """

    name: ClassVar[str] = "duplicates"
    backend: ClassVar[str] = "dct3"
    measures: ClassVar[tuple[str, ...]] = measures_of("duplicates")

    def measure(self, clip: Clip) -> Result:
        if len(clip.small) < TIMES:
            raise Unmeasured(f"{len(clip.small)} frames; a hash needs {TIMES}")
        return Result({"near_hash": hash_frames(clip.small), "near_duplicate_of": None})
