"""One setting of a whole training step, with the trainer's own parts: time, MFU, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.train_spread import seconds, spread
from models.actor import Speech
from models.actor_config import ActorConfig, actor_config
from models.actor_facts import Setup, hardware_flops, memory, mfu, thinker_facts, train_flops
from models.clock import CHUNK_SPEECH_TOKENS, SEGMENT_SPEECH_TOKENS
from models.dialogue_layout import turn_of
from models.thinker import BUNDLED, GLM_4_VOICE
from training.ema import Ema
from training.objective import Inputs, loss_of
from training.optimizer import adamw, clip, gradient_norm
from training.parallel import World, build_actor, precision
from training.recipe import Recipe, load_recipe
from training.watch import card_of, memory_used

GRID = (8, 8)
WARM, TIMES = 2, 3
"""Steps before the first that is timed, and steps that are timed together."""


def speech(config: ActorConfig, batch: int, chunks: int, device: torch.device) -> Speech:
    """Random states of a turn whose text is half as long as its speech."""
    said = chunks * CHUNK_SPEECH_TOKENS
    turn = turn_of(said // 4, said)
    segments = torch.from_numpy(turn.segment).to(device).expand(batch, -1).contiguous()
    states = torch.randn(batch, len(turn), config.states, device=device)
    return Speech(states, segments, segments * SEGMENT_SPEECH_TOKENS)


def inputs_of(config: ActorConfig, batch: int, chunks: int, device: torch.device) -> Inputs:
    shape = (batch, chunks, config.channels, *GRID)
    clean, noise = torch.randn(2, *shape, device=device)
    levels = 1 - torch.rand(batch, chunks, device=device)
    reference = torch.randn(batch, config.channels, *GRID, device=device)
    counted = torch.ones(batch, chunks, dtype=torch.bool, device=device)
    return Inputs(clean, noise, levels, reference, counted, clean.numel(), speech(config, batch, chunks, device))


def updater(config: ActorConfig, recipe: Recipe, where: World) -> Callable[[Inputs], float]:
    """A step of the trainer in one process."""
    actor = build_actor(config, recipe, where, None)
    actor.init_weights(recipe.seed)
    optimizer, ema, made = adamw(actor, recipe, where.device), Ema(actor, recipe.ema), [0]

    def update(inputs: Inputs) -> float:
        with precision(recipe, where):
            loss = loss_of(actor, inputs)
        (loss.total / inputs.count).backward()
        norm = gradient_norm(actor.parameters())
        clip(actor.parameters(), norm, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        made[0] += 1
        ema.update(made[0])
        return norm.item()  # as the trainer, which looks at it in every step

    return update


def once(setting: str, checkpointing: bool, preset: str, runs: int, any_length: bool, compile: bool) -> dict[str, Any]:
    """Of "MICRO_BATCHxCHUNKS", in this process. any_length: blocks have seen other lengths first, as in training."""
    batch, chunks = map(int, setting.split("x"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = device.type == "cuda"
    config = actor_config(preset, thinker_facts(GLM_4_VOICE if half else BUNDLED).hidden)
    changes = {"preset": preset, "batch": batch, "micro_batch": batch, "checkpointing": checkpointing}
    changes |= {"compile": compile, "dtype": "bfloat16" if half else "float32"}
    recipe = load_recipe("pretrain", changes)
    update = updater(config, recipe, World(0, 1, device, False))
    if any_length:
        for other in (chunks - 1, chunks - 2):
            update(inputs_of(config, batch, max(1, other), device))
    inputs = inputs_of(config, batch, chunks, device)
    for _ in range(WARM):
        update(inputs)
    times = [seconds(lambda: update(inputs), device, TIMES) for _ in range(runs)]
    return {"setting": setting, "checkpointing": checkpointing, **_said(config, recipe, chunks, times, device)}


def _said(config: ActorConfig, recipe: Recipe, chunks: int, times: list[float], device: torch.device) -> dict[str, Any]:
    lengths, card = [chunks] * recipe.batch, card_of(device)
    flops = train_flops(config, lengths, GRID)
    computed = hardware_flops(config, lengths, GRID, recipe.checkpointing)
    found: dict[str, Any] = {"preset": recipe.preset, "s a step": spread(times)}
    found["video tokens/s"] = spread([len(lengths) * chunks * GRID[0] * GRID[1] / each for each in times])
    found["TFLOP/s"] = spread([flops / each / 1e12 for each in times])
    found["computed / MFU's"] = computed / flops
    found["MFU %"] = spread([100 * mfu(flops, each, card) for each in times]) if card else "not a known GPU"
    if device.type == "cuda":
        setup = Setup(1, 1, recipe.batch, chunks, GRID, 1, True, recipe.checkpointing, recipe.ema > 0)
        told = memory(config, setup)
        found |= {"peak": memory_used(device) / 1e9, "peak foretold": (told.total - told.reserve) / 1e9}
    return found
