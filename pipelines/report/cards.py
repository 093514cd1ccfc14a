"""What is said of a clip that is shown: where it came from, its strip, and the values that decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manifests.decisions import Decision
from manifests.verdicts import KEEP, Profile, Rule, judge_row
from pipelines.report import choose, words
from pipelines.report.strips import FOLDER
from pipelines.report.tally import in_funnel_order

Row = dict[str, Any]
MOST_TEXT = 160
HEADINGS = {
    choose.ONLY: "Fail this rule alone, drawn by lot",
    choose.NEAR_REJECT: "Fail it, nearest the bound",
    choose.NEAR_KEEP: "Kept, nearest the bound",
}


@dataclass(frozen=True)
class Shelf:
    """Where cards come from. sizes: {clip id: (width, height)} of the strips that were written."""

    clips: Mapping[str, Row]
    sizes: Mapping[str, tuple[int, int]]

    def card(self, clip: str, profile: Profile, rule: Rule | None, decided: Mapping[str, Decision]) -> Row | None:
        """None for a clip that is gone."""
        row = self.clips.get(clip)
        if row is None:
            return None
        verdict, failing, unmet = judge_row(profile, row)
        by_name = {r.name: r for r in in_funnel_order(profile)}
        first = [rule.name] if rule else []
        names = [*first, *(name for name in failing if name not in first)]
        person = decided.get(clip)
        return {
            **self.face(clip),
            "verdict": person.choice if person else verdict,
            "by_person": f"decided by {by(person)}" if person else "",
            "facts": [self._fact(by_name[name], row) for name in names],
            "unmet": unmet,
        }

    def face(self, clip: str) -> Row:
        """Strip, source and texts of a clip."""
        row = self.clips[clip]
        size = self.sizes.get(clip)
        uri = str(row.get("uri") or "")
        return {
            "id": clip,
            "strip": f"{FOLDER}/{clip}.jpg" if size else "",
            "width": size[0] if size else 0,
            "height": size[1] if size else 0,
            "file": uri.rstrip("/").rsplit("/", 1)[-1],
            "uri": uri,
            "time": f"{words.moment(row['start_s'])} to {words.moment(row['end_s'])}",
            "length": words.length(row["duration_s"] or 0.0),
            "transcript": _cut(row.get("transcript")),
            "overlay": _cut(row.get("overlay_text")),
        }

    @staticmethod
    def _fact(rule: Rule, row: Row) -> Row:
        passes, text = words.state(rule, row)
        return {"rule": rule.name, "passes": passes, "text": text}

    def cards(
        self, ids: Sequence[str], profile: Profile, rule: Rule | None, decided: Mapping[str, Decision]
    ) -> list[Row]:
        """Of those that are still there."""
        found = (self.card(clip, profile, rule, decided) for clip in ids)
        return [card for card in found if card]

    def rule_groups(
        self, chooser: choose.Chooser, profile: Profile, rule: Rule, decided: Mapping[str, Decision]
    ) -> list[Row]:
        """{"heading", "cards"} of one rule; a clip is shown once."""
        out, shown = [], set[str]()
        for group, heading in HEADINGS.items():
            best = chooser.groups.get((profile.name, rule.name, group))
            ids = [clip for clip in best.ids() if clip not in shown] if best else []
            shown |= set(ids)
            cards = self.cards(ids, profile, rule, decided)
            if cards:
                out.append({"heading": heading, "cards": cards})
        return out

    def profile_groups(self, chooser: choose.Chooser, profile: Profile, decided: Mapping[str, Decision]) -> list[Row]:
        """{"heading", "cards"} of kept clips, undecided ones, and those where people and rules differ."""
        headings = {
            choose.KEPT: "Kept, drawn by lot",
            choose.UNDECIDED_CLIPS: "Undecided, drawn by lot",
            choose.PEOPLE: "People decided otherwise than the rules",
        }
        out = []
        for group, heading in headings.items():
            best = chooser.groups.get((profile.name, "", group))
            cards = self.cards(best.ids(), profile, None, decided) if best else []
            if cards:
                out.append({"heading": heading, "cards": cards})
        return out


@dataclass(frozen=True)
class Seen:
    """One side of a comparison. decided: {clip id: the decision that stands}."""

    shelf: Shelf
    profile: Profile
    decided: Mapping[str, Decision]


def change_cards(before: Seen, now: Seen, example: Row) -> list[Row]:
    """Cards of clips that changed: for each rule that fails on either side, what it saw before and now."""
    out = []
    for clip in example["ids"]:
        if clip not in now.shelf.clips or clip not in before.shelf.clips:
            continue
        old, new = before.shelf.clips[clip], now.shelf.clips[clip]
        concerned = {
            name
            for p, row in ((before.profile, old), (now.profile, new))
            for some in judge_row(p, row)[1:]
            for name in some
        }
        then, here = ({r.name: r for r in in_funnel_order(side.profile)} for side in (before, now))
        facts = []
        for name in [n for n in {**here, **then} if n in concerned]:
            was, does = (_said(rules.get(name), row) for rules, row in ((then, old), (here, new)))
            if was != does:
                passes = does[0] if name in here else True
                facts.append({"rule": name, "passes": passes, "text": f"before: {was[1]}; now: {does[1]}"})
        people = "; ".join(
            f"{when}: {side.decided[clip].choice}, decided by {by(side.decided[clip])}"
            for when, side in (("before", before), ("now", now))
            if clip in side.decided
        )
        out.append(
            {**now.shelf.face(clip), "verdict": example["now"], "by_person": people, "facts": facts, "unmet": []}
        )
    return out


def by(decision: Decision) -> str:
    """Who decided, and why."""
    return f"{decision.reviewer}: {decision.reason}" if decision.reason else decision.reviewer


def _said(rule: Rule | None, row: Row) -> tuple[bool | None, str]:
    return (None, "no such rule") if rule is None else words.state(rule, row)


def agreement(decisions: Sequence[Decision], tally: Any, decided: Mapping[str, Decision]) -> Row:
    """What people decided under a profile, against what its rules say now.

    {"made", "withdrawn", "clips", "reviewers", "reasons", "table" [(choice, keep, reject, undecided)], "rules"
    [(rule, people keep, people reject)] of decided clips that fail the rule}; "agree": of those the rules decide.
    """
    mine = [d for d in decisions if d.profile == tally.profile.name]
    standing = {clip: d for clip, d in decided.items() if clip in tally.decisions}
    counts = {(choice, verdict): 0 for choice in ("keep", "reject") for verdict in ("keep", "reject", "undecided")}
    rules = {row["rule"]: [0, 0] for row in tally.rule_rows()}
    bits = {rule.name: bit for bit, rule in enumerate(tally.rules)}
    for clip, decision in standing.items():
        verdict, mask = tally.decisions[clip]
        counts[decision.choice, verdict] += 1
        for name, held in rules.items():
            if mask >> bits[name] & 1:
                held[decision.choice != KEEP] += 1
    same = counts["keep", "keep"] + counts["reject", "reject"]
    told = same + counts["keep", "reject"] + counts["reject", "keep"]
    return {
        "made": sum(d.choice != "withdraw" for d in mine),
        "withdrawn": sum(d.choice == "withdraw" for d in mine),
        "clips": len(standing),
        "reviewers": _counted([d.reviewer for d in mine if d.choice != "withdraw"]),
        "reasons": _counted([d.reason for d in standing.values() if d.reason])[:12],
        "table": [(c, *(counts[c, v] for v in ("keep", "reject", "undecided"))) for c in ("keep", "reject")],
        "rules": [(name, *held) for name, held in rules.items() if any(held)],
        "agree": words.share(same, told),
        "told": told,
    }


def _counted(names: Sequence[str]) -> list[tuple[str, int]]:
    return sorted(((name, names.count(name)) for name in set(names)), key=lambda item: (-item[1], item[0]))


def _cut(text: Any) -> str:
    joined = " ".join(str(text or "").split())
    return joined if len(joined) <= MOST_TEXT else joined[: MOST_TEXT - 1] + "…"
