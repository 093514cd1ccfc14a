"""Official Whisper files with made weights: {"dims", "model_state_dict"} in half precision.

The small net is made by hand: whatever it hears, it takes it for one language and for one text, and its heads
attend to the i-th token STEP_S * i after the start of the window. The louder it is there, the less certain the
token. So what a stage makes of language, words, times and probabilities can be told beforehand.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from whisper.model import AudioEncoder, TextDecoder
from whisper.tokenizer import get_tokenizer

LARGE = {"n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32, "n_text_state": 1280, "n_text_head": 20}
COMMON = {"n_audio_ctx": 1500, "n_text_ctx": 448}
DIMS: dict[str, dict[str, int]] = {
    "large-v3": {**COMMON, **LARGE, "n_mels": 128, "n_vocab": 51_866, "n_text_layer": 32},
    "large-v3-turbo": {**COMMON, **LARGE, "n_mels": 128, "n_vocab": 51_866, "n_text_layer": 4},
    "small": {
        **COMMON, "n_mels": 80, "n_vocab": 51_865, "n_audio_state": 768, "n_audio_head": 12, "n_audio_layer": 12,
        "n_text_state": 768, "n_text_head": 12, "n_text_layer": 12,
    },
    "base": {
        **COMMON, "n_mels": 80, "n_vocab": 51_865, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6,
        "n_text_state": 512, "n_text_head": 8, "n_text_layer": 6,
    },
}  # fmt: skip
STATES = 40
"""Of the small net; one for each token that it can say, the last four for time."""
TEXT = " The quick brown fox jumps over a lazy dog."
STEP_S = 0.4
FRAMES, FRAME_S = 1500, 0.02
LOUD = 10.0
RIVAL, DOUBT = " um", 42.0
SPREAD = 10
"""Standard deviation, in frames, of what a head attends to."""


def make(
    folder: Path,
    true_size: bool = False,
    *,
    language: str = "en",
    text: str = TEXT,
    sharpness: float = 4.0,
    no_speech: bool = False,
) -> None:
    """Writes the file of the model that `folder` is named after ("whisper-large-v3-turbo").

    sharpness: of the decoder's choice; 4 is nearly certain, 2 is a guess. no_speech: it also says that nobody speaks.
    true_size: the official dimensions and random numbers.
    """
    name = folder.name.removeprefix("whisper-")
    dims = DIMS[name] if true_size else DIMS[name] | _small(DIMS[name])
    with torch.device("meta"):
        blank = outline(dims).state_dict()
    state = _random(blank) if true_size else {key: torch.zeros(value.shape) for key, value in blank.items()}
    if not true_size:
        _script(state, dims, language, text, sharpness, no_speech)
    folder.mkdir(parents=True, exist_ok=True)
    halves = {key: value.half() for key, value in state.items()}
    torch.save({"dims": dims, "model_state_dict": halves}, folder / f"{name}.pt")


def outline(dims: dict[str, int]) -> torch.nn.Module:
    audio = [dims[f"n_{part}"] for part in ("mels", "audio_ctx", "audio_state", "audio_head", "audio_layer")]
    said = [dims[f"n_{part}"] for part in ("vocab", "text_ctx", "text_state", "text_head", "text_layer")]
    return torch.nn.ModuleDict({"encoder": AudioEncoder(*audio), "decoder": TextDecoder(*said)})


def _small(dims: dict[str, int]) -> dict[str, int]:
    """As many heads in the decoder as the official model, for its list of those that follow words."""
    states = STATES * dims["n_text_head"] // math.gcd(STATES, dims["n_text_head"])
    return {"n_audio_state": states, "n_text_state": states, "n_audio_head": 1, "n_audio_layer": 1}


def _random(blank: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Half-precision noise of a trained net's size, from one pool of numbers, so that gigabytes are quickly made."""
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(5)).half() * 0.02
    state = {}
    for key, value in blank.items():
        count = value.numel()
        state[key] = pool.repeat(-(-count // len(pool)))[:count].reshape(value.shape).clone()
        if "ln" in key and key.endswith("weight"):
            state[key] += 1
    return state


def _script(
    state: dict[str, torch.Tensor], dims: dict[str, int], language: str, text: str, sharpness: float, no_speech: bool
) -> None:
    """Weights by which position p of the decoder says token p - 3 of `text`, and its heads attend to that time."""
    tokenizer = get_tokenizer(True, num_languages=dims["n_vocab"] - 51_766, language=language)
    tokens = [*tokenizer.encode(text), tokenizer.eot]
    spoken = tokenizer.to_language_token(language)
    rival = tokenizer.encode(RIVAL)[0]
    slots = {token: at for at, token in enumerate(dict.fromkeys([*tokens, spoken, tokenizer.no_speech, rival]))}
    assert len(slots) <= STATES - 4, "the text has too many different tokens"
    states = dims["n_text_state"]
    for key in state:
        if key.endswith(("ln.weight", "ln_post.weight")):
            state[key][:] = 1.0
    state["decoder.ln.weight"][:] = sharpness
    for token, slot in slots.items():
        state["decoder.token_embedding.weight"][token, slot] = 1.0
    places = state["decoder.positional_embedding"]
    places[0, slots[spoken]] = LOUD
    places[0, slots[tokenizer.no_speech]] = 1.2 * LOUD * no_speech
    for at in range(3, len(places)):
        said = min(at - 3, len(tokens) - 1)
        places[at, slots[tokens[said]]] = LOUD
        places[at, -4:] = LOUD * _clock((said + 0.5) * STEP_S / FRAME_S)
    _listen(state, dims["n_text_layer"] - 1, slots[rival])
    frames = torch.stack([3 * _clock(float(at)) for at in range(FRAMES)])
    state["encoder.positional_embedding"][:, -4:] = frames
    _attend(state, dims, math.sqrt(states / 2), LOUD / math.sqrt((LOUD**2 + 2 * LOUD**2) / states))


def _listen(state: dict[str, torch.Tensor], layer: int, slot: int) -> None:
    """Weights by which what is heard where a head attends, averaged over the spectrum, speaks for a rival token."""
    bands = state["encoder.conv1.weight"].shape[1]
    state["encoder.conv1.weight"][0, :, 1] = 1.0 / bands
    state["encoder.conv2.weight"][0, 0, 1] = 1.0
    state[f"decoder.blocks.{layer}.cross_attn.value.weight"][0, 0] = 1.0
    state[f"decoder.blocks.{layer}.cross_attn.out.weight"][slot, 0] = DOUBT


def _clock(frame: float) -> torch.Tensor:
    """[4]: a frame of the window as an angle; of mean 0 and one length, so that normalising leaves it as it is."""
    angle = math.pi * frame / FRAMES
    return torch.tensor([math.cos(angle), math.sin(angle), -math.cos(angle), -math.sin(angle)])


def _attend(state: dict[str, torch.Tensor], dims: dict[str, int], key_size: float, query_size: float) -> None:
    """Cross-attention whose score falls off with the distance in time, by SPREAD frames, in every head.

    key_size, query_size: of the clocks once they are normalised.
    """
    width = dims["n_text_state"] // dims["n_text_head"]
    wanted = (FRAMES / math.pi / SPREAD) ** 2 * math.sqrt(width)
    weight = math.sqrt(wanted / (key_size * query_size))
    for layer in range(dims["n_text_layer"]):
        for part in ("query", "key"):
            matrix = state[f"decoder.blocks.{layer}.cross_attn.{part}.weight"]
            for head in range(dims["n_text_head"]):
                for axis in range(2):
                    matrix[head * width + axis, axis - 4] = weight / 2
                    matrix[head * width + axis, axis - 2] = -weight / 2
