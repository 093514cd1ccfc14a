"""What the page works on: a dataset, a view of it, a log of decisions. One object a server, thread-safe."""

from __future__ import annotations

import re
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from manifests import dataset
from manifests.decisions import WITHDRAW, Decision, DecisionLog, read_decisions
from manifests.errors import DatasetError, UsageError, one_line
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE, lookup, read
from manifests.verdicts import Profile, parse_profile, profile_content
from pipelines.calibrate import next_path, read_clip_list
from pipelines.recipe import Recipe, check_profile, load_profile, shipped, stored_recipe
from pipelines.review.describe import (
    described_profile,
    measured,
    measures,
    profile_toml,
    shown_decision,
    shown_evidence,
)
from pipelines.review.previews import Previews
from pipelines.review.query import failing_rules, with_bounds
from pipelines.review.snapshot import Snapshot, load_snapshot, parts_of
from pipelines.review.view import Row, View
from pipelines.work import media_info

PROFILES = "profiles"
"""Folder of the dataset for profiles that were saved from the page."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
TEXTS = ("transcript", "overlay_text", "near_duplicate_of")
"""Measures that are read when a clip is looked at, the others are in memory."""
T = TypeVar("T")


class Desk:
    """Raises DatasetError when the dataset cannot be read, UsageError for a profile that does not fit it."""

    def __init__(self, root: str, profiles: tuple[str, ...] = (), reviewer: str = "reviewer") -> None:
        self.store, facts = dataset.load(root)
        self.recipe: Recipe = stored_recipe(facts, self.store.root)
        self.backends = self.recipe.backends
        self.reviewer = reviewer
        self.previews = Previews(self.store)
        self.read_only = _why_read_only(self.store)
        self._log = None if self.read_only else DecisionLog(self.store)
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self.profiles = self._profiles(profiles)
        self.view = self._read()

    def _profiles(self, asked: tuple[str, ...]) -> dict[str, Profile]:
        """The profiles asked for, the shipped ones that fit the recipe, and those saved in the dataset."""
        found = {}
        for name in asked:
            profile = load_profile(name)
            check_profile(profile, self.recipe)
            found[profile.name] = profile
        for name in shipped("profiles"):
            profile = load_profile(name)
            if self._fits(profile):
                found.setdefault(profile.name, profile)
        for file in self.store.names(PROFILES):
            if file.endswith(".toml"):
                profile = self._saved(f"{PROFILES}/{file}")
                if self._fits(profile):
                    found.setdefault(profile.name, profile)
        return found

    def _fits(self, profile: Profile) -> bool:
        try:
            check_profile(profile, self.recipe)
        except UsageError:  # it has no bound for this recipe's backends: it is for another dataset
            return False
        return True

    def _saved(self, path: str) -> Profile:
        try:
            content = tomllib.loads(self.store.read(path).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.store.url(path)} is not valid TOML: {error}; mend or delete it") from None
        return parse_profile(content, self.store.url(path))

    def _read(self) -> View:
        snapshot, decisions = load_snapshot(self.store), read_decisions(self.store)
        view = View(snapshot, _uris(self.store, snapshot), tuple(decisions))
        for profile in list(self.profiles.values())[:1]:  # so that the first page does not wait for it
            view.judged(profile)
        return view

    def reload(self) -> View:
        """Takes in what was written since. The page goes on with the old state until the new one is whole."""
        with self._loading:
            found = self._read()
            with self._lock:
                self.view = found.after(self.view.decisions)
                return self.view

    def stale(self) -> bool:
        """Whether the clips table has changed since the view."""
        return parts_of(self.store) != self.view.snapshot.parts

    def profile(self, name: str, bounds: Mapping[str, Any] | None = None) -> Profile:
        """Raises UsageError for an unknown profile or rule, or a bound that is none."""
        if name not in self.profiles:
            raise UsageError(f"no profile {name[:80]!r}; there is {', '.join(self.profiles)}")
        return with_bounds(self.profiles[name], bounds or {}, self.backends)

    def decide(self, facts: Mapping[str, Any]) -> tuple[Decision, Row]:
        """Stores a decision; (it, the clip's row then), on the disk when this returns.

        facts: clip_id, profile, choice, and where given reason, undoes, reviewer, bounds (as the page has moved them,
        for the verdict that was seen). Raises UsageError, DatasetError.
        """
        if self._log is None:
            raise DatasetError(f"nothing can be decided here: {self.read_only}")
        given = {name: facts.get(name, "") for name in ("clip_id", "profile", "choice", "reason", "undoes")}
        reviewer, bounds = facts.get("reviewer") or self.reviewer, facts.get("bounds") or {}
        if not all(isinstance(value, str) for value in (*given.values(), reviewer)) or not isinstance(bounds, dict):
            raise UsageError("a decision is made of texts, its bounds of {rule: bound}")
        view, profile = self.view, self.profile(given["profile"], bounds)
        place = view.snapshot.place(given["clip_id"])
        if place is None:
            raise UsageError(f"no clip {given['clip_id'][:80]!r} in this dataset")
        failing, unmet = failing_rules(view.judged(profile), place)
        verdict = "reject" if failing else "undecided" if unmet else "keep"
        with self._lock:
            if given["choice"] == WITHDRAW:
                self._check_withdrawal(given)
            try:
                decision = Decision(**given, reviewer=reviewer, verdict=verdict, failing=tuple(failing))
            except ValueError as error:
                raise UsageError(str(error)) from None
            self._log.add(decision)
            view = self.view = self.view.after([decision])
        at = view.snapshot.place(given["clip_id"])
        return decision, view.row(profile, view.judged(profile), place if at is None else at)

    def _check_withdrawal(self, given: Mapping[str, str]) -> None:
        """Raises UsageError unless it takes back a decision about this very clip and profile, for the first time."""
        same = [d for d in self.view.decisions if d.clip_id == given["clip_id"] and d.profile == given["profile"]]
        if not any(d.decision_id == given["undoes"] and d.choice != WITHDRAW for d in same):
            raise UsageError("that decision is not known here; reload the page")
        if any(d.undoes == given["undoes"] for d in same):
            raise UsageError("that decision was taken back already; reload the page")

    def take_in_decisions(self) -> int:
        """Reads what other reviewers decided meanwhile; how many decisions there are now."""
        found = read_decisions(self.store)
        with self._lock:
            self.view = self.view.after(found)
            return len(self.view.decisions)

    def last_decision(self, reviewer: str, profile: str) -> Row | None:
        """What `reviewer` would undo: the last decision of theirs that holds, with the clip it is about."""
        view = self.view
        found = view.last_of(reviewer, profile)
        if found is None:
            return None
        place = view.snapshot.place(found.clip_id)
        return {**shown_decision(found), "clip_id": found.clip_id, "source": "" if place is None else view.uri(place)}

    def save_profile(self, name: str, base: str, bounds: Mapping[str, Any]) -> str:
        """Writes profiles/NAME.toml in the dataset; its path. Raises UsageError for a name that is taken or none."""
        if self.read_only:
            raise DatasetError(f"nothing can be saved here: {self.read_only}")
        if not NAME.fullmatch(name):
            raise UsageError(f"profile name {name[:80]!r}: give 1 to 60 letters a-z, digits, - and _")
        content = profile_content(replace(self.profile(base, bounds), name=name))
        parsed = parse_profile(content, "the new profile")
        path = f"{PROFILES}/{name}.toml"
        with self._lock:
            if name in self.profiles or self.store.exists(path):
                raise UsageError(f"there is a profile {name[:80]!r} already; choose another name")
            self.store.write(path, profile_toml(content, base).encode())
            self.profiles = {**self.profiles, name: replace(parsed, origin=self.store.url(path))}
        return self.store.url(path)

    def clip(self, clip_id: str, profile: Profile) -> Row:
        """All that is known of a clip. Raises UsageError when there is none of that id."""
        view = self.view
        place = view.snapshot.place(clip_id)
        if place is None:
            raise UsageError(f"no clip {clip_id[:80]!r} in this dataset")
        texts = _again(lambda: lookup(self.store, CLIPS_TABLE, [clip_id], TEXTS)).to_pylist()
        row = {**view.snapshot.row(place), **(texts[0] if texts else {})}
        found = _again(lambda: lookup(self.store, RUNS_TABLE, [clip_id]))
        runs = {run["stage"]: run for run in found.to_pylist()}
        source: Row = next(iter(_again(lambda: lookup(self.store, SOURCES_TABLE, [view.uri(place)])).to_pylist()), {})
        path = str(source.get("path") or "")
        return {
            **view.row(profile, view.judged(profile), place),
            "from": {name: source.get(name) for name in ("uri", "width", "height", "licence", "origin", "identity")},
            "source_gone": bool(path) and "://" not in path and not Path(path).is_file(),
            "picture": _picture(source),
            "end_s": int(view.snapshot.ids.end_ms[place]) / 1000,
            "measures": measured(row, profile, self.backends),
            "errors": [
                {"stage": stage, "status": run["status"], "error": run["error"]}
                for stage, run in runs.items()
                if run["error"]
            ],
            "evidence": shown_evidence(runs),
            "history": [shown_decision(one) for one in view.decisions if one.clip_id == clip_id],
        }

    def listed(self, profile: Profile, view: View) -> list[int]:
        """Places of the clips that `xstreamer calibrate` drew for review under `profile`, the most telling first."""
        try:
            text = self.store.read(next_path(profile)).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = (view.snapshot.place(clip) for clip in read_clip_list(text))
        return [place for place in found if place is not None]

    def described(self) -> Row:
        """What the page must know to draw itself."""
        view = self.view
        return {
            "dataset": self.store.root,
            "clips": len(view.snapshot),
            "seconds": float(view.snapshot.seconds.sum(dtype="float64")),
            "recipe": self.recipe.name,
            "backends": self.backends,
            "reviewer": self.reviewer,
            "read_only": self.read_only,
            "stale": self.stale(),
            "profiles": [described_profile(profile, self.backends) for profile in self.profiles.values()],
            "listed": [one.name for one in self.profiles.values() if self.store.exists(next_path(one))],
            "measures": measures(),
        }


def _again(look: Callable[[], T]) -> T:
    """What `look` finds, once more when the table was compacted meanwhile."""
    for attempt in range(5):
        try:
            return look()
        except FileNotFoundError:
            time.sleep(0.02 * attempt)
    return look()


def _uris(store: Store, snapshot: Snapshot) -> pa.Array:
    """[sources] uri of each source of the snapshot, null where the sources table has none."""
    rows = read(store, SOURCES_TABLE, ["source_id", "uri", "status"])
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    places = pc.index_in(pa.array(snapshot.ids.sources, pa.string()), rows["source_id"].combine_chunks())
    return rows["uri"].combine_chunks().take(places)


def _picture(source: Mapping[str, Any]) -> Row:
    """Size of what clips of a source show, px: of its box where the list gave one."""
    if not source:
        return {"width": None, "height": None}
    info = media_info(source)
    return {"width": info.width, "height": info.height}


def _why_read_only(store: Store) -> str:
    """Why nothing can be written to the dataset, "" where it can be."""
    try:
        store.local()
        store.write("decisions/.probe", b"")
        store.remove("decisions/.probe")
    except (DatasetError, OSError) as error:
        return one_line(error)
    return ""
