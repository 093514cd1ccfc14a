"""Long-form samples: which clips join, and what the joined clip says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.longform import joined_row, joined_text, long_runs


def clip(start: float, end: float, **facts: Any) -> dict[str, Any]:
    place = {"crop_x": 0.0, "crop_y": 0.0, "crop_side": 100.0, "sync_offset_frames": 0, "transcript": ""}
    return {"source_id": "a", "scene": 0, "start_s": start, "end_s": end, **place, **facts}


@pytest.mark.parametrize(
    ("parts", "whole"),
    (
        (["good morning", "to you"], "good morning to you"),
        (["今天天气", "很好。"], "今天天气很好。"),
        (["很好。", "Thank you"], "很好。 Thank you"),
        (["", "alone"], "alone"),
        ([], ""),
    ),
)
def test_words_are_spaced_as_their_script_is(parts: list[str], whole: str) -> None:
    assert joined_text(parts) == whole


@given(st.lists(st.text("ab好的", min_size=1), max_size=6))
def test_no_letter_is_lost_or_moved(parts: list[str]) -> None:
    assert joined_text(parts).replace(" ", "") == "".join(parts)


@given(st.lists(st.tuples(st.floats(4.8, 20.0), st.booleans()), min_size=1, max_size=12))
def test_runs_touch_stay_within_the_limit_and_hold_each_clip_once(found: list[tuple[float, bool]]) -> None:
    clips, at = [], 0.0
    for seconds, gap in found:
        at += 1.0 if gap else 0.0
        clips.append(clip(at, at + seconds))
        at += seconds
    runs = long_runs(clips, 60.0)
    held = [one["start_s"] for run in runs for one in run]
    assert len(held) == len(set(held)) and all(len(run) > 1 for run in runs)
    for run in runs:
        assert run[-1]["end_s"] - run[0]["start_s"] <= 60.0 + 1e-6
        assert all(abs(a["end_s"] - b["start_s"]) < 1e-6 for a, b in itertools.pairwise(run))


def test_other_scenes_sources_and_offsets_do_not_join() -> None:
    first = clip(0.0, 5.0)
    for other in ({"scene": 1}, {"source_id": "b"}, {"sync_offset_frames": 2}):
        assert long_runs([first, clip(5.0, 10.0, **other)], 60.0) == []
    assert len(long_runs([first, clip(5.0, 10.0, sync_offset_frames=1)], 60.0)) == 1


def test_the_joined_clip_has_one_square_one_offset_and_all_words() -> None:
    run = [
        clip(0.0, 5.0, transcript="one", crop_x=10.0, sync_offset_frames=2),
        clip(5.0, 10.0, transcript="two", crop_x=30.0, crop_side=120.0, sync_offset_frames=3),
    ]
    row = joined_row(run)
    assert row["transcript"] == "one two" and row["crop_side"] == 120.0
    assert row["crop_x"] == 15.0  # the mean of the middles, 60 and 90, less half the side
    assert (row["start_s"], row["end_s"]) == (0.0, 10.0) and row["sync_offset_frames"] == 2
