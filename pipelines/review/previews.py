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
    """Where a file lies. path: of the tar in the dataset; offset, size: bytes; tag: changes when the tar does."""

    path: str
    offset: int
    size: int
    tag: str


class Previews:
    """Finds members of previews/*.tar. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._contents: OrderedDict[str, tuple[str, dict[str, Member]]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, tar: str, clip_id: str, extension: str) -> Member | None:
        """The member, None when the tar is gone, damaged, no file of this dataset, or lacks it. tar: a name out of
        the clips table."""
        path = f"previews/{tar}"
        try:
            contents = self._listed(path)
        except (OSError, tarfile.TarError, EOFError):
            return None
        return contents.get(f"{clip_id}.{extension}")

    def read(self, member: Member, start: int, length: int) -> bytes:
        """`length` bytes of the member from `start` on. Raises OSError when the tar is gone or cut off."""
        with self._store.open(member.path) as file:
            file.seek(member.offset + start)
            found = file.read(length)
        if len(found) != length:
            raise OSError(f"{member.path} is cut off")
        return found

    def _listed(self, path: str) -> dict[str, Member]:
        stamp = self._stamp(path)
        with self._lock:
            known = self._contents.get(path)
            if known and known[0] == stamp:
                self._contents.move_to_end(path)
                return known[1]
        with self._store.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            found = {
                one.name: Member(path, one.offset_data, one.size, f"{stamp}-{one.offset_data}")
                for one in tar
                if one.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            }
        with self._lock:
            self._contents[path] = stamp, found
            while len(self._contents) > OPEN_TARS:
                self._contents.popitem(last=False)
        return found

    def _stamp(self, path: str) -> str:
        """Changes when the file does. Raises OSError where it is gone or leads out of the dataset."""
        if self._store.remote:
            return f"{self._store.size(path):x}"
        place = self._store.local(path)
        if not place.resolve().is_relative_to(self._store.local("previews").resolve()):
            raise OSError(f"{path} leads out of the dataset")
        facts = place.stat()
        return f"{facts.st_size:x}-{facts.st_mtime_ns:x}"
