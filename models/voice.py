"""Voice activity: Silero VAD from the ONNX file inside its package (github.com/snakers4/silero-vad, MIT).

The network reads 16 kHz sound in windows of 512 samples, each behind the last 64 of the one before, and
carries an LSTM state; the package's sequence export takes a run of windows in one call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from models.clock import ANALYSIS_RATE
from models.onnx import open_session, package_file

WINDOW = 512
"""Samples that one probability stands for."""
WINDOW_S = WINDOW / ANALYSIS_RATE
CONTEXT = 64
"""Samples before a window that the network sees with it (since version 5 of the model)."""
BLOCK = 32
"""Windows a call: nearly all of the speed of a long call in the memory of one second of sound."""
HYSTERESIS = 0.15
"""A voice begins at the threshold and ends this far below it, as in the package's own segmenter."""

Segments = list[tuple[float, float]]


@functools.cache
def _session() -> Any:
    return open_session(package_file("silero_vad", "data", "silero_vad_16k_sequence.onnx"))


class SpeechDetector:
    """Speech probabilities of one stream of sound, in constant memory however long it is.

    Equal, bit for bit, for the same samples in whatever pieces they come. Raises ModelError when the
    package or its file is missing.
    """

    def __init__(self) -> None:
        self._session = _session()
        self._hidden = np.zeros((1, 1, 128), np.float32)
        self._cell = np.zeros((1, 1, 128), np.float32)
        self._rest = np.zeros(CONTEXT, np.float32)

    def probabilities(self, chunk: np.ndarray) -> np.ndarray:
        """[m] float32 in 0 ... 1, one for each window of 32 ms that `chunk` ([n] float32, 16 kHz) completes.

        Samples that are no numbers count as zero: one of them would silence the network for good.
        """
        chunk = np.nan_to_num(np.asarray(chunk, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        samples = np.concatenate((self._rest, chunk))
        count = (len(samples) - CONTEXT) // WINDOW
        self._rest = samples[count * WINDOW :].copy()
        if not count:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + WINDOW)[::WINDOW][:count]
        return np.concatenate([self._run(windows[at : at + BLOCK]) for at in range(0, count, BLOCK)])

    def finish(self) -> np.ndarray:
        """[0 or 1] float32: the window that the end of the stream left incomplete, filled with zeros."""
        left = len(self._rest) - CONTEXT
        return self.probabilities(np.zeros(WINDOW - left, np.float32)) if left else np.zeros(0, np.float32)

    def _run(self, windows: np.ndarray) -> np.ndarray:
        feed = {"input": np.ascontiguousarray(windows), "h": self._hidden, "c": self._cell}
        found, self._hidden, self._cell = self._session.run(["speech_probs", "hn", "cn"], feed)
        return np.asarray(found, np.float32).reshape(-1)


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """[ceil(n / 512)] float32: the speech probability of each 32 ms of `samples` ([n] float32, 16 kHz)."""
    detector = SpeechDetector()
    return np.concatenate((detector.probabilities(samples), detector.finish()))


def segments(
    probabilities: np.ndarray,
    *,
    threshold: float = 0.5,
    min_speech_s: float = 0.25,
    min_silence_s: float = 0.1,
    pad_s: float = 0.03,
) -> Segments:
    """Where a voice is active: (start, end) in seconds from the first window, ascending, never touching.

    A run of speech begins at `threshold` and lasts until the probability falls below threshold - 0.15;
    runs closer than `min_silence_s` are one, those shorter than `min_speech_s` none; each grows by `pad_s`
    on both sides, to the middle of a pause at most. The defaults are the package's.
    """
    active = _active(np.asarray(probabilities), threshold, max(threshold - HYSTERESIS, 0.01))
    edges = np.flatnonzero(np.diff(np.concatenate(([0], active.astype(np.int8), [0]))))
    runs = _joined([(float(a), float(b)) for a, b in edges.reshape(-1, 2) * WINDOW_S], min_silence_s)
    kept = [(a, b) for a, b in runs if b - a >= min_speech_s]
    return _padded(kept, pad_s, len(probabilities) * WINDOW_S)


def pauses(found: Sequence[tuple[float, float]], total_s: float) -> Segments:
    """The rest of 0 ... total_s, in seconds: where no voice of `found` (ascending) is active."""
    edges = [0.0, *(edge for segment in found for edge in segment), total_s]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


def voice_segments(samples: np.ndarray, **options: float) -> Segments:
    """`segments` of `samples` ([n] float32, 16 kHz), none beyond their end; `options` as `segments` takes."""
    end = len(samples) / ANALYSIS_RATE
    found = segments(speech_probabilities(samples), **options)
    return [(a, min(b, end)) for a, b in found if a < end]


def _active(probabilities: np.ndarray, enter: float, leave: float) -> np.ndarray:
    """[m] bool with hysteresis: on at `enter`, off below `leave`, as before in between."""
    decided = (probabilities >= enter) | (probabilities < leave)
    last = np.maximum.accumulate(np.where(decided, np.arange(len(probabilities)), -1))
    return np.where(last >= 0, probabilities[last] >= enter, False)


def _joined(runs: Segments, gap_s: float) -> Segments:
    """`runs` with those closer than `gap_s` made one."""
    out: Segments = []
    for start, end in runs:
        if out and start - out[-1][1] < gap_s:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def _padded(runs: Segments, pad_s: float, total_s: float) -> Segments:
    """`runs` grown by `pad_s`, where two would meet by less, so that a pause stays between them."""
    edges = [-np.inf, *(edge for run in runs for edge in run), np.inf]
    rooms = [min(pad_s, (after - before) / 2 - WINDOW_S / 4) for before, after in pairwise(edges)][::2]
    grown = [(a - rooms[i], b + rooms[i + 1]) for i, (a, b) in enumerate(runs)]
    return [(max(0.0, float(a)), min(total_s, float(b))) for a, b in grown]
