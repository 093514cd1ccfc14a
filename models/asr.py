"""Speech recognition, what its engines share: words with times, windows of speech, loops of a decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from models.voice import Segments

Word = tuple[str, float, float, float]
"""Word, start and end in seconds, confidence 0-1."""

QUIET_S = 0.2
"""A stretch that is too long is cut in the quietest moment of this length, in its second half."""
PHRASE_WORDS = 8
"""Longest phrase that is looked for in a loop."""
MOST_REPEATS = 3
"""A phrase said more often than this in a row is a decoder that hangs, of which one is kept."""


def shortened(samples: np.ndarray, rate: int, spans: Segments, longest_s: float) -> Segments:
    """`spans` (seconds of `samples`, [n] float32) of which none is longer than `longest_s`."""
    out: Segments = []
    for start, end in spans:
        while end - start > longest_s:
            cut = _quietest(samples, rate, start + longest_s / 2, start + longest_s)
            out.append((start, cut))
            start = cut
        out.append((start, end))
    return out


def _quietest(samples: np.ndarray, rate: int, first_s: float, last_s: float) -> float:
    """The middle, in seconds, of the QUIET_S of least power between two times."""
    begin, size = round(first_s * rate), round(QUIET_S * rate)
    power = np.cumsum(np.square(samples[begin : round(last_s * rate)], dtype=np.float64))
    return (begin + int(np.argmin(power[size:] - power[:-size])) + size / 2) / rate


def windows(spans: Segments, longest_s: float) -> list[Segments]:
    """`spans`, in their order, in groups that hold at most `longest_s` of speech, as few as their order allows."""
    out: list[Segments] = []
    for span in spans:
        if out and _seconds([*out[-1], span]) <= longest_s:
            out[-1].append(span)
        else:
            out.append([span])
    return out


def _seconds(spans: Sequence[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)


def packed(samples: np.ndarray, rate: int, spans: Segments) -> np.ndarray:
    """[m] float32: the sound of `spans` end to end, so that no silence is left to make words of.

    The cut and its undoing are those of faster-whisper's voice filter (github.com/SYSTRAN/faster-whisper).
    """
    return np.concatenate([samples[round(start * rate) : round(end * rate)] for start, end in spans])


def unpacked(words: Iterable[Word], spans: Segments) -> list[Word]:
    """`words`, timed in the sound that `packed` made of `spans`, at the times where they were said.

    The middle of a word tells its span; it lies within that.
    """
    begins = [0.0, *accumulate(end - start for start, end in spans)]
    out: list[Word] = []
    for word, start, end, confidence in words:
        at = int(np.clip(np.searchsorted(begins, (start + end) / 2, side="right") - 1, 0, len(spans) - 1))
        low, high = spans[at]
        first, last = (min(high, max(low, time - begins[at] + low)) for time in (start, end))
        out.append((word, first, last, confidence))
    return out


def without_loops(words: Sequence[Word]) -> list[Word]:
    """`words` in which a phrase of up to PHRASE_WORDS that follows itself more than MOST_REPEATS times in a row
    stands once: what a decoder that hangs repeats, a speaker says three times at most."""
    plain = [word.lower().strip(" .,!?;:-\"'") for word, *_ in words]
    out: list[Word] = []
    at = 0
    while at < len(words):
        length, count = _loop(plain, at)
        if count <= MOST_REPEATS:
            length, count = 1, 1
        out.extend(words[at : at + length])
        at += length * count
    return out


def _loop(plain: Sequence[str], at: int) -> tuple[int, int]:
    """(words of the shortest phrase at `at` that loops, how often it stands there); (1, 1) where none does."""
    found = []
    for length in range(1, PHRASE_WORDS + 1):
        phrase, count = plain[at : at + length], 1
        while plain[at + count * length : at + (count + 1) * length] == phrase:
            count += 1
        found.append((length, count))
    looping = [one for one in found if one[1] > MOST_REPEATS]
    return min(looping) if looping else (1, 1)
