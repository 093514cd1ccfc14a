"""A whole stream on one device: what is asked becomes states, chunks, pictures and sound, by the runner itself."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.stream_models import (
    NONE,
    PICTURES,
    SOUNDS,
    codecs_of,
    device_here,
    random_actor,
    thinker_of,
)
from benchmarks.stream_parts import forget
from benchmarks.train_spread import spread
from inference.dialogue import Dialogue
from inference.engine import Engine
from inference.pictures import Pictures
from inference.runner import Runner
from inference.schedule import Plan
from inference.sound import Sound
from manifests.errors import UsageError
from models.actor import Actor
from models.clock import CHUNK_FRAMES, CHUNK_SECONDS, SEGMENT_SPEECH_TOKENS
from models.thinker import Thinker
from training.watch import memory_used

Row = dict[str, Any]
PARTS = ("thinker", "actor", "pictures", "sound")
QUESTION = "Tell me all that you know about the sea, and do not stop before you are done."


@dataclass(frozen=True)
class Setting:
    """ "PICTURES+SOUND:N:STRIDE". pictures, sound: codecs, or none."""

    pictures: str
    sound: str
    plan: Plan

    @classmethod
    def read(cls, text: str) -> Setting:
        """Raises UsageError for another form and for unknown codecs."""
        try:
            codecs, steps, stride = text.split(":")
            pictures, sound = codecs.split("+")
            plan = Plan(int(steps), int(stride))
        except ValueError:
            raise UsageError(f"setting {text!r} must be PICTURES+SOUND:N:STRIDE, as dct3d+fsq:25:1") from None
        if pictures not in (*PICTURES, NONE) or sound not in (*SOUNDS, NONE):
            raise UsageError(
                f"setting {text!r}: pictures are {', '.join([*PICTURES, NONE])}, sound {', '.join([*SOUNDS, NONE])}"
            )
        return cls(pictures, sound, plan)


def stream_rows(preset: str, setting: str, runs: int, seconds: float, grid: Sequence[int]) -> Iterator[Row]:
    """A row: `runs` streams of `seconds`, each from the question on, after one that is not counted."""
    found, device = Setting.read(setting), device_here()
    with codecs_of(found.pictures, found.sound, device.type) as codecs:
        actor, thinker = random_actor(preset, device), thinker_of(preset, device)
        chunks = max(1, round(seconds / CHUNK_SECONDS))
        forget()
        told = [_streamed(actor, thinker, codecs, found.plan, chunks, grid) for _ in range(1 + runs)][1:]
    row: Row = {
        "setting": setting,
        "first frame s": spread([each["first_frame_after_segment_s"] for each in told]),
        "from the question s": spread([each["first_frame_s"] for each in told]),
        "x real time": spread([1 / each["realtime"] for each in told]),
        "s a minute": 60 * spread([each["realtime"] for each in told])["median"],
    }
    row |= {f"{part} s": 60 * spread([each["realtime_of"][part] for each in told])["median"] for part in PARTS}
    row["p99 latency s"] = spread([each["latency_p99_s"] for each in told])
    yield {**row, "late": max(each["late_chunks"] for each in told), "GB": memory_used(device) / 1e9}


def _streamed(
    actor: Actor, thinker: Thinker, codecs: tuple[Any, Any], plan: Plan, chunks: int, grid: Sequence[int]
) -> dict[str, Any]:
    """The figures of one stream, the portrait of which is noise."""
    gc.collect()  # the keys and values of the stream before
    device, (video, speech) = actor.head.weight.device, codecs
    portrait = np.random.default_rng(0).standard_normal((actor.config.channels, *grid), np.float32)
    dialogue = Dialogue(thinker, np.zeros(SEGMENT_SPEECH_TOKENS, np.int32), held=True)
    engine = Engine(actor, torch.from_numpy(portrait).to(device), plan)
    pictures = Pictures(video, portrait, kept=plan.ahead + 1)
    runner = Runner(dialogue, engine, pictures, Sound(speech.rate, speech))
    runner.ask(QUESTION)
    for _ in runner.chunks(frames=chunks * CHUNK_FRAMES):
        pass
    return runner.figures.as_json()
