"""Scenes: cuts where the picture changes, clips of 4.8-20 s that cover a scene and end where somebody pauses."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import numbered, write_movie

from curation.media import probe
from curation.scenes import MAX_FRAMES, MIN_FRAMES, cut_scene, find_scenes
from manifests.errors import SourceError
from models.clock import FPS

lengths = st.integers(1, 12_000)
quiet = st.lists(st.tuples(st.floats(0, 480), st.floats(0.05, 2)), max_size=80).map(
    lambda found: [(a, a + b) for a, b in found]
)


@given(st.integers(0, 5000), lengths, quiet)
def test_clips_cover_the_scene_and_have_the_right_length(
    first: int, length: int, pauses: list[tuple[float, float]]
) -> None:
    clips = cut_scene(first, first + length, pauses)
    assert clips[0][0] == first and clips[-1][1] == first + length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(clips))
    for begin, end in clips:
        assert end - begin <= MAX_FRAMES
        assert end - begin >= min(length, MIN_FRAMES)


@given(st.integers(MAX_FRAMES + 1, 12_000), quiet)
def test_a_cut_falls_into_a_pause_wherever_one_is_in_reach(length: int, pauses: list[tuple[float, float]]) -> None:
    middles = {round((a + b) / 2 * FPS) for a, b in pauses}
    start = 0
    for _, end in cut_scene(0, length, pauses)[:-1]:
        reach = range(start + MIN_FRAMES, min(start + MAX_FRAMES, length - MIN_FRAMES) + 1)
        assert end in middles or not middles & set(reach)
        start = end


def scenes_movie(path: Path, seconds: list[float], fps: int = 25) -> Path:
    """Scenes of unlike noise, each moving a little."""
    frames = []
    for index, length in enumerate(seconds):
        rng = np.random.default_rng(index)
        base = rng.integers(0, 255, (16, 24, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
        frames += [np.roll(base, shift // 5, axis=1) for shift in range(round(length * fps))]
    return write_movie(path, frames, fps=fps)


@pytest.mark.parametrize("fps", [25, 30])
def test_cuts_are_found_to_the_frame(tmp_path: Path, fps: int) -> None:
    path = scenes_movie(tmp_path / "s.mp4", [3.0, 6.0, 2.0], fps)
    info = probe(str(path))
    found = find_scenes(str(path), info)
    assert np.allclose(found.cuts, [3.0, 9.0], atol=0.002)
    assert [(s.start_s, s.end_s) for s in found.spans] == [(0.0, 3.0), (3.0, 9.0), (9.0, 11.0)]
    assert [s.scene for s in found.spans] == [0, 1, 2]


def test_a_window_looks_at_its_span_only(tmp_path: Path) -> None:
    path = scenes_movie(tmp_path / "s.mp4", [3.0, 6.0, 2.0])
    found = find_scenes(str(path), probe(str(path)), window=(2.0, 8.0))
    assert [(s.start_s, s.end_s) for s in found.spans] == [(2.0, 3.0), (3.0, 8.0)]


def test_a_truncated_file_is_an_error_that_says_how_much_is_there(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "t.mkv", [numbered(i % 250, (128, 192)) for i in range(300)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"truncated: its picture ends at .* of 12\.0 s"):
        find_scenes(str(path), probe(str(path)))


def test_motion_is_no_cut_where_frames_repeat_or_are_missing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = cv2.GaussianBlur(rng.integers(0, 255, (160, 1200, 3), np.uint8), (0, 0), 5)
    base = cv2.normalize(base, None, 0, 255, cv2.NORM_MINMAX)
    steps = np.full(100, 2)
    steps[[20, 70]] = 5  # a jerk: more than twice the motion around it, no cut
    moving = [base[:, at : at + 240] for at in np.cumsum(steps)]
    cut = [*moving[:50], *(255 - frame for frame in moving[50:])]
    kept = [i for i in range(100) if not 3 <= i % 10 <= 5]
    movies = {
        "doubled": write_movie(tmp_path / "d.mp4", [f for f in cut for _ in (0, 1)], fps=50),
        "gaps": write_movie(tmp_path / "g.mp4", [cut[i] for i in kept], times=[i / 25 for i in kept]),
        "plain": write_movie(tmp_path / "p.mp4", cut),
    }
    for name, path in movies.items():
        assert np.allclose(find_scenes(str(path), probe(str(path))).cuts, [2.0], atol=0.05), name
