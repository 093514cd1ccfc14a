"""SyncNet: do these lips say this sound? (Chung and Zisserman 2016, "Out of time: automated lip sync in the wild")

The net, checkpoint-compatible with the authors' `syncnet_v2.model`, and the score that they make of its features.
`models.syncnet_fast` computes the same features faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from manifests.errors import ModelError
from models.checkpoint import load_state, load_torch

SIDE = 224
"""Side of the crops that the net sees, px."""
SPAN = 5
"""Frames that one look takes in."""
FEATURES = 1024
MAX_LAG = 15
"""The score compares lags up to this to both sides, 25 fps frames."""
EPSILON = 1e-6
"""Added to each difference by torch's pairwise_distance, which the authors' score goes through."""
SMOOTHED = 9
"""Frames over which the confidence of a frame is the median."""
CROP_SCALE = 0.4
"""How much of the face's box the crop adds at each side, and twice of it below."""
TRACK_MEDIAN = 13
"""Frames over which the crop's place and size are the median."""
GREY = 110
"""What is seen outside the picture."""


class SyncNet(nn.Module):
    """Two towers that end in 1024 features each, 13,631,616 parameters. Names are those of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)), nn.MaxPool2d(1),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)), nn.MaxPool2d(3, (1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)),
            *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)), nn.MaxPool2d(3, 2),
            *_layer(nn.Conv2d(256, 512, (5, 4))),
        )  # fmt: skip
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(256, 512, (1, 6, 6))),
        )  # fmt: skip

    def lips(self, windows: torch.Tensor) -> torch.Tensor:
        """[n, 1024] of `windows` [n, 3, 5, 224, 224], BGR 0-255."""
        out: torch.Tensor = self.netfclip(self.netcnnlip(windows).flatten(1))
        return out

    def sound(self, windows: torch.Tensor) -> torch.Tensor:
        """[n, 1024] of `windows` [n, 1, 13, 20] of cepstra, 0.2 s each."""
        out: torch.Tensor = self.netfcaud(self.netcnnaud(windows).flatten(1))
        return out


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU(inplace=True)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, FEATURES))


def load(path: Path) -> SyncNet:
    """The net with the weights of `path`, on the CPU. Raises ModelError for any other file than its checkpoint."""
    state = load_torch(path)
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds a {type(state).__name__}, not SyncNet's weights by name; fetch it again")
    net = SyncNet()
    load_state(net, state, path, ignore=("num_batches_tracked",))
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Score:
    """What the authors make of the features. distances: [n, 31] float64, from the lips at each frame to the sound
    15 frames earlier ... 15 later."""

    distances: np.ndarray

    @cached_property
    def means(self) -> np.ndarray:
        """[31] mean distance at lags -15 ... 15; lower is better."""
        return np.asarray(self.distances.mean(0))

    @property
    def curve(self) -> np.ndarray:
        """[31] how far each lag's mean distance lies under the median of them; the highest is the confidence."""
        return np.asarray(np.median(self.means) - self.means)

    @property
    def lag(self) -> int:
        """The best lag in 25 fps frames; positive = the audio is late. The authors' offset is its negative."""
        return int(np.argmin(self.means)) - MAX_LAG

    @property
    def least(self) -> float:
        """The mean distance at the best lag."""
        return float(self.means.min())

    @property
    def confidence(self) -> float:
        return float(self.curve.max())

    @property
    def frames(self) -> np.ndarray:
        """[n] the confidence of each frame at the best lag, smoothed by a running median."""
        from scipy.signal import medfilt

        return np.asarray(medfilt(np.median(self.means) - self.distances[:, self.lag + MAX_LAG], SMOOTHED))


def windows_in(frames: int, samples: int) -> int:
    """Looks that the authors' score takes at `frames` 25 fps frames and `samples` at 16 kHz; may be negative."""
    return min(frames, samples // 640) - SPAN


def score(lips: np.ndarray, sound: np.ndarray) -> Score:
    """The score of features `lips` and `sound`, both [n, 1024], of the same frames.

    Beyond the ends the sound's features are zeros. All distances come from one matrix product, in float64,
    where the difference of large squares loses nothing.
    """
    a = np.asarray(lips, np.float64) + EPSILON
    b = np.pad(np.asarray(sound, np.float64), ((MAX_LAG, MAX_LAG), (0, 0)))
    at = np.arange(len(a))[:, None]
    later = at + np.arange(2 * MAX_LAG + 1)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[later] - 2 * (a @ b.T)[at, later]
    return Score(np.sqrt(np.maximum(squares, 0)))


def crop_paths(frames: np.ndarray, boxes: np.ndarray, first: int, last: int) -> np.ndarray:
    """[last - first, 3] float64: x and y of the centre and half the longer side of a face at each frame.

    frames: [m] where it was seen, boxes: [m, 4], x0, y0, x1, y1. Linear between, held outside, then the median of
    13 frames, which takes zeros to lie beyond the ends, as the authors' does.
    """
    from scipy.signal import medfilt

    at = np.arange(first, last)
    x0, y0, x1, y1 = (np.interp(at, frames, side) for side in np.asarray(boxes, np.float64).T)
    rows = (x0 + x1) / 2, (y0 + y1) / 2, np.maximum(x1 - x0, y1 - y0) / 2
    return np.stack([medfilt(row, TRACK_MEDIAN) for row in rows], axis=1)


def crop(image: np.ndarray, x: float, y: float, half: float) -> np.ndarray:
    """[224, 224, 3] uint8 of `image` [h, w, 3]: the face at (x, y) whose box reaches `half` px, with 40% more at
    the sides and 80% below, so that the mouth is in the middle; grey outside the picture."""
    import cv2

    pad = int(half * (1 + 2 * CROP_SCALE))
    middle_x, middle_y = x + pad, y + pad
    rows = int(middle_y - half) - pad, int(middle_y + half * (1 + 2 * CROP_SCALE)) - pad
    reach = half * (1 + CROP_SCALE)
    columns = int(middle_x - reach) - pad, int(middle_x + reach) - pad
    return cv2.resize(_cut(image, rows, columns), (SIDE, SIDE))


def _cut(image: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Rows and columns first ... last - 1 of `image`, at least one pixel of each, grey outside."""
    (top, bottom), (left, right) = ((low, max(low + 1, high)) for low, high in (rows, columns))
    out = np.full((bottom - top, right - left, 3), GREY, np.uint8)
    inner = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    at_y, at_x = max(0, -top), max(0, -left)
    out[at_y : at_y + inner.shape[0], at_x : at_x + inner.shape[1]] = inner
    return out


def sound_windows(cepstra: np.ndarray) -> np.ndarray:
    """[n, 13, 20] a view of `cepstra` [4n + 16 or more, 13]: 0.2 s from the beginning of each video frame on."""
    return np.lib.stride_tricks.sliding_window_view(cepstra, 4 * SPAN, axis=0)[::4]


def batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, one after the last) of runs of at most `size`."""
    yield from ((first, min(first + size, count)) for first in range(0, count, size))
