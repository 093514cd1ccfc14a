"""What of a dialogue the Thinker has before it: turns, what they look like to it, and which of them must go.

Turns stand one after the other behind a single instruction, as in GLM-4-Voice's own demo: `<|user|>` question
`<|assistant|>` answer. When the context is full, whole oldest turns are dropped; of a turn that is too long by
itself, its oldest segments. No model here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manifests.errors import UsageError
from models.clock import SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS
from models.dialogue_layout import AUDIO_0, SPECIALS, USER, Vocabulary, prompt_ids
from models.speech_codec import FsqMel
from models.thinker import BUNDLED, GLM_4_VOICE, Thinker

MOST_TEXT = 4 * SEGMENT_TEXT_TOKENS
"""Text tokens of one segment at most; a model that goes on with text alone does not hold the clock up any longer."""
LONGEST_SEGMENT = MOST_TEXT + SEGMENT_SPEECH_TOKENS
"""Tokens of one segment at most."""
KEPT = 0.75
"""Of the context, what dropping leaves at most: dropping costs reading the rest again, so it makes room for a while."""
ENDS = {BUNDLED: (USER,), GLM_4_VOICE: ("<|endoftext|>", USER, "<|observation|>")}
"""Tokens that end a turn."""
SPEECH_CODES = FsqMel.codes
"""GLM-4-Voice's speech tokenizer has as many."""


@dataclass(frozen=True)
class Tokens:
    """Which ids are what. text: text tokens are 0 ... text - 1. zero: speech code c is zero + c. ends: ids that end
    a turn."""

    text: int
    zero: int
    ends: frozenset[int]

    def is_speech(self, token: Any) -> Any:
        """Of an int, or of a whole array of them: speech; else text, or an end."""
        return (self.zero <= token) & (token < self.zero + SPEECH_CODES)

    def may_come(self, size: int) -> np.ndarray:
        """[size] bool: ids that an answer may be made of, and its ends."""
        found = np.zeros(size, bool)
        found[: self.text] = found[self.zero : self.zero + SPEECH_CODES] = True
        found[list(self.ends)] = True
        return found


def tokens_of(thinker: Thinker) -> Tokens:
    """Of a Thinker; its special tokens follow the text's."""
    special = thinker.vocabulary.special
    ends = ENDS[thinker.identity.split()[0]]
    first = min(special(name) for name in (*SPECIALS, *ends))
    return Tokens(first, special(AUDIO_0), frozenset(map(special, ends)))


@dataclass
class Part:
    """One segment of an answer as the Thinker gave or read it. ids: its tokens; ticks: of each, when it is heard on
    the stream's clock (0.08 s), None for text."""

    ids: list[int] = field(default_factory=list)
    ticks: list[int | None] = field(default_factory=list)

    def add(self, token: int, tick: int | None) -> None:
        self.ids.append(token)
        self.ticks.append(tick)

    def cut(self, tick: int) -> None:
        """Keeps what was heard before `tick`, with the text in front of it."""
        heard = [at for at, when in enumerate(self.ticks) if when is not None and when < tick]
        kept = heard[-1] + 1 if heard else 0
        del self.ids[kept:], self.ticks[kept:]


@dataclass
class Turn:
    """A question and its answer. number: in the order of asking. user: what was asked, text or speech codes, or ()
    for a turn whose answer is given. asked: [q] int64, the question as the Thinker reads it. parts: the answer."""

    number: int
    user: str | tuple[int, ...]
    asked: np.ndarray
    parts: list[Part] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.asked) + sum(len(part.ids) for part in self.parts)

    def copy(self) -> Turn:
        """One whose answer goes on by itself."""
        parts = [Part(list(part.ids), list(part.ticks)) for part in self.parts]
        return Turn(self.number, self.user, self.asked, parts)

    def cut(self, tick: int) -> None:
        """Forgets what was not heard before `tick`."""
        for part in self.parts:
            part.cut(tick)
        self.parts = [part for part in self.parts if part.ids]


def question(vocabulary: Vocabulary, user: str | Sequence[int] | np.ndarray) -> np.ndarray:
    """[q] int64: a question as it stands behind the instruction or another answer."""
    prompt = prompt_ids(vocabulary, user)
    return prompt[_instructed(vocabulary, prompt) :]


def spelled(vocabulary: Vocabulary, turns: Sequence[Turn]) -> np.ndarray:
    """[n] int64: `turns`, one or more, as the Thinker reads them. What the first of them was asked by, text or
    speech, decides which instruction stands in front."""
    prompt = prompt_ids(vocabulary, "" if isinstance(turns[0].user, str) else ())
    said = [ids for turn in turns for ids in (turn.asked, *(np.array(part.ids, np.int64) for part in turn.parts))]
    return np.concatenate([prompt[: _instructed(vocabulary, prompt)], *said])


def forget(vocabulary: Vocabulary, turns: list[Turn], limit: int) -> None:
    """Drops whole oldest turns until `turns` fit in `limit` tokens; of the last one, its oldest segments."""
    while len(spelled(vocabulary, turns)) > limit:
        if len(turns) > 1:
            del turns[0]
        elif turns[0].parts:
            del turns[0].parts[0]
        else:
            raise UsageError(f"a question of {len(turns[0])} tokens does not fit in {limit}; ask a shorter one")


def check_question(vocabulary: Vocabulary, turn: Turn, context: int) -> None:
    """Raises UsageError when the question leaves no room for its answer even if all else is forgotten."""
    most = int(KEPT * context) - LONGEST_SEGMENT - len(spelled(vocabulary, [turn])) + len(turn)
    if len(turn) > most:
        raise UsageError(
            f"a question of {len(turn)} tokens does not fit in a context of {context}, of which {max(0, most)} are "
            "for it; ask a shorter one"
        )


def _instructed(vocabulary: Vocabulary, prompt: np.ndarray) -> int:
    """Tokens in front of the question."""
    return int(np.flatnonzero(prompt == vocabulary.special(USER))[0])
