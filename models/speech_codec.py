"""Speech tokens, 12.5 a second: what tokenizers, codecs and streams of sound offer, and the bundled codec, which has
no codebook."""

from __future__ import annotations

import hashlib
from functools import cache
from math import gcd
from typing import Protocol

import numpy as np

from models.clock import SPEECH_HZ, STORED_RATE


class SpeechTokenizer(Protocol):
    """Mono sound to tokens; token i covers 0.08 i ... 0.08 (i + 1) s."""

    name: str

    @property
    def codes(self) -> int:
        """Tokens are 0 ... codes - 1."""
        ...

    def encode(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """[n] float32 at `rate` Hz, a whole number of tokens (4k for k chunks) -> [tokens] int32."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits; another one means that tokens mean something else."""
        ...


class SpeechCodec(SpeechTokenizer, Protocol):
    """A tokenizer with a way back."""

    rate: int
    """Hz of decoded sound."""

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """[tokens] -> [tokens * rate / 12.5] float32 at `rate` Hz."""
        ...


class SpeechStream(Protocol):
    """One utterance after another, tokens in pieces of any length; the pieces change no sample of it."""

    def push(self, tokens: np.ndarray) -> np.ndarray:
        """[n] tokens -> [m] float32, what is final now; the n-th token's sound ends at sample n * rate / 12.5 of all
        that was given."""
        ...

    def finish(self) -> np.ndarray:
        """The rest of the utterance; what is pushed next begins another one."""
        ...


class SpeechDecoder(Protocol):
    """Tokens to sound, whole and as a stream."""

    @property
    def name(self) -> str: ...

    @property
    def rate(self) -> int:
        """Hz of decoded sound."""
        ...

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """[tokens] -> [tokens * rate / 12.5] float32 at `rate` Hz, what a stream of them gives."""
        ...

    def stream(self) -> SpeechStream:
        """A new one."""
        ...


MELS, LOW_HZ, HIGH_HZ = 40, 60.0, 8000.0
"""Mel bands (HTK's scale); sources recorded at 16 kHz hold nothing above 8 kHz."""
HOP, WINDOW = 252, 1024
"""Samples at 22,050 Hz: 7 frames a token, each over 46 ms, centred inside the token."""
FLOOR_DB = -60.0
"""Mel power under this (dB of full scale, after loudness) is silence: background, and its code is constant."""
LOUDNESS_DB = ((-47.0, 0.0), (-35.0, 12.0), (-23.0, 0.0), (-11.0, -12.0))
"""(level of the active sound in dBFS, gain in dB): speech comes to -23 dBFS, a recording too quiet to hold
speech stays as quiet as it is."""
LEVELS = 4
TOKEN_SAMPLES = round(STORED_RATE / SPEECH_HZ)
FRAMES = TOKEN_SAMPLES // HOP
PLACES = LEVELS ** np.arange(6, -1, -1)
"""What each digit counts; the first is the energy."""

TABLE: tuple[tuple[tuple[int, int], tuple[float, ...]], ...] = (
    ((0, 0), (-56.7, -48.5, -40.5, -33.4)),
    ((0, 1), (0.5, 7.1, 11.4, 14.9)),
    ((0, 2), (-3.4, 0.3, 2.9, 5.7)),
    ((0, 3), (-2.8, 0.0, 2.2, 5.4)),
    ((0, 4), (-4.3, -1.3, 0.4, 2.0)),
    ((1, 0), (-5.8, -1.6, 0.6, 3.7)),
    ((1, 1), (-4.1, -0.8, 0.8, 3.9)),
)
"""The digits, in order: (frequency in time, frequency across bands) and the levels in dB; a value takes the
nearest level.

Lloyd-Max levels of 12 recordings (examples of HDTF, LatentSync and VideoReTalking and two broadcasts:
English, Chinese and German, men and women); of shapes, over sounding tokens alone. The coefficients are the
seven of most variance; (2, 0), (0, 5) or (1, 2) in the place of one of them lost intelligibility (extended
STOI)."""

PITCH_SAMPLES = 184
"""Period of the voiced excitation, 120 Hz: the code has no room for pitch."""
VOICED_DB = 8.0
"""A frame whose lower third of bands is this much above its upper 15 is voiced."""
BREATH = 0.15
"""Noise in the voiced excitation, relative to the unvoiced."""
ITERATIONS = 8
"""Of Griffin-Lim; more change nothing measurable, the excitation's phase is consistent already."""
BLOCK, NEAR = 4, 3
"""Tokens that a stream decodes at once, a chunk's, and on either side of them what is decoded along and left out:
beyond three tokens nothing changes a bit of their sound, beyond two less than 1e-8 of full scale."""


class FsqMel:
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505) of the log mel spectrogram's 2-D DCT.

    A token is 80 ms: 7 frames x 40 bands in dB, their orthonormal DCT, of which the 7 coefficients of most
    variance in speech (energy, tilt, three finer shapes, rise, change of tilt) take one of 4 levels each:
    4^7 = 16,384 codes. Near sounds share digits. Sound is made back by source and filter: pulses or noise,
    as the tilt says, shaped by the mel envelope, then Griffin-Lim from the excitation's own phase.
    """

    name = "fsq_mel"
    codes = LEVELS**7
    rate = STORED_RATE

    def encode(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """As `SpeechCodec.encode`; loudness is evened out over the whole of `audio`.

        Raises ValueError when `audio` is not mono or not a whole number of tokens.
        """
        tokens = len(audio) * SPEECH_HZ / rate
        if audio.ndim != 1 or tokens != int(tokens):
            raise ValueError(f"speech is [n] samples, {rate / SPEECH_HZ:g} a token, not {list(audio.shape)}")
        if not tokens:
            return np.empty(0, np.int32)
        sound = resampled(audio, rate, STORED_RATE, int(tokens) * TOKEN_SAMPLES)
        found = coefficients(log_mel(sound * 10 ** (gain_db(sound) / 20)))
        at = [np.searchsorted(_bounds(levels), found[:, t, q]) for (t, q), levels in TABLE]
        return (np.stack(at, axis=1) @ PLACES).astype(np.int32)

    def decode(self, tokens: np.ndarray, *, start: int = 0) -> np.ndarray:
        """As `SpeechCodec.decode`, deterministic. start: tokens before these in a stream, so that windows
        of a stream (two tokens of past, one of future) join without a seam.

        Raises ValueError for tokens outside 0 ... 16383.
        """
        shape = digits(tokens)
        if not len(shape):
            return np.empty(0, np.float32)
        spectrum = np.zeros((len(shape), FRAMES, MELS))
        for (t, q), levels, digit in zip(*zip(*TABLE, strict=True), shape.T, strict=True):
            spectrum[:, t, q] = np.array(levels)[digit]
        return _sound(_envelope(spectrum), start * TOKEN_SAMPLES)

    def stream(self) -> FsqMelStream:
        """As `SpeechDecoder.stream`."""
        return FsqMelStream()

    def fingerprint(self) -> str:
        """As `SpeechCodec.fingerprint`."""
        facts = (self.name, 1, MELS, LOW_HZ, HIGH_HZ, HOP, WINDOW, FLOOR_DB, LOUDNESS_DB, TABLE)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


class FsqMelStream:
    """As `SpeechStream`: what `FsqMel.decode` gives for the whole, block by block; sound comes NEAR tokens late, work a
    token does not grow."""

    def __init__(self) -> None:
        self._codec = FsqMel()
        self._start()

    def _start(self) -> None:
        self._held = np.empty(0, np.int64)
        self._first = self._given = 0  # the place of the first token held, and of the next whose sound is due

    def push(self, tokens: np.ndarray) -> np.ndarray:
        """As `SpeechStream.push`. Raises ValueError for tokens outside 0 ... 16383, none of which is taken."""
        digits(tokens)
        self._held = np.concatenate([self._held, np.asarray(tokens, np.int64)])
        blocks = max(0, self._first + len(self._held) - NEAR - self._given) // BLOCK
        return self._sound([self._block(BLOCK) for _ in range(blocks)])

    def finish(self) -> np.ndarray:
        """As `SpeechStream.finish`."""
        rest = []
        while left := self._first + len(self._held) - self._given:
            rest.append(self._block(min(BLOCK, left)))
        self._start()
        return self._sound(rest)

    def _block(self, count: int) -> np.ndarray:
        """The sound of the next `count` tokens."""
        at = self._given - self._first
        begin = max(0, at - NEAR)
        window = self._held[begin : at + count + NEAR]
        sound = self._codec.decode(window, start=self._first + begin)
        self._given += count
        past = max(0, self._given - NEAR - self._first)
        self._held, self._first = self._held[past:], self._first + past
        return sound[(at - begin) * TOKEN_SAMPLES : (at - begin + count) * TOKEN_SAMPLES]

    @staticmethod
    def _sound(pieces: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty(0, np.float32), *pieces])


def digits(tokens: np.ndarray) -> np.ndarray:
    """[...] tokens of `FsqMel` -> [..., 7] digits 0 ... 3, in the order of TABLE. Raises ValueError."""
    tokens = np.asarray(tokens)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < FsqMel.codes):
        raise ValueError(f"speech tokens are 0 ... {FsqMel.codes - 1}, found {tokens.min()} ... {tokens.max()}")
    return tokens[..., None] // PLACES % LEVELS


def resampled(audio: np.ndarray, rate: int, to: int, count: int) -> np.ndarray:
    """[count] float64 at `to` Hz, in phase with `audio` [n] at `rate` Hz."""
    from scipy.signal import resample_poly

    if rate == to:
        return audio.astype(np.float64)
    common = gcd(rate, to)
    found = resample_poly(audio.astype(np.float64), to // common, rate // common)
    return np.pad(found, (0, max(0, count - len(found))))[:count]


def gain_db(sound: np.ndarray) -> float:
    """What LOUDNESS_DB adds to `sound` [n]: its level is the mean power of the 80-ms frames within 30 dB of
    the loudest."""
    power = np.mean(sound.reshape(-1, TOKEN_SAMPLES) ** 2, axis=1)
    level = 10 * np.log10(np.mean(power[power >= power.max() / 1000]) + 1e-12)
    levels, gains = np.array(LOUDNESS_DB).T
    return float(np.interp(level, levels, gains))


def log_mel(sound: np.ndarray) -> np.ndarray:
    """[n] at 22,050 Hz -> [n / 252, 40] mean power of each band in dB of full scale, at least FLOOR_DB."""
    power = np.abs(_spectra(sound)) ** 2 / np.sum(_window() ** 2)
    return np.maximum(10 * np.log10(power @ _bands().T + 1e-12), FLOOR_DB)


def coefficients(frames: np.ndarray) -> np.ndarray:
    """[7 n, 40] dB -> [n, 7, 40] DCT of each token, scaled so that squares are mean squares in dB."""
    from scipy.fft import dctn

    blocks = frames.reshape(-1, FRAMES, MELS)
    return dctn(blocks, axes=(1, 2), norm="ortho") / np.sqrt(FRAMES * MELS)


def _bounds(levels: tuple[float, ...]) -> np.ndarray:
    return (np.array(levels[1:]) + np.array(levels[:-1])) / 2


@cache
def _window() -> np.ndarray:
    return np.hanning(WINDOW + 1)[:-1]


def _spectra(sound: np.ndarray) -> np.ndarray:
    """[n] -> [n / 252, 513] short-time spectra; frame j is centred at sample 252 (j + 1/2)."""
    padded = np.pad(sound, (WINDOW // 2 - HOP // 2, WINDOW))
    frames = np.arange(len(sound) // HOP)[:, None] * HOP + np.arange(WINDOW)
    return np.fft.rfft(padded[frames] * _window())


def _overlapped(spectra: np.ndarray) -> np.ndarray:
    """The inverse of `_spectra`, least squares (Griffin & Lim 1984, eq. 6)."""
    window, count = _window(), len(spectra) * HOP
    frames = np.fft.irfft(spectra) * window
    sound, weight = np.zeros(count + 2 * WINDOW), np.zeros(count + 2 * WINDOW)
    for at, frame in enumerate(frames):
        span = slice(at * HOP, at * HOP + WINDOW)
        sound[span] += frame
        weight[span] += window**2
    begin = WINDOW // 2 - HOP // 2
    return (sound / np.maximum(weight, 1e-3))[begin : begin + count]


@cache
def _bins_mel() -> np.ndarray:
    """[513] mel of each bin."""
    return _mel(np.arange(WINDOW // 2 + 1) * STORED_RATE / WINDOW)


@cache
def _bands() -> np.ndarray:
    """[40, 513] triangles whose weights sum to 1."""
    edges, bins = np.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), MELS + 2), _bins_mel()
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling))
    return weights / weights.sum(axis=1, keepdims=True)


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _envelope(spectrum: np.ndarray) -> np.ndarray:
    """[n, 7, 40] coefficients -> [7 n, 40] dB, smoothed over about 30 ms so that tokens do not step."""
    from scipy.fft import idctn
    from scipy.ndimage import gaussian_filter1d

    frames = idctn(spectrum * np.sqrt(FRAMES * MELS), axes=(1, 2), norm="ortho").reshape(-1, MELS)
    return gaussian_filter1d(frames, 1.0, axis=0, mode="nearest")


def _sound(envelope: np.ndarray, start: int) -> np.ndarray:
    """[m, 40] dB -> [252 m] float32: excitation from stream sample `start` on, filtered, Griffin-Lim."""
    source = _spectra(_excitation(envelope, start))
    centres = np.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), MELS + 2)[1:-1]
    decibels = np.stack([np.interp(_bins_mel(), centres, frame) for frame in envelope])
    decibels[:, _bins_mel() > _mel(HIGH_HZ)] -= 20
    target = source * 10 ** (decibels / 20)
    magnitude, sound = np.abs(target), _overlapped(target)
    for _ in range(ITERATIONS):
        spectra = _spectra(sound)
        sound = _overlapped(magnitude * spectra / np.maximum(np.abs(spectra), 1e-12))
    return np.clip(sound, -1, 1).astype(np.float32)


def _excitation(envelope: np.ndarray, start: int) -> np.ndarray:
    """[252 m] of unit power: pulses where voiced, else noise, both fixed by the place in the stream."""
    place = start + np.arange(len(envelope) * HOP)
    noise = _noise()[place % len(_noise())]
    pulses = np.where(place % PITCH_SAMPLES == 0, np.sqrt(PITCH_SAMPLES), 0.0)
    voiced = envelope[:, : MELS // 3].mean(axis=1) - envelope[:, -15:].mean(axis=1) > VOICED_DB
    return np.where(np.repeat(voiced, HOP), pulses + BREATH * noise, noise)


@cache
def _noise() -> np.ndarray:
    """Three seconds of fixed white noise."""
    return np.random.default_rng(0).standard_normal(1 << 16)
