"""What GLM-4-Voice's speech tokenizer is made of: its sizes, read from the official folder and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from manifests.errors import ModelError
from models.clock import ANALYSIS_RATE

HOP, WINDOW = 160, 400
"""Samples at 16 kHz: 10 ms a mel frame, each over 25 ms."""
LOOKAHEAD = WINDOW // 2 - HOP
"""Samples after a block that its last mel frame sees: 2.5 ms."""
LIMITS = {"d_model": 8192, "encoder_ffn_dim": 1 << 15, "quantize_position": 256, "quantize_vocab_size": 1 << 20}
"""Sizes above which a config is taken for damaged, before memory is asked for."""


@dataclass(frozen=True)
class GlmSpeechConfig:
    """Sizes, by their names in the official config.json. Positions are 20 ms (two mel frames)."""

    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int
    quantize_position: int
    quantize_vocab_size: int
    quantize_causal_block_size: int
    pooling_kernel_size: int

    @property
    def block(self) -> int:
        """Samples of a block."""
        return self.quantize_causal_block_size * 2 * HOP

    @property
    def segment(self) -> int:
        """Samples of a segment."""
        return self.max_source_positions * 2 * HOP


FIXED: dict[str, Any] = {
    "encoder_causal_convolution": True,
    "encoder_causal_attention": False,
    "quantize_causal_encoder": False,
    "pooling_type": "avg",
    "activation_function": "gelu",
    "scale_embedding": False,
    "pooling_kernel_size": 4,
}
"""What the code below takes for granted; the config may leave out what is Whisper's default."""
DEFAULTS = {"activation_function": "gelu", "scale_embedding": False, "encoder_causal_attention": False,
            "quantize_causal_encoder": False}  # fmt: skip
FEATURES = {"sampling_rate": ANALYSIS_RATE, "hop_length": HOP, "n_fft": WINDOW}


def read_config(folder: Path) -> GlmSpeechConfig:
    """The sizes of the checkpoint in `folder`. Raises ModelError when it is of another model."""
    place = folder / "config.json"
    content = read_json(place)
    values = {key: content.get(key, DEFAULTS.get(key)) for key in FIXED}
    wrong = [f"{key} is {values[key]!r}, not {FIXED[key]!r}" for key in FIXED if values[key] != FIXED[key]]
    names = [field.name for field in fields(GlmSpeechConfig)]
    wrong += [
        f"{key} is {content.get(key)!r}" for key in names if type(content.get(key)) is not int or content[key] < 1
    ]
    wrong += [f"{key} is {content[key]}" for key, most in LIMITS.items() if not wrong and content[key] > most]
    if not wrong:
        config = GlmSpeechConfig(**{key: content[key] for key in names})
        wrong += _unlike(config, content, read_json(folder / "preprocessor_config.json"))
    if wrong:
        raise ModelError(f"{place} is no GLM-4-Voice speech tokenizer: {wrong[0]}; fetch it again")
    return config


def _unlike(config: GlmSpeechConfig, content: Mapping[str, Any], features: Mapping[str, Any]) -> list[str]:
    """What does not fit together."""
    wanted = {**FEATURES, "feature_size": config.num_mel_bins, "chunk_length": config.segment // ANALYSIS_RATE}
    wrong = [f"the preprocessor's {key} is {features.get(key)!r}" for key in wanted if features.get(key) != wanted[key]]
    if config.d_model % config.encoder_attention_heads:
        wrong.append(f"{config.encoder_attention_heads} heads do not divide {config.d_model}")
    if config.quantize_causal_block_size % config.pooling_kernel_size or config.segment % ANALYSIS_RATE:
        wrong.append("blocks are no whole tokens, or segments no whole seconds")
    if content.get("pooling_position") != config.quantize_position:
        wrong.append("pooling and quantisation are not after the same layer")
    return wrong


def read_json(place: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError when it is missing or damaged."""
    try:
        content = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place} is not readable as JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{place} holds no JSON object; fetch it again")
    return content
