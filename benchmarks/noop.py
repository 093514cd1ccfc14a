"""Stages that measure nothing, to weigh the graph alone. Used as recipe backends "benchmarks.noop:Sync" and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curation.clip import Clip
from curation.stage import Result, Stage
from manifests.records import CLIP_STAGES, measures_of


@dataclass(frozen=True)
class Noop(Stage):
    """Answers at once; with `media` after reading the clip's picture and sound."""

    media: bool = False
    backend: ClassVar[str] = "noop"

    def measure(self, clip: Clip) -> Result:
        if self.media:
            assert len(clip.small) and clip.audio(16_000).rate == 16_000
        return Result({})


def _noop(stage: str) -> type[Noop]:
    return type(stage.capitalize(), (Noop,), {"name": stage, "measures": measures_of(stage)})


globals().update({stage.capitalize(): _noop(stage) for stage in CLIP_STAGES})

RECIPE = {
    "name": "noop",
    "scenes": {},
    "stages": {s: {"backend": f"benchmarks.noop:{s.capitalize()}"} for s in CLIP_STAGES},
}
