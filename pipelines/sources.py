"""What the user points at, as a list of sources: files, folders, globs, lists, fsspec URLs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.errors import UsageError

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".flv",
        ".wmv",
        ".3gp",
        ".ogv",
        ".mxf",
        ".vob",
        ".f4v",
        ".asf",
    ]
)
LIST_SUFFIXES = frozenset((".txt", ".csv", ".jsonl", ".parquet"))
LIST_COLUMNS = ("uri", "start_s", "end_s", "box", "licence", "language", "origin", "identity")


@dataclass(frozen=True)
class SourceRequest:
    """One source as asked for. facts: columns of the sources table that the list gave."""

    uri: str
    path: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Listing:
    """Sources in order, without repeats; ignored: files in folders that do not look like video."""

    sources: list[SourceRequest]
    ignored: int = 0


def list_sources(arguments: Iterable[str]) -> Listing:
    """Expands the command line. Folders are searched through and sorted, so the order is the same each time.

    Raises UsageError for a path that is not there, a list that cannot be read, and when nothing is found.
    """
    found: dict[str, SourceRequest] = {}
    ignored = 0
    arguments = list(arguments)
    for argument in arguments:
        requests, skipped = _expand(argument)
        ignored += skipped
        for request in requests:
            found.setdefault(request.uri, request)
    if not found:
        more = f" ({ignored} other files; name a file itself to take it whatever its name)" if ignored else ""
        raise UsageError(f"no video in {', '.join(map(repr, arguments))}{more}")
    return Listing(list(found.values()), ignored)


def _expand(argument: str) -> tuple[list[SourceRequest], int]:
    if "://" in argument:
        return _expand_url(argument)
    path = Path(argument)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
        return [_plain(str(p.absolute())) for p in videos], len(files) - len(videos)
    if path.is_file():
        if path.suffix.lower() in LIST_SUFFIXES:
            return list(_read_list(path)), 0
        return [_plain(str(path.absolute()))], 0
    if any(sign in argument for sign in "*?["):
        base = Path(path.anchor or ".")
        matches = sorted(p for p in base.glob(str(path.relative_to(base) if path.anchor else path)) if p.is_file())
        return [_plain(str(p.absolute())) for p in matches], 0
    raise UsageError(f"no file or folder {argument!r}; check the path")


def _expand_url(argument: str) -> tuple[list[SourceRequest], int]:
    import fsspec

    if Path(argument).suffix.lower() in LIST_SUFFIXES:
        raise UsageError(f"{argument}: fetch the list first, lists are read from disk")
    try:
        fs, path = fsspec.core.url_to_fs(argument)
        if any(sign in argument for sign in "*?["):
            names = fs.glob(path)
        elif fs.isdir(path):
            names = fs.find(path)
        elif fs.exists(path):
            return [_plain(argument)], 0
        else:
            raise UsageError(f"nothing at {argument!r}; check the URL")
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"cannot list {argument!r}: {error}") from error
    videos = [fs.unstrip_protocol(n) for n in sorted(names) if Path(n).suffix.lower() in VIDEO_SUFFIXES]
    return [_plain(url) for url in videos], len(names) - len(videos)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _plain(path: str) -> SourceRequest:
    return SourceRequest(path, path)


def _read_list(path: Path) -> Iterator[SourceRequest]:
    for number, row in enumerate(_rows(path), 1):
        unknown = set(row) - set(LIST_COLUMNS)
        if unknown:
            raise UsageError(
                f"{path}: unknown column {sorted(map(str, unknown))[0]!r}; known: {', '.join(LIST_COLUMNS)}"
            )
        if not row.get("uri"):
            raise UsageError(f"{path}, row {number}: no uri")
        yield _from_row(row, path, number)


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".txt":
            lines = path.read_text().splitlines()
            return [{"uri": line} for line in lines if line.strip() and not line.startswith("#")]
        if kind == ".csv":
            return list(csv.DictReader(io.StringIO(path.read_text())))
        if kind == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        import pyarrow.parquet as pq

        return list(pq.read_table(path).to_pylist())
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot read the list {path}: {' '.join(str(error).split())}") from error


def _from_row(row: Mapping[str, Any], path: Path, number: int) -> SourceRequest:
    uri = str(row["uri"])
    if "://" not in uri and not Path(uri).is_absolute():
        uri = str((path.parent / uri).absolute())
    facts: dict[str, Any] = {}
    try:
        start, end = (float(row[k]) if row.get(k) not in (None, "") else None for k in ("start_s", "end_s"))
        box = _box(row.get("box"))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}, row {number}: {error}") from None
    if end is not None and end <= (start or 0.0):
        raise UsageError(f"{path}, row {number}: end_s {end} is not after start_s {start}")
    facts |= {k: str(row[k]) for k in ("licence", "language", "origin", "identity") if row.get(k)}
    fragment = []
    if start is not None or end is not None:
        facts |= {"window_start_s": start or 0.0, "window_end_s": end}
        fragment.append(f"t={start or 0.0:g},{'' if end is None else format(end, 'g')}")
    if box:
        facts["box"] = box
        fragment.append("xywh=" + ",".join(f"{v:g}" for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])))
    return SourceRequest(uri + ("#" + "&".join(fragment) if fragment else ""), uri, facts)


def _box(value: Any) -> list[float] | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    numbers = [float(v) for v in (value.split() if isinstance(value, str) else value)]
    if len(numbers) != 4 or numbers[2] <= numbers[0] or numbers[3] <= numbers[1] or min(numbers) < 0:
        raise ValueError(f"box {value!r} must be x0 y0 x1 y1 with x0 < x1 and y0 < y1")
    return numbers
