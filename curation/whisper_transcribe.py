"""Transcribe: the language by Whisper, English words by Whisper, Chinese by FunASR's Paraformer (the paper, A.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation.clip import Clip
from curation.denoise import resampled
from curation.stage import Result, Stage, Unmeasured, package_version
from curation.transcribe import inside
from manifests.records import measures_of
from models.asr import Word, packed, shortened, unpacked, windows
from models.clock import ANALYSIS_RATE
from models.device import torch_device
from models.paraformer import characters, load_paraformer
from models.voice import Segments, voice_segments
from models.weights import weights_file, weights_folder
from models.whisper_asr import (
    WINDOW_S,
    Guards,
    Heard,
    heard,
    language_probabilities,
    load_whisper,
    recognised,
    weighted,
)

CHINESE = "paraformer-zh"
MODELS = ("large-v3-turbo", "large-v3", "small", "base")
"""Official multilingual models; each is "whisper-..." in the catalogue."""
TOLD = 3
"""Languages that the evidence lists, the most probable ones."""


@dataclass(frozen=True)
class WhisperParaformerTranscribe(Stage):
    """Words of the spoken stretches in English and in Chinese; of any other language, its name alone.

    model: one of MODELS, or another "whisper-..." of your own catalogue. large-v3-turbo has
    4 of large-v3's 32 decoder layers, by its publisher's word with little loss; half of its file, and far faster.
    language_probability: the least that the likeliest language must have, as the mean over all speech; below a
    half something else is likelier, and no language is claimed.
    no_speech, log_probability, compression: `models.whisper_asr.Guards`.
    min_silence_s, pad_s: stretches closer than the one are one; each keeps this much sound around it.
    device: where the nets run.

    Silence never reaches a net: Whisper hears the stretches end to end, Paraformer one by one. A clip without
    speech has the transcript "" and no language. Speech in which no word survives the guards is told likewise.
    Where no language is certain, or it is neither English nor Chinese, there is no transcript (None): nobody
    listened for its words. Cantonese is "yue", which is not Chinese to Paraformer.
    evidence: {"words": [[word, start_s, end_s, confidence], ...], "language": {code: probability}}, times as
    `PocketSphinxTranscribe` gives them. Chinese words joined are the transcript: a Latin one after another
    begins with a space.
    """

    name = "transcribe"
    backend = "whisper-paraformer"
    reads = ("denoise",)
    measures = measures_of("transcribe")

    model: str = field(default=MODELS[0], metadata={"choices": MODELS})
    language_probability: float = 0.5
    no_speech: float = 0.6
    log_probability: float = -1.0
    compression: float = 2.4
    min_silence_s: float = 0.5
    pad_s: float = 0.2
    device: str = "cpu"

    def measure(self, clip: Clip) -> Result:
        """transcript, word_count, asr_confidence and spoken_language. Raises Unmeasured without sound."""
        sound = clip.product("denoise")
        samples = resampled(sound.samples, sound.rate, ANALYSIS_RATE)
        if not len(samples):
            raise Unmeasured("the clip has no sound")
        spans = self.stretches(samples, sound.start_s, clip.seconds)
        if not spans:
            return told(None, [], {})
        whisper = load_whisper(weights_file(self.whisper), self.model, torch_device(self.device))
        found = [(part, heard(whisper, packed(samples, ANALYSIS_RATE, part))) for part in windows(spans, WINDOW_S)]
        shares = weighted([(language_probabilities(whisper, window), seconds(part)) for part, window in found])
        language, share = next(iter(shares.items()))
        if share < self.language_probability:
            return told(None, None, shares)
        if language == "en":
            words = self.english(whisper, found)
        elif language == "zh":
            words = self.chinese(samples, spans)
        else:
            return told(language, None, shares)
        moved = [(word, a + sound.start_s, b + sound.start_s, p) for word, a, b, p in words]
        return told(language, inside(moved, clip.seconds), shares)

    def stretches(self, samples: np.ndarray, start_s: float, clip_s: float) -> Segments:
        """Where somebody speaks, in seconds of `samples`, which begin `start_s` after the clip; none that lies in
        the margins alone, none longer than a window."""
        spans = voice_segments(samples, min_silence_s=self.min_silence_s, pad_s=self.pad_s)
        spans = [(a, b) for a, b in spans if b + start_s > 0 and a + start_s < clip_s]
        return shortened(samples, ANALYSIS_RATE, spans, WINDOW_S)

    def english(self, whisper: Any, found: Sequence[tuple[Segments, Heard]]) -> list[Word]:
        guards = Guards(self.no_speech, self.log_probability, self.compression)
        return [word for part, window in found for word in unpacked(recognised(whisper, window, "en", guards), part)]

    def chinese(self, samples: np.ndarray, spans: Segments) -> list[Word]:
        recogniser = load_paraformer(weights_folder(CHINESE), torch_device(self.device))
        parts = [(span, characters(recogniser, packed(samples, ANALYSIS_RATE, [span]))) for span in spans]
        return [word for span, words in parts for word in unpacked(words, [span])]

    @property
    def whisper(self) -> str:
        return f"whisper-{self.model}"

    def weights(self) -> tuple[str, ...]:
        return (self.whisper, CHINESE, "silero-vad")

    def revision(self) -> str:
        return f"{super().revision()}, {package_version('openai-whisper')}, {package_version('funasr')}"


def seconds(spans: Segments) -> float:
    return sum(end - start for start, end in spans)


def told(language: str | None, words: Sequence[Word] | None, shares: Mapping[str, float]) -> Result:
    """The result of a clip. words: None where nobody listened for them; empty where there were none."""
    text = None
    if words is not None:
        text = ("" if language == "zh" else " ").join(word for word, *_ in words).strip()
    measures = {
        "transcript": text,
        "word_count": None if words is None else len(words),
        "asr_confidence": float(np.mean([p for *_, p in words])) if words else None,
        "spoken_language": language if words is None or words else None,
    }
    rows = [[word, round(a, 3), round(b, 3), round(p, 3)] for word, a, b, p in words or ()]
    likeliest = {code: round(share, 3) for code, share in list(shares.items())[:TOLD]}
    return Result(measures, {"words": rows, "language": likeliest})
