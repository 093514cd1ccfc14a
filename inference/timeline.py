"""The stream's clock: what is said is laid out in ticks of 0.08 s, silence fills what is left, segments are cut off.

A turn begins wherever the clock stands: at the beginning of a segment, but for one thing: after an interruption it
stands in the middle of one, and the next turn begins right there. Segments are always those of `models.clock`, 26
ticks each from the stream's beginning, so the model's own groups of 13 and 26 may then lie across two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from inference.segments import SILENT, Segment
from models.clock import SEGMENT_SPEECH_TOKENS, SPEECH_HZ
from models.dialogue_layout import TEXT_TICKS, layout
from models.speech_codec import SpeechTokenizer
from models.thinker import Thinker, hidden_states

SILENT_SEGMENTS = 8
"""Of silence, after which it comes again: 16.64 s, as long as a recorded clip of a silent person."""
BACK = 32
"""Segments behind the newest that an interruption can reach: over a minute."""


@dataclass(frozen=True, eq=False)
class Silence:
    """What the Actor hears while nobody speaks, over and over. codes: [m] int32, m whole segments; states: [m, H]
    float16. Tick t of any silence is the same: number t mod m."""

    codes: np.ndarray
    states: np.ndarray


def silent_codes(tokenizer: SpeechTokenizer) -> np.ndarray:
    """[m] int32, what `tokenizer` makes of digital silence."""
    rate = 16_000
    samples = round(SILENT_SEGMENTS * SEGMENT_SPEECH_TOKENS * rate / SPEECH_HZ)
    return tokenizer.encode(np.zeros(samples, np.float32), rate)


def silence_of(thinker: Thinker, codes: np.ndarray) -> Silence:
    """The silence of speech `codes` [m], in a context of its own: an answer of silence to an empty question, as
    recorded silence is in training. Raises ValueError unless they are whole segments."""
    if not len(codes) or len(codes) % SEGMENT_SPEECH_TOKENS:
        raise ValueError(f"silence is whole segments of {SEGMENT_SPEECH_TOKENS} tokens, not {len(codes)}")
    states = hidden_states(thinker, layout(thinker.vocabulary, np.empty(0, np.int32), codes))
    return Silence(np.asarray(codes, np.int32), states)


class Row(NamedTuple):
    """A token on the clock. tick: when; speech: else text; token: code or text id; state: [H] float16, or None for
    text that is read, not acted: it has no place among the 13 of its segment, or no speech; turn: its number, or
    SILENT."""

    tick: int
    speech: bool
    token: int
    state: np.ndarray | None
    turn: int


class Timeline:
    """head: ticks that are laid out, silence included. given: segments cut off so far."""

    def __init__(self, silence: Silence) -> None:
        self.silence, self.head, self.given = silence, 0, 0
        self._rows: list[Row] = []

    def lay(self, rows: Iterable[Row]) -> None:
        """Lays out what is said; speech comes tick after tick from `head` on. Text whose segment is cut off already
        is read with the next one, and not acted. Raises ValueError for speech at another tick."""
        for row in rows:
            if row.speech:
                if row.tick != self.head:
                    raise ValueError(f"tick {row.tick} comes at {self.head}")
                self.head += 1
            elif row.tick < (late := self.given * SEGMENT_SPEECH_TOKENS):
                row = row._replace(tick=late, state=None)
            self._rows.append(row)

    def hush(self, until: int) -> None:
        """Silence from `head` to tick `until`."""
        for tick in range(self.head, until):
            at = tick % len(self.silence.codes)
            self.lay([Row(tick, True, int(self.silence.codes[at]), self.silence.states[at], SILENT)])

    def rest(self) -> None:
        """What is said is over: silence up to where a segment begins. Text that lies later than that is read with
        the last segment, and not acted; where there is no other, it gets a silent one."""
        end = -(-self.head // SEGMENT_SPEECH_TOKENS) * SEGMENT_SPEECH_TOKENS
        if self.head == end and any(row.tick >= end for row in self._rows):
            end += SEGMENT_SPEECH_TOKENS
        self.hush(end)
        self._rows = [row if row.tick < end else row._replace(tick=end - 1, state=None) for row in self._rows]

    @property
    def ready(self) -> bool:
        """Whether a whole segment can be cut off."""
        return self.head >= (self.given + 1) * SEGMENT_SPEECH_TOKENS

    def segment(self) -> Segment:
        """Cuts off the next segment; text stands before speech, as in the Thinker's own order. Raises ValueError
        unless it is `ready`."""
        if not self.ready:
            raise ValueError(f"segment {self.given} is not complete at tick {self.head}")
        index, end = self.given, (self.given + 1) * SEGMENT_SPEECH_TOKENS
        own = sorted((row for row in self._of(index)), key=lambda row: (row.speech, row.tick))
        acted = [row for row in own if row.state is not None]
        self.given += 1
        self._rows = [row for row in self._rows if row.tick >= end - BACK * SEGMENT_SPEECH_TOKENS]
        return Segment(
            index=index,
            states=np.stack([row.state for row in acted if row.state is not None]),
            is_speech=np.array([row.speech for row in acted]),
            ticks=np.array([row.tick for row in acted], np.int64),
            codes=np.array([row.token for row in own if row.speech], np.int32),
            text=np.array([row.token for row in own if not row.speech], np.int32),
            spoken=any(row.speech and row.turn != SILENT for row in own),
            turns=self.turns(index),
        )

    def turns(self, index: int) -> np.ndarray:
        """[26] int64: whose each speech token of segment `index` is, the number of a turn or SILENT; of a segment
        laid out at most BACK segments ago."""
        return np.array([row.turn for row in self._of(index) if row.speech], np.int64)

    def cut(self, tick: int) -> int:
        """Forgets everything from `tick` on, or from `head`, where that is earlier, and returns where. The segment
        in which it lies comes again. Text that would have come later is forgotten too; silence fills up to the next
        tick on which a text token may begin. Raises ValueError for a tick more than BACK segments ago."""
        tick = min(tick, self.head)
        if tick < max(0, self.given - BACK) * SEGMENT_SPEECH_TOKENS:
            raise ValueError(f"tick {tick} is more than {BACK} segments before segment {self.given}")
        self._rows = [row for row in self._rows if row.tick < tick]
        self.head, self.given = tick, min(self.given, tick // SEGMENT_SPEECH_TOKENS)
        self.hush(-(-tick // TEXT_TICKS) * TEXT_TICKS)
        return tick

    def copy(self) -> Timeline:
        """One that goes on from here by itself."""
        found = Timeline(self.silence)
        found.head, found.given, found._rows = self.head, self.given, list(self._rows)
        return found

    def _of(self, index: int) -> Iterable[Row]:
        first = index * SEGMENT_SPEECH_TOKENS
        return (row for row in self._rows if first <= row.tick < first + SEGMENT_SPEECH_TOKENS)
