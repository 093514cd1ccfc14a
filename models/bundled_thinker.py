"""The bundled Thinker: a small GLM with fixed random weights over the bundled codecs; it has nothing to say.

It has the interface, the layout and the clock of GLM-4-Voice, so that training and streaming run without its weights.
A speech code's embedding is the sum of its seven digits' embeddings, and a digit's levels are steps of a random walk:
near sounds have near states, which an Actor can learn from.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from manifests.errors import ModelError
from models.dialogue_layout import AUDIO_0, CONTEXT_TOKENS, SPECIALS
from models.speech_codec import LEVELS, FsqMel, digits
from models.text_codec import WhisperBpe

if TYPE_CHECKING:
    from transformers import GlmConfig, GlmForCausalLM

SEED = 20250918
LAYERS, HIDDEN, INNER, HEADS, GROUPS, HEAD = 2, 192, 512, 6, 2, 32
DIGITS = 7
ROOT3 = np.float32(3**0.5)


class BundledVocabulary:
    """Whisper's byte-pair tokens, then the special tokens, the last of which begins the 16,384 speech codes."""

    @property
    def size(self) -> int:
        """Ids are 0 ... size - 1."""
        return WhisperBpe().codes + len(SPECIALS) - 1 + FsqMel.codes

    def special(self, name: str) -> int:
        """As `models.dialogue_layout.Vocabulary.special`."""
        if name not in SPECIALS:
            raise ModelError(f"the bundled vocabulary has no {name!r}; it has {', '.join(SPECIALS)}")
        return WhisperBpe().codes + SPECIALS.index(name)

    def encode(self, text: str) -> np.ndarray:
        """As `models.dialogue_layout.Vocabulary.encode`."""
        return WhisperBpe().encode(text)

    def fingerprint(self) -> str:
        """As `models.dialogue_layout.Vocabulary.fingerprint`."""
        return hashlib.sha256(f"{WhisperBpe().fingerprint()} {SPECIALS} {FsqMel.codes}".encode()).hexdigest()[:16]


@cache
def weights_fingerprint() -> str:
    """16 hex digits of the weights' bytes."""
    digest = hashlib.sha256()
    for name, values in weights().items():
        digest.update(f"{name} {values.shape}\0".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def bundled_glm(device: str, dtype: str) -> GlmForCausalLM:
    """The model, frozen. dtype: "bfloat16" or "float32"."""
    import torch

    from models.glm_weights import empty_glm

    model = empty_glm(_config())
    kind = getattr(torch, dtype)
    state = {name: torch.from_numpy(values).to(device=device, dtype=kind) for name, values in weights().items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb.to(device)
    return model.requires_grad_(False)


def _config() -> GlmConfig:
    from models.glm_weights import glm_classes

    return glm_classes()[0](
        vocab_size=BundledVocabulary().size,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD,
        rms_norm_eps=1e-6,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        pad_token_id=None,
        tie_word_embeddings=True,
    )


def weights() -> dict[str, np.ndarray]:
    """{name in transformers' GLM: float32}, the same bits on every machine: uniform numbers and sums, no function
    that a platform's library may round its own way. The output layer is the embedding."""
    rng = np.random.default_rng(SEED)
    found = {"model.embed_tokens.weight": _embeddings(rng)}
    for at in range(LAYERS):
        layer = f"model.layers.{at}."
        for part, rows in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)):
            found[f"{layer}self_attn.{part}_proj.weight"] = _matrix(rng, rows * HEAD, HIDDEN)
            found[f"{layer}self_attn.{part}_proj.bias"] = np.zeros(rows * HEAD, np.float32)
        found[f"{layer}self_attn.o_proj.weight"] = _matrix(rng, HIDDEN, HEADS * HEAD)
        found[f"{layer}mlp.gate_up_proj.weight"] = _matrix(rng, 2 * INNER, HIDDEN)
        found[f"{layer}mlp.down_proj.weight"] = _matrix(rng, HIDDEN, INNER)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}{norm}.weight"] = np.ones(HIDDEN, np.float32)
    found["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    return found


def _embeddings(rng: np.random.Generator) -> np.ndarray:
    """[size, HIDDEN] of about unit variance."""
    zero = BundledVocabulary().special(AUDIO_0)
    table = np.empty((BundledVocabulary().size, HIDDEN), np.float32)
    table[:zero] = _uniform(rng, zero, HIDDEN)
    walk = np.cumsum(_uniform(rng, DIGITS, LEVELS, HIDDEN), axis=1)
    walk -= walk[:, :1] / 2 + walk[:, -1:] / 2
    found, total = digits(np.arange(FsqMel.codes)), np.zeros((FsqMel.codes, HIDDEN), np.float32)
    for place in range(DIGITS):
        total += walk[place, found[:, place]]
    table[zero:] = total / np.float32(DIGITS**0.5)
    return table


def _matrix(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """[outputs, inputs] of variance 1 / inputs: what comes in with unit variance goes out with it."""
    return _uniform(rng, outputs, inputs) / np.float32(inputs**0.5)


def _uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 of zero mean and unit variance."""
    return (2 * rng.random(shape, np.float32) - 1) * ROOT3
