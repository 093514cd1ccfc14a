"""Tensors of a checkpoint on disk, by torch.distributed.checkpoint, read back without running anything.

torch's own reader unpickles the file `.metadata`, and a pickle can run code. So what lies where is written a second
time, as JSON, and read from there; `.metadata` is left for torch's tools. Pieces are read with `weights_only=True`,
after their checksums: torch writes those and does not look at them again.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from manifests.errors import ModelError, one_line

TABLE = "tensors.json"
ENDING = ".distcp"
"""Of the files that hold the pieces."""
DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
    )
}  # fmt: skip
FULL = 1 << 20
"""A disk with fewer bytes free than this is called full when a write fails without saying why."""


class Damaged(ModelError):
    """A checkpoint is not as it was written."""


@dataclass(frozen=True)
class Piece:
    """Where a piece of a tensor lies: bytes `offset` ... `offset + length` of a file in the folder."""

    relative_path: str
    offset: int
    length: int


@dataclass(frozen=True)
class Table:
    """What lies in a folder, for `torch.distributed.checkpoint`. pieces: by tensor and offset in it."""

    tensors: Mapping[str, TensorStorageMetadata]
    pieces: Mapping[MetadataIndex, Piece] = field(repr=False)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self.tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return self.tensors[name].properties.dtype


class Writer(FileSystemWriter):
    """Every rank's pieces into `folder`, synced to the disk, then on one rank the table and `commit()`, whose error is
    every rank's."""

    def __init__(self, folder: Path, commit: Callable[[], None]) -> None:
        # What is saved is in the host's memory already; torch's reading ahead from a GPU would open one in the thread
        # that writes, and always the first of the machine.
        super().__init__(folder, per_thread_copy_ahead=0)
        self._commit = commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Raises OSError for a full disk, where torch may hide it behind an error of its own."""
        alien = [item.index.fqn for item in plan.items if item.type == WriteItemType.BYTE_IO]
        if alien:
            raise TypeError(f"{alien[0]} is no tensor")
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            found: BaseException | None = error
            while found is not None and not isinstance(found, OSError):
                found = found.__cause__ or found.__context__
            if found is None and shutil.disk_usage(self.path).free < FULL:
                found = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise found or error from None

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, once every rank has written."""
        super().finish(metadata, results)
        write_synced(Path(self.path, TABLE), json.dumps(_entries(metadata), separators=(",", ":")).encode())
        sync(Path(self.path))
        self._commit()


def write_synced(path: Path, content: bytes) -> None:
    """Writes the file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Waits until the disk has the names in `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entries(metadata: Metadata) -> dict[str, Any]:
    """{tensor: {dtype, shape, pieces: [[offsets, sizes, file, offset, length], ...]}}."""
    return {
        name: {
            "dtype": str(stored.properties.dtype).removeprefix("torch."),
            "shape": list(stored.size),
            "pieces": [
                [list(chunk.offsets), list(chunk.sizes), place.relative_path, place.offset, place.length]
                for chunk in stored.chunks
                for place in [metadata.storage_data[MetadataIndex(name, chunk.offsets)]]
            ],
        }
        for name, stored in sorted(metadata.state_dict_metadata.items())
        if isinstance(stored, TensorStorageMetadata)
    }


def read_table(folder: Path) -> Table:
    """Raises Damaged when the table is damaged, or a file that it names is missing, cut off or elsewhere."""
    place = folder / TABLE
    try:
        entries = json.loads(place.read_bytes())
        tensors, pieces = dict[str, TensorStorageMetadata](), dict[MetadataIndex, Piece]()
        for name, entry in entries.items():
            tensors[name] = _stored(entry)
            for offsets, _sizes, *where in entry["pieces"]:
                pieces[MetadataIndex(name, offsets)] = Piece(*where)
    except FileNotFoundError:
        raise Damaged(f"{place} is missing") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{place} is damaged ({one_line(error, 100)})") from None
    _check_files(folder, pieces.values())
    return Table(tensors, pieces)


def _stored(entry: Mapping[str, Any]) -> TensorStorageMetadata:
    """Raises ValueError, TypeError or KeyError for what is no tensor, or has a hole."""
    shape = _counts(entry["shape"])
    chunks = [ChunkStorageMetadata(_counts(offsets), _counts(sizes)) for offsets, sizes, *_ in entry["pieces"]]
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(shape):
            raise ValueError(f"pieces of {len(chunk.sizes)} dimensions in {list(shape)}")
        if any(at + size > whole for at, size, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True)):
            raise ValueError(f"a piece reaches out of {list(shape)}")
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise ValueError(f"the pieces are not all of {list(shape)}")
    return TensorStorageMetadata(TensorProperties(DTYPES[entry["dtype"]]), shape, chunks)


def _counts(values: Any) -> torch.Size:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values!r} are no counts")
    return torch.Size(values)


def _check_files(folder: Path, pieces: Any) -> None:
    ends = dict[str, int]()
    for piece in pieces:
        name = piece.relative_path
        if not isinstance(name, str) or name != Path(name).name or "\\" in name or not name.endswith(ENDING):
            raise Damaged(f"{folder / TABLE} is damaged: it names {name!r}, no {ENDING} file of its own folder")
        if not all(type(number) is int and number >= 0 for number in (piece.offset, piece.length)):
            raise Damaged(f"{folder / TABLE} is damaged: {piece.offset!r}, {piece.length!r} are no bytes of a file")
        ends[name] = max(ends.get(name, 0), piece.offset + piece.length)
    for name, end in sorted(ends.items()):
        if not (folder / name).is_file():
            raise Damaged(f"{folder / name} is missing")
        if (folder / name).stat().st_size < end:
            raise Damaged(f"{folder / name} is cut off: {(folder / name).stat().st_size} of {end} bytes")


class Reader(FileSystemReader):
    """Reads what `table` says, and only tensors."""

    def __init__(self, folder: Path, table: Table) -> None:
        super().__init__(folder)
        self._table = table

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Without unpickling `.metadata`."""
        return Metadata(
            dict(self._table.tensors), storage_data=self._table.pieces, storage_meta=StorageMeta(load_id=self.load_id)
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Raises Damaged for a piece that is not as it was written."""
        for request in sorted(plan.items, key=lambda item: self._order(item.storage_index)):
            stored = self._tensor(request.storage_index)
            for dim, (at, size) in enumerate(zip(request.storage_offsets, request.lengths, strict=True)):
                stored = stored.narrow(dim, at, size)
            target = planner.resolve_tensor(request).detach()
            target.copy_(stored)
            planner.commit_tensor(request, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _order(self, index: MetadataIndex) -> tuple[str, int]:
        piece = self._table.pieces[index]
        return piece.relative_path, piece.offset

    def _tensor(self, index: MetadataIndex) -> torch.Tensor:
        piece = self._table.pieces[index]
        path, stored = Path(self.path, piece.relative_path), self._table.tensors[index.fqn]
        sizes = next(chunk.sizes for chunk in stored.chunks if chunk.offsets == index.offset)
        with _damage_told(path), path.open("rb") as file:
            file.seek(piece.offset)
            content = io.BytesIO(file.read(piece.length))
            with zipfile.ZipFile(content) as archive:
                if archive.testzip() is not None:
                    raise ValueError("its checksum is wrong")
            content.seek(0)
            found = torch.load(content, map_location="cpu", weights_only=True)
            if not isinstance(found, torch.Tensor) or found.shape != sizes or found.dtype != stored.properties.dtype:
                raise ValueError(f"no {stored.properties.dtype} of {list(sizes)}")
            return found


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is damaged ({one_line(error, 120).partition('. ')[0]})") from None
