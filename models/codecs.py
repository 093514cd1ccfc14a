"""The codecs that shards and Actors name, "NAME FINGERPRINT", found again: what was made by one is read by no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from manifests.errors import ModelError
from models.speech_codec import FsqMel, SpeechDecoder, SpeechTokenizer
from models.video_codec import Dct3d, VideoCodec


def video_codec(named: str, device: str = "cpu") -> VideoCodec:
    """Raises ModelError when it is not known here, lacks its weights, or means something else by its latents."""
    from models.ltx_video import VERSIONS, LtxVideo

    known: dict[str, Callable[[], VideoCodec]] = {Dct3d.name: Dct3d}
    for version in VERSIONS:
        known[f"ltx_video_{version}"] = lambda version=version: LtxVideo(version, device)  # type: ignore[misc]
    found: VideoCodec = _made("video", named, known)
    return found


def speech_tokenizer(named: str, device: str = "cpu") -> SpeechTokenizer:
    """Raises ModelError when it is not known here, lacks its weights, or means something else by its tokens."""

    def glm() -> SpeechTokenizer:
        from models.glm_speech import GlmSpeech

        return GlmSpeech(device)

    found: SpeechTokenizer = _made("speech", named, {FsqMel.name: FsqMel, "glm_4_voice": glm})
    return found


def speech_decoder(named: str, device: str = "cpu") -> SpeechDecoder:
    """What makes sound of the tokens of `named`. Raises ModelError when there is none."""
    if named.split(" ")[0] == FsqMel.name:
        return FsqMel()
    from models.glm_voice import GlmVoice

    if named.split(" ")[0] != GlmVoice.name:
        raise ModelError(f"nothing here makes sound of the tokens of {named!r}")
    return GlmVoice(device, precision="float32" if device == "cpu" else "bfloat16")


def _made(kind: str, named: str, known: Mapping[str, Callable[[], Any]]) -> Any:
    name = named.split(" ")[0]
    if name not in known:
        raise ModelError(f"no {kind} codec {name!r} here, there are {', '.join(known)}; use the xstreamer that made it")
    codec = known[name]()
    found = f"{name} {codec.fingerprint()}"
    if found != named:
        raise ModelError(f"these are of the {kind} codec {named!r}, the one here is {found!r}; train on its own tokens")
    return codec
