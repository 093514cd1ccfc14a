"""Near duplicates: the search against brute force, the hash against copies and against other clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clip import Clip
from curation.duplicates import PerceptualHash, hash_frames, near_duplicates
from curation.media import probe
from curation.stage import Unmeasured
from manifests.records import measures_of
from tests.made import write_movie


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def brute(ids: list[str], hashes: list[str | None], limit: int) -> dict[str, str]:
    found = {}
    for i, a in enumerate(hashes):
        for j, b in enumerate(hashes[:i]):
            if a is not None and b is not None and distance(a, b) <= limit:
                found[ids[i]] = ids[j]
                break
    return found


@st.composite
def families(draw: st.DrawFn) -> list[str | None]:
    """Hashes of which many are a few bits from another, some equal, some missing."""
    found: list[str | None] = [f"{draw(st.integers(0, 2**64 - 1)):016x}"]
    for _ in range(draw(st.integers(0, 40))):
        kin = draw(st.sampled_from(found))
        flips = draw(st.lists(st.integers(0, 63), max_size=9))
        if kin is None or draw(st.integers(0, 9)) == 0:
            found.append(draw(st.one_of(st.none(), st.integers(0, 2**64 - 1).map(lambda v: f"{v:016x}"))))
        else:
            found.append(f"{int(kin, 16) ^ sum(1 << bit for bit in set(flips)):016x}")
    return found


@settings(max_examples=150, deadline=None)
@given(families(), st.sampled_from([0, 1, 2, 3, 4, 6, 9, 20, 63, 64]))
def test_search_is_exact(hashes: list[str | None], limit: int) -> None:
    ids = [f"clip{i}" for i in range(len(hashes))]
    assert near_duplicates(ids, hashes, limit) == brute(ids, hashes, limit)


@pytest.mark.parametrize("limit", [3, 4, 6])
def test_search_is_exact_among_many(limit: int) -> None:
    """Enough hashes that several bands are sorted together."""
    rng = np.random.default_rng(limit)
    values = rng.integers(0, 2**64, 60_000, dtype=np.uint64)
    planted = {}
    for i in range(0, 20_000, 50):
        flips = rng.choice(64, int(rng.integers(0, limit + 3)), replace=False)
        values[40_000 + i] = values[i] ^ np.uint64(sum(1 << int(bit) for bit in flips))
        if len(flips) <= limit:
            planted[str(40_000 + i)] = str(i)
    ids = [str(i) for i in range(len(values))]
    assert near_duplicates(ids, [f"{v:016x}" for v in values.tolist()], limit) == planted


def test_search_names_what_is_wrong() -> None:
    assert near_duplicates([], []) == {}
    assert near_duplicates(["a", "b"], [None, None]) == {}
    with pytest.raises(ValueError, match="1 ids, 0 hashes"):
        near_duplicates(["a"], [])
    with pytest.raises(ValueError, match="16 hex digits"):
        near_duplicates(["a"], ["123"])


def talk(seed: int, seconds: float = 5.0, side: int = 256) -> np.ndarray:
    """[n, side, side, 3] BGR: the same person in the same place who moves otherwise for each seed."""
    rng = np.random.default_rng(seed)
    rates, phases, reach = rng.uniform(0.05, 1.5, (2, 6)), rng.uniform(0, 6.3, (2, 6)), rng.uniform(1, 4, (2, 6))
    reach *= side / 256
    room: np.ndarray = cv2.resize(skimage.data.astronaut()[:, :, ::-1], (side, side), interpolation=cv2.INTER_AREA)
    head: np.ndarray = np.zeros((side, side, 1), np.float32)
    cv2.circle(head, (side * 7 // 16, side // 4), side // 5, 1.0, -1)
    head = cv2.GaussianBlur(head, (0, 0), side / 24)[..., None]
    frames = []
    for i in range(round(seconds * 25)):
        x, y = (reach * np.sin(2 * np.pi * rates * i / 25 + phases)).sum(axis=1)
        moved = cv2.warpAffine(
            room, np.array([[1, 0, x], [0, 1, y]], np.float32), (side, side), borderMode=cv2.BORDER_REFLECT
        )
        frames.append((room * (1 - head) + moved * head).astype(np.uint8))
    return np.stack(frames)


def brighter(frames: np.ndarray) -> np.ndarray:
    return np.clip(frames * 1.1 + 8, 0, 255).astype(np.uint8)


def half(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for frame in frames])


def captioned(frames: np.ndarray) -> np.ndarray:
    out = frames.copy()
    for frame in out:
        cv2.putText(frame, "SUBSCRIBE", (60, 236), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    return out


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brighter": brighter,
    "half the size": half,
    "captioned": captioned,
    "a frame less": lambda frames: frames[1:],
    "every other frame held": lambda frames: np.repeat(frames[::2], 2, axis=0)[: len(frames)],
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_copy_hashes_near(how: str, seed: int) -> None:
    frames = talk(seed)
    assert distance(hash_frames(frames), hash_frames(COPIES[how](frames))) <= 6


def test_one_person_in_one_room_at_other_times_is_no_copy() -> None:
    found = [hash_frames(talk(seed)) for seed in range(8)]
    assert min(distance(a, b) for i, a in enumerate(found) for b in found[:i]) > 10


def test_still_and_flat_clips_have_a_stable_hash() -> None:
    flat = np.full((40, 64, 64, 3), 90, np.uint8)
    assert hash_frames(flat) == "0" * 16
    still = np.repeat(talk(0, seconds=0.04), 40, axis=0)
    assert hash_frames(still) == hash_frames(np.concatenate([still, still])) != "0" * 16


def clip_of(path: Path, frames: np.ndarray, codec: str = "libx264") -> Clip:
    write_movie(path, (frame[:, :, ::-1] for frame in frames), codec=codec)
    return Clip("made", str(path), probe(str(path)), 0.0, len(frames) / 25)


def test_the_stage_sees_through_another_codec_and_size(tmp_path: Path) -> None:
    frames = talk(3, side=512)
    one = PerceptualHash().measure(clip_of(tmp_path / "one.mp4", frames)).measures
    two = PerceptualHash().measure(clip_of(tmp_path / "two.avi", half(frames), "mpeg4")).measures
    other = PerceptualHash().measure(clip_of(tmp_path / "other.mp4", talk(4, side=512))).measures
    assert set(one) == set(measures_of("duplicates")) and one["near_duplicate_of"] is None
    ids = ["one", "two", "other"]
    assert near_duplicates(ids, [str(m["near_hash"]) for m in (one, two, other)]) == {"two": "one"}


def test_too_few_frames_are_unmeasured(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="10 frames"):
        PerceptualHash().measure(clip_of(tmp_path / "short.mp4", talk(0)[:10]))
