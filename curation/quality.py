"""How good the face looks: PIQE, sharpness and the resolution that is really there.

All on the face alone: a sharp background says nothing about it, nor does a background that is blurred on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from curation.clip import Clip, crop_square
from curation.stage import Result, Stage, Unmeasured, package_version
from manifests.records import measures_of

THIRD_OCTAVE = 2 ** (1 / 6)
"""Half the width of a band, as a factor."""


@dataclass(frozen=True)
class FaceCropQuality(Stage):
    """Medians over the sampled frames of measures of the face's square crop; no weights.

    PIQE and sharpness are of the crop at `crop_side` px, as the Actor would see it. Resolution is of the crop
    as it is in the source, at most `max_side` px.
    """

    name: ClassVar[str] = "quality"
    backend: ClassVar[str] = "piqe"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("speakers",)
    measures: ClassVar[tuple[str, ...]] = measures_of("quality")

    crop_side: int = 256
    max_side: int = 512
    margin: float = 0.1
    """Added to each side of the face's box, as a share of its longer side."""
    max_samples: int = 10
    """Frames measured at most, spread evenly: a median needs no more."""

    def weights(self) -> tuple[str, ...]:
        return ("pyiqa",)

    def revision(self) -> str:
        return package_version("pyiqa")

    def measure(self, clip: Clip) -> Result:
        found = np.array([self.of_crop(crop) for crop in self.crops(clip)])
        piqe_score, sharp, resolved = (round(float(v), 3) for v in np.median(found, axis=0))
        measures = {
            "quality_score": None,
            "quality_piqe": piqe_score,
            "quality_sharpness": sharp,
            "quality_resolution": resolved,
        }
        return Result(measures, {"per_frame": np.round(found, 2).tolist()})

    def of_crop(self, crop: np.ndarray) -> tuple[float, float, float]:
        """(PIQE, sharpness, resolution) of a square face [side, side, 3] uint8 BGR."""
        shrink = len(crop) > self.crop_side
        size = (self.crop_side, self.crop_side)
        shown = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
        return piqe(shown), sharpness(shown), resolution(crop)

    def crops(self, clip: Clip) -> Iterator[np.ndarray]:
        """Square faces [side, side, 3] uint8 BGR of the sampled frames. Raises Unmeasured without a face."""
        track = clip.product("speakers")
        if track is None or not clip.samples:
            raise Unmeasured("no face")
        order = sorted(clip.samples)
        order = order[:: -(-len(order) // self.max_samples)]
        for at, box in zip(order, track.at(np.array(order))[0], strict=True):
            image = clip.samples[at]
            x0, y0, x1, y1 = (float(v) * image.shape[1] / clip.info.width for v in box)
            side = max(x1 - x0, y1 - y0) * (1 + 2 * self.margin)
            left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
            yield crop_square(image, left, top, side, min(self.max_side, max(2, round(side))))


def piqe(image: np.ndarray) -> float:
    """PIQE of `image` [h, w, 3] uint8 BGR, 0-100, lower is better (Venkatanath et al., NCC 2015; by pyiqa)."""
    import torch
    from pyiqa.archs.piqe_arch import piqe as measure

    if not image.any():
        return 100.0  # it divides by the brightest pixel
    rgb = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))
    with torch.inference_mode():
        return float(measure(torch.from_numpy(rgb)[None].float() / 255)[0])


def sharpness(image: np.ndarray) -> float:
    """Deviation of the Laplacian of `image` [h, w, 3] uint8 BGR, percent of the picture's own deviation.

    The variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) made free of light and contrast.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return 100.0 * float(cv2.Laplacian(gray, cv2.CV_32F).std()) / max(1.0, float(gray.std()))


def resolution(image: np.ndarray) -> float:
    """Side in px of the smallest picture that holds the detail of square `image` [n, n, 3] uint8 BGR, <= n.

    The lower of what its spectrum and its repeated pixels leave: smooth enlargement and blur empty the
    spectrum's upper end, enlargement by repetition fills it with the edges of its blocks.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    if len(gray) < 16:
        return float(len(gray))
    return min(spectral_side(gray), len(gray) / repetition(gray))


def spectral_side(gray: np.ndarray, contrast: float = 0.02, least: float = 0.5) -> float:
    """Twice the highest frequency (cycles a side) of square `gray` [n, n] whose third-octave band still has
    an r.m.s. of `contrast` of the picture's own, or `least` grey levels.

    White noise, told by the corners of the spectrum, beyond any detail's reach, is taken off.
    """
    n = len(gray)
    power = ring_power(gray)
    noise = float(np.mean(power[n // 2 : int(0.6 * n)]))
    radius = np.arange(n // 2)
    # the factor of two keeps what is left of the noise's own scatter below the level
    energy = np.maximum(power[: n // 2] - 2 * noise, 0) * 2 * np.pi * radius
    total = np.concatenate([[0.0], np.cumsum(energy)])
    level = max(least, contrast * float(gray.std()))
    for k in range(int(n / 2 / THIRD_OCTAVE), 1, -1):
        low, high = int(np.ceil(k / THIRD_OCTAVE)), int(np.floor(k * THIRD_OCTAVE)) + 1
        # whole rings stand for a band of fractional width
        band = (total[min(high, n // 2)] - total[low]) * k * (THIRD_OCTAVE - 1 / THIRD_OCTAVE) / (high - low)
        if band > level**2:
            return float(n if k == int(n / 2 / THIRD_OCTAVE) else 2 * k)
    return 2.0


def ring_power(gray: np.ndarray) -> np.ndarray:
    """[~0.7 n] mean power (grey levels squared) of a frequency at each whole radius, of square `gray` [n, n]."""
    n = len(gray)
    window = np.hanning(n)
    spectrum = np.abs(np.fft.fft2((gray - gray.mean()) * np.outer(window, window))) ** 2
    at = np.fft.fftfreq(n, 1 / n)
    radius = np.hypot(*np.meshgrid(at, at)).astype(int).ravel()
    return np.bincount(radius, spectrum.ravel()) / np.bincount(radius) / ((window**2).sum() * n) ** 2


def repetition(gray: np.ndarray, window: int = 49) -> float:
    """How many times a side of `gray` [h, w] repeats each pixel: f for enlargement f times by nearest neighbour,
    1.0-1.3 for a natural picture.

    Differences between neighbouring columns (rows) then sit in one of f; their participation ratio, after
    levelling over `window` px, is f.
    """
    factors = []
    for axis in (0, 1):
        steps = np.abs(np.diff(gray, axis=axis)).mean(axis=1 - axis)
        level = cv2.blur(steps[None], (min(window, len(steps) // 2 * 2 - 1), 1))[0]
        relative = steps / (level + 1e-3)
        factors.append(float((relative**2).mean() / max(relative.mean() ** 2, 1e-9)))
    return max(1.0, (factors[0] * factors[1]) ** 0.5)
