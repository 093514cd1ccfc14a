"""The Thinker's side of a stream: given speech and answers on the clock, what the Thinker has before it, silence,
interruptions, models that keep no pattern, requests that cannot be met.

`scripted` makes a GLM by hand whose every token decides the next one, so that what a model says is known.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import glm_text, glm_thinker

from inference.context import KEPT, LONGEST_SEGMENT, MOST_TEXT, Turn, question, spelled, tokens_of
from inference.dialogue import Dialogue
from inference.sampling import Sampling
from inference.segments import SILENT, Segment
from inference.timeline import BACK, SILENT_SEGMENTS, silence_of, silent_codes
from manifests.errors import ModelError, UsageError
from models.bundled_thinker import BundledVocabulary
from models.dialogue_layout import AUDIO_0, SPECIALS, USER, Layout, layout, prompt_ids, turn_of
from models.glm_weights import empty_glm, glm_classes
from models.speech_codec import FsqMel
from models.text_codec import WhisperBpe
from models.thinker import Thinker, hidden_states, load_thinker

VOCABULARY = BundledVocabulary()
ZERO, END = VOCABULARY.special(AUDIO_0), VOCABULARY.special(USER)
HALF = 4e-3
"""States are float16 and below 8 or so."""
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def bundled() -> Thinker:
    return load_thinker("bundled")


@pytest.fixture(scope="module")
def silence() -> np.ndarray:
    return silent_codes(FsqMel())


def codes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, FsqMel.codes, count)


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50_000, count)


def scripted(script: list[int]) -> Thinker:
    """Says `script`, ids of which no one comes twice, whatever it is asked; then a script that ends with an id of
    its own goes round from there. One layer that adds nothing: the last token alone decides the next."""
    asked = int(VOCABULARY.encode("streaming_transcription\n")[-1])
    chain = [asked, *script]
    width = 4 * (len(set(chain)) // 4 + 2)
    config = glm_classes()[0](
        vocab_size=VOCABULARY.size, hidden_size=width, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=8192, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    model = empty_glm(config)
    state = {name: torch.zeros(each.shape) for name, each in model.named_parameters()}
    state |= {name: each + 1 for name, each in state.items() if "norm" in name}
    place = {token: at for at, token in enumerate(dict.fromkeys(chain))}
    for token, at in place.items():
        state["model.embed_tokens.weight"][token, at] = 1
    for token, after in pairwise(chain):
        state["lm_head.weight"][after, place[token]] = 1
    model.load_state_dict(state, strict=False, assign=True)
    return Thinker(model.requires_grad_(False), VOCABULARY, "bundled scripted")


def text_of(ids: np.ndarray) -> str:
    """What the bundled Thinker reads, spelled out."""
    names = {VOCABULARY.special(name): name for name in SPECIALS[:-1]}
    return "".join(names.get(token) or (f"<{token - ZERO}>" if token >= ZERO else WhisperBpe().decode(np.array([token]))) for token in ids.tolist())  # fmt: skip


def taken(dialogue: Dialogue, count: int) -> list[Segment]:
    return list(islice(dialogue.segments(), count))


def said(dialogue: Dialogue, most: int = 100) -> list[Segment]:
    """All segments until it has nothing more to say."""
    found = []
    for segment in dialogue.segments():
        found.append(segment)
        if dialogue.idle:
            return found
        assert len(found) < most
    raise AssertionError


def keeps_time(segments: Iterable[Segment], first: int = 0) -> None:
    """Indices without a gap, 26 speech tokens of as many ticks in each, its text inside it."""
    for index, segment in enumerate(segments, first):
        assert segment.index == index
        assert segment.ticks[segment.is_speech].tolist() == list(range(26 * index, 26 * index + 26))
        told = segment.ticks[~segment.is_speech]
        assert len(told) <= 13 and (np.diff(told) > 0).all() and ((told >= 26 * index) & (told < 26 * index + 26)).all()
        assert len(segment.codes) == 26 and segment.states.dtype == np.float16


def same(one: Iterable[Segment], other: Iterable[Segment], by: int = 0) -> None:
    """The same bits, `by` segments later."""
    for mine, theirs in zip(one, other, strict=True):
        assert mine.index + by == theirs.index and mine.spoken == theirs.spoken
        for name in ("states", "is_speech", "codes", "text"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
        assert np.array_equal(mine.ticks + 26 * by, theirs.ticks)


class TestGiven:
    @pytest.mark.parametrize(("text", "speech"), [(0, 26), (45, 88), (200, 130), (13, 1), (0, 400)])
    def test_its_states_are_those_of_the_recorded_sample(
        self, text: int, speech: int, bundled: Thinker, silence: np.ndarray
    ) -> None:
        dialogue = Dialogue(bundled, silence)
        dialogue.speak(codes(1, speech), words(2, text))
        found = said(dialogue)
        keeps_time(found)
        sample = layout(VOCABULARY, words(2, text), codes(1, speech))
        wanted = hidden_states(bundled, sample)
        kept = [segment.ticks < (26 * segment.index + 26 if at < len(found) - 1 else speech) for at, segment in enumerate(found)]  # fmt: skip
        kept[-1] |= ~found[-1].is_speech  # the text of the last segment may reach beyond its speech
        states = np.concatenate([segment.states[own] for segment, own in zip(found, kept, strict=True)])
        ticks = np.concatenate([segment.ticks[own] for segment, own in zip(found, kept, strict=True)])
        assert np.abs(states.astype(np.float32) - wanted).max() < HALF
        np.testing.assert_allclose(ticks / 12.5, sample.turn.times, atol=1e-9)
        assert np.array_equal(
            dialogue.stream.ids[: dialogue.stream.length], np.concatenate([sample.prompt, sample.ids])
        )
        assert np.concatenate([segment.codes for segment in found])[:speech].tolist() == codes(1, speech).tolist()

    def test_a_segment_costs_one_pass(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        dialogue.speak(codes(1, 26 * 9 + 1), words(1, 40))
        said(dialogue)
        assert dialogue.stream.forwards == 1 + 10  # and one for the prompt

    def test_in_pieces_it_is_the_same_and_no_later(self, bundled: Thinker, silence: np.ndarray) -> None:
        whole, pieces, heard = Dialogue(bundled, silence), Dialogue(bundled, silence), 0

        def coming() -> Iterable[np.ndarray]:
            nonlocal heard
            for part in np.split(codes(1, 100), [0, 3, 30, 31, 90]):
                heard += len(part)
                yield part

        whole.speak(codes(1, 100), words(2, 20))
        pieces.speak(coming(), words(2, 20))
        first = taken(pieces, 1)
        assert heard == 30
        same(said(whole), [*first, *said(pieces)])

    def test_its_last_segment_is_filled_with_silence(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        number = dialogue.speak(codes(1, 30))
        (_, last, after), pause = taken(dialogue, 3), silence_of(bundled, silence)
        assert last.codes.tolist() == [*codes(1, 30)[26:].tolist(), *silence[30:52].tolist()]
        assert np.array_equal(last.states[4:], pause.states[30:52]) and last.spoken and not after.spoken
        assert last.turns.tolist() == [number] * 4 + [SILENT] * 22 and set(after.turns.tolist()) == {SILENT}


class TestQuestion:
    def test_the_thinker_reads_what_its_own_demo_gives_it(self, silence: np.ndarray) -> None:
        dialogue = Dialogue(scripted([*range(100, 113), *range(ZERO, ZERO + 30), END]), silence, sampling=GREEDY, held=False)  # fmt: skip
        dialogue.ask("Who are you?")
        dialogue.ask([7, 16_383])
        said(dialogue)
        answer = text_of(np.array([*range(100, 113), *range(ZERO, ZERO + 30)]))
        assert text_of(dialogue.stream.ids[: dialogue.stream.length]) == (
            "[gMASK]<sop><|system|>\nUser will provide you with a text instruction. Do it step by step. First, think "
            "about the instruction and respond in a interleaved manner, with 13 text token followed by 26 audio "
            f"tokens.<|user|>\nWho are you?<|assistant|>streaming_transcription\n{answer}<|user|>\n<|begin_of_audio|>"
            f"<7><16383><|end_of_audio|><|assistant|>streaming_transcription\n{answer}"
        )

    def test_the_instruction_goes_by_the_first_question_that_is_left(self, silence: np.ndarray) -> None:
        cases: list[tuple[list[str | tuple[int, ...]], str]] = [(["Hi?", (7,)], "a text"), ([(7,), "Hi?"], "a speech")]
        for users, kind in cases:
            turns = [Turn(at, user, question(VOCABULARY, user)) for at, user in enumerate(users)]
            assert f"provide you with {kind} instruction" in text_of(spelled(VOCABULARY, turns))
            assert np.array_equal(spelled(VOCABULARY, turns[:1]), prompt_ids(VOCABULARY, users[0]))

    def test_what_was_read_is_not_read_again(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        for seed in (1, 2):
            dialogue.speak(codes(seed, 52))
        said(dialogue)
        assert dialogue.stream.forwards == 2 * (1 + 2)


class TestContext:
    """400 tokens of context, 300 of which are left when it is full."""

    SIZE = 400

    @pytest.fixture
    def full(self, bundled: Thinker, silence: np.ndarray) -> Dialogue:
        """After three turns, one of which had to go."""
        dialogue = Dialogue(bundled, silence, context=self.SIZE)
        for seed in range(4):
            dialogue.speak(codes(seed, 78), words(seed, 20))
        said(dialogue)
        return dialogue

    def test_whole_oldest_turns_go(self, full: Dialogue) -> None:
        kept = [turn.number for turn in full.turns]
        assert kept and kept == list(range(4 - len(kept), 4)) and len(kept) < 4
        assert all(len(turn) == len(question(VOCABULARY, ())) + 98 for turn in full.turns)
        assert full.stream.length == len(spelled(VOCABULARY, full.turns)) <= self.SIZE

    def test_after_that_it_is_a_new_dialogue_of_the_turns_that_are_left(
        self, bundled: Thinker, silence: np.ndarray
    ) -> None:
        old, compared = Dialogue(bundled, silence, context=self.SIZE), 0
        for seed in range(14):
            before = [deepcopy(turn) for turn in old.turns]
            old.speak(codes(seed, 26), words(seed, 13))
            found = said(old)
            left = {turn.number for turn in old.turns}
            if len(left) <= len(before):
                new = Dialogue(bundled, silence, context=self.SIZE)
                new.turns = [turn for turn in before if turn.number in left]
                new.speak(codes(seed, 26), words(seed, 13))
                same(said(new), found, by=found[0].index)
                compared += 1
        assert compared >= 2

    @pytest.mark.parametrize("speech", [26 * 12, 26 * 30 + 5])
    def test_a_turn_too_long_keeps_its_last_segments(self, speech: int, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue, cut = Dialogue(bundled, silence, context=self.SIZE), 0
        dialogue.speak(codes(9, speech), words(9, speech // 2))
        turn, prompt = turn_of(speech // 2, speech), prompt_ids(VOCABULARY)
        whole = layout(VOCABULARY, words(9, speech // 2), codes(9, speech), context=10**6)
        for at in range(speech // 26):
            (segment,) = taken(dialogue, 1)
            ids = np.concatenate([part.ids for part in dialogue.turns[0].parts])
            end = int(np.searchsorted(turn.segment, at, side="right"))
            assert np.array_equal(ids, whole.ids[end - len(ids) : end])  # the last ones, and whole segments
            assert end == len(ids) or turn.segment[end - len(ids) - 1] < turn.segment[end - len(ids)]
            wanted = hidden_states(bundled, Layout(prompt, ids, turn))[-39:]
            assert np.abs(segment.states.astype(np.float32) - wanted).max() < HALF
            assert dialogue.stream.length == len(prompt) + len(ids) <= self.SIZE
            cut += len(ids) < end
        assert cut > 3

    def test_an_answer_goes_on_across_it(self, silence: np.ndarray) -> None:
        cycle = [*range(100, 113), *range(ZERO, ZERO + 26)]
        dialogue = Dialogue(scripted([*cycle, cycle[0]]), silence, sampling=GREEDY, held=False, context=self.SIZE, longest=13)  # fmt: skip
        dialogue.ask("Count.")
        found = said(dialogue)
        keeps_time(found)
        assert len(found) == 13 and all(segment.codes.tolist() == list(range(26)) for segment in found)
        assert dialogue.stream.length <= self.SIZE and len(dialogue.turns[0].parts) < 8

    def test_it_makes_room_for_a_while(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence, context=800)
        dialogue.speak(codes(1, 26 * 100))
        said(dialogue, most=101)
        length = len(prompt_ids(VOCABULARY))
        passes, prompt = 1, length
        for _ in range(100):
            if 800 - length < LONGEST_SEGMENT:
                length = prompt + (600 - prompt) // 26 * 26
                passes += 1
            length, passes = length + 26, passes + 1
        assert passes < 120
        assert (dialogue.stream.forwards, dialogue.stream.length) == (passes, length)


class TestMemory:
    def test_ten_thousand_tokens_leave_it_as_it_was(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue, sizes = Dialogue(bundled, silence, context=1024), []
        held = dialogue.stream.keys.data_ptr(), dialogue.stream.values.data_ptr(), dialogue.stream.keys.nbytes
        tracemalloc.start()
        try:
            for seed in range(24):
                dialogue.speak(codes(seed, 26 * 11), words(seed, 143))
                last = said(dialogue)[-1]
                taken(dialogue, 3)
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert 24 * 11 * 39 > 10_000 and last.index > 200
        assert abs(sizes[-1] - sizes[11]) < 0.01 * sizes[11]
        assert held == (dialogue.stream.keys.data_ptr(), dialogue.stream.values.data_ptr(), dialogue.stream.keys.nbytes)
        assert dialogue.stream.keys.shape[2] == 1024


class TestAnswer:
    """What a model may do, in the order in which its tokens come."""

    TEXT, SPEECH = list(range(100, 400)), list(range(ZERO, ZERO + 400))

    def answer(self, silence: np.ndarray, script: list[int], **options: int) -> tuple[list[Segment], Dialogue]:
        dialogue = Dialogue(scripted(script), silence, sampling=GREEDY, held=False, **options)
        dialogue.ask("Well?")
        found = said(dialogue)
        keeps_time(found)
        return found, dialogue

    def test_the_pattern(self, silence: np.ndarray) -> None:
        script = [*self.TEXT[:13], *self.SPEECH[:26], *self.TEXT[13:20], *self.SPEECH[26:52], *self.SPEECH[52:80]]
        found, dialogue = self.answer(silence, [*script, END])
        assert np.concatenate([segment.codes for segment in found])[:80].tolist() == list(range(80))
        assert [segment.text.tolist() for segment in found] == [self.TEXT[:13], self.TEXT[13:20], [], []]
        assert [len(segment.states) for segment in found] == [39, 33, 26, 26]
        assert found[0].ticks[:13].tolist() == list(range(0, 26, 2)) and found[1].ticks[:7].tolist() == list(range(26, 40, 2))  # fmt: skip
        assert dialogue.turns[0].parts[0].ids == script[:39]
        ids = np.array([token for part in dialogue.turns[0].parts for token in part.ids])
        assert ids.tolist() == script

    def test_its_states_are_those_where_each_token_is_the_input(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence, longest=2)
        dialogue.ask("Well?")
        found = said(dialogue)
        prompt = prompt_ids(VOCABULARY, "Well?")
        ids = dialogue.stream.ids[len(prompt) : dialogue.stream.length]
        wanted = hidden_states(bundled, Layout(prompt, ids, turn_of(26, 52)))
        assert np.abs(np.concatenate([segment.states for segment in found]).astype(np.float32) - wanted).max() < HALF
        assert dialogue.stream.forwards == 1 + 2 * 39

    def test_speech_first(self, silence: np.ndarray) -> None:
        script = [*self.SPEECH[:10], *self.TEXT[:13], *self.SPEECH[10:30], *self.TEXT[13:15], *self.SPEECH[30:52]]
        found, _ = self.answer(silence, [*script, END])
        assert np.concatenate([segment.codes for segment in found]).tolist() == list(range(52))
        assert [segment.text.tolist() for segment in found] == [self.TEXT[:13], self.TEXT[13:15]]
        assert [len(segment.states) for segment in found] == [39, 28]

    def test_more_text_than_has_a_place_is_read_not_acted(self, silence: np.ndarray) -> None:
        script = [*self.TEXT[:20], *self.SPEECH[:5], *self.TEXT[20:25], *self.SPEECH[5:26]]
        (segment,), dialogue = self.answer(silence, [*script, END])
        assert segment.codes.tolist() == list(range(26)) and segment.text.tolist() == self.TEXT[:25]
        assert len(segment.states) == 39
        assert dialogue.turns[0].parts[0].ids == script

    def test_text_without_end_does_not_stop_the_clock(self, silence: np.ndarray) -> None:
        script = [*self.TEXT[:7], self.TEXT[0]]
        found, dialogue = self.answer(silence, script, longest=3)
        assert len(found) == 3 and not any(segment.spoken for segment in found)
        assert all(len(segment.text) == MOST_TEXT and segment.is_speech.all() for segment in found)
        assert dialogue.stream.forwards == 1 + 3 * MOST_TEXT

    def test_too_much_text_in_the_middle_ends_the_segment(self, silence: np.ndarray) -> None:
        script = [*self.SPEECH[:6], *self.TEXT[: MOST_TEXT + 4], *self.SPEECH[6:32]]
        found, dialogue = self.answer(silence, [*script, END])
        assert [segment.spoken for segment in found] == [True, True]
        assert found[0].codes.tolist() == [*range(6), *silence[6:26].tolist()]
        assert found[1].codes.tolist() == list(range(6, 32)) and len(found[1].text) == 4
        assert max(len(part.ids) for part in dialogue.turns[0].parts) <= LONGEST_SEGMENT

    @pytest.mark.parametrize("speech", [0, 26])
    def test_text_at_the_end_that_no_speech_says(self, speech: int, silence: np.ndarray) -> None:
        found, dialogue = self.answer(silence, [*self.SPEECH[:speech], *self.TEXT[:9], END])
        assert len(found) == 1 + speech // 26
        assert found[-1].text.tolist() == self.TEXT[:9] and found[-1].is_speech.all() and not found[-1].spoken
        assert dialogue.turns[0].parts[-1].ids == self.TEXT[:9]

    def test_it_ends_at_once(self, silence: np.ndarray) -> None:
        dialogue = Dialogue(scripted([END]), silence, sampling=GREEDY, held=False)
        dialogue.ask("Well?")
        found = taken(dialogue, 2)
        keeps_time(found)
        assert dialogue.idle and not any(segment.spoken for segment in found)

    def test_other_ids_never_come(self, silence: np.ndarray) -> None:
        """A model that wants a special token says the best of what it may."""
        dialogue = Dialogue(scripted([100, VOCABULARY.special("<|system|>")]), silence, sampling=GREEDY, held=False, longest=1)  # fmt: skip
        dialogue.ask("Well?")
        said(dialogue)
        ids = [token for part in dialogue.turns[0].parts for token in part.ids]
        assert ids[0] == 100 and all(token < WhisperBpe().codes or token >= ZERO for token in ids)

    def test_it_is_ended_after_the_longest(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence, longest=2)
        dialogue.ask("Well?")
        found = taken(dialogue, 3)
        assert [segment.spoken for segment in found] == [True, True, False] and dialogue.idle
        assert all(len(segment.states) == 39 for segment in found[:2])  # what has learned no pattern is held to it

    def test_official_ids(self, silence: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        glm_thinker.make(tmp_path / "glm-4-voice-9b")
        glm_text.make(tmp_path / "glm-4-voice-text")
        thinker = load_thinker("glm-4-voice-9b")
        tokens = tokens_of(thinker)
        assert tokens.text == 420 and tokens.ends == {420, 427, 429}  # as 151329, 151336 and 151338 of the true size
        assert np.flatnonzero(~tokens.may_come(168_960)).tolist() == [
            *(token for token in range(421, tokens.zero) if token not in tokens.ends), *range(tokens.zero + 16_384, 168_960)
        ]  # fmt: skip
        dialogue = Dialogue(thinker, silence, sampling=Sampling(1, 1), longest=1)
        assert not dialogue.held
        dialogue.ask("Well?")
        keeps_time(taken(dialogue, 2))
        ids = dialogue.stream.ids[len(prompt_ids(thinker.vocabulary, "Well?")) : dialogue.stream.length]
        assert len(ids) and tokens.may_come(168_960)[ids].all()


class TestSeed:
    def talk(self, thinker: Thinker, silence: np.ndarray, seed: int, first: int = 26) -> list[Segment]:
        dialogue = Dialogue(thinker, silence, seed=seed, sampling=Sampling(1, 1, 50), longest=1)
        dialogue.speak(codes(0, first))
        dialogue.ask("Well?")
        return said(dialogue)

    def test_the_same_seed_says_the_same(self, bundled: Thinker, silence: np.ndarray) -> None:
        state = torch.random.get_rng_state()
        first = self.talk(bundled, silence, 1)
        np.random.default_rng().random(5)
        same(first, self.talk(bundled, silence, 1))
        assert torch.equal(state, torch.random.get_rng_state())

    def test_another_one_does_not(self, bundled: Thinker, silence: np.ndarray) -> None:
        one, other = (self.talk(bundled, silence, seed)[1].codes for seed in (1, 2))
        assert not np.array_equal(one, other)


class TestSilence:
    def test_it_goes_on_for_ever_and_costs_nothing(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue, pause = Dialogue(bundled, silence), silence_of(bundled, silence)
        found = taken(dialogue, 3 * SILENT_SEGMENTS)
        keeps_time(found)
        same(found[:SILENT_SEGMENTS], found[-SILENT_SEGMENTS:], by=2 * SILENT_SEGMENTS)
        assert not any(segment.spoken for segment in found) and dialogue.stream.forwards == 0 and dialogue.idle
        own = hidden_states(bundled, layout(VOCABULARY, np.empty(0, np.int32), silence))
        assert np.array_equal(np.concatenate([segment.states for segment in found[:SILENT_SEGMENTS]]), own)
        assert np.array_equal(pause.codes, np.concatenate([segment.codes for segment in found[:SILENT_SEGMENTS]]))

    def test_the_dialogue_never_sees_it(self, bundled: Thinker, silence: np.ndarray) -> None:
        found = []
        for pause in (0, 5):
            dialogue = Dialogue(bundled, silence, longest=1, sampling=Sampling(1, 1, 50))
            taken(dialogue, pause)
            dialogue.speak(codes(0, 40), words(0, 30))
            said(dialogue)
            taken(dialogue, 2 * pause)
            dialogue.ask("Well?")
            (answer,) = said(dialogue)
            found.append((answer, dialogue.stream.ids[: dialogue.stream.length]))
        same([found[0][0]], [found[1][0]], by=15)
        assert np.array_equal(found[0][1], found[1][1])
        assert not np.isin(ZERO + silence, found[0][1]).any()

    def test_it_must_be_whole_segments(self, bundled: Thinker) -> None:
        for count in (0, 25):
            with pytest.raises(ValueError, match="silence is whole segments of 26 tokens"):
                silence_of(bundled, codes(0, count))


class TestInterrupt:
    def test_what_was_heard_stays_and_what_follows_begins_at_once(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        number = dialogue.speak(codes(1, 260), words(1, 80))
        before = taken(dialogue, 6)
        dialogue.interrupt(chunk=14)  # 56 tokens were heard, 4 of them of the third segment
        assert [len(part.ids) for part in dialogue.turns[0].parts] == [39, 39, 17]
        other = dialogue.speak(codes(2, 40), words(2, 20))
        again = said(dialogue)
        keeps_time(again, first=2)
        assert again[0].codes.tolist() == [*codes(1, 56)[52:].tolist(), *codes(2, 22).tolist()]
        assert again[0].turns.tolist() == [number] * 4 + [other] * 22
        heard = before[2].ticks < 56
        assert np.array_equal(again[0].states[again[0].ticks < 56], before[2].states[heard])
        assert again[0].text.tolist() == [*words(1, 28)[26:].tolist(), *words(2, 20)[:11].tolist()]
        ids = np.concatenate([layout(VOCABULARY, words(1, 80), codes(1, 260)).ids[:95], question(VOCABULARY, ())])
        prompt = prompt_ids(VOCABULARY)
        assert np.array_equal(dialogue.stream.ids[len(prompt) :][: len(ids)], ids)

    def test_it_goes_on_as_if_no_more_had_been_said(self, bundled: Thinker, silence: np.ndarray) -> None:
        cut, new = (Dialogue(bundled, silence, longest=1) for _ in range(2))
        cut.speak(codes(1, 260))
        taken(cut, 8)
        cut.interrupt(chunk=13)
        new.speak(codes(1, 52))
        said(new)
        for dialogue in (cut, new):
            dialogue.ask("Well?")
        same(said(cut), said(new))

    def test_an_answer_is_cut_and_its_question_stays(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence, longest=9)
        dialogue.ask("Well?")
        (first,) = taken(dialogue, 1)
        for _ in range(20):
            assert dialogue.step() is None  # in the middle of the second segment's text
        dialogue.interrupt(chunk=1)
        ids = spelled(VOCABULARY, dialogue.turns)
        assert text_of(ids).endswith("Well?<|assistant|>streaming_transcription\n" + text_of(np.array([*first.text, *(ZERO + first.codes[:4])])))  # fmt: skip
        again = taken(dialogue, 2)
        keeps_time(again)
        assert again[0].codes.tolist() == [*first.codes[:4].tolist(), *silence[4:26].tolist()] and dialogue.idle
        dialogue.interrupt(chunk=0)
        assert text_of(spelled(VOCABULARY, dialogue.turns)).endswith("Well?<|assistant|>streaming_transcription\n")

    @pytest.mark.parametrize("steps", [0, 1, 20])
    def test_a_question_that_was_next_stays_though_nothing_was_said_yet(
        self, bundled: Thinker, silence: np.ndarray, steps: int
    ) -> None:
        dialogue = Dialogue(bundled, silence, longest=1)
        taken(dialogue, 1)
        dialogue.ask("Well?")
        dialogue.ask("And you?")  # waits for its turn
        for _ in range(steps):
            assert dialogue.step() is None
        dialogue.interrupt(chunk=3)
        assert [turn.user for turn in dialogue.turns] == ["Well?"]
        dialogue.ask("No?")
        assert said(dialogue)[0].spoken
        read = text_of(dialogue.stream.ids[: dialogue.stream.length])
        _, answer = read.split("Well?<|assistant|>streaming_transcription\n")
        assert answer.startswith("<|user|>") and "No?<|assistant|>" in answer and "And you?" not in read

    def test_a_question_behind_an_answer_is_forgotten(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence, longest=2)
        dialogue.ask("Well?")
        taken(dialogue, 1)
        dialogue.ask("And you?")
        dialogue.interrupt(chunk=3)
        assert [turn.user for turn in dialogue.turns] == ["Well?"]

    def test_speech_of_which_nothing_was_heard_never_was(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        taken(dialogue, 2)
        dialogue.speak(codes(1, 100))
        dialogue.speak(codes(2, 100))
        taken(dialogue, 2)
        dialogue.interrupt(chunk=13)
        assert dialogue.turns == [] and dialogue.idle
        same(taken(dialogue, 3), taken(Dialogue(bundled, silence), 5)[2:])

    def test_without_a_chunk_all_of_it_was_heard(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        dialogue.speak(codes(1, 100))
        found = taken(dialogue, 2)
        dialogue.interrupt()
        assert dialogue.idle and len(dialogue.turns[0].parts) == 2
        keeps_time([*found, *taken(dialogue, 2)])
        dialogue.interrupt(chunk=10**6)
        assert len(dialogue.turns[0].parts) == 2

    def test_back_to_a_mark_is_as_if_nothing_had_come_after_it(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence, longest=2)
        dialogue.speak(codes(1, 52))
        said(dialogue)
        mark = dialogue.mark()
        dialogue.ask("Well?")
        taken(dialogue, 1)
        for _ in range(2):  # another time, when its stream has read what is told again
            dialogue.interrupt(since=mark)
            assert dialogue.idle and dialogue.quiet
            new = Dialogue(bundled, silence, longest=2)
            new.speak(codes(1, 52))
            said(new)
            new.ask("Well?")
            new.interrupt()  # before any of it was said; but it was asked
            for each in (dialogue, new):
                each.speak(codes(2, 60))
            same(said(dialogue), said(new))

    def test_only_so_far_back(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        taken(dialogue, BACK + 2)
        dialogue.interrupt(chunk=13)
        keeps_time(taken(dialogue, BACK + 2), first=2)
        with pytest.raises(ValueError, match=f"tick 100 is more than {BACK} segments before segment {BACK + 4}"):
            dialogue.interrupt(chunk=25)


@pytest.fixture(scope="module")
def unruly() -> Thinker:
    """Against every rule of the pattern."""
    text, speech = iter(range(100, 400)), iter(range(ZERO, ZERO + 400))
    sizes = [(0, 3), (15, 7), (2, 30), (60, 1), (13, 26), (1, 1), (5, 0)]
    return scripted([token for told, heard in sizes for token in (*islice(text, told), *islice(speech, heard))] + [END])


COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("speak"), st.integers(1, 90)),
        st.tuples(st.just("ask"), st.integers(1, 3)),
        st.tuples(st.just("steps"), st.integers(1, 60)),
        st.tuples(st.just("segments"), st.integers(1, 5)),
        st.tuples(st.just("interrupt"), st.integers(0, 40)),
    ),
    max_size=12,
)


@given(COMMANDS)
@settings(max_examples=15)
def test_whatever_happens_the_clock_goes_on(
    unruly: Thinker, silence: np.ndarray, commands: list[tuple[str, int]]
) -> None:
    dialogue = Dialogue(unruly, silence, sampling=GREEDY, held=False, context=400)
    due = 0

    def came(segments: list[Segment]) -> None:
        nonlocal due
        keeps_time(segments, first=due)
        due += len(segments)

    for command, value in [*commands, ("segments", 3)]:
        if command == "speak":
            dialogue.speak(codes(value, value), words(value, value))
        elif command == "ask":
            dialogue.ask("Well?" * value)
        elif command == "steps":
            came([found for _ in range(value) if (found := dialogue.step())])
        elif command == "segments":
            came(taken(dialogue, value))
        else:  # nothing that lies ahead has been shown, nor anything far behind
            chunk = max(0, 26 * due // 4 - value)
            dialogue.interrupt(chunk)
            due = min(due, 4 * chunk // 26)
        assert dialogue.stream.length <= 400
        assert all(
            len(part.ids) == len(part.ticks) <= LONGEST_SEGMENT for turn in dialogue.turns for part in turn.parts
        )
        assert int(KEPT * 400) == 300


class TestRefused:
    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (lambda d: d.ask(""), "there is nothing to answer to: the question is empty"),
            (lambda d: d.ask(" \n"), "there is nothing to answer to: the question is empty"),
            (lambda d: d.ask([]), "there is nothing to answer to: the question is empty"),
            (lambda d: d.ask([3, 16_384]), r"speech tokens must be .* 0 ... 16383, found int64 \[2\] from 3 to 16384; were"),
            (lambda d: d.ask([-1]), r"speech tokens must be .* from -1 to -1"),
            (lambda d: d.ask([0.5]), r"speech tokens must be .* found float64"),
            (lambda d: d.ask("why " * 8000), "a question of [0-9]+ tokens does not fit in a context of 8192, of which [0-9]+ are for it; ask a shorter one"),
            (lambda d: d.speak(np.empty(0, np.int32)), "there is nothing to speak: the speech is empty"),
            (lambda d: d.speak([]), "there is nothing to speak: the speech is empty"),
            (lambda d: d.speak(np.zeros((2, 2), np.int32)), r"speech tokens must be \[n\] whole numbers .* \[2, 2\]"),
            (lambda d: d.speak(np.zeros(4, np.int32), [ZERO]), r"text tokens must be .* 0 ... 50256"),
        ],
    )  # fmt: skip
    def test_it_is_one_line_and_nothing_happens(
        self, request_: Callable[[Dialogue], object], message: str, bundled: Thinker, silence: np.ndarray
    ) -> None:
        dialogue = Dialogue(bundled, silence)
        with pytest.raises(UsageError, match=message) as caught:
            request_(dialogue)
        assert "\n" not in str(caught.value)
        assert dialogue.idle and dialogue.turns == []

    def test_a_piece_that_is_none_ends_the_turn(self, bundled: Thinker, silence: np.ndarray) -> None:
        dialogue = Dialogue(bundled, silence)
        dialogue.speak(iter([codes(0, 30), np.array([99_999])]))
        (first,) = taken(dialogue, 1)
        with pytest.raises(UsageError, match="speech tokens must be"):
            taken(dialogue, 1)
        keeps_time([first, *taken(dialogue, 2)])
        assert dialogue.idle

    def test_a_context_that_holds_no_segment(self, bundled: Thinker, silence: np.ndarray) -> None:
        with pytest.raises(UsageError, match="does not fit in a context of 150, of which 0 are for it"):
            Dialogue(bundled, silence, context=150).ask("Well?")

    def test_settings_out_of_range(self, bundled: Thinker, silence: np.ndarray) -> None:
        with pytest.raises(UsageError, match="an answer has one segment at least, not 0"):
            Dialogue(bundled, silence, longest=0)
        with pytest.raises(UsageError, match="the seed must be 0 or more, not -1"):
            Dialogue(bundled, silence, seed=-1)

    def test_a_thinker_that_gives_no_numbers(self, silence: np.ndarray) -> None:
        broken = scripted([ZERO, ZERO + 1, END])
        dialogue = Dialogue(broken, silence, sampling=GREEDY, held=False)
        broken.model.model.embed_tokens.weight[ZERO + 1] = torch.nan
        dialogue.ask("Well?")
        with pytest.raises(ModelError, match="thinker bundled scripted gives states that are no float16 numbers"):
            taken(dialogue, 1)
