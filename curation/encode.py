"""Encode: a clip as the trainer reads it; latents, speech tokens and text tokens on one clock, in sync.

A sample of k chunks holds 8k+1 frames and 4k speech tokens. Latent 0 is frame `first` of the clip, at
-0.04 s; the stored sound and the tokens begin with the frame after it.
"""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from curation.audio import Audio
from curation.clip import Clip
from curation.stage import Result, Stage, Unmeasured
from curation.thinker_cache import sample_states
from manifests.errors import SourceError
from manifests.records import measures_of
from models.clock import (
    CHUNK_FRAMES,
    CHUNK_SECONDS,
    FPS,
    MAX_CLIP_SECONDS,
    SPEECH_HZ,
    STORED_RATE,
    chunks_in,
    frames_of,
    samples_of,
)
from models.device import CPU
from models.speech_codec import FsqMel, SpeechTokenizer
from models.text_codec import TextCodec, WhisperBpe
from models.thinker import BUNDLED, FACT, KINDS, STATES, check_codecs, identity, kind_of
from models.video_codec import Dct3d, VideoCodec

FRAME_SAMPLES = STORED_RATE // FPS
"""882 at 22,050 Hz, exactly: whole frames of offset are whole samples."""
REFERENCES = 4
"""Frames encoded alone, the middles of the four quarters of a sample."""
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Encode(Stage):
    """Cuts, corrects and encodes; a subclass names the codecs.

    size: side of the encoded square, px. min_speech_share: with less speech the measured offset is not applied.
    thinker: whose hidden states a sample stores (`models.thinker`), "" for nobody's. Raises UsageError when unknown.
    The picture is the square that `speakers` found. The sound is what `denoise` left, moved by the offset
    that `sync` measured. The text is the words of `transcribe` whose middle lies in the sample.
    """

    name = "encode"
    reads = ("speech", "speakers", "sync", "denoise", "transcribe")
    measures = measures_of("encode")

    size: int = 256
    min_speech_share: float = 0.1
    thinker: str = field(default="", metadata={"choices": ("", *KINDS)})

    def __post_init__(self) -> None:
        if self.thinker:
            kind_of(self.thinker)

    @property
    @abstractmethod
    def video(self) -> VideoCodec:
        """Makes the latents; like the others cheap to ask for, its model loads at the first use."""

    @property
    @abstractmethod
    def speech(self) -> SpeechTokenizer:
        """Makes the speech tokens."""

    @property
    @abstractmethod
    def text(self) -> TextCodec:
        """Makes the text tokens."""

    def measure(self, clip: Clip) -> Result:
        """The members of the sample in `Result.files`; `sample_tar` is None, whoever stores it fills it.

        Raises Unmeasured without a face or where less than one chunk of picture and sound overlap.
        """
        if clip.row.get("crop_side") is None:
            raise Unmeasured("no face was found to cut out")
        audio: Audio = clip.product("denoise")
        lag = -self.offset(clip.row)
        sound = sound_span(clip, audio)
        first, chunks = window(frames_there(clip), lag, sound)
        if not chunks:
            raise Unmeasured(f"picture and sound overlap for less than one chunk ({CHUNK_SECONDS} s)")
        frames = pictures(clip, self.size, first, chunks)
        chunks = chunks_in(len(frames))
        begin = (first + 1 + lag) * FRAME_SAMPLES - sound.start
        pcm = pcm16(audio.samples[begin : begin + samples_of(chunks, STORED_RATE)])
        heard = audio.start_s + begin / STORED_RATE
        words = shifted(spoken(clip), heard, chunks * CHUNK_SECONDS)
        text = sample_text(clip, words)
        tokens = self.text.encode(text)
        told = {"chunks": chunks, "text": text, "text_tokens": len(tokens), "words": words}
        files = self.members(frames, pcm) | {"text.npy": npy_bytes(tokens)}
        files |= self.thoughts(files)
        files["json"] = json_bytes(self.facts(clip, first, heard) | told)
        sizes = {"sample_text_tokens": len(tokens), "sample_bytes": sum(map(len, files.values()))}
        return Result({"sample_tar": None, "sample_chunks": chunks, **sizes}, files=files)

    def offset(self, row: Mapping[str, Any]) -> int:
        """Frames by which the sound of a clip is corrected, SyncNet's sign; 0 where nobody speaks: what a silent
        face measures is chance."""
        share = row.get("speech_share")
        if share is not None and share < self.min_speech_share:
            return 0
        return row.get("sync_offset_frames") or 0

    def members(self, frames: np.ndarray, pcm: np.ndarray) -> dict[str, bytes]:
        """The members that are seen and heard, of `frames` [8k+1, size, size, 3] uint8 BGR and `pcm` [n] int16.

        Tokens are made from the sound as it is stored, so that they can be made again from it.
        """
        rgb = frames[..., ::-1]
        alone = [rgb[at : at + 1] for at in reference_frames(len(frames))]
        return {
            "speech.npy": npy_bytes(self.speech.encode(pcm.astype(np.float32) / 32768, STORED_RATE)),
            "latents.npy": npy_bytes(self.video.encode(rgb)),
            "reference.npy": npy_bytes(np.concatenate([self.video.encode(frame) for frame in alone])),
            "flac": flac_bytes(pcm),
            "jpg": jpg_bytes(frames[len(frames) // 2]),
        }

    def thoughts(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The member that holds the Thinker's states for the tokens in `files`; none where none are asked for."""
        if not self.thinker:
            return {}
        text, speech = (np.load(io.BytesIO(files[name]), allow_pickle=False) for name in ("text.npy", "speech.npy"))
        return {STATES: npy_bytes(sample_states(self.thinker, text, speech, getattr(self, "device", CPU)))}

    def facts(self, clip: Clip, first: int, heard: float) -> dict[str, Any]:
        """Where the sample comes from and how it was made. Times of the source are s from its first frame.

        first: latent 0, a frame of the clip. heard: where the stored sound begins, s from the clip's start.
        """
        return {
            **clip.facts,
            "sample_id": clip.clip_id,
            "source_id": clip.row.get("source_id"),
            "start_s": (clip.first_frame + first) / FPS,
            "audio_start_s": round(clip.start_s + heard, 6),
            "sync_offset_frames": self.offset(clip.row),
            "crop": [clip.row[f"crop_{part}"] for part in ("x", "y", "side")],
            "size": self.size,
            "fps": FPS,
            "chunk_frames": CHUNK_FRAMES,
            "audio_rate": STORED_RATE,
            "speech_hz": SPEECH_HZ,
            "codecs": self.codecs(),
            **({FACT: identity(self.thinker)} if self.thinker else {}),
        }

    def codecs(self) -> dict[str, str]:
        """{"video", "speech", "text": name and fingerprint}."""
        return {
            "video": f"{self.video.name} {self.video.fingerprint()}",
            "speech": f"{self.speech.name} {self.speech.fingerprint()}",
            "text": f"{self.text.name} {self.text.fingerprint()}",
        }

    def weights(self) -> tuple[str, ...]:
        """Those of the Thinker; a subclass puts its codecs' before them."""
        return kind_of(self.thinker).weights if self.thinker else ()

    def params(self) -> dict[str, Any]:
        """As `Stage.params`, but no thinker where no states are stored: such samples are what they always were."""
        return {name: value for name, value in super().params().items() if name != "thinker" or value}

    def revision(self) -> str:
        """The codecs, by what their output means, and the Thinker.

        Raises UsageError when the Thinker reads tokens of other codecs.
        """
        if not self.thinker:
            return ", ".join(self.codecs().values())
        check_codecs(self.thinker, self.text.name, self.speech.name)
        return ", ".join((*self.codecs().values(), f"thinker {identity(self.thinker)}"))


@dataclass(frozen=True)
class BundledEncode(Encode):
    """The codecs that need no download: `Dct3d`, `FsqMel`, `WhisperBpe`."""

    backend = "bundled"

    thinker: str = field(default="", metadata={"choices": ("", BUNDLED)})

    @property
    def video(self) -> VideoCodec:
        """As `Encode.video`."""
        return Dct3d()

    @property
    def speech(self) -> SpeechTokenizer:
        """As `Encode.speech`."""
        return FsqMel()

    @property
    def text(self) -> TextCodec:
        """As `Encode.text`."""
        return WhisperBpe()

    def weights(self) -> tuple[str, ...]:
        return ("whisper-bpe", *super().weights())


def window(frames: int, lag: int, sound: range) -> tuple[int, int]:
    """(first frame, chunks): the longest sample for which every frame and every sample of sound exists.

    frames: frames of the clip. lag: frames by which its sound is late: what belongs to the picture at t is
    heard at t + lag/25. sound: the samples at STORED_RATE that exist, counted from the clip's frame 0.
    Frames first ... first + 8k are shown; the sound is frames first + 1 ... first + 8k, `lag` frames later.
    """
    earliest = -(-sound.start // FRAME_SAMPLES) - 1 - lag
    first = max(0, earliest)
    heard = sound.stop - (first + 1 + lag) * FRAME_SAMPLES
    return first, max(0, min(chunks_in(frames - first), heard // samples_of(1, STORED_RATE)))


def sound_span(clip: Clip, audio: Audio) -> range:
    """The samples of `audio` (at STORED_RATE, on the clip's clock), counted from the clip's first grid frame;
    rounded to the nearest sample, 23 us at most."""
    zero = clip.first_frame / FPS - clip.start_s
    start = round((audio.start_s - zero) * STORED_RATE)
    return range(start, start + len(audio.samples))


def frames_there(clip: Clip) -> int:
    """Frames of the clip: as decoded, or as promised for a long one, which is never held whole.

    The clip's length alone decides, so a resumed run cuts the same pixels from the same frames.
    """
    return len(clip.small) if clip.seconds <= MAX_CLIP_SECONDS + 0.5 / FPS else clip.frame_count


def pictures(clip: Clip, size: int, first: int, chunks: int) -> np.ndarray:
    """[8k+1, size, size, 3] uint8 BGR of the clip's square, from frame `first` on; k is `chunks`, or one less
    where a long clip is the end of a video that promised a few frames more than it has.

    Raises SourceError when they do not decode.
    """
    box = (clip.row["crop_x"], clip.row["crop_y"], clip.row["crop_side"])
    try:
        return clip.portrait(box, size, first, frames_of(chunks))
    except SourceError:
        if chunks < 2:
            raise
        return clip.portrait(box, size, first, frames_of(chunks - 1))


def reference_frames(count: int) -> list[int]:
    """The middles of the REFERENCES equal parts of `count` frames."""
    return [(2 * part + 1) * count // (2 * REFERENCES) for part in range(REFERENCES)]


def spoken(clip: Clip) -> Sequence[Sequence[Any]]:
    """[[word, start_s, end_s, confidence], ...] that `transcribe` left, in the clip's uncorrected time."""
    return (clip.evidence.get("transcribe") or {}).get("words") or []


def shifted(words: Sequence[Sequence[Any]], heard: float, seconds: float) -> list[list[Any]]:
    """`words` whose middle lies in the stored sound, in its time, within 0 ... `seconds`.

    heard: where the stored sound begins, s from the clip's start; the offset is part of it.
    """
    moved = [[word, start - heard, end - heard, *rest] for word, start, end, *rest in words]
    return [
        [word, round(max(0.0, start), 3), round(min(seconds, end), 3), *rest]
        for word, start, end, *rest in moved
        if 0 <= (start + end) / 2 < seconds
    ]


def sample_text(clip: Clip, words: Sequence[Sequence[Any]]) -> str:
    """The transcript; where the cut left words out, the `words` that remain, spaced as the transcript is."""
    text = clip.row.get("transcript") or ""
    said = [word for word, *_ in spoken(clip)]
    if len(words) == len(said):
        return text
    return ("" if "".join(said) == text else " ").join(word for word, *_ in words)


def pcm16(samples: np.ndarray) -> np.ndarray:
    """[n] int16 of [n] float32 in -1 ... 1; louder is clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def npy_bytes(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def flac_bytes(pcm: np.ndarray) -> bytes:
    """A FLAC file, mono, 16 bit, STORED_RATE, of [n] int16."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, pcm, STORED_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def jpg_bytes(image: np.ndarray) -> bytes:
    """A JPEG of [h, w, 3] uint8 BGR."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def json_bytes(facts: Mapping[str, Any]) -> bytes:
    """JSON in ASCII with sorted keys."""
    return json.dumps(facts, sort_keys=True, allow_nan=False).encode("ascii")
