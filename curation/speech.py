"""Speech: is there sound, and in how much of the clip is a voice active?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.clip import Clip
from curation.stage import Result, Stage, package_version
from manifests.records import measures_of
from models.clock import ANALYSIS_RATE
from models.voice import voice_segments

DIGITAL_SILENCE = 2.0**-14
"""Largest sample of a track that holds nothing: two steps of 16 bits, what dither and codecs make of zeros."""


@dataclass(frozen=True)
class SileroSpeech(Stage):
    """Silero VAD over the clip. Fields are the arguments of `models.voice.segments`.

    A clip without an audio track is measured (audio_present is False); only its share of speech is null.
    evidence: {"segments": [[start_s, end_s], ...]}, seconds from the clip's start.
    """

    name = "speech"
    backend = "silero"
    measures = measures_of("speech")

    threshold: float = 0.5
    min_speech_s: float = 0.25
    min_silence_s: float = 0.1
    pad_s: float = 0.03

    def measure(self, clip: Clip) -> Result:
        """audio_present and speech_share of `clip`. Raises SourceError where the sound is damaged."""
        sound = clip.audio(ANALYSIS_RATE)
        if not len(sound.samples):
            return Result({"audio_present": False, "speech_share": None}, {"segments": []})
        if not audible(sound.samples):
            return Result({"audio_present": False, "speech_share": 0.0}, {"segments": []})
        found = voice_segments(sound.samples, **self.params())
        share = sum(end - start for start, end in found) / clip.seconds
        spans = [[round(edge + sound.start_s, 3) for edge in segment] for segment in found]
        return Result({"audio_present": True, "speech_share": min(1.0, share)}, {"segments": spans})

    def weights(self) -> tuple[str, ...]:
        return ("silero-vad",)

    def revision(self) -> str:
        return package_version("silero-vad")


def audible(samples: np.ndarray) -> bool:
    """Whether `samples` ([n] float32) hold anything above digital silence."""
    return bool(len(samples)) and bool(np.max(np.abs(samples)) > DIGITAL_SILENCE)
