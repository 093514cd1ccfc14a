"""An avatar in Python: its documentation runs, and its verbs do what they say."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams_made import alike, astronaut, make_actor, play, sound, write_picture, write_sound

from inference.avatar import Avatar
from inference.media import Media
from manifests.errors import ModelError, SourceError, UsageError
from models.clock import STORED_RATE

DOCS = Path(__file__).resolve().parent.parent / "docs" / "streaming.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """me.jpg, actor/ and greeting.wav."""
    folder = tmp_path_factory.mktemp("avatar")
    make_actor(folder / "actor")
    write_picture(folder / "me.jpg", astronaut())
    write_sound(folder / "greeting.wav", sound(1.0))
    return folder


@pytest.fixture
def avatar(place: Path) -> Iterator[Avatar]:
    with Avatar(astronaut(), checkpoint=place / "actor", steps=3, devices="cpu") as made:
        yield made


def apart(call: Callable[[], Any]) -> Any:
    """In a thread of its own: a browser that other tests drive leaves a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def joined(chunks: list[Media]) -> np.ndarray:
    return np.concatenate([chunk.sound for chunk in chunks])


def test_the_example_in_the_documentation_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(code) == 1
    monkeypatch.chdir(place)
    apart(lambda: exec(compile(code[0], str(DOCS), "exec"), {}))
    assert float(capsys.readouterr().out.split()[0]) > 0
    played = play(place / "greeting.mp4")
    assert len(played.frames) == 4 * 8 and played.rate == STORED_RATE  # whole chunks: 1.28 s
    assert alike(played.sound, sound(1.0)) > 0.95


def test_it_says_a_recording_as_it_is_and_goes_on_in_silence(avatar: Avatar) -> None:
    given = sound(0.8)
    avatar.speak((given, STORED_RATE))
    spoken = list(avatar.chunks())
    assert avatar.idle and [chunk.index for chunk in spoken] == [0, 1, 2]
    heard = joined(spoken)
    assert np.array_equal(heard[: len(given)], given) and not heard[len(given) :].any()
    assert list(avatar.chunks()) == []
    later = list(avatar.chunks(seconds=0.7))
    assert [chunk.index for chunk in later] == [3, 4, 5] and not joined(later).any()
    moving = np.concatenate([chunk.frames for chunk in later]).astype(int)
    assert np.abs(np.diff(moving, axis=0)).mean() > 0.01  # while nobody speaks it keeps moving
    assert avatar.figures["chunks"] == 6 and avatar.figures["skew_ms"] == 0


def test_it_answers_text_and_speech_and_another_rate(avatar: Avatar) -> None:
    avatar.say("Hello")
    assert np.abs(joined(list(avatar.chunks(seconds=2.0)))).max() > 0.01
    avatar.interrupt()
    avatar.listen((sound(1.0, 16_000), 16_000))
    assert not avatar.idle
    assert np.abs(joined(list(avatar.chunks(seconds=2.0)))).max() > 0.01


def test_an_interruption_from_another_thread_counts_from_the_next_chunk_on(avatar: Avatar) -> None:
    avatar.speak((0.5 * np.ones(5 * STORED_RATE, np.float32), STORED_RATE))
    before = list(avatar.chunks(seconds=1.0))
    thread = threading.Thread(target=avatar.interrupt)
    thread.start()
    thread.join()
    after = list(avatar.chunks(seconds=1.0))
    assert [chunk.index for chunk in before + after] == list(range(8))  # the clock goes on, nothing is shown twice
    assert (joined(before) == 0.5).all()
    assert not joined(after)[200:].any() and avatar.idle
    seam = np.abs(after[0].frames[0].astype(int) - before[-1].frames[-1]).mean()
    inside = np.abs(np.diff(np.concatenate([each.frames for each in before]).astype(int), axis=0)).mean((1, 2, 3))
    assert seam <= 2 * inside[7::8].max()


def test_async_iteration_does_not_block_the_loop(avatar: Avatar) -> None:
    async def call() -> tuple[list[int], int]:
        seen, ticks = [], 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async for chunk in avatar:
            seen.append(chunk.index)
            if len(seen) == 4:
                break
        ticking.cancel()
        return seen, ticks

    seen, ticks = apart(lambda: asyncio.run(call()))
    assert seen == [0, 1, 2, 3] and ticks > 10


def test_a_chunk_that_nobody_waited_for_any_more_comes_next(avatar: Avatar) -> None:
    """Whoever waits for one may be cancelled while it is made."""
    making, go_on = threading.Event(), threading.Event()
    step = avatar.runner._work

    def slow() -> bool:
        making.set()
        go_on.wait(30)
        return step()

    async def call() -> list[int]:
        stream = aiter(avatar)
        first = (await anext(stream)).index
        avatar.runner._work = slow  # type: ignore[method-assign]
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(making.wait, 30)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        go_on.set()
        seen = [first]
        async for chunk in avatar:
            seen.append(chunk.index)
            if len(seen) == 4:
                break
        return seen

    assert apart(lambda: asyncio.run(call())) == [0, 1, 2, 3]


def test_a_question_that_is_refused_ends_nothing(avatar: Avatar) -> None:
    assert len(list(avatar.chunks(seconds=0.3))) == 1
    avatar.say("why " * 8000)
    with pytest.raises(UsageError, match="ask a shorter one"):
        list(avatar.chunks())
    given = sound(0.3)
    avatar.speak((given, STORED_RATE))
    later = list(avatar.chunks())
    assert later[0].index == 1 and np.abs(joined(later)).max() > 0.01


def test_what_it_ended_with_comes_again(avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(avatar.chunks(seconds=0.3))) == 1
    monkeypatch.setattr(avatar.runner.engine, "advance", lambda: (_ for _ in ()).throw(ModelError("it broke")))
    for _ in range(2):
        with pytest.raises(ModelError, match="it broke"):
            list(avatar.chunks(seconds=1.0))


def test_what_is_no_sound_and_no_portrait_is_refused(avatar: Avatar, place: Path) -> None:
    good = sound(0.1)
    for samples, rate, words in (
        (np.stack([good, good], 1), STORED_RATE, r"one channel from -1 to 1, not float32 \[2205, 2\]"),
        ((good * 32767).astype(np.int16), STORED_RATE, "not int16"),
        (np.where(good == good.max(), np.nan, good), STORED_RATE, "samples that are no numbers"),
        (good, 0, "1000 to 1000000 samples a second, not 0"),
        (good, 22050.5, "not 22050.5"),
    ):
        with pytest.raises(UsageError, match=words):
            avatar.speak((samples, rate))  # type: ignore[arg-type]
    assert avatar.idle
    for picture in (astronaut()[..., 0], astronaut() / 255, astronaut()[:0]):
        with pytest.raises(UsageError, match=r"a portrait is a file, or \[h, w, 3\] uint8 RGB, not "):
            Avatar(picture, checkpoint=place / "actor", devices="cpu")
    with pytest.raises(UsageError, match="stride must be a whole number from 1 on, not 0"):
        Avatar(astronaut(), checkpoint=place / "actor", devices="cpu", stride=0)


def test_a_closed_one_gives_nothing_more(place: Path) -> None:
    avatar = Avatar(place / "me.jpg", checkpoint=place / "actor", steps=2, devices="cpu")
    assert len(list(avatar.chunks(seconds=0.3))) == 1
    avatar.close()
    told: list[Callable[[], object]] = [
        lambda: avatar.say("Hello"),
        lambda: avatar.speak((np.zeros(16_000, np.float32), 16_000)),
        lambda: list(avatar.chunks(seconds=1.0)),
        lambda: avatar.film(place / "closed.mp4", 1.0),
    ]
    for verb in told:
        with pytest.raises(UsageError, match="avatar is closed"):
            verb()
    assert not (place / "closed.mp4").exists()
    avatar.close()


def test_broken_off_in_the_middle_it_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook: the round that ran is half done, so nothing may go on from it in silence."""
    with Avatar(place / "me.jpg", checkpoint=place / "actor", steps=2, devices="cpu") as avatar:

        def pressed() -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(avatar.runner, "_work", pressed)
        with pytest.raises(KeyboardInterrupt):
            list(avatar.chunks(0.3))
        with pytest.raises(UsageError, match="broken off"):
            avatar.film(place / "after.mp4", 0.3)


@pytest.mark.parametrize("seconds", [-1, 0, 0.001, math.inf, math.nan])
def test_lengths_that_cannot_be(avatar: Avatar, seconds: float) -> None:
    with pytest.raises(UsageError, match="seconds cannot be"):
        avatar.chunks(seconds)


def test_nothing_is_refused(avatar: Avatar, tmp_path: Path) -> None:
    if avatar.idle:
        with pytest.raises(UsageError, match="told nothing"):
            avatar.film(tmp_path / "nothing.mp4")
        assert not (tmp_path / "nothing.mp4").exists()
    with pytest.raises(UsageError, match="text is empty"):
        avatar.say(" \n")
    with pytest.raises(UsageError, match="speech is empty"):
        avatar.speak((np.empty(0, np.float32), 16_000))
    with pytest.raises(SourceError, match=r"no\.wav' cannot be read"):
        avatar.listen(tmp_path / "no.wav")
    assert avatar.idle or not avatar.runner._told
