"""Scenes of a source by PySceneDetect's detectors, and the clips that they are cut into.

One decode at low resolution feeds the detector; times are presentation times, so variable frame rates cut
where the picture does. The paper, A.1: "scene detection segments long videos into coherent shots".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from curation.audio import blocks
from curation.media import Limits, MediaInfo, Scaler, decoded, open_media, video_stream
from curation.stage import package_version
from manifests.errors import SourceError
from models.clock import ANALYSIS_RATE, FPS, MAX_CLIP_SECONDS, MIN_CLIP_SECONDS
from models.voice import SpeechDetector, pauses, segments

SIDE = 256
"""Longer side, px, of the frames that the detector compares."""
COPY = 0.5
"""A frame that changes by less (PySceneDetect's content value, 0-255) repeats the one before."""
NEIGHBOURS = 4
"""Frames on either side that tell how much moves: as many distinct ones as PySceneDetect's two at half the rate."""
MIN_FRAMES = round(MIN_CLIP_SECONDS * FPS)
MAX_FRAMES = round(MAX_CLIP_SECONDS * FPS)
COMPLETE = 0.9
"""A file whose picture ends before this share of what its header promises is truncated."""


@dataclass(frozen=True)
class SceneOptions:
    """Parameters of the cut. threshold and min_content: AdaptiveDetector's; min_scene_s: no shorter scene."""

    threshold: float = 3.0
    min_content: float = 15.0
    min_scene_s: float = 0.6


@dataclass(frozen=True)
class Span:
    """A clip to be: grid frames first ... last - 1 of scene number `scene`."""

    scene: int
    first: int
    last: int

    @property
    def start_s(self) -> float:
        return self.first / FPS

    @property
    def end_s(self) -> float:
        return self.last / FPS


@dataclass(frozen=True)
class Scenes:
    """What was found in a source. cuts: s from the first frame; frames: length of the 25 fps grid."""

    cuts: tuple[float, ...]
    frames: int
    spans: tuple[Span, ...]


def fingerprint_facts(options: SceneOptions) -> dict[str, Any]:
    """All that may change where a source is cut."""
    revisions = [package_version("scenedetect"), package_version("silero-vad")]
    return {"version": 2, "params": asdict(options), "side": SIDE, "revision": revisions}


def find_scenes(
    uri: str,
    info: MediaInfo,
    options: SceneOptions = SceneOptions(),
    window: tuple[float, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Scenes:
    """Cuts and clips of a source.

    window: look only at this span, s from the first frame. progress: called with the seconds seen so far.
    Raises SourceError when the file is damaged or ends long before its header says.
    """
    times, cut_frames = detect_cuts(uri, info, options, window, progress)
    if not times:
        raise SourceError(f"no frame of {uri!r} decodes{' in the given span' if window else ''}")
    expected = min(info.duration_s, window[1]) if window else info.duration_s
    if times[-1] + 1.0 < COMPLETE * expected:
        raise SourceError(
            f"{uri!r} is truncated: its picture ends at {times[-1]:.1f} s of {expected:.1f} s; fetch it again"
        )
    cuts = [round(times[index], 3) for index in cut_frames]
    edges = [grid_index(times[0]), *(grid_index(cut) for cut in cuts), grid_index(times[-1]) + 1]
    if window:
        edges[0], edges[-1] = max(edges[0], grid_index(window[0])), min(edges[-1], grid_index(window[1]))
    scenes = [(first, last) for first, last in pairwise(edges) if last > first]
    quiet = speech_pauses(uri, info) if any(last - first > MAX_FRAMES for first, last in scenes) else []
    spans = [Span(n, a, b) for n, (first, last) in enumerate(scenes) for a, b in cut_scene(first, last, quiet)]
    return Scenes(tuple(cuts), edges[-1], tuple(spans))


def grid_index(time_s: float) -> int:
    """First frame of the 25 fps grid that shows what appears at `time_s` (`media.on_grid`)."""
    return max(0, math.ceil(time_s * FPS - 0.5))


def detect_cuts(
    uri: str,
    info: MediaInfo,
    options: SceneOptions,
    window: tuple[float, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[list[float], list[int]]:
    """(times of all decoded frames, s; indices of those that begin a new scene)."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    rate = info.fps or float(FPS)
    detector = AdaptiveDetector(
        adaptive_threshold=options.threshold,
        min_content_val=options.min_content,
        min_scene_len=max(1, round(options.min_scene_s * rate)),
    )
    changes: list[float] = []
    detector.stats_manager = _recorder(changes)
    times: list[float] = []
    found: list[int] = []
    for time, image in low_resolution(uri, info, window):
        stamp = FrameTimecode(len(times), rate)
        found += [cut.frame_num for cut in detector.process_frame(stamp, image)]
        changes += [0.0] * (len(times) + 1 - len(changes))  # the first frame differs from none
        times.append(time)
        if progress and len(times) % 250 == 0:
            progress(time)
    if times:
        found += [cut.frame_num for cut in detector.post_process(FrameTimecode(len(times) - 1, rate))]
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    return times, [cut for cut in sorted(set(found)) if stands_out(cut, times, changes, usual, options.threshold)]


def _recorder(changes: list[float]) -> Any:
    """A stats manager that only appends how much each frame differs from the one before; the package's own keeps
    a table of every component, which costs more than the detection."""
    from scenedetect import StatsManager

    class Recorder(StatsManager):
        def set_metrics(self, timecode: Any, metric_kv_dict: Any) -> None:
            if "content_val" in metric_kv_dict:
                changes.append(float(metric_kv_dict["content_val"]))

    return Recorder()


def stands_out(cut: int, times: Sequence[float], changes: Sequence[float], usual: float, threshold: float) -> bool:
    """Whether frame `cut` changes `threshold` times as much as its neighbours do in the same time.

    usual: seconds from a frame to the next.

    PySceneDetect compares frames by number. Where frames repeat (50 fps made of 25) or are missing (variable
    rate) plain motion then stands out: its neighbours are copies that change by nothing, or it spans more time.
    """

    def since_new(index: int) -> float:
        """Seconds since the last frame that was no copy."""
        back = index - 1
        while back > 0 and changes[back] < COPY:
            back -= 1
        return times[index] - times[max(0, back)]

    around = [*range(max(1, cut - NEIGHBOURS), cut), *range(cut + 1, min(len(times), cut + NEIGHBOURS + 1))]
    rates = [changes[i] / max(usual, since_new(i)) for i in around if changes[i] >= COPY]
    motion = max(sum(rates) / len(rates), 0.0) * max(usual, since_new(cut)) if rates else 0.0
    return changes[cut] >= threshold * motion


def low_resolution(
    uri: str, info: MediaInfo, window: tuple[float, float] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """(s from the first frame, [h, w, 3] uint8 BGR of at most 256 px) of every frame in `window`."""
    with open_media(uri) as container:
        stream = video_stream(container, uri)
        scaler = Scaler(info, SIDE)
        zero = info.start_pts_s
        begin, end = window or (0.0, math.inf)
        for pts, frame in decoded(container, stream, Limits(), uri, from_pts_s=zero + begin if begin else None):
            if pts - zero >= end:
                return
            if pts - zero >= begin - 0.5 / FPS:
                yield pts - zero, scaler(frame)


def speech_pauses(uri: str, info: MediaInfo) -> list[tuple[float, float]]:
    """(start, end), s from the first frame, where nobody speaks; empty without sound. Constant memory."""
    detector, found, first, expected = SpeechDetector(), [], None, 0
    for position, block in blocks(uri, info, 0.0, ANALYSIS_RATE):
        if first is None:
            first = expected = position
        if position > expected:  # a hole in the sound is a pause
            found.append(detector.probabilities(np.zeros(min(position - expected, 3600 * ANALYSIS_RATE), np.float32)))
        found.append(detector.probabilities(block[max(0, expected - position) :]))
        expected = max(expected, position + len(block))
    if first is None:
        return []
    probabilities = np.concatenate([*found, detector.finish()])
    offset = first / ANALYSIS_RATE
    total = (expected - first) / ANALYSIS_RATE
    return [(a + offset, b + offset) for a, b in pauses(segments(probabilities), total)]


def cut_scene(first: int, last: int, quiet: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """Grid frames [first, last) of a scene as clips of 4.8 to 20 s that cover it.

    A scene of at most 20 s is one clip, whatever its length. A longer one is cut where somebody pauses,
    at the pause nearest to equal parts; between words only where no pause lies in reach.
    """
    out = []
    while last - first > MAX_FRAMES:
        parts = math.ceil((last - first) / MAX_FRAMES)
        ideal = first + (last - first) / parts
        low, high = first + MIN_FRAMES, min(first + MAX_FRAMES, last - MIN_FRAMES)
        middles = (round((a + b) / 2 * FPS) for a, b in quiet)
        reachable = [frame for frame in middles if low <= frame <= high]
        at = min(reachable, key=lambda frame: abs(frame - ideal)) if reachable else round(min(max(ideal, low), high))
        out.append((first, at))
        first = at
    return [*out, (first, last)]
