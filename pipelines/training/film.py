"""The sample video of a run: what the Actor makes of a sample's speech beside what the person did, with the sound.

From left to right: the portrait that the Actor was given, what it made, what the sample's own latents decode to.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from curation.film import Coding, write_film
from manifests.errors import ModelError, XstreamerError
from models.clock import CHUNK_FRAMES, FPS, STORED_RATE, samples_of
from models.video_codec import Dct3d, VideoCodec

SIDE = 256
"""Height of the two pictures, px; smaller ones are enlarged."""
PORTRAIT, BAND = 128, 24
"""Height of the portrait and of the line of words above, px."""
CODING = Coding(audio_bit_rate=64_000, options={"preset": "veryfast", "crf": "20"}, movflags="+faststart")
PIECE = 8
"""Chunks decoded at once where the codec lets them be decoded apart."""


def codec_of(named: str, device: str = "cpu") -> VideoCodec:
    """The video codec of a sample, named "NAME FINGERPRINT" in its JSON. Raises ModelError when it is not known here,
    lacks its weights, or means something else by its latents."""
    from models.ltx_video import VERSIONS, LtxVideo

    name = named.split(" ")[0]
    known: dict[str, VideoCodec] = {Dct3d.name: Dct3d()}
    known |= {codec.name: codec for codec in (LtxVideo(version, device) for version in VERSIONS)}
    if name not in known:
        raise ModelError(f"no video codec {name!r} here, there are {', '.join(known)}; a sample video needs it")
    try:
        found = f"{name} {known[name].fingerprint()}"
    except XstreamerError as error:
        raise ModelError(f"{error}; or train without sample videos: --set sample_every=0") from None
    if found != named:
        raise ModelError(f"the shards hold latents of {named!r}, the codec here is {found!r}; curate them again")
    return known[name]


def write_sample(
    path: Path, generated: np.ndarray, portrait: np.ndarray, members: Mapping[str, bytes], title: str, device: str
) -> None:
    """Writes the film of a sample to `path`, under another name until it is whole.

    generated: [c, 128, h, w] chunks 0 ... c - 1 as the Actor made them; portrait: [128, h, w], the single frame it was
    given; members: of the sample, by extension; title: words above the picture. Raises ModelError (`codec_of`).
    """
    facts = json.loads(members["json"])
    codec = codec_of(facts["codecs"]["video"], device)
    real = _array(members["latents.npy"])[: 1 + len(generated)]
    count = (len(real) - 1) * CHUNK_FRAMES
    sound = _sound(members, len(real) - 1)
    still = codec.decode(np.asarray(portrait, np.float16)[None])[0]
    made = _frames(codec, np.concatenate([portrait[None], generated[: len(real) - 1]]).astype(np.float16))
    frames = composed(still, made, _frames(codec, real), ("portrait", f"made {title}", "real"))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".tmp-{os.getpid()}-{path.name}")  # keeps the extension, which names the container
    try:
        write_film(partial, _counted(frames, count), sound, STORED_RATE, CODING)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _frames(codec: VideoCodec, latents: np.ndarray) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] of the chunks after latents[0]; a piece at a time where its neighbours are enough."""
    if not isinstance(codec, Dct3d):
        yield from codec.decode(latents)[1:]
        return
    for at in range(1, len(latents), PIECE):
        end = at + PIECE
        future = latents[end : end + 1] if end < len(latents) else None
        yield from codec.decode(latents[at:end], first=False, past=latents[:at], future=future, start=at)


def composed(
    portrait: np.ndarray, made: Iterator[np.ndarray], real: Iterator[np.ndarray], words: tuple[str, str, str]
) -> Iterator[np.ndarray]:
    """Frames [BAND + SIDE, PORTRAIT + 2 width, 3] uint8 of pictures of the same height and width."""
    width = round(SIDE * portrait.shape[1] / portrait.shape[0] / 2) * 2
    narrow = round(PORTRAIT * portrait.shape[1] / portrait.shape[0] / 2) * 2
    canvas = np.full((BAND + SIDE, narrow + 2 * width, 3), 24, np.uint8)
    canvas[BAND : BAND + PORTRAIT, :narrow] = _resized(portrait, narrow, PORTRAIT)
    for text, left in zip(words, (0, narrow, narrow + width), strict=True):
        cv2.putText(canvas, text, (left + 6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (225, 225, 225), 1, cv2.LINE_AA)
    for left_frame, right_frame in zip(made, real, strict=True):
        canvas[BAND:, narrow : narrow + width] = _resized(left_frame, width, SIDE)
        canvas[BAND:, narrow + width :] = _resized(right_frame, width, SIDE)
        yield canvas.copy()


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


def _counted(frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """`frames`, which must be `count`: the sound goes by it."""
    number = 0
    for number, frame in enumerate(frames, 1):  # noqa: B007  counted after the loop
        yield frame
    if number != count:
        raise ModelError(f"the video codec made {number} frames of {count / FPS:g} s; {count} were due")


def _sound(members: Mapping[str, bytes], chunks: int) -> np.ndarray | None:
    """[n] float32 at STORED_RATE of the first `chunks` chunks: the sample's own, else what its tokens sound like where
    their codec has a way back, else None."""
    from models.speech_codec import FsqMel

    wanted = samples_of(chunks, STORED_RATE)
    if "flac" in members:
        import soundfile

        found, rate = soundfile.read(io.BytesIO(members["flac"]), dtype="float32", always_2d=True)
        if rate == STORED_RATE:
            return np.asarray(found[:wanted, 0])
    if json.loads(members["json"])["codecs"]["speech"].split(" ")[0] != FsqMel.name:
        return None
    return FsqMel().decode(_array(members["speech.npy"]))[:wanted]


def _array(content: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
