"""What samples must be, and a sample's members as arrays.

Members and shapes are the contract of what `curate` writes: latents float16 [1+k, 128, h, w], reference float16
[4, 128, h, w], speech int32 [4k], text int32 [t], states of a Thinker float16 [n, hidden] where they are stored. A sample
that breaks it is damaged, and is counted; one that keeps it but was made by other codecs, on another clock or for
another Thinker is foreign, and is refused: training on it would mix what must not mix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from manifests.errors import DatasetError, ModelError
from models.clock import CHUNK_FRAMES, CHUNK_SPEECH_TOKENS, FPS, SPEECH_HZ
from models.dialogue_layout import Turn, turn_of
from models.speech_codec import FsqMel
from models.text_codec import WhisperBpe
from models.thinker import FACT, STATES, identity, kind_of, states_fault
from models.video_codec import CHANNELS, Dct3d
from training.reading import Damaged, npy_array

REFERENCES = 4
"""Frames that a sample stores encoded alone."""
NEEDED = ("json", "text.npy", "speech.npy", "latents.npy", "reference.npy")
CODECS = ("video", "speech", "text")
CLOCK = {"fps": FPS, "chunk_frames": CHUNK_FRAMES, "speech_hz": SPEECH_HZ}
MOST_CHUNKS = 100_000
"""Nearly nine hours; more is no length."""
EXPONENT = 0x7C00
"""The bits of a float16 that are all set where it is infinite or no number."""


@dataclass(frozen=True)
class Wanted:
    """What a run asks of its samples: codecs and the Thinker as "name fingerprint", as a name alone, or as "" for
    whatever the first sample says. known: fingerprints of codecs that exist here, by name."""

    thinker: str = ""
    video: str = ""
    speech: str = ""
    text: str = ""
    known: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Contract:
    """What the samples of a run have in common. video, speech, text: codecs, "name fingerprint". grid: (h, w) of a
    latent. thinker: identity of the states that are stored, hidden the numbers in one; "" and 0 where the Thinker is
    to be run."""

    video: str
    speech: str
    text: str
    grid: tuple[int, int]
    thinker: str = ""
    hidden: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of the members that are read."""
        return (*NEEDED, STATES) if self.hidden else NEEDED


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of k chunks. latents: float16 [1+k, 128, h, w]; reference: float16 [4, 128, h, w]; text: int32 [t];
    speech: int32 [4k]; states: float16 [n, hidden] or None, of the tokens of `turn`."""

    id: str
    chunks: int
    latents: np.ndarray
    reference: np.ndarray
    text: np.ndarray
    speech: np.ndarray
    states: np.ndarray | None
    turn: Turn


def wanted_by(thinker: str) -> Wanted:
    """What the Thinker called `thinker` reads. Where it is not on this machine, stored states are known by its name;
    where it is, its fingerprint must be theirs too. Raises UsageError for an unknown one."""
    kind = kind_of(thinker)
    try:
        named = identity(thinker)
    except (ModelError, ImportError):  # states are stored so that whoever trains needs no Thinker
        named = thinker
    known = [(codec.name, codec.fingerprint()) for codec in (Dct3d(), FsqMel())]
    with suppress(ModelError):  # its vocabulary comes with a package that a bare machine lacks
        known.append((WhisperBpe.name, WhisperBpe().fingerprint()))
    return Wanted(named, "", kind.speech, kind.text, tuple(known))


def inspected(members: Mapping[str, bytes], wanted: Wanted, where: str) -> Contract:
    """The contract that a dataset's first sample sets. where: what errors call it.

    Raises DatasetError when it is not what is wanted, Damaged when it is none at all.
    """
    facts = facts_of(members)
    _check_clock(facts, where)
    codecs = _codecs(facts)
    for kind in CODECS:
        asked = getattr(wanted, kind)
        name, known = codecs[kind].partition(" ")[0], dict(wanted.known)
        if not asked and name in known:
            asked = f"{name} {known[name]}"
        elif asked in known:
            asked = f"{asked} {known[asked]}"
        if not meant(codecs[kind], asked):
            raise DatasetError(
                f"{where} was encoded by {kind} codec {codecs[kind]}, not {asked}; encode again with that one, or train "
                "with the recipe that goes with these shards"
            )
    latents = npy_array(members["latents.npy"], "latents.npy")
    if latents.ndim != 4 or latents.shape[1] != CHANNELS:
        raise Damaged(f"latents are {list(latents.shape)}, not [1+k, {CHANNELS}, h, w]")
    grid = int(latents.shape[2]), int(latents.shape[3])
    contract = Contract(codecs["video"], codecs["speech"], codecs["text"], grid)
    contract = replace(contract, **_states(members, facts, wanted.thinker, where))
    decoded("", members, contract, where)
    return contract


def _states(members: Mapping[str, bytes], facts: Mapping[str, Any], wanted: str, where: str) -> dict[str, Any]:
    """{"thinker", "hidden"} where states are stored, else nothing."""
    named = facts.get(FACT)
    if not named and STATES not in members:
        return {}
    shapes = [npy_array(members[name], name).ndim for name in (STATES, "text.npy", "speech.npy") if name in members]
    if shapes not in ([2, 1, 1], [1, 1]):
        raise Damaged(f"stores arrays of {shapes} dimensions as states, text and speech")
    fault = states_fault(members, named if isinstance(named, str) and meant(named, wanted) else wanted)
    if fault:
        raise DatasetError(f"{where} {fault}")
    return {"thinker": named, "hidden": int(npy_array(members[STATES], STATES).shape[1])}


def agreed(contracts: Mapping[str, Contract]) -> Contract:
    """The one contract of several datasets, by the name that errors call each. Stored states are used only where all
    datasets store them. Raises DatasetError when the datasets do not go together."""
    (first, chosen), *others = contracts.items()
    for name, other in others:
        for part in (*CODECS, "grid"):
            if getattr(other, part) != getattr(chosen, part):
                kind = "latents of (h, w)" if part == "grid" else f"the {part} codec"
                raise DatasetError(
                    f"{name} has {kind} {getattr(other, part)}, {first} has {getattr(chosen, part)}; they cannot be "
                    "trained on together"
                )
    thinkers = {c.thinker: name for name, c in contracts.items() if c.thinker}
    if len(thinkers) > 1:
        (one, where), (two, there) = list(thinkers.items())[:2]
        raise DatasetError(f"{where} stores states of thinker {one}, {there} of {two}; encode one of them again")
    if all(c.thinker for c in contracts.values()):
        return chosen
    return replace(chosen, thinker="", hidden=0)


def decoded(key: str, members: Mapping[str, bytes], contract: Contract, where: str) -> Sample:
    """A sample's members as arrays over the same memory. where: what errors call it.

    Raises Damaged when a member is missing, broken or holds numbers that are none, DatasetError when the sample is
    foreign.
    """
    facts = facts_of(members)
    _check_clock(facts, where)
    codecs = _codecs(facts)
    for kind in CODECS:
        if codecs[kind] != getattr(contract, kind):
            raise _foreign(where, f"{kind} codec", codecs[kind], getattr(contract, kind))
    chunks = facts.get("chunks")
    if not isinstance(chunks, int) or not 0 < chunks <= MOST_CHUNKS:
        raise Damaged(f"says that it has {chunks!r} chunks")
    latents = _array(members, "latents.npy", np.float16, (1 + chunks, CHANNELS, None, None))
    if latents.shape[2:] != contract.grid:
        raise _foreign(where, "latents of (h, w)", latents.shape[2:], contract.grid)
    reference = _array(members, "reference.npy", np.float16, (REFERENCES, CHANNELS, *contract.grid))
    speech = _array(members, "speech.npy", np.int32, (CHUNK_SPEECH_TOKENS * chunks,))
    text = _array(members, "text.npy", np.int32, (None,))
    states, turn = None, _turn(len(text), len(speech), None)
    if contract.hidden:
        if facts.get(FACT) != contract.thinker:
            raise _foreign(where, "states of thinker", facts.get(FACT) or "nobody", contract.thinker)
        states = _array(members, STATES, np.float16, (None, contract.hidden))
        turn = _turn(len(text), len(speech), len(states))
        if len(turn) != len(states):
            raise Damaged(f"stores {len(states)} states for {len(turn)} tokens")
    return Sample(key, chunks, latents, reference, text, speech, states, turn)


def facts_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """A sample's JSON. Raises Damaged, also for a sample that lacks a member that every one has."""
    for extension in NEEDED:
        if extension not in members:
            raise Damaged(f"has no {extension}")
    try:
        found = json.loads(members["json"])
    except (ValueError, RecursionError):
        raise Damaged("has a JSON that is none") from None
    if not isinstance(found, dict):
        raise Damaged("has a JSON that is no object")
    return found


def meant(named: str, wanted: str) -> bool:
    """Whether "name fingerprint" is what is wanted: the same, of the same name, or anything."""
    return wanted in ("", named, named.partition(" ")[0])


def _codecs(facts: Mapping[str, Any]) -> dict[str, str]:
    found = facts.get("codecs")
    if not isinstance(found, dict) or not all(isinstance(found.get(kind), str) for kind in CODECS):
        raise Damaged("does not say which codecs made it")
    return found


def _check_clock(facts: Mapping[str, Any], where: str) -> None:
    found = {name: facts.get(name) for name in CLOCK}
    if found != CLOCK:
        raise DatasetError(
            f"{where} was made on another clock ({_listed(found)}), not {_listed(CLOCK)}; curate it again"
        )


def _listed(clock: Mapping[str, Any]) -> str:
    return "{fps} fps, {chunk_frames} frames a chunk, {speech_hz} speech tokens/s".format(**clock)


def _foreign(where: str, what: str, found: Any, wanted: Any) -> DatasetError:
    return DatasetError(f"{where} has {what} {found}, the samples before it {wanted}; pack only one kind together")


def _array(
    members: Mapping[str, bytes], name: str, kind: type[np.generic], shape: tuple[int | None, ...]
) -> np.ndarray:
    """The array in a member, of this type and shape (None: any), all of it finite. Raises Damaged."""
    if name not in members:
        raise Damaged(f"has no {name}")
    found = npy_array(members[name], name)
    fits = len(shape) == found.ndim and all(size in (None, have) for size, have in zip(shape, found.shape, strict=True))
    if found.dtype != kind or not fits:
        asked = ", ".join("n" if size is None else str(size) for size in shape)
        raise Damaged(f"{name} is {found.dtype} {list(found.shape)}, not {np.dtype(kind)} [{asked}]")
    if kind is np.float16 and not finite(found):
        raise Damaged(f"{name} holds numbers that are none")
    return found


def finite(values: np.ndarray) -> bool:
    """Whether every float16 of `values` is a number; numpy's own test of them is slow."""
    return not values.size or int((values.view(np.uint16) & EXPONENT).max()) != EXPONENT


@lru_cache(maxsize=4096)
def _turn(text: int, speech: int, limit: int | None) -> Turn:
    return turn_of(text, speech, limit)
