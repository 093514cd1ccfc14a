"""A face that speaks: the photograph inside scikit-image, its mouth led by sound.

Stills of the mouth at every opening and of the lids are warped from the photograph once; a frame mixes two
of them, moves the head and adds the camera's noise. It fools nobody for long, but it is a photograph's
skin, teeth and light, so detectors and quality models meet what they were made for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from models.clock import FPS

VIEW = (90.0, 0.0, 264.0)
"""x, y, side of the square of the photograph that is shown: head and collar, none of the badges."""
SPEECH_BAND = (200.0, 3500.0)
"""Hz: where vowels and nasals are; hiss above it sounds through nearly closed teeth."""
RANGE_DB = 30.0
"""The mouth closes where the sound is this far under its loud parts."""
GAP = 11.0
"""Photograph px between the lips at the widest: a tenth of the face's height, an open vowel."""
LEVELS = 40
LID_LEVELS = 8
"""Stills of mouth and lids; between two of them less than a pixel moves, and they are mixed."""
SWAY = (2.2, 1.6, 0.02, 0.012)
"""How far the head goes right and down (photograph px), turns (rad) and nears (share)."""
FLOOR = 133.0
"""Photograph y of the nose's base, above which the mouth moves nothing."""
NECK = 26.0
"""Photograph px under the chin over which the jaw's movement dies out."""
CENTRE = (224.0, 146.0)
PIVOT = (226.0, 188.0)
"""Middle of the mouth, and the neck that the head turns on, in the photograph."""
FIELD = 128
"""Side of the grid on which the (smooth) movement of the head is computed."""

_LIP_X = (202.5, 204.5, 206.5, 208.5, 211.5, 214.5, 217.5, 221.5, 225.5, 229.5, 232.5, 235.5, 238.5, 241.5, 244.0)
_LIP_UPPER = (138.9, 139.5, 140.3, 141.0, 141.7, 142.3, 142.9, 143.3, 143.4, 142.9, 142.6, 142.3, 141.7, 140.8, 140.3)
_LIP_LOWER = (138.9, 141.5, 143.5, 144.9, 146.8, 148.3, 148.9, 149.2, 149.1, 148.7, 147.6, 146.2, 144.4, 142.4, 140.3)
_JAW = ((184.5, 149.5), (189.5, 159.5), (202.0, 170.5), (214.5, 176.9), (224.5, 178.2), (234.5, 175.5),
        (249.5, 165.7), (257.0, 159.5), (264.5, 149.5))  # fmt: skip
_LIDS = (
    (((192.0, 99.9), (196.0, 98.0), (199.4, 96.8), (202.9, 96.7), (207.5, 97.1), (210.9, 99.5), (213.2, 102.3)),
     ((192.0, 100.6), (196.0, 102.0), (199.4, 103.4), (203.4, 104.3), (207.5, 103.9), (209.8, 103.2), (213.2, 102.8))),
    (((235.6, 104.3), (239.0, 101.7), (243.1, 99.5), (246.5, 99.1), (250.5, 99.5), (254.5, 100.3), (259.1, 103.4)),
     ((235.6, 104.7), (239.0, 104.7), (243.1, 105.5), (246.5, 106.0), (250.5, 105.5), (254.5, 104.3), (259.1, 103.9))),
)  # fmt: skip
"""Edges of lips, jaw and lids, traced in the photograph: x and y, px."""


@dataclass(frozen=True)
class Motion:
    """What the face does at each of n frames.

    opening: [n] 0-1. spread: [n] -1 (round lips) to 1 (wide). lids: [n] 0 (open) to 1 (shut).
    head: [n, 4] right and down (photograph px), turn in the picture (rad), zoom (share).
    """

    opening: np.ndarray
    spread: np.ndarray
    lids: np.ndarray
    head: np.ndarray


def talking_head(
    samples: np.ndarray,
    rate: int,
    *,
    frames: int | None = None,
    size: int = 512,
    seed: int = 0,
    lag_frames: int = 0,
    noise: float = 1.5,
) -> Iterator[np.ndarray]:
    """[size, size, 3] uint8 RGB frames at 25 fps of a face that says `samples` ([n] float32, `rate` Hz).

    frames: how many; as long as the sound when not given, the mouth shut after the sound's end.
    lag_frames: the sound is that many frames late, so the mouth says what is heard `lag_frames` later.
    seed: movements of the head, blinks, noise. noise: of the camera, standard deviation in grey levels.
    """
    count = round(len(samples) / rate * FPS) if frames is None else frames
    motion = motion_of(samples, rate, count, seed=seed, lag_frames=lag_frames)
    grain = _grain(size)
    rng = np.random.default_rng((seed, 3))
    for index in range(count):
        still, field = _still(motion, index, size), _field(motion, index, size)
        # OpenCV's stubs do not know that one map of pairs needs no second
        frame: np.ndarray = cv2.remap(still, field, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[call-overload]
        if noise:
            y, x = rng.integers(0, 64, 2)
            frame = cv2.add(frame, grain[y : y + size, x : x + size] * noise, dtype=cv2.CV_8U)
        yield frame


def motion_of(samples: np.ndarray, rate: int, count: int, *, seed: int = 0, lag_frames: int = 0) -> Motion:
    """Movement of `count` frames: lips from the sound, the rest from `seed`."""
    times = (np.arange(count) + lag_frames) / FPS
    opening, spread = lips(samples, rate, times)
    sway = wander(count, seed, 5)
    effort = 1.0 + 0.15 * sway[:, 4]
    return Motion(np.clip(opening * effort, 0, 1), spread, blinks(count, seed), sway[:, :4] * SWAY)


def lips(samples: np.ndarray, rate: int, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(opening [m] 0-1, spread [m] -1 ... 1) of a mouth that says `samples`, at `times` (s).

    The opening is the loudness of the vowels' band, smoothed to what a jaw can follow; lips are wide where
    its upper half is strong (front vowels), round where it is weak.
    """
    step, wide = round(rate / 100), round(rate / 25)
    padded = np.pad(np.asarray(samples, np.float32), (wide // 2, wide))
    windows = np.lib.stride_tricks.sliding_window_view(padded, wide)[::step] * np.hanning(wide).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    hertz = np.fft.rfftfreq(wide, 1 / rate)
    low, high = SPEECH_BAND
    loud = power[:, (hertz >= low) & (hertz < high)].sum(axis=1)
    upper = power[:, (hertz >= 1500) & (hertz < high)].sum(axis=1)
    peak = max(float(np.percentile(loud, 95)), 1e-9)
    level = np.clip(1 + 10 * np.log10(np.maximum(loud / peak, 1e-9)) / RANGE_DB, 0, 1.1)
    front = np.clip(np.log10((upper + 1e-6 * peak) / (loud + 1e-6 * peak)) + 1.0, -1, 1) * np.minimum(level, 1)
    at = times * 100.0
    grid = np.arange(len(loud))
    smooth = [np.interp(at, grid, _triangular(track, 6), left=0, right=0) for track in (level, front)]
    return np.clip(smooth[0] ** 1.5, 0, 1), smooth[1]


def wander(count: int, seed: int, channels: int) -> np.ndarray:
    """[count, channels] smooth random movement within about -1 ... 1: five sines a channel, 0.08-0.7 Hz."""
    rng = np.random.default_rng((seed, 1))
    hertz = rng.uniform(0.08, 0.7, (5, channels))
    phase = rng.uniform(0, 2 * np.pi, (5, channels))
    weight = 1 / (1 + 4 * hertz)
    angle = 2 * np.pi * hertz * (np.arange(count) / FPS)[:, None, None] + phase
    return (np.sin(angle) * weight).sum(axis=1) / weight.sum(axis=0)


def blinks(count: int, seed: int) -> np.ndarray:
    """[count] 0-1: lids shut for a quarter of a second every 2 to 5 s."""
    rng = np.random.default_rng((seed, 2))
    shape = np.array([0.35, 0.85, 1.0, 0.8, 0.45, 0.15])
    out = np.zeros(count + len(shape))
    at = int(rng.integers(15, 60))
    while at < count:
        out[at : at + len(shape)] = shape
        at += int(rng.integers(50, 125))
    return out[:count]


def _triangular(track: np.ndarray, half: int) -> np.ndarray:
    """`track` [n] averaged by a triangle that reaches `half` steps to both sides; zero outside it."""
    kernel = np.bartlett(2 * half + 1)
    return np.convolve(np.pad(track, half), kernel / kernel.sum(), mode="valid")


def _still(motion: Motion, index: int, size: int) -> np.ndarray:
    """[size, size, 3] uint8: the face before the head moves."""
    face, mouths, lids = _stills(size)
    out = face.copy()
    for (rows, columns, levels), state in (
        (mouths, motion.opening[index]),
        *((lid, motion.lids[index]) for lid in lids),
    ):
        place = state * (len(levels) - 1)
        below = min(int(place), len(levels) - 2)
        out[rows, columns] = cv2.addWeighted(levels[below], 1 - place + below, levels[below + 1], place - below, 0)
    return out


def _field(motion: Motion, index: int, size: int) -> np.ndarray:
    """[size, size, 2] float32: where each pixel of the frame lies in the still."""
    grid, basis = _basis(size)
    right, down, turn, zoom = motion.head[index]
    weights = np.array([-right, -down, turn, -zoom, -motion.spread[index]], np.float32)
    return grid + cv2.resize(np.tensordot(weights, basis, 1), (size, size), interpolation=cv2.INTER_LINEAR)


Patch = tuple[slice, slice, np.ndarray]
"""Rows, columns and [levels, h, w, 3] stills of a part of the face."""


@cache
def _stills(size: int) -> tuple[np.ndarray, Patch, tuple[Patch, ...]]:
    """The face, its mouth from shut to open and its lids from open to shut."""
    xs, ys = _photo_grid(size)
    face = _sample(xs, ys)
    rows, columns = _span(FLOOR - 3, 212, size, 1), _span(176, 274, size, 0)
    x, y = xs[rows, columns], ys[rows, columns]
    mouth = np.stack([_mouth(x, y, size, level / (LEVELS - 1)) for level in range(LEVELS)])
    lids = []
    for upper, lower in _LIDS:
        part = _span(90, 109, size, 1), _span(upper[0][0] - 1, upper[-1][0] + 1, size, 0)
        shut = [_lid(xs[part], ys[part], upper, lower, level / (LID_LEVELS - 1)) for level in range(LID_LEVELS)]
        lids.append((*part, np.stack(shut)))
    return face, (rows, columns, mouth), tuple(lids)


def _mouth(x: np.ndarray, y: np.ndarray, size: int, opening: float) -> np.ndarray:
    """The lower face at photograph positions `x`, `y` ([h, w]) with the mouth open by `opening` (0-1).

    Column by column: skin stretches from the nose to the upper lip and from the lower lip over chin and
    neck; between the lips the upper teeth, which the lower lip hides or bares, and the dark behind them.
    """
    column = x[0]
    upper, lower = _curve(_LIP_X, _LIP_UPPER, column), _curve(_LIP_X, _LIP_LOWER, column)
    half = (_LIP_X[-1] - _LIP_X[0]) / 2
    across = np.clip(1 - ((column - _LIP_X[0] - half) / half) ** 2, 0, 1)
    gap = (0.5 + opening * GAP) * across**0.7
    line = upper + 0.55 * (lower - upper)
    top, bottom = line - 0.3 * gap, line + 0.7 * gap
    jaw = _curve(*_edge(_JAW), column)
    drop = float((bottom - lower)[np.argmax(across)])
    chin = drop * _smoothstep((46 - np.abs(column - PIVOT[0])) / 28)
    skin_y = np.where(
        y < (top + bottom) / 2,
        _between(y, (FLOOR, top), (FLOOR, upper)),
        _between(y, (bottom, jaw + chin, jaw + NECK), (lower, jaw, jaw + NECK)),
    )
    scale = size / VIEW[2]
    inside = np.clip((y - top) * scale + 0.5, 0, 1) * np.clip((bottom - y) * scale + 0.5, 0, 1)
    inside = cv2.GaussianBlur((inside * (gap > 0)).astype(np.float32), (0, 0), 0.25 * scale)[..., None]
    skin = _sample(x, skin_y).astype(np.float32)
    return np.clip(skin + inside * (_oral(x, y - top, upper, lower, gap) - skin), 0, 255).astype(np.uint8)


def _oral(x: np.ndarray, depth: np.ndarray, upper: np.ndarray, lower: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """[h, w, 3] float32: what is seen `depth` px under the upper lip when the lips are `gap` px apart."""
    teeth = _sample(x, upper + np.minimum(depth, lower - upper)).astype(np.float32)
    bare = np.clip((lower - upper - 0.4 - depth) / 0.9 + 0.5, 0, 1)[..., None]
    middle = np.clip(1 - ((x - CENTRE[0]) / 15) ** 2, 0, 1)
    tongue = (_smoothstep(depth / np.maximum(gap, 1) * 2 - 0.9) * middle * _smoothstep((gap - 5) / 5))[..., None]
    dark = np.array([48, 16, 14], np.float32) + tongue * np.array([92, 50, 48], np.float32)
    light = (0.35 + 0.6 * _smoothstep(gap / 4))[..., None] * np.clip(0.75 + depth / 8, 0, 1)[..., None]
    return (dark + bare * (teeth - dark)) * light


def _lid(x: np.ndarray, y: np.ndarray, upper: tuple, lower: tuple, shut: float) -> np.ndarray:
    """An eye at photograph positions `x`, `y` with the upper lid drawn down by `shut` (0-1) over the eye."""
    top = _curve(*_edge(upper), x[0])
    edge = top + shut * (_curve(*_edge(lower), x[0]) - top)
    lash = 0.8
    stretched = _between(y, (top - 5.5, edge + lash), (top - 5.5, top + lash))
    over = np.clip(((edge + lash - y) * 2 + 0.5), 0, 1)[..., None]
    eye = _sample(x, y).astype(np.float32)
    return np.clip(eye + over * (_sample(x, stretched) - eye), 0, 255).astype(np.uint8)


def _between(y: np.ndarray, shown: tuple, source: tuple) -> np.ndarray:
    """[h, w] source y of `y`, linear in each column between the heights `shown` and `source` (ascending,
    [w] or numbers); the identity's slope outside them."""
    out = y - shown[0] + source[0]
    for place in range(len(shown) - 1):
        slope = (source[place + 1] - source[place]) / (shown[place + 1] - shown[place])
        out = np.where(y > shown[place], source[place] + (y - shown[place]) * slope, out)
    return np.where(y > shown[-1], y - shown[-1] + source[-1], out)


def _curve(xs: tuple, ys: tuple, at: np.ndarray) -> np.ndarray:
    """A traced edge at columns `at`, smooth between its points and level beyond them."""
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(xs, ys)(np.clip(at, xs[0], xs[-1]))


def _edge(points: tuple) -> tuple[tuple, tuple]:
    """x and y apart."""
    return tuple(x for x, _ in points), tuple(y for _, y in points)


def _smoothstep(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _photo_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """[size, size] x and y in the photograph of a picture's pixels."""
    x, y, side = VIEW
    along = (np.arange(size) + 0.5) * (side / size) - 0.5
    return np.meshgrid((x + along).astype(np.float32), (y + along).astype(np.float32))


def _span(low: float, high: float, size: int, axis: int) -> slice:
    """Pixels of a picture whose photograph coordinate along x (axis 0) or y (1) is in low ... high."""
    scale = size / VIEW[2]
    return slice(int((low - VIEW[axis]) * scale), int((high - VIEW[axis]) * scale))


def _sample(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 RGB of the photograph at `x`, `y`."""
    maps = np.asarray(x, np.float32), np.asarray(y, np.float32)
    return cv2.remap(_photo(), *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@cache
def _photo() -> np.ndarray:
    """[512, 512, 3] uint8 RGB: NASA's portrait of Eileen Collins (public domain), a little sharpened, since
    it is shown at twice its size."""
    from skimage.data import astronaut

    photo = astronaut()
    return cv2.addWeighted(photo, 1.6, cv2.GaussianBlur(photo, (0, 0), 1.0), -0.6, 0)


@cache
def _basis(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(identity map [size, size, 2], [5, g, g, 2] displacements, px, for one unit of each movement: the
    head's right, down, turn, zoom, and the lips' spread)."""
    scale = size / VIEW[2]
    x, y = _photo_grid(FIELD)
    head = _smoothstep((1.65 - np.hypot((x - 226) / 88, (y - 100) / 100)) / 0.65)
    right, down = x - PIVOT[0], y - PIVOT[1]
    wide = 0.16 * (x - CENTRE[0]) * np.exp(-(((x - CENTRE[0]) / 24) ** 2) - ((y - CENTRE[1]) / 12) ** 2)
    zero = np.zeros_like(x)
    moves = ((head, zero), (zero, head), (-down * head, right * head), (right * head, down * head), (wide, zero))
    basis = np.stack([np.stack(move, axis=-1) for move in moves]) * scale
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).astype(np.float32)
    return grid, basis.astype(np.float32)


@cache
def _grain(size: int) -> np.ndarray:
    """[size + 64, size + 64, 3] float32 noise of unit deviation, most of it shared by the colours."""
    rng = np.random.default_rng(25)
    shared = rng.standard_normal((size + 64, size + 64, 1))
    return (0.9 * shared + 0.43 * rng.standard_normal((size + 64, size + 64, 3))).astype(np.float32)
