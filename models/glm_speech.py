"""GLM-4-Voice's speech tokenizer: sound to tokens, whole or as a stream (the net: `models.glm_encoder`).

A 30 s segment stands by itself. It is computed block by block of 4 s, each over the cached keys and values of
those before, whole files and streams alike, so that both give the same bits.

One thing in the official features is not causal: log mel values are raised to 8 (in log10, 80 dB) below the
loudest one of the whole segment. `GlmSpeech.encode` does so. `GlmSpeech.encode(..., causal=True)` and
`GlmStream` take the loudest one heard up to the end of each block instead. Both agree wherever the segment's
loudest value lies in its first block or nothing lies 80 dB below it; else blocks before the loudest keep
quieter detail (digital silence, mostly) than the official features have.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from models.clock import ANALYSIS_RATE, SPEECH_HZ
from models.device import torch_device
from models.glm_speech_config import LOOKAHEAD, read_config
from models.lock import identity
from models.speech_codec import resampled
from models.weights import weights_folder

if TYPE_CHECKING:
    from models.glm_encoder import GlmEncoder

WEIGHTS = "glm-4-voice-tokenizer"
VERSION = 1
"""Raised when the code, not the weights, changes what tokens mean."""

TOKEN_SAMPLES = round(ANALYSIS_RATE / SPEECH_HZ)


class GlmSpeech:
    """The tokenizer as the rest of the house sees it (`models.speech_codec.SpeechTokenizer`).

    device: as `models.device` takes it. The net loads at the first use, once a process.
    """

    name = "glm_4_voice"

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @property
    def codes(self) -> int:
        """Tokens are 0 ... codes - 1. Raises ModelError when the weights are missing."""
        return read_config(weights_folder(WEIGHTS)).quantize_vocab_size

    def encode(self, audio: np.ndarray, rate: int, *, causal: bool = False) -> np.ndarray:
        """[n] float32 at `rate` Hz, a whole number of tokens -> [tokens] int32, in 30 s segments as officially.

        causal: what a `GlmStream` gives (see the module). Raises ValueError when `audio` is not mono or not a
        whole number of tokens, ModelError when the weights are missing or wrong.
        """
        tokens = len(audio) * SPEECH_HZ / rate
        if audio.ndim != 1 or tokens != int(tokens):
            raise ValueError(f"speech is [n] samples, {rate / SPEECH_HZ:g} a token, not {list(audio.shape)}")
        if not tokens:
            return np.empty(0, np.int32)
        from models.glm_encoder import segment_states

        net = self.net()
        sound = resampled(audio, rate, ANALYSIS_RATE, int(tokens) * TOKEN_SAMPLES).astype(np.float32)
        segments = [sound[at : at + net.config.segment] for at in range(0, len(sound), net.config.segment)]
        states = [block for segment in segments for block in segment_states(net, segment, causal=causal)]
        return np.concatenate([net.quantise(block) for block in states])

    def stream(self) -> GlmStream:
        """A new stream of sound at 16 kHz."""
        return GlmStream(self.net())

    def net(self) -> GlmEncoder:
        """The net, on its device. Raises ModelError when weights or device are missing or wrong."""
        from models.glm_encoder import load

        device = torch_device(self.device)
        return load(weights_folder(WEIGHTS), identity([WEIGHTS]), device)

    def fingerprint(self) -> str:
        """As `SpeechTokenizer.fingerprint`: the weights and this code's version."""
        return hashlib.sha256(f"{self.name} {VERSION} {identity([WEIGHTS])}".encode()).hexdigest()[:16]


class GlmStream:
    """Sound in pieces of any length to tokens, each given once and for good.

    A token is given when its 4 s block is closed: when the block and the 2.5 ms after it have been heard, or its
    segment has ended. All pieces together give what `GlmSpeech.encode(..., causal=True)` gives for the whole.
    """

    def __init__(self, net: GlmEncoder) -> None:
        self.net = net
        self._sound = np.empty(0, np.float32)
        self._start()

    def _start(self) -> None:
        """A new segment."""
        self._memory, self._peak, self._done = self.net.empty(), -np.inf, 0

    def push(self, sound: np.ndarray) -> np.ndarray:
        """[n] float32 at 16 kHz -> [m] int32, the tokens of the blocks that it closes (50 a block)."""
        self._sound = np.concatenate([self._sound, np.asarray(sound, np.float32)])
        return self._closed(last=False)

    def finish(self) -> np.ndarray:
        """The tokens of the open block; sound that fills no token is filled up with silence. A new segment
        begins."""
        self._sound = np.pad(self._sound, (0, -len(self._sound) % TOKEN_SAMPLES))
        tokens = self._closed(last=True)
        self._sound = self._sound[:0]
        self._start()
        return tokens

    def _closed(self, *, last: bool) -> np.ndarray:
        """The tokens of the blocks that are closed by now; `last`: and of the open one."""
        from models.glm_encoder import block_states, log_mel

        config, found = self.net.config, [np.empty(0, np.int32)]
        while (end := self._next_end(last)) > self._done:
            log = log_mel(self.net, self._sound[: config.segment], self._done, end)
            self._peak = max(self._peak, float(log.max()))
            states, self._memory = block_states(self.net, log, self._peak, self._memory)
            found.append(self.net.quantise(states))
            self._done = end
            if end == config.segment:
                self._sound = self._sound[end:]
                self._start()
        return np.concatenate(found)

    def _next_end(self, last: bool) -> int:
        """Where the next block ends that can be computed for good, a sample of the segment; or what is done."""
        config, heard = self.net.config, len(self._sound)
        end = min(self._done + config.block, config.segment)
        if heard >= min(end + LOOKAHEAD, config.segment):
            return end
        return min(heard, end) if last else self._done
