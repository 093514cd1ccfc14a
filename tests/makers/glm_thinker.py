"""GLM-4-Voice-9B's files with random weights: config.json, four safetensors shards and their index, ChatGLM's names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

OFFICIAL: Mapping[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "eos_token_id": [151329, 151336, 151338],
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 3.90625e-08,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 40,
    "original_rope": True,
    "pad_token_id": 151329,
    "padded_vocab_size": 168960,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 1,
    "seq_length": 8192,
    "torch_dtype": "bfloat16",
    "vocab_size": 168960,
}
SMALL = {
    **OFFICIAL,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "num_layers": 2,
}
"""Every id of the official vocabulary, little else."""
SHALLOW = {**OFFICIAL, "num_layers": 2}
"""2 of 40 layers of the true width: 3.6 GB."""
SHARDS = 4
ROWS = 4096
"""Drawn at a time."""


def make(folder: Path, true_size: bool = False) -> None:
    """Writes the model; true_size: of the true width, with 2 of the 40 layers."""
    write(folder, SHALLOW if true_size else SMALL)


def write(folder: Path, config: Mapping[str, Any], *, seed: int = 0, dtype: str = "bfloat16") -> None:
    """Writes a checkpoint of `config`. Weights are uniform, of variance 1 / inputs, in the order of `shapes`."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rng, named = np.random.default_rng(seed), shapes(config)
    names = {name: f"model-{at + 1:05}-of-{SHARDS:05}.safetensors" for name, at in _shard_of(named).items()}
    for shard in sorted(set(names.values())):
        held = {
            name: drawn(rng, name, shape, getattr(torch, dtype))
            for name, shape in named.items()
            if names[name] == shard
        }
        save_file(held, folder / shard, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    width = getattr(torch, dtype).itemsize
    index = {"metadata": {"total_size": sum(map(math.prod, named.values())) * width}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    """Random weights of one tensor; a block of rows at a time, so that a large one is never there in float32."""
    import torch

    found = torch.empty(shape, dtype=kind)
    for at in range(0, shape[0], ROWS):
        part = found[at : at + ROWS]
        part.copy_(torch.from_numpy(values(rng, name, tuple(part.shape))))
    return found


def values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights, float32."""
    if "norm" in name:
        return 0.5 + rng.random(shape, np.float32)
    scale = np.float32(1.0 if "word_embeddings" in name else np.sqrt(3.0 / shape[-1]))
    return (2 * rng.random(shape, np.float32) - 1) * scale


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """ChatGLM's names and shapes, in the order of the official files."""
    hidden, inner = config["hidden_size"], config["ffn_hidden_size"]
    heads = config["num_attention_heads"] * config["kv_channels"]
    rows = heads + 2 * config["multi_query_group_num"] * config["kv_channels"]
    named: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (config["padded_vocab_size"], hidden),
        "transformer.rotary_pos_emb.inv_freq": (config["kv_channels"] // 4,),
    }
    for at in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{at}."
        named |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attention.query_key_value.weight": (rows, hidden),
            f"{layer}self_attention.query_key_value.bias": (rows,),
            f"{layer}self_attention.dense.weight": (hidden, heads),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.dense_h_to_4h.weight": (2 * inner, hidden),
            f"{layer}mlp.dense_4h_to_h.weight": (hidden, inner),
        }
    named["transformer.encoder.final_layernorm.weight"] = (hidden,)
    named["transformer.output_layer.weight"] = (config["padded_vocab_size"], hidden)
    return named


def _shard_of(named: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The shard of each tensor: in order, about a quarter of the bytes in each, none empty."""
    total, before, found = sum(map(math.prod, named.values())), 0, dict[str, int]()
    names = list(named)
    for at, name in enumerate(names):
        share = min(SHARDS - 1, before * SHARDS // total)
        left = len(names) - at
        last = found[names[at - 1]] if at else 0
        found[name] = min(last + 1, max(share, SHARDS - left))
        before += math.prod(named[name])
    return found
