"""Where ranks meet: torchrun's processes, or one alone; FSDP2 round every block, HSDP with several replicas.

Order round a block: activation checkpointing, then torch.compile, then FSDP. FSDP averages gradients over ranks, so a
loss divided by its count over all ranks goes into the backward pass times their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from manifests.errors import UsageError, XstreamerError
from models.actor import Actor
from models.actor_config import ActorConfig
from models.attention import compile_often
from models.device import CPU, torch_device
from models.memory import keep_freed_memory
from training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all. device: the one it computes on. sharded: whether processes share a model."""

    rank: int
    size: int
    device: torch.device
    sharded: bool

    def summed(self, values: Tensor) -> Tensor:
        """`values` summed over ranks, in place."""
        if self.sharded:
            dist.all_reduce(values)
        return values

    def total(self, value: float) -> float:
        """A number of this rank, summed over ranks."""
        if not self.sharded:
            return value
        return self.summed(torch.tensor(value, dtype=torch.float64, device=self.device)).item()

    def highest(self, values: Tensor) -> Tensor:
        """The largest of each over ranks, in place."""
        if self.sharded:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gathered(self, value: T) -> list[T]:
        """`value` of every rank, by rank."""
        if not self.sharded:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def first(self, work: Callable[[], T]) -> T | None:
        """What `work` gives on rank 0, None elsewhere; an error of ours is raised on every rank."""
        found, error = None, None
        if self.rank == 0:
            try:
                found = work()
            except XstreamerError as caught:
                error = caught
        if self.sharded:
            shared = [error]
            dist.broadcast_object_list(shared, 0)
            error = shared[0]
        if error is not None:
            raise error
        return found


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """The processes that torchrun started, or this one alone. device: as `models.device.torch_device`; under torchrun
    "cuda" is each process's own. Raises UsageError, ModelError."""
    chosen = torch_device(device)
    if chosen == CPU:
        keep_freed_memory()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        with torch.cuda.device(chosen) if ":" in chosen else nullcontext():  # what asks for none is meant too
            yield World(0, 1, torch.device(chosen), False)
        return
    if chosen.startswith("cuda"):
        if ":" in chosen:
            raise UsageError(f"under torchrun every process has a GPU of its own; say cuda, not {device!r}")
        chosen = torch_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(chosen)
    here = torch.device(chosen)
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), here, True)
    finally:
        if begun:
            dist.destroy_process_group()


def build_actor(config: ActorConfig, recipe: Recipe, where: World, fill: Callable[[Actor], None] | None) -> Actor:
    """An Actor ready to train, its float32 weights split over the ranks.

    fill: gives a whole Actor in CPU memory its first weights; runs on rank 0 alone, whose weights all receive, so no
    other process ever holds them whole. None leaves memory as it is, for a checkpoint to fill. Raises what `fill`
    raises, on every rank.
    """
    with torch.device("meta"):
        actor = Actor(config)
    prepare(actor, recipe, where)
    actor.to_empty(device=where.device)
    if fill is not None:
        _fill(actor, config, where, fill)
    return actor.train()


def _fill(actor: Actor, config: ActorConfig, where: World, fill: Callable[[Actor], None]) -> None:
    def weights() -> dict[str, Any]:
        with torch.device("meta"):  # torch would draw random weights first, minutes of them for 9b
            whole = Actor(config)
        whole.to_empty(device="cpu")
        fill(whole)
        return whole.state_dict()

    found: dict[str, Any] = where.first(weights) or {}
    set_model_state_dict(
        actor, found, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=where.sharded)
    )


def prepare(actor: Actor, recipe: Recipe, where: World) -> None:
    """Checkpointing, compilation and sharding as the recipe wants them, in place. Raises UsageError for replicas that
    do not divide the ranks."""
    actor.checkpointing = recipe.checkpointing
    if where.device.type == "cuda":  # cuDNN's attention, H100's first choice, makes a plan for every new length
        torch.backends.cuda.enable_cudnn_sdp(False)
    if recipe.compile:
        compile_often()
        for block in actor.blocks:
            block.compile()
    if not where.sharded:
        if recipe.replicas != 1:
            raise UsageError(f"replicas = {recipe.replicas} needs several processes; start them with torchrun")
        return
    # Inputs are not cast: levels and times keep their float32, and the Actor casts what it multiplies by weights.
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = half if recipe.dtype == "bfloat16" else MixedPrecisionPolicy(cast_forward_inputs=False)
    mesh = mesh_of(recipe.replicas, where)
    for block in actor.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(actor, mesh=mesh, mp_policy=policy)


def mesh_of(replicas: int, where: World) -> DeviceMesh:
    """All ranks in a row, or one row a replica. Raises UsageError."""
    if where.size % replicas:
        raise UsageError(f"replicas = {replicas} does not divide {where.size} processes; choose a divisor")
    if replicas == 1:
        return init_device_mesh(where.device.type, (where.size,), mesh_dim_names=("shard",))
    shape = (replicas, where.size // replicas)
    return init_device_mesh(where.device.type, shape, mesh_dim_names=("replicate", "shard"))


def precision(recipe: Recipe, where: World) -> AbstractContextManager[Any]:
    """What a forward pass runs under: autocast where one process trains in bfloat16; FSDP casts by itself."""
    if recipe.dtype == "bfloat16" and not where.sharded:
        return torch.autocast(where.device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def root_gathered(actor: Actor) -> Iterator[None]:
    """Weights outside the blocks, whole on every rank inside the block and not behind it: for callers of the Actor's
    parts, and for forward passes that no backward pass follows, after which FSDP would keep what it gathered."""
    if not isinstance(actor, FSDPModule):
        yield
        return
    actor.unshard()
    try:
        yield
    finally:
        actor.reshard()


def sync_gradients(actor: nn.Module, last: bool) -> None:
    """Gradients of a step's micro-batches are summed on each rank and exchanged once, with the last."""
    if isinstance(actor, FSDPModule):
        actor.set_requires_gradient_sync(last)


def local(value: Tensor) -> Tensor:
    """This rank's part of a parameter, sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value


def whole(value: Tensor) -> Tensor:
    """A number that ranks hold together, as each of them."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
