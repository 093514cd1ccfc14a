"""Decisions of people: added, never changed; whole or not at all; the last one that stands counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.decisions import (
    Decision,
    DecisionLog,
    damaged_lines,
    overrides,
    read_decisions,
    standing,
)
from manifests.errors import DatasetError
from manifests.store import Store


def decision(clip: str = "a", choice: str = "keep", **more: str) -> Decision:
    return Decision(clip, more.pop("profile", "pretrain"), choice, more.pop("reviewer", "ann"), **more)  # type: ignore[arg-type]


def test_what_was_added_is_read_back_in_the_order_of_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [decision("a"), decision("b", "reject", reason="a second <face>\n", verdict="keep"), decision("a", "reject")]
    ann, bob = DecisionLog(store), DecisionLog(store)
    ann.add(made[0])
    bob.add(made[1])
    ann.add(made[2])
    assert read_decisions(store) == made
    assert overrides(store, "pretrain") == {"a": "reject", "b": "reject"}
    assert overrides(store, "sft") == {}


def test_withdrawing_brings_back_what_was_decided_before(tmp_path: Path) -> None:
    store, log = Store(tmp_path), DecisionLog(Store(tmp_path))
    first, second = decision("a", "reject"), decision("a", "keep")
    for one in (first, second):
        log.add(one)
    assert overrides(store, "pretrain") == {"a": "keep"}
    log.add(decision("a", "withdraw", undoes=second.decision_id))
    assert overrides(store, "pretrain") == {"a": "reject"}
    log.add(decision("a", "withdraw", undoes=first.decision_id))
    assert overrides(store, "pretrain") == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("keep", "reject", "undo"))), max_size=20))
def test_it_is_a_stack_a_clip(moves: list[tuple[str, str]]) -> None:
    made: list[Decision] = []
    stacks: dict[str, list[Decision]] = {key: [] for key in "abc"}
    for clip, move in moves:
        if move != "undo":
            made.append(decision(clip, move))
            stacks[clip].append(made[-1])
        elif stacks[clip]:
            made.append(decision(clip, "withdraw", undoes=stacks[clip].pop().decision_id))
    assert standing(made, "pretrain") == {key: stack[-1] for key, stack in stacks.items() if stack}


def test_a_line_that_a_crash_cut_off_is_none_and_costs_no_other(tmp_path: Path) -> None:
    store, log = Store(tmp_path), DecisionLog(Store(tmp_path), "s")
    log.add(decision("a"))
    log.add(decision("b"))
    path = tmp_path / "decisions" / "s.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert overrides(store, "pretrain") == {"a": "keep"}
    log.add(decision("c", "reject"))
    assert overrides(store, "pretrain") == {"a": "keep", "c": "reject"}
    assert damaged_lines(store) == {"decisions/s.jsonl": 1}


@pytest.mark.parametrize(
    "line",
    (
        b'{"clip_id": 1, "profile": "p", "choice": "keep", "reviewer": "ann"}',
        b"[]",
        b'"x"',
        b"{}",
        b'{"clip_id": 1}',
        b"\xff\xfe",
        b'{"choice": "keep", "__class__": "x"}',
    ),
)
def test_lines_of_strangers_are_no_decisions(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "x.jsonl").write_bytes(line + b"\n")
    assert read_decisions(Store(tmp_path)) == []
    assert damaged_lines(Store(tmp_path)) == {"decisions/x.jsonl": 1}


@pytest.mark.parametrize(
    "wrong",
    (
        {"choice": "perhaps"},
        {"reviewer": ""},
        {"reviewer": "a\nb"},
        {"reason": "x" * 501},
        {"choice": "withdraw"},
        {"reviewer": "ann\n"},
        {"reason": "\ud800"},
        {"time": 3},
        {"clip": None},
        {"undoes": ["x"]},
    ),
)
def test_what_cannot_be_a_decision_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="\\w"):
        decision(**wrong)


def test_reviewers_at_once_lose_nothing(tmp_path: Path) -> None:
    shared = DecisionLog(Store(tmp_path), "one-session")

    def review(name: str) -> None:
        for at in range(40):
            shared.add(decision(f"{name}{at}", reviewer=name))

    threads = [threading.Thread(target=review, args=(name,)) for name in ("ann", "bob", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(overrides(Store(tmp_path), "pretrain")) == 120 and not damaged_lines(Store(tmp_path))


REVIEW = """
import sys
from manifests.decisions import Decision, DecisionLog
from manifests.store import Store
log = DecisionLog(Store(sys.argv[1]), "s")
for at in range(100000):
    log.add(Decision(f"clip{at}", "pretrain", "keep", "ann"))
    print(at, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", REVIEW, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    told = {int(line) for line in seen if line.endswith("\n")}
    kept = overrides(Store(tmp_path), "pretrain")
    assert {f"clip{at}" for at in told} <= kept.keys() and len(kept) <= len(told) + 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "decisions").write_text("a file where the folder should be")
    with pytest.raises((DatasetError, OSError)) as error:
        DecisionLog(Store(tmp_path)).add(decision())
    assert "\n" not in str(error.value)


def test_a_remote_dataset_takes_no_decisions() -> None:
    with pytest.raises(DatasetError, match="not a local folder"):
        DecisionLog(Store("memory://somewhere"))


def test_lines_are_json_that_others_read(tmp_path: Path) -> None:
    DecisionLog(Store(tmp_path), "s").add(decision("a", "reject", reason="ünsynchron"))
    facts = json.loads((tmp_path / "decisions" / "s.jsonl").read_text())
    assert facts["clip_id"] == "a" and facts["choice"] == "reject" and facts["reason"] == "ünsynchron"
