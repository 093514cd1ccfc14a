"""Figures and rules as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manifests.verdicts import TESTS, Rule

Row = Mapping[str, Any]


def length(seconds: float) -> str:
    """Seconds of video: "6.4 s", "12.0 min", "1,204 h"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 3.6e6 else f"{seconds / 3600:,.0f} h"


def unit(seconds: float) -> tuple[float, str]:
    """(seconds in it, name) of the unit in which figures up to `seconds` read well."""
    if seconds < 120:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")


def moment(seconds: float) -> str:
    """A time in a film: "1:02:03.4", "0:07.0"."""
    tenths = round(seconds * 10)
    whole, tenth = divmod(tenths, 10)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}.{tenth}" if hours else f"{minutes}:{rest:02d}.{tenth}"


def value(found: Any) -> str:
    """A measured value."""
    if found is None or found != found:
        return "no value"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.4g}" if abs(found) < 1e4 else f"{found:,.0f}"
    return f"{found:,}" if isinstance(found, int) else str(found)


def share(part: float, whole: float) -> str:
    """A share in per cent, empty where there is no whole."""
    return f"{100 * part / whole:.1f}%" if whole else ""


def clips(count: int) -> str:
    return f"{count:,} clip{'' if count == 1 else 's'}"


def bound(rule: Rule, backend: str | None) -> str:
    """What the rule asks for: "more than 4"."""
    limit = rule.bound(backend)
    shown = ", ".join(map(value, limit)) if isinstance(limit, list | tuple) else value(limit)
    return f"±{shown} at most" if rule.test == "within" else f"{TESTS[rule.test]} {shown}"


def bounds(rule: Rule) -> str:
    """Every bound of the rule, by backend."""
    if "" in rule.bounds:
        return bound(rule, None)
    return "; ".join(f"{backend}: {bound(rule, backend)}" for backend in rule.bounds)


def state(rule: Rule, row: Row) -> tuple[bool | None, str]:
    """(passes, "0.12, must be at least 0.3") of one clip; None without a value or where the rule is none."""
    backend = row.get(f"{rule.stage}_backend") if rule.stage else None
    found = row.get(rule.measure)
    if not rule.applies(backend):
        return None, f"{backend} cannot measure it"
    passed = rule.passes(found, backend)
    if passed is None:
        return None, "no value"
    return passed, f"{value(found)}, must be {bound(rule, backend)}"
