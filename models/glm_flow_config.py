"""What GLM-4-Voice's speech decoder is made of: its sizes, read from the official config.yaml and checked.

The file is HyperPyYAML: its tags name classes to build and functions to run. Here they are labels; nothing is
built or run, and a tag of another kind is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import ModelError
from models.clock import SPEECH_HZ, STORED_RATE

LARGEST = 1 << 16
"""Sizes above it are taken for damage, before memory is asked for."""
MOST = 64
"""Layers, of any kind."""
LONGEST = 1 << 20
"""Bytes of a config; the official one has 4,447."""
KIND = "!new"


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the flow. bins: of the mel spectrogram; width, heads, inner, layers, block: of the encoder, whose
    attention is whole inside `block` tokens; channels, head_dim, heads_unet, depth, middle: of the U-Net, `depth`
    transformer blocks a stage and `middle` stages between its halves; guidance: of classifier-free guidance."""

    codes: int
    embedding: int
    speaker: int
    bins: int
    width: int
    heads: int
    inner: int
    layers: int
    block: int
    channels: tuple[int, ...]
    head_dim: int
    unet_heads: int
    depth: int
    middle: int
    guidance: float


@dataclass(frozen=True)
class HiftConfig:
    """Sizes of the vocoder. bins: of the mel spectrogram; base: channels before upsampling; pitch: channels of the
    pitch predictor; harmonics: of the source, the fundamental too."""

    bins: int
    base: int
    pitch: int
    harmonics: int


ENCODER, ESTIMATOR, DECODER = "flow.encoder", "flow.decoder.estimator", "flow.decoder"
FIXED: dict[str, Any] = {
    "sample_rate": STORED_RATE,
    "flow.output_type": "mel",
    "flow.input_frame_rate": SPEECH_HZ,
    f"flow.{KIND}": "cosyvoice.flow.flow.MaskedDiffWithXvec",
    f"{ENCODER}.{KIND}": "cosyvoice.transformer.encoder.BlockConformerEncoder",
    f"{ENCODER}.input_layer": "linear",
    f"{ENCODER}.normalize_before": True,
    f"{ENCODER}.pos_enc_layer_type": "rel_pos_espnet",
    f"{ENCODER}.selfattention_layer_type": "block_rel_selfattn",
    f"{ENCODER}.use_cnn_module": False,
    f"{ENCODER}.macaron_style": False,
    "flow.length_regulator.sampling_ratios": [1, 1, 1, 1],
    f"{DECODER}.n_spks": 1,
    f"{DECODER}.cfm_params.content.solver": "euler",
    f"{DECODER}.cfm_params.content.t_scheduler": "cosine",
    f"{ESTIMATOR}.act_fn": "gelu",
    "hift.sampling_rate": STORED_RATE,
    "hift.nsf_alpha": 0.1,
    "hift.nsf_sigma": 0.003,
    "hift.nsf_voiced_threshold": 10,
    "hift.upsample_rates": [8, 8],
    "hift.upsample_kernel_sizes": [16, 16],
    "hift.istft_params.n_fft": 16,
    "hift.istft_params.hop_len": 4,
    "hift.resblock_kernel_sizes": [3, 7, 11],
    "hift.resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "hift.source_resblock_kernel_sizes": [7, 11],
    "hift.source_resblock_dilation_sizes": [[1, 3, 5]] * 2,
    "hift.lrelu_slope": 0.1,
    "hift.audio_limit": 0.99,
    "hift.f0_predictor.num_class": 1,
}
"""What the nets take for granted."""
FLOW_SIZES = {
    "codes": "flow.vocab_size",
    "embedding": "flow.input_size",
    "speaker": "flow.spk_embed_dim",
    "bins": "flow.output_size",
    "width": f"{ENCODER}.output_size",
    "heads": f"{ENCODER}.attention_heads",
    "inner": f"{ENCODER}.linear_units",
    "layers": f"{ENCODER}.num_blocks",
    "block": f"{ENCODER}.block_size",
    "head_dim": f"{ESTIMATOR}.attention_head_dim",
    "unet_heads": f"{ESTIMATOR}.num_heads",
    "depth": f"{ESTIMATOR}.n_blocks",
    "middle": f"{ESTIMATOR}.num_mid_blocks",
}
HIFT_SIZES = {"bins": "hift.in_channels", "base": "hift.base_channels", "pitch": "hift.f0_predictor.cond_channels"}
COUNTS = [FLOW_SIZES[name] for name in ("layers", "depth", "middle")] + ["hift.nb_harmonics"]
GROUPS = 8
"""Of the U-Net's group norms."""


def read_config(place: Path) -> tuple[FlowConfig, HiftConfig]:
    """The sizes in the official config.yaml at `place`. Raises ModelError when it is of another model."""
    content = _read(place)
    wrong = [f"{path} is {_at(content, path)!r}, not {value!r}" for path, value in FIXED.items()
             if _at(content, path) != value]  # fmt: skip
    sizes = [*FLOW_SIZES.values(), *HIFT_SIZES.values(), "hift.nb_harmonics"]
    wrong += [f"{path} is {_at(content, path)!r}" for path in sizes if not _is_size(_at(content, path))]
    wrong += [f"{path} is {_at(content, path)}" for path in COUNTS if not wrong and _at(content, path) > MOST]
    channels, guidance = (
        _at(content, f"{ESTIMATOR}.channels"),
        _at(content, f"{DECODER}.cfm_params.content.inference_cfg_rate"),
    )
    if not isinstance(channels, list) or not channels or not all(map(_is_size, channels)):
        wrong.append(f"{ESTIMATOR}.channels is {channels!r}")
    if not isinstance(guidance, float | int) or not 0 <= guidance <= 10:
        wrong.append(f"inference_cfg_rate is {guidance!r}")
    if not wrong:
        flow = FlowConfig(
            **{name: _at(content, path) for name, path in FLOW_SIZES.items()},
            channels=tuple(channels),
            guidance=float(guidance),
        )
        hift = HiftConfig(
            **{name: _at(content, path) for name, path in HIFT_SIZES.items()},
            harmonics=_at(content, "hift.nb_harmonics") + 1,
        )
        wrong += _unlike(flow, hift, content)
    if wrong:
        raise ModelError(f"{place} is no GLM-4-Voice speech decoder: {wrong[0]}; fetch it again")
    return flow, hift


def _unlike(flow: FlowConfig, hift: HiftConfig, content: Mapping[str, Any]) -> list[str]:
    """What does not fit together."""
    bins = flow.bins
    wanted = {
        f"{ENCODER}.input_size": flow.embedding,
        "flow.length_regulator.channels": bins,
        f"{DECODER}.in_channels": 3 * bins,
        f"{DECODER}.spk_emb_dim": bins,
        f"{ESTIMATOR}.in_channels": 4 * bins,
        f"{ESTIMATOR}.out_channels": bins,
        "hift.in_channels": bins,
        "hift.f0_predictor.in_channels": bins,
    }
    wrong = [f"{path} is {_at(content, path)!r}, not {size}" for path, size in wanted.items()
             if _at(content, path) != size]  # fmt: skip
    if flow.width % flow.heads or flow.width % 2 or bins % 2:
        wrong.append(f"{flow.heads} heads do not divide a width of {flow.width}, or sizes are odd")
    if any(channels % GROUPS for channels in flow.channels) or hift.base % 4:
        wrong.append(f"channels {list(flow.channels)} and {hift.base} do not divide into groups")
    return wrong


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _at(content: Mapping[str, Any], path: str) -> Any:
    """The value at `path`, names joined by dots; None where there is none. A reference stands for what it names."""
    value: Any = content
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    named = re.fullmatch(r"!ref <(\w+)>", value) if isinstance(value, str) else None
    return content.get(named[1]) if named else value


def _read(place: Path) -> dict[str, Any]:
    """The file's mappings, classes under KIND. Raises ModelError when it is missing or damaged."""
    import yaml

    class Labels(yaml.SafeLoader):
        """Knows the tags of HyperPyYAML as labels."""

    def new(loader: Any, kind: str, node: Any) -> dict[str, Any]:
        return {**loader.construct_mapping(node, deep=True), KIND: kind}

    Labels.add_multi_constructor("!new:", new)
    Labels.add_multi_constructor("!apply:", lambda loader, name, node: None)
    Labels.add_constructor("!ref", lambda loader, node: f"!ref {node.value}")
    try:
        text = place.read_bytes()[: LONGEST + 1]
        if len(text) > LONGEST:
            raise ValueError(f"larger than {LONGEST} bytes")
        content = yaml.load(text, Labels)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(
            f"{place} is not readable as YAML ({' '.join(str(error).split())[:160]}); fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise ModelError(f"{place} holds no YAML mapping; fetch it again")
    return content
