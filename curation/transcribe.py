"""Transcribe: the words of the clip with their times.

PocketSphinx 5 (D. Huggins-Daines et al., ICASSP 2006) with the US English model inside its package. It hears
English in everything: other languages come out as improbable words, so the language is never claimed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.clip import Clip
from curation.denoise import resampled
from curation.stage import Result, Scalar, Stage, Unmeasured, package_version
from manifests.errors import ModelError
from manifests.records import measures_of
from models.clock import ANALYSIS_RATE
from models.onnx import package_file
from models.voice import voice_segments

Word = tuple[str, float, float, float]
"""Word, start and end in seconds, confidence 0-1."""

VARIANT = re.compile(r"\(\d+\)$")
"""Pronunciation number that the dictionary appends to a word."""
SHORTEST_S = 0.1
"""Less sound than the recogniser's smoothing of its features looks at."""
SETTINGS = {"cmn": "batch", "maxhmmpf": 4000, "maxwpf": 10}
"""cmn: each utterance is normalised by itself, so that none depends on those before it. maxhmmpf, maxwpf: a
third of the decoding time for the same words; the package's defaults keep 30,000 states and every word."""


@functools.cache
def _decoder() -> Any:
    """The recogniser of this process. Raises ModelError when its package is missing or damaged."""
    model = package_file("pocketsphinx", "model", "en-us")
    from pocketsphinx import Decoder

    try:
        return Decoder(
            hmm=str(model / "en-us"),
            lm=str(model / "en-us.lm.bin"),
            dict=str(model / "cmudict-en-us.dict"),
            loglevel="FATAL",
            **SETTINGS,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"pocketsphinx cannot load {model} ({error}); reinstall pocketsphinx") from error


@dataclass(frozen=True)
class PocketSphinxTranscribe(Stage):
    """Words of the spoken stretches; silence and noise are never decoded, so they give none.

    min_silence_s, pad_s: stretches closer than the one are one utterance (the language model wants whole
    phrases); each is decoded with this much sound around it, as the model expects silence at both ends.
    evidence: {"words": [[word, start_s, end_s, confidence], ...]}, seconds from the clip's start in the time
    of the clip's own sound, before any correction of an offset.
    """

    name = "transcribe"
    backend = "pocketsphinx"
    reads = ("denoise",)
    measures = measures_of("transcribe")

    min_silence_s: float = 0.5
    pad_s: float = 0.2

    def measure(self, clip: Clip) -> Result:
        """transcript, word_count and asr_confidence. Raises Unmeasured without sound."""
        sound = clip.product("denoise")
        samples = resampled(sound.samples, sound.rate, ANALYSIS_RATE)
        if not len(samples):
            raise Unmeasured("the clip has no sound")
        spans = voice_segments(samples, min_silence_s=self.min_silence_s, pad_s=self.pad_s)
        heard = [word for span in spans for word in recognised(samples, *span)]
        words = inside([(w, a + sound.start_s, b + sound.start_s, p) for w, a, b, p in heard], clip.seconds)
        measures: dict[str, Scalar] = {
            "transcript": " ".join(word for word, *_ in words),
            "word_count": len(words),
            "asr_confidence": float(np.mean([p for *_, p in words])) if words else None,
            "spoken_language": None,
        }
        rows = [[w, round(a, 3), round(b, 3), round(p, 3)] for w, a, b, p in words]
        return Result(measures, {"words": rows})

    def params(self) -> dict[str, Any]:
        return super().params() | SETTINGS

    def weights(self) -> tuple[str, ...]:
        return ("pocketsphinx-en-us", "silero-vad")

    def revision(self) -> str:
        return f"{package_version('pocketsphinx')} {package_version('silero-vad')}"


def recognised(samples: np.ndarray, start_s: float, end_s: float) -> list[Word]:
    """Words between two times (seconds) of `samples` ([n] float32, 16 kHz), decoded as one utterance."""
    part = samples[round(start_s * ANALYSIS_RATE) : round(end_s * ANALYSIS_RATE)]
    if len(part) < SHORTEST_S * ANALYSIS_RATE:
        return []
    decoder = _decoder()
    decoder.start_stream()  # forgets the noise it learned from earlier utterances
    decoder.start_utt()
    try:
        decoder.process_raw((np.clip(part, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    finally:
        decoder.end_utt()
    return spoken(decoder.seg() or (), float(decoder.config["frate"]), start_s)


def spoken(segments: Iterable[Any], frame_rate: float, offset_s: float) -> list[Word]:
    """The words among decoder segments (`word`, `start_frame`, `end_frame`, `prob`); fillers are none."""
    return [
        (
            VARIANT.sub("", segment.word),
            offset_s + segment.start_frame / frame_rate,
            offset_s + (segment.end_frame + 1) / frame_rate,
            min(1.0, max(0.0, float(segment.prob))),
        )
        for segment in segments
        if not segment.word.startswith(("<", "[", "+"))
    ]


def inside(words: Iterable[Word], seconds: float) -> list[Word]:
    """Words whose middle lies in the clip: the margins of the sound belong to its neighbours."""
    return [word for word in words if 0.0 <= (word[1] + word[2]) / 2 < seconds]
