"""A Dask cluster, local or joined by address, and bounded work on it: ids and paths travel, no arrays."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import dask
from distributed import Client, LocalCluster, WorkerPlugin, as_completed

from manifests.errors import UsageError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""A worker owns a core; libraries that take more only fight over it."""
IN_FLIGHT_PER_WORKER = 3
"""One runs, one waits beside it, one is on its way."""
ROOM_EVERY = 64
CONNECT_S = 20.0
"""A scheduler that was just started may need a moment."""
KILLS = 3
"""A task that took this many workers with it is not tried again."""


def here(where: str | None) -> bool:
    """Whether the workers that `open_cluster` opens are on this machine."""
    return where is None or where.isdecimal()


@contextlib.contextmanager
def open_cluster(where: str | None) -> Iterator[Any]:
    """A `distributed.Client`. where: None = a local worker a core, a number = so many, else an address.

    Raises UsageError when the address does not answer.
    """
    settings = {
        "distributed.scheduler.allowed-failures": KILLS - 1,
        "distributed.scheduler.work-stealing": True,
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        if where is not None and not here(where):
            try:
                client = stack.enter_context(Client(where, timeout=CONNECT_S, set_as_default=False))
            except (OSError, ValueError) as error:
                raise UsageError(
                    f"no Dask scheduler answers at {where!r} ({error}); start one or use --cluster N"
                ) from None
        else:
            workers = int(where) if where else os.cpu_count() or 1
            if workers < 1:
                raise UsageError("--cluster 0 leaves nobody to work; give 1 or more")
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    silence_logs="CRITICAL",
                    env=ONE_THREAD,
                )
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
        client.register_plugin(_OneThread())
        yield client


class _OneThread(WorkerPlugin):
    """Limits libraries that start threads of their own inside a worker."""

    name = "xstreamer-one-thread"

    def setup(self, worker: Any) -> None:
        import cv2

        cv2.setNumThreads(1)


def run_bounded(
    client: Any, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[tuple[Any, Any, BaseException | None]]:
    """(item, result, error) of `function(item)` as each ends, a few a worker in flight at a time.

    `items` is drawn from as places free up, so memory does not grow with its length. A task that killed its
    workers comes back with `distributed.KilledWorker` as the error.
    """
    source = iter(items)
    waiting: dict[Any, Any] = {}
    completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    room = IN_FLIGHT_PER_WORKER * max(1, len(client.nthreads()))

    def fill() -> None:
        for item in islice(source, room - len(waiting)):
            # as one opaque value: Dask walks through every list and dict that it is handed
            future = client.submit(_call, function, pickle.dumps(item), pure=False)
            waiting[future.key] = item
            completed.add(future)

    fill()
    for count, (future, result) in enumerate(completed, 1):
        item = waiting.pop(future.key)
        error = None if future.status == "finished" else (future.exception() or RuntimeError(f"task {future.status}"))
        future.release()
        if count % ROOM_EVERY == 0:  # workers come and go
            room = IN_FLIGHT_PER_WORKER * max(1, len(client.nthreads()))
        fill()
        yield item, None if error else result, error


def _call(function: Callable[[Any], Any], item: bytes) -> Any:
    return function(pickle.loads(item))
