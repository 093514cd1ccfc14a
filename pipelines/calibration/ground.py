"""The clips of a snapshot as calibration looks at them: for each rule those that it alone decides about, in bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.verdicts import Profile
from pipelines.calibration.scale import SAMPLED, Scale, scale_of
from pipelines.review.snapshot import Snapshot

LEVELS = 32
"""Steps in which a clip's distance to a bound is held: shares of the clips that pass."""
NEAR_LEVEL = 3
"""A clip is near a bound up to here, that is among the tenth of those that pass which lies next to it."""
OUTSIDE = -1


@dataclass(frozen=True)
class Ground:
    """fails: [n] uint8, how many rules a clip fails; kept: [n] bool, the rules keep it. nearest, second: [n] int8,
    distance to the nearest bound of a rule that the clip passes and to the next rule's; whose: [n] int8, place of the
    nearest rule."""

    snapshot: Snapshot
    scales: Sequence[Scale]
    fails: np.ndarray
    kept: np.ndarray
    nearest: np.ndarray
    second: np.ndarray
    whose: np.ndarray

    def near_another(self, place: int) -> np.ndarray:
        """[n] bool: near the bound of another rule than the one at `place`."""
        return np.where(self.whose == place, self.second, self.nearest) <= NEAR_LEVEL

    def alone(self, place: int) -> np.ndarray:
        """[n] bool: clips about which the rule at `place` decides alone: they have its value and fail no other rule.

        Others may lack a value: what fails a rule early is often not measured further.
        """
        scale = self.scales[place]
        failing, lacking = self.snapshot.masks(scale.rule)
        return (self.fails == failing) & ~lacking & measured_by(self.snapshot, scale)

    def scores(self, place: int) -> np.ndarray:
        """[n] float32, of a rule that slides."""
        scale = self.scales[place]
        return scale.scores(self.snapshot.values(scale.rule.measure))


def lay(snapshot: Snapshot, profile: Profile, backends: Mapping[str, str]) -> Ground:
    """The ground of `profile`. Raises UsageError when a rule has no bound for what measured."""
    found = [scale_of(rule, backends.get(rule.stage)) for rule in profile.rules]
    scales = [scale for scale in found if scale is not None]
    n = len(snapshot)
    fails, lacks = np.zeros(n, np.uint8), np.zeros(n, bool)
    nearest, second = np.full(n, LEVELS, np.int8), np.full(n, LEVELS, np.int8)
    whose = np.full(n, OUTSIDE, np.int8)
    for rule in profile.rules:
        failing, lacking = snapshot.masks(rule)
        fails += failing
        lacks |= lacking
    for place, scale in enumerate(scales):
        if scale.slides:
            level = _levels(snapshot, scale)
            closer = level < nearest
            second = np.where(closer, nearest, np.minimum(second, level))
            whose[closer] = place
            nearest = np.minimum(nearest, level)
    return Ground(snapshot, scales, fails, (fails == 0) & ~lacks, nearest, second, whose)


def _levels(snapshot: Snapshot, scale: Scale) -> np.ndarray:
    """[n] int8: how far the clips that pass lie from the bound, in shares of them; LEVELS for the others."""
    failing, lacking = snapshot.masks(scale.rule)
    scores = scale.scores(snapshot.values(scale.rule.measure))
    passes = ~failing & ~lacking & np.isfinite(scores)
    known = scores[passes]
    out = np.full(len(scores), LEVELS, np.int8)
    if len(known):
        grid = np.quantile(known[:: max(1, len(known) // SAMPLED)], np.arange(1, LEVELS) / LEVELS)
        out[passes] = np.searchsorted(grid, known)
    return out


def measured_by(snapshot: Snapshot, scale: Scale) -> np.ndarray:
    """[n] bool: clips that the scale's bound is for, by the backend that measured them."""
    if not scale.rule.stage:
        return np.ones(len(snapshot), bool)
    column = snapshot.table[f"{scale.rule.stage}_backend"].combine_chunks()
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    names = encoded.dictionary.to_pylist()
    fits = [scale.rule.applies(name) and scale.key in ("", name) for name in names]
    return np.array([*fits, False])[np.asarray(pc.fill_null(encoded.indices, len(names)))]
