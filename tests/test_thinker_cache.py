"""The Thinker cache: a sample with the states of its tokens, read again with their times, refused where they do not
fit; a sample without them is what it always was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import glm_text, glm_thinker
from test_encode import facts, hiss, movie, opened

from curation.encode import BundledEncode, json_bytes, npy_bytes
from curation.registry import build_stage
from curation.stage import Result, fingerprint
from curation.thinker_cache import sample_states
from manifests.errors import DatasetError, ModelError, UsageError
from manifests.samples import read_tar, write_tar
from models.dialogue_layout import AUDIO_0, layout, turn_of
from models.glm_text import GlmBpe
from models.thinker import hidden_states, identity, load_thinker, stored_states
from pipelines.verify import _shape_faults

STAGE = BundledEncode(size=64, thinker="bundled")
TALE = "the quick brown fox jumps over the lazy dog and then it sleeps for a while in the sun " * 4


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return movie(tmp_path_factory.mktemp("film") / "film.mov", 110, hiss(4.4))


@pytest.fixture(scope="module")
def result(film: Path) -> Result:
    return STAGE.measure(opened(film, transcript="Near sounds are near."))


@pytest.fixture
def sample(result: Result) -> dict[str, bytes]:
    return dict(result.files)


def array(content: bytes) -> np.ndarray:
    found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return found


class TestSample:
    def test_it_holds_a_state_for_each_token(self, result: Result) -> None:
        text, speech, states = (array(result.files[name]) for name in ("text.npy", "speech.npy", "thinker.npy"))
        thinker = load_thinker("bundled")
        assert states.dtype == np.float16 and states.shape == (len(text) + len(speech), thinker.hidden)
        assert len(text) and len(speech) == 4 * facts(result)["chunks"]
        again = hidden_states(thinker, layout(thinker.vocabulary, text, speech))
        assert states.tobytes() == again.tobytes()

    def test_it_says_whose_they_are_and_counts_them(self, result: Result) -> None:
        assert facts(result)["thinker"] == identity("bundled")
        assert result.measures["sample_bytes"] == sum(map(len, result.files.values()))

    def test_the_rest_is_the_sample_without_them(self, film: Path, result: Result) -> None:
        plain = BundledEncode(size=64).measure(opened(film, transcript="Near sounds are near."))
        assert "thinker.npy" not in plain.files and "thinker" not in facts(plain)
        assert {name: content for name, content in result.files.items() if name not in ("thinker.npy", "json")} == {
            name: content for name, content in plain.files.items() if name != "json"
        }
        assert {name: value for name, value in facts(result).items() if name != "thinker"} == facts(plain)

    def test_other_samples_change_nothing(self, film: Path, result: Result) -> None:
        STAGE.measure(opened(film, 0.5, 3.5, transcript="Something else entirely."))
        again = STAGE.measure(opened(film, transcript="Near sounds are near."))
        assert dict(again.files) == dict(result.files)

    def test_more_text_than_the_speech_can_say(self, film: Path) -> None:
        found = STAGE.measure(opened(film, transcript=TALE))
        text, speech, states = (array(found.files[name]) for name in ("text.npy", "speech.npy", "thinker.npy"))
        segments = -(-len(speech) // 26)
        assert len(text) > 13 * segments
        assert len(states) == 13 * segments + len(speech)
        assert len(stored_states(found.files, identity("bundled"))[1]) == len(states)

    def test_no_text_at_all(self, film: Path) -> None:
        found = STAGE.measure(opened(film, transcript=""))
        _, turn = stored_states(found.files, identity("bundled"))
        assert turn.speech.all() and np.allclose(turn.times, 0.08 * np.arange(len(turn)))


class TestReading:
    def test_states_come_with_their_times(self, sample: dict[str, bytes], tmp_path: Path) -> None:
        with (tmp_path / "some.tar").open("wb") as file:
            write_tar(file, {"key": sample})
        with (tmp_path / "some.tar").open("rb") as file:
            ((key, members),) = read_tar(file)
        states, turn = stored_states(members, identity("bundled"))
        assert key == "key" and states.tobytes() == array(sample["thinker.npy"]).tobytes()
        text, speech = len(array(sample["text.npy"])), len(array(sample["speech.npy"]))
        assert np.array_equal(turn.times, turn_of(text, speech).times)
        # every chunk of video sees speech that is said while it is shown
        for chunk in range(facts(Result({}, files=sample))["chunks"]):
            during = turn.speech & (turn.times >= 0.32 * chunk - 1e-9) & (turn.times < 0.32 * (chunk + 1) - 1e-9)
            assert during.sum() == 4

    def test_states_of_another_thinker_are_refused(self, sample: dict[str, bytes]) -> None:
        with pytest.raises(DatasetError, match="stores states of thinker bundled [0-9a-f]{16}, not bundled 0123"):
            stored_states(sample, "bundled 0123456789abcdef")

    @pytest.mark.parametrize("lost", ["thinker.npy", "json"])
    def test_a_sample_without_states_says_so(self, lost: str, sample: dict[str, bytes]) -> None:
        if lost == "json":
            sample["json"] = json_bytes({n: v for n, v in json.loads(sample["json"]).items() if n != "thinker"})
        else:
            del sample[lost]
        with pytest.raises(DatasetError, match="stores no states"):
            stored_states(sample, identity("bundled"))
        assert any("stores no states" in fault for fault in faults(sample))

    SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # noqa: RUF012
        "one too few": lambda states: states[1:],
        "one too many": lambda states: np.concatenate([states, states[:1]]),
        "another type": lambda states: states.astype(np.float32),
        "flat": lambda states: states[:, 0],
    }

    @pytest.mark.parametrize("how", SPOILT)
    def test_states_that_are_not_one_a_token_are_found(self, how: str, sample: dict[str, bytes]) -> None:
        assert faults(sample) == []
        sample["thinker.npy"] = npy_bytes(self.SPOILT[how](array(sample["thinker.npy"])))
        with pytest.raises(DatasetError, match="as the states of"):
            stored_states(sample, identity("bundled"))
        (fault,) = faults(sample)
        assert "as the states of" in fault

    def test_damaged_states_are_found(self, sample: dict[str, bytes]) -> None:
        sample["thinker.npy"] = sample["thinker.npy"][:-5]
        assert any("unreadable member" in fault for fault in faults(sample))


def faults(sample: dict[str, bytes]) -> list[str]:
    """What `xstreamer verify` finds in the sample."""
    return list(_shape_faults(sample, json.loads(sample["json"])["chunks"]))


class TestFingerprint:
    def test_without_a_thinker_it_is_what_it_was(self) -> None:
        assert BundledEncode().params() == {"size": 256, "min_speech_share": 0.1}
        assert "thinker" not in BundledEncode().revision()

    def test_a_thinker_changes_it(self) -> None:
        upstream = dict.fromkeys(BundledEncode.reads, "0")
        assert fingerprint(BundledEncode(thinker="bundled"), upstream) != fingerprint(BundledEncode(), upstream)
        assert identity("bundled") in BundledEncode(thinker="bundled").revision()

    def test_one_that_does_not_exist_or_reads_other_tokens_is_refused(self) -> None:
        with pytest.raises(UsageError, match="unknown thinker 'gpt'; choose from bundled, glm-4-voice-9b"):
            build_stage("encode", "bundled", {"thinker": "gpt"})
        with pytest.raises(UsageError, match="reads glm_4_bpe and glm_4_voice tokens, not whisper_bpe and fsq_mel"):
            build_stage("encode", "bundled", {"thinker": "glm-4-voice-9b"}).revision()


class TestGlm:
    """GLM-4-Voice-9B from made files where the official ones would lie."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models")
        glm_thinker.make(folder / "glm-4-voice-9b")
        glm_text.make(folder / "glm-4-voice-text")
        return folder

    @pytest.fixture(autouse=True)
    def here(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(folder))

    TOKENS: tuple[Any, Any] = np.arange(30, 70, dtype=np.int32), np.arange(0, 16_000, 160, dtype=np.int32)

    def test_a_sample_gets_states(self) -> None:
        states = sample_states("glm-4-voice-9b", *self.TOKENS)
        assert states.shape == (140, 32) and states.dtype == np.float16 and np.isfinite(states).all()
        assert states.tobytes() == sample_states("glm-4-voice-9b", *self.TOKENS).tobytes()
        thinker = load_thinker("glm-4-voice-9b")
        assert next(thinker.model.parameters()).dtype.itemsize == 2
        found = layout(thinker.vocabulary, *self.TOKENS)
        assert found.ids[13] == GlmBpe().special("<|audio_0|>") and found.prompt[0] == GlmBpe().special("[gMASK]")
        assert GlmBpe().special(AUDIO_0) + 16_383 < thinker.model.config.vocab_size

    def test_other_weights_have_another_identity_and_other_states(self, folder: Path) -> None:
        before, states = identity("glm-4-voice-9b"), sample_states("glm-4-voice-9b", *self.TOKENS)
        assert before == identity("glm-4-voice-9b") and before.startswith("glm-4-voice-9b ")
        other = folder.parent / "other"
        glm_thinker.write(other / "glm-4-voice-9b", glm_thinker.SMALL, seed=1)
        glm_text.make(other / "glm-4-voice-text")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XSTREAMER_MODELS", str(other))
            assert identity("glm-4-voice-9b") != before
            assert not np.array_equal(sample_states("glm-4-voice-9b", *self.TOKENS), states)

    @pytest.mark.parametrize("name", ["glm-4-voice-9b", "glm-4-voice-text"])
    def test_missing_weights_are_named_with_the_command(self, name: str, folder: Path) -> None:
        (folder / name).rename(folder / "away")
        try:
            with pytest.raises(ModelError, match=f"no weights of {name} .*run: xstreamer models fetch {name}"):
                load_thinker("glm-4-voice-9b")
        finally:
            (folder / "away").rename(folder / name)
