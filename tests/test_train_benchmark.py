"""benchmarks/train.py where there is nothing but torch, numpy and safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bare import bare_run

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
