"""Video latents: what every codec offers, and the bundled one, a lapped 3-D DCT with LTX-Video's shapes.

8k+1 frames [8k+1, H, W, 3] become [1+k, 128, H/32, W/32]: 8 x 32 x 32 compression, 128 channels, and the
first latent is one frame alone, so that a portrait encoded alone is exactly a video's first latent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from models.calm import calmest
from models.clock import CHUNK_FRAMES, chunks_in, frames_of

CHANNELS = 128
"""Channels of a latent, LTX-Video's."""
BLOCK = 32
"""Picture pixels a latent pixel, each way, LTX-Video's."""


class VideoCodec(Protocol):
    """Frames to latents and back, causal: a latent depends on no later frame."""

    name: str
    channels: int

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """[8k+1, H, W, 3] uint8 RGB -> [1+k, channels, H/32, W/32] float16; H, W multiples of 32."""
        ...

    def decode(
        self,
        latents: np.ndarray,
        *,
        first: bool = True,
        past: np.ndarray | None = None,
        future: np.ndarray | None = None,
        start: int | None = None,
    ) -> np.ndarray:
        """[n, channels, h, w] -> uint8 RGB: [8n-7, H, W, 3], or [8n, H, W, 3] when not `first`.

        first: latents[0] is a video's first, a single frame; False to go on with a stream. past, future: [m, channels,
        h, w], latents before and after, whose frames are not returned; with enough of them a piece is what the whole
        video has there. start: place of latents[0] in its video; 0, or 1 when not `first`.
        """
        ...

    def fingerprint(self) -> str:
        """16 hex digits; another one means that latents mean something else."""
        ...


COLOUR = np.array(((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)), np.float32)
"""RGB to YCbCr, BT.601 at full range (JPEG's)."""

LAP = 1.3
"""Scale inside the boundary filter. Of 1, 1.3 and 1.6, with tables from 18 clips, it gave the best PSNR on 17
others: 0.4 dB (single frames 0.6 dB) over the plain DCT, and no visible block edges; 1 leaves a grid on flat areas."""

TABLE = """
Y0,0,0:1.83e+03 Y0,0,1:581 Y0,1,0:496 R0,0,0:602 B0,0,0:445 Y0,1,1:279 Y0,0,2:273 Y0,2,0:219 Y0,0,3:160
Y0,1,2:158 Y0,2,1:161 Y0,3,0:127 Y0,0,4:112 Y0,1,3:108 Y0,3,1:107 Y0,2,2:105 Y0,4,0:89.4 Y0,0,5:78.8
R0,0,1:111 Y0,2,3:78.3 Y0,1,4:73.6 Y0,3,2:70.7 Y0,4,1:70.6 R0,1,0:95.7 B0,0,1:81.4 Y0,5,0:65.4
Y0,0,6:60.8 B0,1,0:73.1 Y0,1,5:55.8 Y0,5,1:55.8 Y0,2,4:55.3 Y0,3,3:52.9 Y0,4,2:52.7 Y0,6,0:51.2
Y0,0,7:49.3 Y0,1,6:44.5 Y0,3,4:43.9 Y0,4,3:42.7 Y0,5,2:41.8 Y0,2,5:41.6 Y0,7,0:41.1 Y0,0,8:42.4
Y0,6,1:37.8 Y0,3,5:37.4 Y0,1,7:37.3 R0,1,1:53.2 Y0,5,3:34.6 Y0,4,4:34 Y0,7,1:33.2 Y0,2,6:33.7
Y0,6,2:33.1 R0,0,2:45.5 B0,1,1:38.7 Y0,0,9:31.1 Y0,4,5:30.2 Y0,3,6:30.1 Y0,8,0:29.6 Y0,1,8:29.7
R0,2,0:44.9 Y0,6,3:29.2 Y0,2,7:28.6 Y0,5,4:27.9 Y0,0,10:30.6 B0,0,2:34.7 Y0,7,2:26.5 Y0,4,6:26.5
Y0,7,3:25.9 Y0,8,1:25.2 Y0,1,9:25.7 B0,2,0:31.5 Y0,5,5:24.6 Y0,3,7:24.4 Y0,9,0:24 Y0,0,11:25.7
Y0,6,4:23.7 Y0,2,8:23.6 R0,1,2:34.1 Y1,0,0:379 Y1,0,1:225 Y1,1,0:182 Y1,1,1:140 Y1,0,2:142 Y2,0,0:167
Y1,2,0:122 Y1,1,2:107 Y1,0,3:109 Y1,3,0:101 Y1,2,1:95.7 Y2,1,0:119 Y2,0,1:111 Y1,1,3:85.9 Y1,0,4:85.6
Y1,3,1:78 Y1,4,0:80.9 Y1,2,2:72.1 Y1,1,4:72 Y3,0,0:105 Y1,0,5:69.1 Y2,1,1:76.4 Y1,4,1:64.8 Y1,5,0:63.3
Y2,0,2:68.4 Y2,2,0:71.1 Y1,2,3:61.7 Y1,3,2:58.1 Y1,1,5:56 Y3,1,0:78.3 Y2,3,0:64.4 Y1,0,6:56.1
Y1,5,1:53.1 Y3,0,1:72.9 Y1,6,0:52.6 Y2,2,1:55.5 Y2,1,2:54.7 Y1,3,3:49 Y1,2,4:49.2 Y2,0,3:52.9
Y1,4,2:47.4 Y1,1,6:47 Y1,0,7:49 Y2,4,0:51.7 Y4,0,0:74.6 Y2,3,1:48.2 Y1,6,1:44 Y3,2,0:52.5 Y1,2,5:42.4
Y1,3,4:41.6 Y2,1,3:44.4
"""
"""Channels of a chunk, in order: plane, time, down, across: RMS. The 77 of t = 0 come first.

The 128 coefficients of largest mean RMS over 35 talking-head clips (examples of HDTF, LivePortrait, LatentSync,
VideoReTalking, MuseTalk, EchoMimic; square head portraits of 256 px, every third chunk); a mean of RMS rather
than of energy, so that no single clip decides. Chroma counts 0.6 of its share of RGB energy. Changes in time
count 2.5 times: on the 12 of these clips in which somebody speaks that costs 0.2 dB over the picture and wins
0.3 dB at the mouth, whose change from frame to frame then correlates 0.80 with the true one, not 0.74."""

SHARED = 77
"""Channels that mean the same in a single frame and in a chunk."""

DETAIL = """
Y0,1,10:25.5 Y0,5,6:25.3 Y0,7,4:24.9 Y0,0,12:24.7 Y0,4,7:24.7 Y0,10,0:24.6 Y0,9,1:24.6 Y0,8,2:24.5
Y0,3,8:24.2 Y0,2,9:23.7 Y0,0,13:23.7 Y0,8,3:23.1 Y0,6,5:22.9 Y0,5,7:22.6 Y0,1,11:22.3 Y0,11,0:21.9
Y0,4,8:21.2 Y0,6,6:21 R0,2,1:29.6 R0,0,3:29.4 Y0,10,1:20.6 Y0,8,4:20.6 Y0,3,9:20.5 Y0,7,5:20.3
Y0,9,2:20.2 R0,3,0:28.7 Y0,2,10:20.2 Y0,0,14:20 B0,1,2:24.4 Y0,1,12:19.2 Y0,9,3:19.1 Y0,12,0:19
Y0,6,7:18.9 Y0,5,8:18.8 Y0,7,6:18.5 Y0,4,9:18.4 Y0,8,5:18.2 B0,0,3:22.5 Y0,3,10:18 B0,2,1:22.3 Y0,9,4:18
Y0,2,11:18 Y0,11,1:17.8 R0,1,3:25.2 Y0,0,15:17.6 Y0,0,16:17.5 Y0,1,13:17.5 Y0,9,5:17.3 Y0,13,0:17.1
Y0,10,2:16.9 Y0,4,10:16.8
"""
"""Channels 77 ... 127 of a single frame: the coefficients of most energy in single frames that TABLE lacks."""


@dataclass(frozen=True)
class Coefficient:
    """A channel: plane 0-2 (Y, Cb, Cr), frequencies in time, down and across, and its RMS on real faces.

    At t = 0 the coefficient is averaged over the chunk, so a still picture has a still video's values.
    """

    plane: int
    t: int
    v: int
    u: int
    rms: float


@dataclass(frozen=True)
class Layout:
    """Where the channels of one kind of latent lie in one plane's coefficients [t, v, u].

    channels, t, v, u: [m] int. rms: [m, 1, 1] float32.
    """

    channels: np.ndarray
    t: np.ndarray
    v: np.ndarray
    u: np.ndarray
    rms: np.ndarray


class Dct3d:
    """Fixed transform of 8x32x32 blocks, 128 low frequencies of YCbCr scaled to about unit variance.

    Time: DCT-II of the 8 frames of a chunk. Space: time-domain lapped transform (Tran, Liang & Tu, "Lapped
    transform via time-domain pre- and post-filtering", IEEE Trans. SP 51(6), 2003): blocks overlap, so the
    few coefficients that are kept leave no block edges. Channels 0 ... SHARED-1 are the chunk's time average
    (of a single frame: itself); the others are changes in time in a chunk, finer spatial detail in a single
    frame, so the portrait comes out sharper than the video.

    Every latent is encoded by itself. A chunk is decoded between its neighbours, to the calmest motion that all
    three tell of (`models.calm`): on 11 real clips that is 0.15 dB better than each by itself, and a change from chunk
    to chunk is 1.2 times one inside, not 2.9 times. With one latent of past and of future, in arrays of the same
    shape, a piece equals the whole bit for bit.
    """

    name = "dct3d"
    channels = CHANNELS

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """As `VideoCodec.encode`. Raises ValueError for other shapes or types."""
        check_frames(frames)
        chunks = [frames[frames_of(c) : frames_of(c + 1)] for c in range(chunks_in(len(frames)))]
        return np.stack([_encode(part) for part in [frames[:1], *chunks]])

    def decode(
        self,
        latents: np.ndarray,
        *,
        first: bool = True,
        past: np.ndarray | None = None,
        future: np.ndarray | None = None,
        start: int | None = None,
    ) -> np.ndarray:
        """As `VideoCodec.decode`; of past and future one latent each is enough. Raises ValueError for other shapes."""
        check_latents(latents, past, future)
        if first and past is not None:
            raise ValueError("the first latent of a video has no past")
        start = 0 if first else 1 if start is None else start
        before = [] if past is None else [past[-1]]
        after = [] if future is None else [future[0]]
        line = [None, *before, *latents, *after, None]
        frames = []
        for place, at in enumerate(range(1 + len(before), 1 + len(before) + len(latents)), start):
            near = line[at - 1], line[at], line[at + 1]
            frames.append(_decode_chunk(*near, still=place == 1) if place else _decode_frame(latents[0]))
        return np.concatenate(frames)

    def fingerprint(self) -> str:
        """As `VideoCodec.fingerprint`."""
        facts = f"{self.name} 1 {LAP} {TABLE} {DETAIL}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def check_frames(frames: np.ndarray) -> None:
    """Raises ValueError unless `frames` are what `VideoCodec.encode` takes."""
    shape = list(frames.shape)
    if frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"frames must be [8k+1, H, W, 3] uint8 RGB, not {shape} {frames.dtype}")
    if shape[0] != frames_of(chunks_in(shape[0])) or 0 in shape or shape[1] % BLOCK or shape[2] % BLOCK:
        raise ValueError(f"frames must be 8k+1 with sides in multiples of {BLOCK} px, not {shape[:3]}")


def check_latents(latents: np.ndarray, *others: np.ndarray | None) -> None:
    """Raises ValueError unless all are [n, 128, h, w] of one size, n at least 1."""
    for found in (latents, *(other for other in others if other is not None)):
        if found.ndim != 4 or found.shape[1:] != (CHANNELS, *latents.shape[2:]) or 0 in found.shape:
            raise ValueError(f"latents must be [n, {CHANNELS}, h, w] of one size ({BLOCK} px), not {list(found.shape)}")


def _encode(frames: np.ndarray) -> np.ndarray:
    """[1 or 8, H, W, 3] uint8 -> [128, h, w] float16."""
    pixels = np.ascontiguousarray(frames, np.float32)
    height, width = frames.shape[1:3]
    planes = (pixels.reshape(-1, 3) @ COLOUR.T - np.array([128, 0, 0], np.float32)).reshape(pixels.shape)
    latent = np.empty((CHANNELS, height // BLOCK, width // BLOCK), np.float16)
    for layout, plane in zip(_layouts(len(frames)), np.moveaxis(planes, 3, 0), strict=True):
        latent[layout.channels] = _analyse(plane, layout)[layout.t, layout.v, layout.u] / layout.rms
    return latent


def _analyse(plane: np.ndarray, layout: Layout) -> np.ndarray:
    """[t, H, W] -> [t, v, u, h, w], up to the layout's highest frequencies."""
    count, height, width = plane.shape
    times, downs, acrosses = (int(f.max()) + 1 for f in (layout.t, layout.v, layout.u))
    timed = _time(count)[:times] @ np.ascontiguousarray(plane).reshape(count, -1)
    across = timed.reshape(-1, width) @ _axis(width, acrosses)[0].T
    down = _axis(height, downs)[0] @ across.reshape(times, height, -1)
    return down.reshape(times, height // BLOCK, downs, width // BLOCK, acrosses).transpose(0, 2, 4, 1, 3)


def _decode_frame(latent: np.ndarray) -> np.ndarray:
    """[128, h, w] of a single frame -> [1, H, W, 3] uint8."""
    return _coloured([_in_space(_spectrum(latent, layout)) for layout in _layouts(1)])


def _decode_chunk(past: np.ndarray | None, latent: np.ndarray, future: np.ndarray | None, still: bool) -> np.ndarray:
    """[128, h, w] of a chunk between its neighbours -> [8, H, W, 3] uint8. still: the past is a single frame."""
    before = 0 if past is None else 1 if still else CHUNK_FRAMES
    near = [each for each in (past, latent, future) if each is not None]
    planes = []
    for layout in _layouts(CHUNK_FRAMES):
        spectra = [_spectrum(each, layout) for each in near]
        planes.append(_in_space(_in_time(spectra, layout, before, future is not None)))
    return _coloured(planes)


def _coloured(planes: list[np.ndarray]) -> np.ndarray:
    """Y, Cb, Cr [t, H, W] float32 -> [t, H, W, 3] uint8 RGB."""
    planes[0] += 128
    pixels = np.stack(planes, axis=-1).reshape(-1, 3) @ np.linalg.inv(COLOUR).T
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(*planes[0].shape, 3)


def _spectrum(latent: np.ndarray, layout: Layout) -> np.ndarray:
    """One plane's coefficients [t, v, u, h, w] float32 of a latent, up to the highest that are kept."""
    times, downs, acrosses = (int(f.max()) + 1 for f in (layout.t, layout.v, layout.u))
    spectrum = np.zeros((times, downs, acrosses, *latent.shape[1:]), np.float32)
    spectrum[layout.t, layout.v, layout.u] = latent[layout.channels].astype(np.float32) * layout.rms
    return spectrum


def _in_time(spectra: list[np.ndarray], layout: Layout, before: int, after: bool) -> np.ndarray:
    """Spectra [t, v, u, h, w] of a chunk and its neighbours -> [8, v, u, h, w], the chunk frame by frame."""
    frames = np.zeros((CHUNK_FRAMES, *spectra[0].shape[1:]), np.float32)
    kept = np.zeros(frames.shape[1:3], int)
    np.add.at(kept, (layout.v, layout.u), 1)
    for count in range(1, kept.max() + 1):
        where = kept == count
        counts = [min(count, before)] * (before > 0) + [count] * (1 + after)
        known = [each[:rows, where] for each, rows in zip(spectra, counts, strict=True)]
        frames[:, where] = np.tensordot(_motion(count, before, after), np.concatenate(known), 1)
    return frames


def _in_space(spectrum: np.ndarray) -> np.ndarray:
    """[t, v, u, h, w] -> one plane [t, H, W] float32."""
    times, downs, acrosses, height, width = spectrum.shape
    rows = spectrum.transpose(0, 3, 1, 4, 2).reshape(times, height * downs, -1)
    down = _axis(BLOCK * height, downs)[1] @ rows
    across = down.reshape(times * BLOCK * height, -1) @ _axis(BLOCK * width, acrosses)[1].T
    return across.reshape(times, BLOCK * height, BLOCK * width)


@cache
def _coefficients(table: str) -> tuple[Coefficient, ...]:
    """The rows of TABLE or DETAIL."""
    found = []
    for item in table.split():
        where, rms = item[1:].split(":")
        t, v, u = (int(f) for f in where.split(","))
        found.append(Coefficient("YBR".index(item[0]), t, v, u, float(rms)))
    return tuple(found)


@cache
def _layouts(count: int) -> tuple[Layout, Layout, Layout]:
    """For each plane, the channels of a single frame (count 1) or of a chunk (count 8)."""
    chunk, detail = _coefficients(TABLE), _coefficients(DETAIL)
    used = chunk if count > 1 else (*(c for c in chunk if not c.t), *detail)
    planes = []
    for plane in range(3):
        rows = [(i, c.t, c.v, c.u) for i, c in enumerate(used) if c.plane == plane]
        rms = np.array([c.rms for c in used if c.plane == plane], np.float32)
        channels, t, v, u = np.array(rows, np.intp).T
        planes.append(Layout(channels, t, v, u, rms[:, None, None]))
    return planes[0], planes[1], planes[2]


@cache
def _time(count: int) -> np.ndarray:
    """[count, count] DCT over time whose row 0 is the average."""
    forward = _dct(count)
    forward[0] /= np.sqrt(count)
    return np.ascontiguousarray(forward, np.float32)


@cache
def _motion(kept: int, before: int, after: bool) -> np.ndarray:
    """[8, min(kept, before) + kept + kept * after] float32: `kept` coefficients of each chunk to a chunk's frames."""
    known = _time(CHUNK_FRAMES)[:kept].astype(float)
    past = known if before > 1 else np.ones((before, before))
    operator = calmest(known, past, known if after else known[:0])
    return np.ascontiguousarray(operator, np.float32)


@cache
def _axis(length: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Analysis [length/32 * kept, length] and synthesis [length, length/32 * kept] of one picture axis: the
    `kept` lowest frequencies of each block of the lapped transform."""
    blocks = length // BLOCK
    lapped = np.kron(np.eye(blocks), _dct(BLOCK))
    edge = _boundary()
    for at in range(BLOCK // 2, length - BLOCK // 2, BLOCK):
        span = slice(at, at + BLOCK)
        lapped[:, span] = lapped[:, span] @ edge
    inverse = np.linalg.inv(lapped)
    analysis = lapped.reshape(blocks, BLOCK, length)[:, :kept].reshape(-1, length)
    synthesis = inverse.reshape(length, blocks, BLOCK)[:, :, :kept].reshape(length, -1)
    return np.ascontiguousarray(analysis, np.float32), np.ascontiguousarray(synthesis, np.float32)


def _boundary() -> np.ndarray:
    """[32, 32] pre-filter across a block boundary (Tran et al. 2003, fig. 4, type-II fast LOT with a scale):
    it flattens a block towards its edges, keeps constants constant, and the post-filter undoes it."""
    from scipy.fft import dct

    half = BLOCK // 2
    eye, flip = np.eye(half), np.fliplr(np.eye(half))
    butterfly = np.block([[eye, flip], [flip, -eye]]) / np.sqrt(2)
    scale = np.diag([LAP] + [1.0] * (half - 1))
    turn = flip @ _dct(half).T @ scale @ dct(eye, axis=0, norm="ortho", type=4) @ flip
    return butterfly @ np.block([[eye, 0 * eye], [0 * eye, turn]]) @ butterfly


def _dct(size: int) -> np.ndarray:
    """[size, size] orthonormal DCT-II, rows are frequencies."""
    n = np.arange(size)
    basis = np.cos(np.pi * np.outer(n, n + 0.5) / size) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis
