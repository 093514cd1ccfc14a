"""What people said: which rule a rejection is about, and how far reviewers agree with each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from manifests.decisions import WITHDRAW, Decision, standing
from manifests.verdicts import REJECT, Profile


@dataclass(frozen=True)
class Agreement:
    """Of two reviewers over the clips that both decided. kappa: Cohen's (1960), 1 = always, 0 = as chance would;
    None where both always said the same one thing."""

    reviewers: tuple[str, str]
    clips: int
    agree: int
    kappa: float | None


def named_rules(profile: Profile, reason: str) -> frozenset[str]:
    """Rules that a reason names, each by its name or its measure's, as whole words; `_` may be a space."""
    text = re.sub(r"[\s_]+", "_", reason.lower())
    names = {name.lower() for rule in profile.rules for name in (rule.name, rule.measure)}
    said = set()
    for name in sorted(names, key=lambda name: (-len(name), name)):  # "sync_offset_frames" is no "sync_offset"
        text, found = re.subn(rf"(?<![a-z0-9-]){re.escape(name)}(?![a-z0-9-])", "|", text)
        said |= {name} if found else set()
    return frozenset(rule.name for rule in profile.rules if {rule.name.lower(), rule.measure.lower()} & said)


@dataclass(frozen=True)
class Truth:
    """What a decision says of the rules. causes: rules that the reason names, empty where it names none."""

    rejected: bool
    causes: frozenset[str]

    def about(self, rule: str) -> bool | None:
        """Whether people want the clip rejected as far as `rule` goes; None where they rejected it for another."""
        if self.rejected and self.causes and rule not in self.causes:
            return None
        return self.rejected


def truths(profile: Profile, decided: Mapping[str, Decision]) -> dict[str, Truth]:
    """{clip id: what its standing decision says}."""
    return {
        clip: Truth(one.choice == REJECT, named_rules(profile, one.reason) if one.choice == REJECT else frozenset())
        for clip, one in decided.items()
    }


def agreements(decisions: Sequence[Decision], profile: str) -> list[Agreement]:
    """Each pair of reviewers with clips in common, the most first.

    Of a reviewer the last decision about a clip that nobody withdrew; the one that stands in the end may be another's.
    decisions: in the order of time.
    """
    reviewers = sorted({one.reviewer for one in decisions if one.profile == profile and one.choice != WITHDRAW})
    own = {
        name: standing([one for one in decisions if one.choice == WITHDRAW or one.reviewer == name], profile)
        for name in reviewers
    }
    pairs = (_agreement(pair, own[pair[0]], own[pair[1]]) for pair in combinations(reviewers, 2))
    return sorted((one for one in pairs if one.clips), key=lambda one: (-one.clips, one.reviewers))


def _agreement(pair: tuple[str, str], left: Mapping[str, Decision], right: Mapping[str, Decision]) -> Agreement:
    common = left.keys() & right.keys()
    said = [(left[clip].choice == REJECT, right[clip].choice == REJECT) for clip in common]
    agree = sum(a == b for a, b in said)
    return Agreement(pair, len(said), agree, kappa(said))


def kappa(said: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa of pairs of answers; None without any, or where chance alone would always agree."""
    if not said:
        return None
    n = len(said)
    first, second = sum(a for a, _ in said) / n, sum(b for _, b in said) / n
    chance = first * second + (1 - first) * (1 - second)
    observed = sum(a == b for a, b in said) / n
    return None if chance >= 1 else (observed - chance) / (1 - chance)
