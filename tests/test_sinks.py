"""Where a stream goes: films that play while they grow and whatever ends them, playback whose sound is the clock."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from streams_made import alike, play

from inference.film import WHOLE, Film, flags
from inference.media import RATES, Media, frame_at, whole_rate
from inference.sinks import Callback, Playback
from manifests.errors import DatasetError, UsageError

HOURS_10 = 10 * 3600 * 25 // 8
"""Chunks of ten hours."""


def media(index: int, rate: int = 22_050, frames: int = 8, size: int = 64, noise: bool = False) -> Media:
    """Brightness and pitch tell which chunk it is."""
    rows = np.arange(size)[:, None] + 4 * index
    pixels = np.broadcast_to(rows[None, :, :, None], (frames, size, size, 3)) % 256
    if noise:
        pixels = np.random.default_rng(index).integers(0, 256, pixels.shape)
    times = (np.arange(frames * rate // 25) + index * 8 * rate // 25) / rate
    tone = 0.3 * np.sin(2 * np.pi * 300 * times) * (1 + np.sin(2 * np.pi * times)) / 2
    return Media(index, np.ascontiguousarray(pixels.astype(np.uint8)), tone.astype(np.float32), rate)


def sound_of(chunks: int, rate: int = 22_050) -> np.ndarray:
    return np.concatenate([media(index, rate).sound for index in range(chunks)])


# -- the clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_frames_carry_the_time_of_the_sound_for_ten_hours(rate: int) -> None:
    pixels = np.zeros((8, 1, 1, 3), np.uint8)
    heard = np.zeros(8 * rate // 25, np.float32)
    for index in (0, 1, 12, 13, HOURS_10 - 1):
        chunk = Media(index, pixels, heard, rate)
        assert [chunk.at(i) for i in range(8)] == [Fraction(8 * index + i, 25) for i in range(8)]
        samples = index * len(heard) + np.arange(8) * rate // 25
        assert [frame_at(int(sample), rate) for sample in samples] == list(range(8 * index, 8 * index + 8))


def test_picture_and_sound_of_a_chunk_are_equally_long() -> None:
    with pytest.raises(ValueError, match="8 frames and 7055 samples"):
        Media(0, np.zeros((8, 2, 2, 3), np.uint8), np.zeros(7055, np.float32), 22_050)


def test_rates_that_films_can_have() -> None:
    assert [whole_rate(rate) for rate in (22_050, 44_100, 7_000, 11_000, 37_800, 192_000)] == [
        22_050, 44_100, 8_000, 11_025, 44_100, 96_000,
    ]  # fmt: skip


# -- playback ------------------------------------------------------------------------------------------------


def test_picture_and_sound_stay_together_for_ten_hours_of_a_device_with_a_clock_of_its_own() -> None:
    """The device is 200 ppm fast, its callbacks and the screen's come when they like: the frame that is asked for is
    that of the sample that is heard. A screen that went by the wall clock would be 7 s off."""
    rate, dice = 8_000, np.random.default_rng(0)
    playback, pixels = Playback(rate), np.zeros((8, 1, 1, 3), np.uint8)
    silence = np.zeros(8 * rate // 25, np.float32)
    index, wall, worst, drift = 0, 0.0, 0.0, 0.0
    while index < HOURS_10:
        end = min(playback.shown + 20, HOURS_10)  # 6 s ahead
        for number in range(index, end):
            numbered = pixels + np.arange(8, dtype=np.uint8)[:, None, None, None] + np.uint8(number % 31 * 8)
            playback.put(Media(number, numbered, silence, rate))
        index = max(index, end)
        count = int(dice.integers(1, 2 * rate))
        playback.pull(count)
        wall += count / (rate * 1.0002)
        shown = playback.picture()
        assert shown is not None
        frame = int(shown[0, 0, 0])
        heard = playback.heard / rate
        near = round((heard * 25 - frame) / 248) * 248 + frame  # numbers come again every 248 frames
        middle = (near + 0.5) / 25
        worst, drift = max(worst, abs(middle - heard)), abs(wall - heard)
    assert worst <= 0.5 / 25 + 1e-9 and playback.silent == playback.stalls == 0
    assert drift > 7 > 0.5 / 25


def test_what_was_not_played_can_be_dropped() -> None:
    playback = Playback(22_050)
    assert playback.shown == -1 and playback.picture() is None
    for index in range(4):
        playback.put(media(index))
    assert playback.shown == -1
    playback.pull(7056 + 1)
    assert playback.shown == 1  # one sample of it has been heard
    assert playback.drop() == 1
    rest = playback.pull(2 * 7056)
    assert np.array_equal(rest[:7055], media(1).sound[1:]) and not rest[7055:].any()
    assert (playback.shown, playback.stalls, playback.silent) == (1, 1, 7057)
    last = playback.picture()
    assert last is not None and np.array_equal(last, media(1).frames[-1])  # it stays
    playback.put(media(2))
    assert np.array_equal(playback.pull(7056), media(2).sound) and playback.heard == 3 * 7056


def test_silence_in_between_takes_no_time_from_the_stream() -> None:
    playback, parts = Playback(22_050), []
    for index in range(3):
        parts.append(playback.pull(500))
        playback.put(media(index))
        parts += [playback.pull(5000), playback.pull(5000)]
    heard = np.concatenate(parts)
    assert np.array_equal(heard[heard != 0], sound_of(3)[sound_of(3) != 0])
    assert playback.stalls == 3  # the first half second came before anything was due
    playback.close()
    before = playback.stalls
    playback.pull(100)
    assert playback.stalls == before  # after the end silence is no stall


def test_the_rate_is_the_devices() -> None:
    with pytest.raises(ValueError, match="8000 Hz, but 22050"):
        Playback(22_050).put(media(0, 8_000))


def test_a_function_is_a_sink() -> None:
    taken: list[int] = []
    sink = Callback(lambda each: taken.append(each.index))
    for index in range(3):
        sink.put(media(index))
        assert sink.shown == index
    sink.close()
    assert taken == [0, 1, 2]


# -- films ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [22_050, 48_000, 16_000])
def test_a_film_has_every_frame_and_sample_in_time(tmp_path: Path, rate: int) -> None:
    film = Film(tmp_path / "made" / "f.mp4")
    for index in range(9):
        film.put(media(index, rate))
    film.put(media(9, rate, frames=3))
    film.close()
    film.close()
    found = play(film.path)
    assert len(found.frames) == 75 == film.frames and film.seconds == 3.0
    assert np.allclose(found.times, np.arange(75) / 25, atol=1e-6)
    primed = 0 if WHOLE in flags(av.library_versions["libavformat"]) else 1024  # an index of fragments counts them
    assert (found.samples, found.rate, found.began) == (3 * rate + primed, rate, 0.0)
    wanted = np.concatenate([sound_of(9, rate), media(9, rate, frames=3).sound])
    assert alike(found.sound[1024 : 3 * rate], wanted[1024:]) > 0.999  # in phase: in time to the sample
    wrong = [alike(np.roll(found.sound, lag)[2048 : 3 * rate - 2048], wanted[2048:-2048]) for lag in (-20, 20)]
    assert max(wrong) < 0.99
    for at in (0, 40, 74):
        seen = found.frames[at].astype(int)[..., 0]
        rows = media(at // 8).frames[0].astype(int)[..., 0]
        assert np.abs(seen - rows).mean() < 6


def test_a_film_plays_while_it_grows(tmp_path: Path) -> None:
    film = Film(tmp_path / "f.mp4")
    seen = []
    for index in range(16):
        film.put(media(index))
        if index % 4 == 3:
            found = play(film.path)
            seen.append(len(found.frames))
            assert np.allclose(found.times, np.arange(len(found.frames)) / 25, atol=1e-6)
            assert alike(found.sound[1024:], sound_of(16)[1024:]) > 0.999
    film.close()
    assert all(index * 32 - later <= 50 for index, later in enumerate(seen, 1)), seen  # two seconds at most
    assert len(play(film.path).frames) == 128


def test_a_film_of_an_older_ffmpeg_plays_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """7.1 and 8.0 made files that no player reads where they were to make ordinary ones of fragments with a late index."""
    assert WHOLE in flags((62, 12, 102)) and not any(WHOLE in flags(old) for old in ((61, 7, 100), (62, 3, 100)))
    monkeypatch.setattr("inference.film.WHOLE_SINCE", (1 << 30,))
    film = Film(tmp_path / "f.mp4")
    for index in range(16):
        film.put(media(index))
    film.close()
    assert b"moof" in film.path.read_bytes()
    found = play(film.path)
    assert len(found.frames) == 128 and np.allclose(found.times, np.arange(128) / 25, atol=1e-6)
    assert alike(found.sound[1024:], sound_of(16)[1024:]) > 0.999


def test_the_old_film_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "f.mp4"
    path.write_bytes(b"old")
    film = Film(path)
    film.close()
    assert path.read_bytes() == b"old"
    with path.open("rb") as playing:
        film.put(media(0))
        film.close()
        assert playing.read() == b"old"  # who plays it goes on
    assert len(play(path).frames) == 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_full_disk_the_film_so_far_plays(small_disk: Path) -> None:
    film, put = Film(small_disk / "f.mp4"), 0
    with pytest.raises(DatasetError, match=r"f\.mp4 cannot be written any further \(No space left .*free some space"):
        for index in range(500):
            film.put(media(index, noise=True, size=96))
            put += 8
    film.close()  # has been told
    found = play(film.path)
    assert 25 <= len(found.frames) <= put
    assert np.allclose(found.times, np.arange(len(found.frames)) / 25, atol=1e-6)
    assert alike(found.sound[1024:], sound_of(500)[1024:]) > 0.99


def test_a_disk_that_fills_at_the_very_end_is_told(small_disk: Path) -> None:
    film = Film(small_disk / "f.mp4")
    for index in range(8):
        film.put(media(index))
    rest = os.statvfs(small_disk)
    (small_disk / "other").write_bytes(bytes(rest.f_bavail * rest.f_bsize))
    with pytest.raises(DatasetError, match="cannot be written any further"):
        for index in range(8, 400):
            film.put(media(index, noise=True))
        film.close()
    film.close()
    assert len(play(film.path).frames) >= 25


def test_names_that_no_film_can_have(tmp_path: Path) -> None:
    for name in ("f.avi", "f", ""):
        with pytest.raises(UsageError, match=r"name a file that ends in \.mp4"):
            Film(tmp_path / name)
    (tmp_path / "d.mp4").mkdir()
    with pytest.raises(UsageError, match="no name for a film"):
        Film(tmp_path / "d.mp4")
    (tmp_path / "file").write_bytes(b"")
    film = Film(tmp_path / "file" / "f.mp4")
    with pytest.raises(DatasetError, match=r"f\.mp4 cannot be written \((File exists|Not a directory)\)"):
        film.put(media(0))
    film.close()
