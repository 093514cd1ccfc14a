"""GLM-4-Voice's speech decoder: tokens to sound, whole or as a stream of exactly 1,764 samples a token.

Tokens become mel frames block by block of 10 (`models.glm_flow`), mel frames become sound (`models.glm_hift`). A
stream and a whole utterance are decoded in the same blocks, so both give the same bits. The official whole-utterance
decoding, one window over everything, is `GlmVoice.decode(tokens, one_window=True)`; see `models.glm_flow` for what a
stream cannot share with it. What a stream has given lies behind its tokens by 34 mel frames of overlap and 19 that
the vocoder looks ahead: 0.62 s of sound, and up to 9 tokens that wait for their block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from manifests.errors import ModelError, UsageError
from models.clock import SPEECH_HZ, STORED_RATE
from models.device import torch_device
from models.glm_flow_config import read_config
from models.lock import identity
from models.weights import weights_file, weights_folder

if TYPE_CHECKING:
    from torch import Tensor

    from models.glm_flow import Flow, Windows
    from models.glm_hift import Hift

WEIGHTS = "glm-4-voice-decoder"
VERSION = 1
"""Raised when the code, not the weights, changes how tokens sound."""
TOKEN_SAMPLES = round(STORED_RATE / SPEECH_HZ)
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class GlmVoice:
    """The decoding half of `models.speech_codec.SpeechCodec`, for the tokens of `models.glm_speech.GlmSpeech`.

    device: as `models.device` takes it; precision: of the flow, "float32" or "bfloat16" (the vocoder's phases need
    float32); seed: of the noise, which is this decoder's own and depends on the place in the utterance alone. The
    nets load at the first use, once a process.
    """

    name: ClassVar[str] = "glm_4_voice"
    rate: ClassVar[int] = STORED_RATE

    device: str = "cpu"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r} must be one of {', '.join(PRECISIONS)}")

    @property
    def codes(self) -> int:
        """Tokens are 0 ... codes - 1. Raises ModelError when the weights are missing."""
        return read_config(weights_file(WEIGHTS, "config.yaml"))[0].codes

    def decode(self, tokens: np.ndarray, *, one_window: bool = False) -> np.ndarray:
        """[n] tokens -> [1764 n] float32 at 22,050 Hz, what a stream of them gives.

        one_window: everything at once, as officially offline; its work grows with the square of n. Raises ModelError
        for tokens out of range, and when weights or device are missing or wrong.
        """
        if one_window:
            return self._at_once(tokens)
        stream = self.stream()
        return np.concatenate([stream.push(tokens), stream.finish()])

    def stream(self, windows: Windows | None = None) -> SpeechStream:
        """A new stream. Raises ModelError when weights or device are missing or wrong."""
        from models.glm_flow import Windows

        flow, hift = self.nets()
        return SpeechStream(flow, hift, windows or Windows(), self.seed)

    def nets(self) -> tuple[Flow, Hift]:
        """Flow and vocoder, on their device. Raises ModelError when weights or device are missing or wrong."""
        from models import glm_flow, glm_hift

        device, known = torch_device(self.device), identity([WEIGHTS])
        folder = weights_folder(WEIGHTS)
        return glm_flow.load(folder, known, device, self.precision), glm_hift.load(folder, known, device)

    def fingerprint(self) -> str:
        """16 hex digits; another one means that tokens sound otherwise."""
        facts = f"{self.name} {VERSION} {identity([WEIGHTS])} {self.precision} {self.seed}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def _at_once(self, tokens: np.ndarray) -> np.ndarray:
        from models.glm_flow import whole
        from models.glm_hift import HiftStream

        flow, hift = self.nets()
        known = checked(tokens, flow.config.codes)
        if not len(known):
            return np.empty(0, np.float32)
        sound = HiftStream(hift, self.seed).push(whole(flow, _tensor(known), self.seed), last=True)
        return _array(sound)[: TOKEN_SAMPLES * len(known)]


class SpeechStream:
    """Tokens in pieces of any length to sound, each sample given once and for good; whatever the pieces, the same
    bits. The n-th token's sound ends at sample 1764 n of all that was given. State and work per token do not grow."""

    def __init__(self, flow: Flow, hift: Hift, windows: Windows, seed: int) -> None:
        self.flow, self.hift, self.windows, self.seed = flow, hift, windows, seed
        self._start()

    def _start(self) -> None:
        """A new utterance."""
        from models.glm_flow import FlowStream
        from models.glm_hift import HiftStream

        self.tokens = self.samples = 0
        self._waiting = np.empty(0, np.int64)
        self._mel, self._sound = FlowStream(self.flow, self.windows, self.seed), HiftStream(self.hift, self.seed)

    def push(self, tokens: np.ndarray) -> np.ndarray:
        """[n] tokens -> [m] float32 at 22,050 Hz, what is now final. Raises ModelError for tokens out of range,
        none of which is taken."""
        known = checked(tokens, self.flow.config.codes)
        self.tokens += len(known)
        self._waiting = np.concatenate([self._waiting, known])
        block = self.flow.config.block
        whole = len(self._waiting) // block * block
        blocks, self._waiting = self._waiting[:whole].reshape(-1, block), self._waiting[whole:]
        return self._given([_array(self._sound.push(self._mel.push(_tensor(one)))) for one in blocks])

    def finish(self) -> np.ndarray:
        """The rest, up to sample 1764 n for n tokens; a new utterance begins."""
        rest = []
        if self.tokens:
            rest = [_array(self._sound.push(self._mel.push(_tensor(self._waiting), last=True), last=True))]
        sound = self._given(rest)
        self._start()
        return sound

    def _given(self, pieces: list[np.ndarray]) -> np.ndarray:
        """The pieces joined, up to the last token's end: its last mel frame may reach further."""
        sound = np.concatenate([np.empty(0, np.float32), *pieces])[: self.tokens * TOKEN_SAMPLES - self.samples]
        self.samples += len(sound)
        return sound


def checked(tokens: np.ndarray, codes: int) -> np.ndarray:
    """[n] int64. Raises ModelError for what is no list of whole numbers 0 ... codes - 1."""
    known = np.asarray(tokens)
    if known.ndim != 1 or (known.size and known.dtype.kind not in "iu"):
        raise ModelError(f"speech tokens are [n] whole numbers, not {known.dtype} {list(known.shape)}; decode one list")
    if known.size and not (known.min() >= 0 and known.max() < codes):
        raise ModelError(
            f"speech tokens are 0 ... {codes - 1}, found {known.min()} ... {known.max()}; "
            f"decode tokens of {GlmVoice.name} alone"
        )
    return known.astype(np.int64)


def _tensor(tokens: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(tokens)


def _array(sound: Tensor) -> np.ndarray:
    found: np.ndarray = sound.cpu().numpy()
    return found
