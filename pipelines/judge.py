"""`xstreamer judge`: verdicts from the tables, part by part, without a model."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.decisions import overrides
from manifests.records import CLIPS
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, batches
from manifests.verdicts import KEEP, VERDICTS, Profile, blind_rules, judge_table

OVERRIDE = pa.field("override", pa.string())
"""A person's decision that stands over the rules'; null where nobody decided."""


def verdict_path(profile: str) -> str:
    """Path of a profile's verdicts inside the dataset."""
    return f"verdicts/{profile}.parquet"


def judge(store: Store, profile: Profile) -> dict[str, int]:
    """Writes verdicts/PROFILE.parquet, a row a clip in the order of the clips table; clips by verdict.

    What people decided stands beside it, as `override`; the counts are of what results. Raises UsageError when a
    rule has no bound for the backend that measured.
    """
    counts: dict[str, int] = {}
    decided = overrides(store, profile.name)
    categories = [c.name for c in CLIPS if c.kind in ("category",)]
    wanted = profile.columns()
    encoded = [name for name in wanted if name in categories]
    with store.writing(verdict_path(profile.name)) as file:
        writer: pq.ParquetWriter | None = None
        for part in _ahead(batches(store, CLIPS_TABLE, wanted, encoded)):
            verdicts = judged(profile, part, decided)
            for entry in pc.value_counts(verdicts["verdict"].combine_chunks().indices).to_pylist():
                name = VERDICTS[entry["values"]]
                counts[name] = counts.get(name, 0) + entry["counts"]
            for row in verdicts.filter(pc.is_valid(verdicts["override"])).to_pylist() if decided else ():
                counts[row["verdict"]] -= 1
                counts[row["override"]] = counts.get(row["override"], 0) + 1
            if writer is None:
                writer = _writer(file, verdicts.schema)
            writer.write_table(verdicts)
        if writer is None:
            writer = _writer(file, judged(profile, _no_clips(wanted)).schema)
        writer.close()
    return counts


def _ahead(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same parts, the next read while one is judged."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            yield part


def judged(profile: Profile, clips: pa.Table, decided: Mapping[str, str] | None = None) -> pa.Table:
    """Verdicts of `clips` as the verdict file holds them: clip_id, verdict, failing, unmet, override.

    decided: {clip id: what people decided}.
    """
    override: pa.Array = pa.nulls(len(clips), pa.string())
    if decided:
        keys = pa.array(list(decided), pa.string())
        override = pa.array(list(decided.values()), pa.string()).take(
            pc.index_in(clips["clip_id"].combine_chunks(), keys)
        )
    return judge_table(profile, clips).append_column(OVERRIDE, override)


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=["verdict", "failing.list.element", "unmet.list.element"],
    )


def _no_clips(columns: Sequence[str]) -> pa.Table:
    return pa.schema([CLIPS_TABLE.schema.field(name) for name in columns]).empty_table()


def verdicts(store: Store, profile: str) -> pa.Table | None:
    """The verdicts of a profile as last judged: clip_id, verdict, failing, unmet, override; None before that."""
    try:
        content = store.read(verdict_path(profile))
    except FileNotFoundError:
        return None
    return pq.read_table(io.BytesIO(content))


def kept(store: Store, profile: Profile) -> list[str]:
    """Ids of the clips that the profile keeps, judged now, sorted."""
    judge(store, profile)
    table = verdicts(store, profile.name)
    assert table is not None
    final = pc.coalesce(table["override"], table["verdict"].cast(pa.string()))
    return sorted(table.filter(pc.equal(final, KEEP))["clip_id"].to_pylist())


def explain(profile: Profile, backends: Mapping[str, str], counts: Mapping[str, int], root: str) -> list[str]:
    """Lines that a person must know beside the counts: rules that are none here, what would settle the undecided."""
    lines = [
        f"{profile.name}: rule {rule.name} does not apply, {backend} cannot measure {rule.measure}"
        for rule, backend in blind_rules(profile, backends)
    ]
    if counts.get("undecided"):
        lines.append(
            f"{profile.name}: {counts['undecided']} clips undecided; measure what they lack with: "
            f"xstreamer curate -o {shlex.quote(root)} --profile {shlex.quote(profile.origin or profile.name)}"
        )
    return lines
