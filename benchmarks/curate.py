"""How fast curation is, against what bounds it: one run, ratios, their spread.

    python -m benchmarks.curate [--videos DIR] [--minutes 10] [--runs 3] [PART ...]

Parts (all by default):
  whole     seconds of video per second of wall time, 2 workers; the share not spent inside a model; that share
            against one plain decode of the same files
  scenes    the scene pass against plain decode of a long 720p source, and against the `scenedetect` command
  memory    peak memory of a worker on a 1080p source of --minutes
  hour      the same without models, on that and on a source six times as long
  graph     no-op clips per second through the real graph, and bare `client.submit` of a task a clip beside it
Without --videos the demo's sources are made and measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import psutil

from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE, append, read

WORKERS = 2


def plain_decode(path: Path) -> float:
    """Seconds to decode every frame of a file, as fast as PyAV does."""
    began = time.perf_counter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for _ in container.decode(stream):
            pass
    return time.perf_counter() - began


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def command(*arguments: object) -> list[str]:
    """The xstreamer command of this environment."""
    return [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]


# -- whole ---------------------------------------------------------------------------------------------------


def whole(folder: Path, videos: Path, runs: int) -> None:
    """Throughput of the bundled recipe, start-up of the process and of its models included."""
    rates, outside, against = [], [], []
    for number in range(runs):
        out = folder / f"whole-{number}"
        began = time.perf_counter()
        line = command("curate", videos, "-o", out, "--cluster", WORKERS, "--quiet", "--json")
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - began
        if done.returncode not in (0, 3):
            raise SystemExit(done.stderr)
        store = Store(out)
        sources = [r for r in read(store, SOURCES_TABLE).to_pylist() if r["status"] == "ok"]
        stages = [r for r in read(store, RUNS_TABLE).to_pylist() if r["stage"] != "scenes"]
        seconds = sum(r["duration_s"] for r in sources)
        model = sum((r["seconds"] or 0) - (r["media_seconds"] or 0) for r in stages)
        decode = sum(plain_decode(Path(r["path"])) for r in sources)
        rates.append(seconds / wall)
        outside.append(1 - model / (wall * WORKERS))
        against.append((wall * WORKERS - model) / decode)
        if not number:
            _by_stage(stages, seconds)
    print(f"whole: {seconds:.0f} s of video, bundled recipe, {WORKERS} workers")
    print(f"  video seconds per wall second   {spread(rates)}   goal >= 2")
    print(f"  share of time outside models    {spread(outside)}   goal <= 0.15 (start-up and idle workers included)")
    print(f"  the same / one plain decode     {spread(against)}   goal <= 3 (worker seconds over decode seconds)")


def _by_stage(stages: list[dict[str, Any]], seconds: float) -> None:
    names = sorted({r["stage"] for r in stages})
    for name in names:
        some = [r for r in stages if r["stage"] == name]
        model = sum((r["seconds"] or 0) - (r["media_seconds"] or 0) for r in some)
        print(f"    {name:11s} {1000 * model / seconds:6.0f} ms a second of video")
    print(
        f"    {'media':11s} {1000 * sum(r['media_seconds'] or 0 for r in stages) / seconds:6.0f} ms a second of video"
    )


# -- scenes --------------------------------------------------------------------------------------------------


def long_720p(folder: Path, videos: Path) -> Path:
    """A minute of hard cuts at 1280 x 720, from the given videos."""
    target = folder / "long720.mp4"
    parts = sorted(p for p in videos.iterdir() if p.suffix == ".mp4")
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20"}
        count = 0
        while count < 1500:
            for path in parts:
                try:
                    with av.open(str(path)) as container:
                        for place, frame in enumerate(container.decode(video=0)):
                            if place >= 120 or count >= 1500:
                                break
                            picture = frame.reformat(1280, 720, "yuv420p")
                            picture.pts, picture.time_base = count, Fraction(1, 25)
                            out.mux(stream.encode(picture))
                            count += 1
                except av.error.FFmpegError:
                    continue
        out.mux(stream.encode(None))
    return target


def scenes(folder: Path, videos: Path, runs: int) -> None:
    """The scene pass, cuts included, beside plain decode and beside PySceneDetect's own command."""
    from curation.media import probe
    from curation.scenes import SceneOptions, detect_cuts

    path = long_720p(folder, videos)
    info = probe(str(path))
    ours, decode, theirs = [], [], []
    for _ in range(runs):
        decode.append(plain_decode(path))
        began = time.perf_counter()
        times, cuts = detect_cuts(str(path), info, SceneOptions())
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        binary = Path(sys.executable).with_name("scenedetect")
        listing = [binary, "-q", "-i", path, "-o", folder, "detect-adaptive", "list-scenes", "-q", "-f", "cuts.csv"]
        subprocess.run([str(a) for a in listing], check=True, capture_output=True)
        theirs.append(time.perf_counter() - began)
    first = (folder / "cuts.csv").read_text().splitlines()[0].split(",")[1:]
    equal = [round(times[c] * 25) for c in cuts] == [round(_seconds(t) * 25) for t in first]
    print(f"scenes: {len(times)} frames of 720p, {len(cuts)} cuts, {'equal' if equal else 'UNEQUAL'} to the command's")
    print(
        f"  scene pass / plain decode       {spread([a / b for a, b in zip(ours, decode, strict=True)])}   goal <= 1.25"
    )
    print(
        f"  scenedetect command / ours      {spread([a / b for a, b in zip(theirs, ours, strict=True)])}   goal >= 1.3"
    )


def _seconds(stamp: str) -> float:
    hours, minutes, seconds = stamp.strip().split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


# -- memory --------------------------------------------------------------------------------------------------


def looped(folder: Path, videos: Path, minutes: float) -> Path:
    """A 1080p source of `minutes`: one encoded part, its packets repeated."""
    seed = folder / "seed.mp4"
    source = next(p for p in sorted(videos.iterdir()) if p.suffix == ".mp4" and p.stat().st_size > 100_000)
    _encode_1080p(source, seed)
    target = folder / f"loop-{minutes:g}.mp4"
    with av.open(str(seed)) as probe_in, av.open(str(target), "w") as out:
        copies = {s.index: out.add_stream_from_template(s) for s in probe_in.streams if s.type in ("video", "audio")}
        length, last = probe_in.duration / av.time_base, dict[int, int]()
        for turn in range(int(minutes * 60 / length) + 1):
            with av.open(str(seed)) as container:
                for packet in container.demux(*[container.streams[i] for i in copies]):
                    if packet.dts is None:
                        continue
                    shift, index = round(turn * length / packet.time_base), packet.stream.index
                    if packet.dts + shift <= last.get(index, -(1 << 40)):
                        continue  # the sound is a little longer than the picture
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    last[index] = packet.dts
                    packet.stream = copies[packet.stream.index]
                    out.mux(packet)
    return target


def _encode_1080p(source: Path, target: Path) -> None:
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 1920, 1080, "yuv420p"
        video.options = {"preset": "ultrafast", "crf": "23"}
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000)
        for frame in container.decode(*container.streams.video[:1], *container.streams.audio[:1]):
            if isinstance(frame, av.VideoFrame):
                out.mux(video.encode(frame.reformat(1920, 1080, "yuv420p")))
            else:
                for piece in resampler.resample(frame):
                    out.mux(sound.encode(piece))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))


def memory(folder: Path, videos: Path, minutes: float) -> None:
    """Peak resident memory of the largest worker while a long 1080p source is curated."""
    short = _peak(looped(folder, videos, minutes), folder / "mem-short", "bundled")
    print(
        f"memory: peak of a worker on {minutes:g} min of 1080p, bundled recipe: {short[0]:.0f} MB resident, {short[1]:.0f} MB private   goal <= 1500"
    )


def hour(folder: Path, videos: Path, minutes: float) -> None:
    """The same without models: scene pass, every clip's picture and sound read, tables; short and long source."""
    recipe = folder / "noop.toml"
    recipe.write_text(_noop_toml())
    light = {m: _peak(looped(folder, videos, m), folder / f"mem-{m:g}", str(recipe)) for m in (minutes, 6 * minutes)}
    said = ", ".join(f"{resident:.0f} MB on {m:g} min" for m, (resident, _) in light.items())
    print(f"hour: peak of a worker on 1080p, scenes, media and graph alone: {said}   goal: flat")


def _noop_toml() -> str:
    from benchmarks.noop import RECIPE

    lines = ['name = "noop"']
    for stage, body in RECIPE["stages"].items():
        lines += [f"[stages.{stage}]", f'backend = "{body["backend"]}"', "media = true"]
    return "\n".join(lines)


def _peak(video: Path, out: Path, recipe: str) -> tuple[float, float]:
    """Peak MB of the largest process: resident, and private (without the library pages that all share)."""
    profile = out.with_suffix(".profile.toml")
    profile.write_text('name = "any"\n[rules.duration]\nmeasure = "duration_s"\nmin = 1.0\n')
    line = command(
        "curate", video, "-o", out, "--cluster", 1, "--quiet", "--json", "--recipe", recipe, "--profile", profile
    )
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0.0, 0.0]

    def watch() -> None:
        root = psutil.Process(run.pid)
        while run.poll() is None:
            for child in root.children(recursive=True):
                try:
                    used = child.memory_info()
                    peak[:] = max(peak[0], used.rss / 2**20), max(peak[1], (used.rss - used.shared) / 2**20)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = run.communicate()
    watcher.join()
    if run.returncode not in (0, 3):
        raise SystemExit(said)
    return peak[0], peak[1]


# -- graph ---------------------------------------------------------------------------------------------------


def graph(folder: Path, clips: int) -> None:
    """No-op clips through the real graph: read pending, group, submit, work, commit."""
    from benchmarks.noop import RECIPE
    from manifests.records import clip_id
    from pipelines.cluster import open_cluster
    from pipelines.measure import Plan, measure_clips, pending
    from pipelines.recipe import Recipe, fingerprints

    store = Store(folder / "graph")
    sources, rows = clips // 50, []
    facts = {"status": "ok", "duration_s": 275.0, "start_pts_s": 0.0, "width": 640, "height": 360, "rotation": 0}
    facts |= {"pixel_aspect": 1.0, "fps": 25.0, "container": "mp4", "video_codec": "h264"}
    listed = [
        {"uri": f"/none/{n}.mp4", "path": f"/none/{n}.mp4", "source_id": f"{n:016x}", "order": n, **facts}
        for n in range(sources)
    ]
    for source in listed:
        for n in range(50):
            start, end = n * 5.52, n * 5.52 + 5.52
            name = clip_id(source["source_id"], start, end)
            rows.append(
                {
                    "clip_id": name,
                    "source_id": source["source_id"],
                    "uri": source["uri"],
                    "scene": n,
                    "start_s": start,
                    "end_s": end,
                    "duration_s": 5.52,
                }
            )
    append(store, SOURCES_TABLE, listed)
    append(store, CLIPS_TABLE, rows)
    recipe = Recipe(**RECIPE)
    prints = fingerprints(recipe)
    plan = Plan(store.root, json.dumps(recipe.data()), prints, (), True)
    with open_cluster(str(WORKERS)) as client:
        list(client.map(_nothing, range(WORKERS)))
        began = time.perf_counter()
        todo = pending(store, prints, (), exhaustive=True)
        measure_clips(client, store, plan, todo, quiet=True)
        ours = len(todo.rows) / (time.perf_counter() - began)
        began = time.perf_counter()
        client.gather([client.submit(_nothing, n, pure=False) for n in range(4000)])
        bare = 4000 / (time.perf_counter() - began)
    assert len(read(store, RUNS_TABLE, ["clip_id"])) == 9 * clips
    print(f"graph: {clips} no-op clips, nine stages each, rows committed")
    print(f"  clips per second                {ours:.0f}   goal >= 2000; bare client.submit, a task a clip: {bare:.0f}")


def _nothing(number: int) -> int:
    return number


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", default=["graph", "scenes", "whole", "memory", "hour"])
    options.add_argument("--videos", type=Path, help="folder of sources (default: the demo's)")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--clips", type=int, default=20_000)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xstreamer-benchmark-"))
    try:
        videos = chosen.videos
        if videos is None:
            from pipelines.sample import make_demo

            videos = folder / "videos"
            make_demo(videos)
        parts: dict[str, Callable[[], None]] = {
            "graph": lambda: graph(folder, chosen.clips),
            "scenes": lambda: scenes(folder, videos, chosen.runs),
            "whole": lambda: whole(folder, videos, chosen.runs),
            "memory": lambda: memory(folder, videos, chosen.minutes),
            "hour": lambda: hour(folder, videos, chosen.minutes),
        }
        for part in chosen.parts:
            parts[part]()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
