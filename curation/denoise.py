"""Denoise: the background as it sounds where nobody speaks, measured and gated away.

Spectral gating (T. Sainburg, noisereduce) with a noise profile from the pauses that the voice detector finds,
where the library by itself would take the whole clip, speech included, for noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.audio import Audio
from curation.clip import Clip
from curation.speech import audible
from curation.stage import Result, Stage, Unmeasured, package_version
from manifests.records import measures_of
from models.clock import ANALYSIS_RATE, STORED_RATE
from models.voice import Segments, pauses, voice_segments

MARGIN_S = 0.5
"""Sound kept before and after the clip: the correction of an offset moves the cut by up to half a second."""
FRAME = 2048
"""Samples of STORED_RATE (93 ms) over which the level of the background is looked at."""
GUARD_S = 0.05
"""Left out on the voiced side of a pause: a voice fades in and out."""
PROFILE_S = 0.5
"""Shortest noise profile: fewer frames make its spread, and so the gate, a matter of luck."""
OUTLIER_DB = 6.0
"""Frames of a pause louder than its quiet fifth by this much are breaths and clicks, not background."""
QUANTIZATION = 2.0**-30 / 12
"""Power of the rounding noise of 16 bits, the least that a background can be."""


@dataclass(frozen=True)
class SpectralGate(Stage):
    """noisereduce in stationary mode, as strong as the noise asks for.

    n_fft: samples of the analysis window (46 ms: long enough to part the harmonics of a voice).
    deviations: a cell passes when it is this many standard deviations above the mean of the noise, in dB.
    smooth_ms: the mask is smoothed over this time, against musical noise.
    strength: share of the amplitude that the gate takes away at most; the rest keeps pauses alive.
    noisy_db, clean_db: full strength up to the first signal-to-noise ratio, none from the second on.
    product: `Audio` at STORED_RATE, MARGIN_S longer than the clip on both sides where the source has sound.
    A clip without a voice keeps its sound as it is: nothing tells its background from what it is about.
    """

    name = "denoise"
    backend = "noisereduce"
    measures = measures_of("denoise")

    n_fft: int = 1024
    deviations: float = 1.5
    smooth_ms: float = 25.0
    strength: float = 0.95
    noisy_db: float = 20.0
    clean_db: float = 35.0

    def measure(self, clip: Clip) -> Result:
        """noise_snr_db and noise_removed_db. Raises Unmeasured without at least half a second of sound."""
        return denoised(clip.audio(STORED_RATE, -MARGIN_S, clip.seconds + MARGIN_S), self.gated)

    def product(self, clip: Clip, evidence: Mapping[str, Any]) -> Audio:
        """The denoised sound, computed anew: it is large, and cheap to make."""
        made: Audio = self.measure(clip).product
        return made

    def gated(self, samples: np.ndarray, noise: np.ndarray, ratio_db: float) -> np.ndarray:
        """[n] float32: `samples` without what sounds like `noise` ([m] float32 of the same recording)."""
        from noisereduce import reduce_noise

        share = min(1.0, max(0.0, (self.clean_db - ratio_db) / (self.clean_db - self.noisy_db)))
        if not share or not audible(noise):
            return samples
        cleaned = reduce_noise(
            samples,
            STORED_RATE,
            stationary=True,
            y_noise=noise,
            prop_decrease=self.strength * share,
            n_std_thresh_stationary=self.deviations,
            freq_mask_smooth_hz=None,
            time_mask_smooth_ms=self.smooth_ms,
            n_fft=self.n_fft,
            chunk_size=None,
            padding=self.n_fft,
        )
        return np.asarray(cleaned, np.float32)

    def weights(self) -> tuple[str, ...]:
        return ("noisereduce", "silero-vad")

    def revision(self) -> str:
        return f"{package_version('noisereduce')} {package_version('silero-vad')}"


def denoised(sound: Audio, clean: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Result:
    """What a denoise stage tells of `sound`, and `sound` as `clean` leaves it.

    clean: takes the samples, those of the background among them and the signal-to-noise ratio in dB; gives as
    many samples. It is not asked where no voice is heard. Raises Unmeasured below half a second of sound.
    """
    if sound.seconds < PROFILE_S:
        raise Unmeasured("the clip has less than half a second of sound")
    voiced = voice_segments(resampled(sound.samples, sound.rate, ANALYSIS_RATE))
    if not voiced:
        return Result({"noise_snr_db": None, "noise_removed_db": 0.0}, product=sound)
    noise = background(sound.samples, sound.rate, voiced)
    ratio = snr_db(between(sound.samples, sound.rate, voiced), sound.samples[noise])
    cleaned = clean(sound.samples, sound.samples[noise], ratio)
    removed = 10 * math.log10(power(sound.samples[noise]) / power(cleaned[noise]))
    measures = {"noise_snr_db": ratio, "noise_removed_db": max(0.0, removed)}
    return Result(measures, product=Audio(cleaned, sound.rate, sound.start_s))


def resampled(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """[n * new_rate / rate] float32: `samples` at `new_rate` Hz, through a linear-phase low pass."""
    from scipy.signal import resample_poly

    common = math.gcd(rate, new_rate)
    return np.asarray(resample_poly(samples, new_rate // common, rate // common), np.float32)


def background(samples: np.ndarray, rate: int, voiced: Segments) -> np.ndarray:
    """Indices, ascending, of at least PROFILE_S of samples that hold the background alone.

    Frames in pauses of `voiced` (seconds) without their outliers; where the pauses are too short, the
    quietest frames of the rest as well: the gaps between words, which the detector bridges.
    """
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    levels = np.mean(np.square(frames, dtype=np.float64), axis=1)
    starts = np.arange(len(frames)) * FRAME / rate
    free = np.zeros(len(frames), bool)
    for start, end in pauses(voiced, len(samples) / rate):
        free |= (starts >= start + GUARD_S * (start > 0)) & (starts + FRAME / rate <= end - GUARD_S)
    wanted = min(len(frames), math.ceil(PROFILE_S * rate / FRAME))
    quiet = np.zeros(len(frames), bool)
    quiet[np.argsort(levels, kind="stable")[:wanted]] = True
    free &= levels <= np.quantile(levels[free | quiet], 0.2) * 10 ** (OUTLIER_DB / 10)
    if free.sum() < wanted:
        free[np.argsort(np.where(free, -1.0, levels), kind="stable")[:wanted]] = True
    return np.flatnonzero(np.repeat(free, FRAME))


def between(samples: np.ndarray, rate: int, spans: Segments) -> np.ndarray:
    """[m]: the samples inside `spans` (seconds)."""
    return np.concatenate([samples[round(start * rate) : round(end * rate)] for start, end in spans])


def power(samples: np.ndarray) -> float:
    """Mean square of `samples`, no less than the rounding noise of 16 bits."""
    return max(QUANTIZATION, float(np.mean(np.square(samples, dtype=np.float64))))


def snr_db(speech: np.ndarray, noise: np.ndarray) -> float:
    """Speech over background in dB, -20 at least; `speech` holds both, `noise` the background alone."""
    floor = power(noise)
    return 10 * math.log10(max(power(speech) - floor, floor / 100) / floor)
