"""Reading shards: plain tar files, from a local disk or behind any fsspec URL, and the arrays in them.

A shard is walked over its headers, never unpacked; any sample of it is read by place. What is broken is `Damaged`, with
a reason, whatever it is: nothing that a file holds can raise anything else.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any, Protocol, TypeVar

import numpy as np

from manifests.errors import DatasetError, one_line

BLOCK = 512
"""Bytes of a tar header; contents are padded to a multiple."""
MAX_MEMBER = 1 << 28
"""Bytes that one member may hold; ten minutes of 512-px latents are half of it."""
MAX_MEMBERS = 64
"""Members that one sample may have."""
READAHEAD = 1 << 22
"""Bytes fetched at a time from behind a URL: some ten samples, read from end to end."""
FILES, EXTENDED = b"0\0", b"xg"
"""Types of tar members: files; what pax adds about the next one, of no concern to us."""
ATTEMPTS, PAUSE_S = 3, 1.0
"""How often a read that fails is tried, and how long to wait before the second time; twice that before the third."""

T = TypeVar("T")


class Damaged(DatasetError):
    """A sample, or the rest of a shard, cannot be read; the text says why."""


class Source(Protocol):
    """A file that is open."""

    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end of the file. Raises OSError. Safe between threads."""
        ...


class LocalFile:
    """Of a local disk. Raises FileNotFoundError."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """As `Source.read_at`."""
        return os.pread(self._handle, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


class RemoteFile:
    """Behind a URL, read ahead, so that going forward is one stream. Raises FileNotFoundError, OSError."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            fs, path = fsspec.core.url_to_fs(url)
            self._file: IO[bytes] = fs.open(path, "rb", block_size=READAHEAD, cache_type="readahead")
        except OSError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise OSError(one_line(error)) from error
        self._lock = threading.Lock()
        self.size = self._file.seek(0, os.SEEK_END)

    def read_at(self, offset: int, size: int) -> bytes:
        """As `Source.read_at`."""
        with self._lock:
            try:
                self._file.seek(offset)
                return self._file.read(size)
            except OSError:
                raise
            except Exception as error:
                raise OSError(one_line(error)) from error


def is_remote(place: str) -> bool:
    """Whether `place` is a URL and no path."""
    return "://" in place


def open_source(place: str) -> Source:
    """A path or URL, open. Raises FileNotFoundError, OSError."""
    return RemoteFile(place) if is_remote(place) else LocalFile(place)


class Handles:
    """The files opened last, open. At most `limit` are kept; one in use lives on as long as it is used."""

    def __init__(self, limit: int = 128) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Source] = {}
        self._limit = limit

    def get(self, place: str) -> Source:
        """Raises FileNotFoundError, OSError."""
        with self._lock:
            found = self._open.pop(place, None)
        found = found or open_source(place)
        with self._lock:
            self._open[place] = found
            while len(self._open) > self._limit:
                self._open.pop(next(iter(self._open)))
        return found

    def drop(self, place: str) -> None:
        """Forgets the file, so that it is opened anew."""
        with self._lock:
            self._open.pop(place, None)

    def read(self, place: str, offset: int, size: int) -> bytes:
        """As `Source.read_at`, tried ATTEMPTS times. Raises DatasetError."""
        return self._tried(place, lambda: self.get(place).read_at(offset, size))

    def size(self, place: str) -> int:
        """Bytes. Raises DatasetError."""
        return self._tried(place, lambda: self.get(place).size)

    def _tried(self, place: str, read: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return read()
            except FileNotFoundError:
                raise DatasetError(f"{place} is not there, but its index lists it; pack again") from None
            except (PermissionError, IsADirectoryError) as error:
                raise DatasetError(f"{place} cannot be read: {error.strerror}") from None
            except OSError as error:
                self.drop(place)
                if attempt == ATTEMPTS:
                    raise DatasetError(f"{place} cannot be read ({one_line(error)}); mend it and resume") from error
                time.sleep(PAUSE_S * attempt)
        raise AssertionError("unreachable")


@dataclass(frozen=True)
class Entry:
    """A sample in a shard. members: {extension: (offset, bytes)} of those that were asked for."""

    key: str
    members: Mapping[str, tuple[int, int]]


@dataclass(eq=False)
class Shard:
    """A tar whose samples are found as they are asked for. wanted: extensions of members; empty for all.

    Safe between threads. `fault` says why the walk ended before its time, "" while it has not.
    """

    place: str
    handles: Handles
    wanted: Collection[str] = ()
    fault: str = ""
    _entries: list[Entry] = field(default_factory=list)
    _offset: int = 0
    _size: int = 0
    _ended: bool = False
    _held: tuple[str, dict[str, tuple[int, int]]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def entry(self, number: int) -> Entry:
        """Sample `number`, from 0. Raises Damaged where there is none, DatasetError where the file cannot be read."""
        with self._lock:
            while len(self._entries) <= number and not self._ended:
                self._step()
        if number < len(self._entries):
            return self._entries[number]
        raise Damaged(self.fault or f"{self.place} holds {len(self._entries)} samples, fewer than its index lists")

    def read(self, entry: Entry, extension: str) -> bytes:
        """A member. Raises Damaged where it is missing or cut short, DatasetError."""
        if extension not in entry.members:
            raise Damaged(f"has no {extension}")
        offset, size = entry.members[extension]
        found = self.handles.read(self.place, offset, size)
        if len(found) < size:
            raise Damaged(f"{extension} is cut short: {len(found)} of {size} bytes")
        return found

    def _step(self) -> None:
        """One header on."""
        try:
            header = self.handles.read(self.place, self._offset, BLOCK)
            self._size = self._size or self.handles.size(self.place)
            found = parsed(header, self._offset, self._size)
            if found is None:
                self._close()
                return
            name, offset, size, following = found
            if name:
                self._member(name, offset, size)
            self._offset = following
        except Damaged as error:
            self.fault = f"{self.place} is damaged: {error}"
            self._ended, self._held = True, None

    def _member(self, name: str, offset: int, size: int) -> None:
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if self._held is None or self._held[0] != key:
            self._close()
            self._ended, self._held = False, (key, {})
        members = self._held[1] if self._held else {}
        if not self.wanted or extension in self.wanted:
            members[extension] = (offset, size)
        if len(members) > MAX_MEMBERS:
            raise Damaged(f"sample {key} has more than {MAX_MEMBERS} members")

    def _close(self) -> None:
        """Ends the sample that is being walked, and the shard."""
        if self._held is not None:
            self._entries.append(Entry(*self._held))
        self._held, self._ended = None, True


def parsed(header: bytes, offset: int, file_size: int) -> tuple[str, int, int, int] | None:
    """(name, "" for what is no file; offset and bytes of the content; offset of the next header) of a tar header
    (POSIX.1-1988) at `offset`; None at the archive's end. Raises Damaged."""
    if not header or header == bytes(BLOCK):
        return None
    if len(header) < BLOCK:
        raise Damaged(f"it ends in the middle of a header, at byte {offset}")
    told, summed = _octal(header[148:156]), sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if told != summed:
        raise Damaged(f"no tar header at byte {offset}")
    size, kind = _octal(header[124:136]), header[156:157]
    if size > MAX_MEMBER:
        raise Damaged(f"a member of {size} bytes at byte {offset}; {MAX_MEMBER} are the most")
    content = offset + BLOCK
    if content + size > file_size:
        raise Damaged(f"it ends at byte {file_size}, in the middle of a member")
    following = content + -(-size // BLOCK) * BLOCK
    if kind in EXTENDED or kind == b"5":
        return "", content, size, following
    if kind not in FILES:
        raise Damaged(f"a member of type {kind!r} at byte {offset}, which is no file")
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return (f"{prefix}/{name}" if prefix else name), content, size, following


def _octal(content: bytes) -> int:
    digits = content.strip(b"\0 ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise Damaged("no number where a tar header has one")
    return int(digits, 8)


def _text(content: bytes) -> str:
    return content.split(b"\0", 1)[0].decode("utf-8", "replace")


NPY = re.compile(
    rb"\{'descr': '(<f[248]|[<|][iu][1248])', 'fortran_order': (False|True), 'shape': \((\d{1,12}(?:, \d{1,12}){0,7},?|)\), \} *\n?"
)
"""The header of a .npy file as numpy writes it (its format 1.0 and 2.0), of plain numbers in little-endian order."""


def npy_array(content: bytes, name: str) -> np.ndarray:
    """The array in a .npy file, read-only, over the same memory. Raises Damaged: no .npy, objects, cut short."""
    if content[:6] != b"\x93NUMPY" or len(content) < 12 or content[6] not in (1, 2):
        raise Damaged(f"{name} is no .npy file")
    begin = 10 if content[6] == 1 else 12
    stop = begin + int.from_bytes(content[8:begin], "little")
    kind, shape, order = npy_header(content[begin:stop], name)
    count = math.prod(shape)
    if len(content) - stop != count * kind.itemsize:
        raise Damaged(f"{name} holds {len(content) - stop} bytes, not {count} numbers of {kind}")
    return np.frombuffer(content, kind, count, stop).reshape(shape, order=order)  # type: ignore[call-overload]


@lru_cache(maxsize=1024)
def npy_header(header: bytes, name: str) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    """(type, shape, "C" or "F") that a .npy header tells. Raises Damaged."""
    found = NPY.fullmatch(header)
    if not found:
        raise Damaged(f"{name} is no .npy file of plain numbers")
    shape = tuple(int(size) for size in found[3].replace(b",", b" ").split())
    return np.dtype(found[1].decode()), shape, "F" if found[2] == b"True" else "C"
