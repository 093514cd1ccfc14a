"""Speech out: tokens in pieces of any length give the very samples of the whole, 1,764 a token, and what is told,
recorded or silent lies on one clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import glm_voice
from streams_made import sound

from inference.segments import SILENT, Segment
from inference.sound import BACK_S, FADE_S, Sound
from manifests.errors import ModelError
from models.clock import SEGMENT_SPEECH_TOKENS, STORED_RATE
from models.codecs import speech_decoder
from models.speech_codec import BLOCK, NEAR, FsqMel
from models.weights import ENV

TOKEN = 1764
CODEC = FsqMel()


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """26 of speech, 6 of noise: every one next to another one that it does not expect."""
    wild = np.random.default_rng(0).integers(0, CODEC.codes, 6).astype(np.int32)
    return np.concatenate([CODEC.encode(sound(2.08), STORED_RATE), wild])


@pytest.mark.parametrize("size", [1, 3, 7, 26, 32])
def test_a_stream_has_the_bits_of_the_whole_whatever_the_pieces(tokens: np.ndarray, size: int) -> None:
    stream = CODEC.stream()
    parts = [stream.push(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    parts.append(stream.finish())
    assert np.array_equal(np.concatenate(parts), CODEC.decode(tokens))


def test_every_token_has_its_samples_and_comes_in_time(tokens: np.ndarray) -> None:
    stream, given = CODEC.stream(), 0
    for count in range(1, len(tokens) + 1):
        given += len(stream.push(tokens[count - 1 : count]))
        assert given == max(0, count - NEAR) // BLOCK * BLOCK * TOKEN
    assert given + len(stream.finish()) == len(tokens) * TOKEN
    assert len(stream.finish()) == 0  # a new utterance, of nothing
    assert np.array_equal(np.concatenate([stream.push(tokens[:9]), stream.finish()]), CODEC.decode(tokens[:9]))


def test_no_seam_where_blocks_meet(tokens: np.ndarray) -> None:
    """Second differences at block boundaries against those everywhere: a seam is a step, and stands out."""
    stream = CODEC.stream()
    made = np.concatenate([stream.push(tokens), stream.finish()])
    jump = np.abs(np.diff(made, 2))
    edges = np.arange(BLOCK * TOKEN, len(made), BLOCK * TOKEN)
    at_edges = np.array([jump[edge - 2 : edge + 1].max() for edge in edges])
    inside = np.array([jump[edge + 5 * k - 2 : edge + 5 * k + 1].max() for edge in edges[:-1] for k in range(1, 300)])
    assert at_edges.max() <= np.quantile(inside, 0.99)
    alone = np.concatenate([CODEC.decode(tokens[at : at + BLOCK]) for at in range(0, len(tokens), BLOCK)])
    seams = np.abs(np.diff(alone, 2))
    assert max(seams[edge - 2 : edge + 1].max() for edge in edges) > 2 * at_edges.max()  # what it would be without


def test_memory_and_work_a_token_do_not_grow() -> None:
    stream = CODEC.stream()
    for _ in range(40):
        stream.push(np.arange(100, 110))
        assert len(stream._held) <= 10 + 2 * NEAR + BLOCK


def test_tokens_that_are_none_are_refused_and_leave_the_stream_as_it_was(tokens: np.ndarray) -> None:
    stream = CODEC.stream()
    first = stream.push(tokens[:10])
    with pytest.raises(ValueError, match="speech tokens are 0"):
        stream.push(np.array([3, CODEC.codes]))
    assert np.array_equal(np.concatenate([first, stream.push(tokens[10:]), stream.finish()]), CODEC.decode(tokens))


# -- on the stream's clock -----------------------------------------------------------------------------------


def told(index: int, turns: list[tuple[int, int]], codes: np.ndarray) -> Segment:
    """A segment whose speech tokens are of turns (turn, count)."""
    whose = np.concatenate([np.full(count, turn) for turn, count in turns])
    states = np.zeros((SEGMENT_SPEECH_TOKENS, 4), np.float16)
    ticks = index * SEGMENT_SPEECH_TOKENS + np.arange(SEGMENT_SPEECH_TOKENS)
    return Segment(index, states, np.ones(26, bool), ticks, codes, np.empty(0, np.int32), True, whose)


def whole(sounds: Sound, chunks: int) -> np.ndarray:
    parts = [sounds.take(chunk) for chunk in range(chunks)]
    assert all(part is not None and len(part) == 4 * sounds.rate * 2 // 25 for part in parts)
    return np.concatenate([part for part in parts if part is not None])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_recording_is_heard_to_the_sample(rate: int) -> None:
    """From the middle of a segment over the end of it, silence before and after."""
    given, sounds = sound(1.5, rate), Sound(rate, None)
    sounds.record(5, given)
    codes = np.zeros(26, np.int32)
    sounds.hear(told(0, [(SILENT, 10), (5, 16)], codes))
    sounds.hear(told(1, [(5, 3), (SILENT, 23)], codes))
    heard, begin = whole(sounds, 13), 10 * rate * 2 // 25
    assert np.array_equal(heard[begin : begin + len(given)], given)
    assert not heard[:begin].any() and not heard[begin + len(given) :].any()


def test_speech_is_decoded_across_segments_and_silence_is_silent(tokens: np.ndarray) -> None:
    sounds = Sound(STORED_RATE, CODEC)
    sounds.hear(told(0, [(0, 26)], tokens[:26]))
    assert sounds.take(6) is None  # it waits for what follows
    codes = np.concatenate([tokens[26:], np.zeros(20, np.int32)])
    sounds.hear(told(1, [(0, 6), (SILENT, 20)], codes))
    heard, wanted = whole(sounds, 13), CODEC.decode(tokens)
    fade = round(FADE_S * STORED_RATE)
    assert np.array_equal(heard[: len(wanted) - fade], wanted[:-fade])
    assert abs(heard[len(wanted) - 1]) < 1e-6 and not heard[len(wanted) :].any()


def test_an_interruption_fades_and_leaves_nothing_behind(tokens: np.ndarray) -> None:
    sounds, given = Sound(STORED_RATE, CODEC), 0.5 * np.ones(STORED_RATE, np.float32)
    sounds.hear(told(0, [(0, 26)], tokens[:26]))
    whole(sounds, 3)
    sounds.record(9, given)
    sounds.drop(2)  # chunk 3 begins at token 12
    sounds.record(1, given)
    sounds.hear(told(0, [(0, 12), (1, 12), (SILENT, 2)], tokens[:26]))
    cut = 12 * TOKEN
    heard = np.concatenate([sounds.take(chunk) for chunk in (2, 3, 4, 5)])
    wanted, fade = CODEC.decode(tokens[:26]), round(FADE_S * STORED_RATE)
    assert np.array_equal(heard[: 4 * TOKEN], wanted[cut - 4 * TOKEN : cut])
    after = heard[4 * TOKEN :]
    assert np.allclose(after[:fade] - 0.5, wanted[cut : cut + fade] * np.linspace(1, 0, fade), atol=1e-6)
    assert (after[fade:] == 0.5).all()
    assert list(sounds._recorded) == [1]  # what nobody heard is forgotten


def test_sound_that_is_over_is_forgotten() -> None:
    sounds, codes = Sound(8_000, None), np.zeros(26, np.int32)
    sounds.record(0, np.ones(8_000, np.float32))
    for index in range(20):
        sounds.hear(told(index, [(0, 13), (SILENT, 13)] if not index else [(SILENT, 26)], codes))
        for chunk in range(index * 13 // 2, (index + 1) * 13 // 2):
            assert sounds.take(chunk) is not None
    assert len(sounds._held) <= (BACK_S + 3) * 8_000 and not sounds._recorded and not sounds._begun


def test_rates_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="16000 Hz"):
        Sound(16_000, CODEC)
    with pytest.raises(ValueError, match="22051 Hz"):
        Sound(22_051, None)
    with pytest.raises(ValueError, match="no recording"):
        Sound(8_000, None).hear(told(0, [(0, 26)], np.zeros(26, np.int32)))


def test_glm_voice_speaks_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sound comes later, and has as many samples."""
    glm_voice.install(tmp_path)
    monkeypatch.setenv(ENV, str(tmp_path))
    decoder, codes = speech_decoder("glm_4_voice 0123456789abcdef"), glm_voice.tokens(46, seed=1)
    sounds = Sound(decoder.rate, decoder)
    sounds.hear(told(0, [(0, 26)], codes[:26]))
    assert sounds.take(0) is not None and sounds.take(6) is None
    sounds.hear(told(1, [(0, 20), (SILENT, 6)], np.concatenate([codes[26:], np.zeros(6, codes.dtype)])))
    heard, wanted, fade = whole(sounds, 13), decoder.decode(codes), round(FADE_S * STORED_RATE)
    assert np.array_equal(heard[: 46 * TOKEN - fade], wanted[:-fade]) and not heard[46 * TOKEN :].any()
    with pytest.raises(ModelError, match="nothing here makes sound of the tokens of 'other 1'"):
        speech_decoder("other 1")
