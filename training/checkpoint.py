"""Checkpoints of a run: RUN/checkpoints/step-00000100, written beside the training, there whole or not at all.

A folder holds the tensors (weights, their moving average, the optimizer's, the random generators') as
torch.distributed.checkpoint splits them, and meta.json: where the run was, on what, and the recipe to read. It is
written under a name that ends in .part, synced to the disk, and renamed by rank 0 once every rank has finished.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from manifests.errors import DatasetError, ModelError, XstreamerError, one_line
from manifests.store import Store
from training.checkpoint_meta import (
    ASIDE,
    FOLDER,
    META,
    PARTIAL,
    PREFIX,
    Identity,
    Meta,
    Progress,
    check_identity,
    folder_of,
    latest,
    read_meta,
    step_of,
    way_on,
    whole_ones,
)
from training.tensor_files import Damaged, Reader, Table, Writer, read_table, sync, write_synced

T = TypeVar("T")

MODEL, OPTIMIZER, EMA, RNG = "model.", "optimizer.", "ema.", "rng."
"""What the names of tensors begin with."""
PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other's disks."""


class Checkpoints:
    """Those of one run. Every rank makes one and calls the same methods in the same order.

    identity: what the run trains on; recipe: as TOML; keep: how many stay; facts: for `Meta.facts`. Deletes what a
    killed run left half written. Raises DatasetError where the folder cannot be written.
    """

    def __init__(
        self, run: Path, identity: Identity, recipe: str, keep: int, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.run, self.keep = run, keep
        self._identity, self._recipe, self._facts = identity, recipe, dict(facts or {})
        # A group of its own: saves talk in the background, at the same time as the training.
        made: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None
        self._group: dist.ProcessGroup | None = made
        self._rank, self._world = (dist.get_rank(), dist.get_world_size()) if self._group else (0, 1)
        self._saving: tuple[Path, Future[Any]] | None = None
        self._together(self._sweep)

    def save(
        self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor]
    ) -> Path:
        """Copies everything to memory, which is then written in the background; the folder that will be.

        Waits for the save before. ema: averages by parameter, {} for none. Raises DatasetError when that one failed.
        """
        self.wait()
        final = folder_of(self.run, progress.step)
        partial = final.with_name(final.name + PARTIAL)
        meta = Meta(self._identity, progress, self._recipe, self._facts, self._world)
        # Without processes torch warns each time, in the background, that there are none.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        with self._explained(final):
            future = dcp.async_save(
                tensors_of(model, optimizer, ema) | {f"{RNG}{self._rank}.{k}": v for k, v in _generators().items()},
                storage_writer=Writer(partial, lambda: self._commit(partial, final, meta)),
                process_group=self._group,
            )
        assert isinstance(future, Future)
        self._saving = final, future
        return final

    def wait(self) -> Path | None:
        """Until the save in the background is on the disk; its folder, None when none was under way.

        Raises DatasetError, on every rank, when it could not be written; the checkpoints before it stay.
        """
        if self._saving is None:
            return None
        (final, future), self._saving = self._saving, None
        with self._explained(final):
            future.result()
        return final

    def load(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor]
    ) -> Progress:
        """Fills all three, and the random generators, from a checkpoint, however many ranks wrote it.

        Later checkpoints of this run are set aside, renamed: they are of a future that is not ours. Raises ModelError,
        on every rank, for a checkpoint that is damaged (it names the whole one before, which is not taken in silence),
        of another format, or goes with another Actor, codec or Thinker.
        """

        def opened() -> tuple[Meta, Table]:
            meta = read_meta(path)
            check_identity(meta.identity, self._identity, path)
            return meta, read_table(path)

        try:
            meta, table = self._together(opened)
            wanted = tensors_of(model, optimizer, ema) | _optimizer_room(table, model, optimizer)
            _check(wanted, table, path)
            own = f"{RNG}{self._rank % meta.world}."
            rng = {
                name: torch.empty(table.shape(name), dtype=torch.uint8)
                for name in table.tensors
                if name.startswith(own)
            }
            read_tensors(path, table, wanted | rng, self._group)
        except Damaged as error:
            raise ModelError(f"checkpoint {path} is damaged: {error}; {way_on(path)}") from None
        _set_generators({name.removeprefix(own): value for name, value in rng.items()})
        self._together(lambda: self._set_aside(path))
        return meta.progress

    def _commit(self, partial: Path, final: Path, meta: Meta) -> None:
        """On rank 0, in the background, once every rank's tensors are on the disk."""
        write_synced(partial / META, meta.as_json())
        sync(partial)
        if final.exists():
            raise DatasetError(f"{final} is there already; go on from it with --resume, or train into another folder")
        partial.rename(final)
        sync(final.parent)
        for old in whole_ones(self.run)[: -self.keep]:
            doomed = old.with_name(old.name + PARTIAL)
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)  # what stays goes when the next run starts

    def _sweep(self) -> None:
        if self._rank:
            return
        with Store(self.run).explained():
            (self.run / FOLDER).mkdir(parents=True, exist_ok=True)
            for partial in (self.run / FOLDER).glob(f"{PREFIX}*{PARTIAL}"):
                shutil.rmtree(partial)

    def _set_aside(self, path: Path) -> None:
        if self._rank or path.resolve().parent != (self.run / FOLDER).resolve():
            return
        with Store(self.run).explained():
            for later in whole_ones(self.run):
                if step_of(later) > step_of(path):
                    aside = later.with_name(later.name + ASIDE)
                    shutil.rmtree(aside, ignore_errors=True)
                    later.rename(aside)

    @contextmanager
    def _explained(self, final: Path) -> Iterator[None]:
        """A failed save in one line; what it left is deleted, which makes room."""
        try:
            yield
        except (Exception, CheckpointException) as error:
            cause = _cause(error)
            if self._rank == 0:
                shutil.rmtree(final.with_name(final.name + PARTIAL), ignore_errors=True)
            if not isinstance(cause, OSError | XstreamerError):
                raise
            try:
                with Store(self.run).explained():
                    raise cause
            except (OSError, XstreamerError) as told:
                last = latest(self.run)
                stays = f"the last one is {last}" if last else "there is none yet"
                raise DatasetError(f"checkpoint {final.name} was not written, {stays}: {one_line(told)}") from None

    def _together(self, work: Callable[[], T]) -> T:
        """What `work` gives on each rank; where it fails on one, all raise."""
        found: list[T] = []
        errors: list[XstreamerError | None] = [None] * self._world
        try:
            found.append(work())
        except XstreamerError as caught:
            errors[self._rank] = caught
        if self._group:
            dist.all_gather_object(errors, errors[self._rank], group=self._group)
        for error in errors:
            if error is not None:
                raise error
        return found[0]


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a run but the generators', by name, sharing memory. An optimizer that made no step has none."""
    found = {f"{MODEL}{name}": value.detach() for name, value in model.state_dict().items()}
    found |= {f"{EMA}{name}": value.detach() for name, value in ema.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{OPTIMIZER}{name}.{key}"] = value
    return found


def _optimizer_room(table: Table, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `table` has it, zeros where there was none."""
    owners, found = dict(model.named_parameters()), dict[str, Tensor]()
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name in table.tensors:
        owner, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
        if not name.startswith(OPTIMIZER) or owners.get(owner) not in groups:
            continue
        parameter, shape, kind = owners[owner], table.shape(name), table.dtype(name)
        if shape == tuple(parameter.shape):
            room = torch.zeros_like(parameter, dtype=kind, requires_grad=False)
        else:  # the step's number, which Adam keeps on the CPU unless it is fused
            near = groups[parameter].get("fused") or groups[parameter].get("capturable")
            room = torch.zeros(shape, dtype=kind, device=parameter.device if near else "cpu")
        found[name] = optimizer.state[parameter].setdefault(key, room)
    return found


def _check(wanted: Mapping[str, Tensor], table: Table, path: Path) -> None:
    """Raises ModelError unless the checkpoint holds exactly `wanted`; an average that nobody wants may be left."""
    for name, value in wanted.items():
        if name not in table.tensors:
            raise ModelError(f"checkpoint {path} has no {name}; train on with the recipe that wrote it")
        found = f"{table.dtype(name)} {list(table.shape(name))}"
        if found != f"{value.dtype} {list(value.shape)}":
            raise ModelError(
                f"checkpoint {path} has {name} as {found}, not {value.dtype} {list(value.shape)}; "
                "train on with the recipe that wrote it"
            )
    left = [name for name in table.tensors if name not in wanted and not name.startswith((RNG, EMA))]
    if left:
        raise ModelError(f"checkpoint {path} has {left[0]}, which nobody wants; train on with the recipe that wrote it")


def read_tensors(path: Path, table: Table, into: dict[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fills the tensors `into`, of the table's names and shapes, in place. Raises Damaged, on every rank."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            dcp.load(into, storage_reader=Reader(path, table), process_group=group, no_dist=group is None)
        except CheckpointException as error:
            raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """What went wrong on the first rank on which something did."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _generators() -> dict[str, Tensor]:
    """States of torch's generators that this process draws from, uint8."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _set_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
