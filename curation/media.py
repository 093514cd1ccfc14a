"""Video files through PyAV: what is in them, and frames on a 25 fps grid made by presentation times.

Time is seconds from the presentation time of the first video frame. Grid frame i, at i/25 s, is the last
frame shown before (i + 1/2)/25 s, so variable rates, 15 fps and 60 fps come out alike.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from manifests.errors import SourceError, one_line
from models.clock import FPS


@dataclass(frozen=True)
class Limits:
    """Guards against decompression bombs and files that are no talking heads."""

    max_pixels: int = 7680 * 4320
    max_fps: float = 1000.0
    max_duration_s: float = 24 * 3600.0
    max_streams: int = 64
    max_error_share: float = 0.1
    """Packets that fail to decode, as a share of all, before a source counts as damaged."""


@dataclass(frozen=True)
class MediaInfo:
    """Facts of a container. Sizes are as displayed: rotation and pixel aspect applied."""

    container: str
    duration_s: float
    start_pts_s: float
    """Absolute presentation time of the first video frame, the zero of every other time."""
    width: int
    height: int
    rotation: int
    pixel_aspect: float
    fps: float
    video_codec: str
    audio_codec: str | None
    audio_rate: int | None
    box: tuple[int, int, int, int] | None = None
    """Only this part of the displayed picture exists: x0, y0, x1, y1 in px; width and height are its size."""

    def within(self, box: Sequence[float] | None) -> MediaInfo:
        """The same file seen through `box`: x0, y0, x1, y1 in px, or shares of the picture when all are <= 1.

        Raises SourceError when nothing of the picture lies inside.
        """
        if not box:
            return self
        wide, high = (self.width, self.height) if max(box) <= 1.0 else (1, 1)
        x0, x1 = (min(max(0, round(v * wide)), self.width) for v in (box[0], box[2]))
        y0, y1 = (min(max(0, round(v * high)), self.height) for v in (box[1], box[3]))
        if x1 - x0 < 16 or y1 - y0 < 16:
            raise SourceError(f"box {list(box)} leaves nothing of a {self.width}x{self.height} picture; mend the list")
        return replace(self, box=(x0, y0, x1, y1), width=x1 - x0, height=y1 - y0)

    def row(self) -> dict[str, Any]:
        """Columns of the sources table."""
        return {name: value for name, value in asdict(self).items() if name != "box"}


@contextlib.contextmanager
def open_media(uri: str) -> Iterator[Any]:
    """Opens a local path or an fsspec URL with PyAV; always closes. Raises SourceError."""
    import fsspec

    with contextlib.ExitStack() as stack:
        try:
            target: Any = uri
            if "://" in uri:
                target = stack.enter_context(fsspec.open(uri, "rb"))
            elif uri.startswith("-"):
                target = f"./{uri}"
            # file: keeps ffmpeg from reading a colon in a name as a protocol
            container = av.open(f"file:{target}" if isinstance(target, str) else target, metadata_errors="ignore")
        except (OSError, ValueError, av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise SourceError(f"cannot open {uri!r}: {reason}; is it a whole video? fetch it again") from error
        stack.callback(container.close)
        yield container


def probe(uri: str, limits: Limits = Limits()) -> MediaInfo:
    """Container facts, from the header and the first frame.

    Raises SourceError when there is no video stream, nothing decodes or a limit is exceeded.
    """
    with open_media(uri) as container:
        if len(container.streams) > limits.max_streams:
            raise SourceError(f"{uri!r} has {len(container.streams)} streams, limit {limits.max_streams}")
        stream = video_stream(container, uri)
        if stream.width * stream.height > limits.max_pixels:
            raise SourceError(f"{uri!r} is {stream.width}x{stream.height}, limit {limits.max_pixels} pixels")
        frame = next(decoded(container, stream, limits, uri), None)
        if frame is None:
            raise SourceError(f"no frame of {uri!r} decodes: damaged or of an unknown codec; fetch it again")
        time, first = frame
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if fps > limits.max_fps:
            raise SourceError(f"{uri!r} says {fps:.0f} fps, limit {limits.max_fps:.0f}")
        duration = header_duration(container, stream)
        if duration > limits.max_duration_s:
            raise SourceError(f"{uri!r} says {duration:.0f} s, limit {limits.max_duration_s:.0f} s; cut it first")
        aspect = pixel_aspect(stream)
        width, height = displayed(first, aspect)
        audio = container.streams.audio[0] if container.streams.audio else None
        return MediaInfo(
            container=container.format.name,
            duration_s=round(duration, 3),
            start_pts_s=time,
            width=width,
            height=height,
            rotation=first.rotation % 360,
            pixel_aspect=aspect,
            fps=round(fps, 3),
            video_codec=stream.codec_context.name,
            audio_codec=audio.codec_context.name if audio and audio.codec_context else None,
            audio_rate=audio.rate if audio and audio.codec_context else None,
        )


def video_stream(container: Any, uri: str) -> Any:
    """The first real video stream (cover art is none), set to decode on all cores. Raises SourceError."""
    for stream in container.streams.video:
        attached = getattr(stream, "disposition", 0) & av.stream.Disposition.attached_pic
        if stream.codec_context is not None and not attached:
            if not stream.codec_context.is_open:
                stream.thread_type = "AUTO"
            return stream
    raise SourceError(f"{uri!r} has no video stream; curate needs picture and sound")


def header_duration(container: Any, stream: Any) -> float:
    """Seconds that the header promises, 0 when it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration / av.time_base) if container.duration else 0.0


def decoded(
    container: Any,
    stream: Any,
    limits: Limits = Limits(),
    uri: str = "",
    from_pts_s: float | None = None,
) -> Iterator[tuple[float, Any]]:
    """(presentation time in seconds, frame) in order; broken packets are skipped up to the limit.

    from_pts_s: begin at or before this time. Raises SourceError when more than `limits.max_error_share` of
    the packets fail.
    """
    if from_pts_s is None:
        yield from _decoded(container, stream, limits, uri)
        return
    for earlier in (0.0, 5.0, 30.0, math.inf):  # a transport stream may resume behind the time asked for
        target = int(max(0.0, from_pts_s - earlier) / stream.time_base)
        container.seek(target, stream=stream, backward=True)
        frames = _decoded(container, stream, limits, uri)
        first = next(frames, None)
        if first is not None and (first[0] <= from_pts_s + 0.5 / FPS or earlier == math.inf):
            yield first
            yield from frames
            return


def _decoded(container: Any, stream: Any, limits: Limits, uri: str) -> Iterator[tuple[float, Any]]:
    step = 1.0 / float(stream.average_rate or stream.guessed_rate or FPS)
    errors = 0
    last: float | None = None
    for packets, packet in enumerate(demuxed(container, stream), 1):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            errors += 1
            if errors > 8 and errors > limits.max_error_share * packets:
                raise SourceError(
                    f"{uri!r} is damaged: {errors} of its first {packets} packets do not decode; fetch it again"
                ) from None
            continue
        for frame in frames:
            stamp = frame.pts if frame.pts is not None else frame.dts
            time = float(stamp * frame.time_base) if stamp is not None else (0.0 if last is None else last + step)
            if last is not None and time <= last:
                continue  # a repeated or backward stamp cannot be shown
            last = time
            yield time, frame


def demuxed(container: Any, stream: Any) -> Iterator[Any]:
    """Packets of one stream; a container that ends in garbage ends the stream."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            return
        yield packet


def pixel_aspect(stream: Any) -> float:
    """Width of a stored pixel over its height, 1.0 when unsaid."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(aspect) if aspect and aspect > 0 else 1.0


def displayed(frame: Any, aspect: float) -> tuple[int, int]:
    """(width, height) of `frame` as shown: pixel aspect and rotation applied."""
    width, height = max(2, round(frame.width * aspect)), frame.height
    return (height, width) if frame.rotation % 180 else (width, height)


def fitted(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size shrunk, never grown, so that its longer side is at most `max_side`."""
    scale = min(1.0, max_side / max(width, height))
    return max(2, round(width * scale)), max(2, round(height * scale))


class Scaler:
    """Frames to upright BGR arrays [h, w, 3] uint8, at most `max_side` px, through the box where there is one.

    Keeps its scaler: a new one a frame costs more than the scaling.
    """

    def __init__(self, info: MediaInfo, max_side: int = 1 << 20) -> None:
        self.info = info
        self.width, self.height = fitted(info.width, info.height, max_side)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        width, height = self.width, self.height
        if self.info.box:
            width, height = displayed(frame, self.info.pixel_aspect)
        if frame.rotation % 180:
            width, height = height, width
        image: np.ndarray = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="bgr24",
            interpolation=Interpolation.AREA,
            src_colorspace=_colorspace(frame),
            threads=1,
        ).to_ndarray()
        turns = (frame.rotation % 360) // 90
        if turns:
            image = np.ascontiguousarray(np.rot90(image, turns))
        if self.info.box:
            x0, y0, x1, y1 = self.info.box
            image = cv2.resize(image[y0:y1, x0:x1], (self.width, self.height), interpolation=cv2.INTER_AREA)
        return image


def _colorspace(frame: Any) -> int | None:
    """The matrix to read YUV by: as tagged, else by size as players do (601 to 576 lines, 709 above)."""
    tagged = {int(space) for space in Colorspace}
    if frame.format.is_rgb or int(frame.colorspace) in tagged:
        return None
    return int(Colorspace.ITU709 if min(frame.width, frame.height) > 576 else Colorspace.ITU601)


class Feed:
    """Timed frames that several spans are read from in turn: the last two can be read again, since the frame
    that ended one span may begin the next."""

    def __init__(self, frames: Iterator[tuple[float, Any]]) -> None:
        self._frames = frames
        self._recent: deque[tuple[float, Any]] = deque(maxlen=2)

    @property
    def position(self) -> float:
        """Time of the oldest frame that can still be read, -inf before the first."""
        return self._recent[0][0] if self._recent else -math.inf

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        yield from list(self._recent)
        for item in self._frames:
            self._recent.append(item)
            yield item


def on_grid(times: Iterable[tuple[float, Any]], first: int, count: int) -> Iterator[tuple[int, Any]]:
    """(grid index, frame) for grid frames first ... first + count - 1, each the last shown before its
    half-way point; a frame may come several times. Ends early where the video ends.

    times: (seconds from the first video frame, frame), ascending.
    """
    index, held = first, None
    for time, frame in times:
        while held is not None and index < first + count and time * FPS > index + 0.5:
            yield index, held
            index += 1
        if index >= first + count:
            return
        held = frame
    if held is not None and index < first + count:
        yield index, held
