"""Dialogues for a process of their own that do as they are told, without torch: who only waits starts in a second."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from inference.segments import Segment
from inference.thinker_process import Talking
from manifests.errors import ModelError, UsageError
from models.clock import SEGMENT_SPEECH_TOKENS
from models.dialogue_layout import turn_of


def segment(index: int, *, text: int = 13, states: int = 8, seed: int = 0) -> Segment:
    """Of random numbers; the same index and seed give the same."""
    turn, dice = turn_of(text, SEGMENT_SPEECH_TOKENS), np.random.default_rng((seed, index))
    return Segment(
        index,
        dice.standard_normal((len(turn), states)).astype(np.float16),
        turn.speech,
        np.rint(turn.times * 12.5).astype(np.int64) + SEGMENT_SPEECH_TOKENS * index,
        dice.integers(0, 16384, SEGMENT_SPEECH_TOKENS).astype(np.int32),
        np.arange(text, dtype=np.int32),
        turns=dice.integers(0, 9, SEGMENT_SPEECH_TOKENS),
    )


class Obedient:
    """`ask("talk 5")` gives five segments, "slow 5" five of 1.5 s of work in thirty steps each, "hang" none, ever,
    "usage", "model", "bug", "exit" an error or an end in the step after the next segment; "refuse" and "crash" raise
    at once. Gives how many segments it has made so far."""

    def __init__(self, states: int) -> None:
        self.states, self.made, self.next = states, 0, 0
        self.todo: list[str] = []

    @property
    def idle(self) -> bool:
        return self.quiet

    @property
    def quiet(self) -> bool:
        return not self.todo

    def ask(self, user: Any) -> int:
        if isinstance(user, str) and user.startswith("refuse"):
            raise UsageError(f"no such answer: {user}")
        if isinstance(user, str) and user == "crash":
            raise KeyError("deep inside")
        if not isinstance(user, str):
            return int(np.asarray(user).sum())
        word, _, count = user.partition(" ")
        work = {"slow": [*["wait"] * 30, "talk"], "talk": ["talk"]}
        self.todo += work[word] * int(count) if word in work else ["talk", word] if word != "made" else []
        return self.made

    def speak(self, speech: Any, text: Any = ()) -> int:
        raise UsageError("has no voice")

    def interrupt(self, chunk: int | None = None, since: int | None = None) -> None:
        self.next = self.next if since is None else since
        self.todo.clear()

    def mark(self) -> int:
        return self.next

    def step(self) -> Segment | None:
        word = self.todo.pop(0) if self.todo else "talk"
        if word == "wait":
            time.sleep(0.05)
        elif word == "hang":
            time.sleep(3600)
        elif word == "usage":
            raise UsageError("these are no words")
        elif word == "model":
            raise ModelError("the weights are no numbers; fetch them again")
        elif word == "exit":
            os._exit(7)
        elif word == "bug":
            self._deep_inside()
        if word != "talk":
            return None
        self.made, self.next = self.made + 1, self.next + 1
        return segment(self.next - 1, states=self.states)

    def _deep_inside(self) -> None:
        raise RuntimeError("device-side assert")


def obedient(states: int = 8, fails: str = "") -> tuple[Talking, dict[str, Any]]:
    """A maker for `inference.remote.Made`."""
    if fails:
        raise ModelError(fails)
    return Obedient(states), {"identity": "obedient", "pid": os.getpid()}
