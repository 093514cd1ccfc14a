"""GLM-4-Voice's text tokens: the official tokenizer's ids, special tokens by name, damaged files named."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import glm_text as made
from makers import mirror

from manifests.errors import ModelError
from models.glm_text import WEIGHTS, GlmBpe

TEXT = GlmBpe()

OFFICIAL_IDS = {
    "The fox isn't talking about 12345 dogs.":
        [283, 32, 102, 111, 120, 274, 110, 39, 116, 265, 261, 280, 32, 49, 50, 51, 52, 53, 32, 100, 111, 103, 115, 46],
    "  two spaces,\n\nTHEY'RE thinking!?\r\n":
        [32, 256, 119, 111, 276, 112, 97, 99, 101, 115, 44, 10, 10, 84, 72, 69, 89, 39, 82, 69, 282, 285, 261, 33, 63,
         13, 10],
    "今天天气很好，请问 talk 语音🙂":
        [270, 138, 295, 295, 230, 176, 148, 229, 190, 136, 229, 290, 272, 288, 183, 233, 151, 174, 265, 32, 271, 173,
         233, 159, 179, 240, 159, 153, 130],
    "\ttab é ñ 12:30": [9, 116, 97, 98, 32, 195, 169, 32, 195, 177, 32, 49, 50, 58, 51, 48],
}  # fmt: skip
"""Ids by the hub's ChatGLM4Tokenizer (tokenization_chatglm.py of GLM-4-9B and GLM-4-Voice-9B, what it does to
tokenise, with transformers 4.44.1 and tiktoken 0.14.0) for the small files of `makers.glm_text`."""
OFFICIAL_SPECIAL = {
    "<|user|>": 427, "[gMASK]": 422, "<sop>": 424, "<|begin_of_audio|>": 434, "<|audio_0|>": 1444,
    "<|audio_16383|>": 17827,
}  # fmt: skip
"""Its convert_tokens_to_ids."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glm_text")
    mirror.unpublished(root, WEIGHTS)
    made.make(root / WEIGHTS)
    return root


@pytest.fixture(autouse=True)
def found(weights: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(weights))
        yield


@pytest.mark.parametrize("text", OFFICIAL_IDS)
def test_ids_are_official(text: str) -> None:
    assert TEXT.encode(text).tolist() == OFFICIAL_IDS[text]
    assert TEXT.decode(TEXT.encode(text)) == text


@given(st.text(max_size=60))
def test_any_text_survives(text: str) -> None:
    tokens = TEXT.encode(text)
    assert tokens.dtype == np.int32 and tokens.ndim == 1
    assert not len(tokens) or (tokens.min() >= 0 and tokens.max() < TEXT.codes == made.SMALL_TOKENS)
    assert TEXT.decode(tokens) == text


def test_special_tokens_by_name() -> None:
    assert {name: TEXT.special(name) for name in OFFICIAL_SPECIAL} == OFFICIAL_SPECIAL
    with pytest.raises(ModelError, match=r"no token <\|audio_16384\|>"):
        TEXT.special("<|audio_16384|>")


def test_special_tokens_are_neither_read_nor_shown() -> None:
    assert TEXT.encode("<|user|>").max() < TEXT.codes
    with pytest.raises(ValueError, match="text tokens are 0 ... 419"):
        TEXT.decode(np.array([TEXT.special("<|user|>")]))


def test_official_places_at_the_true_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM-4-Voice-9B's own ids, as its published fine-tuning code lists them: audio_0 is 152353."""
    mirror.unpublished(tmp_path, WEIGHTS)
    made.make(tmp_path / WEIGHTS, true_size=True)
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    named = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|audio_0|>")
    assert [TEXT.special(name) for name in named] == [151329, 151335, 151336, 151337, 151343, 152353]
    assert TEXT.codes == 151329 and TEXT.decode(TEXT.encode("今天")) == "今天"


def test_half_a_character_is_replaced() -> None:
    assert TEXT.decode(TEXT.encode("🙂")[:2]) == "�"


class TestFiles:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        mirror.unpublished(tmp_path, WEIGHTS)
        made.make(tmp_path / WEIGHTS)
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        return tmp_path / WEIGHTS

    @pytest.mark.parametrize(
        "name, content, told",
        [
            ("tokenizer.model", b"\x0a\x0bsentencepiece", "no tiktoken vocabulary"),
            ("tokenizer.model", b"IQ== 0\nIg== 7\n", "ranks not 0 ... n"),
            ("tokenizer.model", b64encode(b"abc") + b" 0\n", "byte 0 has no token"),
            ("tokenizer_config.json", b"{", "names no special tokens"),
            ("tokenizer_config.json", b'{"added_tokens_decoder": {"3": {"content": "<s>"}}}', "must follow its 420"),
            ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "names no special tokens"),
        ],
    )
    def test_of_another_tokenizer(self, name: str, content: bytes, told: str, folder: Path) -> None:
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError) as refused:
            TEXT.encode("a")
        assert told in str(refused.value) and name in str(refused.value)

    def test_cut_off(self, folder: Path) -> None:
        whole = (folder / "tokenizer.model").read_bytes()
        (folder / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match="tokenizer.model"):
            TEXT.encode("a")

    def test_missing(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").unlink()
        for ask in (lambda: TEXT.encode("a"), TEXT.fingerprint, lambda: TEXT.codes):
            with pytest.raises(ModelError, match=f"models fetch {WEIGHTS}"):
                ask()

    def test_the_fingerprint_is_the_files(self, folder: Path) -> None:
        before = TEXT.fingerprint()
        assert len(before) == 16 and before == GlmBpe().fingerprint()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 1}))
        with pytest.raises(ModelError, match="recorded"):
            TEXT.fingerprint()
        (folder.parent / "lock.json").unlink()
        assert TEXT.fingerprint() != before
