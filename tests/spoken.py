"""Speech of known words, noise, and clips that hold them."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
from made import numbered, write_movie

from curation.clip import Clip
from curation.media import probe
from models.clock import FPS, STORED_RATE

FOLDER = files("pipelines.demo_media")
TEXTS: dict[str, str] = json.loads((FOLDER / "speech.json").read_text())
NAMES = tuple(sorted(TEXTS))


@cache
def speech(name: str, rate: int = STORED_RATE) -> np.ndarray:
    """[n] float32: a file of the demo's speech at `rate` Hz."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    with av.open(str(FOLDER / name)) as container:
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.sub(r"[^a-z' ]", "", text.lower()).split()


def pink(count: int, seed: int = 0) -> np.ndarray:
    """[count] float32 of unit power, its power falling by 3 dB an octave."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), count)
    return (noise / noise.std()).astype(np.float32)


def with_noise(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`clean` and `noise` added at `snr_db`, as the power of the whole of either."""
    gain = np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return (clean + gain * noise).astype(np.float32)


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., ICASSP 2019)."""
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    target = reference * (estimate @ reference) / (reference @ reference)
    return float(10 * np.log10(target @ target / np.sum((estimate - target) ** 2)))


def clip_with(path: Path, sound: np.ndarray | None, rate: int = STORED_RATE, seconds: float = 0.0) -> Clip:
    """A clip over the whole of a new file at `path` (.mkv, lossless sound), as long as `sound`."""
    count = int((seconds or len(sound if sound is not None else ()) / rate) * FPS)
    picture = numbered(0)
    write_movie(path, [picture] * count, audio=sound, rate=rate, audio_codec="pcm_f32le")
    return Clip("clip", str(path), probe(str(path)), 0.0, count / FPS)
