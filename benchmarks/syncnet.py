"""SyncNet's score of one crop file: ours against the authors' code, on the same CPU, weights, threads and file.

    python -m benchmarks.syncnet [--official CHECKOUT] [--seconds 6] [--runs 5] [--threads 1]

CHECKOUT is a clone of https://github.com/joonson/syncnet_python; it needs ffmpeg and python_speech_features. Its
`SyncNetInstance.evaluate` runs as it is, with `cuda()` doing nothing, and is timed as a whole: frames to JPEG files
and back, sound to WAV, cepstra, both towers in batches of 20, distances. Ours is timed from the same file too:
decoding, cepstra, both towers, distances. Runs alternate, so that a busy machine is busy for both. Beside it, what
the sync stage does: the same again after the correction, for which the authors' code must run twice and ours
computes the sound's features anew. Without CHECKOUT only our own time is printed. ffmpeg talks on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from models.clock import FPS
from models.mfcc import mfcc
from models.syncnet import SPAN, Score, load, score, windows_in
from models.syncnet_fast import FastSyncNet
from tests.makers import syncnet as maker

RATE = 16_000


def made_file(path: Path, seconds: float) -> Path:
    """A crop file as the authors' pipeline leaves it: 224 x 224 MPEG-4 at 25 fps, 16-bit sound at 16 kHz."""
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (64, 64, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as out:
        video, sound = out.add_stream("mpeg4", rate=FPS), out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        video.width = video.height = 224
        video.bit_rate = 2_000_000
        for at in range(round(seconds * FPS)):
            x, y = (np.array([130 + 120 * np.sin(at / 7), 130 + 120 * np.cos(at / 5)])).astype(int)
            picture = np.ascontiguousarray(canvas[y : y + 224, x : x + 224])
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        samples = (rng.standard_normal((1, round(seconds * RATE))) * 3000).astype(np.int16)
        block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        block.sample_rate = RATE
        out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(frames [n, 224, 224, 3] BGR, samples [k] int16) of a crop file."""
    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="bgr24") for frame in file.decode(video=0)])
    with av.open(str(path)) as file:
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])
    return frames, samples


def ours(net: FastSyncNet, path: Path, again: bool = False) -> Score:
    """The score of a crop file; again: a second time with other sound, as after a correction."""
    frames, samples = read(path)
    count = windows_in(len(frames), len(samples))
    lips = net.lips(frames[: count + SPAN - 1])
    for _ in range(1 + again):
        found = score(lips, net.sound(mfcc(samples)[: 4 * (count + SPAN - 1)]))
    return found


def authors(checkout: Path, weights: Path, folder: Path) -> Callable[[Path], tuple[int, float]]:
    """Their `evaluate` of a file: (offset, confidence)."""
    sys.path.insert(0, str(checkout))
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self  # type: ignore[method-assign,assignment]
    from SyncNetInstance import SyncNetInstance  # type: ignore[import-not-found]

    instance: Any = SyncNetInstance()
    instance.loadParameters(str(weights))
    options = Namespace(tmp_dir=str(folder), reference="crop", batch_size=20, vshift=15)

    def run(path: Path) -> tuple[int, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            offset, confidence, _ = instance.evaluate(options, str(path))
        return int(offset), float(confidence)

    return run


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    began = time.perf_counter()
    answer = work()
    return time.perf_counter() - began, answer


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def compare(net: FastSyncNet, run: Callable[[Path], tuple[int, float]], path: Path, runs: int, seconds: float) -> None:
    """Alternating runs; prints times, their ratio and how far the answers are apart."""
    once, twice, theirs = [], [], []
    for _ in range(runs):
        theirs.append(timed(lambda: run(path)))
        once.append(timed(lambda: ours(net, path)))
        twice.append(timed(lambda: ours(net, path, again=True)))
    (offset, confidence), found = theirs[0][1], once[0][1]
    print(f"authors  {spread([1000 * t / seconds for t, _ in theirs])} ms a second of video")
    print(
        f"ours     {spread([1000 * t / seconds for t, _ in once])}, with the correction {spread([1000 * t / seconds for t, _ in twice])}"
    )
    ratios = [a / b for (a, _), (b, _) in zip(theirs, once, strict=True)]
    stage = [2 * a / b for (a, _), (b, _) in zip(theirs, twice, strict=True)]
    print(f"authors / ours: {spread(ratios)} times; measured, corrected, measured again: {spread(stage)} times")
    print(
        f"offset {offset} and {-found.lag}, confidence {confidence:.4f} and {found.confidence:.4f} (theirs through JPEG)"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--official", type=Path, help="clone of https://github.com/joonson/syncnet_python")
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        maker.make(folder / "syncnet", true_size=True)
        weights, path = folder / "syncnet" / "syncnet_v2.model", made_file(folder / "crop.avi", chosen.seconds)
        net = FastSyncNet(load(weights))
        ours(net, path)  # warm
        print(f"{chosen.seconds} s of video, {chosen.threads} threads, {chosen.runs} runs")
        if chosen.official:
            compare(net, authors(chosen.official, weights, folder / "tmp"), path, chosen.runs, chosen.seconds)
            return
        times = [1000 * timed(lambda: ours(net, path))[0] / chosen.seconds for _ in range(chosen.runs)]
        print(f"ours     {spread(times)} ms a second of video")
        print("for the ratio: git clone https://github.com/joonson/syncnet_python, and --official syncnet_python")


if __name__ == "__main__":
    main()
