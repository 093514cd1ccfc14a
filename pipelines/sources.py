"""What the user points at, as a list of sources: files, folders, globs, lists, fsspec URLs."""

from __future__ import annotations

import csv
import io
import json
import math
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
LIST_FACTS = ("licence", "language", "origin", "identity")
LIST_COLUMNS = ("uri", "start_s", "end_s", "box", *LIST_FACTS)


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
        try:
            found = sorted(base.glob(str(path.relative_to(base) if path.anchor else path)))
        except ValueError as error:
            raise UsageError(f"{argument!r} is no pattern: {error}") from None
        return [_plain(str(p.absolute())) for p in found if p.is_file()], 0
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
    return SourceRequest(_utf8(path), _utf8(path))


def _utf8(text: str) -> str:
    """`text` as tables can hold it. A file whose name is no UTF-8 is then not found, and listed as failed."""
    return text.encode("utf-8", "backslashreplace").decode()


def _read_list(path: Path) -> Iterator[SourceRequest]:
    for number, row in _rows(path):
        try:
            yield _from_row(row, path)
        except ValueError as error:
            raise UsageError(f"{path}, row {number}: {error}") from None


def _rows(path: Path) -> list[tuple[int, Any]]:
    """(number, row) of a list; lines of text and JSON are numbered as they stand in the file."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            import pyarrow.parquet as pq

            return list(enumerate(pq.ParquetFile(path).read().to_pylist(), 1))
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel begins a CSV with a byte order mark
            text = file.read()
        if kind == ".csv":
            return list(enumerate(csv.DictReader(io.StringIO(text, newline=""), restkey="(no header)"), 1))
        lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
        if kind == ".txt":
            return [(n, {"uri": line}) for n, line in lines if line.strip() and not line.startswith("#")]
        return [(n, _object(line, n)) for n, line in lines if line.strip()]
    except (ValueError, OSError, csv.Error, NotImplementedError) as error:
        raise UsageError(f"cannot read the list {path}: {error}; mend or leave it out") from error


def _object(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON ({error})") from None


def _from_row(row: Any, path: Path) -> SourceRequest:
    """One row of a list. Raises ValueError that says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f'{row!r} is no JSON object; write {{"uri": ...}}')
    unknown = set(row) - set(LIST_COLUMNS)
    if unknown:
        raise ValueError(f"unknown column {sorted(unknown)[0]!r}; known: {', '.join(LIST_COLUMNS)}")
    if _empty(row.get("uri")):
        raise ValueError("no uri")
    uri = _utf8(str(row["uri"]))
    if "\0" in uri:
        raise ValueError(f"no file has the name {uri!r}")
    if "://" not in uri and not Path(uri).is_absolute():
        uri = str((path.parent / uri).absolute())
    start, end, box = _seconds(row, "start_s"), _seconds(row, "end_s"), _box(row.get("box"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"end_s {end} is not after start_s {start or 0.0}")
    facts: dict[str, Any] = {k: _utf8(str(row[k])) for k in LIST_FACTS if not _empty(row.get(k))}
    fragment = []
    if start is not None or end is not None:
        facts |= {"window_start_s": start or 0.0, "window_end_s": end}
        fragment.append(f"t={_plain_number(start or 0.0)},{'' if end is None else _plain_number(end)}")
    if box:
        facts["box"] = box
        corner_and_size = (box[0], box[1], box[2] - box[0], box[3] - box[1])
        fragment.append("xywh=" + ",".join(map(_plain_number, corner_and_size)))
    return SourceRequest(uri + ("#" + "&".join(fragment) if fragment else ""), uri, facts)


def _plain_number(value: float) -> str:
    """All digits that tell two spans apart, no more."""
    return f"{value:.12g}"


def _empty(value: Any) -> bool:
    return value is None or value == "" or value != value


def _seconds(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (ValueError, TypeError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} {value!r} must be a number of seconds, 0 or more")
    return number


def _box(value: Any) -> list[float] | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        numbers = [float(v) for v in (value.replace(",", " ").split() if isinstance(value, str) else value)]
    except (ValueError, TypeError):
        numbers = []
    good = len(numbers) == 4 and all(map(math.isfinite, numbers)) and min(numbers) >= 0
    if not good or numbers[2] <= numbers[0] or numbers[3] <= numbers[1]:
        raise ValueError(f"box {value!r} must be x0 y0 x1 y1 with x0 < x1 and y0 < y1")
    return numbers
