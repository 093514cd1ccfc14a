"""What the page shows, as plain data for its template: texts, tables and charts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manifests.decisions import Decision, standing
from manifests.store import Store
from manifests.verdicts import KEEP, REJECT, UNDECIDED, Profile
from pipelines.report import charts, charts_more, words
from pipelines.report.against import Compared
from pipelines.report.cards import Seen, Shelf, agreement, change_cards
from pipelines.report.charts import Chart
from pipelines.report.gather import Gathered
from pipelines.report.mix import FAILED_SHOWN, name_of
from pipelines.report.spread import NEAR
from pipelines.report.tally import Tally

Row = dict[str, Any]


@dataclass(frozen=True)
class Other:
    """What a dataset is compared with: another one, or itself under another profile."""

    name: str
    store: Store
    profile: Profile | None = None


@dataclass
class Found:
    """Everything that the page shows. before: rows of the other side's clips that are shown."""

    facts: Row
    now: Gathered
    compared: list[Compared]
    pairs: list[tuple[Profile, Profile]]
    before: dict[str, Row]
    before_decisions: list[Decision]


def compose(
    store: Store, found: Found, other: Other | None, sizes: Mapping[str, tuple[int, int]]
) -> tuple[Row, list[Chart]]:
    """(content of the page, its charts)."""
    now = found.now
    shelf, before = Shelf(now.clips, sizes), Shelf(found.before, sizes)
    profiles = [_profile(now, tally, shelf) for tally in now.tallies]
    ruled = {rule.measure for tally in now.tallies for rule in tally.rules}
    measures = {
        key: charts.measure_chart(key, spread, now.tallies) for key, spread in now.spreads.items() if spread.known
    }
    length_of_clips = charts_more.duration_chart(now.mix)
    mix = [*([length_of_clips] if length_of_clips else []), *charts_more.fact_charts(now.mix)] if now.seconds else []
    throughput = charts_more.throughput_chart(now.runs)
    stages = [charts_more.status_chart(now.statuses), *([throughput] if throughput else [])]
    statuses, failed = now.mix.statuses(), now.mix.failed()
    against = _against(found, other, shelf, before) if other else None
    content = {
        "name": name_of(store),
        "root": store.root,
        "command_root": shlex.quote(store.root),
        "sections": _sections(profiles, against),
        "tiles": _tiles(statuses, now),
        "notes": [] if len(now.ids) else ["This dataset has no clips yet."],
        "against": against,
        "profiles": profiles,
        "near": f"{100 * NEAR:.0f}%",
        "measures": [chart for key, chart in measures.items() if key[0] in ruled],
        "others": [chart for key, chart in measures.items() if key[0] not in ruled],
        "mix": mix,
        "same": charts_more.same_for_all(now.mix) if now.seconds else [],
        "sources_head": ["source", "clips", "time", *(f"kept by {name}" for name in now.mix.profiles)],
        "sources": [
            [row["value"], f"{row['clips']:,}", words.length(row["seconds"]), *map(words.length, row["kept"].values())]
            for row in now.mix.top_sources()
        ],
        "stages": stages,
        "errors": [
            [row["stage"], row["status"], f"{row['count']:,}", row["error"], row["clip_id"]]
            for row in now.runs.error_rows()
        ],
        "failed_sources": [[row["uri"], row["error"] or ""] for row in failed],
        "failed_more": max(0, statuses.get("failed", {"files": 0})["files"] - FAILED_SHOWN),
        **_made_by(found.facts),
    }
    drawn = [chart for profile in profiles for chart in profile["charts"]]
    drawn += [*measures.values(), *mix, *stages]
    drawn += [pair["chart"] for pair in against["pairs"] if pair["chart"]] if against else []
    return content, drawn


def _sections(profiles: Sequence[Row], against: Row | None) -> list[tuple[str, str]]:
    return [
        ("overview", "Overview"),
        *([("against", "Compared")] if against else []),
        *((profile["id"], f"Profile {profile['name']}") for profile in profiles),
        ("measures", "Measures"),
        ("mix", "Mix"),
        ("stages", "Stages"),
        ("models", "Models"),
    ]


def _tiles(statuses: Mapping[str, Row], now: Gathered) -> list[Row]:
    ok = statuses.get("ok", {"files": 0, "seconds": 0.0})
    rest = ", ".join(f"{statuses[name]['files']:,} {name}" for name in statuses if name != "ok")
    tiles = [
        {
            "name": "Sources",
            "big": f"{ok['files']:,}",
            "small": f"{words.length(ok['seconds'])}{'; ' if rest else ''}{rest}",
        },
        {"name": "Clips", "big": f"{len(now.ids):,}", "small": words.length(now.seconds)},
    ]
    for tally in now.tallies:
        kept, total = tally.total(KEEP), tally.total()
        some = words.share(kept["seconds"], total["seconds"])
        tiles.append(
            {
                "name": f"Kept by {tally.profile.name}",
                "big": words.length(kept["seconds"]),
                "small": f"{words.clips(kept['clips'])}{', ' if some else ''}{some}",
            }
        )
    return tiles


def _profile(now: Gathered, tally: Tally, shelf: Shelf) -> Row:
    profile, decided = tally.profile, standing(now.decisions, tally.profile.name)
    counts = {name: tally.total(name) for name in (KEEP, REJECT, UNDECIDED)}
    summary = ", ".join(
        f"{name} {words.clips(c['clips'])} ({words.length(c['seconds'])})" for name, c in counts.items()
    )
    rows = {row["rule"]: row for row in tally.rule_rows()}
    rules = []
    for rule in tally.rules:
        groups = shelf.rule_groups(now.chooser, profile, rule, decided)
        if rule.name in rows and groups:
            fails, only = rows[rule.name]["fails"]["clips"], rows[rule.name]["only"]["clips"]
            rules.append(
                {
                    "name": rule.name,
                    "asks": words.bounds(rule),
                    "source": rule.source,
                    "count": f"{words.clips(fails)} rejected, {only:,} by this rule alone",
                    "groups": groups,
                }
            )
    drawn = [charts.funnel_chart(tally, now.mix), charts.rules_chart(tally), charts.overlap_chart(tally)]
    return {
        "id": f"profile-{profile.name}",
        "name": profile.name,
        "summary": summary,
        "blind": [f"{name} ({backend} cannot measure it)" for name, backend in sorted(tally.blind.items())],
        "charts": drawn if len(now.ids) else [],
        "groups": shelf.profile_groups(now.chooser, profile, decided),
        "rules": rules,
        "people": agreement(now.decisions, tally, decided),
    }


def _against(found: Found, other: Other, now: Shelf, before: Shelf) -> Row:
    pairs = []
    for number, (one, (old, new)) in enumerate(zip(found.compared, found.pairs, strict=True)):
        name = new.name if old.name == new.name else f"{new.name} against {old.name}"
        verdicts = (KEEP, REJECT, UNDECIDED)
        cells = {(c["before"], c["now"]): f"{c['clips']:,} ({words.length(c['seconds'])})" for c in one.changes}
        gone = [
            f"{words.clips(total['clips'])} ({words.length(total['seconds'])}) only {when}"
            for when, total in (("before", one.only_before), ("now", one.only_now))
            if total["clips"]
        ]
        then = Seen(before, old, standing(found.before_decisions, old.name))
        here = Seen(now, new, standing(found.now.decisions, new.name))
        pairs.append(
            {
                "title": f"Profile {name}",
                "summary": "; ".join([f"{words.clips(one.matched['clips'])} in both, {one.changed:,} with another verdict", *gone]) + ".",
                "head": ["before", *(f"now {verdict}" for verdict in verdicts)],
                "rows": [[v, *(cells[v, w] for w in verdicts)] for v in verdicts],
                "people": f"{one.people:,} of them because people decided, by the same rules." if one.people else "",
                "chart": charts_more.change_chart(one, f"against-{number}"),
                "groups": [
                    {"heading": f"{e['before']}, now {e['now']}", "cards": cards}
                    for e in one.examples
                    if (cards := change_cards(then, here, e))
                ],
            }
        )  # fmt: skip
    label = "this dataset" if other.profile else "the same profile"
    return {
        "name": other.name,
        "before": f"{other.store.root} under {other.name}" if other.profile else other.store.root,
        "now": f"{label} under each profile below" if other.profile else "this dataset",
        "pairs": pairs,
    }


def _made_by(facts: Row) -> Row:
    """What dataset.json says of recipe, models and software; older ones say less."""
    recipe, software = facts.get("recipe") or {}, facts.get("software") or {}
    stages, models = recipe.get("stages") or {}, facts.get("models")
    listed = models if isinstance(models, list) else []
    revisions = facts.get("revisions") or (models if isinstance(models, dict) else {})
    may: dict[Any, str] = {True: "allowed", False: "not allowed"}
    return {
        "recipe": str(recipe.get("name", "not known")),
        "device": f"on {recipe['device']}" if recipe.get("device") else "",
        "version": str(software.get("xstreamer", "")),
        "models": [
            [
                str(model.get("name", "")),
                ", ".join(map(str, model.get("stages") or [])),
                str(model.get("licence") or "not given"),
                may.get(model.get("commercial"), "the licence does not say"),
                str(model.get("identity") or "not here"),
            ]
            for model in listed
            if isinstance(model, dict)
        ],
        "revisions": [
            [stage, str((stages.get(stage) or {}).get("backend", "")), str(version or "")]
            for stage, version in sorted(revisions.items())
        ],
        "software": ", ".join(f"{name} {version}" for name, version in sorted(software.items())),
    }
