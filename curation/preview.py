"""Preview: the clip as a browser plays it, its sound corrected; a film strip; a waveform. For people who review."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from curation.clip import Clip
from curation.film import Coding, write_film
from curation.media import fitted
from curation.stage import Result, Stage
from manifests.records import measures_of
from models.clock import FPS, STORED_RATE

STRIP_FRAMES = 5
"""Frames of the film strip, the middles of equal parts."""
STRIP_HEIGHT = 96
"""Height of the film strip, px."""
STRIP_QUALITY = 80
LEVELS = 100
"""Steps of the waveform, 0 = silence, 100 = full scale."""


@dataclass(frozen=True)
class H264Preview(Stage):
    """H.264 and AAC in MP4, H.264's index first so that it plays while it loads.

    side: longer side, px, at most; never enlarged. quality: x264's crf.
    The sound is the source's own, cut `sync_offset_frames` away from the picture as in the encoded sample; where
    the source has none it is silent. evidence: {"waveform": peaks of each frame's sound, 0-100, "offset_frames"}.
    """

    name = "preview"
    backend = "h264"
    reads = ("speech", "sync")
    measures = measures_of("preview")

    side: int = 360
    quality: int = 28
    min_speech_share: float = 0.1

    def measure(self, clip: Clip) -> Result:
        """Files "mp4" and "jpg". Raises SourceError when nothing decodes."""
        offset = applied_offset(clip.row.get("sync_offset_frames"), clip.row.get("speech_share"), self.min_speech_share)
        frames = shrunk(clip.small, self.side)
        sound = corrected(clip, offset)
        files = {"mp4": film(frames, sound, self.quality), "jpg": strip(clip.small)}
        evidence = {"waveform": waveform(sound, len(frames)), "offset_frames": offset}
        return Result({"preview_tar": None, "preview_bytes": sum(map(len, files.values()))}, evidence, files=files)

    def revision(self) -> str:
        return ""


def applied_offset(offset: int | None, speech_share: float | None, min_speech_share: float) -> int:
    """Frames by which the sound of a clip is corrected, SyncNet's sign; 0 where nobody speaks: what a silent face
    measures is chance."""
    if speech_share is not None and speech_share < min_speech_share:
        return 0
    return offset or 0


def shrunk(frames: np.ndarray, side: int) -> np.ndarray:
    """[n, h, w, 3] uint8 with even sides, the longer at most `side` px, of `frames` [n, H, W, 3]."""
    width, height = (max(2, round(length / 2) * 2) for length in fitted(frames.shape[2], frames.shape[1], side))
    if (height, width) == frames.shape[1:3]:
        return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def film(frames: np.ndarray, samples: np.ndarray, quality: int) -> bytes:
    """An MP4 of `frames` [n, h, w, 3] uint8 BGR at 25 fps and `samples` [m] float32 at STORED_RATE."""
    options = {"preset": "veryfast", "crf": str(quality)}
    coding = Coding(audio_bit_rate=64_000, options=options, movflags="+faststart")
    with tempfile.TemporaryDirectory() as folder:  # to bring its index forward the muxer opens the file once more
        path = Path(folder, "film.mp4")
        write_film(path, frames, samples, STORED_RATE, coding, pixels="bgr24")
        return path.read_bytes()


def corrected(clip: Clip, offset: int) -> np.ndarray:
    """[n] float32 at STORED_RATE, as long as the picture: what belongs to it once `offset` is taken out."""
    lag = -offset / FPS
    sound = clip.audio(STORED_RATE, lag, clip.seconds + lag)
    out = np.zeros(len(clip.small) * STORED_RATE // FPS, np.float32)
    first = round((sound.start_s - lag) * STORED_RATE)
    part = sound.samples[max(0, -first) : len(out) - first]
    out[max(0, first) : max(0, first) + len(part)] = part
    return out


def strip(frames: np.ndarray) -> bytes:
    """A JPEG of STRIP_FRAMES of `frames` [n, h, w, 3] uint8 BGR side by side."""
    at = [(2 * part + 1) * len(frames) // (2 * STRIP_FRAMES) for part in range(STRIP_FRAMES)]
    width = max(1, round(frames.shape[2] * STRIP_HEIGHT / frames.shape[1]))
    shown = [cv2.resize(frames[k], (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for k in at]
    coded = cv2.imencode(".jpg", np.hstack(shown), [cv2.IMWRITE_JPEG_QUALITY, STRIP_QUALITY])[1]
    return bytes(coded.tobytes())


def waveform(samples: np.ndarray, count: int) -> list[int]:
    """Peak of each of `count` frames of `samples` [n], 0 ... LEVELS."""
    peaks = np.abs(samples).reshape(count, -1).max(axis=1)
    return np.rint(np.clip(peaks, 0, 1) * LEVELS).astype(int).tolist()
