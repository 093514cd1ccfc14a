"""Tables of a dataset: Parquet parts under tables/NAME, appended to by one coordinator, merged on read.

A part is named GENERATION-INDEX.parquet. A row replaces every row of the same key in older generations, so
a crash between writing and tidying up loses nothing and doubles nothing. `compact` rewrites a table as one
sorted generation, in which an undisturbed run and a resumed one agree.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import DatasetError
from manifests.records import CLIPS, RUNS, SAMPLES, SOURCES, Column
from manifests.store import Store

_TYPES = {
    "string": pa.string(),
    "category": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "list<float64>": pa.list_(pa.float64()),
}
ROWS_PER_PART = 65_536
RETIRED = -1
"""`scene` of a clip row that stands for a clip which is no more (its source was cut anew)."""


class Table:
    """One table of the dataset: its columns and key."""

    def __init__(
        self,
        name: str,
        columns: Sequence[Column],
        key: tuple[str, ...],
        sort: tuple[str, ...],
        row_group: int = ROWS_PER_PART,
    ) -> None:
        self.name, self.columns, self.key, self.sort = name, tuple(columns), key, sort
        self.row_group = row_group
        self.schema = pa.schema([(c.name, _TYPES[c.kind]) for c in columns])
        self.folder = f"tables/{name}"

    def categories(self, columns: Iterable[str] | None = None) -> list[str]:
        """Columns that read back dictionary-encoded: few values, little memory."""
        wanted = None if columns is None else set(columns)
        return [c.name for c in self.columns if c.kind == "category" and (wanted is None or c.name in wanted)]


SOURCES_TABLE = Table("sources", SOURCES, ("uri",), ("order", "uri"))
CLIPS_TABLE = Table("clips", CLIPS, ("clip_id",), ("clip_id",))
RUNS_TABLE = Table("runs", RUNS, ("clip_id", "stage"), ("clip_id", "stage"), 2048)  # `lookup` reads a few kB each
SAMPLES_TABLE = Table("samples", SAMPLES, ("sample_id",), ("sample_id",))
TABLES = (SOURCES_TABLE, CLIPS_TABLE, RUNS_TABLE, SAMPLES_TABLE)


def parts(store: Store, table: Table) -> list[str]:
    """Names of the parts, oldest generation first."""
    return [name for name in store.names(table.folder) if name.endswith(".parquet")]


def generation(part: str) -> int:
    """Generation of a part by its name. Raises DatasetError for a name that is none."""
    try:
        return int(part.split("-")[0])
    except ValueError:
        raise DatasetError(f"{part} is no table part; take it out of the tables folder") from None


def append(store: Store, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds `rows` (unique keys) as a new generation. Missing columns are null, unknown ones an error."""
    if not rows:
        return
    known = set(table.schema.names)
    unknown = {name for row in rows for name in row} - known
    if unknown:
        raise ValueError(f"{table.name} has no column {sorted(unknown)[0]}")
    arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in table.schema]
    _write(store, table, pa.Table.from_arrays(arrays, schema=table.schema), _next_generation(store, table), 0)


def _next_generation(store: Store, table: Table) -> int:
    names = parts(store, table)
    return generation(names[-1]) + 1 if names else 0


def _write(store: Store, table: Table, content: pa.Table, number: int, index: int) -> None:
    buffer = io.BytesIO()
    options = {"compression": "zstd", "use_dictionary": table.categories(), "write_statistics": True}
    pq.write_table(content, buffer, row_group_size=table.row_group, **options)
    store.write(f"{table.folder}/{number:08d}-{index:05d}.parquet", buffer.getvalue())


def read(store: Store, table: Table, columns: Sequence[str] | None = None) -> pa.Table:
    """The table, one row a key, in canonical order. columns: those wanted, all by default.

    Raises DatasetError for a part that cannot be read.
    """
    wanted = list(columns) if columns is not None else list(table.schema.names)
    needed = dict.fromkeys((*table.key, *table.sort, *(("scene",) if table is CLIPS_TABLE else ())))
    extra = [name for name in needed if name not in wanted]
    for attempt in range(5):
        try:
            merged = _merged(store, table, [*wanted, *extra])
            break
        except FileNotFoundError:  # compacted between listing and reading: list again
            if attempt == 4:
                raise
    return merged.select(wanted)


def _merged(store: Store, table: Table, columns: list[str]) -> pa.Table:
    names = parts(store, table)
    pieces = [_read_part(store, table, name, columns) for name in names]
    if not pieces:
        return pa.schema([table.schema.field(c) for c in columns]).empty_table()
    whole = pa.concat_tables(pieces, promote_options="default")
    if len({generation(name) for name in names}) > 1:
        whole = _latest(whole, table.key)
    whole = whole.sort_by([(c, "ascending") for c in table.sort])
    if table is CLIPS_TABLE:
        alive = pc.not_equal(whole["scene"], RETIRED)
        whole = whole if pc.all(alive).as_py() else whole.filter(alive)
    return whole


def _read_part(store: Store, table: Table, name: str, columns: list[str]) -> pa.Table:
    try:
        with store.open(f"{table.folder}/{name}") as file:
            return pq.read_table(file, columns=columns)
    except pa.ArrowException as error:
        raise DatasetError(
            f"{store.url(f'{table.folder}/{name}')} cannot be read ({error}); delete it and run curate again"
        ) from error


def lookup(store: Store, table: Table, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows whose first key column is one of `ids`, as `read` has them, without reading the whole table.

    Raises DatasetError for a part that cannot be read, FileNotFoundError when the table is compacted meanwhile.
    """
    wanted = list(columns) if columns is not None else list(table.schema.names)
    needed = (*table.key, *table.sort, *(("scene",) if table is CLIPS_TABLE else ()))
    names = list(dict.fromkeys((*wanted, *needed)))
    pieces = [_lookup_part(store, table, part, sorted(ids), names) for part in parts(store, table)]
    if not pieces:
        return pa.schema([table.schema.field(c) for c in wanted]).empty_table()
    whole = _latest(pa.concat_tables(pieces, promote_options="default"), table.key)
    whole = whole.sort_by([(c, "ascending") for c in table.sort])
    if table is CLIPS_TABLE:
        whole = whole.filter(pc.fill_null(pc.not_equal(whole["scene"], RETIRED), True))
    return whole.select(wanted)


def _lookup_part(store: Store, table: Table, name: str, ids: Sequence[str], columns: list[str]) -> pa.Table:
    """Rows of one part, by the row groups whose range may hold one of `ids` (sorted)."""
    try:
        with store.open(f"{table.folder}/{name}") as file:
            part = pq.ParquetFile(file)
            at = part.schema_arrow.get_field_index(table.key[0])
            groups = [
                group
                for group in range(part.num_row_groups)
                if _may_hold(part.metadata.row_group(group).column(at), ids)
            ]
            found = part.read_row_groups(groups, columns=columns)
    except pa.ArrowException as error:
        raise DatasetError(
            f"{store.url(f'{table.folder}/{name}')} cannot be read ({error}); delete it and run curate again"
        ) from error
    return found.filter(pc.is_in(found[table.key[0]].cast(pa.string()), pa.array(ids, pa.string())))


def _may_hold(column: Any, ids: Sequence[str]) -> bool:
    facts = column.statistics
    if facts is None or not facts.has_min_max:
        return True
    at = bisect_left(ids, facts.min)
    return at < len(ids) and ids[at] <= facts.max


def _latest(whole: pa.Table, key: tuple[str, ...]) -> pa.Table:
    """Of the rows of each key the last."""
    numbered = whole.select(list(key)).append_column("row", pa.array(range(len(whole)), pa.int64()))
    last = numbered.group_by(list(key)).aggregate([("row", "max")])["row_max"]
    return whole.take(last.combine_chunks().sort())


def compact(store: Store, table: Table) -> None:
    """Rewrites the table as one sorted generation of parts of 65,536 rows, then deletes the older ones."""
    names = parts(store, table)
    if not names:
        return
    whole = read(store, table)
    number = generation(names[-1]) + 1
    for index, start in enumerate(range(0, max(1, len(whole)), ROWS_PER_PART)):
        _write(store, table, whole.slice(start, ROWS_PER_PART).combine_chunks(), number, index)
    for name in names:
        store.remove(f"{table.folder}/{name}")
    store.sweep(table.folder)


def is_compact(store: Store, table: Table) -> bool:
    """True when the parts are one generation: every key once."""
    return len({generation(name) for name in parts(store, table)}) <= 1


def batches(store: Store, table: Table, columns: Sequence[str], dictionary: Sequence[str] = ()) -> Iterator[pa.Table]:
    """A compact table part by part, in order, in bounded memory; `dictionary`: columns to read encoded.

    Falls back to one merged read while the table holds several generations.
    """
    if not is_compact(store, table):
        yield read(store, table, columns)
        return
    for name in parts(store, table):
        with store.open(f"{table.folder}/{name}") as file:
            wanted = [*columns, *(["scene"] if table is CLIPS_TABLE and "scene" not in columns else [])]
            piece = pq.read_table(file, columns=wanted, read_dictionary=list(dictionary))
        if table is CLIPS_TABLE:
            alive = pc.not_equal(piece["scene"], RETIRED)
            piece = piece if pc.all(alive).as_py() else piece.filter(alive)
        yield piece.select(list(columns))
