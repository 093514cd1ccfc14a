"""The Actor's numbers: presets, and the switches of the paper's ablations. No torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from manifests.errors import UsageError

WINDOW = 32
"""Chunks that a chunk sees, its own among them: 10.24 s, the paper's 2K tokens at 256 x 256."""
HISTORIES = ("diffusion_forcing", "teacher_forcing")
REFERENCES = ("global", "none")
ATTENTIONS = ("chunk", "token_causal")


@dataclass(frozen=True)
class ActorConfig:
    """What an Actor is built from. Defaults are GLM-4-Voice's numbers where it has them.

    states: numbers in a hidden state of the Thinker. channels: of a latent. window: chunks.
    history: independent noise a chunk, or a clean past ("w/o diffusion forcing"). reference: "none" leaves latent 0
    as a chunk before the first, which the window leaves behind. attention: "token_causal" sees inside a chunk only
    tokens up to the own one. Raises UsageError for numbers that fit no net.
    """

    preset: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    states: int
    channels: int = 128
    window: int = WINDOW
    norm_eps: float = 3.90625e-08
    rope_theta: float = 10000.0
    history: str = "diffusion_forcing"
    reference: str = "global"
    attention: str = "chunk"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not (type(value) is int and 0 < value <= 1 << 20):
                raise UsageError(f"an Actor's {field.name} must be a whole number from 1 to {1 << 20}, not {value!r}")
            if field.type == "float" and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise UsageError(f"an Actor's {field.name} must be a number above 0, not {value!r}")
        for name, words in (("history", HISTORIES), ("reference", REFERENCES), ("attention", ATTENTIONS)):
            if getattr(self, name) not in words:
                raise UsageError(f"{name} must be {' or '.join(words)}, not {getattr(self, name)!r}")
        if self.head_dim % 8 or self.head_dim < 16 or self.heads % self.kv_heads:
            raise UsageError(
                f"head_dim {self.head_dim} must be 16 or more and divide by 8, and heads {self.heads} divide by kv_heads "
                f"{self.kv_heads}"
            )

    @property
    def rotary(self) -> int:
        """Numbers of a head that turn with position: the first half, as in GLM."""
        return self.head_dim // 2


PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "intermediate": 704},
    "small": {"hidden": 768, "layers": 14, "heads": 12, "kv_heads": 2, "head_dim": 64, "intermediate": 2048},
    "base": {"hidden": 2048, "layers": 24, "heads": 16, "kv_heads": 2, "head_dim": 128, "intermediate": 5632},
    "9b": {"hidden": 4096, "layers": 40, "heads": 32, "kv_heads": 2, "head_dim": 128, "intermediate": 13696},
}
"""tiny for a CPU, small about 100M parameters, base 1.3B, 9b as GLM-4-Voice."""


def actor_config(preset: str, states: int, **changes: Any) -> ActorConfig:
    """The config of `preset` for a Thinker whose states have `states` numbers. Raises UsageError when unknown."""
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
    return ActorConfig(**{"preset": preset, **PRESETS[preset], "states": states, **changes})
