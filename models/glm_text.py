"""GLM-4-Voice's text tokens: GLM-4's byte-pair encoding, and by name the special tokens of its dialogues.

Read from the official files, tokenizer.model (tiktoken's ranks) and tokenizer_config.json (special tokens), with
tiktoken alone: the tokenizer that the hub ships runs its own code and breaks on transformers from 4.45 on.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manifests.errors import ModelError
from models.lock import identity
from models.weights import weights_folder

if TYPE_CHECKING:
    import tiktoken

WEIGHTS = "glm-4-voice-text"
VERSION = 1
"""Raised when the code, not the files, changes what tokens mean."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
"""Where GLM-4's tokenizer splits text into words before merging bytes."""


class GlmBpe:
    """GLM-4's vocabulary (GLM Team 2024, arXiv:2406.12793): bytes, so any text survives the round trip."""

    name = "glm_4_bpe"

    @property
    def codes(self) -> int:
        """Text tokens are 0 ... codes - 1; special tokens follow. Raises ModelError when the files are missing."""
        return _files().bpe.n_vocab

    def encode(self, text: str) -> np.ndarray:
        """As `TextCodec.encode`. Raises ModelError when the files are missing or wrong."""
        return np.array(_files().bpe.encode_ordinary(text), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """As `TextCodec.decode`. Raises ValueError for a token outside the vocabulary, special ones too."""
        known = [int(token) for token in tokens]
        if any(not 0 <= token < self.codes for token in known):
            raise ValueError(f"text tokens are 0 ... {self.codes - 1}, found {min(known)} ... {max(known)}")
        return _files().bpe.decode(known)

    def special(self, name: str) -> int:
        """Id of a special token ("<|user|>", "<|audio_0|>"). Raises ModelError for one that it does not have."""
        found = _files().special.get(name)
        if found is None:
            raise ModelError(f"{_folder() / 'tokenizer_config.json'} has no token {name}; is it GLM-4-Voice's?")
        return found

    def fingerprint(self) -> str:
        """As `TextCodec.fingerprint`: the files and this code's version."""
        return hashlib.sha256(f"{self.name} {VERSION} {PATTERN} {identity([WEIGHTS])}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Files:
    """What the official files hold. special: ids by name."""

    bpe: tiktoken.Encoding
    special: dict[str, int]


def _folder() -> Path:
    return weights_folder(WEIGHTS)


def _files() -> Files:
    return _read(_folder(), identity([WEIGHTS]))


@cache
def _read(folder: Path, known: str) -> Files:
    """The files in `folder`; `known` says which these are, so that others are read anew."""
    import tiktoken

    ranks = read_ranks(folder / "tokenizer.model")
    special = read_special(folder / "tokenizer_config.json", len(ranks))
    return Files(tiktoken.Encoding("glm4", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}), special)


def read_ranks(place: Path) -> dict[bytes, int]:
    """Token bytes and their ids, from lines of base64 and rank. Raises ModelError when they are no vocabulary."""
    try:
        rows = [line.split() for line in place.read_bytes().splitlines() if line.strip()]
        ranks = {b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError as error:
        raise ModelError(f"{place} is no tiktoken vocabulary ({error}); fetch it again") from None
    if sorted(ranks.values()) != list(range(len(rows))):
        raise ModelError(f"{place} is no whole vocabulary: {len(rows)} tokens, ranks not 0 ... n; fetch it again")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise ModelError(f"{place} is no vocabulary of bytes: byte {lacking[0]} has no token; fetch it again")
    return ranks


def read_special(place: Path, first: int) -> dict[str, int]:
    """Ids of the special tokens by name; they begin at `first`. Raises ModelError when the file is of another
    tokenizer or damaged."""
    try:
        added = json.loads(place.read_text("utf-8"))["added_tokens_decoder"]
        special = {str(token["content"]): int(at) for at, token in added.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{place} names no special tokens ({type(error).__name__}: {error}); fetch it again") from None
    if not special or min(special.values()) < first or len(set(special.values())) != len(special):
        raise ModelError(f"{place} is not the vocabulary's: special tokens must follow its {first} tokens")
    return special
