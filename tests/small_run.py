"""A small training on fixed data, with checkpoints: what a trainer does, less its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.actor import Actor, Speech
from models.actor_config import ActorConfig
from training.checkpoint import Checkpoints, tensors_of
from training.checkpoint_meta import Identity, Progress
from training.ema import Ema
from training.parallel import prepare
from training.recipe import as_toml, load_recipe

# channels = 1: a head with a bias of one number, of which a second rank holds nothing
CONFIG = ActorConfig("tiny", hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=48, states=24, channels=1)  # fmt: skip
CODECS = {"video": "dct3d 0123456789abcdef", "speech": "fsq_mel 1", "text": "whisper_bpe 2"}
IDENTITY = Identity(CONFIG, CODECS, "bundled 36f7")
RECIPE = as_toml(load_recipe("tiny"))


class Run:
    """The training, from random weights of `seed`, in float32 on the CPU."""

    def __init__(self, run: Path, seed: int = 0, identity: Identity = IDENTITY, keep: int = 3) -> None:
        torch.manual_seed(seed)
        self.actor = Actor(CONFIG)
        self.actor.init_weights(seed)
        self.step, self.optimizer, self.ema = 0, self._adam(), Ema(self.actor, 0.9)
        self.checkpoints = Checkpoints(run, identity, RECIPE, keep, {"grid": [2, 2]})

    def shard(self, where: Any) -> None:
        prepare(self.actor, load_recipe("tiny"), where)
        self.optimizer, self.ema = self._adam(), Ema(self.actor, 0.9)

    def _adam(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.actor.parameters(), lr=1e-2, weight_decay=0.1)

    def steps(self, count: int) -> list[float]:
        return [self.one() for _ in range(count)]

    def one(self) -> float:
        rng = torch.Generator().manual_seed(self.step)
        noisy, reference = torch.randn(1, 2, 1, 2, 2, generator=rng), torch.randn(1, 1, 2, 2, generator=rng)
        speech = Speech(
            torch.randn(1, 8, 24, generator=rng), torch.zeros(1, 8, dtype=torch.int64), torch.arange(8.0)[None]
        )
        loss = (self.actor(noisy, torch.full((1, 2), 0.5), reference, speech) - noisy).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.step)
        return loss.item()

    def save(self) -> Path:
        return self.checkpoints.save(self.progress, self.actor, self.optimizer, self.ema.average)

    def saved(self) -> Path:
        self.save()
        path = self.checkpoints.wait()
        assert path is not None
        return path

    def load(self, path: Path) -> Progress:
        progress = self.checkpoints.load(path, self.actor, self.optimizer, self.ema.average)
        self.step = progress.step
        return progress

    @property
    def progress(self) -> Progress:
        return Progress(self.step, self.step // 5, self.step % 5)

    def tensors(self) -> dict[str, Tensor]:
        found = tensors_of(self.actor, self.optimizer, self.ema.average)
        return {name: value.clone() for name, value in found.items()}
