"""GLM-4-Voice's vocoder: a mel spectrogram to sound at 22.05 kHz, whole or as a stream, the same to rounding.

HiFTNet (Li et al. 2023, arXiv:2309.09493) as CosyVoice has it, checkpoint-compatible: pitch from the mel frames, nine
harmonics of it and noise as source, both through two upsampling stages to the short-time spectra of 16 samples.
Everything but the source's phase reaches a bounded number of frames; so frames are computed with that many around
them, and the phase is carried in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad

from models.blueprint import filled
from models.clock import STORED_RATE
from models.glm_flow import hollow, tensors
from models.glm_flow_config import HiftConfig, read_config
from models.glm_flow_noise import generator, noise

FRAME = 256
"""Samples of a mel frame: two upsamplings by 8, hops of 4."""
UPSAMPLE, FFT, HOP = 8, 16, 4
KERNELS, SOURCE_KERNELS, DILATIONS = (3, 7, 11), (7, 11), (1, 3, 5)
SINE, VOICED_NOISE, UNVOICED_NOISE = 0.1, 0.003, 0.1 / 3
VOICED_HZ = 10.0
SLOPE, LAST_SLOPE = 0.1, 0.01
LOUDEST, LARGEST_MAGNITUDE = 0.99, 100.0
PITCH_REACH = 5
"""Mel frames on either side that a frame's pitch depends on: five convolutions over three."""
REACH = 14
"""Frames of mel and source on either side that a frame's sound depends on: 60 steps of 1/64 frame, 60 of 1/8, 36 of
1/8 behind the source, and the convolutions between."""


class Snake(nn.Module):
    """x + sin^2(a x) / a (Ziyin et al. 2020, arXiv:2006.08195), `a` learned for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))

    def forward(self, steps: Tensor) -> Tensor:
        """[batch, channels, n] -> the same."""
        alpha = self.alpha[:, None]
        return steps + (steps * alpha).sin() ** 2 / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Three dilated convolutions beside shortcuts."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=wide, padding=wide * (kernel - 1) // 2) for wide in DILATIONS
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in DILATIONS)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in DILATIONS)

    def forward(self, steps: Tensor) -> Tensor:
        """[batch, channels, n] -> the same."""
        parts = (self.activations1, self.convs1, self.activations2, self.convs2)
        for first, wide, second, narrow in zip(*parts, strict=True):
            steps = steps + narrow(second(wide(first(steps))))
        return steps


class PitchPredictor(nn.Module):
    """Mel frames to Hz."""

    def __init__(self, bins: int, channels: int) -> None:
        super().__init__()
        convolutions = (
            nn.Conv1d(before, channels, 3, padding=1) for before in (bins, *(channels,) * (PITCH_REACH - 1))
        )
        self.condnet = nn.Sequential(*(part for layer in convolutions for part in (layer, nn.ELU())))
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """[bins, frames] -> [frames]."""
        found: Tensor = self.classifier(self.condnet(mel[None])[0].T)[:, 0].abs()
        return found


class Hift(nn.Module):
    """The official module's names, its weight norms folded (`folded`)."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base // 2, config.base // 4]
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(config.harmonics, 1)})
        self.conv_pre = nn.Conv1d(config.bins, config.base, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(2 * width, width, 2 * UPSAMPLE, UPSAMPLE, padding=UPSAMPLE // 2) for width in widths
        )
        self.source_downs = nn.ModuleList(
            [
                nn.Conv1d(FFT + 2, widths[0], 2 * UPSAMPLE, UPSAMPLE, padding=UPSAMPLE // 2),
                nn.Conv1d(FFT + 2, widths[1], 1),
            ]
        )
        self.source_resblocks = nn.ModuleList(
            ResBlock(width, kernel) for width, kernel in zip(widths, SOURCE_KERNELS, strict=True)
        )
        self.resblocks = nn.ModuleList(ResBlock(width, kernel) for width in widths for kernel in KERNELS)
        self.conv_post = nn.Conv1d(widths[-1], FFT + 2, 7, padding=3)
        self.f0_predictor = PitchPredictor(config.bins, config.pitch)

    @property
    def device(self) -> torch.device:
        return self.conv_pre.weight.device

    def source(self, pitch: Tensor, phase: float, offsets: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        """Harmonics and noise of some frames.

        pitch: [frames] Hz; phase: of the fundamental before the first sample, in cycles; offsets: [harmonics] phases
        in radians; noise: [256 frames, harmonics] of unit variance. Returns [256 frames] and the phase after.
        """
        cycles = pitch.double() / STORED_RATE
        starts = phase + torch.cat([cycles.new_zeros(1), (cycles * FRAME).cumsum(0)])
        within = torch.arange(1, FRAME + 1, device=pitch.device)
        fundamental = (starts[:-1, None] + cycles[:, None] * within).flatten()
        angles = 2 * math.pi * (fundamental[:, None] * torch.arange(1, len(offsets) + 1, device=pitch.device) % 1)
        voiced = (pitch > VOICED_HZ).float().repeat_interleave(FRAME)[:, None]
        loudness = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
        waves = SINE * (angles.float() + offsets).sin() * voiced + loudness * noise
        return self.m_source["l_linear"](waves)[:, 0].tanh(), float(starts[-1] % 1)

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """[bins, frames], [256 frames] -> [256 frames] sound."""
        window = torch.hann_window(FFT, device=mel.device)
        spectra = torch.stft(source[None], FFT, HOP, window=window, return_complex=True)
        excitation = torch.cat([spectra.real, spectra.imag], 1)
        steps = self.conv_pre(mel[None])
        for at, larger in enumerate(self.ups):
            steps = larger(leaky_relu(steps, SLOPE))
            if at == len(self.ups) - 1:
                steps = pad(steps, (1, 0), mode="reflect")
            steps = steps + self.source_resblocks[at](self.source_downs[at](excitation))
            alike = self.resblocks[at * len(KERNELS) : (at + 1) * len(KERNELS)]
            steps = torch.stack([block(steps) for block in alike]).sum(0) / len(KERNELS)
        magnitude, phase = self.conv_post(leaky_relu(steps, LAST_SLOPE)).split(FFT // 2 + 1, 1)
        spectra = torch.polar(magnitude.exp().clamp(max=LARGEST_MAGNITUDE), phase.sin())
        return torch.istft(spectra, FFT, HOP, window=window)[0].clamp(-LOUDEST, LOUDEST)


class HiftStream:
    """Mel frames to sound, frame by frame as soon as the frames that it depends on are there; state and work per
    frame do not grow. All pieces together equal one piece, to rounding."""

    LOOKAHEAD = REACH + PITCH_REACH
    """Frames that sound lies behind the last mel frame."""

    def __init__(self, net: Hift, seed: int) -> None:
        self.net, self.seed = net, seed
        self._mel = torch.empty(net.config.bins, 0, device=net.device)
        self._source, self._first = torch.empty(0, device=net.device), 0
        self._heard = self._sourced = self._done = 0
        self._phase = 0.0
        turns = torch.rand(net.config.harmonics, generator=generator(seed, "phases", 0)) * 2 - 1
        turns[0] = 0
        self._offsets = (turns * math.pi).to(net.device)

    @torch.inference_mode()
    def push(self, mel: Tensor, *, last: bool = False) -> Tensor:
        """[bins, frames] float32 -> [samples]; `last`: up to the last frame's end."""
        self._mel = torch.cat([self._mel, mel], 1)
        self._heard += mel.shape[1]
        self._excite(self._heard if last else self._heard - PITCH_REACH)
        ready = self._heard if last else self._sourced - REACH
        if ready <= self._done:
            return self._source[:0]
        begin = max(0, self._done - REACH)
        end = min(self._sourced, ready + REACH)
        source = self._source[(begin - self._first) * FRAME : (end - self._first) * FRAME]
        sound = self.net(self._mel_of(begin, end), source)
        sound = sound[(self._done - begin) * FRAME : (ready - begin) * FRAME]
        self._done = ready
        self._forget(max(0, ready - REACH))
        return sound

    def _excite(self, end: int) -> None:
        """The source up to frame `end`."""
        begin = self._sourced
        if end <= begin:
            return
        first = max(0, begin - PITCH_REACH)
        pitch = self.net.f0_predictor(self._mel_of(first, min(end + PITCH_REACH, self._heard)))
        drawn = noise(self.seed, "source", begin, end, FRAME * self.net.config.harmonics)
        drawn = drawn.view(-1, self.net.config.harmonics).to(self.net.device)
        source, self._phase = self.net.source(pitch[begin - first : end - first], self._phase, self._offsets, drawn)
        self._source, self._sourced = torch.cat([self._source, source]), end

    def _mel_of(self, begin: int, end: int) -> Tensor:
        return self._mel[:, begin - self._first : end - self._first]

    def _forget(self, first: int) -> None:
        """Frames before `first`."""
        self._mel = self._mel[:, first - self._first :].clone()
        self._source = self._source[(first - self._first) * FRAME :].clone()
        self._first = first


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official state with every weight norm (Salimans & Kingma 2016, arXiv:1602.07868) made a weight."""
    found = {name: value for name, value in state.items() if not name.endswith(("weight_g", "weight_v"))}
    for name, direction in state.items():
        base, _, part = name.rpartition(".")
        length = state.get(f"{base}.weight_g")
        if part == "weight_v" and length is not None and direction.ndim == length.ndim == 3:
            found[f"{base}.weight"] = direction * (length / direction.norm(dim=(1, 2), keepdim=True))
    return found


@cache
def load(folder: Path, known: str, device: str) -> Hift:
    """The vocoder of the checkpoint in `folder`, on `device`, in float32 (its phases need it); `known` as for
    `models.glm_flow.load`.

    Raises ModelError when the checkpoint is damaged or of another model.
    """
    place = folder / "hift.pt"
    _, config = read_config(folder / "config.yaml")
    state = folded(tensors(place))
    net = filled(lambda: hollow(lambda: Hift(config)), state, place, outline=lambda: Hift(config))
    return net.requires_grad_(False).to(device)
