"""Lip-sync without weights: does the mouth move as the sound of the same clip says it should?

The vertical velocity of the jaw (optical flow) is correlated with the derivative of the speech envelope over a
range of lags (the curve J), and the curve AV is added: how well the sound predicts the mouth on parts of the clip
that were held out. Nothing is trained on other clips. Lags count 25 fps frames; positive = the audio is late.

What calibration on real clips changed in the method's plain form (log envelope of mels 3-31, flow preset FAST,
J + 2 AV; its area under the ROC curve on 5 s windows was 0.87, this one's is 0.98):

* Loudness (cube root of power, Stevens' law) instead of log power: it does not stretch the noise floor and the
  breaths between words, so onsets stand out in noise too. The envelope starts at 350 Hz, above hum.
* Flow at the finer scale of preset MEDIUM, without its variational smoothing and on the face alone: movements
  of a tenth of a pixel count. Lips and chin weigh more than cheeks.
* 1.5 Hz, not 1, as the lower edge: below it heads nod.
* The mouth's signals are band-passed before their principal components are taken, else light and pose take
  the components. J + AV, at every length.
* Large lags are rare in true clips and as likely as small ones in false pairs: lags beyond 3 frames pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from models.clock import ANALYSIS_RATE, FPS

CROP = 128
"""Side of the aligned face crop, px."""
_ARCFACE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE = (_ARCFACE + np.array([10.0, 2.0])) * (CROP / 132.0)
"""ArcFace's 112-px landmarks with a margin, so that the chin is inside: eyes, nose, mouth corners, x and y."""
MAX_LAG = 15
"""Lags of the curve reach this far to both sides, 25 fps frames."""
BAND_HZ = (1.5, 10.0)
"""Syllables: slower is head motion and prosody, faster is noise of the flow."""
MELS = 40
ENVELOPE_MELS = slice(6, 32)
"""350 Hz to 4.4 kHz."""
USUAL_LAG = 3
"""Up to here lags cost nothing: what encoders and cameras do to most files, 25 fps frames."""
LAG_COST = 0.15
"""Confidence that each frame of lag beyond pays; as a prior, one true clip in four fewer per frame."""
MIN_FRAMES = 64
"""Fewer say nothing, 25 fps frames."""
_FLOW_TOP, _FLOW_LEFT, _FLOW_RIGHT = 20, 14, 114
"""The part of the crop in which flow is computed."""
_UPPER, _LOWER = (slice(28, 76), slice(26, 102)), (slice(64, 128), slice(28, 100))
"""Rows and columns of the crop: the rigid upper face, and nose to chin."""
_JAW = np.outer((0, 0, 0.5, 1, 1, 1, 1, 1), (0, 0.5, 1, 1, 0.5, 0)) / 16.5
"""Weights of the 8 x 6 flow cells in the jaw's velocity: lips and chin, cheeks little."""


@dataclass(frozen=True)
class Mouth:
    """Motion of a mouth at 25 Hz. flow: [n, 8, 6, 2] float32, velocity of nose to chin relative to the upper
    face, crop px a frame (x, y); shape: [n, 99] float32, low-frequency DCT of the mouth's grey picture."""

    flow: np.ndarray
    shape: np.ndarray

    def part(self, first: int, last: int) -> Mouth:
        """Frames `first` to `last` - 1."""
        return Mouth(self.flow[first:last], self.shape[first:last])


@dataclass(frozen=True)
class Agreement:
    """How well a mouth and a sound go together.

    curve: [31] J + AV for lags -15 ... 15; frames: 25 fps frames that it was computed on; corrected: lag that was
    taken out of the sound before.
    """

    curve: np.ndarray
    frames: int
    corrected: int = 0

    @property
    def scores(self) -> np.ndarray:
        """[31] the curve times sqrt(frames), less the cost of lags that are unusual for a file."""
        lags = np.arange(-MAX_LAG, MAX_LAG + 1) + self.corrected
        return self.curve * np.sqrt(self.frames) - LAG_COST * np.maximum(0, np.abs(lags) - USUAL_LAG)

    @property
    def lag(self) -> int:
        """The best lag in 25 fps frames; positive = the audio is late."""
        return int(np.argmax(self.scores)) - MAX_LAG

    @property
    def confidence(self) -> float:
        """The best score: a correlation in units of 1 / sqrt(frames), so that lengths compare. A foreign sound
        reaches 2.5 +- 1 at any length (99% stay under 5); the true one grows, to about 6 in 5 s and 12 in 20 s."""
        return float(self.scores.max())


def landmark_paths(frames: np.ndarray, landmarks: np.ndarray, count: int, sigma: float = 3.0) -> np.ndarray:
    """[count, 5, 2] landmarks at every frame from `landmarks` [m, 5, 2] at frames `frames` [m]: linear between,
    constant outside, smoothed with a Gaussian of `sigma` frames."""
    from scipy.ndimage import gaussian_filter1d

    at, flat = np.arange(count), np.asarray(landmarks, np.float64).reshape(len(frames), -1)
    path = np.stack([np.interp(at, frames, column) for column in flat.T], 1)
    return gaussian_filter1d(path, sigma, axis=0, mode="nearest").reshape(count, 5, 2)


def similarities(points: np.ndarray) -> np.ndarray:
    """[n, 2, 3] maps from picture to crop px: rotation, scale and shift that bring `points` [n, 5, 2] nearest to
    the template (least squares)."""
    z, w = points[..., 0] + 1j * points[..., 1], TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    centred = z - z.mean(1, keepdims=True)
    spread = np.maximum((np.abs(centred) ** 2).sum(1), 1e-9)
    turn = (centred.conj() * (w - w.mean())).sum(1) / spread
    shift = w.mean() - turn * z.mean(1)
    rows = (turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)
    return np.stack([np.stack(row, 1) for row in rows], 1)


def face_crops(images: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> np.ndarray:
    """[n, 128, 128] uint8 grey aligned faces. images: n pictures [h, w, 3] uint8 BGR; points: [n, 5, 2]
    landmarks in their px."""
    pairs = zip(images, similarities(points), strict=True)
    return np.stack([aligned(image, warp) for image, warp in pairs])


def aligned(image: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """[128, 128] uint8 grey crop of `image` [h, w, 3] by `warp` [2, 3] (picture to crop px); large faces are
    shrunk by area first, the picture's edge repeats outside."""
    size = np.array(image.shape[1::-1])
    corners = np.array([[0, 0], [CROP, 0], [0, CROP], [CROP, CROP]])
    reach = (corners - warp[:, 2]) @ np.linalg.inv(warp[:, :2]).T
    low = np.clip(np.floor(reach.min(0)).astype(int) - 2, 0, size - 2)
    high = np.clip(np.ceil(reach.max(0)).astype(int) + 3, low + 2, size)
    part = cv2.cvtColor(image[low[1] : high[1], low[0] : high[0]], cv2.COLOR_BGR2GRAY)
    factor = np.ones(2)
    scale = float(np.hypot(*warp[:, 0]))
    if scale < 1.0:
        wanted = np.maximum(np.round((high - low) * scale).astype(int), 2)
        part, factor = cv2.resize(part, wanted.tolist(), interpolation=cv2.INTER_AREA), wanted / (high - low)
    linear = warp[:, :2] / factor
    # pixel centres stand at halves while the part is scaled
    shift = warp[:, :2] @ (low - 0.5) + warp[:, 2] + linear @ (0.5, 0.5)
    local = np.column_stack([linear, shift])
    return cv2.warpAffine(part, local, (CROP, CROP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def distinct(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """[m] ascending indices of the pictures that do not repeat the one before, exactly (a lower frame rate on a
    25 fps grid); 0 is one of them. Repeats that an encoder made anew were no better left out than kept."""
    small = [image[::4, ::4] for image in images]
    new = [not np.array_equal(a, b) for a, b in zip(small[1:], small[:-1], strict=True)]
    return np.flatnonzero([True, *new])


def mouth_of(crops: np.ndarray, shown: np.ndarray) -> Mouth:
    """The mouth in `crops` [n, 128, 128]; shown: [m] ascending indices of the distinct pictures, of which one
    alone does not move.

    A picture counts as taken at its grid time: true stamps of 15 to 50 fps sources changed neither offsets nor
    confidences on average.
    """
    kept, at = crops[shown], shown.astype(np.float64)
    steps = flow_steps(kept)
    middle, grid = (at[1:] + at[:-1]) / 2, np.arange(len(crops), dtype=np.float64)
    velocity = steps.reshape(-1, 96) / np.diff(at)[:, None]
    if not len(velocity):
        middle, velocity = at, np.zeros((1, 96))
    return Mouth(
        _at(grid, middle, velocity).reshape(-1, 8, 6, 2).astype(np.float32),
        _at(grid, at, mouth_shapes(kept)).astype(np.float32),
    )


def _at(grid: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[n, d] `values` [m, d], known at `times` [m], at `grid` [n]: linear between, constant outside."""
    if len(times) == 1:
        return np.repeat(values, len(grid), axis=0)
    right = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
    left = right - 1
    share = np.clip((grid - times[left]) / (times[right] - times[left]), 0.0, 1.0)[:, None]
    return values[left] * (1 - share) + values[right] * share


def flow_steps(crops: np.ndarray) -> np.ndarray:
    """[m - 1, 8, 6, 2] float32 displacement of nose to chin between neighbours of `crops` [m, 128, 128], relative
    to the median of the upper face, crop px (dense inverse search, Kroeger et al. 2016)."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setVariationalRefinementIterations(0)
    search.setGradientDescentIterations(12)
    faces = np.ascontiguousarray(crops[:, _FLOW_TOP:, _FLOW_LEFT:_FLOW_RIGHT])
    upper, lower = (
        (slice(rows.start - _FLOW_TOP, rows.stop - _FLOW_TOP), slice(c.start - _FLOW_LEFT, c.stop - _FLOW_LEFT))
        for rows, c in (_UPPER, _LOWER)
    )
    out = np.empty((max(0, len(faces) - 1), 8, 6, 2), np.float32)
    for k in range(len(out)):
        flow = search.calc(faces[k], faces[k + 1], None)  # type: ignore[call-overload]  # the stub knows no None
        head = np.median(flow[upper][::2, ::2].reshape(-1, 2), axis=0)
        out[k] = cv2.resize(flow[lower], (6, 8), interpolation=cv2.INTER_AREA) - head
    return out


def mouth_shapes(crops: np.ndarray) -> np.ndarray:
    """[m, 99] float32: the 10 x 10 lowest DCT coefficients, less the mean, of the mouth in `crops`."""
    out = np.empty((len(crops), 99), np.float32)
    for k, crop in enumerate(crops):
        mouth = cv2.resize(crop[62:126, 32:96], (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        out[k] = cv2.dct(mouth - mouth.mean())[:10, :10].reshape(-1)[1:]
    return out


def mel_filters(low: float = 80.0, high: float = 7600.0, size: int = 512) -> np.ndarray:
    """[40, size / 2 + 1] float32 triangles of height 1, evenly spaced in mels from `low` to `high` Hz at 16 kHz."""
    bottom, top = (2595 * math.log10(1 + hertz / 700) for hertz in (low, high))
    edges = 700 * (10 ** (np.linspace(bottom, top, MELS + 2) / 2595) - 1)
    hertz = np.arange(size // 2 + 1) * ANALYSIS_RATE / size
    rise = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rise, fall), 0, None).astype(np.float32)


def loudness(samples: np.ndarray, start_s: float, count: int) -> np.ndarray:
    """[count, 40] loudness (cube root of power) in mel bands at the 25 Hz times 0, 0.04, ... s; NaN rows where
    there is no sound.

    samples: [k] float at 16 kHz, the first at `start_s`. 25 ms Hann windows, 10 ms apart, floored at 50 dB
    below the loud frames and averaged by a triangle of +-40 ms.
    """
    hop, window = ANALYSIS_RATE // 100, ANALYSIS_RATE // 40
    if len(samples) < window:
        return np.full((count, MELS), np.nan)
    views = np.lib.stride_tricks.sliding_window_view(np.asarray(samples, np.float32), window)[::hop]
    power = np.abs(np.fft.rfft(views * np.hanning(window + 1)[:-1].astype(np.float32), 512)) ** 2
    floor = max(1e-5 / MELS * float(np.percentile(power.sum(1), 95)), 1e-12)
    bands = np.cbrt(np.maximum(power @ mel_filters().T, floor))
    at = np.arange(count) / FPS
    first = start_s + window / 2 / ANALYSIS_RATE
    near = np.rint((at - first) * 100).astype(int)[:, None] + np.arange(-4, 5)
    weight = np.clip(1 - np.abs(first + near / 100 - at[:, None]) / 0.04, 0, None)
    weight[(near < 0) | (near >= len(bands))] = 0
    total = weight.sum(1, keepdims=True)
    mean = np.einsum("nk,nkm->nm", weight, bands[near.clip(0, len(bands) - 1)]) / np.maximum(total, 1e-9)
    mean[total[:, 0] < 2] = np.nan  # less than half of the triangle is filled
    return mean


def agreement(mouth: Mouth, sound: np.ndarray, corrected: int = 0) -> Agreement:
    """How well a mouth and the loudness `sound` [n, 40] at the same times go together, over the frames where there
    is sound; `corrected` is the lag already taken out. Raises ValueError when these are fewer than MIN_FRAMES."""
    heard = np.flatnonzero(~np.isnan(sound).any(1))
    if len(heard) < MIN_FRAMES:
        raise ValueError(f"{len(heard)} frames with sound, {MIN_FRAMES} needed")
    first, last = int(heard[0]), int(heard[-1]) + 1
    mouth, sound = mouth.part(first, last), sound[first:last]
    return Agreement(jaw_curve(mouth, sound) + prediction_curve(mouth, sound), last - first, corrected)


def jaw_curve(mouth: Mouth, sound: np.ndarray) -> np.ndarray:
    """[31] the curve J: signed correlation of the jaw's downward velocity with the rise of the envelope."""
    jaw = (mouth.flow[..., 1] * _JAW).sum((1, 2))
    rise = np.gradient(sound[:, ENVELOPE_MELS].mean(1))
    return lag_correlation(syllables(jaw), syllables(rise))


def lag_correlation(picture: np.ndarray, sound: np.ndarray, max_lag: int = MAX_LAG) -> np.ndarray:
    """[2 max_lag + 1] Pearson correlation of `picture`[t] with `sound`[t + lag] on their overlap, both [n]."""
    n, out = len(picture), np.empty(2 * max_lag + 1)
    for k, lag in enumerate(range(-max_lag, max_lag + 1)):
        a = picture[max(0, -lag) : n - max(0, lag)]
        b = sound[max(0, lag) : n - max(0, -lag)]
        out[k] = _pearson(a, b)
    return out


def prediction_curve(mouth: Mouth, sound: np.ndarray, folds: int = 5, gap: int = 5) -> np.ndarray:
    """[31] the curve AV: mean correlation of 14 signals of the mouth with what ridge regression from the sound,
    fitted on the rest of the clip, predicts for each fifth. Weak where the clip is short, blind to no shape."""
    hat = held_out(_context(sound), folds, gap)
    shown = np.concatenate([components(mouth.shape, 8), components(mouth.flow.reshape(len(mouth.flow), -1), 6)], 1)
    rolled = np.stack([np.roll(shown, lag, axis=0) for lag in range(-MAX_LAG, MAX_LAG + 1)], 1)
    predicted = (hat @ rolled.reshape(len(hat), -1)).reshape(rolled.shape)
    return _pearson(predicted, rolled).mean(1)


def _context(sound: np.ndarray, reach: int = 2) -> np.ndarray:
    """[n, 30] six bands of loudness, band-passed and standardised, with two frames to both sides."""
    bands = np.stack([group.mean(1) for group in np.array_split(sound, 6, axis=1)], 1)
    bands = syllables(bands)
    bands = (bands - bands.mean(0)) / np.maximum(bands.std(0), 1e-9)
    padded = np.pad(bands, ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([padded[k : k + len(bands)] for k in range(2 * reach + 1)], 1)


def held_out(x: np.ndarray, folds: int, gap: int, ridge: float = 0.3) -> np.ndarray:
    """[n, n] the matrix that maps any target [n] to its held-out ridge predictions from `x` [n, d]: contiguous
    folds, `gap` frames around each left out of its training, penalty `ridge` times the training frames."""
    n = len(x)
    out = np.zeros((n, n))
    for fold in np.array_split(np.arange(n), folds):
        train = np.r_[0 : max(0, fold[0] - gap), min(n, fold[-1] + 1 + gap) : n]
        known = x[train]
        normal = known.T @ known + ridge * len(train) * np.eye(x.shape[1])
        out[np.ix_(fold, train)] = x[fold] @ np.linalg.solve(normal, known.T)
    return out


def components(x: np.ndarray, count: int) -> np.ndarray:
    """[n, count] the strongest principal components of the band-passed signals `x` [n, d]."""
    x = syllables(np.asarray(x, np.float64))
    left, size, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return left[:, :count] * size[:count]


def syllables(x: np.ndarray) -> np.ndarray:
    """`x` [n, ...] soft-clipped and band-passed to syllable rates, zero phase (2nd-order Butterworth)."""
    from scipy.signal import butter, sosfiltfilt

    return sosfiltfilt(butter(2, BAND_HZ, "bandpass", fs=FPS, output="sos"), soft_clip(x), axis=0)


def soft_clip(x: np.ndarray, reach: float = 2.5) -> np.ndarray:
    """`x` [n, ...] bent by tanh beyond `reach` robust standard deviations, so no single jump rules."""
    spread = 1.4826 * np.median(np.abs(x - np.median(x, axis=0)), axis=0)
    # a signal that rests most of the time has no median deviation: its plain one then
    limit = reach * np.maximum(np.where(spread > 1e-6 * x.std(0), spread, x.std(0)), 1e-12)
    return limit * np.tanh(x / limit)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation along axis 0; 0 where either is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.maximum(np.sqrt((a * a).sum(0) * (b * b).sum(0)), 1e-12)
