"""Sound of a span of a file, mono, cut to the sample on the clock of its picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from curation.media import MediaInfo, demuxed, open_media
from manifests.errors import SourceError

PREROLL_S = 0.5
"""Decoded before a span and thrown away: codecs need a past, and so does the resampler."""
GAP_S = 0.05
"""A jump in stamps larger than this is a hole in the sound (filled with zeros) or an overlap (cut)."""


@dataclass(frozen=True)
class Audio:
    """Mono sound. samples: [n] float32 in -1 ... 1; start_s: where sample 0 stands, in seconds from the first
    video frame of the source."""

    samples: np.ndarray
    rate: int
    start_s: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


def read_audio(uri: str, info: MediaInfo, start_s: float, end_s: float, rate: int) -> Audio:
    """The sound of `uri` from `start_s` to `end_s` (seconds from the first video frame) at `rate` Hz.

    Sample k of the answer is the sound at start_s + k/rate. Where the file has no sound before or after,
    the answer is shorter (its `start_s` says where it begins); holes inside are zeros. Empty when there is
    no audio stream. Raises SourceError when the file cannot be opened.
    """
    first, last = round(start_s * rate), round(end_s * rate)
    out = np.zeros(max(0, last - first), np.float32)
    low = high = None
    for position, block in blocks(uri, info, start_s - PREROLL_S, rate):
        begin, stop = max(position, first), min(position + len(block), last)
        if position >= last:
            break
        if begin < stop:
            out[begin - first : stop - first] = block[begin - position : stop - position]
            low = begin if low is None else min(low, begin)
            high = stop if high is None else max(high, stop)
    if low is None or high is None:
        return Audio(out[:0], rate, first / rate)
    return Audio(out[low - first : high - first], rate, low / rate)


def blocks(uri: str, info: MediaInfo, from_s: float, rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first sample on the source's clock, [n] float32) in order, from about `from_s` on."""
    with open_media(uri) as container:
        if not container.streams.audio or container.streams.audio[0].codec_context is None:
            return
        stream = container.streams.audio[0]
        if from_s > 0:
            # half a second more: a seek may land late where stamps are coarse
            at = max(0.0, from_s - PREROLL_S) + info.start_pts_s
            container.seek(int(at / stream.time_base), stream=stream, backward=True)
        yield from _resampled(container, stream, info.start_pts_s, rate)


def _resampled(container: Any, stream: Any, zero_s: float, rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """Decoded sound at `rate`; one resampler a run of unbroken stamps, so no rounding adds up."""
    resampler, anchor, sent, expected = None, 0, 0, 0.0
    for frame in _frames(container, stream):
        time = frame.time - zero_s if frame.time is not None else expected
        if resampler is None or abs(time - expected) > GAP_S:
            if resampler is not None:
                yield from _positioned(resampler.resample(None), anchor + sent)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            anchor, sent = round(time * rate), 0
            expected = time
        expected += frame.samples / frame.sample_rate
        frame.pts = None  # the resampler must not answer to stamps: we place samples ourselves
        for position, block in _positioned(resampler.resample(frame), anchor + sent):
            sent += len(block)
            yield position, block
    if resampler is not None:
        yield from _positioned(resampler.resample(None), anchor + sent)


def _positioned(frames: list[Any], position: int) -> Iterator[tuple[int, np.ndarray]]:
    for frame in frames:
        block = frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)
        yield position, block
        position += len(block)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    errors = 0
    for packets, packet in enumerate(demuxed(container, stream), 1):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            errors += 1
            if errors > 8 and errors > 0.1 * packets:
                raise SourceError(
                    f"the sound is damaged: {errors} of its first {packets} packets do not decode"
                ) from None
