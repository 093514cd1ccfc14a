"""`xstreamer calibrate`: what reviews say about the bounds of a profile, and which clips to review next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from manifests.decisions import read_decisions, standing
from manifests.errors import DatasetError, UsageError, XstreamerError, one_line
from manifests.store import Store
from manifests.verdicts import Profile, parse_profile, profile_content
from pipelines.calibration import say
from pipelines.calibration.draw import Drawn, draw
from pipelines.calibration.evidence import kept_share
from pipelines.calibration.finding import MOVES, Aim, Finding, finding
from pipelines.calibration.ground import Ground, lay
from pipelines.calibration.intervals import Share
from pipelines.calibration.people import Agreement, Truth, agreements, truths
from pipelines.review.describe import profile_toml
from pipelines.review.query import with_bounds
from pipelines.review.snapshot import load_snapshot

Row = dict[str, Any]
FOLDER = "calibration"
WIDE = 132
"""Columns of the table where no terminal says how many there are."""
PROFILES = "profiles"
"""Where the review page, too, looks for profiles of the dataset."""


@dataclass(frozen=True)
class Asked:
    """draw: clips to draw for review; decisions: profile whose decisions count, "" = the calibrated one's; save: name
    of a profile to write with the suggested bounds."""

    aim: Aim = field(default_factory=Aim)
    draw: int = 40
    seed: int = 0
    decisions: str = ""
    save: str = ""


@dataclass(frozen=True)
class Calibration:
    """decided: {place: what people said} of clips that are in the dataset; gone: decisions about clips that are not."""

    store: Store
    profile: Profile
    asked: Asked
    ground: Ground
    decided: Mapping[int, Truth]
    gone: int
    kept: Share | None
    findings: Sequence[Finding]
    drawn: Sequence[Drawn]
    agreements: Sequence[Agreement]

    def next_clips(self) -> list[Row]:
        return [{"clip_id": self.ground.snapshot.clip_id(one.place), "for": one.rule or None} for one in self.drawn]


def calibrate(store: Store, profile: Profile, backends: Mapping[str, str], asked: Asked) -> Calibration:
    """Looks at one state of the dataset; writes nothing.

    Raises DatasetError (no clips, damaged), UsageError (a rule without a bound for what measured).
    """
    snapshot = load_snapshot(store)
    if not len(snapshot):
        raise DatasetError(
            f"{store.root} has no clips to calibrate on; measure some: xstreamer curate SOURCE -o {store.root}"
        )
    name = asked.decisions or profile.name
    decisions = read_decisions(store)
    said = truths(profile, standing(decisions, name))
    places = {clip: snapshot.place(clip) for clip in said}
    decided = {place: said[clip] for clip, place in places.items() if place is not None}
    ground = lay(snapshot, profile, backends)
    findings = [finding(ground, place, decided, asked.aim) for place in range(len(ground.scales))]
    return Calibration(
        store,
        profile,
        asked,
        ground,
        decided,
        len(said) - len(decided),
        kept_share(ground, decided),
        findings,
        draw(ground, findings, decided, asked.draw, asked.seed),
        agreements(decisions, name),
    )


def notes(found: Calibration) -> list[str]:
    """Sentences about the whole."""
    out = []
    clips = shlex.quote(found.store.url(next_path(found.profile)))
    if not found.decided:
        out.append(
            f"Nobody has decided about a clip under {found.asked.decisions or found.profile.name} yet. Begin with: xstreamer "
            f"review {shlex.quote(found.store.root)} (the clips to begin with: {clips})"
        )
    else:
        rejected = sum(truth.rejected for truth in found.decided.values())
        out.append(f"{len(found.decided):,} clips decided by people, {rejected:,} of them rejected.")
    kept = int(found.ground.kept.sum())
    if found.kept:
        out.append(
            f"Of the {kept:,} clips that the rules keep people would reject {say.percent(found.kept)}, going by "
            f"{found.kept.reviews:,} reviews of them."
        )
    elif found.decided and kept:
        out.append(f"None of the {kept:,} clips that the rules keep was reviewed, so their quality is not known.")
    elsewhere = sum(one.evidence.reviewed.elsewhere for one in found.findings)
    if elsewhere:
        out.append("Rejections whose reason names other rules are left out where a rule is judged.")
    if found.gone:
        out.append(f"{found.gone:,} decisions are about clips that are no longer in the dataset.")
    return [*out, *(say.agreement_sentence(one) + "." for one in found.agreements)]


def as_row(found: Calibration) -> Row:
    """For machines."""
    aim = found.asked.aim
    return {
        "dataset": found.store.root,
        "profile": found.profile.name,
        "decisions_of": found.asked.decisions or found.profile.name,
        "aim": {"cost": aim.cost, "reject_from": round(aim.share, 6), "width": aim.width},
        "clips": len(found.ground.snapshot),
        "decided": len(found.decided),
        "decided_gone": found.gone,
        "kept": {"clips": int(found.ground.kept.sum()), "bad": say.share_row(found.kept)},
        "rules": [say.as_row(one, aim) for one in found.findings],
        "agreement": [say.agreement_row(one) for one in found.agreements],
        "next": found.next_clips(),
        "notes": notes(found),
    }


def next_path(profile: Profile) -> str:
    """Where the list of clips to review is, inside the dataset."""
    return f"{FOLDER}/{profile.name}-next.txt"


def clip_list(found: Calibration) -> str:
    """The list as text: a clip id a line, the most telling first; after # for which rule it was drawn."""
    lines = [
        f"# clips to review next under {found.profile.name}, the most telling first; made by xstreamer calibrate, seed {found.asked.seed}"
    ]
    lines += [f"{row['clip_id']}  # {row['for'] or 'drawn evenly'}" for row in found.next_clips()]
    return "\n".join(lines) + "\n"


def read_clip_list(text: str) -> list[str]:
    """Clip ids of such a list, or of any text with one id a line; # begins a remark."""
    found = (line.partition("#")[0].strip() for line in text.splitlines())
    return list(dict.fromkeys(clip for clip in found if clip))


def write(found: Calibration) -> tuple[list[str], list[str]]:
    """(files written, why others were not): the list of clips and the page, under DATASET/calibration."""
    written, refused = [], []
    content = {"profile": found.profile.name, "root": found.store.root, "notes": notes(found)}
    page_path = f"{FOLDER}/{found.profile.name}.html"
    try:
        found.store.write(next_path(found.profile), clip_list(found).encode())
        written.append(found.store.url(next_path(found.profile)))
        from pipelines.calibration.page import calibration_page

        found.store.write(page_path, calibration_page(content, found.findings, found.asked.aim))
        written.append(found.store.url(page_path))
    except (XstreamerError, OSError) as error:
        refused.append(one_line(error))
    return written, refused


def save(found: Calibration, backends: Mapping[str, str]) -> str:
    """Writes profiles/NAME.toml with the bounds that reviews move; its path.

    A bound that the reviews do not refute stays. Raises UsageError when there is none to move or the name is taken or
    none, DatasetError when the dataset cannot be written.
    """
    name = found.asked.save
    moving = {one.evidence.scale.rule.name: one for one in found.findings if one.state == MOVES}
    if not moving:
        raise UsageError("--save: the reviews move no bound, so there is nothing to save")
    base = found.profile
    moved = with_bounds(base, {rule: _bound(one) for rule, one in moving.items()}, backends)
    rules = tuple(
        replace(rule, source=_origin(moving[rule.name])) if rule.name in moving else rule for rule in moved.rules
    )
    content = profile_content(replace(moved, name=name, rules=rules))
    parse_profile(content, f"--save {name!r}")
    path = f"{PROFILES}/{name}.toml"
    if name == base.name or found.store.exists(path):
        raise UsageError(f"--save: there is a profile {name!r} already; choose another name")
    head = f"# From {base.name}, with bounds by xstreamer calibrate: {', '.join(moving)}.\n"
    text = profile_toml(content, base.name)
    found.store.write(path, (head + text[text.index("name = ") :]).encode())
    return found.store.url(path)


def _origin(found: Finding) -> str:
    reviews, before = len(found.evidence.reviewed.bad), say.value(found.evidence.scale.bound)
    return f"{reviews} reviews, 95% interval {say.between(found)}; before: {before}"


def _bound(found: Finding) -> float | int:
    assert found.bound is not None
    return int(found.bound) if found.evidence.scale.whole else found.bound


def show(found: Calibration) -> None:
    """Prints the table, and a sentence a rule."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=box.SIMPLE, title=f"profile {found.profile.name}", title_justify="left")
    for name in ("rule", "asks for", "reviews", "precision", "recall", "suggested", "to settle"):
        table.add_column(name, justify="right" if name == "reviews" else "left")
    for one in found.findings:
        quality = (say.percent(one.precision), say.percent(one.recall))
        used = f"{len(one.evidence.reviewed.bad):,}"
        row = (one.evidence.scale.rule.name, say.asked(one), used, *quality, say.suggestion(one), say.settling(one))
        table.add_row(*row)

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if found.decided:
        console.print(table)
        for one in found.findings:
            tell(f"{one.evidence.scale.rule.name}: {say.sentence(one, found.asked.aim)}")
            for warning in one.warnings if one.evidence.reviewed.places.size else ():
                tell(f"  note: {warning}")
    for note in notes(found):
        tell(note)


def run(store: Store, profile: Profile, backends: Mapping[str, str], asked: Asked, as_json: bool) -> None:
    """Calibrates, writes and prints. Raises as `calibrate` and `save`."""
    found = calibrate(store, profile, backends, asked)
    saved = save(found, backends) if asked.save else None
    written, refused = write(found)
    if as_json:
        print(json.dumps({**as_row(found), "written": written, "not_written": refused, "saved": saved}))
        return
    show(found)
    print(f"next: {len(found.drawn)} clips to review" + (f" in {written[0]}" if written else ""))
    for path in written[1:]:
        print(f"picture: {path}")
    if saved:
        print(f"saved: {saved}")
    for why in refused:
        print(f"not written: {why}")
