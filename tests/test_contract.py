"""What every backend of every stage owes the tables, a resumed run and its fellow stages.

Each registered backend goes through all of it; the stages that it reads are the bundled recipe's.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from conftest import Head
from hypothesis import given
from hypothesis import strategies as st

from curation.clip import Clip, Frames, decode_clip
from curation.media import probe
from curation.registry import BACKENDS, build_stage
from curation.stage import Result, Stage, Unmeasured, fingerprint
from manifests.records import CLIP_STAGES, MEASURES, clip_id, measures_of
from models.clock import FPS, STORED_RATE
from models.weights import ENV
from pipelines.recipe import build_stages, load_recipe
from pipelines.sample import Scene, scene_sound, write_video
from pipelines.work import FOLDERS

NAMES = [(stage, backend) for stage, backends in BACKENDS.items() for backend in backends]
PLAIN = {
    "string": str, "category": str, "bool": bool, "int32": int, "int64": int, "float32": float, "float64": float,
}  # fmt: skip
KINDS = {column.name: column.kind for column in MEASURES}
SPOILT = ("no audio", "silent", "no face", "half a second", "one frame", "15 fps")
"""Clips of which some stages cannot know anything."""


@pytest.fixture(scope="module", autouse=True)
def weights(made_weights: Path) -> Iterator[Path]:
    """Weights of every backend, in the official formats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV, str(made_weights))
        yield made_weights


@pytest.fixture(params=NAMES, ids="-".join)
def stage(request: pytest.FixtureRequest) -> Stage:
    return build_stage(request.param[0], request.param[1], {})


@cache
def bundled() -> dict[str, Stage]:
    return build_stages(load_recipe("bundled"))


class Gallery:
    """Clips by kind, and what the bundled stages found in them, each found once."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.head, self.folder = head, folder
        self._frames: dict[str, Frames] = {}
        self._found: dict[tuple[str, str], Result | None] = {}
        self._spans = {kind: self._make(kind) for kind in ("talking", "another", *SPOILT)}

    def _make(self, kind: str) -> tuple[Path, float]:
        """(file, seconds of it that are the clip)."""
        frames, sound, fps = self.head.frames, self.head.sound, FPS
        if kind in ("talking", "half a second", "one frame"):
            return self.head.path, {"talking": self.head.seconds, "half a second": 0.48, "one frame": 1 / FPS}[kind]
        if kind == "another":
            frames, sound = frames[:130, :, ::-1], scene_sound(Scene("speech_en_2", 5.2, seed=1, noise_snr_db=15))
        elif kind == "no face":
            frames = np.stack([leaves(k) for k in range(125)])
        elif kind == "15 fps":
            frames, fps = frames[np.round(np.arange(0, len(frames), 25 / 15)).astype(int)[:95]], 15
        seconds = min(len(frames) // fps, int(self.head.seconds))
        track = {"no audio": None, "silent": np.zeros_like(sound)}.get(kind, sound)
        path = self.folder / f"{kind.replace(' ', '_')}.mp4"
        samples = None if track is None else track[: seconds * STORED_RATE]
        return write_video(path, frames[: seconds * fps], samples, STORED_RATE, fps=fps), float(seconds)

    def clip(self, kind: str, stage: Stage) -> Clip:
        """A new clip on which all that `stage` reads, directly or not, has run before, and nothing else."""
        path, seconds = self._spans[kind]
        key = clip_id("0123456789abcdef", 0.0, seconds)
        row = {"clip_id": key, "source_id": "0123456789abcdef", "start_s": 0.0, "end_s": seconds}
        read = [name for name in CLIP_STAGES if name in upstream(stage)]
        stages = {name: bundled()[name] for name in read}
        clip = Clip(key, str(path), probe(str(path)), 0.0, seconds, row=row, stages=stages)
        clip.decode = lambda clip: self._decoded(kind, clip)
        for name in read:
            result = self._result(kind, name)
            clip.row |= dict.fromkeys(measures_of(name))
            if result is not None:
                evidence = None if result.evidence is None else json.loads(json.dumps(result.evidence))
                clip.record(name, result.measures, evidence, None)
        return clip

    def _decoded(self, kind: str, clip: Clip) -> Frames:
        if kind not in self._frames:
            self._frames[kind] = decode_clip(clip)
        kept = self._frames[kind]
        return Frames(kept.small.copy(), {at: image.copy() for at, image in kept.samples.items()})

    def _result(self, kind: str, name: str) -> Result | None:
        """What the bundled stage found; None when it could not know."""
        if (kind, name) not in self._found:
            stage = bundled()[name]
            try:
                self._found[kind, name] = stage.measure(self.clip(kind, stage))
            except Unmeasured:
                self._found[kind, name] = None
        return self._found[kind, name]

    def measured(self, kind: str, stage: Stage) -> Result:
        """Raises Unmeasured."""
        return stage.measure(self.clip(kind, stage))


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Gallery:
    return Gallery(tmp_path_factory.mktemp("gallery"), head)


def leaves(index: int) -> np.ndarray:
    """[256, 256, 3] uint8 RGB: smooth blotches that drift, as foliage does."""
    coarse = np.random.default_rng(7).integers(0, 256, (24, 24, 3), np.uint8)
    blotches = cv2.resize(coarse, (384, 384), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(blotches[index % 128 : index % 128 + 256, 20 : 20 + 256])


def upstream(stage: Stage) -> set[str]:
    """Stages that `stage` reads, and those that they read."""
    return {found for name in stage.reads for found in (name, *upstream(bundled()[name]))}


def same(a: Any, b: Any) -> bool:
    """Equal in types and values, arrays in their bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def check(stage: Stage, result: Result, seconds: float) -> None:
    """A result as the tables take it, and a stage that has kept nothing of the clip or of its model."""
    assert vars(stage).keys() == {field.name for field in dataclasses.fields(stage)}  # type: ignore[arg-type]
    assert len(pickle.dumps(stage)) < 4096
    assert set(result.measures) == set(stage.measures)
    for name, value in result.measures.items():
        assert value is None or type(value) is PLAIN[KINDS[name]], (name, value)
        assert not isinstance(value, float) or math.isfinite(value), (name, value)
        assert KINDS[name] != "int32" or not isinstance(value, int) or -(2**31) <= value < 2**31, (name, value)
    evidence = json.dumps(result.evidence, allow_nan=False)
    assert len(evidence) < 10_000 * max(1.0, seconds)  # 100 kB for 10 s
    assert stage.name in FOLDERS or not result.files
    assert all(type(content) is bytes for content in result.files.values())


def test_every_stage_of_the_funnel_has_a_backend() -> None:
    assert tuple(BACKENDS) == CLIP_STAGES
    assert list(bundled()) == list(CLIP_STAGES)


def test_it_is_what_it_is_registered_as(stage: Stage, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["stage"][0]
    assert stage.name == name
    assert stage.measures == measures_of(name) and set(stage.measures) <= KINDS.keys()
    assert set(stage.reads) <= set(CLIP_STAGES[: CLIP_STAGES.index(name)])
    assert stage.backend and type(stage.version) is int
    assert isinstance(stage.revision(), str) and "\n" not in stage.revision()


def test_no_two_backends_of_a_stage_share_a_name() -> None:
    named = [(stage, build_stage(stage, backend, {}).backend) for stage, backend in NAMES]
    assert len(set(named)) == len(named)


def test_a_talking_head_is_measured_and_again_after_another_clip(stage: Stage, gallery: Gallery) -> None:
    first = gallery.measured("talking", stage)
    check(stage, first, gallery.head.seconds)
    other = gallery.measured("another", stage)
    again = gallery.measured("talking", stage)
    assert same(first.measures, again.measures)
    assert same(first.evidence, again.evidence)
    assert same(dict(first.files), dict(again.files))
    assert same(first.product, again.product)
    # else the above says nothing: two clips that differ all over must not give one result
    assert not same(
        [first.measures, first.evidence, dict(first.files)], [other.measures, other.evidence, dict(other.files)]
    )


def test_its_product_comes_back_from_stored_evidence(stage: Stage, gallery: Gallery) -> None:
    if type(stage).product is Stage.product:
        return  # measures again: the same by the test above
    result = gallery.measured("talking", stage)
    stored = json.loads(json.dumps(result.evidence))
    assert same(stage.product(gallery.clip("talking", stage), stored or {}), result.product)


def test_it_leaves_the_clip_as_it_found_it(stage: Stage, gallery: Gallery) -> None:
    clip = gallery.clip("talking", stage)
    untouched = gallery.clip("talking", stage)
    for name in stage.reads:
        clip.product(name)
    stage.measure(clip)
    assert same(clip.row, untouched.row)
    assert same(clip.evidence, untouched.evidence)
    assert same(clip.small, untouched.small)
    assert same(dict(clip.samples), dict(untouched.samples))
    for name in stage.reads:
        assert same(clip.product(name), untouched.product(name)), name
    for (rate, start_ms, end_ms), sound in clip._sounds.items():
        assert same(sound.samples, untouched.audio(rate, start_ms / 1000, end_ms / 1000).samples)


@pytest.mark.parametrize("kind", SPOILT)
def test_a_clip_that_lacks_something_is_measured_or_says_what(kind: str, stage: Stage, gallery: Gallery) -> None:
    try:
        result = gallery.measured(kind, stage)
    except Unmeasured as reason:
        assert str(reason).strip() and "\n" not in str(reason)
        assert set(getattr(reason, "measures", {})) <= set(stage.measures)
    else:
        check(stage, result, 6.0)


def test_instances_are_frozen_and_travel(stage: Stage) -> None:
    travelled = pickle.loads(pickle.dumps(stage))
    assert travelled == stage and hash(travelled) == hash(stage)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.anything = 1  # type: ignore[attr-defined]


class TestFingerprint:
    UPSTREAM: ClassVar = {name: f"{at:016x}" for at, name in enumerate(("scenes", *CLIP_STAGES))}

    def of(self, stage: Stage, **changed: str) -> str:
        return fingerprint(stage, self.UPSTREAM | changed)

    def test_each_parameter_changes_it(self, stage: Stage) -> None:
        prints = {self.of(stage)}
        fields = [field for field in dataclasses.fields(stage) if field.name != "device"]  # type: ignore[arg-type]
        for field in fields:
            value = another(field, getattr(stage, field.name))
            prints.add(self.of(dataclasses.replace(stage, **{field.name: value})))  # type: ignore[type-var]
        assert len(prints) == 1 + len(fields)

    def test_where_it_runs_does_not(self, stage: Stage) -> None:
        if hasattr(stage, "device"):
            assert self.of(dataclasses.replace(stage, device="cuda:1")) == self.of(stage)  # type: ignore[type-var]

    def test_so_do_version_and_revision(self, stage: Stage) -> None:
        newer = type("Newer", (type(stage),), {"version": stage.version + 1})
        updated = type("Updated", (type(stage),), {"revision": lambda self: "another model"})
        parameters = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}  # type: ignore[arg-type]
        assert len({self.of(stage), self.of(newer(**parameters)), self.of(updated(**parameters))}) == 3

    @given(name=st.sampled_from(("scenes", *CLIP_STAGES)), value=st.text("0123456789abcdef", min_size=16, max_size=16))
    def test_what_it_reads_changes_it_and_nothing_else(self, name: str, value: str) -> None:
        for built in (build_stage(stage, backend, {}) for stage, backend in NAMES):
            moved = name in built.reads and value != self.UPSTREAM[name]
            assert (self.of(built, **{name: value}) != self.of(built)) == moved

    def test_nothing_else_changes_it(self, stage: Stage) -> None:
        twin = pickle.loads(pickle.dumps(copy.deepcopy(stage)))
        backwards = dict(reversed(self.UPSTREAM.items()))
        assert fingerprint(twin, backwards) == self.of(stage)


def another(field: dataclasses.Field[Any], value: Any) -> Any:
    """Another value that a parameter may have: of those it may choose from, where there are such."""
    choices = [choice for choice in field.metadata.get("choices", ()) if choice != value]
    return choices[0] if choices else other(value)


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1 if isinstance(value, int) else 0.015625)
    if isinstance(value, str):
        return value + "x"
    assert isinstance(value, tuple) and value, f"a parameter of type {type(value).__name__} needs its own case here"
    return (other(value[0]), *value[1:])
