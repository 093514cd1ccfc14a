"""The glossary: what a source, a clip, a measure and a stage run are, and their ids.

Column names here are the names everywhere: tables, rules, reports, command line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

FORMAT_VERSION = 2
"""Version of the dataset folder's layout."""

STAGES = (
    "scenes", "speech", "speakers", "sync", "quality", "duplicates", "overlay", "denoise", "transcribe", "encode",
    "preview",
)  # fmt: skip
"""The funnel, in the order in which a clip passes it (the paper, A.1), and what people look at it by."""
CLIP_STAGES = STAGES[1:]
"""Stages that measure a clip; `scenes` measures a source."""
ALWAYS_MEASURED = ("speech", "speakers", "sync", "quality", "duplicates", "preview")
"""Cheap enough for every clip, and rejected ones are looked at too; the rest is skipped once a clip fails every
requested profile."""

STATUSES = ("ok", "unmeasured", "skipped", "failed")
"""What a stage run can end as: unmeasured = the method cannot know; skipped = the clip failed already."""


@dataclass(frozen=True)
class Column:
    """A column of a table. kind: one of KINDS; stage: who fills it ("" = geometry or bookkeeping)."""

    name: str
    kind: str
    stage: str
    doc: str


KINDS = ("string", "category", "bool", "int32", "int64", "float32", "float64", "list<float64>")
"""`category` is a string of few values (dictionary-encoded)."""


def _columns(stage: str, *rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(name, kind, stage, doc) for name, kind, doc in rows)


SOURCES: tuple[Column, ...] = _columns(
    "",
    ("uri", "string", "the key of a source row: its path, with #t=start,end where a list gives a span"),
    ("path", "string", "where the file is: an absolute path or an fsspec URL"),
    ("window_start_s", "float64", "look only from here on, s from the first frame, as given by the source list"),
    ("window_end_s", "float64", "look only to here"),
    ("box", "list<float64>", "look only inside x0, y0, x1, y1: px, or shares of the picture when all are <= 1"),
    ("source_id", "string", "hash of the content; duplicates share it"),
    ("order", "int64", "place in the list of sources; of equal contents the first is canonical"),
    ("bytes", "int64", "size of the file"),
    ("stamp", "string", "mtime or etag when it was hashed; unchanged means not hashed again"),
    ("status", "category", "ok | failed | duplicate; pending until it was read"),
    ("error", "string", "one line, where it failed"),
    ("duplicate_of", "string", "uri of the canonical file with the same content"),
    ("container", "category", "container format"),
    ("duration_s", "float64", "seconds of video"),
    ("start_pts_s", "float64", "absolute presentation time of the first frame, s; every other time counts from it"),
    ("width", "int32", "px, as displayed"),
    ("height", "int32", "px, as displayed"),
    ("rotation", "int32", "degrees, applied"),
    ("pixel_aspect", "float64", "width of a stored pixel over its height, applied"),
    ("fps", "float64", "average frame rate as stored"),
    ("video_codec", "category", "video codec"),
    ("audio_codec", "category", "audio codec, null without an audio stream"),
    ("audio_rate", "int32", "Hz, null without an audio stream"),
    ("licence", "category", "as given by the source list"),
    ("language", "category", "as given by the source list"),
    ("origin", "string", "where it was taken from, as given by the source list"),
    ("identity", "string", "who is seen, as given by the source list; train and validation never share one"),
    ("scenes_fingerprint", "category", "fingerprint of the scenes stage that cut it"),
) + _columns(
    "scenes",
    ("cuts", "list<float64>", "shot boundaries, s from the first frame"),
)

GEOMETRY: tuple[Column, ...] = _columns(
    "",
    ("clip_id", "string", "source id + start and end in ms; the key of a clip row"),
    ("source_id", "string", "the source's id"),
    ("uri", "string", "the canonical source"),
    ("scene", "int32", "number of the scene in the source"),
    ("start_s", "float64", "s from the first frame of the source"),
    ("end_s", "float64", "s from the first frame of the source"),
    ("duration_s", "float32", "s"),
)

MEASURES: tuple[Column, ...] = (
    *_columns(
        "speech",
        ("audio_present", "bool", "the clip has sound above digital silence"),
        ("speech_share", "float32", "share of the clip in which a voice is active, 0-1"),
    ),
    *_columns(
        "speakers",
        ("speaker_count", "int32", "largest number of people seen at once for at least a moment"),
        ("face_coverage", "float32", "share of the clip in which the main face is tracked, 0-1"),
        ("face_size_px", "float32", "median of the longer side of the main face, px of the source"),
        ("face_identity_switches", "int32", "changes of identity inside the main track; null where not told"),
        ("face_x", "float32", "left edge of the main face's median box, px of the source"),
        ("face_y", "float32", "top edge"),
        ("face_w", "float32", "width"),
        ("face_h", "float32", "height"),
        ("crop_x", "float32", "left edge of the fixed head-portrait square, px of the source"),
        ("crop_y", "float32", "top edge"),
        ("crop_side", "float32", "side of the square"),
    ),
    *_columns(
        "sync",
        ("sync_confidence", "float32", "audio-visual agreement, in the units of the backend"),
        ("sync_offset_frames", "int32", "before correction, 25 fps frames; audio late by k frames is -k (SyncNet)"),
        ("sync_residual_frames", "int32", "the offset measured again after the correction"),
        ("sync_residual_confidence", "float32", "the confidence measured again after the correction"),
    ),
    *_columns(
        "quality",
        ("quality_score", "float32", "learned image quality, 0-100, higher is better"),
        ("quality_piqe", "float32", "PIQE of the 256-px face crop, 0-100, lower is better"),
        ("quality_sharpness", "float32", "sharpness of the 256-px face crop, higher is sharper"),
        ("quality_resolution", "float32", "effective resolution of the face crop, px of real detail a side"),
    ),
    *_columns(
        "duplicates",
        ("near_hash", "string", "64-bit perceptual hash over the clip, 16 hex digits"),
        ("near_duplicate_of", "string", "an earlier clip that looks alike; reported, no reject by default"),
    ),
    *_columns(
        "overlay",
        ("overlay_text_count", "int32", "texts laid over the picture"),
        ("overlay_area", "float32", "share of the picture that they cover at most, 0-1"),
        ("overlay_seconds", "float32", "how long any of them shows, s"),
        ("overlay_text", "string", "the words, one text a line"),
    ),
    *_columns(
        "denoise",
        ("noise_snr_db", "float32", "speech over background noise before denoising, dB"),
        ("noise_removed_db", "float32", "how much the background fell, dB"),
    ),
    *_columns(
        "transcribe",
        ("transcript", "string", "the words"),
        ("word_count", "int32", "words"),
        ("asr_confidence", "float32", "mean confidence of the words, 0-1"),
        ("spoken_language", "category", "ISO 639-1; null where the backend cannot tell"),
    ),
    *_columns(
        "encode",
        ("sample_tar", "string", "file under samples/ that holds the encoded sample"),
        ("sample_chunks", "int32", "k: the sample has 8k+1 frames and 4k speech tokens"),
        ("sample_text_tokens", "int32", "text tokens"),
        ("sample_bytes", "int64", "bytes of its members"),
    ),
    *_columns(
        "preview",
        ("preview_tar", "string", "file under previews/ that holds the clip's film (mp4) and film strip (jpg)"),
        ("preview_bytes", "int64", "bytes of both"),
    ),
)
"""Every measure. All backends of a stage fill the same columns, null for what they do not measure."""

CLIPS: tuple[Column, ...] = (
    *GEOMETRY,
    *MEASURES,
    *(
        column
        for stage in CLIP_STAGES
        for column in _columns(
            stage,
            (f"{stage}_status", "category", "ok | unmeasured | skipped | failed, null before it ran"),
            (f"{stage}_backend", "category", "the backend that measured"),
        )
    ),
)

RUNS: tuple[Column, ...] = _columns(
    "",
    ("clip_id", "string", "the clip; a source id for the scenes stage"),
    ("stage", "category", "the stage"),
    ("fingerprint", "category", "of the stage as it ran"),
    ("status", "category", "ok | unmeasured | skipped | failed"),
    ("seconds", "float32", "wall time"),
    ("media_seconds", "float32", "of which reading and scaling picture and sound; the first stage that asks pays"),
    ("error", "string", "why it failed or could not measure, one line"),
    ("evidence", "string", "JSON for people and resumed runs: face track, sync curve, words with times"),
)

SAMPLES: tuple[Column, ...] = _columns(
    "",
    ("sample_id", "string", "the clip id, or source id + start and end of a long-form sample"),
    ("source_id", "string", "the source's id"),
    ("clip_ids", "string", "the clips it holds, separated by spaces"),
    ("start_s", "float64", "time of latent 0, s from the first frame of the source"),
    ("tar", "string", "file under samples/"),
    ("chunks", "int32", "k: 8k+1 frames, 4k speech tokens"),
    ("text_tokens", "int32", "text tokens"),
    ("bytes", "int64", "bytes of its members"),
    ("digest", "string", "SHA-256 over the members, names and contents"),
    ("fingerprint", "category", "of the encode stage and of what it read"),
)


def measures_of(stage: str) -> tuple[str, ...]:
    """Names of the measures that backends of `stage` fill."""
    return tuple(column.name for column in MEASURES if column.stage == stage)


_ID = re.compile(r"^[0-9a-f]{16}$")


def source_id(digest: str) -> str:
    """Id of a source from the SHA-256 of its content (hex): the first 16 digits, no dots."""
    found = digest[:16].lower()
    if not _ID.match(found):
        raise ValueError(f"not a SHA-256 in hex: {digest!r}")
    return found


def clip_id(source: str, start_s: float, end_s: float) -> str:
    """Id of a span: source id, start and end in ms, zero-padded so that ids sort by time."""
    return f"{source}-{round(start_s * 1000):09d}-{round(end_s * 1000):09d}"


def file_digest(chunks: Iterable[bytes]) -> str:
    """SHA-256 in hex of a file that comes in pieces."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
