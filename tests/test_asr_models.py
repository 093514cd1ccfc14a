"""The nets behind transcription, each equal to its library; their helpers; files that are none of theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import FILE, SAID, TURBO, chinese_folder, made_whisper, talk, whisper_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import paraformer as chinese_maker
from makers import whisper as maker
from spoken import NAMES, pink, speech

from manifests.errors import ModelError
from models.asr import MOST_REPEATS, Word, packed, shortened, unpacked, windows, without_loops
from models.clock import ANALYSIS_RATE as RATE
from models.paraformer import characters, joined, load_paraformer, token_times
from models.voice import voice_segments
from models.whisper_asr import Heard, heard, language_probabilities, load_whisper, recognised, weighted


def test_words_stand_where_the_heads_attend() -> None:
    """The made net attends to the i-th word 0.4 s * i after the start of the window."""
    model = made_whisper()
    words = recognised(model, heard(model, talk(6.0, RATE)), "en")
    assert [word for word, *_ in words] == SAID
    starts = [start for _, start, *_ in words]
    np.testing.assert_allclose(starts, [maker.STEP_S * at for at in range(len(SAID))], atol=0.06)


def test_characters_come_at_the_rate_of_the_predictor() -> None:
    """The made net says a character every 0.3 s, a little stretched, as its sum is scaled to whole ones."""
    recogniser = load_paraformer(chinese_folder(), "cpu")
    words = characters(recogniser, talk(4.0, RATE))
    starts = [start for _, start, *_ in words]
    assert len(words) == pytest.approx(4.0 / 0.3, abs=1.5)
    np.testing.assert_allclose(np.diff(starts), 0.3, atol=0.05)


def test_it_equals_the_library_on_one_window() -> None:
    """`whisper.transcribe` encodes a window for its words and again for their times; here once for all."""
    from whisper import transcribe

    model = made_whisper()
    samples = talk(6.0, RATE)
    theirs = transcribe(
        model, samples, language="en", temperature=0.0, condition_on_previous_text=False, word_timestamps=True,
        without_timestamps=True, fp16=False,
    )  # fmt: skip
    want = [(w["word"].strip(), w["start"], w["end"], w["probability"]) for s in theirs["segments"] for w in s["words"]]
    ours = recognised(model, heard(model, samples), "en")
    want = want[: len(ours)]  # it goes on from the end of the last word, where the made net says its text once more
    assert [word for word, *_ in ours] == [word for word, *_ in want] == SAID
    np.testing.assert_allclose([word[1:] for word in ours], [word[1:] for word in want], atol=1e-4)
    _, found = model.detect_language(heard(model, samples).features)
    assert language_probabilities(model, heard(model, samples))["en"] == found[0]["en"]


def test_paraformer_equals_the_library() -> None:
    """`SeacoParaformer.inference` of funasr on the same net: its tokens, spelling and times (ms)."""
    from funasr.tokenizer.char_tokenizer import CharTokenizer

    recogniser = load_paraformer(chinese_folder(), "cpu")
    tokens = CharTokenizer(token_list=str(chinese_folder() / "tokens.json"))
    for name in NAMES[:3]:
        samples = speech(name, RATE)[: 7 * RATE]
        with torch.inference_mode():
            theirs, _ = recogniser.model.inference(
                [torch.from_numpy(samples)], key=["one"], tokenizer=tokens, frontend=recogniser.frontend, device="cpu"
            )
        ours = characters(recogniser, samples)
        assert " ".join(word.strip() for word, *_ in ours) == theirs[0]["text"]
        got = [[1000 * a, 1000 * b] for _, a, b, _ in ours]
        np.testing.assert_allclose(got, theirs[0]["timestamp"], atol=1.5)


def test_torch_keeps_its_threads() -> None:
    """Numba takes all cores when Whisper first warps time, and torch with it, unless somebody looks after that."""
    model, before = made_whisper(), torch.get_num_threads()
    assert recognised(model, heard(model, talk(3.0, RATE)), "en")
    assert torch.get_num_threads() == before


def test_a_window_says_how_much_of_it_is_sound() -> None:
    model = made_whisper()
    window = heard(model, talk(2.5, RATE))
    assert isinstance(window, Heard) and window.frames == 250
    assert tuple(window.features.shape) == (1, 1500, model.dims.n_audio_state)


class TestHelpers:
    spans = st.lists(st.tuples(st.floats(0.3, 12), st.floats(0.1, 3)), min_size=1, max_size=12)

    @staticmethod
    def laid(parts: list[tuple[float, float]]) -> list[tuple[float, float]]:
        out, at = [], 0.0
        for length, gap in parts:
            out.append((at + gap, at + gap + length))
            at += gap + length
        return out

    @given(spans)
    def test_windows_keep_every_span_in_order_and_are_no_longer_than_asked(
        self, parts: list[tuple[float, float]]
    ) -> None:
        spans = self.laid(parts)
        groups = windows(spans, 30.0)
        assert [span for group in groups for span in group] == spans
        sums = [sum(b - a for a, b in group) for group in groups]
        assert all(total <= 30.0 + 1e-9 for total in sums)
        assert all(a + group[0][1] - group[0][0] > 30.0 - 1e-9 for a, group in zip(sums, groups[1:], strict=False))

    @given(spans, st.data())
    def test_a_word_comes_back_to_where_it_was_said(
        self, parts: list[tuple[float, float]], data: st.DataObject
    ) -> None:
        spans = self.laid(parts)
        at = data.draw(st.integers(0, len(spans) - 1))
        low, high = spans[at]
        start = data.draw(st.floats(low, high - 0.1))
        end = data.draw(st.floats(start + 0.01, high))
        before = sum(b - a for a, b in spans[:at])
        [(_, a, b, p)] = unpacked([("word", start - low + before, end - low + before, 0.5)], spans)
        assert (a, b, p) == (pytest.approx(start, abs=1e-6), pytest.approx(end, abs=1e-6), 0.5)

    @given(spans, st.floats(0, 150), st.floats(0, 3))
    def test_no_word_lies_in_a_pause(self, parts: list[tuple[float, float]], start: float, length: float) -> None:
        spans = self.laid(parts)
        [(_, a, b, _)] = unpacked([("word", start, start + length, 1.0)], spans)
        assert any(low <= a <= b <= high for low, high in spans)

    @settings(deadline=None, max_examples=25)
    @given(st.floats(1, 100), st.integers(0, 9))
    def test_a_long_stretch_is_cut_into_short_ones_without_a_gap(self, seconds: float, seed: int) -> None:
        rate = 1000
        samples = np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)
        cut = shortened(samples, rate, [(0.0, seconds)], 30.0)
        assert cut[0][0] == 0.0 and cut[-1][1] == seconds
        assert all(b - a <= 30.0 for a, b in cut)
        assert all(a[1] == b[0] for a, b in pairwise(cut))

    def test_the_cut_is_in_the_quietest_place(self) -> None:
        samples = np.random.default_rng(0).standard_normal(40 * 1000).astype(np.float32)
        samples[21_000:21_400] *= 0.01
        [(_, cut), _] = shortened(samples, 1000, [(0.0, 40.0)], 30.0)
        assert 21.05 < cut < 21.35

    def test_packed_sound_is_the_spans_alone(self) -> None:
        samples = np.arange(100, dtype=np.float32)
        assert packed(samples, 10, [(1.0, 1.3), (5.0, 5.2)]).tolist() == [10, 11, 12, 50, 51]

    @given(st.lists(st.sampled_from("abc"), max_size=40))
    def test_without_loops_are_words_that_were_said_in_order(self, said: list[str]) -> None:
        words: list[Word] = [(word, at * 1.0, at + 1.0, 1.0) for at, word in enumerate(said)]
        kept = without_loops(words)
        assert [word for word in words if word in kept] == kept
        assert {word for word, *_ in kept} == set(said)
        assert len(kept) == len(words) or len(kept) <= len(words) - MOST_REPEATS

    @pytest.mark.parametrize(
        ("said", "left"),
        [
            ("no no no", "no no no"),
            ("no no no no", "no"),
            ("well thank you thank you thank you Thank you. bye", "well thank you bye"),
            ("a b c d e f g h " * 4 + "end", "a b c d e f g h end"),
            ("", ""),
        ],
    )
    def test_a_phrase_that_hangs_stands_once(self, said: str, left: str) -> None:
        words: list[Word] = [(word, 0.0, 0.0, 1.0) for word in said.split()]
        assert " ".join(word for word, *_ in without_loops(words)) == left
        assert MOST_REPEATS == 3

    @given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 30)), min_size=1, max_size=5))
    def test_languages_are_weighed_by_their_seconds(self, found: list[tuple[float, float]]) -> None:
        mean = weighted([({"en": share, "zh": 1 - share}, seconds) for share, seconds in found])
        want = sum(share * seconds for share, seconds in found) / sum(seconds for _, seconds in found)
        assert mean["en"] == pytest.approx(want) and sum(mean.values()) == pytest.approx(1.0)
        assert list(mean.values()) == sorted(mean.values(), reverse=True)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.integers(0, 20))
    def test_token_times_ascend_inside_the_sound(self, weights: list[float], count: int) -> None:
        times = token_times(np.array(weights, np.float32), count)
        assert len(times) == count
        assert all(0 <= a <= b for a, b in times)
        assert [a for a, _ in times] == sorted(a for a, _ in times)

    @pytest.mark.parametrize(
        ("tokens", "words"),
        [
            (["你", "好"], ["你", "好"]),
            (["hel@@", "lo", "world", "你"], ["hello", " world", "你"]),
            (["a", "i", "好"], ["AI", "好"]),
            (["a", "好", "i"], ["a", "好", "i"]),
            (["hel@@"], ["hel"]),
            ([], []),
        ],
    )
    def test_pieces_become_words(self, tokens: list[str], words: list[str]) -> None:
        timed: list[Word] = [(token, float(at), at + 1.0, 0.5) for at, token in enumerate(tokens)]
        found = joined(timed)
        assert [word for word, *_ in found] == words
        if tokens:
            assert found[0][1] == 0.0 and found[-1][2] == float(len(tokens))

    def test_a_voice_is_needed_for_the_rest(self) -> None:
        """What the tests call talk is speech to the detector, and noise is none."""
        assert voice_segments(talk(4.0, RATE)) and not voice_segments(pink(4 * RATE) * 0.1)


def refused(load: Callable[[], Any], match: str, name: str) -> None:
    with pytest.raises(ModelError, match=match) as error:
        load()
    assert name in str(error.value) and "\n" not in str(error.value)


class Bomb:
    """Touches a file when it is unpickled by a loader that lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class TestBadWhisper:
    @pytest.fixture
    def package(self) -> dict[str, Any]:
        stored: dict[str, Any] = torch.load(whisper_folder() / FILE, weights_only=True)
        return stored

    def refused(self, path: Path, match: str, name: str = TURBO) -> None:
        refused(lambda: load_whisper(path, name, "cpu"), match, path.name)

    def test_code_in_the_pickle_is_not_run(self, tmp_path: Path, package: dict[str, Any]) -> None:
        torch.save(package | {"more": Bomb(tmp_path / "sprung")}, tmp_path / "bomb.pt")
        self.refused(tmp_path / "bomb.pt", "could run code")
        assert not (tmp_path / "sprung").exists()

    def test_a_file_cut_off(self, tmp_path: Path) -> None:
        (tmp_path / "cut.pt").write_bytes((whisper_folder() / FILE).read_bytes()[:-9999])
        self.refused(tmp_path / "cut.pt", "no whole torch file")

    def test_another_model(self, tmp_path: Path) -> None:
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
        self.refused(tmp_path / "other.pt", "no Whisper model")

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"n_vocab": 51_864}, "no multilingual Whisper"),
            ({"n_audio_layer": 10_000}, "none of Whisper's"),
            ({"n_mels": 64}, "none of Whisper's"),
            ({"n_audio_ctx": 3000}, "30 s"),
            ({"n_text_state": 99_999}, r"is \[.*\], not \[.*\]|no net that can be built"),
            ({"n_text_layer": 3}, "is unknown"),
            ({"n_text_layer": "4"}, "does not say how"),
        ],
        ids=str,
    )
    def test_dimensions_that_do_not_fit(
        self, tmp_path: Path, package: dict[str, Any], changed: dict[str, Any], match: str
    ) -> None:
        torch.save(package | {"dims": package["dims"] | changed}, tmp_path / "odd.pt")
        self.refused(tmp_path / "odd.pt", match)

    def test_a_tensor_is_missing(self, tmp_path: Path, package: dict[str, Any]) -> None:
        del package["model_state_dict"]["decoder.ln.weight"]
        torch.save(package, tmp_path / "less.pt")
        self.refused(tmp_path / "less.pt", r"decoder\.ln\.weight is missing")

    def test_a_model_under_another_name(self) -> None:
        self.refused(whisper_folder() / FILE, "not Whisper base: it has other heads", "base")


class TestBadParaformer:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A copy that a test may spoil."""
        return Path(shutil.copytree(chinese_folder(), tmp_path / "paraformer-zh"))

    def refused(self, folder: Path, match: str, name: str) -> None:
        refused(lambda: load_paraformer(folder, "cpu"), match, name)

    def changed(self, folder: Path, **values: Any) -> None:
        text = chinese_maker.yaml.safe_dump(chinese_maker.small() | values)
        (folder / "config.yaml").write_text(text)

    def test_code_in_the_pickle_is_not_run(self, folder: Path) -> None:
        state = torch.load(folder / "model.pt", weights_only=True)
        torch.save(state | {"more": Bomb(folder / "sprung")}, folder / "model.pt")
        self.refused(folder, "could run code", "model.pt")
        assert not (folder / "sprung").exists()

    def test_code_beside_the_weights_is_not_run(self, folder: Path) -> None:
        (folder / "model.py").write_text(f"open({str(folder / 'sprung')!r}, 'w')")
        self.changed(folder, trust_remote_code=True, remote_code="./model.py")
        load_paraformer(folder, "cpu")
        assert not (folder / "sprung").exists()

    @pytest.mark.parametrize("name", ["model.pt", "config.yaml", "tokens.json", "am.mvn"])
    def test_a_file_cut_off(self, folder: Path, name: str) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 3])
        self.refused(folder, "fetch", folder.name)

    @pytest.mark.parametrize("name", ["model.pt", "config.yaml", "tokens.json", "am.mvn"])
    def test_a_file_that_is_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        self.refused(folder, "fetch", folder.name)

    @pytest.mark.parametrize(
        ("values", "match"),
        [
            ({"model": "Paraformer"}, "names model 'Paraformer', not SeacoParaformer"),
            ({"predictor": "CifPredictorV2"}, "names predictor"),
            ({"encoder_conf": {"output_size": {"a": 1}}}, "more than plain values"),
            ({"encoder_conf": {"output_size": 10**9}}, "more than plain values"),
            ({"encoder_conf": chinese_maker.small()["encoder_conf"] | {"num_blocks": 3}}, "is missing"),
            ({"encoder_conf": chinese_maker.small()["encoder_conf"] | {"output_size": 80_000}}, "is .*, not|no net"),
            ({"encoder_conf": {"no_such": 1}}, "no net that can be built"),
        ],
        ids=str,
    )
    def test_a_config_of_another_model(self, folder: Path, values: dict[str, Any], match: str) -> None:
        self.changed(folder, **values)
        self.refused(folder, match, folder.name)

    def test_more_tokens_than_the_net_has(self, folder: Path) -> None:
        (folder / "tokens.json").write_text(json.dumps([str(at) for at in range(9)]))
        self.refused(folder, r"is \[.*\], not \[9", "model.pt")

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
    def test_weights_under_a_key_of_the_training(self, folder: Path, key: str) -> None:
        torch.save({key: torch.load(folder / "model.pt", weights_only=True)}, folder / "model.pt")
        assert characters(load_paraformer(folder, "cpu"), talk(2.0, RATE))
