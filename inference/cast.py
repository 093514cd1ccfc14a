"""Everything that a stream is made of, from an Actor's files and a portrait: what goes with the Actor, and nothing
else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.dialogue import LONGEST_ANSWER, Dialogue
from inference.engine import Engine
from inference.media import whole_rate
from inference.pace import Pace, choose, measure
from inference.pictures import EXACT, Pictures
from inference.portrait import encoded, read_picture
from inference.runner import Runner, Talk
from inference.sampling import Sampling
from inference.schedule import Event, Plan
from inference.sound import Sound
from inference.timeline import silent_codes
from manifests.errors import ModelError, SourceError, UsageError
from models.actor import Actor
from models.actor_facts import thinker_facts
from models.actor_weights import ActorFacts, load_actor
from models.clock import FPS, SPEECH_HZ
from models.codecs import speech_decoder, speech_tokenizer, video_codec
from models.device import torch_device
from models.ltx_video import LtxVideo
from models.speech_codec import SpeechDecoder, SpeechTokenizer, resampled
from models.thinker import check_codecs, identity, kind_of, load_thinker
from models.video_codec import VideoCodec

GRID = (8, 8)
"""Latents of 256 x 256 px, for an Actor that does not say what it was trained on."""
PIECE = 750
"""Tokens of a recording that are made at once: a minute."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000
"""Hz that samples can have."""
PATIENCE_S = 1.0
"""How long a step waits for a Thinker in another process."""


@dataclass(frozen=True, eq=False)
class Cast:
    """What belongs together. thinker: its name. devices: of the Thinker, and of all others."""

    actor: Actor
    facts: ActorFacts
    thinker: str
    video: VideoCodec
    tokenizer: SpeechTokenizer
    decoder: SpeechDecoder
    devices: tuple[str, str]

    @property
    def grid(self) -> tuple[int, int]:
        return self.facts.grid or GRID


@dataclass(frozen=True, eq=False)
class Recording:
    """Speech that is given. codes: [n] int32. samples: [m] float32 at `rate` Hz, as they were."""

    codes: np.ndarray
    samples: np.ndarray
    rate: int

    @property
    def frames(self) -> int:
        """Of a film that is as long."""
        return -(-len(self.samples) * FPS // self.rate)


def load_cast(checkpoint: str | Path, devices: str = "auto", dtype: str = "") -> Cast:
    """The Actor in `checkpoint` (what `xstreamer export-actor` wrote) and what it was trained with.

    devices: one for all, or the Thinker's and the others', "cuda:0,cuda:1". dtype: of the Actor, "" as stored. Raises
    ModelError for an Actor of codecs or a Thinker that are not here, UsageError for other devices.
    """
    thinks, *acts = [torch_device(name.strip()) for name in devices.split(",")]
    if len(acts) > 1:
        raise UsageError(f"--devices {devices!r}: one for all, or the Thinker's and the Actor's")
    device = acts[0] if acts else thinks
    actor, facts = load_actor(checkpoint, device, dtype, verify=True)
    name = facts.thinker.split(" ")[0]
    if not name:
        raise ModelError(f"{checkpoint} does not say whose states it follows; train it on shards with a Thinker")
    kind_of(name)
    check_codecs(name, facts.codecs["text"].split(" ")[0], facts.codecs["speech"].split(" ")[0])
    if facts.thinker != identity(name):
        raise ModelError(
            f"{checkpoint} follows the Thinker {facts.thinker!r}, the one here is {identity(name)!r}; train it with this"
        )
    if facts.config.states != (hidden := thinker_facts(name).hidden):
        raise ModelError(
            f"{checkpoint} hears states of {facts.config.states} numbers, those of the Thinker {name} have {hidden}; "
            "stream an Actor that was trained on them"
        )
    video, speech = video_codec(facts.codecs["video"], device), facts.codecs["speech"]
    if video.channels != facts.config.channels:
        raise ModelError(f"{checkpoint} makes {facts.config.channels} channels, {video.name} has {video.channels}")
    return Cast(
        actor, facts, name, video, speech_tokenizer(speech, device), speech_decoder(speech, device), (thinks, device)
    )


def latent_of(cast: Cast, portrait: str | Path | np.ndarray, *, force: bool = False) -> np.ndarray:
    """Latent 0 of a portrait: a file, or [h, w, 3] uint8 RGB. Raises SourceError (`inference.portrait`), UsageError for
    another array."""
    if isinstance(portrait, np.ndarray):
        if portrait.ndim != 3 or portrait.shape[2] != 3 or portrait.dtype != np.uint8 or not portrait.size:
            raise UsageError(
                f"a portrait is a file, or [h, w, 3] uint8 RGB, not {portrait.dtype} {list(portrait.shape)}; convert it"
            )
        return encoded(
            np.ascontiguousarray(portrait[..., ::-1]), cast.video, cast.grid, force=force, name="the portrait"
        )
    picture = read_picture(portrait)
    return encoded(picture, cast.video, cast.grid, force=force, name=f"portrait {str(portrait)!r}")


def read_speech(path: str | Path) -> tuple[np.ndarray, int]:
    """([n] float32, Hz) of the sound in a file, mixed to one channel; at its own rate where a film can have it, else
    at the next above. Raises SourceError for a file without sound."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise SourceError(f"speech {str(path)!r} has no sound; give a recording of speech")
            pieces, rate = [], container.streams.audio[0].rate
            mono = av.AudioResampler("flt", "mono", rate)
            for frame in container.decode(audio=0):
                pieces += [part.to_ndarray()[0] for part in mono.resample(frame)]
            pieces += [part.to_ndarray()[0] for part in mono.resample(None)]
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"speech {str(path)!r} cannot be read ({reason}); give a WAV, FLAC, MP3 or film") from None
    sound = np.concatenate([np.empty(0, np.float32), *pieces])
    if not len(sound):
        raise SourceError(f"speech {str(path)!r} is empty; give a recording of speech")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise SourceError(f"speech {str(path)!r} has {rate} samples a second, which nothing records; convert it")
    if not np.isfinite(sound).all():
        raise SourceError(f"speech {str(path)!r} holds samples that are no numbers; record it again")
    return at_rate(sound, rate, whole_rate(rate)), whole_rate(rate)


def checked_speech(sound: Any, rate: Any) -> tuple[np.ndarray, int]:
    """([n] float32, Hz) of samples that somebody has. Raises UsageError for what are none."""
    found = np.asarray(sound)
    if found.ndim != 1 or found.dtype.kind != "f":
        raise UsageError(
            f"speech is a file, or [n] float samples of one channel from -1 to 1, not {found.dtype} {list(found.shape)}"
        )
    if not isinstance(rate, int | np.integer) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UsageError(
            f"speech has {LOWEST_RATE} to {HIGHEST_RATE} samples a second, not {rate!r}; give its rate in Hz"
        )
    if not np.isfinite(found).all():
        raise UsageError("speech holds samples that are no numbers; record it again")
    return found.astype(np.float32), int(rate)


def at_rate(sound: np.ndarray, rate: int, to: int) -> np.ndarray:
    """[m] float32 at `to` Hz; the very samples where that is their rate."""
    if rate == to:
        return np.asarray(sound, np.float32)
    return resampled(sound, rate, to, -(-len(sound) * to // rate)).astype(np.float32)


def recorded(tokenizer: SpeechTokenizer, sound: np.ndarray, rate: int) -> Recording:
    """Speech [n] at `rate` Hz with its tokens; what is over at the end is padded for them. A long recording is encoded
    minute by minute, in memory that does not grow with it. Raises UsageError for nothing."""
    if not len(sound):
        raise UsageError("the speech is empty; give a recording")
    token = round(rate / SPEECH_HZ)
    padded = np.pad(sound, (0, -len(sound) % token)).astype(np.float32)
    pieces = [tokenizer.encode(padded[at : at + PIECE * token], rate) for at in range(0, len(padded), PIECE * token)]
    return Recording(np.concatenate(pieces), np.asarray(sound, np.float32), rate)


def dialogue_of(
    cast: Cast,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    longest: int = LONGEST_ANSWER,
    apart: bool | None = None,
) -> Talk:
    """The Thinker's side: in a process of its own where its device is another one than the Actor's (apart), else
    here."""
    silence = silent_codes(cast.tokenizer)
    if apart if apart is not None else cast.devices[0] != cast.devices[1]:
        from inference.remote import RemoteDialogue, thinker

        made = thinker(cast.thinker, silence, device=cast.devices[0], sampling=sampling, seed=seed, longest=longest)
        return RemoteDialogue(made)
    return Dialogue(load_thinker(cast.thinker, cast.devices[0]), silence, sampling=sampling, seed=seed, longest=longest)


def paced(cast: Cast, latent: np.ndarray, steps: int, seed: int) -> tuple[Plan, Pace]:
    """The plan whose stride this machine holds, measured once."""
    plan = Plan(steps, steps, seed=seed)
    pace = choose(measure(cast.actor, reference(cast, latent), plan), steps)
    return dataclasses.replace(plan, stride=pace.stride), pace


def reference(cast: Cast, latent: np.ndarray) -> Tensor:
    """[channels, h, w] float32 on the Actor's device."""
    return torch.from_numpy(latent.astype(np.float32)).to(cast.devices[1])


def runner_of(
    cast: Cast,
    latent: np.ndarray,
    talk: Talk,
    plan: Plan,
    *,
    rate: int | None = None,
    live: bool = False,
    exact: bool = False,
    record: Callable[[Event], None] | None = None,
) -> Runner:
    """rate: Hz of the sound; by default the speech decoder's, and at another one all speech must be recorded. exact:
    a decoder of pictures that looks ahead looks as far as it can, for films, where nobody waits."""
    engine = Engine(cast.actor, reference(cast, latent), plan, record=record)
    reach = EXACT if exact and isinstance(cast.video, LtxVideo) else None
    pictures = Pictures(cast.video, latent, reach=reach, kept=plan.ahead + 1)
    own = rate is None or rate == cast.decoder.rate
    sound = Sound(cast.decoder.rate if rate is None else rate, cast.decoder if own else None)
    patience = None if isinstance(talk, Dialogue) else PATIENCE_S
    return Runner(talk, engine, pictures, sound, live=live, patience=patience)
