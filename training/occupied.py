"""One run at a time writes into a folder: two would sweep away each other's checkpoints."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import UsageError
from manifests.store import Store
from models.lock import guard

if TYPE_CHECKING:
    from training.parallel import World

LOCK = ".lock"
LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a network's disk says that knows no locks: nobody can be kept out there, and nobody is refused."""


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Makes `folder`, and holds it for the block. A killed process lets go. Raises UsageError while another run holds
    it, DatasetError where it cannot be written."""

    def refused() -> None:
        raise UsageError(f"another process trains into {folder} right now; wait for its end, or name another folder")

    with ExitStack() as held:
        with Store(folder).explained():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(guard(folder / LOCK, refused))
            except OSError as error:
                if error.errno not in LOCKLESS:
                    raise
        yield


@contextmanager
def alone(folder: Path, where: World) -> Iterator[None]:
    """`occupied` on rank 0 for all ranks; what it raises, all raise."""
    with ExitStack() as held:
        where.first(lambda: held.enter_context(occupied(folder)))
        yield
