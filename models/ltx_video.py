"""LTX-Video's VAE as a codec (HaCohen et al. 2024, arXiv:2501.00103): 8 x 32 x 32 compression, 128 channels.

Official diffusers folders: 0.9.0, deterministic, and 0.9.5, whose decoder wants a little noise. Latents are the
posterior's mode, normalised by the statistics in the checkpoint. The nets: `models.ltx_vae`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ModelError, UsageError
from models.clock import CHUNK_FRAMES
from models.device import torch_device
from models.lock import identity
from models.video_codec import CHANNELS, check_frames, check_latents
from models.weights import weights_folder

VERSIONS = ("0.9.0", "0.9.5")
CODE_VERSION = 1
"""Raised when the code, not the weights, changes what latents mean."""
NOISE = {"0.9.0": None, "0.9.5": (0.05, 0.025)}
"""(decode_timestep, decode_noise_scale) as the publisher's pipelines set them."""
CONTEXT = 12
"""Latents to either side on which a latent's frames depend. The convolutions reach 24 (0.9.0) and 22 (0.9.5); beyond
12, nets of the official depth with random weights change a frame by less than 0.1 of a grey level (8: by 4)."""
WINDOW = 16
"""Latents that are decoded at once, beside their context."""

FIXED: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTXVideo",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": CHANNELS,
    "encoder_causal": True,
    "decoder_causal": False,
    "patch_size": 4,
    "patch_size_t": 1,
}
"""What every version has; the config may leave out all but the first."""
LISTS = ("block_out_channels", "decoder_block_out_channels", "layers_per_block", "decoder_layers_per_block")
MOST = {"block_out_channels": 4096, "decoder_block_out_channels": 4096}
"""Sizes above which a config is taken for damaged, before memory is asked for; layers: 32."""


class LtxVideo:
    """The codec of one version. device: as `models.device` takes it; bfloat16 on CUDA, float32 on the CPU.

    A half of the net loads at its first use, once a process. Raises UsageError for a version that it does not know.
    """

    channels = CHANNELS

    def __init__(self, version: str = VERSIONS[0], device: str = "cpu") -> None:
        if version not in VERSIONS:
            raise UsageError(f"LTX-Video {version!r} is unknown; choose from {', '.join(VERSIONS)}")
        self.version, self.device = version, device
        self.name, self.weights = f"ltx_video_{version}", f"ltx-video-{version}"

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """As `VideoCodec.encode`. Latents are computed in order, each from what came before, in memory that does not
        grow with their number: a latent has the same bits whatever follows it.

        Raises ValueError for other shapes or types, ModelError for weights or a device that are missing or wrong.
        """
        import torch

        from models.ltx_vae import load_encoder

        check_frames(frames)
        device = torch_device(self.device)
        encoder = load_encoder(self._folder(), identity([self.weights]), device, self._config())
        found: np.ndarray = encoder(torch.from_numpy(np.ascontiguousarray(frames))).numpy().astype(np.float16)
        return found

    def decode(
        self,
        latents: np.ndarray,
        *,
        first: bool = True,
        past: np.ndarray | None = None,
        future: np.ndarray | None = None,
        start: int | None = None,
    ) -> np.ndarray:
        """As `VideoCodec.decode`, deterministic, in bounded memory.

        The decoder looks to both sides, so a piece of a stream depends on its neighbours: past, future [m, 128, h, w]
        are latents before and after, whose frames are not returned. With CONTEXT of each (or all there are) a piece
        is what the whole video has there; with less its ends differ. Without a past, a piece that is not `first`
        follows a still picture, its first latent's.

        start: place of latents[0] in its video, on which 0.9.5's noise depends; 0, or 1 when not `first`.
        Raises ValueError for other shapes.
        """
        start = (0 if first else 1) if start is None else start
        check_latents(latents, past, future)
        if first and past is not None:
            raise ValueError("the first latent of a video has no past")
        before = past if past is not None else latents[: 0 if first else 1]
        after = latents[:0] if future is None else future
        sequence = np.concatenate([before, latents, after])
        return self._windows(sequence, range(len(before), len(before) + len(latents)), start - len(before))

    def _windows(self, sequence: np.ndarray, wanted: range, start: int) -> np.ndarray:
        """The frames of latents `wanted` of `sequence`, whose first latent is one frame, `start` of its video."""
        import torch

        decoder, frames = self._decoder(), []
        for at in range(wanted.start, wanted.stop, WINDOW):
            end = min(at + WINDOW, wanted.stop)
            low, high = max(0, at - CONTEXT), min(len(sequence), end + CONTEXT)
            window = torch.from_numpy(np.ascontiguousarray(sequence[low:high], np.float32))
            decoded = decoder(window, NOISE[self.version], start + low).numpy()
            skipped = max(0, CHUNK_FRAMES * (at - 1 - low) + 1) if at > low else 0
            frames.append(decoded[skipped : CHUNK_FRAMES * (end - 1 - low) + 1])
        return np.concatenate(frames)

    def fingerprint(self) -> str:
        """As `VideoCodec.fingerprint`: the weights and this code's version."""
        return hashlib.sha256(f"{self.name} {CODE_VERSION} {identity([self.weights])}".encode()).hexdigest()[:16]

    def _decoder(self) -> Any:
        from models.ltx_vae import load_decoder

        device = torch_device(self.device)
        return load_decoder(self._folder(), identity([self.weights]), device, self._config())

    def _folder(self) -> Path:
        return weights_folder(self.weights)

    def _config(self) -> str:
        """The checkpoint's config in JSON, checked."""
        return _read_config(self._folder() / "config.json", self.version, identity([self.weights]))


@cache
def _read_config(place: Path, version: str, known: str) -> str:
    """Raises ModelError when the config is damaged, of another model or of another version."""
    try:
        config = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place} is not readable as JSON ({error}); fetch it again") from None
    wrong = _unlike(config, version) if isinstance(config, Mapping) else "it holds no JSON object"
    if wrong:
        raise ModelError(f"{place} is no LTX-Video {version} VAE: {wrong}; fetch it again")
    return json.dumps({key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True)


def _unlike(config: Mapping[str, Any], version: str) -> str:
    """The first thing that a VAE of `version` cannot have; "" when there is none."""
    if "_class_name" not in config:
        return "no _class_name"
    conditioned = NOISE[version] is not None
    wanted = FIXED | {"timestep_conditioning": conditioned}
    given = {**FIXED, "timestep_conditioning": False, **config}
    for key, value in wanted.items():
        if given[key] != value:
            return f"{key} is {given[key]!r}, not {value!r}"
    if any(config.get("decoder_inject_noise") or ()):
        return "its decoder injects noise, as version 0.9.1 does"
    for key in LISTS:
        sizes = config.get(key, [1])
        if not isinstance(sizes, list) or not all(
            type(size) is int and 0 < size <= MOST.get(key, 32) for size in sizes
        ):
            return f"{key} is {sizes!r}"
    return ""
