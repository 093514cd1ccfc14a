"""Videos made on the spot: what `xstreamer demo` curates and what tests need a talking head for.

Speech comes with the package (`demo_media`), the face is `pipelines.puppet`'s. Everything is deterministic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib import resources
from pathlib import Path

import av
import cv2
import numpy as np

from curation.film import Coding, write_film
from manifests.errors import UsageError
from models.clock import FPS, STORED_RATE
from pipelines.puppet import talking_head

__all__ = [
    "DEMO", "SIZE", "Scene", "make_demo", "make_video", "scene_frames", "scene_sound", "speech", "speeches",
    "talking_head", "transcript", "write_video",
]  # fmt: skip

SIZE = 512
"""Side of the demo's pictures, px."""
ROOM = 10 ** (-66 / 20)
"""RMS of the quiet room that every scene has; digital silence is rare in recordings."""
CODECS = {
    ".mp4": ("libx264", "aac"), ".mov": ("libx264", "aac"), ".mkv": ("libx264", "aac"), ".ts": ("libx264", "aac"),
    ".webm": ("libvpx-vp9", "libopus"), ".avi": ("mpeg4", "libmp3lame"),
}  # fmt: skip
"""Video and audio codec by the file's extension."""
SPEED = {
    "libx264": {"preset": "superfast", "crf": "21"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"},
    "mpeg4": {"qscale": "3"},
}
"""Options of the encoders: fast, and too fine for their losses to show in a measure."""


@dataclass(frozen=True)
class Scene:
    """One shot of a talking head.

    speech: what the mouth says (a name in `speeches`), None for a silent face. seconds: length, in whole
    frames; the speech is cut there or followed by quiet. heard: what is heard instead of `speech`.
    lag_frames: the sound is that many 25 fps frames late. caption: text laid over the picture.
    seed: head, blinks and noises. people: 1, or 2 side by side, of whom the left one speaks.
    noise_snr_db: noise added, so far under the speech. blur: sigma, px of the picture.
    mirrored, gains: the picture flipped, its red, green and blue multiplied, so that shots differ.
    """

    speech: str | None = "speech_en_1"
    seconds: float = 8.0
    heard: str | None = None
    lag_frames: int = 0
    caption: str | None = None
    seed: int = 0
    people: int = 1
    noise_snr_db: float | None = None
    blur: float | None = None
    mirrored: bool = False
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def frames(self) -> int:
        return round(self.seconds * FPS)


def speeches() -> tuple[str, ...]:
    """Names of the recorded speeches."""
    return tuple(_transcripts())


def transcript(name: str) -> str:
    """The words of speech `name`. Raises UsageError when there is none of that name."""
    if name not in _transcripts():
        raise UsageError(f"no speech is called {name!r}; there are: {', '.join(speeches())}")
    return _transcripts()[name]


def speech(name: str) -> tuple[np.ndarray, int]:
    """([n] float32 in -1 ... 1, rate in Hz) of speech `name`. Raises UsageError when there is none."""
    transcript(name)
    return _decoded(name).copy(), STORED_RATE


def scene_sound(scene: Scene) -> np.ndarray:
    """[n] float32 at 22,050 Hz: what is heard in `scene`, exactly as long as its frames."""
    heard = scene.heard or scene.speech
    length = round(scene.frames * STORED_RATE / FPS)
    spoken = _placed(heard, round(scene.lag_frames * STORED_RATE / FPS), length)
    noise = _pink(length, scene.seed)
    level = ROOM
    if scene.noise_snr_db is not None and heard:
        voiced = np.abs(spoken) > 0.02 * np.abs(spoken).max()
        level = float(np.sqrt(np.mean(spoken[voiced] ** 2))) * 10 ** (-scene.noise_snr_db / 20)
    return np.clip(spoken + level * noise, -1, 1).astype(np.float32)


def scene_frames(scene: Scene, *, size: int = SIZE) -> Iterator[np.ndarray]:
    """[size, size, 3] uint8 RGB frames of `scene` at 25 fps. Raises UsageError for other than 1 or 2 people."""
    if scene.people not in (1, 2):
        raise UsageError(f"a scene has 1 or 2 people, not {scene.people}")
    said = _placed(scene.speech, 0, round(scene.frames * STORED_RATE / FPS))
    shown = _duo(said, scene, size) if scene.people == 2 else _solo(said, scene, size)
    table = np.clip(np.arange(256)[:, None] * np.array(scene.gains), 0, 255).astype(np.uint8)[:, None]
    caption = _caption(scene.caption, size) if scene.caption else None
    for frame in shown:
        frame = cv2.flip(frame, 1) if scene.mirrored else frame
        if scene.gains != (1.0, 1.0, 1.0):
            frame = cv2.LUT(frame, table)
        if scene.blur:
            frame = cv2.GaussianBlur(frame, (0, 0), scene.blur)
        if caption is not None:
            colour, alpha = caption
            frame = np.round(frame + alpha * (colour - frame)).astype(np.uint8)
        yield frame


def make_video(path: Path | str, scenes: Iterable[Scene], *, size: int = SIZE) -> Path:
    """Writes `scenes` to `path`, one after another with hard cuts; `write_video` says in what format."""
    scenes = list(scenes)
    samples = np.concatenate([scene_sound(scene) for scene in scenes])
    frames = (frame for scene in scenes for frame in scene_frames(scene, size=size))
    return write_video(path, frames, samples, STORED_RATE)


def write_video(
    path: Path | str, frames: Iterable[np.ndarray], samples: np.ndarray | None, rate: int, *, fps: int | Fraction = FPS
) -> Path:
    """Writes [h, w, 3] uint8 RGB `frames` (even sides) and `samples` ([n] float32 at `rate` Hz; None: no
    sound) to `path`, sample 0 at frame 0. The extension chooses container and codecs (`CODECS`).

    One thread, so that the same input gives the same bytes. Raises UsageError for another extension.
    """
    path = Path(path)
    if path.suffix not in CODECS:
        raise UsageError(f"cannot write {path.name!r}; the extension must be one of {', '.join(CODECS)}")
    video, audio = CODECS[path.suffix]
    write_film(path, frames, samples, rate, Coding(video, audio, options=SPEED[video]), fps=fps)
    return path


_WARM, _COOL = (1.06, 0.98, 0.86), (0.87, 0.96, 1.06)
DEMO: dict[str, tuple[Scene, ...]] = {
    "interview.mp4": (
        Scene("speech_en_1", 11.2),
        Scene("speech_en_2", 6.4, caption="SUBSCRIBE FOR MORE", seed=1, mirrored=True, gains=_WARM),
        Scene("speech_en_3", 12.4, seed=2, gains=_COOL),
    ),
    "late_sound.mp4": (Scene("speech_en_4", 10.4, lag_frames=4, seed=3, mirrored=True, noise_snr_db=25.0),),
    "wrong_sound.mp4": (Scene("speech_en_1", 9.6, heard="speech_en_2", seed=4, gains=_WARM),),
    "silent.mp4": (Scene(None, 6.0, seed=5, mirrored=True),),
    "two_people.mp4": (Scene("speech_en_3", 6.0, seed=6, people=2),),
    "out_of_focus.mp4": (Scene("speech_en_2", 6.0, seed=7, blur=5.0, gains=_COOL),),
    "damaged.mp4": (Scene("speech_en_4", 2.0, seed=8),),
}
"""The demo's sources: what should be kept, and one of each kind that should not."""


def make_demo(folder: Path | str, *, size: int = SIZE) -> list[Path]:
    """Writes the sources of `DEMO` (about a minute of video) into `folder`; the damaged one is cut in half."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [make_video(folder / name, scenes, size=size) for name, scenes in DEMO.items()]
    damaged = folder / "damaged.mp4"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    return paths


def make_call(folder: Path | str, *, size: int = SIZE) -> tuple[Path, Path]:
    """Writes what `stream` takes into `folder`: portrait.png, the photograph at rest, and speech.flac, a minute in which
    all speeches are said one after the other, with pauses."""
    import soundfile

    portrait, minute = Path(folder) / "portrait.png", Path(folder) / "speech.flac"
    still = next(talking_head(np.zeros(STORED_RATE, np.float32), STORED_RATE, frames=1, size=size, noise=0.0))
    sound = np.zeros(60 * STORED_RATE, np.float32)
    apart = len(sound) // len(speeches())
    for place, name in enumerate(speeches()):
        said = speech(name)[0]
        sound[place * apart : place * apart + len(said)] = said
    partial = portrait.with_name(".tmp-portrait.png"), minute.with_name(".tmp-speech.flac")
    cv2.imwrite(str(partial[0]), cv2.cvtColor(still, cv2.COLOR_RGB2BGR))
    soundfile.write(partial[1], sound, STORED_RATE, format="FLAC", subtype="PCM_16")
    for made, wanted in zip(partial, (portrait, minute), strict=True):
        made.replace(wanted)
    return portrait, minute


def _solo(said: np.ndarray, scene: Scene, size: int) -> Iterator[np.ndarray]:
    return talking_head(said, STORED_RATE, frames=scene.frames, size=size, seed=scene.seed)


def _duo(said: np.ndarray, scene: Scene, size: int) -> Iterator[np.ndarray]:
    """Two faces side by side as in a call: the left one speaks, the right one listens."""
    side, half = round(size * 0.36) * 2, size // 2
    top, left = (size - side) // 2, (side - half) // 2
    speaker = _solo(said, scene, side)
    listener = _solo(np.zeros_like(said), replace(scene, seed=scene.seed + 1000), side)
    for one, two in zip(speaker, listener, strict=True):
        frame = np.full((size, size, 3), 16, np.uint8)
        frame[top : top + side, :half] = one[:, left : left + half]
        frame[top : top + side, half : 2 * half] = cv2.flip(two, 1)[:, left : left + half]
        yield frame


def _caption(text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(colour [size, size, 3], opacity [size, size, 1], float32) of `text` in a box near the lower edge."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size / 14)
    image = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(image)
    place = (size / 2, size * 0.9)
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor="mm")
    edge = size / 64
    draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), fill=(200, 20, 30, 255))
    draw.text(place, text, font=font, anchor="mm", fill=(255, 255, 255, 255))
    found = np.asarray(image, np.float32)
    return found[..., :3], found[..., 3:] / 255


def _placed(name: str | None, delay: int, length: int) -> np.ndarray:
    """[length] float32: speech `name` (None: silence) from sample `delay` on."""
    out = np.zeros(length, np.float32)
    if name is not None:
        samples = speech(name)[0][max(0, -delay) :]
        start = max(0, delay)
        part = samples[: max(0, length - start)]
        out[start : start + len(part)] = part
    return out


def _pink(length: int, seed: int) -> np.ndarray:
    """[length] float32 noise of unit RMS with as much power in each octave, as rooms and fans have."""
    if not length:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(np.random.default_rng((seed, 4)).standard_normal(length))
    spectrum[1:] /= np.sqrt(np.fft.rfftfreq(length, 1 / STORED_RATE)[1:] + 20.0)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, length)
    return (noise / np.sqrt(np.mean(noise**2) + 1e-20)).astype(np.float32)


@cache
def _transcripts() -> dict[str, str]:
    text = resources.files("pipelines.demo_media").joinpath("speech.json").read_text(encoding="utf-8")
    return {name.removesuffix(".flac"): words for name, words in json.loads(text).items()}


@cache
def _decoded(name: str) -> np.ndarray:
    with resources.as_file(resources.files("pipelines.demo_media") / f"{name}.flac") as path:
        with av.open(str(path)) as container:
            blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(blocks).astype(np.float32) / 32768
