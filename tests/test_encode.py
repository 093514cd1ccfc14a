"""The encode stage: every frame and every sample exists, sound and picture meet, the same clip gives the same bytes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given
from hypothesis import strategies as st
from made import number_of, numbered, write_movie

from curation.audio import Audio
from curation.clip import Clip
from curation.denoise import MARGIN_S, SpectralGate
from curation.encode import BundledEncode, reference_frames, shifted, window
from curation.media import probe
from curation.stage import Result, Unmeasured, fingerprint
from models.clock import STORED_RATE, frames_of, samples_of
from models.speech_codec import FsqMel, log_mel
from models.text_codec import WhisperBpe
from models.video_codec import Dct3d

STAGE = BundledEncode()
KEY = "0123456789abcdef-000000000-000004000"


def hiss(seconds: float, seed: int = 0) -> np.ndarray:
    """[n] float32 at STORED_RATE that is like itself nowhere else: noise in syllables of random loudness."""
    rng = np.random.default_rng(seed)
    count = round(seconds * STORED_RATE)
    loud = np.repeat(rng.uniform(0, 0.2, count // 2000 + 1), 2000)[:count]
    return np.clip(rng.normal(0, 1, count) * loud, -0.9, 0.9).astype(np.float32)


def movie(path: Path, frames: int, sound: np.ndarray | None, size: tuple[int, int] = (64, 64)) -> Path:
    """A video whose frames tell their number, with lossless sound."""
    pictures = (numbered(index % 256, size) for index in range(frames))
    return write_movie(path, pictures, audio=sound, rate=STORED_RATE, audio_codec="pcm_s16le")


def opened(path: Path, start: float = 0.0, end: float | None = None, *, noisy: bool = True, **row: Any) -> Clip:
    """The clip as the encode stage meets it: a crop over the whole picture; the sound as it is in the file,
    with the margins of `denoise`, or denoised when not `noisy`."""
    info = probe(str(path))
    end = round(info.duration_s * 25) / 25 if end is None else end
    side = float(min(info.width, info.height))
    crop = {"crop_x": 0.0, "crop_y": 0.0, "crop_side": side, "source_id": KEY[:16]}
    clip = Clip(KEY, str(path), info, start, end, row={**crop, "transcript": "", **row})
    clip.stages = {"denoise": SpectralGate()}
    if noisy:
        clip.record("denoise", {}, None, clip.audio(STORED_RATE, -MARGIN_S, clip.seconds + MARGIN_S))
    return clip


def array(result: Result, name: str) -> np.ndarray:
    found: np.ndarray = np.load(io.BytesIO(result.files[name]), allow_pickle=False)
    return found


def stored(result: Result) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(result.files["flac"]), dtype="float32")
    assert rate == STORED_RATE and samples.ndim == 1
    return samples


def facts(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.files["json"])
    return found


spans = st.tuples(st.integers(-12_000, 30_000), st.integers(0, 100_000)).map(lambda s: range(s[0], s[0] + s[1]))


class TestWindow:
    @given(st.integers(0, 90), st.integers(-15, 15), spans)
    def test_everything_exists_and_nothing_longer_does(self, frames: int, lag: int, sound: range) -> None:
        def fits(first: int, chunks: int) -> bool:
            begin = (first + 1 + lag) * 882
            shown = first >= 0 and first + frames_of(chunks) <= frames
            return shown and sound.start <= begin and begin + samples_of(chunks, STORED_RATE) <= sound.stop

        first, chunks = window(frames, lag, sound)
        assert chunks == 0 or fits(first, chunks)
        assert not any(fits(other, chunks + 1) for other in range(frames))
        assert not any(fits(other, chunks) for other in range(first)) or chunks == 0

    @given(st.integers(9, 1600), st.integers(-12, 11))
    def test_a_margin_of_half_a_second_pays_for_the_correction(self, frames: int, lag: int) -> None:
        margin = round(MARGIN_S * STORED_RATE)
        sound = range(-margin, frames * 882 + margin)
        assert window(frames, lag, sound) == (0, (frames - 1) // 8)

    @given(st.integers(1, 200), st.integers(-15, 15), st.integers(1, 20))
    def test_sound_that_begins_late_moves_the_first_frame(self, late: int, lag: int, chunks: int) -> None:
        assume(late - 1 - lag >= 0)
        sound = range(late * 882 - 300, 1 << 30)
        assert window(late - lag + 8 * chunks, lag, sound) == (late - 1 - lag, chunks)

    @given(st.integers(1, 2000))
    def test_references_are_spread_over_the_sample(self, count: int) -> None:
        found = reference_frames(count)
        assert len(found) == 4 and found == sorted(found) and found[0] >= 0 and found[-1] < count
        assert all(abs(at - (part + 0.5) * count / 4) <= 1 for part, at in enumerate(found))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """4.4 s whose frames tell their number, and its sound."""
    sound = hiss(4.4)
    return movie(tmp_path_factory.mktemp("film") / "film.mov", 110, sound), sound


class TestAlignment:
    @pytest.mark.parametrize("offset", [None, 0, -5, 7])
    @pytest.mark.parametrize("start, end", [(0.0, 4.4), (1.0, 3.6)])
    def test_sound_and_picture_meet(
        self, film: tuple[Path, np.ndarray], start: float, end: float, offset: int | None
    ) -> None:
        path, sound = film
        result = STAGE.measure(opened(path, start, end, sync_offset_frames=offset))
        chunks = facts(result)["chunks"]
        pictures = Dct3d().decode(array(result, "latents.npy")[:1])
        first = number_of(pictures[0])
        assert facts(result)["start_s"] == first / 25
        lag = -(offset or 0)
        begin = (first + 1 + lag) * 882
        assert facts(result)["audio_start_s"] == pytest.approx(begin / STORED_RATE, abs=1e-6)
        there, heard = sound[begin : begin + samples_of(chunks, STORED_RATE)], stored(result)
        assert there.shape == heard.shape
        correlation = [np.dot(np.roll(heard, shift), there) for shift in range(-50, 51)]
        assert int(np.argmax(correlation)) == 50
        assert np.corrcoef(heard, there)[0, 1] > 0.999

    def test_it_takes_all_that_the_offset_leaves(self, film: tuple[Path, np.ndarray]) -> None:
        whole = STAGE.measure(opened(film[0])).measures["sample_chunks"]
        assert whole == 13  # 110 frames: 8 * 13 + 1 = 105
        late = STAGE.measure(opened(film[0], sync_offset_frames=-15))  # sound ends 15 frames early
        assert late.measures["sample_chunks"] == (110 - 1 - 15) // 8
        early = STAGE.measure(opened(film[0], sync_offset_frames=15))  # the first frame with sound is the 16th
        assert facts(early)["start_s"] == 14 / 25

    def test_the_references_are_their_frames(self, film: tuple[Path, np.ndarray]) -> None:
        result = STAGE.measure(opened(film[0]))
        reference = array(result, "reference.npy")
        shown = [number_of(Dct3d().decode(latent[None])[0]) for latent in reference]
        assert shown == reference_frames(105)

    def test_a_start_between_frames_of_the_grid(self, film: tuple[Path, np.ndarray]) -> None:
        path, sound = film
        result = STAGE.measure(opened(path, 1.013, 3.6))
        begin = 26 * 882
        assert number_of(Dct3d().decode(array(result, "latents.npy")[:1])[0]) == 25
        assert np.corrcoef(stored(result), sound[begin : begin + len(stored(result))])[0, 1] > 0.999


class TestSample:
    def test_members_have_the_shapes_of_the_design(self, film: tuple[Path, np.ndarray]) -> None:
        clip = opened(film[0], transcript="hello there")
        clip.facts = {"licence": "CC-BY", "identity": "zoë"}
        result = STAGE.measure(clip)
        chunks = facts(result)["chunks"]
        assert set(result.files) == {"json", "text.npy", "speech.npy", "latents.npy", "reference.npy", "flac", "jpg"}
        latents, reference = array(result, "latents.npy"), array(result, "reference.npy")
        assert (latents.shape, latents.dtype) == ((1 + chunks, 128, 8, 8), np.float16)
        assert (reference.shape, reference.dtype) == ((4, 128, 8, 8), np.float16)
        speech, text = array(result, "speech.npy"), array(result, "text.npy")
        assert (speech.shape, speech.dtype, text.dtype) == ((4 * chunks,), np.int32, np.int32)
        assert len(stored(result)) == samples_of(chunks, STORED_RATE)
        assert np.array_equal(speech, FsqMel().encode(stored(result), STORED_RATE))  # made of what is stored
        assert set(result.measures) == set(STAGE.measures) and result.measures["sample_tar"] is None
        assert result.measures["sample_bytes"] == sum(map(len, result.files.values()))
        assert result.measures["sample_text_tokens"] == len(text) == facts(result)["text_tokens"]
        assert facts(result)["licence"] == "CC-BY" and result.files["json"].isascii()
        assert result.files["json"] == json.dumps(facts(result), sort_keys=True).encode()
        assert result.measures["sample_chunks"] == chunks and facts(result)["sample_id"] == KEY

    def test_the_same_clip_gives_the_same_bytes(self, film: tuple[Path, np.ndarray]) -> None:
        one, two = (STAGE.measure(opened(film[0], 0.4, 3.0, sync_offset_frames=2)).files for _ in range(2))
        assert dict(one) == dict(two)

    def test_a_resumed_run_gives_the_same_bytes_of_a_large_picture(self, tmp_path: Path) -> None:
        pictures = (np.random.default_rng(i).integers(0, 255, (48, 80, 3), np.uint8) for i in range(18))
        large = (np.repeat(np.repeat(p, 15, axis=0), 16, axis=1) for p in pictures)  # 720 x 1280
        path = write_movie(tmp_path / "large.mov", large, audio=hiss(0.72), rate=STORED_RATE, audio_codec="pcm_s16le")
        first_run = opened(path)
        assert first_run.small.shape[2] == 640
        assert dict(STAGE.measure(first_run).files) == dict(STAGE.measure(opened(path)).files)

    def test_size_is_a_parameter_and_enters_the_fingerprint(self, film: tuple[Path, np.ndarray]) -> None:
        small = dataclasses.replace(STAGE, size=64)
        assert array(small.measure(opened(film[0], 0, 1)), "latents.npy").shape == (4, 128, 2, 2)
        upstream = dict.fromkeys(STAGE.reads, "x")
        assert fingerprint(small, upstream) != fingerprint(STAGE, upstream)
        assert all(codec.fingerprint() in STAGE.revision() for codec in (Dct3d(), FsqMel(), WhisperBpe()))

    def test_no_face_no_sound_no_chunk(self, film: tuple[Path, np.ndarray], tmp_path: Path) -> None:
        with pytest.raises(Unmeasured, match="no face"):
            STAGE.measure(opened(film[0], crop_side=None))
        with pytest.raises(Unmeasured, match="less than one chunk"):
            STAGE.measure(opened(film[0], 0.0, 0.32))  # 8 frames
        assert STAGE.measure(opened(film[0], 0.0, 0.36)).measures["sample_chunks"] == 1
        clip = opened(film[0])
        clip.record("denoise", {}, None, Audio(np.zeros(0, np.float32), STORED_RATE, -0.5))
        with pytest.raises(Unmeasured, match="less than one chunk"):
            STAGE.measure(clip)


class TestLongForm:
    def test_a_long_clip_is_never_held_whole(self, tmp_path: Path) -> None:
        path = movie(tmp_path / "long.mov", 620, hiss(24.8))
        clip = opened(path, 0.4, 24.4)
        result = STAGE.measure(clip)
        assert result.measures["sample_chunks"] == 74 and "frames" not in vars(clip)
        assert number_of(Dct3d().decode(array(result, "latents.npy")[:1])[0]) == 10

    def test_a_video_that_promised_two_frames_more(self, tmp_path: Path) -> None:
        path = movie(tmp_path / "short.mov", 520, hiss(24.0))
        clip = opened(path, 0.0, 20.88)  # 522 frames, of which 520 are there
        assert (clip.frame_count - 1) // 8 == 65 and (520 - 1) // 8 == 64
        assert STAGE.measure(clip).measures["sample_chunks"] == 64


class TestWords:
    words = (["one", 0.1, 0.3, 0.9], ["two", 1.0, 1.4, 0.8], ["three", 2.2, 2.6, 0.7])

    def test_words_are_told_in_the_time_of_the_stored_sound(self) -> None:
        assert shifted(self.words, 0.24, 1.0) == [["two", 0.76, 1.0, 0.8]]
        assert shifted(self.words, -0.16, 5.0)[0] == ["one", 0.26, 0.46, 0.9]

    def test_the_offset_is_part_of_the_time(self, film: tuple[Path, np.ndarray]) -> None:
        clip = opened(film[0], sync_offset_frames=-5, transcript="one two three")
        clip.evidence["transcribe"] = {"words": self.words}
        found = facts(STAGE.measure(clip))
        # the stored sound begins with frame 1, whose sound is 5 frames late: 0.24 s
        assert found["words"][0] == ["two", 0.76, 1.16, 0.8] and found["text"] == "two three"

    @pytest.mark.parametrize(
        "transcript, words, text",
        [
            ("One, two. Three!", [["One,", 0.5, 0.8], ["two.", 1.0, 1.4], ["Three!", 2.0, 2.5]], "One, two. Three!"),
            ("One two three", [["One", 0.5, 0.8], ["two", 1.0, 1.4], ["three", 4.9, 5.5]], "One two"),
            ("你好吗", [["你", 0.5, 0.8], ["好", 1.0, 1.4], ["吗", 4.9, 5.5]], "你好"),
            ("no times", [], "no times"),
            (None, [], ""),
        ],
    )
    def test_text_is_what_is_heard_in_the_sample(
        self, film: tuple[Path, np.ndarray], transcript: str | None, words: list[Any], text: str
    ) -> None:
        clip = opened(film[0], transcript=transcript)
        clip.evidence["transcribe"] = {"words": words}
        result = STAGE.measure(clip)
        assert facts(result)["text"] == text
        assert WhisperBpe().decode(array(result, "text.npy")) == text


def test_a_talking_head_survives_the_whole_way(tmp_path: Path) -> None:
    """Picture, sound and words of a speaking face, denoised and 4 frames late, back from the sample."""
    from pipelines.puppet import talking_head
    from pipelines.sample import speech

    said, rate = speech("speech_en_1")[:2]
    said = said[: 3 * rate]
    lag, late = 4, np.concatenate([np.zeros(4 * 882, np.float32), said])
    pictures = list(talking_head(said, rate, frames=75, size=256))
    path = write_movie(tmp_path / "head.mov", pictures, audio=late, rate=rate, audio_codec="pcm_s16le")
    result = STAGE.measure(opened(path, noisy=False, sync_offset_frames=-lag, transcript="Well, hello."))
    chunks = facts(result)["chunks"]
    assert chunks == 9

    shown = Dct3d().decode(array(result, "latents.npy"))
    truth = np.stack(pictures[: frames_of(chunks)])
    error = np.mean((shown.astype(np.float64) - truth) ** 2)
    assert 10 * np.log10(255**2 / error) > 23  # a sharp photograph with camera noise
    off = np.mean((shown[:-4].astype(np.float64) - truth[4:]) ** 2)
    assert error < off

    heard, should = stored(result), said[882 : 882 + samples_of(chunks, STORED_RATE)]
    correlation = [np.dot(np.roll(heard, shift), should) for shift in range(-882, 883)]
    assert int(np.argmax(correlation)) == 882

    made = FsqMel().decode(array(result, "speech.npy"))
    assert made.shape == heard.shape
    # against what was stored: what denoising changes is not the codec's doing
    before, after = log_mel(heard).mean(1), log_mel(made).mean(1)
    alike = [np.corrcoef(np.roll(after, shift), before)[0, 1] for shift in range(-7, 8)]
    assert int(np.argmax(alike)) == 7 and max(alike) > 0.9
    assert WhisperBpe().decode(array(result, "text.npy")) == "Well, hello."


def test_a_silent_face_is_not_moved_by_an_offset_that_is_chance(film: tuple[Path, np.ndarray]) -> None:
    silent = STAGE.measure(opened(film[0], sync_offset_frames=-5, speech_share=0.0))
    still = STAGE.measure(opened(film[0], sync_offset_frames=0))
    assert silent.files["flac"] == still.files["flac"]
    spoken = STAGE.measure(opened(film[0], sync_offset_frames=-5, speech_share=0.8))
    assert spoken.files["flac"] != still.files["flac"]
