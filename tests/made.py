"""Media that the tests make: pictures whose colour tells their time, sound whose clicks do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS = 90_000


def numbered(index: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """[h, w, 3] uint8 RGB that tells its index by eight black or white columns (bits, highest first)."""
    height, width = size
    bits = [(index >> (7 - column * 8 // width)) & 1 for column in range(width)]
    return np.repeat(np.tile(np.array(bits, np.uint8) * 200 + 28, (height, 1))[..., None], 3, axis=2)


def number_of(image: np.ndarray) -> int:
    """The index that `numbered` painted, read back from any size."""
    width = image.shape[1]
    columns = [image[:, int((bit + 0.5) * width / 8)].mean() > 128 for bit in range(8)]
    return sum(int(on) << (7 - bit) for bit, on in enumerate(columns))


def write_movie(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    times: Sequence[float] | None = None,
    fps: int = 25,
    audio: np.ndarray | None = None,
    rate: int = 16_000,
    audio_start: float = 0.0,
    codec: str = "libx264",
    audio_codec: str = "aac",
    pixels: str = "yuv420p",
    gop: int = 12,
    aspect: Fraction | None = None,
) -> Path:
    """Writes a video; times: presentation times in s (variable rate), else `fps`; audio: [n] float32 mono."""
    with av.open(str(path), "w") as out:
        pictures = list(frames)
        height, width = pictures[0].shape[:2]
        video = out.add_stream(codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, pixels
        video.codec_context.gop_size = gop
        ticks = TICKS if times else fps  # MPEG-4 part 2 takes no fine clock
        video.codec_context.time_base = Fraction(1, ticks)
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if codec == "libx264":
            video.options = {"crf": "12", "preset": "ultrafast"}
        sound = out.add_stream(audio_codec, rate=rate, layout="mono") if audio is not None else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = round(times[index] * ticks) if times else index
            frame.time_base = Fraction(1, ticks)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None and audio is not None:
            _mux_sound(out, sound, audio, rate, audio_start)
    return path


def _mux_sound(
    out: av.container.OutputContainer, sound: av.AudioStream, audio: np.ndarray, rate: int, start: float
) -> None:
    size = 1024
    for begin in range(0, len(audio), size):
        block = audio[begin : begin + size].astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, begin + round(start * rate), Fraction(1, rate)
        out.mux(sound.encode(frame))
    out.mux(sound.encode(None))


def clicks(seconds: float, rate: int = 16_000, every: float = 0.5) -> np.ndarray:
    """[n] float32: a short 1 kHz burst every `every` seconds."""
    t = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * 1000 * t) * ((t % every) < 0.02) * 0.6).astype(np.float32)


def click_times(samples: np.ndarray, rate: int) -> list[float]:
    """Where the bursts of `clicks` begin, s."""
    loud = np.abs(samples) > 0.15
    begins = [i for i in np.flatnonzero(loud) if not loud[max(0, i - round(0.1 * rate)) : i].any()]
    return [i / rate for i in begins]
