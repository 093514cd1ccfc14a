"""The Thinker: its layout of a dialogue, GLM-4-Voice from official files, the bundled one, bad files.

`golden/thinker.npz` holds what the original ChatGLM network computes from the weights that `makers.glm_thinker`
writes (seed 11, float32) for 300 seeded ids: every eighth last hidden state, and logits of five tokens. Obtained
once with modeling_chatglm.py of GLM-4-Voice as kept in github.com/WenzheLiu-Speech/GLM-4-Voice-SFT at 0fc6ca4
(model/), eager attention, transformers 4.44.1, torch 2.4.0 on CPU; its SDPA differs from its eager by 3e-6.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import glm_thinker

from manifests.errors import ModelError, UsageError
from models import bundled_thinker, glm_weights
from models.bundled_thinker import BundledVocabulary
from models.dialogue_layout import AUDIO_0, SPECIALS, layout, prompt_ids, turn_of
from models.glm_weights import empty_glm, load_glm, read_config
from models.speech_codec import FsqMel, digits
from models.text_codec import WhisperBpe
from models.thinker import Thinker, check_codecs, hidden_states, identity, load_thinker

GOLDEN = Path(__file__).parent / "golden" / "thinker.npz"
PLAIN = {
    **glm_thinker.OFFICIAL,
    "padded_vocab_size": 512,
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "num_layers": 3,
}
CONFIGS = {
    "plain": PLAIN,
    "stretched": {**PLAIN, "rope_ratio": 50, "multi_query_group_num": 1, "kv_channels": 24, "layernorm_epsilon": 1.5625e-07},
}  # fmt: skip
TEXTS, SPEECHES = st.integers(0, 700), st.integers(0, 190).map(lambda chunks: 4 * chunks)


@pytest.fixture(scope="module")
def bundled() -> Thinker:
    return load_thinker("bundled")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    glm_thinker.write(tmp_path / "glm", PLAIN, seed=11, dtype="float32")
    return tmp_path / "glm"


def tokens(seed: int, text: int = 40, speech: int = 100) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 50_000, text).astype(np.int32), rng.integers(0, FsqMel.codes, speech).astype(np.int32)


class TestTurn:
    @given(TEXTS, SPEECHES)
    def test_it_is_thirteen_of_text_and_twenty_six_of_speech_by_turns(self, text: int, speech: int) -> None:
        turn = turn_of(text, speech)
        segments = -(-speech // 26)
        expected = [
            (is_speech, n * size + at, n)
            for n in range(segments)
            for is_speech, size, count in ((False, 13, text), (True, 26, speech))
            for at in range(max(0, min(size, count - n * size)))
        ]
        assert list(zip(turn.speech.tolist(), turn.index.tolist(), turn.segment.tolist(), strict=True)) == expected

    @given(TEXTS, SPEECHES)
    def test_times_are_seconds_of_the_shared_clock(self, text: int, speech: int) -> None:
        turn = turn_of(text, speech)
        begin = np.where(turn.speech, 0.08 * turn.index, 2.08 * turn.segment + 0.16 * (turn.index % 13))
        np.testing.assert_allclose(turn.times, begin, atol=1e-9)
        assert np.array_equal(np.floor(turn.times / 2.08 + 1e-9), turn.segment)

    @given(TEXTS, SPEECHES, st.integers(0, 1200))
    def test_a_turn_too_long_keeps_the_last_segments_that_fit(self, text: int, speech: int, limit: int) -> None:
        whole, kept = turn_of(text, speech), turn_of(text, speech, limit)
        assert len(kept) <= limit
        cut = len(whole) - len(kept)
        for name in ("speech", "index", "segment", "times"):
            assert np.array_equal(getattr(whole, name)[cut:], getattr(kept, name)), name
        if cut:
            before = whole.segment[cut - 1]
            assert not len(kept) or kept.segment[0] == before + 1
            assert len(whole) - np.searchsorted(whole.segment, before) > limit

    @given(TEXTS, SPEECHES, st.integers(0, 1200))
    def test_how_many_were_kept_tells_which(self, text: int, speech: int, limit: int) -> None:
        kept = turn_of(text, speech, limit)
        again = turn_of(text, speech, len(kept))
        assert np.array_equal(kept.index, again.index) and np.array_equal(kept.times, again.times)

    def test_text_that_no_speech_says_is_left_out(self) -> None:
        assert len(turn_of(100, 30)) == 26 + 30
        assert len(turn_of(100, 0)) == 0

    def test_text_alone_decides_nothing(self) -> None:
        without = turn_of(0, 60)
        assert without.speech.all() and without.index.tolist() == list(range(60))


class TestPrompt:
    @staticmethod
    def spelled(ids: np.ndarray) -> str:
        """Ids of the bundled vocabulary as text."""
        zero, names = BundledVocabulary().special(AUDIO_0), {BundledVocabulary().special(n): n for n in SPECIALS[:-1]}
        parts, plain = [], list[int]()
        for token in [*ids.tolist(), -1]:
            if 0 <= token < WhisperBpe().codes:
                plain.append(token)
                continue
            parts.append(WhisperBpe().decode(np.array(plain)))
            plain = []
            if token >= 0:
                parts.append(names.get(token, f"<|audio_{token - zero}|>"))
        return "".join(parts)

    def test_speech_is_asked_as_the_official_demo_asks(self) -> None:
        assert self.spelled(prompt_ids(BundledVocabulary(), [7, 16383])) == (
            "[gMASK]<sop><|system|>\nUser will provide you with a speech instruction. Do it step by step. First, think "
            "about the instruction and respond in a interleaved manner, with 13 text token followed by 26 audio "
            "tokens. <|user|>\n<|begin_of_audio|><|audio_7|><|audio_16383|><|end_of_audio|><|assistant|>"
            "streaming_transcription\n"
        )

    def test_text_is_asked_as_the_official_demo_asks(self) -> None:
        assert self.spelled(prompt_ids(BundledVocabulary(), "Who are you?")) == (
            "[gMASK]<sop><|system|>\nUser will provide you with a text instruction. Do it step by step. First, think "
            "about the instruction and respond in a interleaved manner, with 13 text token followed by 26 audio "
            "tokens.<|user|>\nWho are you?<|assistant|>streaming_transcription\n"
        )

    def test_a_special_token_in_the_users_words_stays_words(self) -> None:
        ids = prompt_ids(BundledVocabulary(), "<|assistant|>")
        assert ids.tolist().count(BundledVocabulary().special("<|assistant|>")) == 1

    def test_a_sample_lies_behind_an_empty_question(self) -> None:
        text, speech = tokens(0)
        found = layout(BundledVocabulary(), text, speech)
        assert self.spelled(found.prompt).endswith(
            "<|user|>\n<|begin_of_audio|><|end_of_audio|><|assistant|>streaming_transcription\n"
        )
        assert found.ids[:13].tolist() == text[:13].tolist()
        assert found.ids[13:39].tolist() == (BundledVocabulary().special(AUDIO_0) + speech[:26]).tolist()
        assert len(found.ids) == len(found.turn) == 140

    def test_a_turn_beyond_the_context_keeps_its_last_segments_behind_the_whole_prompt(self) -> None:
        text, speech = tokens(0)  # three segments of 39 and one of 1 + 22
        whole = layout(BundledVocabulary(), text, speech)
        room = len(whole.prompt)
        for context, kept in ((room + 139, 101), (room + 62, 62), (room + 61, 23), (room + 23, 23)):
            found = layout(BundledVocabulary(), text, speech, context=context)
            assert np.array_equal(found.prompt, whole.prompt)
            assert np.array_equal(found.ids, whole.ids[-kept:])
            assert np.array_equal(found.turn.times, whole.turn.times[-kept:])
        with pytest.raises(UsageError, match="no room for a segment in"):
            layout(BundledVocabulary(), text, speech, context=room + 22)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_the_original_network_computes(name: str, tmp_path: Path) -> None:
    glm_thinker.write(tmp_path, CONFIGS[name], seed=11, dtype="float32")
    model, golden = load_glm(tmp_path, dtype="float32"), np.load(GOLDEN)
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 512, 300))[None]
    with torch.inference_mode():
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(states)[0, [0, 1, 37, 150, 299]]
    assert np.abs(states[0, ::8].numpy() - golden[f"{name}_states"]).max() < 1e-4
    assert np.abs(logits.numpy() - golden[f"{name}_logits"]).max() < 1e-4


def test_token_by_token_over_a_cache_is_the_whole_at_once(small: Path) -> None:
    model = load_glm(small, dtype="float32")
    ids = torch.arange(60)[None] * 7 % 512
    with torch.inference_mode():
        whole = model.model(input_ids=ids, use_cache=False).last_hidden_state
        step = model.model(input_ids=ids[:, :20], use_cache=True)
        parts = [step.last_hidden_state]
        for at in range(20, 60):
            step = model.model(input_ids=ids[:, at : at + 1], past_key_values=step.past_key_values, use_cache=True)
            parts.append(step.last_hidden_state)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


def test_half_the_bits_are_the_same_model(small: Path) -> None:
    ids = torch.arange(100)[None]
    with torch.inference_mode():
        full, half = (load_glm(small, dtype=kind).model(input_ids=ids).last_hidden_state.float() for kind in ("float32", "bfloat16"))  # fmt: skip
    assert torch.nn.functional.cosine_similarity(full, half, dim=-1).min() > 0.999
    assert not torch.equal(full, half)


def test_the_official_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(glm_thinker.OFFICIAL))
    config = read_config(tmp_path)
    model = empty_glm(config)
    assert round(model.num_parameters() / 1e9, 2) == 9.54
    assert round(sum(parameter.numel() for parameter in model.model.layers.parameters()) / 1e9, 2) == 8.16
    assert 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim == 40_960  # bytes a token
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.model.rotary_emb.inv_freq.shape == (32,)
    stored = glm_thinker.shapes(glm_thinker.OFFICIAL)
    stored.pop(glm_weights.DROPPED)
    assert {name: list(shape) for name, shape in stored.items()} == glm_weights.stored_shapes(config)


@pytest.mark.parametrize("source", ["bundled", "glm"])
def test_it_is_frozen(source: str, small: Path, bundled: Thinker) -> None:
    model = bundled.model if source == "bundled" else load_glm(small, dtype="float32")
    assert not model.training and not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    with torch.enable_grad():
        assert model.model(input_ids=torch.arange(9)[None]).last_hidden_state.grad_fn is None


MEASURED = """
import json, re, sys
from pathlib import Path
from models.glm_weights import load_glm
small, large = Path(sys.argv[1]), Path(sys.argv[2])
peaks = []
for path, dtype in ((small, "float32"), (large, "bfloat16"), (large, "float32")):
    model = load_glm(path, dtype=dtype)
    peaks.append(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1)))
print(json.dumps([peak - peaks[0] for peak in peaks[1:]]))
"""


def test_weights_are_never_in_memory_twice(tmp_path: Path, small: Path) -> None:
    sizes = {"hidden_size": 768, "ffn_hidden_size": 2048, "kv_channels": 64, "num_attention_heads": 12, "num_layers": 8}
    glm_thinker.write(tmp_path / "large", {**PLAIN, "padded_vocab_size": 20_000, **sizes})
    stored = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    assert stored > 150e6
    command = [sys.executable, "-c", MEASURED, str(small), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    mapped, widened = json.loads(done.stdout)
    assert mapped < 0.1 * stored  # as stored they stay in the file
    assert 1.9 * stored < widened < 2.4 * stored  # in twice the bits they are there once, beside one shard of four


class TestBundled:
    def test_its_weights_are_the_same_everywhere(self) -> None:
        assert bundled_thinker.weights_fingerprint() == "d52841395af4cadb"

    @pytest.mark.parametrize("change", ["LAYOUT_VERSION", "weights", "prompt"])
    def test_whatever_changes_its_states_changes_its_identity(
        self, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = identity("bundled")
        assert before == identity("bundled") and before.startswith("bundled ") and len(before) == 24
        if change == "LAYOUT_VERSION":
            monkeypatch.setattr("models.thinker.LAYOUT_VERSION", 2)
        elif change == "weights":
            monkeypatch.setattr("models.bundled_thinker.weights_fingerprint", lambda: "0" * 16)
        else:
            monkeypatch.setattr("models.dialogue_layout.SPEECH_INSTRUCTION", "Answer.")
        assert identity("bundled") != before

    def test_a_code_is_the_sum_of_its_digits(self, bundled: Thinker) -> None:
        table = bundled.model.model.embed_tokens.weight[bundled.vocabulary.special(AUDIO_0) :].double().numpy()
        assert table.shape == (FsqMel.codes, bundled.hidden)
        for seed in range(20):  # a sum has no interaction: what a digit adds is the same in any code
            rng = np.random.default_rng(seed)
            place, (low, high) = rng.integers(7), rng.integers(0, 4, 2)
            others = rng.integers(0, 4, (2, 7))
            gains = []
            for other in others:
                codes = [sum(d * 4 ** (6 - at) for at, d in enumerate([*other[:place], level, *other[place + 1 :]])) for level in (low, high)]  # fmt: skip
                assert digits(np.array(codes))[:, place].tolist() == [low, high]
                gains.append(table[codes[1]] - table[codes[0]])
            np.testing.assert_allclose(gains[0], gains[1], atol=1e-5)

    def test_near_sounds_are_near(self, bundled: Thinker) -> None:
        codes = np.random.default_rng(3).integers(0, FsqMel.codes, 150)
        apart = np.abs(digits(codes)[:, None] - digits(codes)[None]).sum(-1)
        text = np.arange(26)
        states = np.concatenate(
            [hidden_states(bundled, layout(bundled.vocabulary, text, codes[[at, 0, 0, 0]]))[13:14] for at in range(150)]
        ).astype(np.float64)
        distance = np.linalg.norm(states[:, None] - states[None], axis=-1)
        means = [distance[apart == steps].mean() for steps in (3, 6, 9, 12)]
        assert means == sorted(means) and means[0] < 0.7 * means[-1]

    def test_its_ids_are_all_different(self, bundled: Thinker) -> None:
        ids = [bundled.vocabulary.special(name) for name in SPECIALS]
        assert len(set(ids)) == len(SPECIALS) and min(ids) >= WhisperBpe().codes
        assert max(ids) == ids[-1] and ids[-1] + FsqMel.codes == bundled.model.config.vocab_size
        with pytest.raises(ModelError, match="no '<|x|>'".replace("|", r"\|")):
            bundled.vocabulary.special("<|x|>")


class TestStates:
    def test_one_a_token_and_none_of_the_prompt(self, bundled: Thinker) -> None:
        found = layout(bundled.vocabulary, *tokens(1))
        states = hidden_states(bundled, found)
        assert states.dtype == np.float16 and states.shape == (len(found.ids), bundled.hidden)
        with torch.inference_mode():
            ids = torch.from_numpy(np.concatenate([found.prompt, found.ids]))[None]
            whole = bundled.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(states, whole[len(found.prompt) :].numpy(), atol=2e-3, rtol=1e-3)

    def test_other_samples_change_nothing(self, bundled: Thinker) -> None:
        first = hidden_states(bundled, layout(bundled.vocabulary, *tokens(1)))
        for seed in (2, 3):
            hidden_states(bundled, layout(bundled.vocabulary, *tokens(seed, 90, 300)))
        assert hidden_states(bundled, layout(bundled.vocabulary, *tokens(1))).tobytes() == first.tobytes()

    def test_the_future_changes_nothing_and_the_past_does(self, bundled: Thinker) -> None:
        text, speech = tokens(1, 60, 104)
        states = hidden_states(bundled, layout(bundled.vocabulary, text, speech))
        longer = layout(bundled.vocabulary, np.append(text, text), np.append(speech, speech))
        np.testing.assert_allclose(hidden_states(bundled, longer)[: len(states)], states, atol=2e-3)
        # surplus text: 4 segments take 52 of 60
        cut = hidden_states(bundled, layout(bundled.vocabulary, text[:52], speech))
        assert cut.tobytes() == states.tobytes()
        text[0] += 1
        changed = hidden_states(bundled, layout(bundled.vocabulary, text, speech))
        assert np.abs(changed.astype(float) - states).max(axis=1).min() > 0

    def test_the_question_changes_them(self, bundled: Thinker) -> None:
        asked = layout(bundled.vocabulary, *tokens(1), user="Why?")
        plain = layout(bundled.vocabulary, *tokens(1))
        assert len(asked.ids) == len(plain.ids)
        assert not np.array_equal(hidden_states(bundled, asked), hidden_states(bundled, plain))

    def test_tokens_of_another_codec_are_refused(self, bundled: Thinker) -> None:
        text, speech = tokens(1)
        with pytest.raises(ModelError, match="were the tokens made by its own codecs"):
            hidden_states(bundled, layout(bundled.vocabulary, text, speech + FsqMel.codes))
        with pytest.raises(UsageError, match="reads whisper_bpe and fsq_mel tokens, not glm"):
            check_codecs("bundled", "glm", "glm")
        check_codecs("bundled", WhisperBpe.name, FsqMel.name)

    def test_weights_that_give_no_numbers_are_refused(self, bundled: Thinker, small: Path) -> None:
        model = load_glm(small, dtype="float32")
        model.model.norm.weight[3] = float("nan")
        text, speech = np.arange(13), np.arange(4)
        broken = Thinker(model, Names(), "broken 0")
        with pytest.raises(ModelError, match="no float16 numbers"):
            hidden_states(broken, layout(Names(), text, speech))


class Names:
    """A vocabulary of few ids."""

    def special(self, name: str) -> int:
        return 100 + SPECIALS.index(name)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) % 90

    def fingerprint(self) -> str:
        return "0" * 16


def test_no_such_thinker_device_or_type() -> None:
    with pytest.raises(UsageError, match="unknown thinker 'x'; choose from bundled, glm-4-voice-9b"):
        load_thinker("x")
    with pytest.raises(UsageError, match="bfloat16 or float32, not 'int4'"):
        load_thinker("bundled", dtype="int4")
    with pytest.raises(ModelError, match="'cuda:99'"):
        load_thinker("bundled", "cuda:99")


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes entries of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    """Renames a file and what the index says of it."""

    def change(folder: Path) -> None:
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(old, new))

    return change


FIRST, LAST = "model-00001-of-00004.safetensors", "model-00004-of-00004.safetensors"
BAD = {
    "another architecture": (edit("config.json", model_type="llama"), "no GLM-4-Voice: model_type is 'llama'"),
    "another norm": (edit("config.json", rmsnorm=False), "rmsnorm is False, not True"),
    "a config without a size": (edit("config.json", num_layers=None), "num_layers is None, no size"),
    "an absurd config": (edit("config.json", num_layers=10**9), "num_layers is 1000000000, no size"),
    "no epsilon": (edit("config.json", layernorm_epsilon=None), "no numbers for layernorm_epsilon"),
    "heads in no groups": (edit("config.json", num_attention_heads=3), "3 heads of 16 in 2 groups"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "a config that is none": (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
    "a config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
    "no index": (lambda folder: (folder / "model.safetensors.index.json").unlink(), "index.json is missing"),
    "an index of nothing": (edit("model.safetensors.index.json", weight_map={}), "has no weight_map"),
    "a missing shard": (lambda folder: (folder / LAST).unlink(), "model-00004-of-00004.safetensors is missing"),
    "a file outside the folder": (rename(FIRST, "../stolen.safetensors"), "names '../stolen.safetensors'"),
    "a file below the folder": (rename(FIRST, "deep/a.safetensors"), "names 'deep/a.safetensors'"),
    "a pickle": (rename(FIRST, "pytorch_model-00001.bin"), "'pytorch_model-00001.bin' is no safetensors file"),
    "a pickle by another name": (
        lambda folder: torch.save({"transformer.x": torch.zeros(3)}, folder / FIRST), "no whole safetensors file",
    ),
    "a shard cut off": (
        lambda folder: (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-100]), "no whole safetensors file",
    ),
    "an empty shard": (lambda folder: (folder / LAST).write_bytes(b""), "no whole safetensors file"),
    "more layers than stored": (
        edit("config.json", num_layers=4), "transformer.encoder.layers.3.input_layernorm.weight is missing",
    ),
    "fewer layers than stored": (edit("config.json", num_layers=2), "transformer.encoder.layers.2.* is unknown"),
    "another width": (edit("config.json", hidden_size=64), r"is \[512, 48\], not \[512, 64\]"),
    "another vocabulary": (edit("config.json", padded_vocab_size=500), r"is \[512, 48\], not \[500, 48\]"),
    "an index of another folder": (
        lambda folder: edit(
            "model.safetensors.index.json",
            weight_map=json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
            | {"transformer.embedding.word_embeddings.weight": LAST},
        )(folder),
        "says that transformer.embedding.word_embeddings.weight is in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_in_one_line(what: str, small: Path) -> None:
    spoil, message = BAD[what]
    spoil(small)
    with pytest.raises(ModelError, match=message) as caught:
        load_glm(small, dtype="float32")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert any(verb in str(caught.value) for verb in ("fetch",))
