"""Paraformer (Z. Gao et al., Interspeech 2022) with timestamps (X. Shi et al., 2023): Chinese speech to characters.

Official folders of FunASR's SeACo- and BiCif-Paraformer (config.yaml, model.pt, am.mvn, tokens.json) through the
`funasr` package's own nets. The package's AutoModel is not used: it takes weights that do not fit for granted,
follows the folder's configuration to code and other files, and sets the threads of the whole process.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ModelError
from models.asr import Word
from models.blueprint import filled, plain
from models.checkpoint import load_torch
from models.clock import ANALYSIS_RATE

CONFIG, WEIGHTS, TOKENS, NORMS = "config.yaml", "model.pt", "tokens.json", "am.mvn"
PARTS = {
    "model": ("SeacoParaformer", "BiCifParaformer"),
    "encoder": ("SANMEncoder",),
    "decoder": ("ParaformerSANMDecoder",),
    "predictor": ("CifPredictorV3",),
    "seaco_decoder": ("ParaformerSANMDecoder", None),
    "frontend": ("WavFrontend",),
    "tokenizer": ("CharTokenizer",),
}
"""What a config may name: the nets that tell when each character was said."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which FunASR's training has stored its tensors."""
FRAME_S = 0.02
"""A step of the net that times characters: a third of the encoder's 60 ms."""
SHIFT = -1.5
"""Steps by which that net is late (FunASR's `ts_prediction_lfr6_standard`, as are the two below)."""
LONGEST = 12
"""Steps that a character takes at most before the next."""
TAIL = 5
"""More steps than these after the last character begins are half its own, half silence."""
PIECE = "@@"
"""Ending of a token that goes on in the next one."""


@dataclass(frozen=True)
class Paraformer:
    """A loaded recogniser: net and filter bank of `funasr`, the token of each of the net's numbers."""

    model: Any
    frontend: Any
    tokens: Sequence[str]
    device: str


@functools.cache
def load_paraformer(folder: Path, device: str) -> Paraformer:
    """The recogniser of `folder`, on `device` (as torch takes it), in eval mode.

    Raises ModelError for a missing or unreadable file, another kind of model, and weights that do not fit it.
    """
    config = _config(folder / CONFIG)
    tokens = _tokens(folder / TOKENS)
    state = _state(folder / WEIGHTS)
    from funasr.frontends.wav_frontend import WavFrontend  # takes 10 s: all of funasr comes with it
    from funasr.models.bicif_paraformer.model import BiCifParaformer
    from funasr.models.seaco_paraformer.model import SeacoParaformer

    frontend = _frontend(WavFrontend, config, folder)
    kind = {"SeacoParaformer": SeacoParaformer, "BiCifParaformer": BiCifParaformer}[config["model"]]
    options = {name: config[name] for part in PARTS for name in (part, f"{part}_conf") if name in config}
    options |= config.get("model_conf") or {}
    for ours in ("model", "model_conf", "frontend", "frontend_conf", "tokenizer", "tokenizer_conf"):
        options.pop(ours, None)
    options |= {"vocab_size": len(tokens), "input_size": frontend.output_size()}
    model = filled(lambda: kind(**options), state, folder / WEIGHTS)
    return Paraformer(model.to(device), frontend, tokens, device)


def _config(path: Path) -> dict[str, Any]:
    """Raises ModelError unless it is YAML that describes one of the nets of PARTS with plain values."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"{path} is no readable config ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no config of a model; fetch the model again")
    for part, kinds in PARTS.items():
        if config.get(part) not in kinds:
            raise ModelError(f"{path} names {part} {config.get(part)!r}, not {kinds[0]}; fetch paraformer-zh again")
        given = config.get(f"{part}_conf") or {}
        if not isinstance(given, dict) or not all(map(plain, given.values())):
            raise ModelError(f"{path} is refused: {part}_conf holds more than plain values; fetch the model again")
    return config


def _tokens(path: Path) -> list[str]:
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no readable list of tokens ({error}); fetch the model again") from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelError(f"{path} is no list of tokens; fetch the model again")
    return tokens


def _state(path: Path) -> Mapping[str, Any]:
    import torch

    state = load_torch(path)
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no weights of a Paraformer; fetch the model again")
    return state


def _frontend(kind: Any, config: Mapping[str, Any], folder: Path) -> Any:
    """The filter bank with the folder's mean and variance. No dither: the same sound must give the same text."""
    given = {**(config.get("frontend_conf") or {}), "cmvn_file": str(folder / NORMS), "dither": 0.0}
    try:
        frontend = kind(**given)
    except (OSError, ValueError, IndexError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{folder / NORMS} is no table of means and variances ({error}); fetch the model again"
        ) from None
    if frontend.fs != ANALYSIS_RATE or tuple(frontend.cmvn.shape) != (2, frontend.output_size()):
        raise ModelError(f"{folder / NORMS} does not fit {CONFIG}; fetch the model again")
    return frontend


def characters(recogniser: Paraformer, samples: np.ndarray) -> list[Word]:
    """What is said in `samples` ([n] float32, 16 kHz): Chinese characters and words of Latin letters.

    Times are seconds from the start. A Latin word that follows another begins with a space, so that all of
    them joined are the text.
    """
    import torch

    model = recogniser.model
    with torch.inference_mode():
        sound = torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]
        features, lengths = recogniser.frontend(sound, [len(samples)])
        encoded, lengths = model.encode(features.to(recogniser.device), lengths.to(recogniser.device))
        embedded, count = model.calc_predictor(encoded, lengths)[:2]
        count = count.round().long()
        if int(count.max()) < 1:
            return []
        scores = model.cal_decoder_with_predictor(encoded, lengths, embedded, count)[0]
        weights = model.calc_predictor_timestamp(encoded, lengths, count)[2]
        confidences, chosen = scores[0, : int(count[0])].exp().max(dim=-1)
    unsaid = {model.blank_id, model.sos, model.eos}
    said = [
        (recogniser.tokens[k], p) for k, p in zip(chosen.tolist(), confidences.tolist(), strict=True) if k not in unsaid
    ]
    times = token_times(weights[0].cpu().numpy(), len(said))
    return joined([(token, a, b, min(1.0, p)) for (token, p), (a, b) in zip(said, times, strict=True)])


def token_times(weights: np.ndarray, count: int) -> list[tuple[float, float]]:
    """(start, end) in seconds of `count` tokens from `weights` ([steps], >= 0): how much of a token each step is.

    A token begins where the sum of the weights, scaled to one more than there are tokens, passes its number.
    """
    if not count:
        return []
    summed = np.cumsum(weights.astype(np.float64))
    scaled = summed / max(summed[-1], 1e-9) * (count + 1)
    fires = np.searchsorted(scaled, np.arange(1, count + 2) * (1 - 1e-4)) + SHIFT
    ends = np.minimum(fires[1:], fires[:-1] + LONGEST)
    if ends[-1] == fires[-1]:
        rest = len(weights) - fires[-1]
        ends[-1] += rest / 2 if rest > TAIL else rest
    starts = np.maximum(0.0, fires[:-1])
    return [(float(a) * FRAME_S, float(max(a, b)) * FRAME_S) for a, b in zip(starts, ends, strict=True)]


def joined(tokens: Sequence[Word]) -> list[Word]:
    """Words of tokens: pieces put together, letters said one by one as one word in capitals, a space before a
    Latin word that follows another."""
    words: list[Word] = []
    for group in _groups([word for word, *_ in tokens]):
        part = tokens[group.start : group.stop]
        text = "".join(word.removesuffix(PIECE) for word, *_ in part)
        letters = len(part) > 1 and all(_letter(word) for word, *_ in part)
        text = text.upper() if letters else text
        space = " " if words and _latin(text) and _latin(words[-1][0]) else ""
        words.append((space + text, part[0][1], part[-1][2], float(np.mean([p for *_, p in part]))))
    return words


def _groups(tokens: Sequence[str]) -> list[range]:
    """Runs of `tokens` that are one word each."""
    groups, start = [], 0
    for at, token in enumerate(tokens):
        spelled = _letter(token) and at + 1 < len(tokens) and _letter(tokens[at + 1])
        if not (token.endswith(PIECE) and at + 1 < len(tokens)) and not spelled:
            groups.append(range(start, at + 1))
            start = at + 1
    return groups


def _letter(token: str) -> bool:
    return len(token) == 1 and token.isascii() and token.isalpha()


def _latin(text: str) -> bool:
    return any(char.isascii() and char.isalpha() for char in text)
