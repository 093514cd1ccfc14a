"""The official file of htdemucs with made weights: half precision, arguments, training arguments, scores."""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demucs.htdemucs import HTDemucs
from demucs.states import serialize_model
from omegaconf import OmegaConf

FILE = "955717e8-8726e21a.th"
SOURCES = ["drums", "bass", "other", "vocals"]
OFFICIAL: dict[str, Any] = {
    "sources": SOURCES, "audio_channels": 2, "samplerate": 44_100, "segment": Fraction(39, 5), "channels": 48,
    "channels_time": None, "growth": 2, "nfft": 4096, "wiener_iters": 0, "end_iters": 0, "wiener_residual": False,
    "cac": True, "depth": 4, "rewrite": True, "multi_freqs": [], "multi_freqs_depth": 3, "freq_emb": 0.2,
    "emb_scale": 10, "emb_smooth": True, "kernel_size": 8, "stride": 4, "time_stride": 2, "context": 1,
    "context_enc": 0, "norm_starts": 4, "norm_groups": 4, "dconv_mode": 3, "dconv_depth": 2, "dconv_comp": 8,
    "dconv_init": 0.001, "bottom_channels": 512, "t_layers": 5, "t_hidden_scale": 4.0, "t_heads": 8,
    "t_dropout": 0.02, "t_layer_scale": True, "t_gelu": True, "t_emb": "sin", "t_max_positions": 10_000,
    "t_max_period": 10_000.0, "t_weight_pos_embed": 1.0, "t_cape_mean_normalize": True, "t_cape_augment": True,
    "t_cape_glob_loc_scale": [5000.0, 1.0, 1.4], "t_sin_random_shift": 0, "t_norm_in": True,
    "t_norm_in_group": False, "t_group_norm": False, "t_norm_first": True, "t_norm_out": True,
    "t_weight_decay": 0.0, "t_lr": None, "t_sparse_self_attn": False, "t_sparse_cross_attn": False,
    "t_mask_type": "diag", "t_mask_random_seed": 42, "t_sparse_attn_window": 400, "t_global_window": 100,
    "t_sparsity": 0.95, "t_auto_sparsity": False, "t_cross_first": False, "rescale": 0.1,
}  # fmt: skip
"""The arguments that the official file holds: 41,984,456 numbers in 533 tensors."""
SMALL = {"channels": 16, "bottom_channels": 16, "t_layers": 1, "t_heads": 2, "segment": Fraction(39, 10)}
OPEN = 20.0
"""Where a gate lets everything through."""


def make(folder: Path, true_size: bool = False, *, gain: float | None = 0.5) -> None:
    """Small: seeded weights of which only a straight path is heard, that makes of the "vocals" `gain` times the
    recording; with gain None, and in the true size, all weights are random."""
    with torch.random.fork_rng():
        torch.manual_seed(955717)
        model = HTDemucs(**(OFFICIAL if true_size else OFFICIAL | SMALL))
    if gain is not None and not true_size:
        amplifier(model, gain)
    folder.mkdir(parents=True, exist_ok=True)
    write(package(model), folder / FILE)


def package(model: HTDemucs) -> dict[str, Any]:
    """What the official training code stores."""
    stored: dict[str, Any] = serialize_model(model, OmegaConf.create({"seed": 42, "optim": {"lr": 3e-4}}))
    return stored | {"metrics": {"nsdr": np.float64(9.0)}}


def write(stored: Any, path: Path) -> None:
    """A torch file whose NumPy scalars carry the module name of NumPy 1, as the official one was pickled."""
    part = path.with_suffix(".part")
    torch.save(stored, part)
    with zipfile.ZipFile(part) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            new.writestr(item, old.read(item).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    part.unlink()


@torch.no_grad()
def amplifier(model: Any, gain: float) -> None:
    """Weights by which the waveform passes the outermost layers as it is: four samples of two channels are eight
    channels of a step, and come back as the last stem; what the inner layers and the spectrogram say is not heard.

    A value goes as GELU(x) and GELU(-x), of which it is the difference. What remains of the spectrogram is its
    mean, which the net adds whatever its layers say: an error some 35 dB below speech.
    """
    outer, inner, last = model.tencoder[0], model.tdecoder[-2], model.tdecoder[-1]
    for layer in (outer, last):
        for branch in layer.dconv.layers:
            branch[-1].scale.zero_()
    for silent in (inner.conv_tr, last.conv_tr, model.decoder[-1].conv_tr, outer.conv, outer.rewrite, last.rewrite):
        silent.weight.zero_()
        silent.bias.zero_()
    width, first = 4 * model.audio_channels, model.audio_channels * model.sources.index("vocals")
    for at in range(width):
        phase, channel = divmod(at, model.audio_channels)
        outer.conv.weight[at, channel, 2 + phase] = 1.0
        outer.conv.weight[width + at, channel, 2 + phase] = -1.0
        outer.rewrite.weight[at, at, 0] = 1.0
        outer.rewrite.weight[at, width + at, 0] = -1.0
        last.rewrite.weight[at, at, 1] = 1.0
        last.conv_tr.weight[at, first + channel, 2 + phase] = gain
    for layer in (outer, last):
        layer.rewrite.bias[len(layer.rewrite.bias) // 2 :] = OPEN
