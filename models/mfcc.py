"""Mel-frequency cepstra as python_speech_features makes them with its defaults: what SyncNet hears."""

from __future__ import annotations

from functools import cache

import numpy as np

from models.clock import ANALYSIS_RATE

WINDOW, STEP, SIZE = ANALYSIS_RATE // 40, ANALYSIS_RATE // 100, 512
"""25 ms windows, 10 ms apart, and the length of the transform, in samples."""
BANDS, COEFFICIENTS = 26, 13
LIFTER, EMPHASIS = 22, 0.97
SMALLEST = float(np.finfo(float).eps)
"""Stands for a power of 0, whose logarithm does not exist."""


def mfcc(samples: np.ndarray) -> np.ndarray:
    """[n, 13] float64 cepstra, 100 a second, of `samples` [k] int16 at 16 kHz; the last window is filled with zeros.

    Coefficient 0 is the log of the window's energy. Windows are rectangular (Davis and Mermelstein 1980, in the
    form of python_speech_features 0.6). Raises ValueError without samples.
    """
    from scipy.fft import dct

    if not len(samples):
        raise ValueError("no samples")
    wave = np.asarray(samples, np.float64)
    wave = np.append(wave[0], wave[1:] - EMPHASIS * wave[:-1])
    count = 1 + max(0, -(-(len(wave) - WINDOW) // STEP))
    wave = np.append(wave, np.zeros((count - 1) * STEP + WINDOW - len(wave)))
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::STEP]
    power = np.abs(np.fft.rfft(windows, SIZE)) ** 2 / SIZE
    bands = np.log(positive(power @ mel_filters().T))
    cepstra = dct(bands, type=2, axis=1, norm="ortho")[:, :COEFFICIENTS]
    cepstra *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    cepstra[:, 0] = np.log(positive(power.sum(1)))
    return np.asarray(cepstra)


def positive(power: np.ndarray) -> np.ndarray:
    """`power` with SMALLEST in place of zeros."""
    return np.where(power == 0, SMALLEST, power)


@cache
def mel_filters() -> np.ndarray:
    """[26, 257] float64 triangles between bins of the transform that are evenly spaced in mels from 0 to 8 kHz."""
    highest = 2595 * np.log10(1 + ANALYSIS_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    edges = np.floor((SIZE + 1) * hertz / ANALYSIS_RATE)
    bins = np.arange(SIZE // 2 + 1)
    out = np.zeros((BANDS, len(bins)))
    for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (bins >= low) & (bins < middle), (bins >= middle) & (bins < high)
        out[band, rising] = (bins[rising] - low) / (middle - low)
        out[band, falling] = (high - bins[falling]) / (high - middle)
    return out
