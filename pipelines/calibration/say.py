"""Findings in words and as data."""

from __future__ import annotations

import math
from typing import Any

from manifests.verdicts import TESTS
from pipelines.calibration import crossing as cross
from pipelines.calibration.finding import BEYOND, FEW, FIXED, HOLDS, IDLE, MOVES, Aim, Finding
from pipelines.calibration.intervals import Share
from pipelines.calibration.people import Agreement
from pipelines.report.words import value

Row = dict[str, Any]


def percent(share: Share | None, interval: bool = True) -> str:
    """ "81% (74 to 87)"; a dash where it is not known."""
    if share is None:
        return "–"
    text = f"{100 * share.value:.0f}%"
    return f"{text} ({100 * share.low:.0f} to {100 * share.high:.0f})" if interval else text


def asked(found: Finding, bound: Any = None) -> str:
    """What the rule asks for: "more than 4"."""
    scale = found.evidence.scale
    limit = scale.bound if bound is None else bound
    shown = ", ".join(map(value, limit)) if isinstance(limit, list | tuple) else value(limit)
    return f"±{shown} at most" if scale.rule.test == "within" else f"{TESTS[scale.rule.test]} {shown}"


def between(found: Finding) -> str:
    """The interval of the suggested bound: "5.5 to 6.5", "up to 3"."""
    if math.isinf(found.low) and math.isinf(found.high):
        return "open on both sides"
    if math.isinf(found.low):
        return f"up to {value(found.high)}"
    if found.low == found.high:
        return f"only {value(found.low)}"
    return f"from {value(found.low)} on" if math.isinf(found.high) else f"{value(found.low)} to {value(found.high)}"


def settling(found: Finding) -> str:
    """How many more reviews: "about 92", "settled"."""
    if found.state == IDLE:
        return "–"
    if found.more == 0:
        return "settled" if found.settled else "no clip left to review"
    return f"{'at least' if found.at_least else 'about'} {found.more:,}"


def suggestion(found: Finding) -> str:
    """The cell of the table."""
    if found.state == MOVES and found.bound is not None:
        return f"{value(found.bound)} ({between(found)})"
    if found.state == HOLDS:
        return f"keep ({between(found)})"
    return {FEW: "too few reviews", FIXED: "–", IDLE: "–"}.get(found.state, "none")


def sentence(found: Finding, aim: Aim) -> str:
    """What a person should take from it."""
    more = "" if found.more == 0 else f" {settling(found).capitalize()} more reviews would settle it."
    match found.state:
        case state if state == MOVES:
            text = (
                f"Ask for {asked(found, found.bound)} instead of {value(found.evidence.scale.bound)} (95% interval "
                f"{between(found)}): there people begin to reject more than {100 * aim.share:.0f}% of the clips. Precision "
                f"becomes {percent(found.then_precision)}, recall {percent(found.then_recall)}."
            )
        case state if state == HOLDS:
            text = (
                f"The bound holds: what people decided fits bounds {between(found)}, best about {value(found.bound)}."
            )
        case state if state == BEYOND:
            text = _no_crossing(found, aim)
        case state if state == FEW:
            text = _too_few(found)
        case state if state == FIXED:
            worth = found.precision is not None and found.precision.high >= aim.share
            text = f"Of the clips that it alone fails people reject {percent(found.precision)}" + (
                "." if worth else f", too few to be worth it below {100 * aim.share:.0f}%."
            )
        case _:
            text = "It alone fails no clip here, so reviews cannot tell its quality."
    return text + more


def _no_crossing(found: Finding, aim: Aim) -> str:
    share = f"{100 * aim.share:.0f}%"
    if not found.keeps:
        return f"People reject more than {share} even of its best clips, so no bound of this rule helps. Another cause is behind it: name a rule in the reasons."
    if found.precision is None:
        return "No clip that it alone fails was reviewed, so there is nothing yet to set its bound by."
    if found.refuted:
        return (
            f"Too strict: people keep most of what it fails, at no bound do they reject more than {share}. A bound "
            f"{between(found)} fits the reviews, or no such rule."
        )
    return (
        f"It is not known yet whether the rule is needed: so far people nowhere reject more than {share} of the clips."
    )


def _too_few(found: Finding) -> str:
    bad = int(found.evidence.reviewed.bad.sum())
    count = len(found.evidence.reviewed.bad)
    text = f"No suggestion: {count} reviews of clips that it alone decides about, {bad} of them rejected"
    if not found.evidence.scale.slides:
        return text + ", none of a clip that it fails."
    return text + f"; a bound needs {cross.LEAST_REVIEWS}, and {cross.LEAST_EACH} of either kind."


def as_row(found: Finding, aim: Aim) -> Row:
    """For machines. Bounds that the reviews leave open are null."""
    evidence = found.evidence
    fails, passes = evidence.counts(evidence.now)
    suggested = None
    if found.bound is not None:
        suggested = {
            "bound": found.bound,
            "low": finite(found.low),
            "high": finite(found.high),
            "precision": share_row(found.then_precision),
            "recall": share_row(found.then_recall),
        }
    return {
        "rule": evidence.scale.rule.name,
        "measure": evidence.scale.rule.measure,
        "test": evidence.scale.rule.test,
        "backend": evidence.scale.key or None,
        "bound": evidence.scale.bound,
        "state": found.state,
        "clips": {"alone": evidence.clips, "fails": fails, "passes": passes},
        "reviews": {
            "used": len(evidence.reviewed.bad),
            "rejected": int(evidence.reviewed.bad.sum()),
            "fail_others": evidence.reviewed.others,
            "rejected_for_others": evidence.reviewed.elsewhere,
        },
        "precision": share_row(found.precision),
        "recall": share_row(found.recall),
        "bad_among_passing": share_row(found.missed),
        "suggested": suggested,
        "clips_open": found.stake,
        "more_reviews": found.more,
        "at_least": found.at_least,
        "settled": found.settled,
        "says": sentence(found, aim),
        "warnings": list(found.warnings),
        "sweep": sweep(found) if evidence.scale.slides and evidence.clips else [],
    }


def sweep(found: Finding) -> list[Row]:
    """Quality at every bound looked at, by rising bound."""
    evidence = found.evidence
    rows = []
    for edge, score in enumerate(evidence.edges):
        precision, recall, _ = evidence.quality(edge)
        bound = evidence.scale.bound_of(float(score))
        if edge == evidence.now:
            bound = float(evidence.scale.bound)
        fails, _ = evidence.counts(edge)
        rows.append({"bound": bound, "fails": fails, "precision": share_row(precision), "recall": share_row(recall)})
    return sorted(rows, key=lambda row: row["bound"])


def share_row(share: Share | None) -> Row | None:
    if share is None:
        return None
    rounded = {name: round(getattr(share, name), 4) for name in ("value", "low", "high")}
    return {**rounded, "reviews": share.reviews, "effective": round(share.effective, 1)}


def finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def agreement_row(one: Agreement) -> Row:
    """For machines."""
    return {
        "reviewers": list(one.reviewers),
        "clips": one.clips,
        "agree": round(one.agree / one.clips, 4),
        "kappa": None if one.kappa is None else round(one.kappa, 4),
    }


def agreement_sentence(one: Agreement) -> str:
    first, second = one.reviewers
    kappa = "not defined" if one.kappa is None else f"{one.kappa:.2f}"
    return f"{first} and {second} both decided {one.clips:,} clips and agree on {100 * one.agree / one.clips:.0f}% (kappa {kappa})"
