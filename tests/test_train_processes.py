"""`xstreamer train` as processes: Ctrl-C, torchrun, and which of several speaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import call, start
from shards_made import make_shards
from train_runs import asked, damage, steps_of

from training.plan import Plan


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), samples=8, val=2, chunks=(4, 5))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def started(process: subprocess.Popen[str], run: Path) -> None:
    """Waits for the second step of a run."""
    while not (run / "log.jsonl").is_file() or len(steps_of(run)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("said", [signal.SIGINT, signal.SIGTERM])  # Ctrl-C, or a queue that wants its machine back
def test_a_signal_saves_and_the_run_goes_on(said: signal.Signals, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    process = start(*asked(shards, run, "--steps", "100000", sample_every=0, validate_every=0, save_every=0))
    started(process, run)
    process.send_signal(said)
    code, out, err = ended(process)
    assert code == 130 and "Traceback" not in err
    [saved] = sorted((run / "checkpoints").iterdir())
    last = int(saved.name.removeprefix("step-"))
    assert steps_of(run)[-1]["step"] == last >= 2
    assert str(saved) in out and f"xstreamer train -o {run} --resume" in out
    told = call("train", "-o", run, "--resume", "--steps", str(last + 1), "--device", "cpu", "--quiet")
    assert told.code == 0 and [row["step"] for row in steps_of(run)] == list(range(1, last + 2))


# -- several processes ---------------------------------------------------------------------------------------


def torchrun(arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "pipelines.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=400, env=environment)


def test_two_processes_have_the_losses_of_one_and_one_voice(shards: Path, tmp_path: Path) -> None:
    assert call(*asked(shards, tmp_path / "one", "--steps", "4", sample_every=0, validate_every=0)).code == 0
    done = torchrun(asked(shards, tmp_path / "two", "--steps", "4", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4
    losses = [row["loss"] for row in steps_of(tmp_path / "one")]
    assert [row["loss"] for row in steps_of(tmp_path / "two")] == pytest.approx(losses, rel=1e-4)
    assert (tmp_path / "two" / "samples" / "step-00000004.mp4").is_file()


def test_an_error_of_another_process_is_told_with_its_rank(shards: Path, tmp_path: Path) -> None:
    """One damaged sample, none allowed, in the part of the second process."""
    broken = Path(shutil.copytree(shards, tmp_path / "shards"))
    plan = Plan(((4, 4),), (1.0,), 4, 16, 0)
    span = plan.lane(0, 3)[0]
    damage(broken, span.shard, span.first)
    done = torchrun(asked(broken, tmp_path / "r", "--steps", "4", sample_every=0, max_damaged=0.0))
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("xstreamer: ")]
    assert line.startswith("xstreamer: rank 1: ") and "damaged" in line


def test_fewer_samples_than_processes(tmp_path: Path) -> None:
    one = make_shards(tmp_path / "one", samples=1, chunks=(3,))
    done = torchrun(asked(one, tmp_path / "r", "--steps", "2", sample_every=0))
    lines = [line for line in done.stderr.splitlines() if line.startswith("xstreamer: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "1 samples an epoch are fewer than 2 ranks" in lines[0]
