"""A folder, local or behind any fsspec URL, whose files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from manifests.errors import DatasetError

TEMPORARY = ".tmp-"
"""Prefix of files that are being written; anything under it may be deleted."""


class Store:
    """Files under one root. Paths are relative, with forward slashes. Picklable: holds only the root."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        root = os.fspath(root)
        self.remote = "://" in root
        self.root = root.rstrip("/") if self.remote else str(Path(root).absolute())

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @property
    def _fs(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{self.root} cannot be opened: {error}") from error
        return fs, path

    def local(self, path: str = "") -> Path:
        """The file as a local path. Raises DatasetError for a remote store."""
        if self.remote:
            raise DatasetError(f"{self.root} is not a local folder; copy it to a local disk first")
        return Path(self.root, path)

    def url(self, path: str = "") -> str:
        """The file as a path or URL that fsspec and WebDataset open."""
        return posixpath.join(self.root, path) if path else self.root

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        if not self.remote:
            return Path(self.root, path).read_bytes()
        fs, root = self._fs
        return bytes(fs.cat_file(posixpath.join(root, path)))

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """The file for reading, seekable. Raises FileNotFoundError."""
        if not self.remote:
            with Path(self.root, path).open("rb") as file:
                yield file
            return
        fs, root = self._fs
        with fs.open(posixpath.join(root, path), "rb") as file:
            yield file

    def exists(self, path: str = "") -> bool:
        if not self.remote:
            return Path(self.root, path).exists()
        fs, root = self._fs
        return bool(fs.exists(posixpath.join(root, path)))

    def size(self, path: str) -> int:
        """Bytes. Raises FileNotFoundError."""
        if not self.remote:
            return Path(self.root, path).stat().st_size
        fs, root = self._fs
        return int(fs.size(posixpath.join(root, path)))

    def names(self, folder: str) -> list[str]:
        """Sorted names of the finished files directly inside `folder`; empty when there is no such folder."""
        if not self.remote:
            place = Path(self.root, folder)
            found = [p.name for p in place.iterdir() if p.is_file()] if place.is_dir() else []
        else:
            fs, root = self._fs
            place_url = posixpath.join(root, folder)
            entries = fs.ls(place_url, detail=True) if fs.exists(place_url) else []
            found = [posixpath.basename(e["name"]) for e in entries if e["type"] == "file"]
        return sorted(name for name in found if not name.startswith(TEMPORARY))

    def entries(self) -> list[str]:
        """Sorted names of the files and folders directly under the root; empty when it is no folder."""
        if not self.remote:
            return sorted(p.name for p in Path(self.root).iterdir()) if Path(self.root).is_dir() else []
        fs, root = self._fs
        found = fs.ls(root, detail=False) if fs.exists(root) else []
        return sorted(posixpath.basename(name.rstrip("/")) for name in found)

    def remove(self, path: str) -> None:
        """Deletes the file; no error when it is gone already."""
        if not self.remote:
            Path(self.root, path).unlink(missing_ok=True)
            return
        fs, root = self._fs
        if fs.exists(posixpath.join(root, path)):
            fs.rm_file(posixpath.join(root, path))

    def write(self, path: str, content: bytes) -> None:
        """Writes the file under a temporary name and renames it. Raises DatasetError (full, read-only)."""
        with self.writing(path) as file:
            file.write(content)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """A file to write that appears as `path` once the block ends without an error, else not at all.

        Raises DatasetError when the disk is full or the folder cannot be written.
        """
        folder, name = posixpath.split(path)
        temporary = posixpath.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}-{name}")
        with self.explained():
            if not self.remote:
                final, partial = Path(self.root, path), Path(self.root, temporary)
                final.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with partial.open("wb") as file:
                        yield file
                        file.flush()
                        os.fsync(file.fileno())
                    partial.replace(final)
                finally:
                    partial.unlink(missing_ok=True)
                return
            fs, root = self._fs
            with fs.transaction, fs.open(posixpath.join(root, path), "wb") as file:
                yield file

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns the errors of a full or unwritable disk into DatasetErrors that say what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DatasetError(f"no space left under {self.root}; free some and run the same command") from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise DatasetError(
                    f"{self.root} cannot be written; change its rights or choose another folder"
                ) from error
            if error.errno in (errno.ENOTDIR, errno.EEXIST):
                raise DatasetError(
                    f"{self.root} is in the way: a file where a folder must be; choose another folder"
                ) from error
            raise

    def sweep(self, folder: str) -> None:
        """Deletes leftovers of writers that were killed. Call only while nobody writes."""
        if self.remote or not Path(self.root, folder).is_dir():
            return
        for partial in Path(self.root, folder).glob(f"{TEMPORARY}*"):
            partial.unlink(missing_ok=True)
