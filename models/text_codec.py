"""Text tokens: what every text codec offers, and the bundled one, Whisper's multilingual byte-pair encoding."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from manifests.errors import ModelError

if TYPE_CHECKING:
    import tiktoken


class TextCodec(Protocol):
    """Text to tokens and back; no special token is ever added or read."""

    name: str

    @property
    def codes(self) -> int:
        """Tokens are 0 ... codes - 1."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """[n] int32; empty for empty text."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text again; half a character at an end is U+FFFD."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits; another one means that tokens mean something else."""
        ...


class WhisperBpe:
    """Whisper's multilingual vocabulary (Radford et al. 2022, arXiv:2212.04356, section 2.2): bytes, so any
    text survives the round trip. Read from the `openai-whisper` package without importing it (it loads torch).
    """

    name = "whisper_bpe"

    @property
    def codes(self) -> int:
        """Tokens are 0 ... codes - 1."""
        return _encoding().n_vocab

    def encode(self, text: str) -> np.ndarray:
        """As `TextCodec.encode`. Raises ModelError when openai-whisper is missing."""
        return np.array(_encoding().encode_ordinary(text), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """As `TextCodec.decode`. Raises ValueError for a token outside the vocabulary."""
        known = [int(token) for token in tokens]
        if any(not 0 <= token < self.codes for token in known):
            raise ValueError(f"text tokens are 0 ... {self.codes - 1}, found {min(known)} ... {max(known)}")
        return _encoding().decode(known)

    def fingerprint(self) -> str:
        """As `TextCodec.fingerprint`."""
        return hashlib.sha256(PATTERN.encode() + _vocabulary().read_bytes()).hexdigest()[:16]


PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""Where GPT-2's and Whisper's tokenizers split text into words before merging bytes."""


def _vocabulary() -> Path:
    from models.onnx import package_file

    try:
        path = package_file("whisper", "assets", "multilingual.tiktoken")
    except ModelError:
        path = Path()
    if not path.is_file():
        raise ModelError("Whisper's vocabulary is missing; run: pip install openai-whisper")
    return path


@cache
def _encoding() -> tiktoken.Encoding:
    import tiktoken

    # tiktoken's own loader copies the file into a shared temporary folder and trusts that copy ever after
    rows = (line.split() for line in _vocabulary().read_bytes().splitlines() if line)
    ranks = {b64decode(token): int(rank) for token, rank in rows}
    return tiktoken.Encoding("multilingual", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
