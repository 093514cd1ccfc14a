"""GLM-4-Voice's flow: speech tokens to a mel spectrogram at 22.05 kHz, whole or as a stream.

The net of zai-org/glm-4-voice-decoder (Zeng et al. 2024, arXiv:2412.02612, section 2.2), CosyVoice's (Du et al. 2024,
arXiv:2407.05407, section 3.3) retrained on blocks of 10 tokens, checkpoint-compatible. A mel frame is 256 samples and
a token 1,764, so 64 tokens are exactly 441 frames: frame f belongs to token 64 f // 441, in whole numbers for ever.

The U-Net and the length regulator look at every frame they are given, by attention and by norms over time. So a
frame's value depends on the window that it is computed in, and no stream of windows can equal one window over
everything. `FlowStream` bounds what that costs: frames that are final are given to the next window as known (the
net is trained to continue them), the last ones of a window are not final until the next has faded into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from manifests.errors import ModelError
from models.blueprint import filled
from models.checkpoint import load_torch
from models.glm_flow_config import FlowConfig, read_config
from models.glm_flow_encoder import BlockEncoder, LengthRegulator, Past
from models.glm_flow_noise import noise
from models.glm_flow_unet import Estimator

STEPS = 10
"""Of Euler's method."""
PERIOD_FRAMES, PERIOD_TOKENS = 441, 64
"""Mel frames that last as long as tokens: 1764 / 256 in lowest terms."""


@dataclass(frozen=True)
class Windows:
    """How a stream is cut.

    context: final mel frames that a window begins with, 4 s. overlap: frames at a window's end that the next
    one computes again, 0.4 s, as officially. past: tokens that the encoder's attention reaches back, 32 s (clips
    of training are shorter).
    """

    context: int = 344
    overlap: int = 34
    past: int = 400


class Flow(nn.Module):
    """The official module's names and shapes, so its state loads as it is."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.codes, config.embedding)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.bins)
        self.encoder = BlockEncoder(config)
        self.encoder_proj = nn.Linear(config.width, config.bins)
        self.length_regulator = LengthRegulator(config.bins)
        self.decoder = nn.ModuleDict({"estimator": Estimator(config)})

    @property
    def device(self) -> torch.device:
        return self.encoder_proj.weight.device

    def encode(self, tokens: Tensor, past: Past | None, limit: int | None) -> tuple[Tensor, Past]:
        """[n] tokens of one block (see `BlockEncoder.forward`) -> [n, bins], and what the next block needs."""
        states, kept = self.encoder(self.input_embedding(tokens), past, limit)
        return self.encoder_proj(states), kept

    def solve(self, states: Tensor, known: Tensor, noise: Tensor) -> Tensor:
        """The mel spectrogram of a window.

        states: [frames, bins] of each frame's token; known: [bins, frames], the mel frames that are there already,
        else zeros; noise: [bins, frames] float32. Returns [bins, frames] float32. Guidance runs in the same batch;
        the speaker is the official one, that of an empty embedding.
        """
        kind = states.dtype
        speaker = self.spk_embed_affine_layer.bias[:, None].expand(-1, len(states))
        given = torch.cat([self.length_regulator(states), speaker, known.to(kind)])
        conditions = torch.stack([given, torch.zeros_like(given)])
        mel, weight = noise, self.config.guidance
        times = 1 - torch.cos(torch.linspace(0, 1, STEPS + 1, device=noise.device) * (math.pi / 2))
        for time, after in pairwise(times):
            frames = torch.cat([mel.to(kind).expand(2, -1, -1), conditions], 1)
            guided, free = self.decoder["estimator"](frames, time).float()
            mel = mel + (after - time) * ((1 + weight) * guided - weight * free)
        return mel


def frames_of(tokens: int) -> int:
    """Mel frames that begin before `tokens` tokens end."""
    return -(-tokens * PERIOD_FRAMES // PERIOD_TOKENS)


def tokens_of_frames(begin: int, end: int) -> Tensor:
    """[end - begin] the token that each mel frame begins in."""
    return torch.arange(begin, end) * PERIOD_TOKENS // PERIOD_FRAMES


@torch.inference_mode()
def whole(net: Flow, tokens: Tensor, seed: int) -> Tensor:
    """[n] tokens -> [bins, frames_of(n)], in one window over everything, as officially offline. Its work grows with
    the square of n."""
    past, states = None, []
    for block in tokens.to(net.device).split(net.config.block):
        found, past = net.encode(block, past, None)
        states.append(found)
    frames = frames_of(len(tokens))
    spread = torch.cat(states)[tokens_of_frames(0, frames).to(net.device)]
    known = torch.zeros(net.config.bins, frames, device=net.device)
    return net.solve(spread, known, mel_noise(net, seed, 0, frames))


def mel_noise(net: Flow, seed: int, begin: int, end: int) -> Tensor:
    """[bins, end - begin] the noise that mel frames `begin` ... `end` are made from, whichever window makes them."""
    return noise(seed, "mel", begin, end, net.config.bins).T.to(net.device)


class FlowStream:
    """Blocks of tokens to mel frames, each given once and for good; state and work per block do not grow."""

    def __init__(self, net: Flow, windows: Windows, seed: int) -> None:
        self.net, self.windows, self.seed = net, windows, seed
        self._tokens, self._past = 0, None  # type: int, Past | None
        self._states, self._first = torch.empty(0, device=net.device), 0
        self._known = self._held = torch.empty(net.config.bins, 0, device=net.device)
        self._final = 0

    @torch.inference_mode()
    def push(self, tokens: Tensor, *, last: bool = False) -> Tensor:
        """[n] tokens, a whole block unless `last` (then perhaps none) -> [bins, frames] float32 that are final."""
        if not len(tokens):
            return self._give(self._held, keep=0 if last else self._held.shape[1])
        found, self._past = self.net.encode(tokens.to(self.net.device), self._past, self.windows.past)
        self._tokens += len(tokens)
        self._states = torch.cat([self._states, found]) if len(self._states) else found
        return self._give(self._computed(), keep=0 if last else self.windows.overlap)

    def _computed(self) -> Tensor:
        """[bins, frames] from the first that is not final to the last token's, faded in over those that were held."""
        begin, end = self._begin(), frames_of(self._tokens)
        spread = self._states[(tokens_of_frames(begin, end) - self._first).to(self.net.device)]
        known = torch.zeros(self.net.config.bins, end - begin, device=self.net.device)
        given = self._final - begin
        known[:, :given] = self._known[:, self._known.shape[1] - given :]
        mel = self.net.solve(spread, known, mel_noise(self.net, self.seed, begin, end))[:, given:]
        held = self._held.shape[1]
        share = torch.arange(1, held + 1, device=mel.device) / (held + 1)
        mel[:, :held] = self._held + share * (mel[:, :held] - self._held)
        return mel

    def _begin(self) -> int:
        """The first frame of the next window: an even one, as the U-Net takes every second."""
        return max(0, self._final - self.windows.context) // 2 * 2

    def _give(self, mel: Tensor, keep: int) -> Tensor:
        """All of `mel` but its last `keep` frames, which are held; what no later window needs is forgotten."""
        ready = max(0, mel.shape[1] - keep)
        final, self._held = mel[:, :ready], mel[:, ready:]
        self._known = torch.cat([self._known, final], 1)[:, -(self.windows.context + 1) :]
        self._final += ready
        first = self._begin() * PERIOD_TOKENS // PERIOD_FRAMES
        self._states, self._first = self._states[first - self._first :], first
        return final


@cache
def load(folder: Path, known: str, device: str, dtype: str) -> Flow:
    """The flow of the checkpoint in `folder`, on `device`, in "float32" or "bfloat16"; `known` says which files
    these are, so that others load anew.

    Raises ModelError when the checkpoint is damaged or of another model.
    """
    place = folder / "flow.pt"
    config, _ = read_config(folder / "config.yaml")
    net = filled(lambda: hollow(lambda: Flow(config)), tensors(place), place, outline=lambda: Flow(config))
    return net.requires_grad_(False).to(device, getattr(torch, dtype))


def tensors(place: Path) -> dict[str, Tensor]:
    """The float32 tensors of a torch file, by name. Raises ModelError when it holds anything else."""
    state = load_torch(place)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{place} holds a {type(state).__name__}, no table of tensors; fetch the weights again")
    return {str(name): value.float() for name, value in state.items()}


def hollow(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, its numbers not yet set; torch's own generator is left alone."""
    with torch.device("meta"):
        net = build()
    return net.to_empty(device="cpu")
