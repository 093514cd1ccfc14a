"""The two halves of LTX-Video's VAE (diffusers' modules): the encoder piece by piece, and the decoder.

The encoder is causal, so a video may come in pieces: what each convolution needs of the frames before is kept,
and the pieces together give what the whole gives. The decoder is not: it looks at latents to both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    AutoencoderKLLTXVideo,
    LTXVideoCausalConv3d,
    LTXVideoDownsampler3d,
)
from torch import Tensor, nn

from manifests.errors import ModelError
from models.checkpoint import load_safetensors, load_state
from models.clock import CHUNK_FRAMES
from models.video_codec import CHANNELS

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
STATISTICS = ("latents_mean", "latents_std")
NOISE_SEED = 1 << 32
"""Seed of the noise of latent 0; latent i has this + i."""


class PiecewiseConv(nn.Module):
    """A causal convolution whose video comes in pieces: before the first stands its first frame, before others
    what the convolution has still to see of the piece before."""

    def __init__(self, whole: LTXVideoCausalConv3d) -> None:
        super().__init__()
        self.conv = whole.conv
        self.before = whole.kernel_size[0] - 1
        self.kept = whole.kernel_size[0] - whole.conv.stride[0]
        self.past: Tensor | None = None

    def forward(self, frames: Tensor) -> Tensor:
        """[1, c, t, h, w] -> [1, d, t / stride, ...]; in the first piece t is 1 more than whole strides."""
        past = frames[:, :, :1].repeat(1, 1, self.before, 1, 1) if self.past is None else self.past
        seen = torch.cat([past, frames], 2)
        self.past = seen[:, :, seen.shape[2] - self.kept :]
        return self.conv(seen)


class PiecewiseDownsampler(nn.Module):
    """LTX 0.9.5's downsampler for such a video: a convolution and the mean of the folded input, folded alike."""

    def __init__(self, whole: LTXVideoDownsampler3d) -> None:
        super().__init__()
        self.stride, self.group = whole.stride, whole.group_size
        self.conv = PiecewiseConv(whole.conv)

    def forward(self, frames: Tensor) -> Tensor:
        """[1, c, t, h, w] -> folded by the stride; the first piece's first frame fills its group."""
        if self.conv.past is None:
            frames = torch.cat([frames[:, :, : self.stride[0] - 1], frames], 2)
        mean = folded(frames, self.stride).unflatten(1, (-1, self.group)).mean(2)
        return folded(self.conv(frames), self.stride) + mean


def folded(frames: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[1, c, T, H, W] -> [1, c * t * h * w, T / t, H / h, W / w] for stride (t, h, w)."""
    t, h, w = stride
    split = frames.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


class Half:
    """One half of the VAE on its device: the net and the statistics of its latents [128, 1, 1]."""

    def __init__(self, net: nn.Module, state: Mapping[str, Tensor], scale: float, device: str) -> None:
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.net = net.eval().requires_grad_(False).to(device, self.dtype)
        self.device = device
        self.mean, self.std = (state[name].to(device, torch.float32).reshape(-1, 1, 1) for name in STATISTICS)
        self.std = self.std / scale


class Encoder(Half):
    """Frames to normalised latents, the mode of the posterior."""

    def __init__(self, net: nn.Module, state: Mapping[str, Tensor], scale: float, device: str) -> None:
        super().__init__(net, state, scale, device)
        self._busy = Lock()
        for parent, name, module in list(_children(self.net)):
            if isinstance(module, LTXVideoDownsampler3d):
                setattr(parent, name, PiecewiseDownsampler(module))
        for parent, name, module in list(_children(self.net)):
            if isinstance(module, LTXVideoCausalConv3d):
                setattr(parent, name, PiecewiseConv(module))
        self._convs = [module for module in self.net.modules() if isinstance(module, PiecewiseConv)]

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """[8k+1, H, W, 3] uint8 -> [1+k, 128, h, w] float32 on the CPU: the first frame by itself, then chunk by
        chunk, so that no latent knows how many follow it and memory does not grow with k."""
        with self._busy:
            try:
                chunks = frames[1:].split(CHUNK_FRAMES) if len(frames) > 1 else ()
                return torch.stack([self._latent(piece) for piece in (frames[:1], *chunks)])
            finally:
                for conv in self._convs:
                    conv.past = None

    def _latent(self, piece: Tensor) -> Tensor:
        pixels = piece.to(self.device).permute(3, 0, 1, 2)[None].to(torch.float32) / 127.5 - 1
        mode = self.net(pixels.to(self.dtype))[0, :CHANNELS, 0].float()
        return ((mode - self.mean) / self.std).cpu()


class Decoder(Half):
    """Normalised latents to frames."""

    @torch.inference_mode()
    def __call__(self, latents: Tensor, noise: tuple[float, float] | None, start: int) -> Tensor:
        """[n, 128, h, w] float -> [8n-7, H, W, 3] uint8 on the CPU; latents[0] becomes one frame.

        noise: (time step, share of noise) for a decoder that is conditioned on it. start: the place of latents[0]
        in its video, on which its noise depends.
        """
        z = latents.to(self.device, torch.float32) * self.std + self.mean
        step = None
        if noise is not None:
            drawn = torch.stack([_noise(z[0].shape, start + at) for at in range(len(z))]).to(self.device)
            z = (1 - noise[1]) * z + noise[1] * drawn
            step = torch.tensor([noise[0]], device=self.device, dtype=self.dtype)
        pixels = self.net(z.transpose(0, 1)[None].to(self.dtype), step)[0].float()
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu()


def _noise(shape: torch.Size, place: int) -> Tensor:
    """Gaussian noise for the latent at `place`, drawn on the CPU, the same on every device."""
    generator = torch.Generator().manual_seed(NOISE_SEED + place)
    return torch.randn(shape, generator=generator)


def _children(net: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) of every module inside."""
    for parent in net.modules():
        for name, module in parent.named_children():
            yield parent, name, module


@cache
def load_encoder(folder: Path, known: str, device: str, config: str) -> Encoder:
    """The encoder in `folder`, whose checked config is `config` (JSON) and whose files are `known`."""
    return Encoder(*_half(folder, config, "encoder"), device)


@cache
def load_decoder(folder: Path, known: str, device: str, config: str) -> Decoder:
    """The decoder, as `load_encoder`."""
    return Decoder(*_half(folder, config, "decoder"), device)


def _half(folder: Path, config: str, half: str) -> tuple[nn.Module, dict[str, Tensor], float]:
    """(net, latents_mean and latents_std, scaling factor). Raises ModelError when the files do not fit."""
    import json

    place, sizes = folder / WEIGHTS_FILE, json.loads(config)
    net = blank(folder / "config.json", sizes).get_submodule(half)
    state = load_safetensors(place)
    net.to_empty(device="cpu")
    load_state(
        net, {name.removeprefix(f"{half}."): value for name, value in state.items() if name.startswith(half)}, place
    )
    for name in STATISTICS:
        if name not in state or tuple(state[name].shape) != (CHANNELS,):
            raise ModelError(f"{place} lacks {name} of {CHANNELS} channels; fetch the weights again")
    return net, {name: state[name] for name in STATISTICS}, float(sizes.get("scaling_factor", 1.0))


def blank(place: Path, config: Mapping[str, Any]) -> nn.Module:
    """The VAE of `config` without memory for weights. Raises ModelError when its sizes do not fit together."""
    try:
        with torch.device("meta"):
            vae = AutoencoderKLLTXVideo.from_config(dict(config))
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{place} describes no LTX-Video VAE ({error}); fetch it again") from None
    if (vae.spatial_compression_ratio, vae.temporal_compression_ratio) != (32, CHUNK_FRAMES):
        raise ModelError(f"{place} does not compress by 8 x 32 x 32; fetch it again")
    return vae
