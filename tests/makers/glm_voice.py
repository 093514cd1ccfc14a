"""Files of GLM-4-Voice's speech decoder with random weights, by a recipe that any code can repeat."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NAME = "glm-4-voice-decoder"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """What differs between the official decoder and the small one."""

    codes: int = 16_384
    embedding: int = 512
    speaker: int = 192
    bins: int = 80
    width: int = 512
    heads: int = 8
    inner: int = 2048
    layers: int = 6
    channels: tuple[int, int] = (256, 256)
    head_dim: int = 64
    unet_heads: int = 8
    depth: int = 4
    middle: int = 12
    base: int = 512
    pitch: int = 512


OFFICIAL = Sizes()
SMALL = Sizes(
    embedding=24, speaker=12, bins=16, width=32, heads=4, inner=48, layers=2, channels=(16, 24), head_dim=8,
    unet_heads=2, depth=1, middle=2, base=32, pitch=24,
)  # fmt: skip
"""Every code of the official vocabulary, little else."""

CONFIG = """\
__set_seed1: !apply:random.seed [1986]
__set_seed3: !apply:torch.manual_seed [1986]
sample_rate: 22050
spk_embed_dim: {speaker}
llm: !new:cosyvoice.llm.llm.TransformerLM
    text_token_size: 51866
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        output_size: 1024
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: {embedding}
    output_size: {bins}
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: {codes}
    input_frame_rate: 12.5
    only_mask_loss: True
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        output_size: {width}
        attention_heads: {heads}
        linear_units: {inner}
        num_blocks: {layers}
        dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'block_rel_selfattn'
        block_size: 10
        input_size: {embedding}
        use_cnn_module: False
        macaron_style: False
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: {bins}
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: {three_bins}
        n_spks: 1
        spk_emb_dim: {bins}
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: {four_bins}
            out_channels: {bins}
            channels: {channel_list}
            dropout: 0
            attention_head_dim: {head_dim}
            n_blocks: {depth}
            num_mid_blocks: {middle}
            num_heads: {unet_heads}
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: {bins}
    base_channels: {base}
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: {bins}
        cond_channels: {pitch}
"""


def config(sizes: Sizes) -> str:
    """The official config.yaml, with other sizes."""
    derived = {"three_bins": 3 * sizes.bins, "four_bins": 4 * sizes.bins, "channel_list": list(sizes.channels)}
    return CONFIG.format(**vars(sizes), **derived)


def make(folder: Path, true_size: bool = False) -> None:
    """Writes config.yaml, flow.pt and hift.pt into `folder`."""
    write(folder, OFFICIAL if true_size else SMALL)


def write(folder: Path, sizes: Sizes) -> None:
    """Writes a checkpoint of these sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config(sizes))
    save(folder / "flow.pt", weights(flow_shapes(sizes)))
    save(folder / "hift.pt", weights(hift_shapes(sizes)))


def save(place: Path, state: Mapping[str, np.ndarray]) -> None:
    """As the official files are: an ordered dict of float32 tensors."""
    import torch

    torch.save(OrderedDict((name, torch.from_numpy(value)) for name, value in state.items()), place)


def weights(shapes: Shapes) -> dict[str, np.ndarray]:
    """Every tensor: each drawn with a seed that is its name's CRC-32, matrices scaled to keep variance."""
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor. Norms and lengths are around 1; pitch is around 150 Hz and moves; sound stays under full scale."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    part = name.rpartition(".")[2]
    if part == "alpha" or (part == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * values
    if part == "weight_g":
        return np.abs(1 + np.float32(0.1) * values)
    if name == "f0_predictor.classifier.weight":
        return values * np.float32(300 / np.sqrt(shape[1]))
    if name == "f0_predictor.classifier.bias":
        return np.full(shape, 120, np.float32)
    if name == "conv_post.bias":
        return np.float32(0.1) * values - np.float32(1.5)
    if part in ("bias", "pos_bias_u", "pos_bias_v"):
        return np.float32(0.1) * values
    inputs = 1 if name == "input_embedding.weight" else np.prod(shape[1:])
    return values / np.float32(np.sqrt(inputs))


def flow_shapes(sizes: Sizes) -> Shapes:
    """flow.pt's names and shapes."""
    width, bins = sizes.width, sizes.bins
    found: Shapes = {"input_embedding.weight": (sizes.codes, sizes.embedding)}
    found |= linear("spk_embed_affine_layer", sizes.speaker, bins)
    found |= linear("encoder.embed.out.0", sizes.embedding, width) | norm("encoder.embed.out.1", width)
    found |= norm("encoder.after_norm", width)
    for at in range(sizes.layers):
        layer = f"encoder.encoders.{at}"
        found |= {f"{layer}.self_attn.pos_bias_{bias}": (sizes.heads, width // sizes.heads) for bias in "uv"}
        for part in ("q", "k", "v", "out"):
            found |= linear(f"{layer}.self_attn.linear_{part}", width, width)
        found[f"{layer}.self_attn.linear_pos.weight"] = (width, width)
        found |= linear(f"{layer}.feed_forward.w_1", width, sizes.inner)
        found |= linear(f"{layer}.feed_forward.w_2", sizes.inner, width)
        found |= norm(f"{layer}.norm_ff", width) | norm(f"{layer}.norm_mha", width)
    found |= linear("encoder_proj", width, bins)
    for at in range(0, 12, 3):
        found |= conv(f"length_regulator.model.{at}", bins, bins, 3) | norm(f"length_regulator.model.{at + 1}", bins)
    return found | conv("length_regulator.model.12", bins, bins, 1) | unet_shapes(sizes, "decoder.estimator")


def unet_shapes(sizes: Sizes, net: str) -> Shapes:
    """The U-Net's."""
    (first, last), time = sizes.channels, 4 * sizes.channels[0]
    found = linear(f"{net}.time_mlp.linear_1", 4 * sizes.bins, time) | linear(f"{net}.time_mlp.linear_2", time, time)
    found |= stage(sizes, f"{net}.down_blocks.0", 4 * sizes.bins, first) | stage(
        sizes, f"{net}.down_blocks.1", first, last
    )
    for at in range(sizes.middle):
        found |= stage(sizes, f"{net}.mid_blocks.{at}", last, last)
    found |= stage(sizes, f"{net}.up_blocks.0", 2 * last, first) | stage(sizes, f"{net}.up_blocks.1", 2 * first, first)
    found |= conv(f"{net}.down_blocks.0.2.conv", first, first, 3) | conv(f"{net}.down_blocks.1.2", last, last, 3)
    found |= conv(f"{net}.up_blocks.0.2.conv", first, first, 4) | conv(f"{net}.up_blocks.1.2", first, first, 3)
    found |= conv(f"{net}.final_block.block.0", first, first, 3) | norm(f"{net}.final_block.block.1", first)
    return found | conv(f"{net}.final_proj", first, sizes.bins, 1)


def stage(sizes: Sizes, name: str, inputs: int, outputs: int) -> Shapes:
    """A residual block and its transformer blocks."""
    found = linear(f"{name}.0.mlp.1", 4 * sizes.channels[0], outputs) | conv(f"{name}.0.res_conv", inputs, outputs, 1)
    for block, before in (("block1", inputs), ("block2", outputs)):
        found |= conv(f"{name}.0.{block}.block.0", before, outputs, 3) | norm(f"{name}.0.{block}.block.1", outputs)
    inner = sizes.unet_heads * sizes.head_dim
    for at in range(sizes.depth):
        block = f"{name}.1.{at}"
        found |= {f"{block}.attn1.to_{part}.weight": (inner, outputs) for part in "qkv"}
        found |= linear(f"{block}.attn1.to_out.0", inner, outputs)
        found |= norm(f"{block}.norm1", outputs) | norm(f"{block}.norm3", outputs)
        found |= linear(f"{block}.ff.net.0.proj", outputs, 4 * outputs)
        found |= linear(f"{block}.ff.net.2", 4 * outputs, outputs)
    return found


def hift_shapes(sizes: Sizes) -> Shapes:
    """hift.pt's names and shapes."""
    base, half, quarter = sizes.base, sizes.base // 2, sizes.base // 4
    found = linear("m_source.l_linear", 9, 1) | normed("conv_pre", base, sizes.bins, 7)
    found |= normed("ups.0", base, half, 16, half) | normed("ups.1", half, quarter, 16, quarter)
    found |= conv("source_downs.0", 18, half, 16) | conv("source_downs.1", 18, quarter, 1)
    found |= resblock("source_resblocks.0", half, 7) | resblock("source_resblocks.1", quarter, 11)
    for at, (channels, kernel) in enumerate((width, kernel) for width in (half, quarter) for kernel in (3, 7, 11)):
        found |= resblock(f"resblocks.{at}", channels, kernel)
    found |= normed("conv_post", 18, quarter, 7)
    for at in range(5):
        found |= normed(f"f0_predictor.condnet.{2 * at}", sizes.pitch, sizes.pitch if at else sizes.bins, 3)
    return found | linear("f0_predictor.classifier", sizes.pitch, 1)


def resblock(name: str, channels: int, kernel: int) -> Shapes:
    """Three pairs of convolutions and their Snakes."""
    found: Shapes = {}
    for at in range(3):
        for pair in "12":
            found |= normed(f"{name}.convs{pair}.{at}", channels, channels, kernel)
            found[f"{name}.activations{pair}.{at}.alpha"] = (channels,)
    return found


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel), f"{name}.bias": (outputs,)}


def normed(name: str, rows: int, columns: int, kernel: int, outputs: int | None = None) -> Shapes:
    """A convolution under weight norm; a transposed one has as many biases as columns."""
    found: Shapes = {f"{name}.weight_g": (rows, 1, 1), f"{name}.weight_v": (rows, columns, kernel)}
    return found | {f"{name}.bias": (rows if outputs is None else outputs,)}


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """[count] int32."""
    return np.random.default_rng(seed).integers(0, SMALL.codes, count, np.int32)


def install(root: Path, sizes: Sizes = SMALL) -> Path:
    """A folder for XSTREAMER_MODELS with this decoder alone; the decoder's folder."""
    from makers import mirror

    mirror.unpublished(root, NAME)
    write(root / NAME, sizes)
    return root / NAME
