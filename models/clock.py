"""The clock that speech tokens, text tokens, chunks and frames share (the paper, section 3; our 3 of DESIGN).

Video runs at 25 fps and a chunk is 8 frames, 0.32 s, exactly 4 speech tokens of 12.5 Hz. A segment is
26 speech and 13 text tokens, 2.08 s, 6.5 chunks. Latent 0 is one frame; chunk c (from 0) covers frames
8c+1 ... 8c+8; stored audio and speech tokens begin at frame 1.
"""

from __future__ import annotations

from typing import Any

FPS = 25
CHUNK_FRAMES = 8
CHUNK_SECONDS = CHUNK_FRAMES / FPS
SPEECH_HZ = 12.5
CHUNK_SPEECH_TOKENS = 4
SEGMENT_SPEECH_TOKENS = 26
SEGMENT_TEXT_TOKENS = 13
SEGMENT_SECONDS = SEGMENT_SPEECH_TOKENS / SPEECH_HZ

ANALYSIS_RATE = 16_000
"""Sample rate (Hz) of the mono audio that models listen to."""
STORED_RATE = 22_050
"""Sample rate (Hz) of stored audio: GLM-4-Voice's vocoder rate; 1,764 samples a speech token."""

MIN_CLIP_CHUNKS = 15
MIN_CLIP_SECONDS = MIN_CLIP_CHUNKS * CHUNK_FRAMES / FPS
MAX_CLIP_SECONDS = 20.0
MAX_LONG_SECONDS = 60.0


def chunks_in(frames: int) -> int:
    """Whole chunks in a run of `frames` frames of which the first is latent 0."""
    return max(0, (frames - 1) // CHUNK_FRAMES)


def frames_of(chunks: int) -> int:
    """Frames of a sample of `chunks` chunks: 8k + 1."""
    return chunks * CHUNK_FRAMES + 1


def samples_of(chunks: int, rate: int) -> int:
    """Audio samples of `chunks` chunks at `rate` Hz; exact for 16,000, 22,050 and 44,100 Hz."""
    samples, rest = divmod(chunks * CHUNK_FRAMES * rate, FPS)
    if rest:
        raise ValueError(f"{rate} Hz does not divide into chunks of {CHUNK_SECONDS} s")
    return samples


def segments_of(chunk: Any) -> tuple[Any, Any]:
    """The first and last segment that a chunk overlaps: of an int, or of whole tensors of them."""
    first = chunk * CHUNK_SPEECH_TOKENS
    return first // SEGMENT_SPEECH_TOKENS, (first + CHUNK_SPEECH_TOKENS - 1) // SEGMENT_SPEECH_TOKENS
