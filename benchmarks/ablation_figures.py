"""What a minute of rolled-out latents says: drift, distance to the portrait, quality; as a table, a plot and pictures.

Stand-ins for the paper's columns that need no weights, under names of their own. All compare with the same figure of
the real clips (1 is like them), and are taken over the first and over the last ten seconds of the minute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.linalg import sqrtm

from models.clock import CHUNK_SECONDS
from models.video_codec import SHARED, Dct3d

PAPER_ORDER = ("X-Streamer", "token-wise causal attn", "w/o global ID ref", "w/o diffusion forcing")
"""Best to worst by CPBD and by ID-Sim in the paper's Table 2."""
TEN = round(10 / CHUNK_SECONDS)
SHOWN = (0, 12, 24, 36, 48, 59.5)
"""Seconds of which the pictures show a frame."""
COLUMNS = {
    "distance": "RMS distance to the portrait in the channels that a single frame has, last 10 s; real clips: 1",
    "drift": "how far each portrait's mean latent of the last 10 s is from that of the first, in real deviations; 0 is none",
    "spread": "standard deviation of the latents, last 10 s; real clips: 1",
    "motion": "RMS change from chunk to chunk, last 10 s; real clips: 1",
    "frechet": "Fréchet distance of the last 10 s' latent pixels to those of the real clips; 0 is alike",
    "sharpness": "RMS of the Laplacian of decoded frames, last 10 s; real clips as they decode: 1",
}
ORDERED = ("distance", "drift", "frechet")
"""Columns by which variants are put in order: lower is better."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """A variant's. latents: a seed each, [portraits, chunks, 128, h, w] float32; loss: training loss of each seed at the end;
    streamed: at stride 1, as it streams, rather than chunk after chunk."""

    name: str
    streamed: bool
    latents: list[np.ndarray]
    loss: list[float]


@dataclass(frozen=True, eq=False)
class Real:
    """Of the real clips: distance, spread, motion and sharpness as the columns mean them; deviation: [128] of each channel;
    mean, covariance: of latent pixels."""

    distance: float
    spread: float
    motion: float
    sharpness: float
    deviation: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def pixels(latents: np.ndarray) -> np.ndarray:
    """[..., 128, h, w] -> [n, 128]."""
    return np.moveaxis(latents, -3, -1).reshape(-1, latents.shape[-3]).astype(np.float64)


def real_of(clips: list[np.ndarray]) -> Real:
    """clips: each [1+k, 128, h, w], the first its latent 0."""
    every = np.concatenate([pixels(clip[1:]) for clip in clips])
    return Real(
        rms(np.concatenate([(clip[1:, :SHARED] - clip[0, :SHARED]).ravel() for clip in clips])),
        float(every.std()),
        rms(np.concatenate([np.diff(clip[1:], axis=0).ravel() for clip in clips])),
        sharpness([clip[1:] for clip in clips]),
        every.std(0),
        every.mean(0),
        np.cov(every.T),
    )


def distance_curve(latents: np.ndarray, portraits: np.ndarray, real: Real) -> np.ndarray:
    """[chunks]: the column `distance` chunk by chunk."""
    apart = latents[:, :, :SHARED] - portraits[:, None, :SHARED]
    return np.sqrt(np.mean(np.square(apart, dtype=np.float64), axis=(0, 2, 3, 4))) / real.distance


def spread_curve(latents: np.ndarray, real: Real) -> np.ndarray:
    """[chunks]: the column `spread` chunk by chunk."""
    return latents.std(axis=(0, 2, 3, 4), dtype=np.float64) / real.spread


def frechet(latents: np.ndarray, real: Real) -> float:
    """Fréchet distance between two normal distributions, of latent pixels instead of a net's features."""
    found = pixels(latents)
    covariance = np.cov(found.T)
    root = np.real(sqrtm(covariance @ real.covariance))
    return float(np.square(found.mean(0) - real.mean).sum() + np.trace(covariance + real.covariance - 2 * root))


def frames_at(latents: np.ndarray, chunks: list[int]) -> list[np.ndarray]:
    """The last frame [H, W, 3] uint8 RGB of each of `chunks` of one rollout [k, 128, h, w]."""
    codec = Dct3d()
    found = []
    for chunk in chunks:
        begin = max(0, chunk - 1)  # the codec overlaps neighbours in time
        found.append(codec.decode(latents[begin : chunk + 1].astype(np.float16), first=False)[-1])
    return found


def sharpness(latents: Sequence[np.ndarray] | np.ndarray) -> float:
    """Mean over portraits and every fifth chunk of the RMS of the Laplacian of decoded frames, in grey levels."""
    frames = [frame for each in latents for frame in frames_at(each, list(range(4, each.shape[0], 5)))]
    return float(np.mean([rms(cv2.Laplacian(frame.mean(2), cv2.CV_64F)) for frame in frames]))


def figures_of(latents: np.ndarray, portraits: np.ndarray, real: Real) -> dict[str, float]:
    """Every column of one seed's rollouts [portraits, chunks, 128, h, w]."""
    first, last = latents[:, :TEN], latents[:, -TEN:]
    moved = last.mean(axis=(1, 3, 4)) - first.mean(axis=(1, 3, 4))
    return {
        "distance": float(np.sqrt(np.mean(distance_curve(last, portraits, real) ** 2))),
        "drift": rms(moved / real.deviation),
        "spread": float(last.std(dtype=np.float64)) / real.spread,
        "motion": rms(np.diff(last, axis=1)) / real.motion,
        "frechet": frechet(last, real),
        "sharpness": sharpness(last) / real.sharpness,
    }


def write_docs(rows: list[Rollouts], portraits: np.ndarray, clips: list[np.ndarray], folder: Path) -> dict[str, Any]:
    """Writes FOLDER/ablations.png (curves), ablations-frames.jpg (pictures) and ablations.json; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    portraits = portraits.astype(np.float32)
    real = real_of(clips)
    table: dict[str, Any] = {}
    for row in rows:
        seeds = [figures_of(latents, portraits, real) for latents in row.latents]
        cells = {key: [round(seed[key], 3) for seed in seeds] for key in COLUMNS}
        table[title(row)] = {**cells, "training loss": [round(loss, 4) for loss in row.loss]}
    found = {"columns": COLUMNS, "paper's order": PAPER_ORDER, "rows": table, "order": orders(table)}
    (folder / "ablations.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    draw_curves(rows, portraits, real, folder / "ablations.png")
    draw_frames(rows, portraits, folder / "ablations-frames.jpg")
    return found


def title(row: Rollouts) -> str:
    return f"{row.name}, stride 1" if row.streamed else row.name


def orders(table: dict[str, Any]) -> dict[str, list[str]]:
    """By each of ORDERED, variants from best to worst by the mean over seeds."""
    return {key: sorted(PAPER_ORDER, key=lambda name: float(np.mean(table[name][key]))) for key in ORDERED}


def draw_curves(rows: list[Rollouts], portraits: np.ndarray, real: Real, path: Path) -> None:
    """Distance to the portrait and spread over the minute: a line a variant, a band from the lowest seed to the
    highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.2), constrained_layout=True)
    for row in rows:
        curves = (
            [distance_curve(latents, portraits, real) for latents in row.latents],
            [spread_curve(latents, real) for latents in row.latents],
        )
        for axis, curve in zip(axes, curves, strict=True):
            seconds = np.arange(len(curve[0])) * CHUNK_SECONDS
            (line,) = axis.plot(
                seconds, np.mean(curve, axis=0), label=title(row), lw=1.5, ls="--" if row.streamed else "-"
            )
            axis.fill_between(
                seconds, np.min(curve, axis=0), np.max(curve, axis=0), color=line.get_color(), alpha=0.15, lw=0
            )
    for axis, name in zip(axes, ("distance to the portrait", "spread of the latents"), strict=True):
        axis.axhline(1, color="grey", lw=1, ls=":")
        axis.set(xlabel="s", title=f"{name} (real clips: 1)")
        axis.set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_frames(rows: list[Rollouts], portraits: np.ndarray, path: Path) -> None:
    """Two portraits a variant of the first seed, a frame every twelve seconds."""
    codec, lines = Dct3d(), []
    for row in rows:
        for at in (0, len(portraits) // 2):
            latents = row.latents[0][at]
            chunks = [min(len(latents) - 1, int(second / CHUNK_SECONDS)) for second in SHOWN]
            face = codec.decode(portraits[at][None].astype(np.float16))[0]
            line = np.concatenate([face, *frames_at(latents, chunks)], 1)
            label = np.full((line.shape[0], 190, 3), 255, np.uint8)
            if at == 0:
                cv2.putText(label, title(row), (4, 66), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            lines.append(np.concatenate([label, line], 1))
    head = np.full((22, lines[0].shape[1], 3), 255, np.uint8)
    side = lines[0].shape[0]
    for at, text in enumerate(("portrait", *(f"{second:g} s" for second in SHOWN))):
        cv2.putText(head, text, (194 + at * side, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), np.concatenate([head, *lines], 0)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
