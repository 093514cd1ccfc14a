"""Decoding: the right frame at the right time, the right sample beside it, whatever the container."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import click_times, clicks, number_of, numbered, write_movie

from curation.audio import blocks, read_audio
from curation.clip import Clip, SpanDecoder, crop_square
from curation.media import Limits, fitted, on_grid, open_media, probe
from curation.scenes import grid_index
from manifests.errors import SourceError
from models.clock import FPS


def clip_of(path: Path, start: float, end: float) -> Clip:
    return Clip("id", str(path), probe(str(path)), start, end)


def numbers(path: Path, start: float, end: float) -> list[int]:
    return [number_of(image) for image in clip_of(path, start, end).small]


# -- the grid ----------------------------------------------------------------------------------------------

stamps = st.lists(st.floats(0.001, 0.4), max_size=60).map(lambda gaps: [0.0, *np.cumsum(gaps)])


@given(stamps, st.integers(0, 40), st.integers(1, 60))
def test_each_grid_frame_is_the_last_shown_before_its_middle(times: list[float], first: int, count: int) -> None:
    found = list(on_grid(((t, t) for t in times), first, count))
    assert [index for index, _ in found] == list(range(first, first + len(found)))
    for index, shown in found:
        assert shown == max([t for t in times if t * FPS <= index + 0.5], default=times[0])
    whole = grid_index(times[-1]) + 1  # grid frames until the last picture has appeared
    assert len(found) == max(0, min(first + count, max(whole, 1)) - first) or first >= whole


@given(stamps)
def test_a_scene_begins_at_the_first_grid_frame_that_shows_it(times: list[float]) -> None:
    shown = dict(on_grid(((t, t) for t in times), 0, 10_000))
    for time in times:
        index = grid_index(time)
        assert shown.get(index, time) >= time
        assert index == 0 or shown.get(index - 1, -1.0) < time


@pytest.mark.parametrize("fps", [15, 25, 30, 50])
def test_any_rate_lands_on_the_grid(tmp_path: Path, fps: int) -> None:
    path = write_movie(tmp_path / "a.mp4", (numbered(i) for i in range(fps * 3)), fps=fps)
    found = numbers(path, 0.0, 3.0)
    assert len(found) >= 3 * FPS - 1
    for index, number in enumerate(found):
        assert abs(number / fps - index / FPS) <= 1 / fps + 1e-9


def test_a_variable_rate_follows_the_stamps(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 1.2, 1.24, 1.28]
    path = write_movie(tmp_path / "v.mp4", (numbered(i + 1) for i in range(len(times))), times=times)
    for index, number in enumerate(numbers(path, 0.0, 1.3)):
        assert number - 1 == max(i for i, t in enumerate(times) if t * FPS <= index + 0.5)


def test_going_on_and_seeking_give_the_same_frames(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", (numbered(i) for i in range(250)), gop=40)
    info = probe(str(path))
    spans = [(0.0, 0.8), (0.8, 1.6), (2.0, 2.4), (8.0, 8.8)]
    with SpanDecoder(str(path), info) as decoder:
        for start, end in spans:
            along = decoder(Clip("id", str(path), info, start, end)).small
            assert np.array_equal(along, clip_of(path, start, end).small)
            assert [number_of(i) for i in along] == list(range(round(start * 25), round(end * 25)))


@pytest.mark.parametrize(
    ("name", "codec", "audio_codec", "pixels"),
    [
        ("a.mkv", "libx265", "flac", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "libopus", "yuv420p"),
        ("a.avi", "mjpeg", "libmp3lame", "yuvj420p"),
        ("a.ts", "libx264", "aac", "yuv420p"),
        ("a.mov", "libx264", "aac", "yuv420p"),
    ],
)
def test_any_container_gives_picture_and_sound_in_step(
    tmp_path: Path, name: str, codec: str, audio_codec: str, pixels: str
) -> None:
    rate = 48_000 if audio_codec == "libopus" else 44_100
    frames = [numbered(i, (128, 192)) for i in range(100)]
    path = write_movie(
        tmp_path / name, frames, audio=clicks(4, rate), rate=rate, codec=codec, audio_codec=audio_codec, pixels=pixels
    )
    clip = clip_of(path, 1.0, 3.0)
    slack = 1 if name.endswith("avi") else 0  # the AVI writer leaves a gap behind its first frame
    shown = [number_of(image) for image in clip.small]
    assert [number + slack for number in shown] == list(range(25, 75))
    sound = clip.audio(16_000)
    found = [t + sound.start_s for t in click_times(sound.samples, 16_000)]
    assert len(found) >= 3
    late = 0.03 if audio_codec == "libmp3lame" else 0.004  # AVI keeps no note of the MP3 encoder's delay
    assert all(min(t % 0.5, 0.5 - t % 0.5) <= late for t in found)


# -- names, boxes, shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space.mp4", "dots.in.it.mp4", "quo'te\".mp4", "new\nline.mp4", "grüße-日本.mp4", "a:b.mp4", "100%#?.mp4", "-dash.mp4"])  # fmt: skip
def test_names_are_only_names(tmp_path: Path, name: str) -> None:
    path = write_movie(tmp_path / name, (numbered(i) for i in range(10)))
    assert numbers(path, 0.0, 0.4) == list(range(10))
    os.chdir(tmp_path)
    assert probe(name).width == 96


def test_odd_sizes(tmp_path: Path) -> None:
    frames = (numbered(i, (63, 97)) for i in range(5))
    path = write_movie(tmp_path / "o.mkv", frames, codec="ffv1", pixels="yuv444p")
    info = probe(str(path))
    assert (info.width, info.height) == (97, 63)
    assert numbers(path, 0.0, 0.2) == list(range(5))


def test_pixels_that_are_not_square_are_shown_as_they_should(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "o.mp4", (numbered(i) for i in range(5)), aspect=Fraction(2))
    info = probe(str(path))
    assert (info.width, info.height, info.pixel_aspect) == (192, 64, 2.0)
    assert clip_of(path, 0.0, 0.2).small.shape == (5, 64, 192, 3)
    assert numbers(path, 0.0, 0.2) == list(range(5))


@given(st.integers(2, 9000), st.integers(2, 9000), st.integers(16, 2000))
def test_fitting_keeps_the_shape_and_never_grows(width: int, height: int, side: int) -> None:
    w, h = fitted(width, height, side)
    assert max(w, h) <= max(side, 2) and w <= width and h <= height
    if min(w, h) > 20:
        assert abs(w / h - width / height) / (width / height) < 0.06


def test_a_box_cuts_the_picture(tmp_path: Path) -> None:
    frames = [np.concatenate([numbered(i, (64, 96)), np.zeros((64, 96, 3), np.uint8)], axis=1) for i in range(10)]
    path = write_movie(tmp_path / "b.mp4", frames)
    for box in ((0, 0, 96, 64), (0.0, 0.0, 0.5, 1.0)):
        info = probe(str(path)).within(box)
        assert (info.width, info.height) == (96, 64)
        assert [number_of(i) for i in Clip("id", str(path), info, 0.0, 0.4).small] == list(range(10))
    with pytest.raises(SourceError, match="leaves nothing"):
        probe(str(path)).within((190, 0, 400, 64))


@given(st.integers(-30, 90), st.integers(-30, 90), st.integers(2, 120))
def test_a_square_reaches_outside_by_repeating_the_edge(x: int, y: int, side: int) -> None:
    image = np.full((50, 80, 3), 7, np.uint8)
    if x < 80 and y < 50 and x + side > 0 and y + side > 0:
        assert (crop_square(image, x, y, side, 32) == 7).all()


def test_a_portrait_of_a_wide_shot_keeps_the_detail_of_the_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    detail = rng.integers(0, 255, (720, 1280, 1), np.uint8).repeat(3, axis=2)
    path = write_movie(tmp_path / "w.mkv", [detail] * 5, codec="ffv1", pixels="yuv444p")
    clip = clip_of(path, 0.0, 0.2)
    assert clip.small.shape[1:3] == (360, 640)
    sharp = clip.portrait((512, 200, 256), 256)
    assert np.abs(sharp[2].astype(int) - detail[200:456, 512:768]).mean() < 4
    assert sharp.shape == (5, 256, 256, 3)


# -- sound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.0, 0.12, 0.5])
def test_sound_that_starts_late_stays_where_it_belongs(tmp_path: Path, late: float) -> None:
    rate = 16_000
    path = write_movie(
        tmp_path / "l.mkv",
        (numbered(i) for i in range(75)),
        audio=clicks(3, rate),
        rate=rate,
        audio_start=late,
        audio_codec="flac",
    )
    info = probe(str(path))
    sound = read_audio(str(path), info, 0.0, 3.0, rate)
    assert abs(sound.start_s - late) < 0.002
    assert all(abs((t + sound.start_s - late) % 0.5) < 0.003 for t in click_times(sound.samples, rate))


@pytest.mark.parametrize("codec", ["flac", "aac"])
def test_a_span_is_what_the_whole_has_there_to_the_sample(tmp_path: Path, codec: str) -> None:
    rate = 22_050
    noise = np.random.default_rng(1).normal(0, 0.1, rate * 6).astype(np.float32)
    path = write_movie(tmp_path / "n.mp4", (numbered(i) for i in range(150)), audio=noise, rate=rate, audio_codec=codec)
    info = probe(str(path))
    whole = read_audio(str(path), info, 0.0, 6.0, rate)
    for start, end in [(0.2, 1.0), (2.52, 4.04), (5.0, 5.96)]:
        part = read_audio(str(path), info, start, end, rate)
        assert len(part.samples) == round(end * rate) - round(start * rate)
        expected = whole.samples[round(start * rate) : round(end * rate)]
        assert np.allclose(part.samples, expected, atol=1e-6)
        at16 = read_audio(str(path), info, start, end, 16_000)
        assert len(at16.samples) == round(end * 16_000) - round(start * 16_000)


def test_outside_the_file_there_is_no_sound_and_it_is_not_made_up(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "n.mkv", (numbered(i) for i in range(50)), audio=clicks(2), audio_codec="flac")
    info = probe(str(path))
    before = read_audio(str(path), info, -0.5, 1.0, 16_000)
    assert (before.start_s, len(before.samples)) == (0.0, 16_000)
    after = read_audio(str(path), info, 1.5, 4.0, 16_000)
    assert abs(after.seconds - 0.5) < 0.07
    assert len(read_audio(str(path), info, 5.0, 6.0, 16_000).samples) == 0


def test_no_audio_stream_is_empty(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "m.mp4", (numbered(i) for i in range(10)))
    info = probe(str(path))
    assert info.audio_codec is None
    assert len(read_audio(str(path), info, 0.0, 0.4, 16_000).samples) == 0
    assert list(blocks(str(path), info, 0.0, 16_000)) == []


# -- bad input ---------------------------------------------------------------------------------------------


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    whole = write_movie(tmp_path / "ok.mp4", (numbered(i) for i in range(50))).read_bytes()
    (tmp_path / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("zero.mp4", "text.mp4", "torn.mp4", "absent.mp4"):
        with pytest.raises(SourceError) as caught:
            probe(str(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_sound_alone_is_no_source(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "s.flac", clicks(1), 16_000)
    with pytest.raises(SourceError, match="no video stream"):
        probe(str(tmp_path / "s.flac"))


@pytest.mark.parametrize(
    ("limits", "says"),
    [(Limits(max_pixels=100), "pixels"), (Limits(max_fps=20), "fps"), (Limits(max_duration_s=0.1), "cut it first"), (Limits(max_streams=0), "streams")],
)  # fmt: skip
def test_limits_name_what_they_limit(tmp_path: Path, limits: Limits, says: str) -> None:
    path = write_movie(tmp_path / "a.mp4", (numbered(i) for i in range(10)))
    with pytest.raises(SourceError, match=says):
        probe(str(path), limits)


def test_containers_are_closed_also_after_an_error(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", (numbered(i) for i in range(10)))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(RuntimeError), open_media(str(path)):
            raise RuntimeError
        probe(str(path))
        _ = clip_of(path, 0.0, 0.2).small
    assert len(os.listdir("/proc/self/fd")) == before
