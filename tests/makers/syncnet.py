"""SyncNet's checkpoint with seeded weights, in the authors' layout: the true size is the only one there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SEED = 20


def state(seed: int = SEED) -> dict[str, np.ndarray]:
    """Weights by name, float32, from the names alone: any code that knows the layout makes the same ones.

    He's scale keeps signals alive through the layers, and each output's weights sum to nothing, so that features
    tell inputs apart instead of repeating one mean. The statistics of the batch norms are random: none is idle.
    """
    from models.syncnet import SyncNet

    shapes = {name: tuple(tensor.shape) for name, tensor in SyncNet().state_dict().items() if tensor.ndim}
    rng = np.random.default_rng(seed)
    return {name: _values(name, shapes[name], rng) for name in sorted(shapes)}


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        if name == "netcnnlip.0.weight":
            values /= 64  # pictures are 0-255
        if name == "netcnnaud.0.weight":
            values /= 16  # cepstra are some tens
        if name.endswith(".3.weight"):
            values /= 4  # distances between features are then about ten, as those of the true weights
    elif name.endswith("weight"):
        values = rng.uniform(0.8, 1.2, shape)
    else:
        values = rng.uniform(-0.2, 0.2, shape)
    return values.astype(np.float32)


def make(folder: Path, true_size: bool = False) -> None:
    """Writes FOLDER/syncnet_v2.model in the format of its time (a pickle, no zip archive), 54 MB."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(values) for name, values in state().items()}
    torch.save(tensors, folder / "syncnet_v2.model", _use_new_zipfile_serialization=False)


def made_input() -> tuple[np.ndarray, np.ndarray]:
    """(frames [30, 224, 224, 3] uint8, samples [19600] int16) that change all over from frame to frame."""
    rng = np.random.default_rng(SEED + 1)
    frames = rng.integers(0, 256, (30, 28, 28, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    loud = np.repeat(rng.uniform(0, 6000, 49), 400)
    return frames, (rng.standard_normal(19_600) * loud).astype(np.int16)


def made_second() -> np.ndarray:
    """[16077] int16: noise, digital silence, full scale."""
    samples = (np.random.default_rng(SEED + 2).standard_normal(16_077) * 4000).astype(np.int16)
    samples[4000:6000], samples[9000:9100] = 0, 32767
    return samples


def made_track() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((frames [11], boxes [11, 4]), pictures [45, 180, 240, 3] uint8): a face that jumps about and comes near the
    edges, seen every fourth frame."""
    rng = np.random.default_rng(SEED + 3)
    middle = np.array([120, 90]) + rng.uniform(-70, 70, (11, 2)).cumsum(0).clip(-80, 80)
    half = rng.uniform(20, 60, (11, 2))
    pictures = rng.integers(0, 256, (45, 18, 24, 3), np.uint8).repeat(10, axis=1).repeat(10, axis=2)
    return (np.arange(2, 46, 4)[:11], np.concatenate([middle - half, middle + half], axis=1)), pictures


def hearing() -> dict[str, np.ndarray]:
    """Weights by name, set by hand, of a net that truly tells sync: on a plain picture of grey 40 + 180 x level and
    white noise of amplitude 100 x 100^level, both towers give one feature of 20 x level and zeros.

    Lips: the grey of the middle frame. Sound: coefficient 0 (log energy) of the middle 0.1 s. In its second layer
    the row above blocks every row but the first, which has only padding above.
    """
    values = {name: np.zeros_like(value) for name, value in state().items()}
    for name in values:
        if name.endswith("running_var") or (
            name.rpartition(".")[0] + ".running_var" in values and name.endswith(".weight")
        ):
            values[name][:] = 1
    values["netcnnlip.0.weight"][0, :, 2] = 1 / 255 / 3 / 49
    for layer in (4, 8, 11, 14):
        kernel = values[f"netcnnlip.{layer}.weight"]
        kernel[0, 0, 0, kernel.shape[3] // 2, kernel.shape[4] // 2] = 1
    values["netcnnlip.18.weight"][0, 0] = 1 / 36
    values["netcnnaud.0.weight"][0, 0, 1, 1], values["netcnnaud.0.bias"][1] = 1, 1
    values["netcnnaud.4.weight"][0, :2, 1, 1] = 1, 0
    values["netcnnaud.4.weight"][0, 1, 0, 1] = -1000
    for layer in (8, 11, 14):
        values[f"netcnnaud.{layer}.weight"][0, 0, 1, 1] = 1
    values["netcnnaud.18.weight"][0, 0, 0, 1:3] = 0.5
    for tower, slope, start in (("lip", 255 / 180, 40 / 255), ("aud", 1 / np.log(1e4), np.log(388 * 1e4))):
        values[f"netfc{tower}.0.weight"][0, 0], values[f"netfc{tower}.0.bias"][0] = slope, -slope * start
        values[f"netfc{tower}.3.weight"][0, 0] = 20
    return values
