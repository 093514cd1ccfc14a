"""Files of GLM-4-Voice's text tokenizer: a byte-pair vocabulary learned from a few lines, and the special tokens."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

NAME = "glm-4-voice-text"

OFFICIAL_TOKENS = 151_329
SMALL_TOKENS = 420
LESSON = (
    "The quick brown fox jumps over the lazy dog. She said that they're going to talk about the weather, and then "
    "about talking. 'What's the time?' It is 12:30 on the 24th of October 2024.\n\nThinking aloud isn't speaking. "
    "今天天气很好，我们去公园散步吧。你好，请问现在几点了？语音模型可以听和说。The model listens, thinks and talks."
)
NAMED = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>",
)  # fmt: skip
RESERVED = 1006
"""Between those and <|audio_0|>."""
AUDIO = 16_384


def make(folder: Path, true_size: bool = False) -> None:
    """Writes tokenizer.model and tokenizer_config.json into `folder`. Special tokens have their official ids when
    `true_size`, else they follow the small vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary(OFFICIAL_TOKENS if true_size else SMALL_TOKENS)
    lines = [b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    config = {
        "added_tokens_decoder": {
            str(len(tokens) + at): {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                                    "single_word": False, "special": True}
            for at, name in enumerate(special(len(tokens)))
        },
        "additional_special_tokens": list(NAMED),
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": 128_000,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def special(first: int) -> list[str]:
    """Special tokens in the order of their ids, which begin at `first`."""
    reserved = [f"<|reserved_{first + len(NAMED) + at}|>" for at in range(RESERVED)]
    return [*NAMED, *reserved, *(f"<|audio_{code}|>" for code in range(AUDIO))]


def vocabulary(size: int) -> list[bytes]:
    """`size` tokens in the order of their ranks: bytes, merges learned from LESSON while any pair repeats, then
    pairs of earlier tokens."""
    tokens = [bytes([byte]) for byte in range(256)]
    words = [[bytes([byte]) for byte in word] for word in _words()]
    while len(tokens) < size and (found := _commonest(words)):
        tokens.append(found[0] + found[1])
        words = [_merged(word, found) for word in words]
    known = set(tokens)
    pairs = (tokens[at % 256] + tokens[at // 256] for at in count())
    while len(tokens) < size:
        pair = next(pairs)
        if pair not in known:
            known.add(pair)
            tokens.append(pair)
    return tokens


def _words() -> Iterator[bytes]:
    """LESSON in words, each with the space before it."""
    first, *rest = LESSON.split(" ")
    yield first.encode()
    yield from (f" {word}".encode() for word in rest)


def _commonest(words: list[list[bytes]]) -> tuple[bytes, bytes] | None:
    """The pair that occurs most often, and more than once; of several the smallest."""
    counts = Counter(pair for word in words for pair in pairwise(word))
    most = max(counts.values(), default=0)
    return min(pair for pair, seen in counts.items() if seen == most) if most > 1 else None


def _merged(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out
