"""One stream from end to end: what is told, when it ends, interruptions, and the figures. The Thinker is the bundled
one, the Actor small."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from streams_made import alike, astronaut, make_actor, sound, write_sound

from curation.film import Coding, write_film
from inference.cast import Cast, at_rate, dialogue_of, latent_of, load_cast, paced, read_speech, recorded, runner_of
from inference.engine import Engine
from inference.figures import PARTS, told
from inference.media import Media
from inference.pictures import Frames
from inference.replay import Replay
from inference.runner import Runner
from inference.sampling import Sampling
from inference.schedule import DROP, LATE, START, Event, Plan
from inference.segments import Segment
from inference.sinks import Callback, Playback
from manifests.errors import ModelError, SourceError, UsageError
from models.actor_weights import read_facts
from models.clock import STORED_RATE, samples_of
from models.diffusion import rounds
from models.speech_codec import digits

THREE = Plan(3)


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_actor(tmp_path_factory.mktemp("actor"))


@pytest.fixture(scope="module")
def cast(actor: Path) -> Cast:
    return load_cast(actor, "cpu")


@pytest.fixture(scope="module")
def latent(cast: Cast) -> np.ndarray:
    return latent_of(cast, astronaut())


def runner(cast: Cast, latent: np.ndarray, plan: Plan = THREE, longest: int = 2, **more: Any) -> Runner:
    return runner_of(cast, latent, dialogue_of(cast, longest=longest), plan, **more)


def speak(run: Runner, cast: Cast, seconds: float, rate: int = STORED_RATE) -> np.ndarray:
    recording = recorded(cast.tokenizer, sound(seconds, rate), rate)
    run.speak(recording.codes, recording.samples)
    return recording.samples


def heard(chunks: list[Media]) -> np.ndarray:
    return np.concatenate([chunk.sound for chunk in chunks])


def seen(chunks: list[Media]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


class Noted:
    """A dialogue, and the segments that it gave."""

    def __init__(self, talk: Any) -> None:
        self._talk, self.given = talk, list[Segment]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._talk, name)

    def step(self) -> Segment | None:
        segment: Segment | None = self._talk.step()
        self.given += [] if segment is None else [segment]
        return segment


# -- what is shown -------------------------------------------------------------------------------------------


def test_a_recording_is_heard_untouched_and_the_film_is_as_long(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent, rate=16_000)
    given = speak(run, cast, 2.5, 16_000)
    chunks = list(run.chunks(frames=-(-len(given) * 25 // 16_000)))
    assert len(seen(chunks)) == 63 and seen(chunks).shape[1:] == (64, 64, 3)
    found = heard(chunks)
    assert np.array_equal(found[: len(given)], given) and not found[len(given) :].any()
    assert len(found) == 63 * 640
    assert [chunk.index for chunk in chunks] == list(range(8))
    assert run.engine.passes <= rounds(8, 3, 1) + 1  # no state was late, nothing more was denoised


def test_the_pictures_are_the_engines_own(cast: Cast, latent: np.ndarray) -> None:
    """The same segments, heard by an engine without a runner around it, and decoded as a whole."""
    run = runner(cast, latent, Plan(3, 2))
    speak(run, cast, 2.0)
    chunks = list(run.chunks())
    talk = dialogue_of(cast, longest=2)
    talk.speak(cast.tokenizer.encode(sound(2.0), STORED_RATE))
    engine = Engine(cast.actor, torch.from_numpy(latent.astype(np.float32)), Plan(3, 2))
    made: list[np.ndarray] = []
    while len(made) < len(chunks):
        if engine.late and (segment := talk.step()):
            engine.hear(segment)
        if not engine.late:
            _, chunk = engine.advance()
            if chunk is not None:
                made.append(chunk.latents.numpy())
                engine.show(chunk.index)
    wanted = cast.video.decode(np.stack([latent, *made]))[1:]
    assert np.array_equal(seen(chunks), wanted[: len(seen(chunks))])


def test_the_same_things_told_give_the_same_stream(cast: Cast, latent: np.ndarray) -> None:
    streams = []
    for seed in (0, 0, 1):
        talk = dialogue_of(cast, sampling=Sampling(2.0, 1.0), seed=seed, longest=1)
        run = runner_of(cast, latent, talk, Plan(3, seed=seed))
        run.ask("Who are you?")
        streams.append(list(run.chunks()))
    first, again, other = ((seen(each), heard(each)) for each in streams)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_an_answer_is_shown_to_its_end_and_no_further(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent, longest=1)
    run.ask("Who are you?")
    chunks = list(run.chunks())
    assert len(seen(chunks)) == 52  # 26 tokens, though chunks end at 48 and 56
    assert len(heard(chunks)) == 26 * 1764 and np.abs(heard(chunks)).max() > 0.01
    assert run.said and list(run.chunks()) == []


def test_a_script_is_said_in_order_with_pauses(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent, longest=1)
    first = speak(run, cast, 1.0)
    run.wait(2.0)
    run.ask("Who are you?")
    speak(run, cast, 0.8)
    chunks = list(run.chunks())
    found, segment = heard(chunks), 26 * 1764
    assert np.array_equal(found[: len(first)], first)
    assert not found[len(first) : 2 * segment].any()  # the rest of its segment, and one of silence
    assert np.abs(found[2 * segment : 3 * segment]).max() > 0.01
    assert alike(found[3 * segment :], sound(0.8)) > 0.999
    assert len(found) == 3 * segment + 10 * 1764


def test_silence_goes_on_and_moves(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent)
    chunks = list(run.chunks(frames=30))
    assert len(seen(chunks)) == 30 and not heard(chunks).any()
    assert np.abs(np.diff(seen(chunks).astype(int), axis=0)).mean() > 0.01


def test_it_equals_the_replay_of_its_record(cast: Cast, latent: np.ndarray) -> None:
    """With an interruption; the segments are those that the dialogue gave."""
    events: list[Event] = []
    made: list[tuple[int, np.ndarray]] = []
    run = runner(cast, latent, record=events.append)
    run.talk = talk = Noted(run.talk)
    push = run.pictures.push

    def pushed(chunk: int, latents: np.ndarray) -> list[Frames]:
        made.append((chunk, latents))
        return push(chunk, latents)

    run.pictures.push = pushed  # type: ignore[method-assign]
    run.ask("Who are you?")
    stream = run.chunks(endless=True)
    before = [next(stream) for _ in range(5)]
    run.interrupt()
    run.ask("And who am I?")
    after = [next(stream) for _ in range(6)]
    assert [chunk.index for chunk in before + after] == list(range(11))
    assert [event.chunk for event in events if event.what == DROP] == [4]
    assert not [event for event in events if event.what == LATE]
    given = talk.given
    cut = next(at for at in range(1, len(given)) if given[at].index <= given[at - 1].index)
    reference = torch.from_numpy(latent.astype(np.float32))
    replay = Replay(cast.actor, reference, Plan(3), [given[:cut], given[cut:]])
    wanted = [(chunk.index, chunk.latents) for chunk, _ in zip(replay.chunks(events), made, strict=False)]
    assert [index for index, _ in wanted] == [index for index, _ in made[: len(wanted)]] and len(wanted) >= 11
    for (_, ours), (_, theirs) in zip(made, wanted, strict=False):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_what_is_told_right_after_an_interruption_is_answered(cast: Cast, latent: np.ndarray) -> None:
    """Somebody interrupts, and asks again, while what was told before is on its way to the Thinker."""
    run = runner(cast, latent, longest=1)
    asked: list[str] = []

    class Slow(Noted):
        def ask(self, user: Any) -> int:
            asked.append(user)
            if user == "Who are you?":
                run.interrupt()
                run.ask("And who am I?")
            return int(self._talk.ask(user))

    run.talk = Slow(run.talk)
    run.ask("Who are you?")
    run.ask("What for?")
    chunks = list(run.chunks())
    assert asked == ["Who are you?", "And who am I?"] and run.said
    assert len(heard(chunks)) == 26 * 1764 and np.abs(heard(chunks)).max() > 0.01


def test_other_threads_may_ask_whether_it_is_idle(cast: Cast, latent: np.ndarray) -> None:
    """A Thinker in another process is talked to by one thread alone."""
    run = runner(cast, latent, longest=1)
    threads: set[int] = set()

    class Watched(Noted):
        @property
        def idle(self) -> bool:
            threads.add(threading.get_ident())
            return bool(self._talk.idle)

    run.talk = Watched(run.talk)
    found: list[bool] = []

    def elsewhere() -> None:
        asking = threading.Thread(target=lambda: found.append(run.idle))
        asking.start()
        asking.join()

    elsewhere()
    run.ask("Who are you?")
    elsewhere()
    stream = run.chunks(endless=True)
    next(stream)
    elsewhere()
    run.interrupt()
    elsewhere()
    next(stream)
    elsewhere()
    assert found == [True, False, True, False, True]  # its only segment has been handed out with the first chunk
    assert threads == {threading.get_ident()}


def test_nothing_is_denoised_that_will_not_be_seen(cast: Cast, latent: np.ndarray) -> None:
    events: list[Event] = []
    run = runner(cast, latent, Plan(4), record=events.append)
    speak(run, cast, 2.5)
    chunks = list(run.chunks(frames=63))
    assert len(chunks) == 8 and run.engine.heard == 2  # the states of 13 are there
    assert [event.chunk for event in events if event.what == START] == list(range(8))
    assert run.engine.passes == rounds(8, 4, 1)
    assert run.engine.rows == (8 * 4 + 7) * 4  # no chunk is in more passes than its steps and the one that commits it


# -- live ----------------------------------------------------------------------------------------------------


def test_live_what_was_not_played_is_dropped_and_the_clock_goes_on(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent, Plan(2, ahead=7), live=True)
    playback = Playback(STORED_RATE)
    run._shown, run._drop = (lambda: playback.shown), playback.drop
    speak(run, cast, 6.0)
    stream = run.chunks(endless=True)
    for _ in range(6):
        playback.put(next(stream))
    first = playback.pull(samples_of(2, STORED_RATE) + 100)  # two chunks and a little
    run.interrupt()
    speak(run, cast, 1.0)
    for index in range(3, 9):
        media = next(stream)
        assert media.index == index  # chunk 2 was begun, so 3 is the first that is new
        playback.put(media)
        playback.pull(samples_of(1, STORED_RATE))
    assert alike(first, sound(6.0)) > 0.999 and playback.stalls == 0
    assert run.engine.pyramid.draw == 1


def test_live_it_makes_no_more_than_may_be_unshown(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent, Plan(2, ahead=4), live=True)
    run._shown = lambda: -1
    stream = run.chunks(endless=True)
    found = [next(stream).index for _ in range(3)]  # the fourth is what the third is decoded with
    assert found == [0, 1, 2] and run.engine.full and not run._work()
    run._shown = lambda: 0
    assert next(stream).index == 3


def test_pictures_that_are_decoded_with_more_than_is_made_are_refused(cast: Cast, latent: np.ndarray) -> None:
    with pytest.raises(UsageError, match="1 chunks may be unshown, but pictures are decoded with 1 after them"):
        runner(cast, latent, Plan(2, ahead=1))


def test_a_sink_is_closed_whatever_happens(cast: Cast, latent: np.ndarray) -> None:
    class Full(Callback):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    def take(media: Media) -> None:
        if media.index == 2:
            raise OSError("full")

    sink, run = Full(take), runner(cast, latent)
    with pytest.raises(OSError, match="full"):
        run.run(sink, frames=80)
    assert (sink.closed, sink.shown) == (1, 1)
    sink, run = Full(lambda media: run.stop() if media.index == 1 else None), runner(cast, latent)
    run.run(sink, endless=True)
    assert (sink.closed, sink.shown) == (1, 1)


# -- figures -------------------------------------------------------------------------------------------------


def test_figures_count_what_there_was(cast: Cast, latent: np.ndarray) -> None:
    run = runner(cast, latent)
    speak(run, cast, 2.0)
    run.run(Callback(lambda media: None), frames=50)
    found = json.loads(json.dumps(run.figures.as_json(stalls=run.engine.pyramid.late)))
    assert (found["frames"], found["seconds"], found["chunks"], found["stalls"]) == (50, 2.0, 7, 0)
    assert set(found["realtime_of"]) == set(PARTS) and all(found["realtime_of"][part] >= 0 for part in PARTS)
    assert found["realtime_of"]["actor"] > 0 and sum(found["realtime_of"].values()) <= found["realtime"] + 0.01
    assert 0 < found["first_frame_after_segment_s"] <= found["first_frame_s"] <= found["wall_s"]
    assert 0 < found["latency_p50_s"] <= found["latency_p99_s"] and found["skew_ms"] == 0
    assert found["memory_gb"] > 0.1 and found["segments"] == 2
    lines = told(found)
    assert len(lines) == 3 and "2.00 s in" in lines[0] and "p99" in lines[1] and "0 stalls" in lines[2]


def test_figures_leave_out_what_others_do_meanwhile(
    cast: Cast, latent: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand seconds before the first chunk is asked for, and between all of them."""
    passed = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + passed[0])
    monkeypatch.setattr("inference.figures.time", clock)
    run = runner(cast, latent)
    speak(run, cast, 1.0)
    passed[0] += 1000
    for _ in run.chunks(frames=25):
        passed[0] += 1000
        assert run.figures.as_json()["wall_s"] < 500
    found = run.figures.as_json()
    assert found["chunks"] == 4 and passed[0] == 5000
    for name in ("wall_s", "first_frame_s", "latency_p99_s", "behind_s", "realtime"):
        assert found[name] < 500, name
    taken = SimpleNamespace(shown=-1, put=lambda media: passed.__setitem__(0, passed[0] + 1000), close=lambda: None)
    taken.drop = lambda: -1
    run = runner(cast, latent)
    run.run(taken, frames=16)  # but a sink is a part of the stream
    assert run.figures.as_json()["wall_s"] > 1990 and run.figures.as_json()["realtime_of"]["sink"] > 3100


def test_figures_of_nothing_are_numbers_too(cast: Cast, latent: np.ndarray) -> None:
    found = runner(cast, latent).figures.as_json()
    assert found["first_frame_s"] is None and found["realtime"] is None and found["frames"] == 0
    json.dumps(found, allow_nan=False)
    assert told(found)


def test_the_stride_that_holds_here_is_measured(cast: Cast, latent: np.ndarray) -> None:
    plan, pace = paced(cast, latent, 4, seed=3)
    assert plan == Plan(4, pace.stride, seed=3) and 1 <= pace.stride <= 4 and pace.load > 0


# -- what goes together --------------------------------------------------------------------------------------


def test_speech_is_read_at_its_own_rate(tmp_path: Path) -> None:
    for rate in (8_000, 22_050, 44_100):
        given = sound(0.5, rate)
        found, own = read_speech(write_sound(tmp_path / "a.flac", given, rate))
        assert own == rate and np.abs(found - given).max() <= 1 / 32768
    stereo = np.stack([sound(0.5, 48_000), np.zeros(24_000, np.float32)], axis=1)
    found, own = read_speech(write_sound(tmp_path / "b.wav", stereo, 48_000))
    assert own == 48_000 and alike(found, stereo[:, 0]) > 0.999
    found, own = read_speech(write_sound(tmp_path / "c.wav", sound(0.5, 18_000), 18_000))
    assert own == 22_050 and len(found) == 11_025 and alike(found, sound(0.5)) > 0.99


def test_a_long_recording_is_encoded_in_pieces(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sound(3.0, 16_000)
    whole = recorded(cast.tokenizer, given, 16_000)
    monkeypatch.setattr("inference.cast.PIECE", 10)
    pieces = recorded(cast.tokenizer, given, 16_000)
    assert len(pieces.codes) == len(whole.codes) == 38 and pieces.frames == whole.frames == 75
    near = np.abs(digits(pieces.codes) - digits(whole.codes)) <= 1  # loudness is evened out by the piece
    assert near.mean() > 0.9


def test_speech_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("I am no sound")
    write_sound(tmp_path / "empty.wav", np.empty(0, np.float32))
    (tmp_path / "nothing.wav").write_bytes(b"")
    write_sound(tmp_path / "cut.mp3", sound(1.0))
    (tmp_path / "cut.mp3").write_bytes((tmp_path / "cut.mp3").read_bytes()[:100])
    write_sound(tmp_path / "slow.wav", sound(0.01), 3)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    write_film(tmp_path / "mute.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5, None, 22_050, Coding())
    for path, words in (
        (tmp_path / "no.wav", "cannot be read .No such file"),
        (tmp_path / "text.wav", "cannot be read .Invalid data"),
        (tmp_path / "empty.wav", "is empty"),
        (tmp_path / "mute.mp4", "has no sound"),
        (tmp_path / "nothing.wav", "cannot be read"),
        (tmp_path / "cut.mp3", "cannot be read|is empty"),
        (tmp_path / "slow.wav", "has 3 samples a second, which nothing records"),
        (tmp_path / "nan.wav", "samples that are no numbers"),
        (tmp_path, "cannot be read .Is a directory"),
    ):
        with pytest.raises(SourceError, match=words):
            read_speech(path)
    with pytest.raises(UsageError, match="speech is empty"):
        recorded(object(), np.empty(0, np.float32), 16_000)  # type: ignore[arg-type]
    assert np.array_equal(at_rate(np.ones(5, np.float32), 8_000, 8_000), np.ones(5, np.float32))


def test_an_actor_of_other_codecs_or_another_thinker_is_refused(tmp_path: Path, actor: Path) -> None:
    codecs = dict(read_facts(actor)[0].codecs)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"codecs": {**codecs, "video": "dct3d 0123456789abcdef"}}, "of the video codec 'dct3d 0123456789abcdef'"),
        ({"codecs": {**codecs, "video": "other 1"}}, "no video codec 'other' here, there are dct3d, ltx_video_0.9.0"),
        ({"codecs": {**codecs, "speech": "fsq_mel 0"}}, "of the speech codec 'fsq_mel 0', the one here is 'fsq_mel "),
        ({"codecs": {**codecs, "speech": "glm_4_voice 0"}}, "reads whisper_bpe and fsq_mel tokens, not whisper_bpe"),
        ({"thinker": "bundled 0"}, "follows the Thinker 'bundled 0', the one here is 'bundled "),
        ({"thinker": ""}, "does not say whose states it follows"),
        ({"config": {"states": 64}}, "hears states of 64 numbers, those of the Thinker bundled have 192"),
        ({"config": {"channels": 6}}, "makes 6 channels, dct3d has 128"),
        ({"thinker": "somebody 1"}, "unknown thinker 'somebody'"),
    ]
    for changes, words in wrong:
        with pytest.raises((ModelError, UsageError), match=words.replace(".", r"\.")):
            load_cast(make_actor(tmp_path / "wrong", **changes), "cpu")
    with pytest.raises(ModelError, match=r"actor\.json is missing"):
        load_cast(tmp_path, "cpu")
    with pytest.raises(UsageError, match="one for all, or the Thinker's and the Actor's"):
        load_cast(actor, "cpu,cpu,cpu")
