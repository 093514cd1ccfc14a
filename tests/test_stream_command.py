"""`xstreamer stream` as a user runs it: the film, its figures, what ends it early, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import call, start
from streams_made import alike, astronaut, make_actor, play, sound, write_picture, write_sound

from inference.schedule import START, STOP, from_lines
from models.clock import STORED_RATE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """actor/, me.png and speech.wav, 2.5 s at 44.1 kHz."""
    folder = tmp_path_factory.mktemp("stream")
    make_actor(folder / "actor")
    write_picture(folder / "me.png", astronaut())
    write_sound(folder / "speech.wav", sound(2.5, 44_100), 44_100)
    return folder


def asked(place: Path, film: Path, *more: str | Path, steps: int = 3) -> list[str]:
    given = ["--checkpoint", place / "actor", "--portrait", place / "me.png", "-o", film, "--steps", steps]
    return ["stream", *map(str, given), "--devices", "cpu", "--quiet", *map(str, more)]


# -- films ---------------------------------------------------------------------------------------------------


def test_a_recording_becomes_a_film_as_long_with_its_own_sound(place: Path, tmp_path: Path) -> None:
    film = tmp_path / "out" / "f.mp4"
    done = call(*asked(place, film, "--speech", place / "speech.wav", "--json", "--record", tmp_path / "r.jsonl"))
    assert (done.code, done.err) == (0, "")
    found, figures = play(film), json.loads(done.out)
    assert found.frames.shape == (63, 64, 64, 3)  # 2.5 s, and what a frame begun needs
    assert np.allclose(found.times, np.arange(63) / 25, atol=1e-6)
    assert (found.rate, found.samples, found.began) == (44_100, 63 * 1764, 0.0)
    assert alike(found.sound, sound(2.5, 44_100)) > 0.97  # AAC hears less, at the very same time
    assert (figures["film"], figures["frames"], figures["chunks"]) == (str(film), 63, 8)
    assert figures["bytes"] == film.stat().st_size and figures["interrupted"] is False
    assert figures["skew_ms"] == figures["stalls"] == 0 and figures["rate"] == 44_100
    assert figures["first_frame_s"] > 0 and set(figures["realtime_of"]) >= {"thinker", "actor", "pictures"}
    with (tmp_path / "r.jsonl").open() as lines:
        plan, events = from_lines(lines)
    assert plan.steps == 3 and [event.chunk for event in events if event.what == START] == list(range(8))
    assert events[-1].what == STOP
    assert figures["passes"] == 8 + 3 - 1


def test_text_is_answered_for_as_long_as_was_asked(place: Path, tmp_path: Path) -> None:
    films = [tmp_path / f"{name}.mp4" for name in "ab"]
    for film in films:
        done = call(*asked(place, film, "--text", "Who are you?", "--seconds", "2.2", "--stride", "2", "--seed", "5"))
        assert (done.code, done.err) == (0, "")
        assert f"{film}: 2.20 s in" in done.out and "first frame after" in done.out and "0 stalls" in done.out
    found = play(films[0])
    assert len(found.frames) == 55 and found.rate == STORED_RATE and found.samples == 55 * 882
    assert np.abs(found.sound).max() > 0.01
    assert films[0].read_bytes() == films[1].read_bytes()  # the same words, noise and film for the same seed


def test_a_script_speaks_answers_and_waits(place: Path, tmp_path: Path) -> None:
    script = place / "script.txt"
    script.write_text("# a greeting, then silence\nspeak speech.wav\n\n  wait 0.5\n", encoding="utf-8-sig")
    done = call(*asked(place, tmp_path / "f.mp4", "--script", script, "--json"))
    assert (done.code, done.err) == (0, "")
    found = play(tmp_path / "f.mp4")
    assert len(found.frames) == 3 * 52
    assert json.loads(done.out)["segments"] == 4  # the last chunk, half of it shown, hears one more
    assert alike(found.sound[: 2 * 44_100], sound(2.0, 44_100)) > 0.97
    assert not np.abs(found.sound[round(2.7 * 44_100) :]).max() > 1e-3
    script.write_text("listen speech.wav\nspeak speech.wav\n")
    done = call(*asked(place, tmp_path / "g.mp4", "--script", script, "--seconds", "0.5", "--json"))
    assert done.code == 0 and json.loads(done.out)["rate"] == STORED_RATE  # where answers are heard


def test_silence_and_the_stride_that_this_machine_holds(place: Path, tmp_path: Path) -> None:
    done = call(*asked(place, tmp_path / "f.mp4", "--seconds", "0.6", "--stride", "auto", "--json"))
    assert done.code == 0 and done.err.startswith("xstreamer: stride ") and "real time (" in done.err
    found = play(tmp_path / "f.mp4")
    assert len(found.frames) == 15 and not found.sound.any()
    assert 1 <= json.loads(done.out)["stride"] <= 3


def test_the_thinker_in_a_process_of_its_own_gives_the_same_film(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference import cast

    here = call(*asked(place, tmp_path / "here.mp4", "--speech", place / "speech.wav", "--json"))
    made = cast.dialogue_of
    monkeypatch.setattr(cast, "dialogue_of", lambda *given, **more: made(*given, **{**more, "apart": True}))
    there = call(*asked(place, tmp_path / "there.mp4", "--speech", place / "speech.wav", "--json"))
    assert (here.code, there.code) == (0, 0), there.err
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()


# -- what ends it early --------------------------------------------------------------------------------------


def growing(film: Path, running: subprocess.Popen[str]) -> None:
    """Waits until there is some of the film."""
    while running.poll() is None and not (film.is_file() and film.stat().st_size > 20_000):
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_film_plays(place: Path, tmp_path: Path, how: signal.Signals) -> None:
    film = tmp_path / "f.mp4"
    running = start(*asked(place, film, "--seconds", "3600", steps=1))
    growing(film, running)
    running.send_signal(how)
    out, err = running.communicate()
    assert running.returncode == 130, err
    assert err.startswith("xstreamer: interrupted; ") and err.endswith(" s and plays\n") and err.count("\n") == 1
    found = play(film)
    seconds = float(err.split("holds ")[1].split(" s ")[0])
    assert len(found.frames) == round(25 * seconds) > 25 and found.samples == len(found.frames) * 882
    assert "s of work a second" in out


APART = """
import sys
from inference import cast
from pipelines import cli
made = cast.dialogue_of
cast.dialogue_of = lambda *given, **more: made(*given, **{**more, "apart": True})
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command with its Thinker in a process of its own, as on two GPUs."""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_shared() -> set[Path]:
    """Blocks of it; semaphores come and go with the pools of tests that run beside this one."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


@pytest.mark.parametrize("how", ["Ctrl-C", "its own death", "the Thinker's death"])
def test_with_two_processes_the_film_plays_and_none_is_left(place: Path, tmp_path: Path, how: str) -> None:
    film, shared = tmp_path / "f.mp4", memory_shared()
    command = [sys.executable, "-c", APART, *asked(place, film, "--seconds", "3600", steps=1)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    growing(film, running)
    (thinker,) = children(running.pid)
    if how == "the Thinker's death":
        os.kill(thinker, signal.SIGKILL)
    else:
        running.send_signal(signal.SIGKILL if how == "its own death" else signal.SIGINT)
    _, err = running.communicate()
    if how == "the Thinker's death":
        assert running.returncode == 1 and err.count("\n") == 1, err
        assert err.startswith(
            f"xstreamer: the Thinker's process (cpu, pid {thinker}) was killed by SIGKILL (exit code -9)"
        )
    elif how == "its own death":
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == 130 and err.startswith("xstreamer: interrupted; ") and err.count("\n") == 1, err
    end = time.monotonic() + 60
    while Path(f"/proc/{thinker}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{thinker}").exists()
    assert memory_shared() <= shared
    assert len(play(film).frames) >= 25


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_the_film_plays(place: Path, small_disk: Path) -> None:
    done = call(*asked(place, small_disk / "f.mp4", "--seconds", "3600", steps=1))
    assert done.code == 1
    assert "f.mp4 cannot be written any further (No space left on device)" in done.line()
    assert len(play(small_disk / "f.mp4").frames) >= 25


# -- what it refuses -----------------------------------------------------------------------------------------


def test_requests_that_make_no_sense_are_refused_before_anything_is_loaded(place: Path, tmp_path: Path) -> None:
    script = tmp_path / "s.txt"
    film = tmp_path / "f.mp4"
    for content, words in (
        ("sing a song\n", "line 1 of"),
        ("# nothing\n\n", "says nothing; write a line such as: say"),
        ("say hello\nwait long\n", "wait takes seconds up to 3600, not 'long'"),
        ("say\n", "'say'; write say, listen, speak or wait, and what"),
    ):
        script.write_text(content)
        done = call(*asked(place, film, "--script", script))
        assert done.code == 2 and words in done.line()
    script.write_bytes(b"\xff\xfe\x00")
    for more, words in (
        (["--script", script], "it is no UTF-8 text"),
        (["--script", tmp_path / "no.txt"], "cannot be read (No such file"),
        (["--text", " "], "--text is empty; give the avatar something to answer to"),
        (["--text", ""], "--text is empty"),
        ([], "nothing to say; give --text, --speech or --script, or --seconds of silence"),
        (["--seconds", "0"], "--seconds 0 must be from 0.04"),
        (["--seconds", "nan"], "--seconds nan must be"),
        (["--text", "a", "--stride", "fast"], "--stride 'fast': give a whole number, or auto"),
        (["--text", "a", "--stride", "4"], "stride 4 is more than the 3 steps"),
        (["--text", "a", "--stride", "0"], "stride must be a whole number from 1 on, not 0"),
        (["--speech", film], f"-o '{film}' would be written over '{film}'; name another file"),
        (["--text", "a", "--record", place / "actor" / ".." / "me.png"], "would be written over"),
        (["--text", "a", "--record", film], "would be written over"),
        (["--text", "a", "--seed", "-1"], "--seed must be 0 or more"),
        (["--text", "a", "--temperature", "-1"], "temperature must be 0 or more"),
        (["--text", "a", "--devices", "gpu"], "device 'gpu' must be auto, cpu, cuda or cuda:N"),
    ):
        done = call(*asked(place, film, *more))
        assert done.code == 2 and words in done.line(), more
    done = call(*asked(place, tmp_path / "f.avi", "--text", "a"))
    assert done.code == 2 and "name a file that ends in .mp4" in done.line()
    both = call(*asked(place, film, "--text", "a", "--speech", place / "speech.wav"))
    assert both.code == 2 and "not allowed with argument" in both.err
    assert not film.exists()


def test_portraits_speech_and_checkpoints_that_are_none_are_one_line(place: Path, tmp_path: Path) -> None:
    from skimage import data

    wall = write_picture(tmp_path / "wall.png", np.asarray(data.brick())[..., None].repeat(3, 2))
    pair = write_picture(tmp_path / "pair.png", np.concatenate([astronaut(), astronaut()[:, ::-1]], axis=1))
    other = make_actor(tmp_path / "other", thinker="bundled 0123456789abcdef")
    film = tmp_path / "f.mp4"
    for option, value, words in (
        ("--portrait", place / "speech.wav", "is no picture that can be read; give a JPEG, PNG or WebP file"),
        ("--portrait", wall, "shows no face; take one from the front, or --force the middle of it"),
        ("--portrait", pair, "shows 2 faces; cut out the one that is meant, or --force for the largest"),
        ("--checkpoint", other, "follows the Thinker 'bundled 0123456789abcdef', the one here is 'bundled "),
        ("--checkpoint", tmp_path, "actor.json is missing"),
        ("--speech", place / "me.png", "has no sound; give a recording of speech"),
    ):
        done = call(*asked(place, film, "--speech", place / "speech.wav", option, value))
        assert done.code == 1 and words in done.line(), (value, done.err)
    assert not film.exists()
    done = call(*asked(place, film, "--seconds", "0.3", "--portrait", pair, "--force"))
    assert done.code == 0 and len(play(film).frames) == 8
