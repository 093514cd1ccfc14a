"""LTX-Video's VAE: diffusers' latents piece by piece, frames in windows, nothing of the future, honest refusals."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import ltx_video as made
from makers import mirror

from manifests.errors import ModelError, UsageError
from models.lock import identity
from models.ltx_vae import NOISE_SEED, load_encoder
from models.ltx_video import CONTEXT, NOISE, VERSIONS, LtxVideo
from models.video_codec import VideoCodec

FRAMES = np.random.default_rng(0).integers(0, 256, (49, 64, 96, 3), np.uint8)
LATENTS = np.random.default_rng(1).standard_normal((34, 128, 2, 3)).astype(np.float16)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ltx_video")
    mirror.unpublished(root, *made.NAMES.values())
    for name in made.NAMES.values():
        made.make(root / name)
    return root


@pytest.fixture(autouse=True)
def found(weights: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(weights))
        yield


@pytest.fixture(params=VERSIONS)
def codec(request: pytest.FixtureRequest) -> LtxVideo:
    return LtxVideo(request.param)


def diffusers_vae(codec: LtxVideo, root: Path) -> Any:
    """diffusers' own, from the same folder."""
    from diffusers import AutoencoderKLLTXVideo

    return AutoencoderKLLTXVideo.from_pretrained(root / codec.weights, local_files_only=True).eval()


def statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return vae.latents_mean.view(1, -1, 1, 1), vae.latents_std.view(1, -1, 1, 1)


def test_it_is_a_video_codec(codec: LtxVideo) -> None:
    named = {name for name in (*vars(VideoCodec), *inspect.get_annotations(VideoCodec)) if not name.startswith("_")}
    assert all(hasattr(codec, name) for name in named)
    assert codec.fingerprint() == LtxVideo(codec.version, "auto").fingerprint() and len(codec.fingerprint()) == 16


class TestEncode:
    def test_diffusers_encodes_the_same_at_once(self, codec: LtxVideo, weights: Path) -> None:
        vae = diffusers_vae(codec, weights)
        mean, std = statistics(vae)
        with torch.inference_mode():
            pixels = torch.from_numpy(FRAMES).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            whole = (vae.encode(pixels).latent_dist.mode()[0].transpose(0, 1) - mean) / std
        folder = weights / codec.weights
        encoder = load_encoder(folder, identity([codec.weights]), "cpu", codec._config())
        pieces = encoder(torch.from_numpy(FRAMES))
        assert whole.std() > 0.2
        assert (whole - pieces).abs().max() < 1e-5
        latents = codec.encode(FRAMES)
        assert latents.shape == (7, 128, 2, 3) and latents.dtype == np.float16
        assert np.array_equal(latents, pieces.numpy().astype(np.float16))

    def test_a_portrait_alone_is_the_first_latent(self, codec: LtxVideo) -> None:
        assert np.array_equal(codec.encode(FRAMES[:1])[0], codec.encode(FRAMES)[0])

    @settings(max_examples=6, deadline=None)
    @given(st.integers(0, 5), st.sampled_from(VERSIONS), st.integers(0, 255))
    def test_no_latent_knows_the_future(self, chunks: int, version: str, level: int) -> None:
        codec, known = LtxVideo(version), 8 * chunks + 1
        other = FRAMES.copy()
        other[known:] = level
        latents = codec.encode(FRAMES)
        assert np.array_equal(codec.encode(FRAMES[:known]), latents[: chunks + 1])
        assert np.array_equal(codec.encode(other)[: chunks + 1], latents[: chunks + 1])

    def test_every_latent_knows_its_past(self, codec: LtxVideo) -> None:
        other = FRAMES.copy()
        other[0] = 255 - other[0]
        changed = np.abs(codec.encode(other).astype(np.float32) - codec.encode(FRAMES)).max(axis=(1, 2, 3))
        assert changed.min() > 0.01

    def test_colours_are_not_swapped(self, codec: LtxVideo) -> None:
        assert not np.array_equal(codec.encode(FRAMES[:1]), codec.encode(FRAMES[:1, ..., ::-1]))

    def test_a_failure_leaves_nothing_behind(self, codec: LtxVideo, weights: Path) -> None:
        before = codec.encode(FRAMES)
        encoder = load_encoder(weights / codec.weights, identity([codec.weights]), "cpu", codec._config())
        with pytest.raises(RuntimeError):
            encoder(torch.from_numpy(FRAMES[:12]))
        assert np.array_equal(codec.encode(FRAMES), before)

    @pytest.mark.parametrize("shape", [(8, 64, 64, 3), (9, 48, 64, 3), (9, 64, 64, 4), (64, 64, 3)])
    def test_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="frames must be"):
            LtxVideo().encode(np.zeros(shape, np.uint8))


class TestDecode:
    def test_diffusers_decodes_the_same_at_once(self, codec: LtxVideo, weights: Path) -> None:
        vae = diffusers_vae(codec, weights)
        mean, std = statistics(vae)
        latents, step = torch.from_numpy(LATENTS.astype(np.float32)) * std + mean, None
        if noise := NOISE[codec.version]:
            drawn = [
                torch.randn(128, 2, 3, generator=torch.Generator().manual_seed(NOISE_SEED + at)) for at in range(34)
            ]
            latents, step = (1 - noise[1]) * latents + noise[1] * torch.stack(drawn), torch.tensor([noise[0]])
        with torch.inference_mode():
            pixels = vae.decode(latents.transpose(0, 1)[None], step).sample[0].permute(1, 2, 3, 0)
        frames = codec.decode(LATENTS)
        assert frames.shape == (8 * 34 - 7, 64, 96, 3) and frames.dtype == np.uint8
        assert 40 < frames.std() < 110
        assert np.abs((pixels.numpy() + 1) * 127.5 - frames).clip(0, 255)[(frames > 0) & (frames < 255)].max() < 0.51

    def test_a_piece_with_its_neighbours_is_what_the_whole_has(self, codec: LtxVideo) -> None:
        whole = codec.decode(LATENTS)
        around = {"past": LATENTS[15 - CONTEXT : 15], "future": LATENTS[18 : 18 + CONTEXT]}
        piece = codec.decode(LATENTS[15:18], first=False, start=15, **around)
        assert piece.shape == (24, 64, 96, 3)
        assert np.abs(piece.astype(int) - whole[8 * 14 + 1 : 8 * 17 + 1]).max() <= 1
        blind = codec.decode(LATENTS[15:18], first=False, past=LATENTS[13:15], start=15)
        assert np.abs(blind.astype(int) - whole[8 * 14 + 1 : 8 * 17 + 1]).max() > 8

    def test_without_a_past_a_still_comes_before(self, codec: LtxVideo) -> None:
        alone = codec.decode(LATENTS[:2], first=False)
        assert alone.shape == (16, 64, 96, 3)
        still = codec.decode(LATENTS[[0, 0, 1]])
        if NOISE[codec.version] is None:
            assert np.array_equal(alone, still[1:])
        else:
            assert np.abs(alone.astype(int) - still[1:]).mean() < 2

    def test_the_first_alone_is_one_frame_and_a_video_has_no_past(self, codec: LtxVideo) -> None:
        assert codec.decode(LATENTS[:1]).shape == (1, 64, 96, 3)
        with pytest.raises(ValueError, match="no past"):
            codec.decode(LATENTS[1:2], past=LATENTS[:1])

    def test_it_is_deterministic_and_leaves_the_dice_alone(self, codec: LtxVideo) -> None:
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        frames = codec.decode(LATENTS[:3])
        assert torch.rand(1) == expected
        assert np.array_equal(frames, codec.decode(LATENTS[:3]))

    def test_noise_belongs_to_the_place_in_the_video(self) -> None:
        codec = LtxVideo("0.9.5")
        assert not np.array_equal(codec.decode(LATENTS[:1], start=0), codec.decode(LATENTS[:1], start=7))
        plain = LtxVideo("0.9.0")
        assert np.array_equal(plain.decode(LATENTS[:1], start=0), plain.decode(LATENTS[:1], start=7))

    @pytest.mark.parametrize("shape", [(0, 128, 2, 2), (2, 64, 2, 2), (128, 2, 2)])
    def test_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="latents must be"):
            LtxVideo().decode(np.zeros(shape, np.float16))


class TestCheckpoint:
    def use(self, root: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> Path:
        """A folder of 0.9.0 that holds `config`."""
        mirror.unpublished(root, *made.NAMES.values())
        monkeypatch.setenv("XSTREAMER_MODELS", str(root))
        made.write(root / made.NAMES["0.9.0"], config)
        return root / made.NAMES["0.9.0"]

    def refused(self) -> str:
        with pytest.raises(ModelError) as error:
            LtxVideo().encode(FRAMES[:1])
        assert "fetch" in str(error.value)
        return str(error.value)

    def test_the_other_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use(tmp_path, monkeypatch, made.SMALL["0.9.5"])
        assert "timestep_conditioning is True, not False" in self.refused()

    @pytest.mark.parametrize(
        "change, told",
        [
            ({"_class_name": "AutoencoderKLWan"}, "_class_name is 'AutoencoderKLWan'"),
            ({"latent_channels": 16}, "latent_channels is 16"),
            ({"encoder_causal": False}, "encoder_causal is False"),
            ({"decoder_inject_noise": [True, False, False, False, False]}, "injects noise"),
            ({"block_out_channels": [8, 8, 16, 1 << 40]}, "block_out_channels is"),
            ({"layers_per_block": [1, 1]}, "describes no LTX-Video VAE"),
            ({"spatio_temporal_scaling": [True, True, False, False]}, "does not compress by 8 x 32 x 32"),
            ({"block_out_channels": [8, 8, 16, 24]}, "is [16, 16, 3, 3, 3], not [24, 24, 3, 3, 3]"),
        ],
    )
    def test_another_config(
        self, change: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.use(tmp_path, monkeypatch, made.SMALL["0.9.0"])
        (folder / "config.json").write_text(json.dumps(made.SMALL["0.9.0"] | change))
        assert told in self.refused()

    @pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
    def test_a_file_that_is_cut_off(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = self.use(tmp_path, monkeypatch, made.SMALL["0.9.0"]) / name
        place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
        assert str(place) in self.refused()

    def test_weights_without_statistics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from safetensors.torch import load_file, save_file

        place = self.use(tmp_path, monkeypatch, made.SMALL["0.9.0"]) / "diffusion_pytorch_model.safetensors"
        state = load_file(place)
        del state["latents_std"]
        save_file(state, place)
        assert "lacks latents_std" in self.refused()

    def test_missing_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        assert "models fetch ltx-video-0.9.0" in self.refused()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(ModelError, match="CUDA"):
            LtxVideo(device="cuda").encode(FRAMES[:1])

    def test_an_unknown_version(self) -> None:
        with pytest.raises(UsageError, match=r"choose from 0\.9\.0, 0\.9\.5"):
            LtxVideo("0.9.1")


def test_made_nets_have_the_official_size() -> None:
    """180 and 239 million parameters of 0.9.0 (1,676,798,532 bytes as published), 694 and 553 million of 0.9.5."""
    from models.ltx_vae import blank

    sizes = {}
    for version, config in made.OFFICIAL.items():
        vae = blank(Path("config.json"), {key: value for key, value in config.items() if not key.startswith("_")})
        halves = [vae.get_submodule(half) for half in ("encoder", "decoder")]
        sizes[version] = [sum(one.numel() for one in half.parameters()) for half in halves]
    assert [[round(count / 1e6) for count in found] for found in sizes.values()] == [[180, 239], [694, 553]]
    assert 0 < 1_676_798_532 - 4 * (sum(sizes["0.9.0"]) + 256) < 100_000
