"""GLM-4-Voice's speech encoder: a causal Whisper encoder whose states, pooled to 12.5 Hz, name a code each.

The net of zai-org/glm-4-voice-tokenizer (Zeng et al. 2024, arXiv:2412.02612, section 2.1), checkpoint-compatible:
16 layers of Whisper large v3 with convolutions that look only back, attention over everything before and over
all of the own 4 s block, mean pooling by 4, nearest entry of a codebook of 16,384. It runs block by block: over
the cached keys and values of the blocks before, attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, scaled_dot_product_attention

from models.checkpoint import load_safetensors, load_state
from models.clock import ANALYSIS_RATE
from models.glm_speech_config import HOP, LOOKAHEAD, WINDOW, GlmSpeechConfig, read_config

DYNAMIC_RANGE = 8.0
"""Log10 of power below the loudest value at which features end."""
IGNORED = ("ema_count", "ema_weight")
"""Statistics of training in the official file."""


class Layer(nn.Module):
    """A Whisper encoder layer (pre-norm) whose attention also sees what earlier blocks left."""

    def __init__(self, config: GlmSpeechConfig) -> None:
        super().__init__()
        width = config.d_model
        self.heads = config.encoder_attention_heads
        self.self_attn = nn.ModuleDict(
            {
                name: nn.Linear(width, width, bias=name != "k_proj")
                for name in ("k_proj", "v_proj", "q_proj", "out_proj")
            }
        )
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[n, width] and the (keys, values) [1, heads, m, width / heads] before -> the same after."""
        normed = self.self_attn_layer_norm(states)
        query, key, value = (self._heads(self.self_attn[f"{name}_proj"](normed)) for name in "qkv")
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        seen = scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
        states = states + self.self_attn["out_proj"](seen)
        return states + self.fc2(gelu(self.fc1(self.final_layer_norm(states)))), (key, value)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(1, (self.heads, -1)).transpose(0, 1)[None]


@dataclass(frozen=True)
class Memory:
    """What a block leaves to the next of its segment. mel, convolved: the last two frames, [channels, 2];
    layers: keys and values of each layer; positions: how many there were."""

    mel: Tensor
    convolved: Tensor
    layers: tuple[tuple[Tensor, Tensor] | None, ...]
    positions: int


class GlmEncoder(nn.Module):
    """The official module's names and shapes, so its state loads as it is."""

    def __init__(self, config: GlmSpeechConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(-(-config.max_source_positions // config.pooling_kernel_size), width)

    def empty(self) -> Memory:
        """The memory before a segment; convolutions see zeros there."""
        weight, bins = self.conv1.weight, self.config.num_mel_bins
        return Memory(
            weight.new_zeros(bins, 2), weight.new_zeros(self.config.d_model, 2), (None,) * len(self.layers), 0
        )

    def forward(self, mel: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """One block: features [bins, 8 n] -> pooled states [n, width], and the memory for the next block."""
        mel = torch.cat([memory.mel, mel], 1)
        convolved = torch.cat([memory.convolved, gelu(conv1d(mel, self.conv1.weight, self.conv1.bias))], 1)
        states = gelu(conv1d(convolved, self.conv2.weight, self.conv2.bias, stride=2)).T
        positions = memory.positions + len(states)
        states = states + self.embed_positions.weight[memory.positions : positions]
        layers = []
        for layer, past in zip(self.layers, memory.layers, strict=True):
            states, kept = layer(states, past)
            layers.append(kept)
        pooled = states.unflatten(0, (-1, self.config.pooling_kernel_size)).mean(1)
        return pooled, Memory(mel[:, -2:], convolved[:, -2:], tuple(layers), positions)

    @torch.inference_mode()
    def quantise(self, pooled: Tensor) -> np.ndarray:
        """[n, width] -> [n] int32, the nearest codes (squared distance, as the official code expands it)."""
        book = self.codebook.weight
        squares = (book**2).sum(1) + (pooled**2).sum(1, keepdim=True)
        nearest = torch.addmm(squares, pooled, book.T, alpha=-2.0).argmin(1)
        return np.asarray(nearest.cpu().numpy(), np.int32)


def segment_states(net: GlmEncoder, sound: np.ndarray, *, causal: bool) -> list[Tensor]:
    """Pooled states [n, width] of each block of a segment: `sound` [1280 n] float32 at 16 kHz, 30 s at most.

    causal: features end below the loudest value so far, else below the loudest of the segment (officially).
    """
    ends = [*range(net.config.block, len(sound), net.config.block), len(sound)]
    logs = [log_mel(net, sound, begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    peaks = np.maximum.accumulate([float(log.max()) for log in logs])
    memory, found = net.empty(), []
    for log, heard in zip(logs, peaks, strict=True):
        states, memory = block_states(net, log, float(heard if causal else peaks[-1]), memory)
        found.append(states)
    return found


@torch.inference_mode()
def block_states(net: GlmEncoder, log: Tensor, peak: float, memory: Memory) -> tuple[Tensor, Memory]:
    """`GlmEncoder.forward` of log10 mel power [bins, 8 n], as Whisper's features with `peak` the loudest value."""
    return net((log.clamp(min=peak - DYNAMIC_RANGE) + 4) / 4, memory)


@torch.inference_mode()
def log_mel(net: GlmEncoder, sound: np.ndarray, begin: int, end: int) -> Tensor:
    """[bins, (end - begin) / 160] log10 mel power of samples `begin` ... `end` of a segment, frame t around
    sample 160 t; beyond the segment's ends sound is mirrored, as by a centred STFT."""
    half = WINDOW // 2
    before = sound[begin - half : begin] if begin else sound[1 : half + 1][::-1]
    after = sound[end : end + LOOKAHEAD] if end < len(sound) else sound[end - 1 - LOOKAHEAD : end - 1][::-1]
    device = net.conv1.weight.device
    around = torch.from_numpy(np.concatenate([before, sound[begin:end], after])).to(device)
    window, bands = _analysis(net.config.num_mel_bins, str(device))
    power = torch.fft.rfft(around.unfold(0, WINDOW, HOP) * window).abs() ** 2
    return (bands @ power.T).clamp(min=1e-10).log10()


@cache
def _analysis(bins: int, device: str) -> tuple[Tensor, Tensor]:
    """The window [400] and the mel bands [bins, 201]."""
    window = torch.hann_window(WINDOW, dtype=torch.float32)
    return window.to(device), torch.from_numpy(mel_bands(bins).astype(np.float32)).to(device)


def mel_bands(bins: int) -> np.ndarray:
    """[bins, 201] triangles of equal area, evenly spaced on Slaney's mel scale (Auditory Toolbox, 1998) from 0 to
    8 kHz: linear up to 1 kHz, 27 steps a factor of 6.4 above."""
    step, knee, octave = 200 / 3, 1000.0, np.log(6.4) / 27
    top = knee / step + np.log(ANALYSIS_RATE / 2 / knee) / octave
    mels = np.linspace(0, top, bins + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(octave * (mels - knee / step)))[:, None]
    hertz = np.linspace(0, ANALYSIS_RATE / 2, WINDOW // 2 + 1)
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2]))


@cache
def load(folder: Path, known: str, device: str) -> GlmEncoder:
    """The net of the checkpoint in `folder`; `known` says which files these are, so that others load anew.

    Raises ModelError when the checkpoint is damaged or of another model.
    """
    place = folder / "model.safetensors"
    with torch.device("meta"):
        net = GlmEncoder(read_config(folder))
    net.to_empty(device="cpu")
    load_state(net, encoder_state(load_safetensors(place), len(net.layers)), place)
    return net.eval().requires_grad_(False).to(device)


def encoder_state(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The encoder's tensors by this module's names, in float32: from the encoder alone, or out of a whole
    recogniser ("model.encoder." before them, more layers and a final norm behind)."""
    prefix = "model.encoder."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        state = {name: value for name, value in state.items() if not name.startswith("layer_norm.")}
    unused = tuple(f"layers.{at}." for at in _layers(state) if at >= layers)
    return {name: value.float() for name, value in state.items() if not name.startswith(unused) and name not in IGNORED}


def _layers(state: Mapping[str, Tensor]) -> set[int]:
    """The layers' numbers."""
    return {int(parts[1]) for name in state if (parts := name.split("."))[0] == "layers" and parts[1].isdecimal()}
