"""What the page works on: a dataset, a snapshot of it, the decisions so far. One object a server, thread-safe."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from manifests import dataset
from manifests.decisions import WITHDRAW, Decision, DecisionLog, read_decisions, standing
from manifests.errors import DatasetError, UsageError, one_line
from manifests.records import CLIP_STAGES, GEOMETRY, MEASURES
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE, lookup, read
from manifests.verdicts import TESTS, Profile, Rule, parse_profile, profile_content
from pipelines.recipe import Recipe, check_profile, load_profile, shipped, stored_recipe
from pipelines.review.previews import Previews
from pipelines.review.query import Judged, failing_rules, judge_snapshot, with_bounds
from pipelines.review.snapshot import NUMERIC, Snapshot, decided_places, load_snapshot, parts_of
from pipelines.work import media_info

Row = dict[str, Any]
PROFILES = "profiles"
"""Folder of the dataset for profiles that were saved from the page."""
EVIDENCE = ("speech", "speakers", "sync", "overlay", "transcribe", "preview")
DOCS = {column.name: column for column in (*GEOMETRY, *MEASURES)}


class Desk:
    """Raises DatasetError when the dataset cannot be read."""

    def __init__(self, root: str, profiles: tuple[str, ...] = (), reviewer: str = "reviewer") -> None:
        self.store, facts = dataset.load(root)
        self.recipe: Recipe = stored_recipe(facts, self.store.root)
        self.reviewer = reviewer
        self.previews = Previews(self.store)
        self.read_only = _why_read_only(self.store)
        self._log = None if self.read_only else DecisionLog(self.store)
        self._lock = threading.Lock()
        self.profiles = self._profiles(profiles)
        self._uris: dict[str, str] = {}
        self.reload()

    def _profiles(self, asked: tuple[str, ...]) -> dict[str, Profile]:
        """The profiles asked for, the shipped ones that fit the recipe, and those saved in the dataset."""
        found = {}
        for name in asked:
            profile = load_profile(name)
            check_profile(profile, self.recipe)
            found[profile.name] = profile
        for name in shipped("profiles"):
            profile = load_profile(name)
            try:
                check_profile(profile, self.recipe)
            except UsageError:  # it has no bound for this recipe's backends
                continue
            found.setdefault(profile.name, profile)
        for file in self.store.names(PROFILES):
            if file.endswith(".toml"):
                text = self.store.read(f"{PROFILES}/{file}").decode()
                profile = parse_profile(tomllib.loads(text), self.store.url(f"{PROFILES}/{file}"))
                found.setdefault(profile.name, profile)
        return found

    def reload(self) -> None:
        """Takes in what was written since. The page goes on with the old state until the new one is whole."""
        snapshot, decisions = load_snapshot(self.store), read_decisions(self.store)
        rows = read(self.store, SOURCES_TABLE, ["source_id", "uri", "status"]).to_pylist()
        with self._lock:
            self.snapshot: Snapshot = snapshot
            self._decisions = decisions
            self._uris = {row["source_id"]: row["uri"] for row in rows if row["status"] == "ok"}

    def stale(self) -> bool:
        """Whether the clips table has changed since the snapshot."""
        return parts_of(self.store) != self.snapshot.parts

    def profile(self, name: str, bounds: Mapping[str, Any] | None = None) -> Profile:
        """Raises UsageError for an unknown profile or rule."""
        if name not in self.profiles:
            raise UsageError(f"no profile {name!r}; there is {', '.join(self.profiles)}")
        return with_bounds(self.profiles[name], bounds or {}, self.recipe.backends)

    def decided(self, profile: str) -> dict[str, Decision]:
        """{clip id: the decision that stands}, those of other reviewers included."""
        with self._lock:
            return standing(self._decisions, profile)

    def decided_places(self, profile: str) -> dict[int, str]:
        """{place in the snapshot: keep or reject}."""
        return decided_places(self.snapshot, {clip: one.choice for clip, one in self.decided(profile).items()})

    def judged(self, profile: Profile) -> Judged:
        return judge_snapshot(self.snapshot, profile, self.decided_places(profile.name))

    def decide(self, facts: Mapping[str, Any]) -> Decision:
        """Stores a decision; it is on the disk when this returns. Raises UsageError, DatasetError."""
        if self._log is None:
            raise DatasetError(f"nothing can be decided here: {self.read_only}")
        fields = ("clip_id", "profile", "choice", "reason", "undoes")
        given = {name: facts.get(name, "") for name in fields}
        place = self.snapshot.place(str(given["clip_id"]))
        if place is None or not all(isinstance(value, str) for value in given.values()):
            raise UsageError(f"no clip {str(given['clip_id'])[:80]!r} in this dataset")
        profile = self.profile(str(given["profile"]))
        failing, unmet = failing_rules(self.judged(profile), place)
        verdict = "reject" if failing else "undecided" if unmet else "keep"
        reviewer = str(facts.get("reviewer") or self.reviewer)
        try:
            decision = Decision(**given, reviewer=reviewer, verdict=verdict, failing=tuple(failing))
        except ValueError as error:
            raise UsageError(str(error)) from None
        with self._lock:
            if decision.choice == WITHDRAW and not any(d.decision_id == decision.undoes for d in self._decisions):
                raise UsageError("that decision is not known here; reload the page")
            self._log.add(decision)
            self._decisions = [*self._decisions, decision]
        return decision

    def take_in_decisions(self) -> int:
        """Reads what other reviewers decided meanwhile; how many decisions there are now."""
        found = read_decisions(self.store)
        with self._lock:
            self._decisions = found
        return len(found)

    def save_profile(self, name: str, base: str, bounds: Mapping[str, Any]) -> str:
        """Writes profiles/NAME.toml in the dataset; its path. Raises UsageError for a name that is taken or none."""
        if self.read_only:
            raise DatasetError(f"nothing can be saved here: {self.read_only}")
        if name in self.profiles:
            raise UsageError(f"there is a profile {name!r} already; choose another name")
        content = profile_content(replace(self.profile(base, bounds), name=name))
        parsed = parse_profile(content, "the new profile")  # checks the name before it becomes a path
        path = f"{PROFILES}/{name}.toml"
        self.store.write(path, profile_toml(content, base).encode())
        with self._lock:
            self.profiles = {**self.profiles, name: replace(parsed, origin=self.store.url(path))}
        return self.store.url(path)

    def uri(self, place: int) -> str:
        return self._uris.get(self.snapshot.sources[self.snapshot.source[place]], "")

    def clip(self, clip_id: str, profile: Profile) -> Row:
        """All that is known of a clip. Raises UsageError when there is none of that id."""
        place = self.snapshot.place(clip_id)
        if place is None:
            raise UsageError(f"no clip {clip_id[:80]!r} in this dataset")
        rows = lookup(self.store, CLIPS_TABLE, [clip_id]).to_pylist()
        runs = {run["stage"]: run for run in lookup(self.store, RUNS_TABLE, [clip_id]).to_pylist()}
        row = rows[-1] if rows else {}
        failing, unmet = failing_rules(self.judged(profile), place)
        source: Row = next(iter(lookup(self.store, SOURCES_TABLE, [self.uri(place)]).to_pylist()), {})
        return {
            "clip_id": clip_id,
            "source": {name: source.get(name) for name in ("uri", "width", "height", "licence", "origin", "identity")},
            "picture": _picture(source),
            "start_s": row.get("start_s"),
            "end_s": row.get("end_s"),
            "measures": [
                self._measure(name, row, profile) for name in DOCS if DOCS[name].stage or name == "duration_s"
            ],
            "stages": [
                {"stage": stage, "status": row.get(f"{stage}_status"), "error": runs.get(stage, {}).get("error")}
                for stage in CLIP_STAGES
            ],
            "failing": failing,
            "unmet": unmet,
            "evidence": {stage: _evidence(runs.get(stage)) for stage in EVIDENCE},
            "history": [_shown(one) for one in self._decisions if one.clip_id == clip_id],
            "has_preview": self.snapshot.preview_tar(place) is not None,
        }

    def _measure(self, name: str, row: Mapping[str, Any], profile: Profile) -> Row:
        column = DOCS[name]
        rules = []
        for rule in profile.rules:
            backend = row.get(f"{rule.stage}_backend") if rule.stage else None
            if rule.measure == name and rule.applies(backend):
                passed = rule.passes(row.get(name), backend)
                rules.append({"rule": rule.name, "test": rule.test, "bound": rule.bound(backend), "passes": passed})
        return {"measure": name, "stage": column.stage, "value": row.get(name), "doc": column.doc, "rules": rules}

    def described(self) -> Row:
        """What the page must know to draw itself."""
        return {
            "dataset": self.store.root,
            "clips": len(self.snapshot),
            "seconds": float(self.snapshot.seconds.sum(dtype="float64")),
            "recipe": self.recipe.name,
            "backends": self.recipe.backends,
            "reviewer": self.reviewer,
            "read_only": self.read_only,
            "stale": self.stale(),
            "profiles": [self._described(profile) for profile in self.profiles.values()],
            "measures": [
                {"measure": name, "stage": DOCS[name].stage, "doc": DOCS[name].doc} for name in ("duration_s", *NUMERIC)
            ],
        }

    def _described(self, profile: Profile) -> Row:
        rules = [self._rule(rule) for rule in profile.rules if rule.applies(self.recipe.backends.get(rule.stage))]
        return {"name": profile.name, "rules": rules, "long_form_s": profile.long_form_s}

    def _rule(self, rule: Rule) -> Row:
        bound = rule.bound(self.recipe.backends.get(rule.stage))
        slides = rule.measure in (*NUMERIC, "duration_s") and not isinstance(bound, bool | str | list)
        return {
            "rule": rule.name,
            "measure": rule.measure,
            "stage": rule.stage,
            "test": rule.test,
            "words": TESTS[rule.test],
            "bound": bound,
            "slides": slides,
            "source": rule.source,
            "doc": DOCS[rule.measure].doc,
        }


def _picture(source: Mapping[str, Any]) -> Row:
    """Size of what clips of a source show, px: of its box where the list gave one."""
    if not source:
        return {"width": None, "height": None}
    info = media_info(source)
    return {"width": info.width, "height": info.height}


def _evidence(run: Mapping[str, Any] | None) -> Any:
    return json.loads(run["evidence"]) if run and run.get("evidence") else None


def _shown(decision: Decision) -> Row:
    names = ("decision_id", "profile", "choice", "reason", "reviewer", "time", "verdict", "undoes")
    return {name: getattr(decision, name) for name in names}


def _why_read_only(store: Store) -> str:
    """Why nothing can be written to the dataset, "" where it can be."""
    try:
        store.local()
        store.write("decisions/.probe", b"")
        store.remove("decisions/.probe")
    except (DatasetError, OSError) as error:
        return one_line(error)
    return ""


def profile_toml(content: Mapping[str, Any], base: str) -> str:
    """A profile as TOML. content: as `profile_content` gives it."""
    lines = [f"# Saved from the review page, from profile {base}.", f"name = {json.dumps(content['name'])}"]
    lines.append(f"long_form_s = {json.dumps(content['long_form_s'])}")
    for name, rule in content["rules"].items():
        lines += ["", f"[rules.{json.dumps(name)}]"]
        for key, value in rule.items():
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """JSON's text, numbers, booleans and lists are TOML's; tables are written inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=True)
