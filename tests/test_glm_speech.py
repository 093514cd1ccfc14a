"""GLM-4-Voice's speech tokenizer: the official one's tokens, a stream that equals the whole, honest refusals.

tests/golden/glm_speech.npz is what the official code gives (github.com/THUDM/GLM-4-Voice, commit eb00ce9,
speech_tokenizer/, with transformers 4.44.1 and torch 2.15.0 on the CPU) for the weights of `makers.glm_speech`
(SMALL, loaded into WhisperVQEncoder) and for sound(9.6, seed=1), sound(33.6, seed=2), in one batch as
extract_speech_token makes it. tokens, states: of the first sound, states being what enters vector_quantize;
long_tokens: of the second, two segments; mel: every 40th frame of the first's WhisperFeatureExtractor features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import glm_speech as made
from makers import mirror

from manifests.errors import ModelError
from models.clock import STORED_RATE, samples_of
from models.glm_encoder import DYNAMIC_RANGE, log_mel, mel_bands, segment_states
from models.glm_speech import TOKEN_SAMPLES, WEIGHTS, GlmSpeech, GlmStream
from models.glm_speech_config import LOOKAHEAD

RATE = 16_000
GOLDEN = np.load(Path(__file__).parent / "golden" / "glm_speech.npz")
SHORT, LONG = made.sound(9.6, seed=1), made.sound(33.6, seed=2)
SPEECH = GlmSpeech()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glm_speech")
    mirror.unpublished(root, WEIGHTS)
    made.make(root / WEIGHTS)
    return root


@pytest.fixture(autouse=True)
def found(weights: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(weights))
        yield


class TestParity:
    def test_features(self) -> None:
        net = SPEECH.net()
        log = log_mel(net, SHORT, 0, len(SHORT))
        features = (log.clamp(min=float(log.max()) - DYNAMIC_RANGE) + 4) / 4
        assert np.abs(features[:, ::40].numpy() - GOLDEN["mel"]).max() < 1e-4

    def test_mel_bands_are_whispers(self) -> None:
        from transformers.audio_utils import mel_filter_bank

        for bins in (80, 128):
            theirs = mel_filter_bank(201, bins, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
            assert np.abs(mel_bands(bins) - theirs.T).max() < 1e-12

    def test_states_before_the_codebook(self) -> None:
        states = torch.cat(segment_states(SPEECH.net(), SHORT, causal=False)).numpy()
        assert states.shape == GOLDEN["states"].shape == (120, 32) and GOLDEN["states"].std() > 1
        assert np.abs(states - GOLDEN["states"]).max() < 1e-4

    def test_tokens(self) -> None:
        assert len(set(GOLDEN["tokens"].tolist())) > 30
        assert np.array_equal(SPEECH.encode(SHORT, RATE), GOLDEN["tokens"])

    def test_tokens_of_more_than_a_segment(self) -> None:
        assert np.array_equal(SPEECH.encode(LONG, RATE), GOLDEN["long_tokens"])


class TestEncode:
    @pytest.mark.parametrize("chunks", [0, 1, 15, 94])
    def test_four_tokens_a_chunk(self, chunks: int) -> None:
        tokens = SPEECH.encode(made.sound(chunks * 0.32 + 1)[: samples_of(chunks, RATE)], RATE)
        assert tokens.shape == (4 * chunks,) and tokens.dtype == np.int32
        assert not chunks or (tokens.min() >= 0 and tokens.max() < SPEECH.codes == 16384)

    def test_stored_sound_is_taken_at_its_own_rate(self) -> None:
        from scipy.signal import resample_poly

        sound = made.sound(6.4, seed=3) * 0.5
        stored = resample_poly(sound.astype(np.float64), 441, 320)[: samples_of(20, STORED_RATE)]
        tokens = SPEECH.encode(stored.astype(np.float32), STORED_RATE)
        assert np.mean(tokens == SPEECH.encode(sound, RATE)) > 0.5 > np.mean(tokens == SPEECH.encode(SHORT, RATE)[:80])

    def test_segments_stand_by_themselves(self) -> None:
        tail = SPEECH.encode(LONG[30 * RATE :], RATE)
        assert np.array_equal(SPEECH.encode(LONG, RATE)[375:], tail)
        other = np.concatenate([made.sound(30, seed=9), LONG[30 * RATE :]])
        assert np.array_equal(SPEECH.encode(other, RATE)[375:], tail)

    @pytest.mark.parametrize("shape", [(1000,), (1280, 2)])
    def test_sound_that_is_no_whole_tokens(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="a token"):
            SPEECH.encode(np.zeros(shape, np.float32), RATE)


class TestStream:
    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def test_any_pieces_give_what_the_whole_gives(self, data: st.DataObject) -> None:
        sound = LONG[: data.draw(st.integers(1, 420)) * TOKEN_SAMPLES]
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sound)), max_size=12)))
        stream = SPEECH.stream()
        tokens = [stream.push(piece) for piece in np.split(sound, cuts)]
        assert np.array_equal(np.concatenate([*tokens, stream.finish()]), SPEECH.encode(sound, RATE, causal=True))

    def test_tokens_come_with_closed_blocks_alone(self) -> None:
        stream, block = SPEECH.stream(), 4 * RATE
        given_by, heard = [], 0
        for end in (block - 1, block, block + LOOKAHEAD - 1, block + LOOKAHEAD, 2 * block + LOOKAHEAD, 9 * RATE):
            given_by.append(len(stream.push(LONG[heard:end])))
            heard = end
        assert given_by == [0, 0, 0, 50, 50, 0]
        assert len(stream.finish()) == -(-(9 * RATE) // TOKEN_SAMPLES) - 100

    def test_the_end_of_a_segment_needs_nothing_after_it(self) -> None:
        assert len(SPEECH.stream().push(LONG[: 30 * RATE])) == 375

    def test_what_was_given_holds_whatever_follows(self) -> None:
        begin = SHORT[: 64 * TOKEN_SAMPLES]
        sounds = [np.concatenate([begin, gain * LONG[-40 * TOKEN_SAMPLES :]]) for gain in (0.0, 1.0)]
        first = [SPEECH.encode(sound, RATE, causal=True)[:50] for sound in sounds]
        assert np.array_equal(*first)
        with_peak = [SPEECH.encode(sound, RATE)[:50] for sound in sounds]
        assert not np.array_equal(*with_peak)  # officially the loudest value of the segment counts, later or not

    def test_it_is_official_where_the_loudest_comes_first(self) -> None:
        loud_first = SHORT[::-1].copy()
        assert np.array_equal(SPEECH.encode(loud_first, RATE, causal=True), SPEECH.encode(loud_first, RATE))

    def test_a_new_segment_begins_after_the_end(self) -> None:
        stream = SPEECH.stream()
        stream.push(LONG[: 6 * RATE])
        stream.finish()
        again = np.concatenate([stream.push(SHORT), stream.finish()])
        assert np.array_equal(again, SPEECH.encode(SHORT, RATE, causal=True))

    def test_the_last_token_is_filled_with_silence(self) -> None:
        stream = GlmStream(SPEECH.net())
        tokens = np.concatenate([stream.push(SHORT[: 5 * RATE + 100]), stream.finish()])
        padded = np.pad(SHORT[: 5 * RATE + 100], (0, -(5 * RATE + 100) % TOKEN_SAMPLES))
        assert np.array_equal(tokens, SPEECH.encode(padded, RATE, causal=True))


class TestCheckpoint:
    def written(self, root: Path, config: dict[str, Any], state: Any = None) -> Path:
        mirror.unpublished(root, WEIGHTS)
        made.write(root / WEIGHTS, config, state)
        return root / WEIGHTS

    def test_the_encoder_of_a_whole_recogniser(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = {f"model.encoder.{name}": value for name, value in made.weights(made.SMALL).items()}
        extra = ("model.encoder.layer_norm.weight", "model.encoder.layers.4.fc1.bias", "model.decoder.layer_norm.bias")
        self.written(tmp_path, made.SMALL, state | {name: np.zeros(32, np.float32) for name in extra})
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        assert np.array_equal(SPEECH.encode(SHORT, RATE), GOLDEN["tokens"])

    @pytest.mark.parametrize(
        "change, told",
        [
            ({"d_model": 48}, "is [32, 128, 3], not [48, 128, 3]"),
            ({"quantize_position": 5, "pooling_position": 5}, "layers.4.self_attn.k_proj.weight is missing"),
            ({"encoder_causal_convolution": False}, "encoder_causal_convolution is False"),
            ({"quantize_causal_block_size": None}, "quantize_causal_block_size is None"),
            ({"quantize_vocab_size": 1 << 40}, "quantize_vocab_size is 1099511627776"),
            ({"num_mel_bins": 80}, "feature_size is 128"),
            ({"encoder_attention_heads": 5}, "5 heads do not divide 32"),
        ],
    )
    def test_another_model(
        self, change: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.written(tmp_path, made.SMALL | change, made.weights(made.SMALL))
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        with pytest.raises(ModelError) as refused:
            SPEECH.encode(SHORT, RATE)
        assert told in str(refused.value) and "fetch" in str(refused.value)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_file_that_is_cut_off(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = self.written(tmp_path, made.SMALL) / name
        place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        with pytest.raises(ModelError, match=f"{name} .*fetch it again"):
            SPEECH.encode(SHORT, RATE)

    def test_a_pickle_under_the_name_of_safetensors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import pickle

        place = self.written(tmp_path, made.SMALL) / "model.safetensors"
        place.write_bytes(pickle.dumps({"conv1.weight": np.zeros(3)}))
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        with pytest.raises(ModelError, match="no whole safetensors file"):
            SPEECH.encode(SHORT, RATE)

    def test_missing_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        for ask in (SPEECH.fingerprint, lambda: SPEECH.codes, lambda: SPEECH.encode(SHORT, RATE)):
            with pytest.raises(ModelError, match=f"models fetch {WEIGHTS}"):
                ask()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(ModelError, match="CUDA"):
            GlmSpeech("cuda").encode(SHORT, RATE)

    def test_the_fingerprint_is_the_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = SPEECH.fingerprint()
        assert before == GlmSpeech("auto").fingerprint() and len(before) == 16
        state = made.weights(made.SMALL)
        state["codebook.weight"] = state["codebook.weight"][::-1].copy()
        self.written(tmp_path, made.SMALL, state)
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        assert SPEECH.fingerprint() != before
        assert np.array_equal(SPEECH.encode(SHORT, RATE), 16383 - GOLDEN["tokens"])


def test_the_made_config_is_in_the_official_form() -> None:
    assert json.loads(json.dumps(made.OFFICIAL))["quantize_position"] == 16
    assert sum(int(np.prod(shape)) for shape in made.shapes(made.OFFICIAL).values()) * 4 + 25_424 == 1_458_374_480
