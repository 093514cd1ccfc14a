"""GLM-4-Voice-9B's official files (config.json, sharded safetensors in ChatGLM's names) as transformers' GLM.

The weights are mapped, not read: on the CPU in the type that they are stored in they stay views of the files; for
another device or type one tensor is converted at a time, and a shard is let go before the next one is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import ModelError
from models.dialogue_layout import CONTEXT_TOKENS

if TYPE_CHECKING:
    import torch
    from transformers import GlmConfig, GlmForCausalLM

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ROPE_BASE = 10_000.0
"""ChatGLM's RotaryEmbedding: theta is this times `rope_ratio`, on the first half of each head, in adjacent pairs."""
FIXED = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
}
"""What transformers' GLM takes for granted of a ChatGLM. `apply_query_key_layer_scaling` changes no result: ChatGLM
divides the scores by the layer's number and multiplies them by it again."""
SIZES = (
    "num_layers", "padded_vocab_size", "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads",
    "multi_query_group_num",
)  # fmt: skip
MOST = {"num_layers": 1024}
"""Sizes above this, or 2^20 for the others, are taken for damage."""
DROPPED = "transformer.rotary_pos_emb.inv_freq"
"""Computed, not learned."""


@dataclass(frozen=True)
class Numbers:
    """What config.json says of a ChatGLM, in transformers' words."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float


def read_numbers(folder: Path) -> Numbers:
    """Of the ChatGLM in `folder`. Raises ModelError when config.json is of another architecture, lacks a field or is
    damaged."""
    place = folder / CONFIG
    facts = _json(place)
    for name, wanted in FIXED.items():
        if facts.get(name) != wanted:
            raise ModelError(
                f"{place} is no GLM-4-Voice: {name} is {facts.get(name)!r}, not {wanted!r}; fetch it again"
            )
    for name in SIZES:
        if type(facts.get(name)) is not int or not 1 <= facts[name] <= MOST.get(name, 1 << 20):
            raise ModelError(f"{place} is no GLM-4-Voice: {name} is {facts.get(name)!r}, no size; fetch it again")
    try:
        eps, ratio = float(facts["layernorm_epsilon"]), float(facts.get("rope_ratio", 1))
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{place} has no numbers for layernorm_epsilon and rope_ratio; fetch it again") from None
    heads, groups, width = facts["num_attention_heads"], facts["multi_query_group_num"], facts["kv_channels"]
    if heads % groups or width % 4:
        raise ModelError(f"{place}: {heads} heads of {width} in {groups} groups are no GLM-4-Voice; fetch it again")
    return Numbers(
        vocab_size=facts["padded_vocab_size"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["ffn_hidden_size"],
        num_hidden_layers=facts["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        rms_norm_eps=eps,
        rope_theta=ROPE_BASE * ratio,
    )


def read_config(folder: Path) -> GlmConfig:
    """transformers' configuration of the ChatGLM in `folder`. Raises ModelError as `read_numbers`, and where
    transformers is not installed."""
    numbers = asdict(read_numbers(folder))
    theta = numbers.pop("rope_theta")
    return glm_classes()[0](
        **numbers,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5},
        pad_token_id=None,
        tie_word_embeddings=False,
    )


def glm_classes() -> tuple[type[GlmConfig], type[GlmForCausalLM]]:
    """transformers' GLM. Raises ModelError where transformers is not installed."""
    try:
        from transformers import GlmConfig, GlmForCausalLM
    except ImportError as error:
        raise ModelError(f"a Thinker runs on transformers ({error}); run: pip install transformers") from None
    return GlmConfig, GlmForCausalLM


def empty_glm(config: GlmConfig) -> GlmForCausalLM:
    """The network of `config` without storage, frozen and in eval mode; only what is computed has values."""
    import torch

    with torch.device("meta"):
        model = glm_classes()[1](config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.requires_grad_(False).eval()


def load_glm(folder: Path, *, device: str = "cpu", dtype: str = "bfloat16") -> GlmForCausalLM:
    """The model of `folder`, frozen. dtype: "bfloat16" or "float32".

    Raises ModelError when a file is missing, cut off, of another model, no safetensors or outside of `folder`.
    """
    import torch

    config, shards = read_config(folder), _shards(folder)
    _check(folder, config, shards)
    model, kind = empty_glm(config), getattr(torch, dtype)
    for shard in sorted(set(shards.values())):
        part = {
            own: tensor.to(device=device, dtype=kind)
            for name, stored in _tensors(folder / shard)
            for own, tensor in renamed(name, stored, config)
        }
        model.load_state_dict(part, strict=False, assign=True)
    model.model.rotary_emb.to(device)
    return model.requires_grad_(False)


def named_weights(folder: Path, numbers: Numbers) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the ChatGLM in `folder` by its name in transformers' GLM, in the type that it is stored in, a
    view of its mapped file; needs no transformers. Raises ModelError as `load_glm`, before the first one comes."""
    shards = _shards(folder)
    _check(folder, numbers, shards)
    for shard in sorted(set(shards.values())):
        for name, stored in _tensors(folder / shard):
            yield from renamed(name, stored, numbers)


def renamed(name: str, stored: torch.Tensor, config: GlmConfig | Numbers) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in transformers' GLM, tensor) of one ChatGLM tensor; the rows of query, key and value come apart, as
    views."""
    if name == DROPPED:
        return
    own = _own_name(name)
    if ".self_attention.query_key_value." not in name:
        yield own, stored
        return
    queries, others = _rows(config)
    for part, rows in zip("qkv", stored.split([queries, others, others]), strict=True):
        yield own.replace(".query_key_value.", f".{part}_proj."), rows


def _rows(config: GlmConfig | Numbers) -> tuple[int, int]:
    """Rows of the queries, and of the keys (as many are the values'), in query_key_value."""
    assert config.head_dim and config.num_key_value_heads
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim


def _own_name(name: str) -> str:
    """ChatGLM's name in transformers' words."""
    for theirs, ours in (
        ("transformer.embedding.word_embeddings.", "model.embed_tokens."),
        ("transformer.encoder.final_layernorm.", "model.norm."),
        ("transformer.output_layer.", "lm_head."),
        ("transformer.encoder.layers.", "model.layers."),
        (".self_attention.dense.", ".self_attn.o_proj."),
        (".self_attention.", ".self_attn."),
        (".mlp.dense_h_to_4h.", ".mlp.gate_up_proj."),
        (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
    ):
        name = name.replace(theirs, ours)
    return name


def stored_shapes(config: GlmConfig | Numbers) -> dict[str, list[int]]:
    """{ChatGLM's name: shape} of every tensor that a checkpoint of `config` holds, but for DROPPED."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, others = _rows(config)
    rows = heads + 2 * others
    block = {
        "input_layernorm.weight": [hidden],
        "self_attention.query_key_value.weight": [rows, hidden],
        "self_attention.query_key_value.bias": [rows],
        "self_attention.dense.weight": [hidden, heads],
        "post_attention_layernorm.weight": [hidden],
        "mlp.dense_h_to_4h.weight": [2 * inner, hidden],
        "mlp.dense_4h_to_h.weight": [hidden, inner],
    }
    names = {"transformer.embedding.word_embeddings.weight": [config.vocab_size, hidden]}
    for at in range(config.num_hidden_layers):
        names |= {f"transformer.encoder.layers.{at}.{name}": shape for name, shape in block.items()}
    names["transformer.encoder.final_layernorm.weight"] = [hidden]
    names["transformer.output_layer.weight"] = [config.vocab_size, hidden]
    return names


def _shards(folder: Path) -> dict[str, str]:
    """{tensor: file in `folder`}, as the index says. Raises ModelError for a file that is not one of the folder's."""
    place = folder / INDEX
    shards = _json(place).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise ModelError(f"{place} has no weight_map of tensors and files; fetch it again")
    for file in sorted(set(shards.values())):
        if file != Path(file).name or "\\" in file or file in (".", ".."):
            raise ModelError(f"{place} is refused: it names {file!r}, which is not in its own folder; fetch it again")
        if not file.endswith(".safetensors"):
            raise ModelError(f"{place} is refused: {file!r} is no safetensors file and could run code; fetch it again")
        if not (folder / file).is_file():
            raise ModelError(f"{folder / file} is missing, {place.name} names it; fetch the weights again")
    return shards


def _check(folder: Path, config: GlmConfig | Numbers, shards: Mapping[str, str]) -> None:
    """Raises ModelError, before anything is loaded, unless the shards hold the tensors of `config` and no others."""
    wanted, found = stored_shapes(config), dict[str, tuple[str, list[int]]]()
    for file in sorted(set(shards.values())):
        with _opened(folder / file) as opened:
            found |= {name: (file, opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    found.pop(DROPPED, None)
    for name, shape in wanted.items():
        if name not in found:
            raise ModelError(f"{folder} holds no GLM-4-Voice: {name} is missing; fetch the weights again")
        file, there = found[name]
        if there != shape:
            raise ModelError(f"{folder / file} is of another model: {name} is {there}, not {shape}; fetch it again")
        if shards.get(name) != file:
            raise ModelError(
                f"{folder / INDEX} says that {name} is in {shards.get(name)}, it is in {file}; fetch again"
            )
    extra = sorted(found.keys() - wanted.keys())
    if extra:
        raise ModelError(f"{folder / found[extra[0]][0]} is of another model: {extra[0]} is unknown; fetch it again")


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor, each a view of the mapped file."""
    with _opened(path) as opened:
        for name in opened.keys():  # noqa: SIM118
            yield name, opened.get_tensor(name)


def _opened(path: Path) -> Any:
    """The safetensors file. Raises ModelError when it is cut off or none."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error}); fetch it again") from None


def _json(place: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError when there is none."""
    try:
        content = json.loads(place.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{place} is missing; fetch the weights again") from None
    except ValueError as error:
        raise ModelError(f"{place} is damaged ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{place} is damaged (no object); fetch it again")
    return content
