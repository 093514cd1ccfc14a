"""diffusers folders of LTX-Video's VAE with random weights, both versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"0.9.0": "ltx-video-0.9.0", "0.9.5": "ltx-video-0.9.5"}

COMMON: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTXVideo",
    "_diffusers_version": "0.32.0.dev0",
    "decoder_causal": False,
    "encoder_causal": True,
    "in_channels": 3,
    "latent_channels": 128,
    "out_channels": 3,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-06,
    "scaling_factor": 1.0,
}
OFFICIAL: dict[str, dict[str, Any]] = {
    "0.9.0": COMMON
    | {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": [4, 3, 3, 3, 4],
        "spatio_temporal_scaling": [True, True, True, False],
    },
    "0.9.5": COMMON
    | {
        "block_out_channels": [128, 256, 512, 1024, 2048],
        "decoder_block_out_channels": [256, 512, 1024],
        "decoder_inject_noise": [False, False, False, False],
        "decoder_layers_per_block": [5, 5, 5, 5],
        "decoder_spatio_temporal_scaling": [True, True, True],
        "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "layers_per_block": [4, 6, 6, 2, 2],
        "spatial_compression_ratio": 32,
        "spatio_temporal_scaling": [True, True, True, True],
        "temporal_compression_ratio": 8,
        "timestep_conditioning": True,
        "upsample_factor": [2, 2, 2],
        "upsample_residual": [True, True, True],
    },
}
SMALL = {
    "0.9.0": OFFICIAL["0.9.0"]
    | {
        "block_out_channels": [8, 8, 16, 16],
        "decoder_block_out_channels": [8, 8, 16, 16],
        "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1, 1],
    },
    "0.9.5": OFFICIAL["0.9.5"]
    | {
        "block_out_channels": [8, 8, 16, 32, 64],
        "decoder_block_out_channels": [8, 16, 32],
        "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1],
    },
}
"""Every kind of block of the official nets, few channels and layers."""


def make(folder: Path, true_size: bool = False, version: str | None = None) -> None:
    """Writes config.json and diffusion_pytorch_model.safetensors into `folder`; version: 0.9.5 where the folder's
    name ends so, else 0.9.0."""
    version = version or ("0.9.5" if folder.name.endswith("0.9.5") else "0.9.0")
    write(folder, (OFFICIAL if true_size else SMALL)[version])


def write(folder: Path, config: dict[str, Any], seed: int = 0) -> None:
    """Writes a checkpoint of `config`: normal weights of variance 1 / inputs, small biases, latents_std around 1."""
    import torch
    from diffusers import AutoencoderKLLTXVideo
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AutoencoderKLLTXVideo.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in sorted(shapes.items())}
    for name, value in state.items():
        value *= 1 / np.sqrt(np.prod(value.shape[1:])) if value.dim() > 1 else 0.1
        if name.endswith(("norm3.weight", "latents_std")):
            value += 1
        if name.endswith("timestep_scale_multiplier"):
            value.fill_(1000.0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
