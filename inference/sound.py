"""What a stream sounds like: decoded speech, recordings as they are, and silence, sample after sample on its clock."""

from __future__ import annotations

import numpy as np

from inference.segments import SILENT, Segment
from models.clock import CHUNK_FRAMES, CHUNK_SPEECH_TOKENS, FPS, SEGMENT_SPEECH_TOKENS, SPEECH_HZ
from models.speech_codec import SpeechDecoder, SpeechStream

FADE_S = 0.005
"""Where speech is broken off, its next 5 ms fade away, so that nothing clicks."""
BACK_S = 12.0
"""Of sound that was taken is held, for an interruption that goes back to it."""


class Sound:
    """Of one stream, at `rate` Hz. decoder: makes sound of the tokens that no recording goes with; None where all have
    one. Raises ValueError for a decoder of another rate, and for a rate without whole samples a frame."""

    def __init__(self, rate: int, decoder: SpeechDecoder | None) -> None:
        if rate % FPS or (decoder is not None and decoder.rate != rate):
            raise ValueError(f"sound of {rate} Hz cannot be made; the decoder gives {decoder and decoder.rate}")
        self.rate, self._decoder = rate, decoder
        self._token = round(rate / SPEECH_HZ)
        self._recorded: dict[int, np.ndarray] = {}
        self._begun: dict[int, int] = {}  # the tick at which a recorded turn began
        self._head = 0  # ticks that came
        self._first, self._held = 0, np.empty(0, np.float32)  # the sample at which what is held begins
        self._turn, self._stream = SILENT, None  # whose tokens are being decoded
        self._tail = np.empty(0, np.float32)

    _stream: SpeechStream | None

    def record(self, turn: int, samples: np.ndarray) -> None:
        """What is heard while turn number `turn` is spoken: samples [n] float32 at `rate` Hz, untouched."""
        self._recorded[turn] = np.asarray(samples, np.float32)

    def hear(self, segment: Segment) -> None:
        """The next segment, or one again that was interrupted."""
        first = segment.index * SEGMENT_SPEECH_TOKENS
        turns = segment.turns[: len(segment.codes)]
        at = self._head - first
        while at < len(turns):
            turn = int(turns[at])
            same = np.flatnonzero(turns[at:] != turn)
            end = at + int(same[0]) if len(same) else len(turns)
            self._lay(turn, first + at, segment.codes[at:end])
            at = end
        self._head = first + len(turns)

    def _lay(self, turn: int, tick: int, codes: np.ndarray) -> None:
        if turn != self._turn:
            self.finish()
            self._turn = turn
        if turn == SILENT:
            self._add(np.zeros(len(codes) * self._token, np.float32))
        elif turn in self._recorded:
            begun = self._begun.setdefault(turn, tick)
            part = self._recorded[turn][(tick - begun) * self._token :][: len(codes) * self._token]
            self._add(np.pad(part, (0, len(codes) * self._token - len(part))))
        else:
            if self._decoder is None:
                raise ValueError(f"turn {turn} has no recording, and there is no decoder")
            self._stream = self._stream or self._decoder.stream()
            self._add(self._stream.push(codes))

    def finish(self) -> None:
        """What is being spoken is over, or the stream: nothing more waits to be decoded."""
        if self._stream is not None:
            rest = self._stream.finish()
            fade = min(len(rest), round(FADE_S * self.rate))
            rest[len(rest) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
            self._add(rest)
        self._turn, self._stream = SILENT, None

    def _add(self, samples: np.ndarray) -> None:
        count = min(len(self._tail), len(samples))
        if count:
            samples = samples.copy()
            samples[:count] += self._tail[:count]
            self._tail = self._tail[count:]
        self._held = np.concatenate([self._held, samples])

    def take(self, chunk: int, frames: int = CHUNK_FRAMES) -> np.ndarray | None:
        """[frames * rate / 25] float32 of the first `frames` frames of `chunk`; None where they are not all there yet."""
        begin = chunk * CHUNK_FRAMES * self.rate // FPS - self._first
        end = begin + frames * self.rate // FPS
        if end > len(self._held):
            return None
        found = self._held[begin:end].copy()
        past = begin - round(BACK_S * self.rate)
        if past > 0:
            self._held, self._first = self._held[past:], self._first + past
            self._forget()
        return found

    def _forget(self) -> None:
        """Recordings that are over for good."""
        for turn, samples in list(self._recorded.items()):
            if self._begun.get(turn, self._head) * self._token + len(samples) < self._first:
                del self._recorded[turn], self._begun[turn]

    def drop(self, shown: int) -> None:
        """An interruption: what follows chunk `shown` is forgotten, but for what fades away."""
        tick = (shown + 1) * CHUNK_SPEECH_TOKENS
        if self._stream is not None:
            self._add(self._stream.finish())
        place = max(0, tick * self._token - self._first)
        tail = self._held[place:][: round(FADE_S * self.rate)]
        self._tail = tail * np.linspace(1, 0, len(tail), dtype=np.float32)
        self._held, self._head = self._held[:place], min(self._head, tick)
        self._turn, self._stream = SILENT, None
        self._begun = {turn: at for turn, at in self._begun.items() if at < tick}
        self._recorded = {turn: each for turn, each in self._recorded.items() if turn in self._begun}
