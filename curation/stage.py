"""What a stage is: a clip in, measures (numbers for the tables), evidence (what a person looks at) and a
product (what later stages read) out.

A stage's author subclasses `Stage` as a frozen dataclass whose fields are its measurement parameters and
writes `measure`. Bounds are no business of a stage: verdicts are made from the tables (`manifests.verdicts`).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from curation.clip import Clip
from models.lock import identity, packaged

Scalar = bool | int | float | str | None


class Unmeasured(Exception):
    """Raised by `Stage.measure` when the method cannot know (a clip too short, no audio); says why."""


@dataclass(frozen=True)
class Result:
    """What one stage found in one clip.

    measures: a value for each name in the stage's `measures`; None where it could not be known.
    evidence: small JSON-able facts for people and for a resumed run (a face track, words with times).
    product: what later stages of the same run read, made again by `Stage.product` when resumed.
    files: members of the encoded sample, by extension ("speech.npy"), the `encode` stage only.
    """

    measures: Mapping[str, Scalar]
    evidence: Mapping[str, Any] | None = None
    product: Any = None
    files: Mapping[str, bytes] = field(default_factory=dict)


class Stage(ABC):
    """One measurement. Subclasses are frozen dataclasses; instances hold parameters, never a model.

    Models load lazily, once a process, through a cached function of their module.
    """

    name: ClassVar[str]
    """The stage ("sync"); a recipe chooses one backend for each."""
    backend: ClassVar[str]
    """The method or model ("correlation"); bounds are written per backend."""
    version: ClassVar[int] = 1
    """Raised whenever the same input may give another output."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Stages whose product or evidence this one uses."""
    measures: ClassVar[tuple[str, ...]]
    """Columns of the clips table that it fills (`manifests.records.MEASURES` documents each)."""

    @abstractmethod
    def measure(self, clip: Clip) -> Result:
        """Measures `clip`. Raises Unmeasured where the method cannot know."""

    def product(self, clip: Clip, evidence: Mapping[str, Any]) -> Any:
        """The product again, from stored evidence, when only a later stage must run."""
        return self.measure(clip).product

    def weights(self) -> tuple[str, ...]:
        """Models of `models.weights.catalogue` that it runs; their licences are shown and recorded."""
        return ()

    def revision(self) -> str:
        """Identity of the model behind the backend: package and version, or hashes of weights.

        Raises ModelError when weights are missing, so that a run refuses before it starts.
        """
        return identity(self.weights())

    def params(self) -> dict[str, Any]:
        """Measurement parameters, as they enter the fingerprint: all fields but `device`, for where a model runs
        is not what it measures."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "device"}  # type: ignore[arg-type]


def fingerprint(stage: Stage, upstream: Mapping[str, str]) -> str:
    """Hash of all that may change what `stage` measures; `upstream` maps stages it reads to fingerprints."""
    facts = {
        "stage": stage.name,
        "backend": stage.backend,
        "version": stage.version,
        "revision": stage.revision(),
        "params": stage.params(),
        "reads": {name: upstream[name] for name in sorted(stage.reads)},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def package_version(package: str) -> str:
    """ "package version" of an installed distribution, for `Stage.revision`. Raises ModelError without it."""
    return packaged(package)
