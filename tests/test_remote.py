"""The Thinker in a process of its own: the same segments as a dialogue here for the same calls, however far it was
ahead; how far that is; a slow, hung, killed or failing process; nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from talkers_made import segment
from test_link import same_bits

from inference import remote
from inference.dialogue import Dialogue
from inference.link import Link, LinkError, RemoteTraceback
from inference.remote import AHEAD, Made, RemoteDialogue, thinker
from inference.sampling import Sampling
from inference.segments import Segment
from inference.thinker_process import serve
from inference.timeline import BACK, SILENT_SEGMENTS
from manifests.errors import ModelError, UsageError, one_line
from models.bundled_thinker import BundledVocabulary
from models.dialogue_layout import SPECIALS
from models.glm_weights import empty_glm, glm_classes
from models.speech_codec import FsqMel
from models.thinker import Thinker, load_thinker

OBEDIENT = Made("talkers_made:obedient")
ROOT = Path(__file__).resolve().parent.parent
CHANCE = Sampling(1, 1, 20)
SILENCE = np.random.default_rng(99).integers(0, FsqMel.codes, 26 * SILENT_SEGMENTS)


def codes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, FsqMel.codes, count)


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count)


def until(condition: Callable[[], Any], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return bool(found)


def taken(talk: Dialogue | RemoteDialogue, number: int) -> list[Segment]:
    found = talk.segments()
    return [next(found) for _ in range(number)]


def said(talk: Dialogue | RemoteDialogue) -> list[Segment]:
    """All that comes until it is idle."""
    found = []
    while not talk.idle:
        one = talk.step(10) if isinstance(talk, RemoteDialogue) else talk.step()
        found += [one] if one is not None else []
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    return Path(f"/proc/{pid}").exists()


@contextlib.contextmanager
def raises_line(kind: type[Exception], *parts: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind and str(caught.value) == one_line(caught.value)
    for part in parts:
        assert part in str(caught.value)


class Thread:
    """Stands in for `inference.child.Child`: the real dialogue, served by the real loop over a real link, in a thread."""

    made: Callable[[], Dialogue]

    def __init__(self, module: str, deadline: float) -> None:
        ours, theirs = socket.socketpair()
        self.link, self.pid, there = Link(ours, deadline), os.getpid(), Link(theirs, deadline)

        def run() -> None:
            with contextlib.suppress(LinkError):
                serve(there)
            there.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.link.close()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def death(self, name: str, what: str) -> LinkError:
        return LinkError(f"{name}: {what}")


DIALOGUES: dict[str, Callable[[], Dialogue]] = {}


def built(name: str) -> tuple[Dialogue, dict[str, Any]]:
    """A maker, for a thread."""
    return DIALOGUES[name](), {}


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "Child", Thread)


class FewWords(BundledVocabulary):
    """A vocabulary of bytes: what is drawn from is a quarter as much."""

    @property
    def size(self) -> int:
        return 256 + len(SPECIALS) - 1 + FsqMel.codes

    def special(self, name: str) -> int:
        return 256 + SPECIALS.index(name)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def small_thinker() -> Thinker:
    """Of random weights."""
    config = glm_classes()[0](
        vocab_size=FewWords().size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=8192, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    model, dice = empty_glm(config), torch.Generator().manual_seed(1)
    state = {name: torch.randn(each.shape, generator=dice) / 2 for name, each in model.named_parameters()}
    model.load_state_dict(state, strict=False, assign=True)
    return Thinker(model.requires_grad_(False), FewWords(), "bundled small")


SMALL = small_thinker()
tells = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 4)),
    st.tuples(st.just("ask"), st.sampled_from(["Well?", "What is it that you say, then?", (1, 2, 3)])),
    st.tuples(st.just("speak"), st.integers(1, 140), st.integers(0, 60)),
    st.tuples(st.just("pieces"), st.lists(st.integers(0, 40), max_size=4).filter(any)),
    st.tuples(st.just("interrupt"), st.none() | st.integers(-20, 9)),
    st.tuples(st.just("settle")),
)


class Pair:
    """A dialogue here and one over a link, told the same; what came of both is the same."""

    def __init__(self, here: Dialogue, there: RemoteDialogue, exact: bool = True) -> None:
        self.here, self.there, self.exact, self.came, self.turn = here, there, exact, 0, 0

    def tell(self, what: str, *how: Any) -> None:
        self.turn += 1
        if what == "take":
            self.equal(taken(self.here, how[0]), taken(self.there, how[0]))
        elif what == "settle":  # lets the other one get ahead
            until(lambda: self.there.waiting == AHEAD, 0.05)
        elif what == "interrupt":
            chunk = None if how[0] is None else max(0, self.here.timeline.given * 26 // 4 + how[0])
            for each in (self.here, self.there):
                each.interrupt(chunk)
        else:
            assert len({self.told(each, what, *how) for each in (self.here, self.there)}) == 1

    def told(self, talk: Dialogue | RemoteDialogue, what: str, *how: Any) -> int:
        if what == "ask":
            return talk.ask(how[0])
        if what == "speak":
            return talk.speak(codes(self.turn, how[0]), words(self.turn, how[1]))
        return talk.speak(codes(self.turn, size) for size in how[0])

    def finish(self) -> None:
        self.equal(said(self.here), said(self.there))
        self.equal(taken(self.here, 2), taken(self.there, 2))
        assert self.here.idle and self.there.idle

    def equal(self, mine: list[Segment], theirs: list[Segment]) -> None:
        self.came += len(mine)
        if self.exact:
            for one, other in zip(mine, theirs, strict=True):
                same_bits(one, other)
        else:
            for one, other in zip(mine, theirs, strict=True):
                assert np.abs(one.states.astype(np.float32) - other.states).max() < 4e-3
                for name in ("ticks", "codes", "text", "is_speech", "turns"):
                    assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.usefixtures("threaded")
class TestSame:
    """As a dialogue here, for the same calls after as many segments."""

    @contextlib.contextmanager
    def pair(self, exact: bool = True, **options: Any) -> Iterator[Pair]:
        def make() -> Dialogue:
            return Dialogue(SMALL, SILENCE, **{"longest": 2, "held": True, "sampling": CHANCE, **options})

        DIALOGUES["one"] = make
        with RemoteDialogue(Made("test_remote:built", {"name": "one"})) as there:
            yield Pair(make(), there, exact)

    @settings(max_examples=12)
    @given(st.lists(tells, min_size=1, max_size=9))
    def test_whatever_it_is_told(self, told: list[tuple[Any, ...]]) -> None:
        with self.pair() as pair:
            for what, *how in told:
                pair.tell(what, *how)
            pair.finish()

    @settings(max_examples=5)
    @given(st.lists(tells, min_size=4, max_size=12))
    def test_where_the_context_is_full_too(self, told: list[tuple[Any, ...]]) -> None:
        with self.pair(exact=False, context=500) as pair:
            for what, *how in told:
                pair.tell(what, *how)
            pair.finish()

    def test_interrupted_in_the_middle_of_what_it_is_ahead_with(self) -> None:
        """The turn that waited has begun there, not here; nothing of it may stay."""
        with self.pair() as pair:
            pair.tell("speak", 30, 20)
            pair.tell("ask", "Well?")
            pair.tell("take", 1)
            assert until(lambda: pair.there.waiting == AHEAD)
            pair.tell("interrupt", -2)
            pair.tell("ask", "And now?")
            pair.finish()

    @pytest.mark.parametrize("taken_before", [0, 2])
    def test_a_question_that_is_interrupted_before_its_answer_began_is_remembered(self, taken_before: int) -> None:
        """Here its first words are being thought; there a segment of them waits, or two."""
        with self.pair(exact=False) as pair:
            pair.tell("take", taken_before)
            pair.tell("ask", "Well?")
            pair.tell("ask", "And you?")
            assert pair.here.step() is pair.here.step() is None
            assert until(lambda: pair.there.waiting == AHEAD)
            pair.tell("interrupt", None)
            pair.tell("ask", "No?")
            pair.finish()
            assert [turn.user for turn in pair.here.turns] == ["Well?", "No?"]

    def test_a_question_is_answered_where_it_is_asked_not_where_the_silence_ends(self) -> None:
        with self.pair() as pair:
            pair.tell("take", 3)
            until(lambda: pair.there.waiting, 0.3)
            pair.tell("ask", "Well?")
            (answer,) = taken(pair.there, 1)
            assert answer.index == 3 and answer.spoken

    def test_idle_is_what_it_is_here(self) -> None:
        """The last segment of the first turn was on its way before the second was asked for."""
        with self.pair() as pair:
            pair.tell("speak", 40, 20)
            assert until(lambda: pair.there.waiting == AHEAD)
            pair.tell("speak", 30, 0)
            pair.tell("take", 2)
            assert not pair.here.idle and not pair.there.idle
            pair.finish()
            assert pair.came == 4 + 2

    def test_a_prompt_that_it_had_read_ahead_is_read_as_here(self) -> None:
        with self.pair() as pair:
            pair.tell("take", 2)
            pair.tell("pieces", [33])
            assert until(lambda: pair.there.waiting)
            pair.tell("interrupt", None)
            pair.tell("take", 2)
            pair.tell("pieces", [21])
            pair.finish()

    def test_pieces_are_taken_when_they_are_needed(self) -> None:
        def pieces(asked: list[int]) -> Iterator[np.ndarray]:
            for number in range(6):
                asked.append(number)
                yield codes(number, 26)

        with self.pair() as pair:
            here, there = list[int](), list[int]()
            pair.here.speak(pieces(here))
            pair.there.speak(pieces(there))
            assert not until(lambda: pair.there.waiting > 1, 0.1)
            assert here == there == [0]
            pair.tell("take", 3)
            assert here == there == [0, 1, 2]

    def test_wrong_pieces_are_told_and_it_goes_on(self) -> None:
        with self.pair() as pair:
            for talk in (pair.here, pair.there):
                talk.speak(iter([codes(1, 26), np.array([1 << 20])]))
            assert len(taken(pair.here, 1)) == len(taken(pair.there, 1)) == 1
            for talk in (pair.here, pair.there):
                with pytest.raises(UsageError, match="speech tokens must be"):
                    taken(talk, 2)
            pair.tell("ask", "Well?")
            pair.finish()

    def test_pieces_that_fail_here_fail_here(self) -> None:
        def pieces() -> Iterator[np.ndarray]:
            yield codes(1, 26)
            raise OSError("the microphone is gone")

        with self.pair() as pair:
            for talk in (pair.here, pair.there):
                talk.speak(pieces())
                with pytest.raises(OSError, match="microphone"):
                    taken(talk, 3)
            pair.tell("ask", "Well?")
            pair.finish()

    @pytest.mark.parametrize("user", ["", "  ", (), (1, -1), (1 << 20,), np.zeros((2, 2)), "x " * 9000])
    def test_what_cannot_be_asked(self, user: Any) -> None:
        with self.pair() as pair:
            for talk in (pair.here, pair.there):
                with raises_line(UsageError):
                    talk.ask(user)
            with raises_line(UsageError, "nothing to speak"):
                pair.there.speak(iter([np.empty(0, np.int64)]))
            pair.tell("ask", "Well?")
            pair.finish()

    def test_too_far_back(self) -> None:
        with self.pair() as pair:
            pair.tell("take", BACK + 3)
            for chunk in (-1, 3 * 26 // 4 - 1):
                for talk in (pair.here, pair.there):
                    with pytest.raises(ValueError, match=f"more than {BACK} segments before segment {BACK + 3}"):
                        talk.interrupt(chunk)
            for talk in (pair.here, pair.there):
                talk.interrupt(20)
            pair.finish()


@pytest.fixture(scope="class")
def obedient() -> Iterator[RemoteDialogue]:
    """A process that many tests share; each leaves it idle."""
    with RemoteDialogue(OBEDIENT) as talk:
        yield talk


class TestProcess:
    def test_the_bundled_thinker_over_there_is_the_one_here(self) -> None:
        """With torch, its own caches and its own arithmetic: the same bits still, of answers, given speech, silence,
        and an interruption."""
        made = thinker("bundled", SILENCE, sampling=CHANCE, seed=3, longest=1)
        here = Dialogue(load_thinker("bundled"), SILENCE, sampling=CHANCE, seed=3, longest=1)
        with RemoteDialogue(made) as there:
            assert there.known == {"identity": here.thinker.identity, "hidden": here.thinker.hidden}
            pair = Pair(here, there)
            for told in (
                ("ask", "Well?"),
                ("speak", 150, 60),
                ("take", 3),
                ("settle",),
                ("interrupt", -2),
                ("ask", "No?"),
            ):
                pair.tell(*told)
            pair.finish()
            assert pair.came == 3 + 2 + 2
            assert "/dev/shm" not in Path(f"/proc/{there.pid}/maps").read_text()

    def test_it_is_another_process_without_torch(self, obedient: RemoteDialogue) -> None:
        assert obedient.known == {"identity": "obedient", "pid": obedient.pid} and obedient.pid != os.getpid()
        assert "libtorch" not in Path(f"/proc/{obedient.pid}/maps").read_text()

    def test_segments_cross_equal_to_the_bit_and_in_order(self, obedient: RemoteDialogue) -> None:
        obedient.ask("talk 30")
        first = obedient.step(10)
        assert first is not None
        for index, other in enumerate([first, *said(obedient)], first.index):
            same_bits(segment(index), other)
        assert index == first.index + 29

    def test_it_is_a_few_segments_ahead_and_no_more(self, obedient: RemoteDialogue) -> None:
        """One that would make them as fast as it can; what it has made is asked of itself."""
        said(obedient)
        before = obedient.ask("made")
        obedient.ask("talk 50")
        for count in range(10):
            assert until(lambda: obedient.waiting == AHEAD)
            assert not until(lambda: obedient.waiting > AHEAD, 0.05)
            assert obedient.ask("made") - before == count + AHEAD
            taken(obedient, 1)
        obedient.interrupt()
        assert said(obedient) == [] and obedient.idle

    def test_silence_is_made_one_by_one_when_it_is_wanted(self, obedient: RemoteDialogue) -> None:
        said(obedient)
        before = obedient.ask("made")
        for count in range(4):
            assert not until(lambda: obedient.waiting, 0.05)
            assert obedient.ask("made") - before == count
            taken(obedient, 1)

    def test_an_interruption_drops_what_was_on_its_way(self, obedient: RemoteDialogue) -> None:
        obedient.ask("talk 20")
        (last,) = taken(obedient, 1)
        assert until(lambda: obedient.waiting == AHEAD)
        obedient.interrupt()
        assert obedient.waiting == 0 and not obedient.idle
        assert said(obedient) == []
        (after,) = taken(obedient, 1)
        assert after.index == last.index + 1

    def test_errors_arrive_as_what_they_are(self, obedient: RemoteDialogue) -> None:
        with raises_line(UsageError, "no such answer") as refused:
            obedient.ask("refuse")
        assert "Obedient" not in str(refused.value) and "talkers_made.py" in str(refused.value.__cause__)
        with raises_line(LinkError, "the Thinker's process (cpu, pid", "failed: KeyError: 'deep inside'"):
            obedient.ask("crash")
        obedient.ask("usage")
        with raises_line(UsageError, "these are no words"):
            said(obedient)
        assert said(obedient) == [] and len(taken(obedient, 1)) == 1

    def test_text_crosses_as_it_is(self, obedient: RemoteDialogue) -> None:
        assert obedient.ask(np.array([1, 2, 3], np.uint16)) == 6
        with raises_line(UsageError, "refuse é 你好 \udcff\x00"):
            obedient.ask("refuse é 你好 \udcff\x00")

    @pytest.mark.parametrize("word", ["model", "bug", "exit"])
    def test_what_it_died_of_comes_after_what_it_said_before(self, word: str) -> None:
        kind, line = {
            "model": (ModelError, "the weights are no numbers; fetch them again"),
            "bug": (LinkError, "failed: RuntimeError: device-side assert; run again with --debug to see where"),
            "exit": (LinkError, "ended with exit code 7 while segment 1 was due; see what it printed"),
        }[word]
        with RemoteDialogue(OBEDIENT) as talk:
            talk.ask(word)
            assert until(lambda: talk.waiting == 1)
            assert talk.step(10) is not None
            for verb in (lambda: talk.step(20), lambda: talk.ask("talk"), talk.interrupt):
                with raises_line(kind, line) as caught:
                    verb()
            if word != "exit":
                assert isinstance(caught.value.__cause__, RemoteTraceback)
                assert "Traceback (most recent call last)" in str(caught.value.__cause__)
            if word == "bug":
                assert "in _deep_inside" in str(caught.value.__cause__)
        assert not alive(talk.pid)

    def test_one_that_cannot_be_made(self) -> None:
        with RemoteDialogue(Made("talkers_made:obedient", {"fails": "no weights; fetch them"})) as talk:
            with raises_line(ModelError, "no weights; fetch them"):
                talk.known  # noqa: B018
        with RemoteDialogue(Made("talkers_made:nobody")) as talk:
            with raises_line(LinkError, "AttributeError: module 'talkers_made' has no attribute 'nobody'"):
                talk.ask("Well?")
        with pytest.raises(UsageError, match="1 segment ahead or more"):
            RemoteDialogue(OBEDIENT, ahead=0)


class TestTime:
    def test_a_slow_one_is_waited_for(self) -> None:
        """Its segments take longer than the deadline, its steps do not."""
        with RemoteDialogue(OBEDIENT, deadline=1) as talk:
            assert talk.known
            talk.ask("slow 2")
            assert len(said(talk)) == 2

    def test_a_hung_one_is_one_line(self) -> None:
        with RemoteDialogue(OBEDIENT, deadline=2) as talk:
            talk.ask("talk 3")
            taken(talk, 1)
            os.kill(talk.pid, signal.SIGSTOP)
            begun = time.monotonic()
            with raises_line(
                LinkError, f"pid {talk.pid}", "no sign of life for 2 s while segment", "was due; see what"
            ):
                while time.monotonic() < begun + 60:
                    talk.step(1)
            assert time.monotonic() - begun >= 2
            with raises_line(LinkError, "no sign of life"):
                talk.ask("Well?")
        assert not alive(talk.pid)  # closing does not wait for it

    def test_one_that_hangs_while_it_loads(self) -> None:
        with RemoteDialogue(OBEDIENT, loading=0.4) as talk:
            os.kill(talk.pid, signal.SIGSTOP)
            with raises_line(LinkError, "no sign of life for 0.4 s while it was loading", "a longer time to load"):
                talk.known  # noqa: B018

    def test_nobody_is_late_while_nothing_is_due(self) -> None:
        """It is full, or we are busy."""
        with RemoteDialogue(OBEDIENT, deadline=1.5) as talk:
            talk.ask("talk 4")
            assert until(lambda: talk.waiting == AHEAD)
            time.sleep(2.5)
            assert len(said(talk)) == 4
            time.sleep(2.5)
            assert talk.step() is None and len(taken(talk, 1)) == 1


class TestEnd:
    @pytest.mark.parametrize(
        ("how", "line"),
        [
            (signal.SIGKILL, "was killed by SIGKILL (exit code -9) while segment 1 was due; is there memory enough?"),
            (signal.SIGSEGV, "was killed by SIGSEGV (exit code -11) while segment 1 was due; see what it printed"),
        ],
    )
    def test_a_killed_one_is_one_line_with_its_exit_code(self, how: signal.Signals, line: str) -> None:
        with RemoteDialogue(OBEDIENT) as talk:
            taken(talk, 1)
            os.kill(talk.pid, how)
            with raises_line(LinkError, f"pid {talk.pid}", line):
                taken(talk, 9)
        assert not alive(talk.pid)

    def test_closing_leaves_nothing_and_may_be_done_again(self) -> None:
        files, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
        talk = RemoteDialogue(OBEDIENT)
        talk.ask("hang")
        taken(talk, 1)
        for _ in range(2):
            talk.close()
            assert not alive(talk.pid)
        assert set(os.listdir("/proc/self/fd")) == files and threading.active_count() == threads
        with raises_line(LinkError, "was closed; make another"):
            talk.step()
        with raises_line(LinkError, "was closed"):
            talk.ask("Well?")

    def test_one_that_is_forgotten_ends(self) -> None:
        talk = RemoteDialogue(OBEDIENT)
        pid = talk.pid
        del talk
        gc.collect()
        assert not alive(pid)

    @pytest.mark.parametrize("end", ["exit", "kill", "interrupt", "stopped"])
    def test_it_ends_with_our_process(self, end: str, tmp_path: Path) -> None:
        """A script without `if __name__`, that never closes; Ctrl-C goes to its whole group."""
        script = tmp_path / "stream.py"
        script.write_text(
            "import sys, time\n"
            "from inference.remote import Made, RemoteDialogue\n"
            "talk = RemoteDialogue(Made('talkers_made:obedient'))\n"
            "talk.ask('hang')\n"
            "print(talk.pid, talk.step(30).index, flush=True)\n"
            f"time.sleep({0 if end == 'exit' else 600})\n"
        )
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        ours = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            start_new_session=True,
            text=True,
        )
        assert ours.stdout
        pid, index = map(int, ours.stdout.readline().split())
        assert index == 0
        if end != "exit":
            assert alive(pid)
            children = Path(f"/proc/{ours.pid}/task/{ours.pid}/children").read_text().split()
            assert children == [str(pid)]  # no tracker, no other helper
        if end == "kill":
            ours.kill()
        elif end == "stopped":
            os.kill(pid, signal.SIGSTOP)
            ours.kill()
        elif end == "interrupt":
            os.killpg(ours.pid, signal.SIGINT)
        _, errors = ours.communicate(timeout=60)
        gone = until(lambda: not alive(pid), 20)
        if not gone:
            os.kill(pid, signal.SIGKILL)
        assert gone
        assert errors.count("Traceback") == (end == "interrupt")  # ours, of the sleep
