"""What the Thinker's side gives to the Actor's: segments of 2.08 s, one after the other on the stream's clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.clock import SEGMENT_SPEECH_TOKENS, SEGMENT_TEXT_TOKENS

SEGMENT_TOKENS = SEGMENT_SPEECH_TOKENS + SEGMENT_TEXT_TOKENS
"""Hidden states of a segment at most; one whose text has run out has only its speech tokens'."""
SILENT = -1
"""The turn that silence belongs to."""
NOBODYS = np.full(SEGMENT_SPEECH_TOKENS, SILENT)
"""The turns of a segment of silence."""
NOBODYS.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Segment:
    """2.08 s of the stream. index: from 0 on, counted on the stream's clock, silence included. states: [n, H]
    float16, n <= SEGMENT_TOKENS, the Thinker's last hidden states, one a token. is_speech: [n] bool, a speech token
    (else text). ticks: [n] int64, when each token is, in speech tokens (0.08 s) from the stream's beginning.
    codes: [26] int32, the speech tokens that are heard. text: int32 ids of the text tokens. spoken: False: silence,
    on which the avatar idles. turns: [26] int64, whose each speech token is, the number of a turn or SILENT. After an
    interruption the segment in which it fell comes once more, under its index, new from there on.

    Raises ValueError when the lengths do not agree.
    """

    index: int
    states: np.ndarray
    is_speech: np.ndarray
    ticks: np.ndarray
    codes: np.ndarray
    text: np.ndarray
    spoken: bool = True
    turns: np.ndarray = field(default_factory=lambda: NOBODYS)

    def __post_init__(self) -> None:
        count = len(self.states)
        if self.states.ndim != 2 or not 0 < count <= SEGMENT_TOKENS:
            raise ValueError(f"states must be [1 to {SEGMENT_TOKENS}, H], not {list(self.states.shape)}")
        if not len(self.is_speech) == len(self.ticks) == count:
            raise ValueError(f"{count} states, but {len(self.is_speech)} kinds and {len(self.ticks)} ticks")
        if len(self.codes) > SEGMENT_SPEECH_TOKENS:
            raise ValueError(f"a segment has {SEGMENT_SPEECH_TOKENS} speech tokens, not {len(self.codes)}")
