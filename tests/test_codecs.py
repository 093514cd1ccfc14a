"""The bundled codecs: LTX's shapes and the first latent, tokens on the clock, exact text; and what survives."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.clock import SPEECH_HZ, STORED_RATE
from models.speech_codec import FsqMel, SpeechCodec, digits, log_mel
from models.text_codec import TextCodec, WhisperBpe
from models.video_codec import DETAIL, SHARED, TABLE, Dct3d, VideoCodec, _coefficients

VIDEO, SPEECH, TEXT = Dct3d(), FsqMel(), WhisperBpe()
TOKEN = round(STORED_RATE / SPEECH_HZ)


def noise_video(frames: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def face_video(frames: int) -> np.ndarray:
    """[frames, 256, 256, 3] uint8: a real face (skimage's astronaut) that sways by up to 4 px and breathes light."""
    from skimage import data

    picture = data.astronaut()
    out = []
    for index in range(frames):
        x, y = round(96 + 4 * np.sin(index / 6)), round(4 + 2 * np.sin(index / 9))
        light = 1 + 0.03 * np.sin(index / 5)
        out.append(np.clip(picture[y : y + 256, x : x + 256] * light, 0, 255).astype(np.uint8))
    return np.stack(out)


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - two) ** 2)))


def voice(seconds: float, rate: int = STORED_RATE) -> np.ndarray:
    """[n] float32: a gliding 120 Hz buzz through a moving formant, in syllables with hisses between."""
    from scipy.signal import butter, sosfilt

    t = np.arange(round(seconds * rate)) / rate
    buzz = np.sign(np.sin(2 * np.pi * (120 * t + np.sin(3 * t)))) * 0.3
    low = sosfilt(butter(2, [250, 900], "band", fs=rate, output="sos"), buzz)
    high = sosfilt(butter(2, [1200, 2500], "band", fs=rate, output="sos"), buzz)
    hiss = sosfilt(butter(4, 3500, "high", fs=rate, output="sos"), np.random.default_rng(1).normal(0, 0.05, len(t)))
    vowel = 0.5 + 0.5 * np.sin(2 * np.pi * 2 * t)
    syllable = (t * 2.5) % 1 < 0.6
    return np.where(syllable, vowel * low + (1 - vowel) * high, hiss * ((t * 2.5) % 1 < 0.8)).astype(np.float32)


def members(protocol: type) -> set[str]:
    named = [name for kind in protocol.__mro__[:-1] for name in (*vars(kind), *inspect.get_annotations(kind))]
    return {name for name in named if not name.startswith("_")}


@pytest.mark.parametrize("codec, protocol", [(VIDEO, VideoCodec), (SPEECH, SpeechCodec), (TEXT, TextCodec)])
def test_a_codec_has_what_its_protocol_names(codec: object, protocol: type) -> None:
    assert {"name", "encode", "decode", "fingerprint"} <= members(protocol)
    assert all(hasattr(codec, name) for name in members(protocol))
    assert codec.fingerprint() == type(codec)().fingerprint() and len(codec.fingerprint()) == 16  # type: ignore[attr-defined]


class TestVideo:
    def test_shapes_are_ltx(self) -> None:
        latents = VIDEO.encode(noise_video(17))
        assert latents.shape == (3, 128, 2, 3) and latents.dtype == np.float16
        assert VIDEO.decode(latents).shape == (17, 64, 96, 3)

    def test_a_portrait_alone_is_the_first_latent(self) -> None:
        frames = noise_video(17)
        assert np.array_equal(VIDEO.encode(frames[:1])[0], VIDEO.encode(frames)[0])

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 3), st.integers(0, 2**16))
    def test_encoding_is_causal_bit_for_bit(self, chunks: int, seed: int) -> None:
        frames = noise_video(33, 32, 32, seed)
        changed = frames.copy()
        changed[8 * chunks + 1 :] = 255 - changed[8 * chunks + 1 :]
        whole, other = VIDEO.encode(frames), VIDEO.encode(changed)
        assert np.array_equal(whole[: chunks + 1], other[: chunks + 1])
        assert all((a != b).any() for a, b in zip(whole[chunks + 1 :], other[chunks + 1 :], strict=True))

    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def test_streaming_equals_whole_bit_for_bit(self, pieces: list[int]) -> None:
        latents = VIDEO.encode(noise_video(1 + 8 * sum(pieces)))
        parts, at = [VIDEO.decode(latents[:1])], 1
        for piece in pieces:
            end = at + piece
            future = latents[end : end + 1] if end < len(latents) else None
            parts.append(VIDEO.decode(latents[at:end], first=False, past=latents[:at], future=future, start=at))
            at = end
        assert np.array_equal(np.concatenate(parts), VIDEO.decode(latents))

    def test_a_movement_has_no_step_from_chunk_to_chunk(self) -> None:
        """A picture that moves two pixels a frame; chunks decoded one by one show a step at every edge."""
        wide = face_video(1)[0]
        frames = np.stack([np.roll(wide, 2 * at, axis=1) for at in range(49)])
        latents = VIDEO.encode(frames)
        alone = [VIDEO.decode(latents[at : at + 1], first=not at) for at in range(len(latents))]
        ratios = []
        for video in (np.concatenate(alone), VIDEO.decode(latents)):
            change = np.abs(np.diff(video[8:-8].astype(float), axis=0)).mean((1, 2, 3))
            edge = np.arange(len(change)) % 8 == 0
            ratios.append(change[edge].mean() / change[~edge].mean())
        assert ratios[0] > 2 and ratios[1] < 1.5, ratios
        assert psnr(frames, VIDEO.decode(latents)) > psnr(frames, np.concatenate(alone))

    def test_what_is_decoded_is_what_the_latents_say(self) -> None:
        """Neighbours fill only what a latent leaves open."""
        latents = VIDEO.encode(face_video(33)).astype(np.float32)
        again = VIDEO.encode(VIDEO.decode(latents)).astype(np.float32)
        assert np.sqrt(np.mean((again - latents) ** 2)) < 0.06 * latents.std()  # pixels are rounded and clipped

    def test_flipped_views_encode_like_copies(self) -> None:
        bgr = noise_video(9)[..., ::-1]
        assert np.array_equal(VIDEO.encode(bgr), VIDEO.encode(bgr.copy()))

    @pytest.mark.parametrize("grey", [0, 77, 255])
    def test_a_flat_picture_survives_without_a_grid(self, grey: int) -> None:
        frames = np.full((9, 96, 96, 3), grey, np.uint8)
        assert np.abs(VIDEO.decode(VIDEO.encode(frames)).astype(int) - grey).max() <= 1

    def test_a_still_chunk_means_what_its_frame_means(self) -> None:
        latents = VIDEO.encode(np.repeat(face_video(1), 9, axis=0)).astype(np.float32)
        assert np.allclose(latents[0, :SHARED], latents[1, :SHARED], atol=0.02, rtol=0.01)
        assert np.abs(latents[1, SHARED:]).max() < 0.02  # nothing moves
        assert latents[0, SHARED:].std() > 0.2  # detail

    def test_a_face_survives(self) -> None:
        """This photograph is harder than video: alone it comes to 27.7 dB, in motion to 25.3; portraits from 35
        real clips to 27.5 ... 42 (mean 34.2), the clips themselves to 24.6 ... 35 (mean 30.4)."""
        frames = face_video(33)
        decoded = VIDEO.decode(VIDEO.encode(frames))
        assert psnr(frames[1:], decoded[1:]) > 25
        assert psnr(frames[:1], decoded[:1]) > psnr(frames[1:], decoded[1:])

    def test_a_mouth_can_be_read(self) -> None:
        from pipelines.puppet import talking_head
        from pipelines.sample import speech

        samples, rate = speech("speech_en_1")[:2]
        frames = np.stack(list(talking_head(samples, rate, frames=65, size=256)))
        decoded = VIDEO.decode(VIDEO.encode(frames))
        before, after = (video[:, 136:152, 116:144].astype(np.float32).mean((1, 2, 3)) for video in (frames, decoded))
        assert before.std() > 3  # it speaks
        assert np.corrcoef(before, after)[0, 1] > 0.9
        steps = np.corrcoef(np.diff(before), np.diff(after))[0, 1]
        assert steps > 0.65  # frame by frame; 0.72 here, 0.60 when the time axis gets no more than its energy

    def test_motion_inside_a_chunk_survives(self) -> None:
        frames = face_video(9)
        fade = np.linspace(0.6, 1.2, 9)[:, None, None, None]
        frames = np.clip(frames[:1] * fade, 0, 255).astype(np.uint8)
        decoded = VIDEO.decode(VIDEO.encode(frames))[1:].mean((1, 2, 3))
        assert np.allclose(decoded, frames[1:].mean((1, 2, 3)), atol=3)
        assert (np.diff(decoded) > 0).all()

    def test_colours_survive(self) -> None:
        frames = np.zeros((9, 64, 64, 3), np.uint8)
        frames[..., 0], frames[..., 1], frames[..., 2] = 200, 90, 40
        assert np.abs(VIDEO.decode(VIDEO.encode(frames)).astype(int) - [200, 90, 40]).max() <= 1

    def test_the_layout_holds_128_different_coefficients(self) -> None:
        chunk, detail = _coefficients(TABLE), _coefficients(DETAIL)
        still = [c for c in chunk if c.t == 0] + list(detail)
        for kind in (chunk, still):
            assert len({(c.plane, c.t, c.v, c.u) for c in kind}) == VIDEO.channels == len(kind)
        assert [c.t for c in chunk[:SHARED]] == [0] * SHARED and min(c.t for c in chunk[SHARED:]) == 1

    def test_faces_come_at_about_unit_variance(self) -> None:
        latents = VIDEO.encode(face_video(33)).astype(np.float32)
        assert 0.4 < latents.std() < 2.0

    @pytest.mark.parametrize(
        "frames",
        [
            noise_video(8),
            noise_video(9, 48, 64),
            noise_video(9).astype(np.float32),
            noise_video(9)[..., :2],
            noise_video(0),
        ],
    )
    def test_other_frames_are_refused(self, frames: np.ndarray) -> None:
        with pytest.raises(ValueError, match="frames must be"):
            VIDEO.encode(frames)

    def test_other_latents_are_refused(self) -> None:
        with pytest.raises(ValueError, match="latents must be"):
            VIDEO.decode(np.zeros((1, 64, 2, 2), np.float16))


class TestSpeech:
    @pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
    def test_a_chunk_is_four_tokens(self, rate: int) -> None:
        tokens = SPEECH.encode(voice(0.32 * 6, rate), rate)
        assert tokens.shape == (24,) and tokens.dtype == np.int32
        assert tokens.min() >= 0 and tokens.max() < SPEECH.codes == 4**7
        assert SPEECH.decode(tokens).shape == (24 * 1764,)

    def test_no_sound_is_no_token(self) -> None:
        assert len(SPEECH.encode(np.empty(0, np.float32), 22_050)) == 0
        assert len(SPEECH.decode(np.empty(0, np.int32))) == 0

    @pytest.mark.parametrize("samples", [1763, 1765])
    def test_part_of_a_token_is_refused(self, samples: int) -> None:
        with pytest.raises(ValueError, match="1764 a token"):
            SPEECH.encode(np.zeros(samples, np.float32), 22_050)

    def test_a_token_outside_is_refused(self) -> None:
        for bad in (-1, 4**7):
            with pytest.raises(ValueError, match=r"0 \.\.\. 16383"):
                SPEECH.decode(np.array([0, bad]))

    @given(st.lists(st.integers(0, 4**7 - 1), max_size=20))
    def test_digits_are_the_token(self, tokens: list[int]) -> None:
        found = digits(np.array(tokens, np.int32))
        assert found.shape == (len(tokens), 7)
        assert [int("".join(map(str, row)) or "0", 4) for row in found] == tokens

    @pytest.mark.parametrize("place", [1, 7, 11])
    def test_a_token_says_where_a_sound_is(self, place: int) -> None:
        sound = np.zeros(12 * TOKEN, np.float32)
        sound[place * TOKEN : (place + 1) * TOKEN] = voice(0.8)[2 * TOKEN : 3 * TOKEN]
        energy = digits(SPEECH.encode(sound, STORED_RATE))[:, 0]
        assert energy.argmax() == place and energy[place] >= 2
        assert all(energy[i] <= 1 for i in range(12) if abs(i - place) > 1)

    def test_silence_is_one_code_and_stays_silent(self) -> None:
        faint = np.random.default_rng(0).normal(0, 1e-4, 50 * TOKEN).astype(np.float32)  # -80 dBFS
        silence = SPEECH.encode(np.zeros(50 * TOKEN, np.float32), STORED_RATE)
        assert len(set(silence)) == 1
        assert np.array_equal(SPEECH.encode(faint, STORED_RATE), silence)
        assert np.sqrt(np.mean(SPEECH.decode(silence) ** 2)) < 0.005

    def test_loudness_hardly_matters(self) -> None:
        sound = voice(3.2)
        loud, soft = (digits(SPEECH.encode(sound * gain, STORED_RATE)) for gain in (1.0, 0.4))
        assert np.mean(loud != soft) < 0.05

    def test_the_rate_hardly_matters(self) -> None:
        one = digits(SPEECH.encode(voice(3.2, 44_100), 44_100))
        from scipy.signal import resample_poly

        two = digits(SPEECH.encode(resample_poly(voice(3.2, 44_100), 1, 2), 22_050))
        assert np.mean(one != two) < 0.05

    def test_what_is_decoded_sounds_alike_and_is_in_time(self) -> None:
        sound = voice(6.4)
        made = SPEECH.decode(SPEECH.encode(sound, STORED_RATE))
        assert made.shape == sound.shape and np.abs(made).max() <= 1
        before, after = log_mel(sound).mean(1), log_mel(made).mean(1)
        lags = [np.corrcoef(np.roll(after, lag), before)[0, 1] for lag in range(-10, 11)]
        assert abs(int(np.argmax(lags)) - 10) <= 1 and max(lags) > 0.85  # a frame is 11 ms
        tokens = SPEECH.encode(sound, STORED_RATE)
        wrong = SPEECH.decode(np.roll(tokens, 37))
        assert np.abs(log_mel(made) - log_mel(sound)).mean() < 0.7 * np.abs(log_mel(wrong) - log_mel(sound)).mean()

    def test_tokens_survive_decoding_better_than_chance(self) -> None:
        tokens = SPEECH.encode(voice(6.4), STORED_RATE)
        again = SPEECH.encode(SPEECH.decode(tokens), STORED_RATE)
        near = np.abs(digits(tokens) - digits(again)) <= 1
        assert near.mean() > 0.85

    def test_decoding_is_deterministic_and_windows_join(self) -> None:
        tokens = SPEECH.encode(voice(3.2), STORED_RATE)
        whole = SPEECH.decode(tokens)
        assert np.array_equal(whole, SPEECH.decode(tokens))
        part = SPEECH.decode(tokens[8:24], start=8)
        inside = slice(4 * TOKEN, 12 * TOKEN)
        error = part[inside] - whole[8 * TOKEN :][inside]
        assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(whole**2))


class TestText:
    @settings(deadline=None)
    @given(st.text())
    def test_any_text_survives(self, text: str) -> None:
        tokens = TEXT.encode(text)
        assert tokens.dtype == np.int32 and tokens.ndim == 1
        assert TEXT.decode(tokens) == text

    def test_no_special_token_ever(self) -> None:
        text = "<|endoftext|><|startoftranscript|> a"
        tokens = TEXT.encode(text)
        assert len(tokens) > 6 and TEXT.decode(tokens) == text

    def test_it_is_whispers(self) -> None:
        from whisper.tokenizer import get_tokenizer

        text = "We'll say: it's 25 °C, grüß Gott, 你好, здравствуйте!  \n twice"
        assert TEXT.encode(text).tolist() == get_tokenizer(True).encoding.encode_ordinary(text)

    def test_a_token_outside_is_refused(self) -> None:
        with pytest.raises(ValueError, match="text tokens are"):
            TEXT.decode(np.array([TEXT.codes]))

    def test_whisper_itself_is_not_imported(self) -> None:
        code = "import sys; from models.text_codec import WhisperBpe; WhisperBpe().encode('a'); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
        loaded = set(done.stdout.split())
        assert "models.text_codec" in loaded and not {"whisper", "torch", "numba"} & loaded
