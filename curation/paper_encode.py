"""The paper's codecs (section 4.1): LTX-Video's latents, GLM-4-Voice's speech and text tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from curation.encode import Encode
from models import glm_speech, glm_text
from models.glm_speech import GlmSpeech
from models.glm_text import GlmBpe
from models.ltx_video import VERSIONS, LtxVideo
from models.speech_codec import SpeechTokenizer
from models.text_codec import TextCodec
from models.thinker import GLM_4_VOICE
from models.video_codec import VideoCodec


@dataclass(frozen=True)
class PaperEncode(Encode):
    """Samples of the same members and shapes as `BundledEncode`'s, from the paper's models.

    device: where the nets run, as `models.device` takes it. ltx: version of LTX-Video's VAE, 0.9.0 or 0.9.5; their
    latents are not each other's. Raises UsageError for another version.
    """

    backend = "paper"

    thinker: str = field(default="", metadata={"choices": ("", GLM_4_VOICE)})
    device: str = "cpu"
    ltx: str = field(default=VERSIONS[0], metadata={"choices": VERSIONS})

    def __post_init__(self) -> None:
        super().__post_init__()
        LtxVideo(self.ltx)

    @property
    def video(self) -> VideoCodec:
        """As `Encode.video`."""
        return LtxVideo(self.ltx, self.device)

    @property
    def speech(self) -> SpeechTokenizer:
        """As `Encode.speech`."""
        return GlmSpeech(self.device)

    @property
    def text(self) -> TextCodec:
        """As `Encode.text`."""
        return GlmBpe()

    def weights(self) -> tuple[str, ...]:
        """As `Stage.weights`."""
        return (LtxVideo(self.ltx).weights, glm_speech.WEIGHTS, glm_text.WEIGHTS, *super().weights())
