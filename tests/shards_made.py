"""Small shards that the tests make, with the members and the facts that `curate` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.encode import REFERENCES, flac_bytes, jpg_bytes, npy_bytes
from manifests.shards import Shard, write_index, write_shards
from manifests.store import Store
from models.clock import CHUNK_FRAMES, CHUNK_SECONDS, CHUNK_SPEECH_TOKENS, FPS, SPEECH_HZ, STORED_RATE
from models.dialogue_layout import layout
from models.speech_codec import FsqMel, digits
from models.text_codec import WhisperBpe
from models.thinker import BUNDLED, FACT, STATES, hidden_states, identity, load_thinker
from models.video_codec import BLOCK, CHANNELS, Dct3d, VideoCodec

Members = dict[str, bytes]
STORY = "the quick brown fox jumps over a lazy dog and runs away into the dark wood where nobody waits"


def make_shards(
    root: str | Path,
    samples: int = 8,
    grid: tuple[int, int] = (2, 2),
    chunks: Sequence[int] = range(2, 6),
    with_states: bool = True,
    per_shard: int = 4,
    *,
    val: int = 0,
    seed: int = 0,
    profile: str = "pretrain",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `samples` training and `val` validation samples below `root` (a DATASET); returns the folder of shards,
    DATASET/shards/PROFILE.

    Sample i has chunks[i % len(chunks)] chunks of `grid` (h, w) latents. facts: laid over the JSON of each sample.
    Latents are a still picture of the sample's person, the energy of its speech tokens moving a second one, and a
    little noise: a thing that can be learnt.
    """
    folder = f"shards/{profile}"
    store = Store(root)
    written: dict[str, list[Shard]] = {}
    for split, first, count in (("train", 0, samples), ("val", samples, val)):
        rows = _rows(range(first, first + count), grid, chunks, with_states, seed, facts or {})
        written[split] = list(write_shards(store, folder, split, rows, per_shard, 1 << 28))
    write_index(store, folder, written, {"profile": profile, "rules": {}})
    return Path(root) / folder


def _rows(
    numbers: range, grid: tuple[int, int], chunks: Sequence[int], states: bool, seed: int, facts: Mapping[str, Any]
) -> Iterator[tuple[str, Members, float]]:
    for number in numbers:
        length = chunks[number % len(chunks)]
        key, members = make_sample(number, length, grid, states, seed, facts)
        yield key, members, length * CHUNK_SECONDS


def make_sample(
    number: int,
    chunks: int,
    grid: tuple[int, int] = (2, 2),
    with_states: bool = True,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> tuple[str, Members]:
    """(key, members by extension) of one sample."""
    rng = np.random.default_rng((seed, number))
    source = f"{seed:04x}{number // 2:012x}"
    key = f"{source}-{number * 10_000:09d}-{number * 10_000 + chunks * 320:09d}"
    words = [str(word) for word in rng.choice(STORY.split(), size=max(1, chunks * 2 // 3))]
    text = WhisperBpe().encode(" ".join(words))
    speech = rng.integers(FsqMel.codes, size=chunks * CHUNK_SPEECH_TOKENS).astype(np.int32)
    latents, reference = _pictures(rng, speech, grid)
    told = _facts(key, source, chunks, grid, words, len(text), with_states) | dict(facts or {})
    members = {
        "json": json.dumps(told, sort_keys=True, allow_nan=False).encode("ascii"),
        "text.npy": npy_bytes(text),
        "speech.npy": npy_bytes(speech),
        "latents.npy": npy_bytes(latents),
        "reference.npy": npy_bytes(reference),
        "flac": flac_bytes(_hum(speech)),
        "jpg": jpg_bytes(np.full((32, 32, 3), 90 + number % 100, np.uint8)),
    }
    if with_states:
        thinker = load_thinker(BUNDLED)
        members[STATES] = npy_bytes(hidden_states(thinker, layout(thinker.vocabulary, text, speech)))
    return key, members


def _pictures(rng: np.random.Generator, speech: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Latents [1+k, 128, h, w] and reference [4, 128, h, w], float16."""
    person, mouth = np.random.default_rng(7).standard_normal((2, CHANNELS, *grid))
    person = person + 0.5 * rng.standard_normal((CHANNELS, *grid))
    loud = digits(speech)[:, 0].reshape(-1, CHUNK_SPEECH_TOKENS).mean(axis=1) / 3 - 0.5
    energy = np.concatenate([[0.0], loud])[:, None, None, None]
    latents = person + mouth * energy + 0.05 * rng.standard_normal((len(energy), CHANNELS, *grid))
    reference = person + 0.05 * rng.standard_normal((REFERENCES, CHANNELS, *grid))
    return latents.astype(np.float16), reference.astype(np.float16)


def _facts(
    key: str, source: str, chunks: int, grid: tuple[int, int], words: list[str], text_tokens: int, with_states: bool
) -> dict[str, Any]:
    step = chunks * CHUNK_SECONDS / len(words)
    timed = [[word, round(at * step, 3), round((at + 1) * step, 3), 0.5] for at, word in enumerate(words)]
    codecs: dict[str, VideoCodec | FsqMel | WhisperBpe] = {"video": Dct3d(), "speech": FsqMel(), "text": WhisperBpe()}
    return {
        "sample_id": key,
        "source_id": source,
        "start_s": 0.0,
        "audio_start_s": 0.04,
        "sync_offset_frames": 0,
        "crop": [0.0, 0.0, float(grid[0] * BLOCK)],
        "size": grid[0] * BLOCK,
        "fps": FPS,
        "chunk_frames": CHUNK_FRAMES,
        "audio_rate": STORED_RATE,
        "speech_hz": SPEECH_HZ,
        "codecs": {name: f"{codec.name} {codec.fingerprint()}" for name, codec in codecs.items()},
        **({FACT: identity(BUNDLED)} if with_states else {}),
        "chunks": chunks,
        "text": " ".join(words),
        "text_tokens": text_tokens,
        "words": timed,
    }


def _hum(speech: np.ndarray) -> np.ndarray:
    """[n] int16 at STORED_RATE, as loud as the tokens are."""
    loud = np.repeat(digits(speech)[:, 0] / 3, round(STORED_RATE / SPEECH_HZ))
    return (np.sin(np.arange(len(loud)) * 2 * np.pi * 150 / STORED_RATE) * loud * 8000).astype(np.int16)
