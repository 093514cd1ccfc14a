"""What people decided about clips: lines that are only ever added, each on the disk before it counts.

A session of a reviewer appends to a file of its own under decisions/, so that two reviewers never write to one
file. A line that a crash cut off is no decision; everything before and after it is.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from manifests.errors import DatasetError
from manifests.store import Store
from manifests.verdicts import KEEP, REJECT

FOLDER = "decisions"
WITHDRAW = "withdraw"
"""Takes an earlier decision back; what was decided before it holds again."""
CHOICES = (KEEP, REJECT, WITHDRAW)
MAX_REASON = 500
_REVIEWER = re.compile(r"[\w.@+ -]{1,80}")


@dataclass(frozen=True)
class Decision:
    """One decision. verdict, failing: what the rules said when it was made; undoes: id of the one withdrawn."""

    clip_id: str
    profile: str
    choice: str
    reviewer: str
    reason: str = ""
    verdict: str = ""
    failing: tuple[str, ...] = ()
    undoes: str = ""
    decision_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))

    def __post_init__(self) -> None:
        """Raises ValueError for a choice, reviewer or reason that cannot be."""
        for text in (getattr(self, one.name) for one in fields(self) if one.name != "failing"):
            if not isinstance(text, str):
                raise ValueError(f"a decision is made of texts, not of {text!r}")
            text.encode()  # a lone surrogate is no text
        if self.choice not in CHOICES:
            raise ValueError(f"a decision is one of {', '.join(CHOICES)}, not {self.choice!r}")
        if not _REVIEWER.fullmatch(self.reviewer):
            raise ValueError(f"reviewer {self.reviewer!r}: give 1 to 80 letters, digits, spaces or . @ + _ -")
        if len(self.reason) > MAX_REASON:
            raise ValueError(f"a reason has at most {MAX_REASON} characters")
        if (self.choice == WITHDRAW) != bool(self.undoes):
            raise ValueError("withdrawing names the decision that it undoes, nothing else does")


class DecisionLog:
    """Where one session appends. Raises DatasetError when the dataset is not a local folder or not writable."""

    def __init__(self, store: Store, session: str = "") -> None:
        name = session or f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self._store = store
        self._path = store.local(f"{FOLDER}/{name}.jsonl")

    def add(self, decision: Decision) -> None:
        """Returns once `decision` is on the disk. Raises DatasetError when it cannot be written."""
        line = (json.dumps(asdict(decision), sort_keys=True) + "\n").encode("ascii")
        with self._store.explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(handle).st_size
                torn = size and os.pread(handle, 1, size - 1) != b"\n"
                content = b"\n" + line if torn else line
                if os.write(handle, content) != len(content):
                    raise DatasetError(f"no space left under {self._store.root}; free some and decide again")
                os.fsync(handle)
            finally:
                os.close(handle)


def read_decisions(store: Store) -> list[Decision]:
    """Every decision in the order of time. Lines that are none (cut off by a crash) are left out."""
    found = [decision for name in _logs(store) for decision in _decisions(store, name) if decision]
    return sorted(found, key=lambda decision: (decision.time, decision.decision_id))


def damaged_lines(store: Store) -> dict[str, int]:
    """{file: lines that are no decision}, for `verify`."""
    counts = {name: sum(decision is None for decision in _decisions(store, name)) for name in _logs(store)}
    return {name: count for name, count in counts.items() if count}


def _logs(store: Store) -> list[str]:
    return [f"{FOLDER}/{name}" for name in store.names(FOLDER) if name.endswith(".jsonl")]


def _decisions(store: Store, name: str) -> Iterator[Decision | None]:
    for line in store.read(name).splitlines():
        if line.strip():
            yield _parsed(line)


def _parsed(line: bytes) -> Decision | None:
    try:
        facts: Mapping[str, Any] = json.loads(line)
        return Decision(**{**facts, "failing": tuple(facts.get("failing", ()))})
    except (ValueError, TypeError):
        return None


def standing(decisions: Sequence[Decision], profile: str) -> dict[str, Decision]:
    """{clip id: the decision that holds} under `profile`: the last one that nobody withdrew.

    decisions: in the order of time.
    """
    withdrawn = {decision.undoes for decision in decisions if decision.choice == WITHDRAW}
    return {
        decision.clip_id: decision
        for decision in decisions
        if decision.profile == profile and decision.choice != WITHDRAW and decision.decision_id not in withdrawn
    }


def overrides(store: Store, profile: str) -> dict[str, str]:
    """{clip id: "keep" or "reject"} that people decided under `profile`."""
    return {clip: decision.choice for clip, decision in standing(read_decisions(store), profile).items()}
