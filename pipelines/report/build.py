"""`xstreamer report`: gathers, writes the film strips, then the page, last and whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests import dataset
from manifests.decisions import read_decisions
from manifests.errors import UsageError
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE, parts
from manifests.verdicts import KEEP, REJECT, UNDECIDED, Profile
from pipelines.progress import Bar
from pipelines.recipe import load_profile, shipped
from pipelines.report.against import Side, compare
from pipelines.report.content import Found, Other, compose
from pipelines.report.frozen import Frozen, steadily
from pipelines.report.gather import gather, shown_rows
from pipelines.report.page import needed, render
from pipelines.report.strips import sweep, writable, write_strips

Row = dict[str, Any]
PAGE = "report.html"


def load_profile_list(names: str) -> list[Profile]:
    """Profiles from a comma-separated list. Raises UsageError."""
    found = [load_profile(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise UsageError("--profile names no profile; try pretrain")
    if len({profile.name for profile in found}) != len(found):
        raise UsageError(f"--profile {names}: two profiles of one name; rename one")
    return found


def write_report(
    root: str, profiles: Sequence[Profile], out: str | None, against: str | None, quiet: bool = True
) -> Row:
    """Writes OUT/report.html and OUT/thumbnails, under the dataset by default; what is in it, for machines.

    Raises DatasetError (no dataset, damaged, unwritable folder), UsageError (a rule without a bound for what
    measured, an --against that is none), XstreamerError (a package is missing).
    """
    needed()
    store, facts = dataset.load(root)
    other = find_other(against, store) if against is not None else None
    if other and all(profile == other.profile for profile in profiles):
        raise UsageError(f"--against {against!r} is the profile that is reported; name another")
    target = Store(out if out is not None else store.url("report"))
    writable(target)
    found = collect(store, facts, profiles, other, quiet)
    sizes = write_strips(store, target, found.now.clips)
    missing = {clip: row for clip, row in found.before.items() if clip not in sizes}
    if other and other.profile is None:
        sizes |= write_strips(other.store, target, missing)
    content, drawn = compose(store, found, other, sizes)
    page = render(content, drawn)
    target.write(PAGE, page)
    sweep(target, sizes)
    return summary(target, found, len(page), sizes)


def find_other(against: str, store: Store) -> Other:
    """Raises UsageError for what is neither a dataset nor a profile."""
    if not against.strip():
        raise UsageError("--against is empty; name a dataset or a profile")
    if dataset.facts(Store(against)) is not None:
        return Other(against, dataset.load(against)[0])
    if against in shipped("profiles") or Path(against).is_file():
        profile = load_profile(against)
        return Other(f"profile {profile.name}", store, profile)
    raise UsageError(
        f"--against {against!r} is neither a dataset (no {dataset.DATASET_FILE}) nor a profile; "
        f"profiles are TOML files and {', '.join(shipped('profiles'))}"
    )


def collect(store: Store, facts: Row, profiles: Sequence[Profile], other: Other | None, quiet: bool = True) -> Found:
    """Reads everything from one state of the dataset, and of the other one."""

    def read(now: Frozen, *more: Frozen) -> Found:
        before = more[0] if more else now
        pairs = [(other.profile or profile, profile) for profile in profiles] if other else []
        pairs = [pair for pair in pairs if before is not now or pair[0] != pair[1]]
        compared = [compare(Side(before, old).load(), Side(now, new).load()) for old, new in pairs]
        ids = frozenset[str]().union(*(one.ids() for one in compared))
        found = gather(now, profiles, ids)
        rows = shown_rows(before, set(ids)) if before is not now else found.clips
        decisions = read_decisions(before.store) if before is not now else found.decisions
        return Found(facts, found, compared, pairs, rows, decisions)

    stores = [store, *([other.store] if other and other.profile is None else [])]
    with Bar("report", _passes(stores, len(profiles) if other else 0), "parts", quiet) as bar:
        found = steadily(read, *stores, read=lambda: bar.add(1))
        bar.add(max(0.0, bar.total - bar.done))
    return found


def _passes(stores: Sequence[Store], pairs: int) -> int:
    """Files of tables that are read at most: three times the clips, once the others; five times more to compare."""
    clips, runs, sources = (len(parts(stores[0], table)) for table in (CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE))
    return 3 * clips + runs + sources + pairs * (3 * clips + 2 * len(parts(stores[-1], CLIPS_TABLE)))


def summary(target: Store, found: Found, size: int, sizes: Mapping[str, Any]) -> Row:
    """For machines."""
    out: Row = {
        "report": target.url(PAGE),
        "bytes": size,
        "thumbnails": len(sizes),
        "without_thumbnail": len({*found.now.clips, *found.before} - set(sizes)),
        "clips": {"clips": len(found.now.ids), "seconds": round(found.now.seconds, 3)},
        "profiles": {},
        "against": [],
    }
    for tally in found.now.tallies:
        verdicts = {name: tally.total(name) for name in (KEEP, REJECT, UNDECIDED)}
        out["profiles"][tally.profile.name] = verdicts | {"rules": {row["rule"]: row for row in tally.rule_rows()}}
    for one in found.compared:
        out["against"].append(
            {
                "profile": one.profile,
                "before_profile": one.before_profile,
                "matched": one.matched,
                "only_before": one.only_before,
                "only_now": one.only_now,
                "changed": one.changed,
                "changes": [change for change in one.changes if change["clips"]],
                "rules": one.rules,
            }
        )
    return out


def print_summary(found: Row, as_json: bool) -> None:
    """The result for people, or one JSON object."""
    if as_json:
        print(json.dumps(found))
        return
    for name, profile in found["profiles"].items():
        counts = (f"{verdict} {profile[verdict]['clips']:,}" for verdict in (KEEP, REJECT, UNDECIDED))
        print(f"{name}: {', '.join(counts)} clips")
    for one in found["against"]:
        print(f"{one['profile']} against {one['before_profile']}: {one['changed']:,} clips with another verdict")
    print(f"report: {found['report']}")
