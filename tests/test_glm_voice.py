"""GLM-4-Voice's speech decoder: exactly 1,764 samples a token, streams of any pieces, flat work, honest refusals."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import glm_voice as made

from manifests.errors import ModelError, UsageError
from models import glm_flow
from models.clock import CHUNK_SPEECH_TOKENS, samples_of
from models.glm_flow import STEPS, Flow, FlowStream, Windows
from models.glm_hift import Hift
from models.glm_voice import TOKEN_SAMPLES, WEIGHTS, GlmVoice, SpeechStream
from models.weights import ENV, entry

VOICE = GlmVoice()
TINY = made.Sizes(
    embedding=4, speaker=2, bins=4, width=8, heads=2, inner=8, layers=1, channels=(8, 8), head_dim=4, unet_heads=1,
    depth=1, middle=1, base=8, pitch=4,
)  # fmt: skip
NARROW = Windows(context=40, overlap=10, past=20)
"""Windows that are soon full."""
ESTIMATOR = "decoder.estimator"
TOKENS = made.tokens(60, seed=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glm_voice")
    made.install(root)
    return root


@pytest.fixture(autouse=True)
def found(root: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV, str(root))
        yield


@cache
def decoded() -> np.ndarray:
    return VOICE.decode(TOKENS)


def streamed(stream: SpeechStream, tokens: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return [*(stream.push(piece) for piece in np.split(tokens, cuts)), stream.finish()]


class TestDecode:
    @pytest.mark.parametrize("count", [1, 4, 10, 13, 26])
    def test_samples_of_tokens(self, count: int) -> None:
        for one_window in (False, True):
            sound = VOICE.decode(TOKENS[:count], one_window=one_window)
            assert sound.shape == (1764 * count,) and sound.dtype == np.float32 and np.isfinite(sound).all()
            assert np.abs(sound).max() <= 0.99 and sound.std() > 0.01
        assert TOKEN_SAMPLES == 1764 and samples_of(1, VOICE.rate) == CHUNK_SPEECH_TOKENS * TOKEN_SAMPLES

    def test_no_tokens(self) -> None:
        for one_window in (False, True):
            sound = VOICE.decode(np.empty(0, np.int32), one_window=one_window)
            assert sound.shape == (0,) and sound.dtype == np.float32

    def test_one_block_is_decoded_as_officially(self) -> None:
        assert np.abs(VOICE.decode(TOKENS[:10]) - VOICE.decode(TOKENS[:10], one_window=True)).max() < 1e-3

    def test_the_same_bits_every_time(self) -> None:
        assert np.array_equal(VOICE.decode(TOKENS), decoded())

    def test_the_seed_and_the_tokens_are_heard(self) -> None:
        other = np.concatenate([TOKENS[:30], TOKENS[31:], TOKENS[30:31]])
        assert np.abs(VOICE.decode(other) - decoded()).max() > 0.01
        assert np.abs(GlmVoice(seed=1).decode(TOKENS[:10]) - VOICE.decode(TOKENS[:10])).max() > 0.01

    def test_torchs_own_noise_is_left_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made.install(tmp_path)  # loaded anew
        monkeypatch.setenv(ENV, str(tmp_path))
        torch.manual_seed(1)
        before, heard = torch.get_rng_state(), VOICE.decode(TOKENS[:13])
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert np.array_equal(VOICE.decode(TOKENS[:13]), heard)

    def test_half_precision(self) -> None:
        exact, half = VOICE.decode(TOKENS[:20]), GlmVoice(precision="bfloat16").decode(TOKENS[:20])
        assert half.dtype == np.float32 and half.shape == exact.shape and not np.array_equal(half, exact)
        assert abs(half.std() / exact.std() - 1) < 0.2

    def test_nothing_asks_for_gradients(self) -> None:
        flow, hift = VOICE.nets()
        assert not any(value.requires_grad for net in (flow, hift) for value in net.parameters())
        assert VOICE.nets()[0] is flow and VOICE.nets()[1] is hift


class TestStream:
    @settings(max_examples=3)
    @given(st.data())
    def test_any_pieces_give_the_same_bits(self, data: st.DataObject) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(TOKENS)), max_size=12)))
        assert np.array_equal(np.concatenate(streamed(VOICE.stream(), TOKENS, cuts)), decoded())

    def test_segments_of_the_thinker(self) -> None:
        """26 tokens at a time: what is given lies at most 9 tokens and 0.62 s behind."""
        stream, given_by = VOICE.stream(), 0
        for at in (26, 52):
            given_by += len(stream.push(TOKENS[at - 26 : at]))
            assert at // 10 * 17_640 - 53 * 256 <= given_by <= at // 10 * 17_640 and given_by == stream.samples
        stream.push(TOKENS[52:])
        stream.finish()
        assert (stream.tokens, stream.samples) == (0, 0)

    def test_an_utterance_leaves_nothing_to_the_next(self) -> None:
        stream = VOICE.stream()
        streamed(stream, TOKENS[::-1][:23], [11])
        assert np.array_equal(np.concatenate(streamed(stream, TOKENS, [])), decoded())
        assert len(stream.finish()) == 0

    def test_a_refused_token_leaves_the_stream_as_it_was(self) -> None:
        stream = VOICE.stream()
        first = stream.push(TOKENS[:13])
        with pytest.raises(ModelError):
            stream.push(np.array([1, 16_384]))
        rest = streamed(stream, TOKENS[13:], [])
        assert np.array_equal(np.concatenate([first, *rest]), decoded())

    def test_sound_does_not_step_where_pieces_meet(self) -> None:
        """Steps from sample to sample between pieces are those inside them."""
        pieces = [piece for piece in streamed(VOICE.stream(), TOKENS, list(range(10, 60, 10))) if len(piece)]
        steps = np.abs(np.diff(np.concatenate(pieces)))
        at = np.cumsum([len(piece) for piece in pieces])[:-1] - 1
        assert len(at) == 6 and steps[at].max() <= np.quantile(np.delete(steps, at), 0.999)
        assert steps[at].mean() <= 2 * np.delete(steps, at).mean()


class Work:
    """Counts what nets do between two looks."""

    def __init__(self, flow: Flow, hift: Hift) -> None:
        self.now: dict[str, int] = {}
        estimator, attention = (flow.get_submodule(name) for name in (ESTIMATOR, "encoder.encoders.0.self_attn"))
        self.hooks = [
            estimator.register_forward_hook(lambda _, given, __: self.add("U-Net frames", given[0].shape[2])),
            attention.register_forward_hook(lambda _, __, found: self.add("encoder keys", found[1][0].shape[1])),
            hift.register_forward_hook(lambda _, given, __: self.add("vocoder frames", given[0].shape[1])),
        ]

    def add(self, name: str, count: int) -> None:
        self.now[name] = self.now.get(name, 0) + count

    def taken(self) -> dict[str, int]:
        taken, self.now = self.now, {}
        return taken


def held(state: Any) -> int:
    """Numbers that a stream holds on to, weights aside."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, np.ndarray):
        return state.size
    if isinstance(state, tuple):
        return sum(map(held, state))
    inner = vars(state).items() if type(state).__module__.startswith("models.glm_") else ()
    return sum(held(value) for name, value in inner if name not in ("net", "flow", "hift"))


def assert_flat(done: list[dict[str, int]], sizes: list[int]) -> None:
    """Windows are full after ten blocks; from then on each does the same, but for a frame of the clock's."""
    half = len(done) // 2
    for name in done[-1]:
        counts = [one[name] for one in done[10:]]
        assert max(counts) - min(counts) <= 2
        assert abs(np.mean(counts[:half]) - np.mean(counts[half:])) < 0.5
    assert max(sizes[10:]) <= 1.1 * min(sizes[10:]) and max(sizes[half:]) <= max(sizes[10:half])


class TestForHours:
    @pytest.fixture
    def tiny(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Flow, Hift, Work]]:
        """The smallest nets, one step of Euler's method instead of ten, whose work is the same ten times."""
        monkeypatch.setattr(glm_flow, "STEPS", 1)
        made.install(tmp_path, TINY)
        monkeypatch.setenv(ENV, str(tmp_path))
        flow, hift = VOICE.nets()
        work = Work(flow, hift)
        yield flow, hift, work
        for hook in work.hooks:
            hook.remove()

    def test_work_and_state_of_10_000_tokens_are_flat(self, tiny: tuple[Flow, Hift, Work]) -> None:
        """Of the flow, whose windows look back; the vocoder has no more to do for the last frame than the first."""
        flow, _, work = tiny
        stream, frames = FlowStream(flow, NARROW, seed=0), 0
        done, sizes = [], []
        for block in torch.from_numpy(made.tokens(10_000, seed=5)).split(10):
            frames += stream.push(block).shape[1]
            done.append(work.taken())
            sizes.append(held(stream))
        assert frames == 68_907 - NARROW.overlap and set(done[-1]) == {"U-Net frames", "encoder keys"}
        assert_flat(done, sizes)

    def test_work_and_state_of_a_whole_stream_are_flat(self, tiny: tuple[Flow, Hift, Work]) -> None:
        flow, hift, work = tiny
        stream, samples = SpeechStream(flow, hift, NARROW, seed=0), 0
        done, sizes = [], []
        for block in made.tokens(1_287, seed=5)[:1_280].reshape(-1, 10):
            samples += len(stream.push(block))
            done.append(work.taken())
            sizes.append(held(stream))
        samples += len(stream.push(made.tokens(7))) + len(stream.finish())
        assert samples == 1_287 * 1_764 and len(done[-1]) == 3
        assert_flat(done, sizes)

    def test_ten_steps_are_ten_calls(self) -> None:
        stream = VOICE.stream(NARROW)
        calls: list[int] = []
        hook = stream.flow.get_submodule(ESTIMATOR).register_forward_hook(
            lambda _, given, __: calls.append(len(given[0]))
        )
        stream.push(TOKENS[:20])
        hook.remove()
        assert calls == [2] * 2 * STEPS


class TestRefusals:
    @pytest.mark.parametrize("tokens", [[16_384], [-1], [0, 5, 1 << 40]])
    def test_codes_out_of_range(self, tokens: list[int]) -> None:
        for decode in (VOICE.decode, VOICE.stream().push, lambda one: VOICE.decode(one, one_window=True)):
            with pytest.raises(ModelError, match="speech tokens are 0 ... 16383, found") as refused:
                decode(np.array(tokens))
            assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("tokens", [np.zeros(3), np.zeros((2, 3), np.int32), np.int32(3), np.array(["a"])])
    def test_what_are_no_tokens(self, tokens: np.ndarray) -> None:
        with pytest.raises(ModelError, match="whole numbers"):
            VOICE.decode(tokens)

    def test_missing_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENV, str(tmp_path))
        asked: list[Callable[[], Any]] = [VOICE.stream, VOICE.fingerprint, lambda: VOICE.codes]
        for ask in asked:
            with pytest.raises(ModelError, match=f"models fetch {WEIGHTS}"):
                ask()

    @pytest.mark.parametrize("name", ["config.yaml", "flow.pt", "hift.pt"])
    def test_a_file_that_is_cut_off(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = made.install(tmp_path) / name
        place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
        monkeypatch.setenv(ENV, str(tmp_path))
        with pytest.raises(ModelError, match=f"{name} .*fetch it again") as refused:
            VOICE.decode(TOKENS[:10])
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("name", ["flow.pt", "hift.pt"])
    def test_a_pickle_with_code_in_it(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trap = tmp_path / "ran"

        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (trap,)

        (made.install(tmp_path) / name).write_bytes(pickle.dumps(Trap()))
        monkeypatch.setenv(ENV, str(tmp_path))
        with pytest.raises(ModelError, match=f"{name} is refused"):
            VOICE.decode(TOKENS[:10])
        assert not trap.exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(ModelError, match="CUDA"):
            GlmVoice(device="cuda").stream()

    def test_a_precision_that_nobody_has(self) -> None:
        with pytest.raises(UsageError, match="float32, bfloat16"):
            GlmVoice(precision="float16")


def test_what_is_known_without_the_nets() -> None:
    assert VOICE.codes == 16_384 and VOICE.rate == 22_050 and VOICE.name == "glm_4_voice"


def test_the_fingerprint_is_all_that_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {VOICE.fingerprint(), GlmVoice(seed=1).fingerprint(), GlmVoice(precision="bfloat16").fingerprint()}
    assert len(known) == 3 and VOICE.fingerprint() == GlmVoice("auto").fingerprint() and len(VOICE.fingerprint()) == 16
    folder = made.install(tmp_path)
    state = made.weights(made.hift_shapes(made.SMALL))
    made.save(folder / "hift.pt", state | {"conv_post.bias": state["conv_post.bias"] + 1})
    monkeypatch.setenv(ENV, str(tmp_path))
    assert VOICE.fingerprint() not in known


def test_the_catalogue_says_that_it_is_not_free_for_all() -> None:
    model = entry(WEIGHTS)
    assert model.commercial is False and [file.path for file in model.files] == ["config.yaml", "flow.pt", "hift.pt"]
