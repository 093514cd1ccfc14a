"""benchmarks/train.py where there is nothing but torch, numpy and safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bare import bare_run
from torch.nn.attention.flex_attention import BlockMask

from benchmarks.train_attention import NAMES, context_of
from models.actor import Actor
from models.actor_config import actor_config
from models.attention import Dense

CODE = """
import json
from benchmarks.train_loader import measure
from benchmarks.train_step import once

step = once(setting="2x3", checkpointing=True, preset="tiny", runs=1, any_length=False, compile=False)
print(json.dumps({"step": step, "loader": measure(1, 40)}))
"""


def test_it_runs_on_a_bare_machine(tmp_path: Path) -> None:
    done = bare_run(tmp_path, CODE)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [row["reader"] for row in found["loader"]] == ["ours, 2 workers", "ours, in process"]
    assert all(row["ratio"] == "webdataset is not installed" for row in found["loader"])
    assert found["step"]["TFLOP/s"]["median"] > 0
    # the second forward of checkpointing; in two chunks no head is widened
    assert found["step"]["computed / MFU's"] == pytest.approx(4 / 3)


@pytest.mark.parametrize(("chunks", "widened"), [(31, False), (33, True)])
def test_what_is_compared_is_sparse_and_dense(chunks: int, widened: bool) -> None:
    """In heads as wide as training has them at that length."""
    actor = Actor(actor_config("tiny", 8))
    like = torch.zeros(2, (1 + chunks) * 64, 256)
    found = {name: context_of(actor, chunks, like, flex) for name, flex in NAMES.items()}
    assert isinstance(found["sparse"].mask, BlockMask) and isinstance(found["dense"].mask, Dense)
    assert found["sparse"].mask.seq_lengths == found["dense"].mask.allowed.shape
    assert all((context.clamped is not None) == widened for context in found.values())
