"""Lip-sync by SyncNet: the crop that its authors cut, the net, their score, and the score after the correction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.clip import SpanDecoder
from curation.media import Scaler, on_grid
from curation.stage import Result, Stage, Unmeasured
from curation.sync import SILENCE, result, seen_span
from manifests.errors import SourceError
from manifests.records import measures_of
from models.clock import ANALYSIS_RATE, FPS
from models.device import torch_device
from models.faces import FaceTrack
from models.mfcc import mfcc
from models.weights import weights_file

if TYPE_CHECKING:
    from curation.clip import Clip

NAME = "syncnet"
FRAME_SAMPLES = ANALYSIS_RATE // FPS
"""640 samples of sound a frame."""
LEAST = 25
"""Frames under which the score says nothing, whatever `min_seconds` allows: its lags alone span 31."""


@dataclass(frozen=True)
class SyncNetSync(Stage):
    """Sync by SyncNet (`models.syncnet`). Offsets and confidence are the authors': audio late by k frames is at -k.

    min_seconds: face and sound together; the authors' pipeline scores no face that is followed for less than
        100 frames.
    device: "cpu", "cuda", "cuda:N" or "auto".

    The evidence's curve is, for each lag, how far its mean distance lies under the median of all lags, so that it
    reads as the other backend's: higher is better, the top is the confidence. `min_distance` is the authors'
    "Min dist", `frame_confidence` theirs frame by frame, from frame `first_frame` of the clip on.
    """

    name = "sync"
    backend = "syncnet"
    reads = ("speakers",)
    measures = measures_of("sync")

    min_seconds: float = 4.0
    device: str = "cpu"

    def weights(self) -> tuple[str, ...]:
        return (NAME,)

    def measure(self, clip: Clip) -> Result:
        """Raises Unmeasured without a face, without sound, or with less than `min_seconds` of both."""
        net = loaded(torch_device(self.device), str(weights_file(NAME)))
        track = clip.product("speakers")
        if track is None or not len(track.frames):
            raise Unmeasured("no face")
        if not (np.abs(clip.audio(ANALYSIS_RATE).samples) > SILENCE).any():
            raise Unmeasured("no sound")
        first, last = seen_span(track, len(clip.small))
        begin, samples = heard(clip, first, last, 0)
        both = together(begin, last, samples)
        if both < max(self.min_seconds * FPS, LEAST):
            raise Unmeasured(f"face and sound together for {both / FPS:.2f} s only, {self.min_seconds} s needed")
        lips = net.lips(crops(clip, track, first, last))
        found = scored(net, lips[begin - first :], samples)
        after = found if found.lag == 0 else corrected(clip, net, lips, (first, last), found.lag, both)
        plain = result(found, after)
        more = {
            "min_distance": round(found.least, 4),
            "first_frame": begin,
            "frame_confidence": np.round(found.frames, 3).tolist(),
        }
        return Result(plain.measures, {**(plain.evidence or {}), **more})


@cache
def loaded(device: str, path: str) -> Any:
    """The net of file `path` on `device`, folded, once a process."""
    from pathlib import Path

    from models.syncnet import load
    from models.syncnet_fast import FastSyncNet

    return FastSyncNet(load(Path(path)), device)


def heard(clip: Clip, first: int, last: int, lag: int) -> tuple[int, np.ndarray]:
    """(frame, [k] int16 at 16 kHz): the sound, cut `lag` frames later, of frames `first` ... `last` - 1 from the
    first of them on that has any."""
    shift = lag / FPS
    sound = clip.audio(ANALYSIS_RATE, shift, clip.seconds + shift)
    start = round((sound.start_s - shift) * ANALYSIS_RATE)
    begin = min(last, max(first, -(-start // FRAME_SAMPLES)))
    wave = sound.samples[begin * FRAME_SAMPLES - start :][: (last - begin) * FRAME_SAMPLES]
    return begin, np.clip(np.rint(wave.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)


def scored(net: Any, lips: np.ndarray, samples: np.ndarray) -> Any:
    """`models.syncnet.Score` of the features `lips` [n, 1024] and the sound `samples` [k] from the first frame on,
    over the looks that the authors take."""
    from models.syncnet import SPAN, score, windows_in

    count = windows_in(len(lips) + SPAN - 1, len(samples))
    cepstra = mfcc(samples)[: 4 * (count + SPAN - 1)]
    return score(lips[:count], net.sound(cepstra))


def together(begin: int, last: int, samples: np.ndarray) -> int:
    """Frames of `begin` ... `last` - 1 that have sound."""
    return min(last - begin, len(samples) // FRAME_SAMPLES)


def corrected(clip: Clip, net: Any, lips: np.ndarray, span: tuple[int, int], lag: int, before: int) -> Any | None:
    """The score again after `lag` is taken out of the sound; None where that leaves less sound than the `before`
    frames of it without those that the shift moves over an end of the source, or too little for any score."""
    begin, samples = heard(clip, *span, lag)
    if together(begin, span[1], samples) < max(before - abs(lag), LEAST):
        return None
    return scored(net, lips[begin - span[0] :], samples)


def crops(clip: Clip, track: FaceTrack, first: int, last: int) -> np.ndarray:
    """[last - first, 224, 224, 3] uint8 BGR: the crop that follows the face.

    Cut from the shared frames where these resolve it, else decoded once more at full size.
    """
    from models.syncnet import CROP_SCALE, SIDE, crop, crop_paths

    paths = crop_paths(track.frames, track.boxes, first, last)
    side = 2 * float(np.median(paths[:, 2])) * (1 + CROP_SCALE) / clip.scale
    out = np.empty((last - first, SIDE, SIDE, 3), np.uint8)
    if clip.scale <= 1 or side >= SIDE:
        for at, path in enumerate(paths / clip.scale):
            out[at] = crop(clip.small[first + at], *path)
        return out
    for at, image in enumerate(full_size(clip, first, last)):
        out[at] = crop(image, *paths[at])
    return out


def full_size(clip: Clip, first: int, last: int) -> Iterator[np.ndarray]:
    """Frames `first` ... `last` - 1 of the clip, [h, w, 3] uint8 BGR, decoded again.

    Raises SourceError when fewer are there.
    """
    begin, count, full = clip.first_frame + first, last - first, Scaler(clip.info)
    found, shown, image = 0, None, None
    with SpanDecoder(clip.uri, clip.info) as decoder:
        for _, frame in on_grid(decoder.frames(begin), begin, count):
            if frame is not shown:
                shown, image = frame, full(frame)
            assert image is not None
            found += 1
            yield image
    if found < count:
        raise SourceError(f"{clip.uri!r} ends after {begin + found} frames, {begin + count} were expected")
