"""Whisper (A. Radford et al., 2022): the language of speech, and English words with their times.

Official checkpoints through `openai-whisper`. Each window of 30 s is encoded once; its language, its words and
their times are all read from that.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ModelError
from models.asr import Word, without_loops
from models.blueprint import filled, plain
from models.checkpoint import load_torch

WINDOW_S = 30.0
"""Speech that the encoder takes in one go; shorter sound is followed by silence, as it was trained."""
MOST_LAYERS = 64
VOCABULARIES = (51_865, 51_866)
"""Tokens of the multilingual models, before and since large-v3."""
ISO = {"jw": "jv"}
"""Whisper's codes that are no longer ISO 639-1."""


@dataclass(frozen=True)
class Guards:
    """When what was decoded is not believed; the figures are those of Whisper's own `transcribe`.

    no_speech: probability above which nobody spoke. log_probability: mean below which the words are guesses;
    Whisper wants both of these at once, but text that nobody said costs more than a clip that is left out.
    compression: text that zlib shrinks by more than this repeats itself.
    """

    no_speech: float = 0.6
    log_probability: float = -1.0
    compression: float = 2.4


@functools.cache
def load_whisper(path: Path, name: str, device: str) -> Any:
    """The `whisper.model.Whisper` of the torch file `path`, on `device` (as torch takes it), in eval mode.

    name: as the publisher calls it; it tells which heads follow the words. Raises ModelError for a file of
    another kind, a model of English alone, or one that has not the heads of `name`.
    """
    package = load_torch(path)
    if not isinstance(package, dict) or not {"dims", "model_state_dict"} <= package.keys():
        raise ModelError(f"{path} holds no Whisper model; fetch the weights again or name the right file")
    dims, state = _dimensions(package["dims"], path), package["model_state_dict"]
    from whisper.model import Whisper

    model = filled(lambda: Whisper(dims), state, path, outline=lambda: _outline(dims))
    return _with_heads(model, name, path).to(device)


def _dimensions(given: Any, path: Path) -> Any:
    """`whisper.model.ModelDimensions`. Raises ModelError unless they are those of a multilingual Whisper."""
    from whisper.audio import N_FRAMES
    from whisper.model import ModelDimensions

    names = set(ModelDimensions.__dataclass_fields__)
    if not isinstance(given, dict) or given.keys() != names or not all(type(given[n]) is int for n in names):
        raise ModelError(f"{path} does not say how its net is built; fetch the weights again")
    dims = ModelDimensions(**given)
    if dims.n_vocab not in VOCABULARIES:
        raise ModelError(f"{path} is no multilingual Whisper ({dims.n_vocab} tokens); name one without '.en'")
    layers = max(dims.n_audio_layer, dims.n_text_layer)
    if not plain(list(given.values())) or layers > MOST_LAYERS or dims.n_mels not in (80, 128):
        raise ModelError(f"{path} is refused: its dimensions are none of Whisper's; fetch it from its publisher")
    if dims.n_audio_ctx != N_FRAMES // 2:
        raise ModelError(f"{path} does not hear 30 s at a time; fetch the weights again or name the right file")
    return dims


def _outline(dims: Any) -> Any:
    """Encoder and decoder alone: the whole makes a sparse buffer, which has no shape without storage."""
    import torch
    from whisper.model import AudioEncoder, TextDecoder

    audio = (dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    text = (dims.n_vocab, dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer)
    return torch.nn.ModuleDict({"encoder": AudioEncoder(*audio), "decoder": TextDecoder(*text)})


def _with_heads(model: Any, name: str, path: Path) -> Any:
    """`model` that times words by the heads its publisher names; by the upper half of its layers where none are."""
    import whisper

    heads = vars(whisper)["_ALIGNMENT_HEADS"].get(name)
    if heads is not None:
        try:
            model.set_alignment_heads(heads)
        except RuntimeError:
            raise ModelError(f"{path} is not Whisper {name}: it has other heads; name the right file") from None
    return model


@dataclass(frozen=True)
class Heard:
    """One window. features: [1, 1500, states] of the encoder; frames: of 10 ms that were sound, not filling."""

    features: Any
    frames: int


def heard(model: Any, samples: np.ndarray) -> Heard:
    """`samples` ([n] float32, 16 kHz, at most 30 s) as `model` hears them."""
    import torch
    from whisper.audio import HOP_LENGTH, N_FRAMES, N_SAMPLES, log_mel_spectrogram, pad_or_trim

    mel = log_mel_spectrogram(np.ascontiguousarray(samples, np.float32), model.dims.n_mels, padding=N_SAMPLES)
    with torch.inference_mode():
        window = pad_or_trim(mel, N_FRAMES)[None].to(model.device)
        features = model.encoder(window.half() if _half(model) else window)
    return Heard(features, len(samples) // HOP_LENGTH)


def _half(model: Any) -> bool:
    """Whether it computes in half precision: on a GPU, as Whisper does by default."""
    return bool(model.device.type == "cuda")


def language_probabilities(model: Any, window: Heard) -> dict[str, float]:
    """{language: probability} over all that the model knows, ISO 639-1 where there is such a code ("yue", "haw")."""
    _, found = model.detect_language(window.features)
    return {ISO.get(code, code): float(share) for code, share in found[0].items()}


def weighted(found: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Mean of language probabilities, each with its weight (seconds of speech), most probable first."""
    total = sum(weight for _, weight in found)
    codes = {code for shares, _ in found for code in shares}
    mean = {code: sum(shares.get(code, 0.0) * weight for shares, weight in found) / total for code in codes}
    return dict(sorted(mean.items(), key=lambda item: (-item[1], item[0])))


def recognised(model: Any, window: Heard, language: str, guards: Guards = Guards()) -> list[Word]:
    """Words of the window, seconds from its start; none where `guards` take what was decoded for no speech.

    Greedy, so that the same sound gives the same words; nothing that was said before is shown to the decoder.
    """
    from whisper.decoding import DecodingOptions

    options = DecodingOptions(language=language, temperature=0.0, without_timestamps=True, fp16=_half(model))
    result = model.decode(window.features, options)[0]
    if result.no_speech_prob > guards.no_speech or result.avg_logprob < guards.log_probability or not result.tokens:
        return []
    words = without_loops(_timed(model, window, language, result.tokens))
    return [] if _repeats(words, guards.compression) else words


def _repeats(words: Sequence[Word], most: float) -> bool:
    from whisper.utils import compression_ratio

    return bool(words) and compression_ratio(" ".join(word for word, *_ in words)) > most


def _timed(model: Any, window: Heard, language: str, tokens: Sequence[int]) -> list[Word]:
    """Words of `tokens`, aligned with the sound by the decoder's attention and dynamic time warping."""
    import torch
    from whisper.timing import add_word_timestamps
    from whisper.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(True, num_languages=model.num_languages, language=language, task="transcribe")
    segment: dict[str, Any] = {"seek": 0, "start": 0.0, "end": window.frames / 100, "tokens": list(tokens)}
    with torch.inference_mode(), _threads_kept():
        add_word_timestamps(
            segments=[segment],
            model=_decoder_alone(model),
            tokenizer=tokenizer,
            mel=window.features[0],
            num_frames=window.frames,
            last_speech_timestamp=0.0,
        )
    said = [(one["word"].strip(), one["start"], one["end"], one["probability"]) for one in segment["words"]]
    return [(word, float(a), float(b), min(1.0, float(p))) for word, a, b, p in said if word]


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Whisper's time warping starts Numba's threads, which leaves torch with as many as there are cores."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decoder_alone(model: Any) -> Any:
    """`model` that takes encoded sound where it would take a spectrogram, its tensors shared."""
    import torch

    view = copy.copy(model)
    view._modules = {**model._modules, "encoder": torch.nn.Identity()}
    return view
