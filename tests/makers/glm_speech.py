"""Files of GLM-4-Voice's speech tokenizer with random weights, by a recipe that any code can repeat."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAME = "glm-4-voice-tokenizer"

OFFICIAL: dict[str, Any] = {
    "activation_function": "gelu",
    "architectures": ["WhisperVQEncoder"],
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "max_source_positions": 1500,
    "model_type": "whisper",
    "num_mel_bins": 128,
    "pooling_kernel_size": 4,
    "pooling_position": 16,
    "pooling_type": "avg",
    "quantize_causal_block_size": 200,
    "quantize_causal_encoder": False,
    "quantize_ema_decay": 0.99,
    "quantize_encoder_only": True,
    "quantize_position": 16,
    "quantize_vocab_size": 16384,
    "scale_embedding": False,
    "torch_dtype": "float32",
}
SMALL = OFFICIAL | {
    "d_model": 32,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "encoder_layers": 8,
    "pooling_position": 4,
    "quantize_position": 4,
}
FEATURES = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "WhisperProcessor",
    "return_attention_mask": False,
    "sampling_rate": 16000,
}

GAINS = {"conv1.weight": 2.0, "conv2.weight": 0.3, "codebook.weight": 2.0, "ema_weight": 1.0, "ema_count": 1.0}
"""Scales with which sound decides the codes, not the biases."""


def make(folder: Path, true_size: bool = False) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors into `folder`."""
    write(folder, OFFICIAL if true_size else SMALL)


def write(folder: Path, config: Mapping[str, Any], state: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes a checkpoint of `config`, with `state` in the place of random weights."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES, indent=2))
    save_file(dict(state or weights(config)), folder / "model.safetensors")


def weights(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor of the official file: each drawn with a seed that is its name's CRC-32; matrices scaled to keep
    variance, norms around 1."""
    return {name: _drawn(name, shape) for name, shape in shapes(config).items()}


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if "norm.weight" in name:
        return 1 + 0.1 * values
    if name == "conv1.weight":
        values -= values.mean(axis=1, keepdims=True)  # deaf to the level, which hardly changes
    if name in GAINS:
        return values * np.float32(GAINS[name])
    if len(shape) == 1 or "embed" in name:
        return values * np.float32(0.1)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    width, codes, inner = config["d_model"], config["quantize_vocab_size"], config["encoder_ffn_dim"]
    positions = config["max_source_positions"]
    found: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, config["num_mel_bins"], 3),
        "conv1.bias": (width,),
        "conv2.weight": (width, width, 3),
        "conv2.bias": (width,),
        "embed_positions.weight": (positions, width),
        "embed_positions2.weight": (-(-positions // config["pooling_kernel_size"]), width),
        "codebook.weight": (codes, width),
        "ema_count": (codes,),
        "ema_weight": (codes, width),
    }
    for at in range(config["quantize_position"]):
        layer = f"layers.{at}"
        for part in ("q", "k", "v", "out"):
            found[f"{layer}.self_attn.{part}_proj.weight"] = (width, width)
            if part != "k":
                found[f"{layer}.self_attn.{part}_proj.bias"] = (width,)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            found[f"{layer}.{norm}.weight"] = found[f"{layer}.{norm}.bias"] = (width,)
        found |= {f"{layer}.fc1.weight": (inner, width), f"{layer}.fc1.bias": (inner,)}
        found |= {f"{layer}.fc2.weight": (width, inner), f"{layer}.fc2.bias": (width,)}
    return found


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """[n] float32 at 16 kHz: tones and noise in pieces of 0.1 s, from loud to digital silence, the loudest late."""
    rng = np.random.default_rng(seed)
    count = round(seconds * 16_000)
    pieces = -(-count // 1600)
    level, pitch, noise = (
        np.repeat(values, 1600)[:count]
        for values in (
            rng.choice([0.0, 1.0], pieces, p=[0.2, 0.8]) * 10 ** rng.uniform(-5, -0.5, pieces),
            rng.uniform(80, 4000, pieces),
            rng.uniform(0, 1, pieces),
        )
    )
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / 16_000)
    shaped = level * ((1 - noise) * tone + noise * rng.standard_normal(count)) * np.linspace(0.3, 2, count)
    return np.clip(shaped, -1, 1).astype(np.float32)
