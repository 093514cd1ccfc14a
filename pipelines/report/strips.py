"""Film strips beside the report: taken out of the previews, only those that are shown."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from manifests.errors import DatasetError
from manifests.store import Store

FOLDER = "thumbnails"
_CLIP_ID = re.compile(r"^[0-9a-f]{16}-\d{9,12}-\d{9,12}$")
_TAR = re.compile(r"^[\w.-]+\.tar$", re.ASCII)
MOST_BYTES = 4 << 20


def write_strips(store: Store, out: Store, clips: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Writes thumbnails/CLIP.jpg of every clip that has a strip; {clip id: (width, height)} of those.

    clips: rows with "preview_tar". Strips that no report shows any more are deleted. Raises DatasetError when `out`
    cannot be written.
    """
    wanted: dict[str, set[str]] = {}
    for clip, row in clips.items():
        if row.get("preview_tar") and _CLIP_ID.match(clip):
            wanted.setdefault(str(row["preview_tar"]), set()).add(clip)
    sizes = {}
    for tar in sorted(wanted):
        for clip, content in _strips(store, tar, wanted[tar]):
            size = jpeg_size(content)
            if size:
                out.write(f"{FOLDER}/{clip}.jpg", content)
                sizes[clip] = size
    return sizes


def sweep(out: Store, shown: Mapping[str, Any]) -> None:
    """Deletes strips of earlier reports that are not `shown`, and what killed writers left."""
    for name in out.names(FOLDER):
        clip = name.removesuffix(".jpg")
        if name.endswith(".jpg") and _CLIP_ID.match(clip) and clip not in shown:
            out.remove(f"{FOLDER}/{name}")
    out.sweep(FOLDER)
    out.sweep("")


def _strips(store: Store, tar: str, clips: set[str]) -> Iterator[tuple[str, bytes]]:
    """(clip id, JPEG) of those that are in the tar; a tar that is gone or damaged has none, or not all."""
    if not _TAR.match(tar):
        return
    left = set(clips)
    try:
        with store.open(f"previews/{tar}") as file, tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                clip = member.name.removesuffix(".jpg")
                if member.name.endswith(".jpg") and clip in left and member.isfile() and member.size <= MOST_BYTES:
                    content = members.extractfile(member)
                    if content is not None:
                        yield clip, content.read()
                    left.discard(clip)
                if not left:
                    return
    except (FileNotFoundError, tarfile.TarError, EOFError):
        return


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG by its frame header; None for what is none."""
    if content[:3] != b"\xff\xd8\xff":
        return None
    at = 2
    while at + 9 < len(content) and content[at] == 0xFF:
        kind, size = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at + k : at + k + 2], "big") for k in (5, 7))
            return (width, height) if width and height else None
        at += 2 + size
    return None


def writable(out: Store) -> None:
    """Raises DatasetError at once where the report could not be written in the end."""
    probe = f"{FOLDER}/.tmp-probe"
    try:
        out.write(probe, b"")
        out.remove(probe)
    except DatasetError as error:
        raise DatasetError(f"{error} (-o FOLDER)") from error
