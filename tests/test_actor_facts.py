"""What an Actor costs, said from its config, against what the Actor itself has and does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.actor import HEARD, LEVEL_WAVES, Actor, Speech
from models.actor_config import ATTENTIONS, HISTORIES, PRESETS, REFERENCES, ActorConfig, actor_config
from models.actor_facts import (
    CARDS,
    LEVEL_NUMBERS,
    Setup,
    block_parameters,
    forward_flops,
    hardware_flops,
    heard_pairs,
    memory,
    mfu,
    parameters,
    saved_bytes,
    seen_pairs,
    states_of,
    thinker_facts,
    thinker_flops,
    tokens_of,
    train_flops,
)
from models.actor_facts import HEARD as HEARD_FACT
from models.attention import HISTORY, REFERENCE, REFERENCE_CHUNK, VIDEO, Roles, roles, visible
from models.bundled_thinker import HIDDEN, weights
from models.clock import CHUNK_SPEECH_TOKENS
from models.dialogue_layout import turn_of
from models.thinker import BUNDLED, GLM_4_VOICE

STATES = 48


def small(**changes: Any) -> ActorConfig:
    """A config of which no two numbers are alike, so that no formula is right by chance."""
    body: dict[str, Any] = {
        "hidden": 40,
        "layers": 2,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 16,
        "intermediate": 56,
        "window": 3,
    }
    return dataclasses.replace(actor_config("tiny", STATES), **{**body, **changes})


def speech(config: ActorConfig, batch: int, chunks: int) -> Speech:
    """States of a turn whose text is as long as its speech."""
    turn = turn_of(10_000, chunks * CHUNK_SPEECH_TOKENS)
    segments = torch.from_numpy(turn.segment).expand(batch, -1).contiguous()
    return Speech(torch.randn(batch, len(turn), config.states), segments, segments * 26.0)


def inputs(config: ActorConfig, batch: int, chunks: int, grid: tuple[int, int]) -> tuple:
    noisy = torch.randn(batch, chunks, config.channels, *grid)
    clean = noisy.clone() if config.history == "teacher_forcing" else None
    reference = torch.randn(batch, config.channels, *grid)
    return noisy, torch.rand(batch, chunks), reference, speech(config, batch, chunks), clean


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_actor(preset: str) -> None:
    config = actor_config(preset, 4096)
    with torch.device("meta"):
        actor = Actor(config)
    assert parameters(config) == sum(value.numel() for value in actor.parameters())
    assert block_parameters(config) == sum(value.numel() for value in actor.blocks[0].parameters())


def test_parameters_of_an_odd_shape_too() -> None:
    config = small()
    assert parameters(config) == sum(value.numel() for value in Actor(config).parameters())


def test_the_presets_are_of_the_sizes_that_they_are_named_for() -> None:
    sizes = {name: parameters(actor_config(name, 4096)) / 1e9 for name in PRESETS}
    assert sizes["small"] == pytest.approx(0.1, rel=0.2)
    assert sizes["base"] == pytest.approx(1.3, rel=0.05)
    assert sizes["9b"] == pytest.approx(8.16 + 1.43, rel=0.01)


def test_constants_are_the_actors() -> None:
    assert (HEARD_FACT, LEVEL_NUMBERS) == (HEARD, 2 * LEVEL_WAVES)


def sequence(config: ActorConfig, chunks: int, places: int) -> Roles:
    numbers = torch.arange(chunks)
    copies = [HISTORY, VIDEO] if config.history == "teacher_forcing" else [VIDEO]
    chunk = torch.cat([torch.tensor([REFERENCE_CHUNK]), *[numbers] * len(copies)])
    kind = torch.cat([torch.tensor([REFERENCE]), *[torch.full_like(numbers, kind) for kind in copies]])
    return roles(chunk, kind, places)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("chunks", [1, 3, 7])
def test_pairs_are_those_that_the_mask_lets_through(history: str, reference: str, attention: str, chunks: int) -> None:
    config = small(history=history, reference=reference, attention=attention)
    with torch.device("meta"):
        rule = Actor(config).rule
    tokens = sequence(config, chunks, 6)
    assert seen_pairs(config, chunks, (2, 3)) == int(visible(rule, tokens[:, None], tokens[None]).sum())
    assert tokens_of(config, chunks, (2, 3)) == len(tokens.chunk)


@pytest.mark.parametrize("chunks", [1, 6, 7, 13, 20])
def test_states_and_who_hears_them_are_those_of_the_layout(chunks: int) -> None:
    from models.actor import heard_by

    config = small()
    heard = speech(config, 1, chunks)
    _, mask = heard_by(torch.arange(chunks), heard.segments)
    assert mask.live is not None
    assert bool(mask.live.all())
    long = turn_of(states_of(chunks) // 3, chunks * CHUNK_SPEECH_TOKENS)  # text as long as speech, and not beyond it
    assert states_of(chunks) == len(long)
    segments = torch.from_numpy(long.segment)[None]
    assert heard_pairs(config, chunks, (1, 2)) == 2 * int(heard_by(torch.arange(chunks), segments)[1].allowed.sum())


def counted(config: ActorConfig, chunks: int, grid: tuple[int, int], *, backward: bool = False) -> tuple[int, int]:
    """(all matrix FLOPs, those of attention) of one sample, as torch counts them."""
    actor = Actor(config)
    actor.init_weights()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = actor(*inputs(config, 1, chunks, grid))
        if backward:
            found.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), sum(value for op, value in counts.items() if "bmm" in str(op))


@pytest.mark.parametrize("history", HISTORIES)
def test_flops_outside_attention_are_those_that_torch_counts(history: str) -> None:
    config, grid, chunks = small(history=history), (2, 3), 7
    turn = turn_of(10_000, chunks * CHUNK_SPEECH_TOKENS)
    extra = len(turn) - states_of(chunks)  # the last segment's text, which runs ahead of its speech
    whole, attention = counted(config, chunks, grid)
    own = forward_flops(config, chunks, grid) - attended(config, chunks, grid)
    assert own + config.layers * 4 * extra * STATES * config.kv_heads * config.head_dim == whole - attention


def attended(config: ActorConfig, chunks: int, grid: tuple[int, int], wide: int = 0) -> int:
    pairs = seen_pairs(config, chunks, grid) * (2 * config.head_dim + wide) + heard_pairs(config, chunks, grid) * (
        2 * config.head_dim
    )
    return 2 * config.layers * config.heads * pairs


@pytest.mark.parametrize("window", [4, 100])
def test_attention_is_counted_as_torch_would_if_it_left_out_what_is_masked(window: int) -> None:
    """Heads are widened only where a chunk is further from the reference than the window."""
    config, grid, chunks = small(window=window, attention="chunk"), (2, 3), 5
    tokens = tokens_of(config, chunks, grid)
    _, attention = counted(config, chunks, grid)
    more, heads = config.rotary * (chunks > window), config.heads
    wide = config.head_dim + more
    dense = tokens**2 * 2 * wide + 6 * chunks * HEARD * 2 * config.head_dim  # v is padded to q's width
    assert attention == 2 * config.layers * heads * dense
    added = 2 * config.layers * heads * seen_pairs(config, chunks, grid) * more
    assert forward_flops(config, chunks, grid, widened=True) - forward_flops(config, chunks, grid) == added


def test_training_is_three_times_forward_and_checkpointing_a_fourth_that_mfu_does_not_count() -> None:
    config, lengths = actor_config("base", 4096), [15, 17, 62]
    forward = sum(forward_flops(config, each, (8, 8)) for each in lengths)
    wide = sum(forward_flops(config, each, (8, 8), widened=True) for each in lengths)
    assert train_flops(config, lengths, (8, 8)) == 3 * forward
    assert hardware_flops(config, lengths, (8, 8), checkpointing=False) == 3 * wide
    assert hardware_flops(config, lengths, (8, 8), checkpointing=True) == 4 * wide


def test_torch_counts_two_backward_for_one_forward() -> None:
    config = small()
    forward, both = (counted(config, 5, (2, 2), backward=backward)[0] for backward in (False, True))
    first = 2 * config.hidden * (24 * config.channels + 6 * LEVEL_NUMBERS)  # what comes in needs no gradient
    assert both == 3 * forward - first


def test_flops_are_about_six_a_parameter_and_token() -> None:
    config, chunks = actor_config("9b", 4096), 17
    rough = 6 * parameters(config) * tokens_of(config, chunks, (8, 8))
    assert train_flops(config, [chunks], (8, 8)) == pytest.approx(rough, rel=0.1)


def test_thinkers() -> None:
    glm, bundled = thinker_facts(GLM_4_VOICE), thinker_facts(BUNDLED)
    assert (bundled.parameters, bundled.hidden) == (sum(value.size for value in weights().values()), HIDDEN)
    assert glm.parameters == pytest.approx(9.54e9, rel=1e-3)
    assert glm.computing == pytest.approx(8.16e9, rel=1e-3)
    assert thinker_flops(GLM_4_VOICE, 100) == 200 * glm.computing


def test_mfu_is_a_share_of_what_the_cards_state() -> None:
    assert mfu(989e12 * 8, 2.0, CARDS["h200"], 8) == pytest.approx(0.5)


def saved(config: ActorConfig, batch: int, chunks: int, grid: tuple[int, int], checkpointing: bool) -> int:
    """Bytes of the distinct tensors that autograd keeps, weights apart."""
    actor = Actor(config)
    actor.init_weights()
    actor.flex, actor.checkpointing = False, checkpointing
    own = {value.untyped_storage().data_ptr() for value in actor.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        actor(*inputs(config, batch, chunks, grid))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("batch", "chunks", "grid"), [(2, 6, (4, 4)), (1, 9, (2, 3)), (2, 3, (8, 8))])
def test_activations_are_what_autograd_keeps(
    batch: int, chunks: int, grid: tuple[int, int], checkpointing: bool
) -> None:
    """Within 4%: left out are what norms keep of each row and softmax's sums."""
    config = dataclasses.replace(actor_config("tiny", 192), layers=2)
    measured = saved(config, batch, chunks, grid, checkpointing)
    said = saved_bytes(config, batch, chunks, grid, checkpointing=checkpointing, fused=False)
    assert said == pytest.approx(measured, rel=0.04)


def test_activations_under_teacher_forcing() -> None:
    config = small(history="teacher_forcing")
    measured = saved(config, 2, 5, (4, 4), checkpointing=False)
    assert saved_bytes(config, 2, 5, (4, 4), fused=False) == pytest.approx(measured, rel=0.06)


SETUP = Setup(gpus=256, replicas=1, micro_batch=2, chunks=62, grid=(8, 8), checkpointing=True, thinker=GLM_4_VOICE)


def test_memory_of_weights_is_split_over_a_group() -> None:
    config = actor_config("9b", 4096)
    split, copies = memory(config, SETUP), memory(config, dataclasses.replace(SETUP, replicas=32))
    assert split.weights == -(-4 * parameters(config) // 256)
    assert copies.weights == -(-4 * parameters(config) // 8)
    assert (split.gradients, split.moments, split.average) == (split.weights, 2 * split.weights, split.weights)
    assert split.activations == copies.activations
    assert split.thinker == 2 * thinker_facts(GLM_4_VOICE).parameters
    assert split.total == sum(vars(split).values())


def test_several_micro_batches_hold_whole_gradients_and_one_gpu_no_more_than_before() -> None:
    config = actor_config("base", 4096)
    assert memory(config, dataclasses.replace(SETUP, parts=2)).gradients == 4 * parameters(config)
    alone = dataclasses.replace(SETUP, gpus=1, thinker="", ema=False)
    one, two = (memory(config, dataclasses.replace(alone, parts=parts)) for parts in (1, 2))
    assert one == two
    assert (one.average, one.thinker) == (0, 0)


def test_checkpointing_keeps_less() -> None:
    config = actor_config("9b", 4096)
    kept, again = (memory(config, dataclasses.replace(SETUP, checkpointing=c)) for c in (False, True))
    assert again.activations < kept.activations / 10
