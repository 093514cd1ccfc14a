"""What the clips are made of: languages, durations, sources and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.store import Store
from manifests.tables import SOURCES_TABLE
from pipelines.report.frozen import Frozen
from pipelines.report.ids import hashes
from pipelines.report.spread import codes_of

Row = dict[str, Any]
FACTS = ("licence", "language", "container", "video_codec", "audio_codec")
TOP_SOURCES = 20
TOP_VALUES = 15
FAILED_SHOWN = 100
LONGEST_S = 30
_SIZES = ((480, "below 480"), (720, "480 to 719"), (1080, "720 to 1079"), (2160, "1080 to 2159"))


class Mix:
    """Clips and seconds, all and kept under each profile, by source and by language."""

    def __init__(self, frozen: Frozen, profiles: Sequence[str]) -> None:
        self.profiles = tuple(profiles)
        columns = ["uri", "source_id", "status", "error", "duration_s", "height", *FACTS]
        pieces = [rows for _, rows in frozen.batches(SOURCES_TABLE, columns)]
        self.table = pa.concat_tables(pieces).unify_dictionaries() if pieces else _no_sources(columns)
        names, codes = codes_of(self.table["status"])
        self.status = {name: codes == place for place, name in enumerate(names)}
        ids = hashes(self.table["source_id"])
        usable = np.flatnonzero(self.status.get("ok", np.zeros(len(ids), bool)))
        self._rows = usable[np.argsort(ids[usable], kind="stable")]
        self._ids = ids[self._rows]
        shape = (len(self.table), 1 + len(self.profiles))
        self.clips, self.seconds = np.zeros(shape, np.int64), np.zeros(shape)
        self.languages: dict[str | None, np.ndarray] = {}
        self.durations = np.zeros((LONGEST_S + 1, 1 + len(self.profiles)))

    def see(self, rows: pa.Table, seconds: np.ndarray, kept: Sequence[np.ndarray]) -> None:
        """Counts `rows` (source_id, spoken_language) of so many `seconds` [n]; kept: a mask for each profile."""
        masks = [np.ones(len(rows), bool), *kept]
        if len(self._ids):
            at = np.minimum(np.searchsorted(self._ids, found := hashes(rows["source_id"])), len(self._ids) - 1)
            known, places = self._ids[at] == found, self._rows[at]
            for column, mask in enumerate(masks):
                some = known & mask
                np.add.at(self.clips[:, column], places[some], 1)
                np.add.at(self.seconds[:, column], places[some], seconds[some])
        names, codes = codes_of(rows["spoken_language"])
        lengths = np.minimum(seconds, LONGEST_S).astype(np.int64)
        for column, mask in enumerate(masks):
            sums = np.bincount(codes[mask] + 1, seconds[mask], minlength=len(names) + 1)
            for name, total in zip([None, *names], sums, strict=True):
                self.languages.setdefault(name, np.zeros(len(masks)))[column] += total
            self.durations[:, column] += np.bincount(lengths[mask], seconds[mask], minlength=LONGEST_S + 1)

    def facts(self) -> dict[str, list[Row]]:
        """{fact: [{"value", "seconds", "kept": {profile: seconds}}]}, most first."""
        out = {"spoken language": self._shown({name or "not told": s for name, s in self.languages.items()})}
        for fact in FACTS:
            names, codes = codes_of(self.table[fact])
            out[f"{fact.replace('_', ' ')} of the source"] = self._by(codes, ["not given", *names])
        heights = np.asarray(self.table["height"].fill_null(0))
        sizes = np.searchsorted([limit for limit, _ in _SIZES], heights, side="right")
        out["height of the source, px"] = self._by(
            np.where(heights > 0, sizes, -1), ["not known", *(name for _, name in _SIZES), "2160 and more"]
        )
        return {name: rows for name, rows in out.items() if rows}

    def _by(self, codes: np.ndarray, names: Sequence[str]) -> list[Row]:
        sums = [np.bincount(codes + 1, column, minlength=len(names)) for column in self.seconds.T]
        return self._shown({name: np.array(found) for name, *found in zip(names, *sums, strict=True)})

    def _shown(self, found: Mapping[str, np.ndarray]) -> list[Row]:
        order = sorted((name for name in found if found[name][0] > 0), key=lambda name: (-found[name][0], name))
        out = [self._row(name, found[name]) for name in order[:TOP_VALUES]]
        if len(order) > TOP_VALUES:
            rest = sum((found[name] for name in order[TOP_VALUES:]), np.zeros(1 + len(self.profiles)))
            out.append(self._row(f"{len(order) - TOP_VALUES} others", rest))
        return out

    def _row(self, name: str, found: np.ndarray) -> Row:
        kept = dict(zip(self.profiles, (float(s) for s in found[1:]), strict=True))
        return {"value": name, "seconds": float(found[0]), "kept": kept}

    def top_sources(self) -> list[Row]:
        """Those with the most seconds in clips."""
        order = np.lexsort((np.arange(len(self.clips)), -self.seconds[:, 0]))[:TOP_SOURCES]
        return [
            self._row(self.table["uri"][int(at)].as_py(), self.seconds[at]) | {"clips": int(self.clips[at, 0])}
            for at in order
            if self.clips[at, 0]
        ]

    def statuses(self) -> dict[str, Row]:
        """{status: {"files", "seconds"}}."""
        lengths = np.nan_to_num(self.table["duration_s"].to_numpy())
        return {
            name: {"files": int(mask.sum()), "seconds": float(lengths[mask].sum())}
            for name, mask in sorted(self.status.items())
        }

    def failed(self) -> list[Row]:
        """Sources that could not be used: {"uri", "error"}, the first FAILED_SHOWN."""
        failed = np.flatnonzero(self.status.get("failed", np.zeros(0, bool)))[:FAILED_SHOWN]
        return self.table.select(["uri", "error"]).take(pa.array(failed)).to_pylist()

    def lengths(self) -> Callable[[pa.Array], np.ndarray]:
        """Seconds of video by source id."""
        durations = np.nan_to_num(self.table["duration_s"].to_numpy())[self._rows]

        def look(ids: pa.Array) -> np.ndarray:
            if not len(self._ids):
                return np.full(len(ids), np.nan)
            found = hashes(ids)
            at = np.minimum(np.searchsorted(self._ids, found), len(self._ids) - 1)
            return np.where(self._ids[at] == found, durations[at], np.nan)

        return look


def _no_sources(columns: Sequence[str]) -> pa.Table:
    return pa.schema([SOURCES_TABLE.schema.field(name) for name in columns]).empty_table()


def name_of(store: Store) -> str:
    """Last part of the dataset's path."""
    return store.root.rstrip("/").rsplit("/", 1)[-1] or store.root
