"""Checkpoints of a run: exact on any number of ranks, whole or not there, safe to open, refused in one line."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import together as processes
from safetensors.torch import load_file, save_file
from small_run import CODECS, CONFIG, IDENTITY, RECIPE, Run
from torch import Tensor

from manifests.errors import DatasetError, ModelError, UsageError, XstreamerError
from training.checkpoint import read_tensors
from training.checkpoint_meta import (
    FOLDER,
    META,
    Progress,
    folder_of,
    latest,
    newest,
    read_meta,
    whole_ones,
)
from training.ema import Ema
from training.parallel import whole, world
from training.tensor_files import TABLE, Writer, read_table


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def two(run: Path) -> Path:
    """A run with checkpoints after steps 1 and 2; its folder."""
    training = Run(run)
    for _ in range(2):
        training.one()
        training.saved()
    return run


class TestResume:
    def test_it_goes_on_exactly(self, run: Path) -> None:
        first = Run(run)
        first.steps(3)
        path, kept, drawn = first.saved(), first.tensors(), torch.rand(3)
        rest = first.steps(3)
        second = Run(run, seed=1)
        assert second.load(path) == Progress(3, 0, 3)
        assert torch.equal(torch.rand(3), drawn)
        assert same(second.tensors(), kept) and sum(name.startswith("optimizer.") for name in kept) > 50
        assert second.steps(3) == rest

    def test_before_the_first_step(self, run: Path) -> None:
        first, second = Run(run), Run(run, seed=1)
        second.load(first.saved())
        assert second.steps(2) == first.steps(2)

    def test_without_an_average(self, two: Path) -> None:
        training = Run(two, seed=1)
        training.ema = Ema(training.actor, 0)
        assert training.load(folder_of(two, 2)).step == 2

    def test_later_checkpoints_are_set_aside(self, two: Path) -> None:
        training = Run(two)
        training.load(folder_of(two, 1))
        assert latest(two) == folder_of(two, 1)
        assert (two / FOLDER / "step-00000002.aside" / META).is_file()
        training.one()
        training.saved()
        assert whole_ones(two) == [folder_of(two, 1), folder_of(two, 2)]

    def test_another_run_is_left_as_it_is(self, two: Path, tmp_path: Path) -> None:
        Run(tmp_path / "other").load(folder_of(two, 1))
        assert len(whole_ones(two)) == 2


class TestSave:
    def test_training_goes_on_meanwhile(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, changed, sync = threading.Event(), threading.Event(), os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: (begun.set(), changed.wait(60), sync(handle))[2])
        training = Run(run)
        training.one()
        kept = training.tensors()
        path = training.save()
        training.steps(2)
        assert begun.wait(60) and not path.exists() and path.with_name(path.name + ".part").is_dir()
        changed.set()
        assert training.checkpoints.wait() == path and not path.with_name(path.name + ".part").exists()
        again = Run(run, seed=1)
        again.load(path)
        assert same(again.tensors(), kept)

    def test_the_last_ones_are_kept(self, run: Path) -> None:
        training = Run(run, keep=2)
        for _ in range(4):
            training.one()
            training.save()
        training.checkpoints.wait()
        assert sorted(path.name for path in (run / FOLDER).iterdir()) == ["step-00000003", "step-00000004"]

    def test_what_a_killed_run_left_is_removed(self, two: Path) -> None:
        (two / FOLDER / "step-00000003.part").mkdir()
        assert latest(two) == folder_of(two, 2)
        Run(two)
        assert sorted(path.name for path in (two / FOLDER).iterdir()) == ["step-00000001", "step-00000002"]

    def test_what_is_there_is_never_written_over(self, two: Path) -> None:
        training = Run(two, seed=1)
        training.one()
        training.save()
        with pytest.raises(DatasetError, match="step-00000001 is there already; go on from it with --resume"):
            training.checkpoints.wait()
        assert sorted(path.name for path in (two / FOLDER).iterdir()) == ["step-00000001", "step-00000002"]

    def test_it_can_be_read_by_people(self, two: Path) -> None:
        content = json.loads((folder_of(two, 2) / META).read_text())
        assert (content["step"], content["epoch"], content["epoch_step"], content["preset"]) == (2, 0, 2, "tiny")
        assert "\n".join(content["recipe"]) + "\n" == RECIPE == read_meta(folder_of(two, 2)).recipe
        assert content["versions"]["torch"] == torch.__version__
        assert content["facts"] == {"grid": [2, 2]}

    def test_torchs_own_tools_read_it(self, two: Path, tmp_path: Path) -> None:
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        dcp_to_torch_save(folder_of(two, 2), tmp_path / "all.pt")
        found = torch.load(tmp_path / "all.pt", weights_only=True)
        assert found["model.head.weight"].shape == (1, 32)

    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
    def test_the_thread_that_writes_asks_no_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it writes was copied before; it would open the first GPU of the machine, whichever is its rank's."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: pytest.fail("asked for a stream"))
        dcp.save({"a": torch.arange(3.0)}, storage_writer=Writer(tmp_path / "x", lambda: None), no_dist=True)
        found = {"a": torch.zeros(3)}
        read_tensors(tmp_path / "x", read_table(tmp_path / "x"), found)
        assert torch.equal(found["a"], torch.arange(3.0))

    def test_one_killed_while_it_is_written(self, two: Path) -> None:
        """kill -9 while the third checkpoint's tensors are being synced to the disk."""
        code = (
            "import os, sys, time\n"
            f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
            "from pathlib import Path\n"
            "import test_train_checkpoint as t\n"
            f"training = t.Run(Path({str(two)!r}))\n"
            f"training.load(t.latest(Path({str(two)!r})))\n"
            "training.one()\n"
            "os.fsync = lambda handle: (print('syncing', flush=True), time.sleep(600))\n"
            "training.saved()\n"
        )
        job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            assert job.stdout and job.stdout.readline() == "syncing\n"
        finally:
            job.send_signal(signal.SIGKILL)
            job.wait()
        part = two / FOLDER / "step-00000003.part"
        assert any(path.stat().st_size > 10_000 for path in part.glob("*.distcp"))
        assert latest(two) == folder_of(two, 2)
        training = Run(two, seed=1)
        assert training.load(folder_of(two, 2)).step == 2 and not part.exists()

    def test_a_full_disk(self, tmp_path: Path) -> None:
        place = tmp_path / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a small disk needs rights")
        try:
            training = Run(place / "run", keep=100)
            with pytest.raises(DatasetError, match="no space left under .*; free some and run") as caught:
                for _ in range(100):
                    training.one()
                    training.saved()
            written = whole_ones(place / "run")
            assert 1 <= len(written) < 20 and f"was not written, the last one is {written[-1]}" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert Run(place / "run", seed=1).load(written[-1]).step == len(written)
            assert not list((place / "run" / FOLDER).glob("*.part"))
        finally:
            subprocess.run(["umount", str(place)], check=True)

    def test_the_next_save_tells_of_an_error(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(handle: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        training = Run(run)
        training.one()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            training.save()
            training.one()
            with pytest.raises(DatasetError, match="step-00000001 was not written, there is none yet: .*Input/output"):
                training.save()
        assert whole_ones(run) == []
        assert training.saved() == folder_of(run, 2)


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes a JSON file of a checkpoint."""

    def spoil(path: Path) -> None:
        content = json.loads((path / name).read_text())
        change(content)
        (path / name).write_text(json.dumps(content))

    return spoil


def first_piece(content: dict[str, Any]) -> list[Any]:
    return content["ema.head.bias"]["pieces"][0]


def cut(path: Path) -> None:
    file = next(path.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-200])


def flip(path: Path) -> None:
    """One bit of one weight."""
    piece = json.loads((path / TABLE).read_text())["model.blocks.0.mlp.down_proj.weight"]["pieces"][0]
    content = bytearray((path / piece[2]).read_bytes())
    content[piece[3] + piece[4] // 2] ^= 1
    (path / piece[2]).write_bytes(content)


DAMAGE = {
    "meta cut off": (lambda path: (path / META).write_text((path / META).read_text()[:300]), "meta.json is no whole one"),
    "no meta": (lambda path: (path / META).unlink(), "meta.json is missing"),
    "meta is a list": (lambda path: (path / META).write_text("[]"), "meta.json is no whole one"),
    "meta without a step": (edit(META, lambda c: c.pop("step")), "meta.json is no whole one"),
    "a step below zero": (edit(META, lambda c: c.update(step=-1)), "step is -1"),
    "a step that is no number": (edit(META, lambda c: c.update(step="3")), "step is '3'"),
    "an actor of no size": (edit(META, lambda c: c["actor"].update(hidden=0)), "hidden must be a whole number"),
    "a recipe that is none": (edit(META, lambda c: c.update(recipe=["lr ="])), "meta.json is no whole one"),
    "no tensors": (lambda path: next(path.glob("*.distcp")).unlink(), "__0_0.distcp is missing"),
    "tensors cut off": (cut, "__0_0.distcp is cut off"),
    "a bit flipped": (flip, "__0_0.distcp is damaged (ValueError: its checksum is wrong)"),
    "no table": (lambda path: (path / TABLE).unlink(), "tensors.json is missing"),
    "a table that is none": (lambda path: (path / TABLE).write_text("{"), "tensors.json is damaged"),
    "a table of numbers": (lambda path: (path / TABLE).write_text("[1]"), "tensors.json is damaged"),
    "a file elsewhere": (
        edit(TABLE, lambda c: first_piece(c).__setitem__(2, "../step-00000001/__0_0.distcp")), "no .distcp file of its own folder",
    ),
    "a negative place": (edit(TABLE, lambda c: first_piece(c).__setitem__(3, -5)), "no bytes of a file"),
    "a hole": (edit(TABLE, lambda c: c["model.norm.weight"].update(pieces=[])), "the pieces are not all of [32]"),
    "another piece": (
        edit(TABLE, lambda c: c["model.norm.weight"].update(pieces=[[[0], [32], *first_piece(c)[2:]]])), "no torch.float32 of [32]",
    ),
    "an odd type": (edit(TABLE, lambda c: c["model.norm.weight"].update(dtype="object")), "tensors.json is damaged"),
}  # fmt: skip
OTHER = {
    "another preset": (dataclasses.replace(IDENTITY, actor=dataclasses.replace(CONFIG, preset="small")), "its preset is tiny, this run's is small"),
    "other numbers": (dataclasses.replace(IDENTITY, actor=dataclasses.replace(CONFIG, layers=3)), "its layers is 2, this run's is 3"),
    "another switch": (dataclasses.replace(IDENTITY, actor=dataclasses.replace(CONFIG, reference="none")), "its reference is global"),
    "another codec": (dataclasses.replace(IDENTITY, codecs=CODECS | {"video": "ltx 5"}), "its video codec is dct3d 0123456789abcdef, this run's is ltx 5"),
    "another thinker": (dataclasses.replace(IDENTITY, thinker="glm-4-voice-9b 7"), "its thinker is bundled 36f7"),
}  # fmt: skip
VERSIONS = {
    "a later format": (edit(META, lambda c: c.update(format_version=2)), "has format version 2, this xstreamer reads 1"),
    "another clock": (edit(META, lambda c: c["clock"].update(fps=30)), "goes by the clock"),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = Run(tmp_path_factory.mktemp("written") / "run")
    for _ in range(2):
        training.one()
        training.saved()
    return training.checkpoints.run


@pytest.fixture
def copied(written: Path, run: Path) -> Path:
    shutil.copytree(written, run)
    return run


class TestRefused:
    @pytest.mark.parametrize("what", DAMAGE)
    def test_damage_in_one_line_that_names_the_one_before(self, what: str, copied: Path) -> None:
        spoil, message = DAMAGE[what]
        spoil(folder_of(copied, 2))
        assert latest(copied) == folder_of(copied, 2), "a damaged one is told of, not passed over"
        with pytest.raises(ModelError) as caught:
            Run(copied).load(folder_of(copied, 2))
        told = str(caught.value)
        assert told.startswith(f"checkpoint {folder_of(copied, 2)} is damaged: ") and message in told
        assert told.endswith(f"; go on from the whole one before it with --resume {folder_of(copied, 1)}")
        assert Run(copied).load(folder_of(copied, 1)).step == 1

    def test_a_damaged_one_before_is_not_named(self, copied: Path) -> None:
        for step in (1, 2):
            cut(folder_of(copied, step))
        with pytest.raises(ModelError, match="there is no whole one before it, train anew"):
            Run(copied).load(folder_of(copied, 2))

    @pytest.mark.parametrize("what", OTHER)
    def test_what_belongs_to_another_run(self, what: str, copied: Path) -> None:
        identity, message = OTHER[what]
        with pytest.raises(ModelError, match=message) as caught:
            Run(copied, identity=identity).load(folder_of(copied, 2))
        assert "resume with its own recipe" in str(caught.value)
        assert len(whole_ones(copied)) == 2

    @pytest.mark.parametrize("what", VERSIONS)
    def test_what_this_version_does_not_know(self, what: str, copied: Path) -> None:
        spoil, message = VERSIONS[what]
        spoil(folder_of(copied, 2))
        with pytest.raises(ModelError, match=message):
            Run(copied).load(folder_of(copied, 2))

    def test_other_tensors(self, copied: Path) -> None:
        edit(TABLE, lambda c: c.pop("model.norm.weight"))(folder_of(copied, 2))
        with pytest.raises(ModelError, match="has no model.norm.weight; train on with the recipe that wrote it"):
            Run(copied).load(folder_of(copied, 2))
        training = Run(copied)
        training.optimizer = torch.optim.SGD(training.actor.parameters(), momentum=0.9)
        training.one()
        with pytest.raises(ModelError, match="has no optimizer.reference_embedding.momentum_buffer"):
            training.load(folder_of(copied, 1))

    def test_no_checkpoint_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no checkpoint; name a run's folder"):
            newest(tmp_path)
        assert latest(tmp_path) is None


@dataclass(frozen=True)
class Two:
    """What two ranks did together, from the second step of one rank, `first`, on. losses: of steps 3 and 4, by rank;
    failed: what each said when one's disk failed; refused: and when a checkpoint was damaged. loaded, saved: every
    tensor when they had loaded the first one's and when they saved their own."""

    first: Run
    run: Path
    loaded: dict[str, Tensor]
    saved: dict[str, Tensor]
    losses: list[list[float]]
    failed: list[str]
    refused: list[str]


def of_two_ranks(run: Path) -> dict[str, Any]:
    """Goes on for two steps and saves; then rank 1's disk fails; then a tensor of the last checkpoint is damaged."""

    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    said = dict[str, Any]()
    with world("cpu") as where:
        training = Run(run, seed=10 + where.rank)
        training.shard(where)
        training.load(newest(run))
        gathered(training, run.parent / "loaded.safetensors")
        said["losses"] = training.steps(2)
        training.save()  # which talks in the background, while the ranks talk and train
        gathered(training, run.parent / "saved.safetensors")
        training.one()
        training.checkpoints.wait()
        sync = os.fsync
        os.fsync = broken if where.rank else sync
        said["failed"] = told(training.saved)
        os.fsync = sync
        if not where.rank:
            flip(folder_of(run, 4))
        dist.barrier()
        said["refused"] = told(lambda: training.load(newest(run)))
        dist.barrier()
        if not where.rank:
            flip(folder_of(run, 4))
    return said


def gathered(training: Run, path: Path) -> None:
    """Every tensor, whole, into a file, by rank 0."""
    found = {name: whole(value).contiguous() for name, value in training.tensors().items()}
    if not dist.get_rank():
        save_file(found, path)


def told(work: Callable[[], object]) -> str:
    """The error of `work`, "" without one."""
    try:
        work()
    except XstreamerError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Two:
    run = tmp_path_factory.mktemp("together") / "run"
    first = Run(run)
    first.steps(2)
    first.saved()
    said = processes(2, of_two_ranks, run)
    tensors = [load_file(run.parent / f"{name}.safetensors") for name in ("loaded", "saved")]
    return Two(first, run, *tensors, *([each[name] for each in said] for name in ("losses", "failed", "refused")))


class TestTwoRanks:
    def test_from_one_to_two_and_back(self, together: Two, tmp_path: Path) -> None:
        """Every bit crosses over; halves of tensors may be computed in other roundings than wholes."""
        assert same(together.loaded, together.first.tensors())
        written = folder_of(together.run, 4)
        assert read_meta(written).world == len(list(written.glob("*.distcp"))) == 2
        last = Run(tmp_path / "last", seed=2)
        last.load(written)
        assert same(together.saved, last.tensors())
        alone = Run(tmp_path).steps(6)
        assert together.losses[0] == together.losses[1] == pytest.approx(alone[2:4], rel=1e-6)
        assert last.steps(2) == pytest.approx(alone[4:], rel=1e-6)

    def test_an_error_on_one_is_everybodys(self, together: Two) -> None:
        for told in together.failed:
            assert f"step-00000005 was not written, the last one is {folder_of(together.run, 4)}: OSError" in told
        assert whole_ones(together.run) == [folder_of(together.run, 2), folder_of(together.run, 4)]
        assert not list((together.run / FOLDER).glob("*.part"))

    def test_a_damage_that_one_sees_is_everybodys(self, together: Two) -> None:
        for told in together.refused:
            assert "distcp is damaged (ValueError: its checksum is wrong)" in told
            assert told.endswith(f"--resume {folder_of(together.run, 2)}")


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class TestCode:
    def test_in_torchs_metadata_it_is_never_looked_at(self, copied: Path, tmp_path: Path) -> None:
        trap = tmp_path / "ran"
        (folder_of(copied, 2) / ".metadata").write_bytes(pickle.dumps(Code(trap)))
        assert Run(copied).load(folder_of(copied, 2)).step == 2
        (folder_of(copied, 2) / ".metadata").unlink()
        assert Run(copied).load(folder_of(copied, 2)).step == 2
        assert not trap.exists()

    def test_in_a_tensors_place_it_is_refused(self, copied: Path, tmp_path: Path) -> None:
        trap, path = tmp_path / "ran", folder_of(copied, 2)
        torch.save(Code(trap), path / "__0_1.distcp")
        where = ["__0_1.distcp", 0, (path / "__0_1.distcp").stat().st_size]
        edit(TABLE, lambda c: first_piece(c).__setitem__(slice(2, 5), where))(path)
        with pytest.raises(ModelError, match="__0_1.distcp is damaged .UnpicklingError.*go on from") as caught:
            Run(copied).load(path)
        assert not trap.exists() and "\n" not in str(caught.value)
        torch.load(path / "__0_1.distcp", weights_only=False)
        assert trap.exists(), "the trap is one"


@pytest.fixture(autouse=True)
def _generator() -> Iterator[None]:
    """Loading sets torch's generator: other tests shall not notice."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
