"""Previews: what a reviewer plays is the clip, whole, small, and in sync."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import Head
from hypothesis import given
from hypothesis import strategies as st

from curation.clip import Clip
from curation.media import probe
from curation.preview import STRIP_FRAMES, STRIP_HEIGHT, H264Preview, applied_offset, shrunk, waveform
from models.clock import FPS, STORED_RATE
from pipelines.sample import write_video


def clip_of(path: Path, seconds: float, **row: object) -> Clip:
    return Clip("0-0-0", str(path), probe(str(path)), 0.0, seconds, row=dict(row))


def played(film: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """(frames [n, h, w, 3] uint8 RGB, samples [m] float32, rate) of an MP4."""
    with av.open(io.BytesIO(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(film)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0) if frame.pts >= 0]
        return np.stack(frames), np.concatenate(blocks), stream.rate


def delay(heard: np.ndarray, wanted: np.ndarray) -> int:
    """Samples by which `heard` lags `wanted`, by cross-correlation."""
    size = min(len(heard), len(wanted))
    both = np.fft.irfft(np.fft.rfft(heard[:size], 2 * size) * np.conj(np.fft.rfft(wanted[:size], 2 * size)))
    at = int(np.argmax(both))
    return at if at < size else at - 2 * size


def test_it_plays_whole_in_what_browsers_know(head: Head) -> None:
    result = H264Preview().measure(clip_of(head.path, head.seconds))
    with av.open(io.BytesIO(result.files["mp4"])) as container:
        kinds = {stream.type: stream.codec_context.name for stream in container.streams}
    assert kinds == {"video": "h264", "audio": "aac"}
    frames, samples, rate = played(result.files["mp4"])
    assert len(frames) == round(head.seconds * FPS)
    assert rate == STORED_RATE and abs(len(samples) / rate - head.seconds) < 0.1
    assert np.abs(frames.astype(float) - head.frames[: len(frames)]).mean() < 6
    # the index comes before the pictures, so that a browser starts at once
    assert result.files["mp4"].find(b"moov") < result.files["mp4"].find(b"mdat")


@pytest.mark.parametrize("offset", (0, -7, 5))
def test_the_sound_is_moved_by_what_sync_measured(head: Head, tmp_path: Path, offset: int) -> None:
    late = np.roll(head.sound, -offset * STORED_RATE // FPS)  # audio late by k frames is at -k
    path = write_video(tmp_path / "moved.mp4", head.frames, late, STORED_RATE)
    row = {"sync_offset_frames": offset, "speech_share": 0.9}
    _, samples, _ = played(H264Preview().measure(clip_of(path, head.seconds, **row)).files["mp4"])
    assert abs(delay(samples, head.sound)) < STORED_RATE / FPS / 10


def test_where_nobody_speaks_nothing_is_moved() -> None:
    assert applied_offset(6, 0.05, 0.1) == 0
    assert applied_offset(6, 0.5, 0.1) == 6
    assert applied_offset(None, None, 0.1) == 0


def test_without_sound_it_is_silent(head: Head, tmp_path: Path) -> None:
    path = write_video(tmp_path / "mute.mp4", head.frames, None, STORED_RATE)
    result = H264Preview().measure(clip_of(path, head.seconds))
    frames, samples, _ = played(result.files["mp4"])
    assert len(frames) == round(head.seconds * FPS) and not samples.any()
    assert result.evidence is not None and not any(result.evidence["waveform"])


def test_the_strip_shows_the_clip_from_start_to_end(head: Head) -> None:
    image = cv2.imdecode(
        np.frombuffer(H264Preview().measure(clip_of(head.path, head.seconds)).files["jpg"], np.uint8), cv2.IMREAD_COLOR
    )
    assert image is not None and image.shape == (STRIP_HEIGHT, STRIP_FRAMES * STRIP_HEIGHT, 3)
    for part, shown in enumerate(np.split(image, STRIP_FRAMES, axis=1)):
        at = (2 * part + 1) * round(head.seconds * FPS) // (2 * STRIP_FRAMES)
        wanted = cv2.resize(head.frames[at][:, :, ::-1], (STRIP_HEIGHT, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)
        assert np.abs(shown.astype(float) - wanted).mean() < 6


def test_the_same_clip_gives_the_same_bytes(head: Head) -> None:
    first, second = (dict(H264Preview().measure(clip_of(head.path, 2.0)).files) for _ in range(2))
    assert first == second


@given(height=st.integers(2, 700), width=st.integers(2, 700), side=st.integers(32, 400))
def test_sides_are_even_never_grown_and_keep_the_aspect(height: int, width: int, side: int) -> None:
    found = shrunk(np.zeros((1, height, width, 3), np.uint8), side)
    high, wide = found.shape[1:3]
    assert high % 2 == wide % 2 == 0 and max(high, wide) <= max(side + 1, 2)
    assert high <= height + 1 and wide <= width + 1
    scale = min(1.0, side / max(height, width))
    assert abs(high - height * scale) <= 2 and abs(wide - width * scale) <= 2


def test_the_waveform_has_a_peak_a_frame() -> None:
    samples = np.zeros(3 * 882, np.float32)
    samples[100], samples[882 + 5], samples[-1] = 0.5, -1.0, 2.0
    assert waveform(samples, 3) == [50, 100, 100]
