"""How a dialogue lies before the Thinker: the prompt, then `[13 text | 26 speech]*`, each token with its time.

GLM-4-Voice (arXiv:2412.02612, section 3.2) answers in turns of segments: 13 text tokens, then the 26 speech tokens
that say them, speech alone once the text has run out. A segment is 2.08 s of the clock of `models.clock`.
Everything here is a pure function of tokens and counts; no model, no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from manifests.errors import UsageError
from models.clock import SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS, SPEECH_HZ

LAYOUT_VERSION = 1
"""Raised whenever the same tokens may come in another order, with other times or after another prompt."""
CONTEXT_TOKENS = 8192
"""Tokens that GLM-4-Voice was trained to see at once, prompt included."""
TEXT_TICKS = SEGMENT_SPEECH_TOKENS // SEGMENT_TEXT_TOKENS
"""A text token lasts as long as two speech tokens, so that 13 of them fill a segment."""

SPEECH_INSTRUCTION = (
    "User will provide you with a speech instruction. Do it step by step. First, think about the instruction and "
    "respond in a interleaved manner, with 13 text token followed by 26 audio tokens. "
)
TEXT_INSTRUCTION = SPEECH_INSTRUCTION.replace("speech", "text").rstrip()
"""The system prompts that GLM-4-Voice was tuned with (its web_demo.py), word for word, spaces included."""

START = ("[gMASK]", "<sop>")
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
BEGIN_AUDIO, END_AUDIO, AUDIO_0 = "<|begin_of_audio|>", "<|end_of_audio|>", "<|audio_0|>"
SPECIALS = (*START, SYSTEM, USER, ASSISTANT, BEGIN_AUDIO, END_AUDIO, AUDIO_0)
"""Special tokens that a vocabulary must know; speech code c is AUDIO_0 + c."""
MODE = "streaming_transcription"
"""What follows ASSISTANT when it is to answer in text and speech by turns."""


class Vocabulary(Protocol):
    """Ids of a Thinker. Text tokens are ids as they are."""

    def special(self, name: str) -> int:
        """Id of a special token ("<|user|>"). Raises ModelError for one that it does not have."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """[n] int32 ids of plain text, in which no special token is read."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits; another one means that ids mean something else."""
        ...


@dataclass(frozen=True, eq=False)
class Turn:
    """The order of one turn's n tokens.

    speech: [n] bool, a speech token (else text). index: [n] int64, which token of the text or of the speech it is.
    segment: [n] int64, the segment that it belongs to, from the turn's beginning. times: [n] float64, s from the
    beginning of the turn's speech: text token j of segment n begins at 2.08 n + 0.16 j, speech token i at 0.08 i.
    """

    speech: np.ndarray
    index: np.ndarray
    segment: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.speech)


@dataclass(frozen=True, eq=False)
class Layout:
    """A sequence as the Thinker reads it. prompt: [p] int64 ids; ids: [n] int64, of the turn after it; turn: what
    each of them is."""

    prompt: np.ndarray
    ids: np.ndarray
    turn: Turn


def turn_of(text: int, speech: int, limit: int | None = None) -> Turn:
    """The order of `text` text tokens and `speech` speech tokens of one turn.

    Speech decides how many segments there are, the last of which may be short. Text beyond 13 tokens a segment is
    left out: it would follow the last speech, where no chunk of video looks, and what comes later changes no
    state before it. limit: tokens at most; a longer turn keeps its last segments, with the times that they have.
    """
    segments = -(-speech // SEGMENT_SPEECH_TOKENS)
    first = 0
    while limit is not None and first < segments and _tokens(text, speech, first) > limit:
        first += 1
    told = np.arange(first * SEGMENT_TEXT_TOKENS, max(0, min(text, segments * SEGMENT_TEXT_TOKENS)))
    said = np.arange(first * SEGMENT_SPEECH_TOKENS, speech)
    is_speech = np.repeat([False, True], [len(told), len(said)])
    index = np.concatenate([told, said]).astype(np.int64)
    segment = np.where(is_speech, index // SEGMENT_SPEECH_TOKENS, index // SEGMENT_TEXT_TOKENS)
    ticks = np.where(is_speech, index, segment * SEGMENT_SPEECH_TOKENS + index % SEGMENT_TEXT_TOKENS * TEXT_TICKS)
    order = np.lexsort((index, is_speech, segment))
    return Turn(is_speech[order], index[order], segment[order], ticks[order] / SPEECH_HZ)


def _tokens(text: int, speech: int, first: int) -> int:
    """Tokens of the turn from segment `first` on."""
    segments = -(-speech // SEGMENT_SPEECH_TOKENS)
    told = min(text, segments * SEGMENT_TEXT_TOKENS) - first * SEGMENT_TEXT_TOKENS
    return max(0, told) + speech - first * SEGMENT_SPEECH_TOKENS


def prompt_ids(vocabulary: Vocabulary, user: str | Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """[p] int64: the official prompt up to where the assistant's turn begins.

    user: what the user says, as text or as speech tokens. None by default: a recorded clip is an answer whose
    question is not known, and the assistant begins after an empty speech.
    """
    spoken = not isinstance(user, str)
    said: list[int] = vocabulary.encode(f"\n{user}").tolist() if isinstance(user, str) else _audio(vocabulary, user)
    instruction = SPEECH_INSTRUCTION if spoken else TEXT_INSTRUCTION
    return np.array(
        [
            *map(vocabulary.special, START),
            vocabulary.special(SYSTEM),
            *vocabulary.encode(f"\n{instruction}").tolist(),
            vocabulary.special(USER),
            *said,
            vocabulary.special(ASSISTANT),
            *vocabulary.encode(f"{MODE}\n").tolist(),
        ],
        np.int64,
    )


def _audio(vocabulary: Vocabulary, codes: Sequence[int] | np.ndarray) -> list[int]:
    """The user's speech as it stands after USER."""
    zero = vocabulary.special(AUDIO_0)
    begin, end = vocabulary.special(BEGIN_AUDIO), vocabulary.special(END_AUDIO)
    return [*vocabulary.encode("\n").tolist(), begin, *(zero + int(code) for code in codes), end]


def layout(
    vocabulary: Vocabulary,
    text: np.ndarray,
    speech: np.ndarray,
    *,
    user: str | Sequence[int] | np.ndarray = (),
    context: int = CONTEXT_TOKENS,
) -> Layout:
    """The sequence of a sample: its `text` [t] and `speech` [4k] tokens as the assistant's turn after the prompt.

    context: tokens that fit; a longer turn keeps its last segments behind the whole prompt. Raises UsageError when
    not even one segment fits.
    """
    prompt = prompt_ids(vocabulary, user)
    turn = turn_of(len(text), len(speech), context - len(prompt))
    if len(speech) and not len(turn):
        raise UsageError(f"a prompt of {len(prompt)} tokens leaves no room for a segment in {context}; shorten it")
    told = np.asarray(text, np.int64)
    said = np.asarray(speech, np.int64) + vocabulary.special(AUDIO_0)
    ids = np.empty(len(turn), np.int64)
    ids[~turn.speech] = told[turn.index[~turn.speech]]
    ids[turn.speech] = said[turn.index[turn.speech]]
    return Layout(prompt, ids, turn)
