"""Denoise: the voice that Demucs separates from all other sound (the paper, A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.audio import Audio
from curation.clip import Clip
from curation.denoise import MARGIN_S, denoised, resampled
from curation.stage import Result, Stage, package_version
from manifests.records import measures_of
from models.clock import STORED_RATE
from models.device import torch_device
from models.separation import RATE, load_htdemucs, vocals
from models.weights import weights_file

WEIGHTS = "htdemucs"
STEP = RATE // STORED_RATE
"""Samples that the net hears for one that is stored: 2, so that both lie on one grid."""


@dataclass(frozen=True)
class DemucsDenoise(Stage):
    """The "vocals" stem of htdemucs (S. Rouard et al., ICASSP 2023).

    overlap: share by which the net's windows of 7.8 s overlap; its publisher's figure.
    device: where it runs. The net hears the source at 44.1 kHz, not what is stored of it.
    product: `Audio` at STORED_RATE, MARGIN_S longer than the clip on both sides where the source has sound.
    A clip without a voice keeps its sound as it is: nothing tells its background from what it is about.
    """

    name = "denoise"
    backend = "demucs"
    measures = measures_of("denoise")

    overlap: float = 0.25
    device: str = "cpu"

    def measure(self, clip: Clip) -> Result:
        """noise_snr_db and noise_removed_db, as `SpectralGate` measures them: what changes where nobody speaks.

        Raises Unmeasured without at least half a second of sound.
        """
        sound = clip.audio(STORED_RATE, -MARGIN_S, clip.seconds + MARGIN_S)
        return denoised(sound, lambda samples, noise, ratio: self.voice(clip, sound))

    def product(self, clip: Clip, evidence: Mapping[str, Any]) -> Audio:
        """The denoised sound, computed anew: it is too large to be stored as evidence."""
        made: Audio = self.measure(clip).product
        return made

    def voice(self, clip: Clip, sound: Audio) -> np.ndarray:
        """[n] float32: the voice in `sound` ([n] samples at STORED_RATE), on the same samples."""
        device = torch_device(self.device)
        model = load_htdemucs(weights_file(WEIGHTS), device)
        wide = clip.audio(RATE, sound.start_s, sound.end_s)
        heard = placed(wide, sound.start_s, STEP * len(sound.samples))
        return resampled(vocals(model, heard, device, self.overlap), RATE, STORED_RATE)

    def weights(self) -> tuple[str, ...]:
        return (WEIGHTS, "silero-vad")

    def revision(self) -> str:
        return f"{super().revision()}, {package_version('demucs')}"


def placed(sound: Audio, start_s: float, count: int) -> np.ndarray:
    """[count] float32: `sound` where it lies when sample 0 stands at `start_s`, zeros where there is none."""
    out = np.zeros(count, np.float32)
    first = round((sound.start_s - start_s) * sound.rate)
    begin, end = max(0, first), min(count, first + len(sound.samples))
    if begin < end:
        out[begin:end] = sound.samples[begin - first : end - first]
    return out
