"""A photograph that talks: its jaw follows the loudness of a made voice."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import skimage.data

RATE, FPS, STEP = 16_000, 25, 640
LANDMARKS = np.array([[133.3, 101.6], [177.2, 103.2], [153.4, 124.7], [133.1, 142.5], [171.2, 143.4]])
"""Of the astronaut in `portrait`, as CenterFace sees them."""


def speech_level(seconds: float, seed: int) -> np.ndarray:
    """[n] 0-1 at 16 kHz, how open and loud: syllables of uneven length and strength, a pause now and then."""
    rng = np.random.default_rng(seed)
    level, at = np.zeros(round(seconds * RATE)), 0.2
    while at < seconds:
        length = rng.uniform(0.12, 0.32)
        first, last = round(at * RATE), round((at + length) * RATE)
        bump = np.sin(np.linspace(0, np.pi, max(2, last - first))) ** 1.5 * rng.uniform(0.4, 1.0)
        room = len(level[first:last])
        level[first:last] = np.maximum(level[first:last], bump[:room])
        at += length * rng.uniform(0.7, 1.0) + (rng.uniform(0.2, 0.6) if rng.random() < 0.15 else 0.0)
    return level


def voice(level: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n] float32 at 16 kHz: a buzz with formant-like noise, as loud as `level` [n]."""
    rng = np.random.default_rng(seed)
    time = np.arange(len(level)) / RATE
    buzz = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    return (level * (0.15 * buzz + 0.1 * rng.standard_normal(len(level)))).astype(np.float32)


@functools.cache
def portrait() -> np.ndarray:
    """[320, 320, 3] uint8 BGR."""
    return np.ascontiguousarray(skimage.data.astronaut()[0:320, 70:390, ::-1])


def talking(level: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n, 320, 320, 3] uint8 BGR: the portrait whose jaw drops by `level` [n], with a swaying head and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:320, 0:320].astype(np.float32)
    grain = rng.normal(0, 2.0, (16, 320, 320, 3)).astype(np.int16)
    across = np.exp(-(((x - 153) / 26) ** 2))
    below = np.clip((y - 146) / 6, 0, 1) * np.clip((205 - y) / 40, 0, 1)
    out = np.empty((len(level), 320, 320, 3), np.uint8)
    for k, open_ in enumerate(level):
        drop = 9.0 * open_ * across * below
        sway_x, sway_y = 2.0 * np.sin(k / 17), 1.5 * np.sin(k / 23)
        from_x, from_y = (x - sway_x).astype(np.float32), (y - drop - sway_y).astype(np.float32)
        image = cv2.remap(portrait(), from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        centre = (round(153 + sway_x), round(147 + sway_y + 4 * open_))
        cv2.ellipse(image, centre, (11, max(1, round(4 * open_))), 0, 0, 360, (20, 20, 45), -1)
        out[k] = np.clip(image + grain[rng.integers(16)], 0, 255)
    return out
