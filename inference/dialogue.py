"""The Thinker's side of a stream: questions and given speech in, segments of 2.08 s out, for as long as one likes.

One call of `step` is one forward pass at most, so that whoever drives it can listen in between. While there is
nothing to say segments are silence, from a context of its own: the dialogue never sees it.

The pattern of 13 text and 26 speech tokens is the model's, not enforced; the clock is ours. A segment ends with its
26th speech token, wherever its text came. Text tokens after the 13th have no time of their own: they stay in the
dialogue, but the Actor does not get their states. After MOST_TEXT of them the segment ends with silence in the place
of speech, so that a model that writes on and on neither stops the clock nor runs for longer than a segment may take.
A turn ends with one of the model's ends, or after `longest` segments; silence fills its last segment, and text that
no speech follows is not acted. Other ids (special tokens, unused ones) are never drawn. The bundled Thinker has
learned no pattern: it is held to it, and has no end of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inference.context import (
    KEPT,
    LONGEST_SEGMENT,
    MOST_TEXT,
    SPEECH_CODES,
    Part,
    Tokens,
    Turn,
    check_question,
    forget,
    question,
    spelled,
    tokens_of,
)
from inference.sampling import Sampling, dice, drawn
from inference.segments import Segment
from inference.timeline import Row, Timeline, silence_of
from manifests.errors import ModelError, UsageError
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS
from models.dialogue_layout import CONTEXT_TOKENS, TEXT_TICKS
from models.thinker import BUNDLED, Thinker
from models.thinker_stream import Read, ThinkerStream

LONGEST_ANSWER = 51
"""Segments of an answer at most: the 2,000 tokens of GLM-4-Voice's own demo."""

Steps = Iterator[None]
"""Runs one forward pass a step."""


@dataclass(frozen=True, eq=False)
class Mark:
    """Where a dialogue stood: its clock, its turns, and the ids that its stream had read; the last turn that had begun,
    and whether it was being said."""

    timeline: Timeline
    turns: list[Turn]
    read: np.ndarray
    begun: int
    running: bool


class Dialogue:
    """A dialogue with a Thinker, on the clock of one stream.

    silence: [m] codes, whole segments of silence (`inference.timeline.silent_codes`). seed: answers are a function
    of it, of the number of the turn and of what was said before. context: tokens that the Thinker sees at once.
    longest: segments of an answer at most. held: whether the Thinker is held to the pattern; None: where it has
    learned none.

    turns: what the Thinker has before it, oldest first. timeline: the clock. stream: the Thinker's cache.
    """

    def __init__(
        self,
        thinker: Thinker,
        silence: np.ndarray,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        context: int = CONTEXT_TOKENS,
        longest: int = LONGEST_ANSWER,
        held: bool | None = None,
    ) -> None:
        dice(seed, 0)
        if longest < 1:
            raise UsageError(f"an answer has one segment at least, not {longest}")
        self.thinker, self.sampling, self.seed, self.longest = thinker, sampling or Sampling(), seed, longest
        self.stream = ThinkerStream(thinker, context)
        self.timeline = Timeline(silence_of(thinker, np.asarray(silence)))
        self.turns: list[Turn] = []
        self.tokens: Tokens = tokens_of(thinker)
        self._waiting: deque[tuple[Turn, Callable[[Turn], Steps]]] = deque()
        self._running: Steps | None = None
        self._asked = 0
        self._begun = -1  # the last turn whose turn it was, or that was forgotten
        self.held = thinker.identity.split()[0] == BUNDLED if held is None else held
        self._ban, self._ban_speech, self._ban_text = self._bans()
        self.stream.warm()

    def _bans(self) -> Iterator[Tensor]:
        """[vocabulary] each, to be added to logits, -inf for what must not come: what never may, all but text, all
        but speech."""
        size, device = self.thinker.model.config.vocab_size, self.thinker.model.device
        may, ids = self.tokens.may_come(size), np.arange(size)
        for allowed in (may, may & (ids < self.tokens.text), may & self.tokens.is_speech(ids)):
            yield torch.zeros(size).masked_fill(torch.from_numpy(~allowed), -torch.inf).to(device)

    # What it is told

    def ask(self, user: str | Sequence[int] | np.ndarray) -> int:
        """The Thinker will answer to `user`, text or speech codes, after all that it was told before. Returns the
        number of the turn. Raises UsageError for nothing, for codes that are none, and for more than can fit."""
        if not len(user) or (isinstance(user, str) and not user.strip()):
            raise UsageError("there is nothing to answer to: the question is empty")
        said = user if isinstance(user, str) else tuple(_checked("speech", user, SPEECH_CODES).tolist())
        return self._add(said, self._answered)

    def speak(self, speech: np.ndarray | Iterable[np.ndarray], text: Sequence[int] | np.ndarray = ()) -> int:
        """These are the words of the next turn: `speech` codes [n], in pieces of any length if they come one by one,
        and what they say as `text` ids, laid out as recorded samples are. Returns the number of the turn. Raises
        UsageError for no speech and for codes and ids that are none; for pieces, when they come. That pieces have
        ended is only known when another is asked for, after the last segment."""
        told = _checked("text", text, self.tokens.text)
        pieces = iter([speech] if isinstance(speech, np.ndarray) else speech)
        first = next((piece for piece in pieces if len(piece)), None)
        if first is None:
            raise UsageError("there is nothing to speak: the speech is empty")
        begun = _checked("speech", first, SPEECH_CODES)
        live = not isinstance(speech, np.ndarray)
        return self._add((), partial(self._spoken, first=begun, rest=pieces, text=told, live=live))

    def _add(self, user: str | tuple[int, ...], run: Callable[[Turn], Steps]) -> int:
        turn = Turn(self._asked, user, question(self.thinker.vocabulary, user))
        check_question(self.thinker.vocabulary, turn, self.stream.context)
        self._waiting.append((turn, run))
        self._asked += 1
        return turn.number

    def interrupt(self, chunk: int | None = None, since: Mark | None = None) -> None:
        """Stops, and forgets what was not shown: everything from `chunk` on, the first that nobody has seen (None:
        all that was laid out counts as seen), and all that waits for its turn. since: as if nothing had been done
        since then; what was asked in between counts.

        The clock goes back to that chunk; the segment that it begins in is given once more. Of an answer stays what
        was heard, with the text in front of it; its question stays in any case, also where nothing was being said and
        it was next. Given speech of which nothing was heard does not. Raises ValueError for a chunk that lies further
        back than `timeline.BACK` segments.
        """
        here = self.mark() if since is None else since
        timeline, turns = here.timeline.copy(), [turn.copy() for turn in here.turns]
        tick = timeline.cut(timeline.head if chunk is None else chunk * CHUNK_SPEECH_TOKENS)
        later = [turn for turn in (*self.turns, *(turn for turn, _ in self._waiting)) if turn.number > here.begun]
        if later and not here.running:
            turns.append(Turn(later[0].number, later[0].user, later[0].asked))
        for turn in turns:
            turn.cut(tick)
        self.timeline, self.turns = timeline, [turn for turn in turns if turn.parts or turn.user]
        self.stream.rewind(self.stream.shared(here.read))
        self._running, self._begun = None, self._asked - 1
        self._waiting.clear()

    def mark(self) -> Mark:
        """What is said so far, to go back to."""
        read = self.stream.ids[: self.stream.length].copy()
        running = self._running is not None
        return Mark(self.timeline.copy(), [turn.copy() for turn in self.turns], read, self._begun, running)

    # What comes of it

    @property
    def idle(self) -> bool:
        """Whether all that it was told is said and handed out: what comes is silence."""
        head, given = self.timeline.head, self.timeline.given * SEGMENT_SPEECH_TOKENS
        return self._running is None and not self._waiting and head <= given

    @property
    def quiet(self) -> bool:
        """Whether the next step makes silence: nothing runs, nothing waits, no segment is complete."""
        return self._running is None and not self._waiting and not self.timeline.ready

    def segments(self) -> Iterator[Segment]:
        """One after the other, without end; what it is told in between counts from the next one on."""
        while True:
            found = self.step()
            if found is not None:
                yield found

    def step(self) -> Segment | None:
        """The next segment, if it is complete, else at most one forward pass on the way there."""
        if self.timeline.ready:
            return self.timeline.segment()
        if self._running is None and self._waiting:
            turn, run = self._waiting.popleft()
            self._running, self._begun = run(turn), turn.number
        if self._running is None:
            self.timeline.hush((self.timeline.given + 1) * SEGMENT_SPEECH_TOKENS)
        elif next(self._running, True):
            self._running = None
            self.timeline.rest()
        return None

    # How a turn runs

    def _answered(self, turn: Turn) -> Steps:
        """The Thinker's own answer. What follows a token is drawn in the same step, so that its end is known before
        its last segment is handed out."""
        read, numbers = self._opened(turn), dice(self.seed, turn.number)
        for _ in range(self.longest):
            part, begin, told = Part(), self.timeline.head, list[Row]()
            count = 0
            while self.timeline.head < begin + SEGMENT_SPEECH_TOKENS and count < MOST_TEXT:
                token = drawn(read.logits + self._barred(count), self.sampling, numbers.random())
                if token in self.tokens.ends:
                    self.timeline.lay(_not_acted(told))
                    return
                yield
                if not part.ids:
                    yield from self._room_for(turn, part)
                read = self.stream.read(np.array([token]))
                row = self._row(turn, token, begin, count, self._states(read)[0])
                part.add(token, row.tick if row.speech else None)
                told, count = [*told, row], count + (not row.speech)
                if row.speech or self.timeline.head > begin:  # text alone waits for the speech that says it
                    self.timeline.lay(told)
                    told = []
            self.timeline.lay(_not_acted(told))
            self.timeline.hush(begin + SEGMENT_SPEECH_TOKENS)

    def _spoken(
        self, turn: Turn, first: np.ndarray, rest: Iterator[np.ndarray], text: np.ndarray, *, live: bool
    ) -> Steps:
        """An answer that is given. live: in pieces that may be waited for, so that what is there is handed out
        before another is asked for; else its end is known before its last segment is handed out."""
        self._opened(turn)
        for at, codes in enumerate(_in_segments(first, rest)):
            if not (live and at):
                yield
            part, begin = Part(), self.timeline.head
            yield from self._room_for(turn, part)
            told = text[at * SEGMENT_TEXT_TOKENS : (at + 1) * SEGMENT_TEXT_TOKENS].tolist()
            ids = [*told, *(self.tokens.zero + int(code) for code in codes)]
            states = self._states(self.stream.read(np.array(ids), logits=False))
            for place, (token, state) in enumerate(zip(ids, states, strict=True)):
                row = self._row(turn, token, begin, place, state)
                part.add(token, row.tick if row.speech else None)
                self.timeline.lay([row])
            if live:
                yield

    def _barred(self, text: int) -> Tensor:
        """The ban for what follows `text` text tokens of a segment."""
        if not self.held:
            return self._ban
        return self._ban_speech if text < SEGMENT_TEXT_TOKENS else self._ban_text

    def _row(self, turn: Turn, token: int, begin: int, text: int, state: np.ndarray) -> Row:
        """Where a token lies whose segment begins at tick `begin` and has `text` text tokens before it."""
        if self.tokens.is_speech(token):
            return Row(self.timeline.head, True, token - self.tokens.zero, state, turn.number)
        place = min(text, SEGMENT_TEXT_TOKENS - 1)
        return Row(begin + place * TEXT_TICKS, False, token, state if place == text else None, turn.number)

    def _states(self, read: Read) -> np.ndarray:
        """[n, H] float16. Raises ModelError when they are no numbers."""
        states = read.states.to(torch.float16).cpu().numpy()
        if not np.isfinite(states).all():
            raise ModelError(
                f"thinker {self.thinker.identity} gives states that are no float16 numbers; fetch its weights again"
            )
        return states

    # The context

    def _opened(self, turn: Turn) -> Read:
        """Reads the question of a new turn, which needs room for a segment after it; what has been read already, and
        still stands in front of it, is not read again."""
        self.turns.append(turn)
        ids = spelled(self.thinker.vocabulary, self.turns)
        if len(ids) + LONGEST_SEGMENT > self.stream.context:
            return self._again()
        self.stream.rewind(self.stream.shared(ids[:-1]))
        return self.stream.read(ids[self.stream.length :])

    def _room_for(self, turn: Turn, part: Part) -> Steps:
        """Adds a segment to the last turn, and makes room for it where there is none."""
        if self.stream.room < LONGEST_SEGMENT:
            self._again()
            yield
        turn.parts.append(part)

    def _again(self) -> Read:
        """Forgets the oldest, and reads what is left from position 0."""
        forget(self.thinker.vocabulary, self.turns, int(KEPT * self.stream.context))
        self.stream.rewind(0)
        return self.stream.read(spelled(self.thinker.vocabulary, self.turns))


def _not_acted(rows: list[Row]) -> list[Row]:
    """The same without states."""
    return [row._replace(state=None) for row in rows]


def _checked(kind: str, ids: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """[n] int64. Raises UsageError unless they are ids 0 ... count - 1."""
    found = np.asarray(ids)
    if not found.size:
        return np.empty(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= count:
        among = f" from {found.min()} to {found.max()}" if found.dtype.kind in "iuf" else ""
        raise UsageError(
            f"{kind} tokens must be [n] whole numbers 0 ... {count - 1}, found {found.dtype} {list(found.shape)}{among}; "
            "were they made by the Thinker's own codecs?"
        )
    return found.astype(np.int64)


def _in_segments(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Codes in pieces of any length as pieces of 26, the last one shorter; each as soon as it is there."""
    held = first
    while True:
        while len(held) >= SEGMENT_SPEECH_TOKENS:
            yield held[:SEGMENT_SPEECH_TOKENS]
            held = held[SEGMENT_SPEECH_TOKENS:]
        piece = next(rest, None)
        if piece is None:
            break
        held = np.concatenate([held, _checked("speech", piece, SPEECH_CODES)])
    if len(held):
        yield held
