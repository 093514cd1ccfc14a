"""A stream as an MP4 file that plays while it grows: H.264 and AAC in fragments of a second.

Whatever ends a run, the film so far plays: every fragment stands for itself, and when the disk is full the file is cut
back to its last whole one. A film that ends well becomes an ordinary MP4, with an index for players that want one,
where FFmpeg can do that.
"""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from inference.media import RATES, Media
from manifests.errors import DatasetError, UsageError
from models.clock import FPS

FLAGS, WHOLE = "frag_keyframe+delay_moov+default_base_moof", "+hybrid_fragmented"
"""Of FFmpeg's MP4 muxer. delay_moov: the index is written with the first fragment, when the delay of the sound's
encoder is known and can be taken back. WHOLE: the end makes an ordinary file of it."""
WHOLE_SINCE = (62, 12)
"""libavformat from which WHOLE goes with delay_moov, FFmpeg 8.1; films that 7.1 and 8.0 made so did not play."""
ENCODER = {"preset": "veryfast", "crf": "18", "bf": "0", "g": str(FPS)}
"""A key frame a second begins a fragment; no frame waits for a later one."""
AUDIO_BITS = 128_000


def flags(version: tuple[int, ...]) -> str:
    """For the muxer of that libavformat; before WHOLE_SINCE a film stays one of fragments, which plays as well."""
    return FLAGS + (WHOLE if version >= WHOLE_SINCE else "")


class Film:
    """A sink that writes `path`; its folder is made. The film begins with the first chunk that comes, wherever the stream
    then is, so a run that fails before touches no film of that name. frames: written so far.

    Raises UsageError for a path that is no .mp4, or a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.shown, self.frames = Path(path), -1, 0
        if self.path.suffix.lower() != ".mp4" or self.path.is_dir():
            raise UsageError(f"{str(path)!r} is no name for a film; name a file that ends in .mp4")
        self._file: _File | None = None
        self._container: Any = None
        self._video: Any = None
        self._audio: Any = None

    @property
    def seconds(self) -> float:
        """Of film so far."""
        return self.frames / FPS

    def put(self, media: Media) -> None:
        """As `Sink.put`. Raises DatasetError when the file cannot be written, or not any further; what is in it then
        plays."""
        import av

        if self._container is None:
            self._open(media)
        for at, pixels in enumerate(media.frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = self.frames + at, Fraction(1, FPS)
            self._mux(self._video.encode(frame))
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(media.sound[None]), format="flt", layout="mono")
        begin = self.frames * media.rate // FPS
        sound.sample_rate, sound.pts, sound.time_base = media.rate, begin, Fraction(1, media.rate)
        self._mux(self._audio.encode(sound))
        self.shown, self.frames = media.index, self.frames + len(media.frames)

    def drop(self) -> int:
        """As `Sink.drop`; what is in a film is shown."""
        return self.shown

    def close(self) -> None:
        """As `Sink.close`. Raises DatasetError when the end cannot be written; the film plays without it. What went
        wrong before has been told."""
        container, self._container = self._container, None
        if container is None or self._file is None:
            return
        told = bool(self._file.fault)
        try:
            if not told:
                for stream in (self._video, self._audio):
                    container.mux(stream.encode(None))
            container.close()
        finally:
            self._file.close()
        if not told:
            self._check()

    def _open(self, media: Media) -> None:
        import av

        if media.rate not in RATES:
            raise ValueError(f"a film's sound cannot have {media.rate} Hz; see inference.media.whole_rate")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # who still plays the old film keeps it
            self._file = _File(self.path.open("w+b"))
        except OSError as error:
            raise DatasetError(f"film {self.path} cannot be written ({error.strerror}); name another place") from None
        options = {"movflags": flags(av.library_versions["libavformat"]), "flush_packets": "1"}
        self._container = av.open(self._file, "w", format="mp4", options=options)
        video = self._container.add_stream("libx264", rate=FPS, options=ENCODER)
        video.pix_fmt, video.thread_count, video.thread_type = "yuv420p", 1, "NONE"
        video.height, video.width = media.frames.shape[1:3]
        self._video = video
        self._audio = self._container.add_stream("aac", rate=media.rate, layout="mono", bit_rate=AUDIO_BITS)

    def _mux(self, packets: Any) -> None:
        assert self._file is not None
        self._container.mux(packets)
        self._check()
        self._file.keep()

    def _check(self) -> None:
        assert self._file is not None
        if self._file.fault:
            raise DatasetError(
                f"film {self.path} cannot be written any further ({self._file.fault}); the {self._file.kept / 1e6:.1f} "
                "MB in it play; free some space and stream again"
            ) from None


class _File:
    """What the muxer writes into. After a fault it takes everything and writes nothing, and the file is cut back to
    what was whole. fault: why, "" while there is none; kept: bytes that were whole when `keep` was called last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.fault, self.kept = file, "", 0

    def write(self, data: bytes) -> int:
        if not self.fault:
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(self._file.fileno(), left) :]
            except OSError as error:
                self.fault = error.strerror or "input/output error"
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), self.kept)
        return len(data)

    def read(self, count: int = -1) -> bytes:
        return os.read(self._file.fileno(), count) if not self.fault else b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return os.lseek(self._file.fileno(), offset, whence) if not self.fault else 0

    def tell(self) -> int:
        return os.lseek(self._file.fileno(), 0, os.SEEK_CUR)

    def keep(self) -> None:
        """All that was written so far plays."""
        self.kept = max(self.kept, os.fstat(self._file.fileno()).st_size)

    def close(self) -> None:
        self._file.close()
