"""What a stream is measured with: an Actor and a Thinker with random weights, drawn where they run, and the codecs."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.segments import SEGMENT_TOKENS, Segment
from models.actor import Actor
from models.actor_config import actor_config
from models.actor_facts import thinker_facts
from models.clock import CHUNK_FRAMES, SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS, SPEECH_HZ, STORED_RATE
from models.dialogue_layout import AUDIO_0, TEXT_TICKS
from models.thinker import BUNDLED, GLM_4_VOICE, Thinker, load_thinker
from models.video_codec import BLOCK

TRUE, SMALL = "9b", "tiny"
"""Presets of the Actor on a GPU and on a CPU."""
NONE = "none"
SOUNDS = {"fsq": "fsq_mel", "glm": "glm-4-voice-decoder"}
PICTURES = {"dct3d": "", "ltx-0.9.0": "ltx-video-0.9.0", "ltx-0.9.5": "ltx-video-0.9.5"}
SPECIALS_FROM, AUDIO_FROM = 151_329, 152_353
"""In GLM-4-Voice's vocabulary special tokens begin here, and speech codes there."""


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def thinker_name(preset: str) -> str:
    """The Thinker that goes with an Actor of `preset`."""
    return BUNDLED if preset == SMALL else GLM_4_VOICE


@torch.no_grad()
def random_actor(preset: str, device: torch.device) -> Actor:
    """Drawn in place, in bfloat16 on a GPU: no second copy. What an untrained Actor begins with zeros is random, too:
    products with zeros take less power, and so less time."""
    with torch.device("meta"):
        actor = Actor(actor_config(preset, thinker_facts(thinker_name(preset)).hidden))
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    state = {name: torch.empty(value.shape, dtype=kind, device=device) for name, value in actor.state_dict().items()}
    actor.load_state_dict(state, assign=True)
    actor.init_weights()
    for name, value in actor.named_parameters():
        if name.endswith("cross_attn.o_proj.weight") or name == "head.weight":
            value.normal_(0, 0.1 / math.sqrt(value.shape[1]))
    return actor.requires_grad_(False).eval()


class RandomVocabulary:
    """Of a Thinker without meaning: text is its bytes, and special tokens stand where GLM-4-Voice has its own."""

    def __init__(self) -> None:
        self._names = {AUDIO_0: AUDIO_FROM}

    def special(self, name: str) -> int:
        """As `models.dialogue_layout.Vocabulary.special`; any name has an id."""
        return self._names.setdefault(name, SPECIALS_FROM + len(self._names))

    def encode(self, text: str) -> np.ndarray:
        """As `models.dialogue_layout.Vocabulary.encode`."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def fingerprint(self) -> str:
        """As `models.dialogue_layout.Vocabulary.fingerprint`."""
        return "random"


@torch.no_grad()
def random_glm(official: dict[str, Any], device: torch.device) -> Thinker:
    """A ChatGLM of config.json `official` in bfloat16, each tensor drawn on `device`. Raises ModelError where
    transformers is not installed."""
    from models.glm_weights import CONFIG, empty_glm, read_config

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(official))
        config = read_config(Path(folder))
    model = empty_glm(config)
    generator = torch.Generator(device).manual_seed(0)
    depth = 2 * official["num_layers"]
    state = {
        name: _drawn(name, value.shape, depth, torch.empty(value.shape, dtype=torch.bfloat16, device=device), generator)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb.to(device)
    return Thinker(model.requires_grad_(False), RandomVocabulary(), f"{GLM_4_VOICE} random")


def _drawn(name: str, shape: torch.Size, depth: int, into: Tensor, generator: torch.Generator) -> Tensor:
    """Outputs of unit variance for inputs of unit variance, less where `depth` of them are added up."""
    if name.endswith("norm.weight"):
        return into.fill_(1)
    if len(shape) == 1:
        return into.zero_()
    if "embed_tokens" in name:
        return into.normal_(generator=generator)
    added = depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
    return into.normal_(0, 1 / math.sqrt(shape[1] * added), generator=generator)


def thinker_of(preset: str, device: torch.device) -> Thinker:
    """GLM-4-Voice-9B's size; for `tiny` the bundled one itself. Raises ModelError where a package is missing."""
    if thinker_name(preset) == BUNDLED:
        return load_thinker(BUNDLED, device.type)
    return random_glm(official_glm(), device)


def official_glm() -> dict[str, Any]:
    """The publisher's config.json of GLM-4-Voice-9B."""
    return dict(_maker("glm_thinker").OFFICIAL)


def _maker(name: str) -> ModuleType:
    """What makes files of random weights, in the tests."""
    return import_module(f"tests.makers.{name}")


def segment_of(index: int, states: np.ndarray) -> Segment:
    """Segment `index` of a stream in which somebody speaks on and on."""
    is_speech = np.repeat([False, True], [SEGMENT_TEXT_TOKENS, SEGMENT_SPEECH_TOKENS])
    ticks = np.concatenate([np.arange(SEGMENT_TEXT_TOKENS) * TEXT_TICKS, np.arange(SEGMENT_SPEECH_TOKENS)])
    begin = index * SEGMENT_SPEECH_TOKENS
    codes = np.zeros(SEGMENT_SPEECH_TOKENS, np.int32)
    return Segment(index, states, is_speech, begin + ticks, codes, np.zeros(SEGMENT_TEXT_TOKENS, np.int32))


def states_of(width: int) -> np.ndarray:
    """[39, width] float16."""
    return np.random.default_rng(0).standard_normal((SEGMENT_TOKENS, width), np.float32).astype(np.float16)


class Undecoded:
    """In the place of a video codec: frames are black, so that the models' own time is seen, and no package is needed."""

    def decode(self, latents: np.ndarray, *, first: bool = True, **_near: object) -> np.ndarray:
        """As `VideoCodec.decode`."""
        count, _, height, width = latents.shape
        frames = CHUNK_FRAMES * count - (CHUNK_FRAMES - 1) * first
        return np.zeros((frames, height * BLOCK, width * BLOCK, 3), np.uint8)


class Unheard:
    """In the place of a speech decoder: silence, for the same reasons. Also its own stream."""

    name, rate = NONE, STORED_RATE

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """As `SpeechDecoder.decode`."""
        return np.zeros(round(len(tokens) * STORED_RATE / SPEECH_HZ), np.float32)

    def stream(self) -> Unheard:
        return self

    push = decode

    def finish(self) -> np.ndarray:
        return np.empty(0, np.float32)


@contextmanager
def codecs_of(pictures: str, sound: str, device: str) -> Iterator[tuple[Any, Any]]:
    """(video codec, speech decoder); of those with weights, random ones of the true size that last as long as this.
    Raises ModuleNotFoundError for packages that are not here."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XSTREAMER_MODELS"] = folder
        yield _pictures(pictures, Path(folder), device), _sound(sound, Path(folder), device)


def _pictures(name: str, folder: Path, device: str) -> Any:
    if name == NONE:
        return Undecoded()
    if name == "dct3d":
        import scipy  # noqa: F401

        from models.video_codec import Dct3d

        return Dct3d()
    from models.ltx_video import LtxVideo

    _maker("ltx_video").make(folder / PICTURES[name], True)
    return LtxVideo(name.removeprefix("ltx-"), device)


def _sound(name: str, folder: Path, device: str) -> Any:
    if name == NONE:
        return Unheard()
    if name == "fsq":
        import scipy  # noqa: F401

        from models.speech_codec import FsqMel

        return FsqMel()
    from models.glm_voice import GlmVoice

    _maker("glm_voice").make(folder / SOUNDS[name], True)
    return GlmVoice(device, precision="float32" if device == "cpu" else "bfloat16")
