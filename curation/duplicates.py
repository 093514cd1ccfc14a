"""Clips that look alike: a perceptual hash over picture and time, and the search for near ones.

Copies of a video come re-encoded, resized, brighter, captioned. Clips that merely share a person and a
background, as all clips of an interview do, are no copies: most of the hash is about what moves, and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
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


def hash_frames(frames: np.ndarray) -> str:
    """16 hex digits of the hash of `frames` [n, h, w, 3] uint8 BGR, n >= TIMES.

    63 bits are signs of 3x3 low spatial frequencies (1-3 half waves each way) of the 7 lowest frequencies of
    time above 0: what moves, and when, free of background and of flicker of the whole picture, which coders
    make. One is of the still picture. Finer in time than in space: the signs of one swaying head go together
    over space, not over time.
    """
    means = mean_pictures(frames)
    in_time, in_space = cosines(TIMES, 8), cosines(SIDE, 4)
    found = np.einsum("at,by,cx,tyx->abc", in_time, in_space, in_space, means, optimize=True)
    # what is nothing but rounding, as of a still or flat picture, is 0 everywhere alike
    bits = np.append(found[1:, 1:, 1:].ravel(), found[0, 0, 1]) > 1e-6
    return np.packbits(bits).tobytes().hex()


def mean_pictures(frames: np.ndarray) -> np.ndarray:
    """[TIMES, SIDE, SIDE] float64: means over equal parts of the clip of its grey pictures, shrunk."""
    gray = np.empty((len(frames), SIDE, SIDE), np.float64)
    for i, frame in enumerate(frames):
        gray[i] = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    edges = np.linspace(0, len(frames), TIMES + 1)
    # a frame on the border of two parts counts in both by its shares, so that a frame more moves little
    overlap = np.minimum(edges[1:, None], np.arange(1, len(frames) + 1)) - np.maximum(
        edges[:-1, None], np.arange(len(frames))
    )
    weights = np.maximum(overlap, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, gray, axes=1)


def cosines(length: int, count: int) -> np.ndarray:
    """[count, length]: the first rows of the orthonormal DCT-II."""
    rows = np.cos(np.pi * np.arange(count)[:, None] * (np.arange(length) + 0.5) / length) * (2 / length) ** 0.5
    rows[0] /= 2**0.5
    return rows


def near_duplicates(ids: Sequence[str], hashes: Sequence[str | None], max_distance: int = 6) -> dict[str, str]:
    """For each id whose hash is within `max_distance` bits of an earlier one's: the first such id in `ids`.

    Exact: of max_distance + k bands of bits at least k are equal in two hashes so near, so that every pair
    meets in one of the sorts by k bands. Ids with no hash have no duplicates. A million
    take some ten seconds. Raises ValueError when lengths differ or a hash is not 16 hex digits.
    """
    if len(ids) != len(hashes):
        raise ValueError(f"{len(ids)} ids, {len(hashes)} hashes")
    known = np.array([i for i, text in enumerate(hashes) if text is not None], np.int64)
    values = np.array([parsed(text) for text in hashes if text is not None], np.uint64)
    if not len(known):
        return {}
    unique, first, which = np.unique(values, return_index=True, return_inverse=True)
    earliest = known[first]
    best = earliest.copy()
    for a, b in near_pairs(unique, max_distance):
        np.minimum.at(best, a, earliest[b])
        np.minimum.at(best, b, earliest[a])
    twins = best[which]
    return {ids[i]: ids[j] for i, j in zip(known.tolist(), twins.tolist(), strict=True) if j < i}


def parsed(text: str) -> int:
    if len(text) != BITS // 4:
        raise ValueError(f"not a hash of {BITS // 4} hex digits: {text!r}")
    return int(text, 16)


def near_pairs(values: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays (a, b) of all pairs of distinct `values` [n] uint64 within `max_distance` bits; a pair may
    come more than once."""
    for mask in masks(len(values), max_distance):
        key = values & np.uint64(mask)
        order = np.argsort(key, kind="stable")
        key = key[order]
        at, step = np.arange(len(key)), 0
        while len(at):
            step += 1
            at = at[at + step < len(key)]
            # sorted: who differs from the one `step` on differs from all after it
            at = at[key[at] == key[at + step]]
            a, b = order[at], order[at + step]
            near = np.bitwise_count(values[a] ^ values[b]) <= max_distance
            yield a[near], b[near]


def masks(count: int, max_distance: int) -> list[int]:
    """Bits to sort by: every choice of k of max_distance + k bands, the k with the least work for `count`
    random hashes."""

    def work(k: int) -> float:
        sorts = comb(max_distance + k, k)
        # a sort costs about as much as 15 comparisons of each hash with another
        return sorts * (15.0 + count / 2.0 ** (BITS * k / (max_distance + k)))

    most = BITS - max_distance
    k = min(range(1, min(6, most) + 1), key=work) if most > 0 else 0
    cuts = np.linspace(0, BITS, max_distance + k + 1).round().astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in pairwise(cuts)]
    return [sum(chosen) for chosen in combinations(bands, k)]
