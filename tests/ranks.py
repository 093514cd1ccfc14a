"""Several processes that train together, on one machine, over gloo; as torchrun would start them."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from training.parallel import world


def together(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)`, a function of a module, gives in each of `size` processes, by rank. They are one world from beginning to end."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (size, _free_port(), folder, work, args), nprocs=size)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(size)]


def _process(rank: int, size: int, port: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with world("cpu"):
        torch.save(work(*args), Path(folder) / str(rank))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
