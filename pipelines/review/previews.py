"""Films and film strips out of their tars, any range of bytes, without unpacking."""

from __future__ import annotations

import tarfile
import threading
from collections import OrderedDict
from dataclasses import dataclass

from manifests.store import Store

OPEN_TARS = 256
"""Tables of contents that are kept."""
MEDIA = {"mp4": "video/mp4", "jpg": "image/jpeg"}


@dataclass(frozen=True)
class Member:
    """Where a file lies. path: of the tar in the dataset; offset, size: bytes."""

    path: str
    offset: int
    size: int


class Previews:
    """Finds members of previews/*.tar. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._contents: OrderedDict[str, dict[str, Member]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, tar: str, clip_id: str, extension: str) -> Member | None:
        """The member, None when the tar is gone, damaged or lacks it. `tar` is a name of the clips table."""
        path = f"previews/{tar}"
        try:
            contents = self._listed(path)
        except (OSError, tarfile.TarError, EOFError):
            return None
        return contents.get(f"{clip_id}.{extension}")

    def read(self, member: Member, start: int, length: int) -> bytes:
        """`length` bytes of the member from `start` on. Raises OSError when the tar is gone."""
        with self._store.open(member.path) as file:
            file.seek(member.offset + start)
            return file.read(min(length, member.size - start))

    def _listed(self, path: str) -> dict[str, Member]:
        size = self._store.size(path)
        key = f"{path} {size}"
        with self._lock:
            if key in self._contents:
                self._contents.move_to_end(key)
                return self._contents[key]
        with self._store.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            found = {one.name: Member(path, one.offset_data, one.size) for one in tar if one.isfile()}
        with self._lock:
            self._contents[key] = found
            while len(self._contents) > OPEN_TARS:
                self._contents.popitem(last=False)
        return found


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, last) byte that a Range header asks for (RFC 9110, 14.2), the whole file without one or with one that
    is to be ignored (several ranges, another unit); None where nothing of it can be satisfied."""
    whole = (0, size - 1)
    if not header or not header.startswith("bytes=") or "," in header:
        return whole
    first, dash, last = header.removeprefix("bytes=").strip().partition("-")
    if not dash or not all(part == "" or (part.isascii() and part.isdecimal()) for part in (first, last)):
        return whole
    if not first:
        return (max(0, size - int(last)), size - 1) if last and int(last) and size else None
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return whole
    return (start, end) if start < size else None
