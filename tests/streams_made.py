"""What streams are made of, small: an exported Actor, a portrait, speech; and a film read back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from safetensors.torch import save_file

from models.actor import Actor
from models.actor_config import ActorConfig
from models.actor_weights import ActorFacts
from models.clock import STORED_RATE
from models.speech_codec import FsqMel
from models.text_codec import WhisperBpe
from models.thinker import BUNDLED, identity
from models.video_codec import Dct3d
from pipelines.sample import speech

SMALL = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 48, "window": 8}


def make_actor(folder: Path, grid: tuple[int, int] = (2, 2), **changes: Any) -> Path:
    """An Actor of random weights for the bundled Thinker, as `xstreamer export-actor` leaves one. changes: of its facts;
    `config`: of its numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"states": 192, **SMALL, **changes.pop("config", {})}
    actor = Actor(ActorConfig("small", **numbers))
    actor.init_weights(0)
    save_file(dict(actor.state_dict()), folder / "actor.safetensors", metadata={"format": "pt"})
    content = (folder / "actor.safetensors").read_bytes()
    codecs = {"video": Dct3d(), "speech": FsqMel(), "text": WhisperBpe()}
    facts: dict[str, Any] = {
        "config": actor.config,
        "codecs": {kind: f"{codec.name} {codec.fingerprint()}" for kind, codec in codecs.items()},  # type: ignore[attr-defined]
        "thinker": identity(BUNDLED),
        "grid": grid,
        "step": 0,
        "averaged": False,
        "dtype": "float32",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "actor.json").write_bytes(ActorFacts(**{**facts, **changes}).as_json())
    return folder


def astronaut() -> np.ndarray:
    """[512, 512, 3] uint8 RGB: one person, from the front."""
    from skimage import data

    return np.asarray(data.astronaut())


def write_picture(path: Path, rgb: np.ndarray) -> Path:
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


def sound(seconds: float, rate: int = STORED_RATE) -> np.ndarray:
    """[n] float32 of recorded speech at `rate` Hz."""
    from models.speech_codec import resampled

    found, own = speech("speech_en_1")
    count = round(seconds * rate)
    return resampled(found[: round(seconds * own)], own, rate, count).astype(np.float32)


def write_sound(path: Path, samples: np.ndarray, rate: int = STORED_RATE) -> Path:
    """16-bit, in the container that the path names; samples [n], or [n, channels]."""
    import soundfile

    soundfile.write(path, samples, rate)
    return path


@dataclass(frozen=True, eq=False)
class Played:
    """A film as it plays. frames: [n, h, w, 3] uint8 RGB. times: of each, s. sound: float32; rate: Hz; samples: of
    sound that the file says it has; began: s, of the first sample."""

    frames: np.ndarray
    times: np.ndarray
    sound: np.ndarray
    rate: int
    samples: int
    began: float


def play(path: Path) -> Played:
    with av.open(str(path)) as container:
        video = [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = list(container.decode(audio=0))
        samples = int((stream.duration or 0) * (stream.time_base or 0) * stream.rate)
    times, frames = zip(*video, strict=True)
    heard = np.concatenate([part.to_ndarray()[0] for part in parts])
    return Played(np.stack(frames), np.array(times), heard, stream.rate, samples, float(parts[0].time or 0))


def alike(found: np.ndarray, wanted: np.ndarray) -> float:
    """Correlation of two sounds, of the samples that both have."""
    count = min(len(found), len(wanted))
    return float(np.corrcoef(found[:count], wanted[:count])[0, 1])
