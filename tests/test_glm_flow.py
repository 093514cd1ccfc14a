"""GLM-4-Voice's flow: the official one's numbers stage by stage, windows that bound work, honest refusals.

tests/golden/glm_flow.npz is what the official code gives (github.com/THUDM/GLM-4-Voice, commit eb00ce9, cosyvoice/flow
and cosyvoice/transformer; github.com/shivammehta25/Matcha-TTS, commit 108906c, matcha/models/components; with torch
2.15.0, diffusers 0.42.1 on the CPU, float32) for the weights of `makers.glm_voice` (SMALL, loaded strictly) and for
tokens(64, seed=1). MaskedDiffWithXvec.inference with noise(5, "mel") in the place of its own noise gave states (what
leaves encoder_proj), regulated (what leaves length_regulator) and mel; continued: the same with the first 30 tokens as
prompt_token and half of noise(6, "known", 0, 200) as prompt_feat; short_states: of the first 13 tokens; velocity:
decoder.estimator of noise(9, "inputs", 0, 441, 64) in four parts, the third its first frame everywhere, at time 0.3.
Of frames, every fifth. Shapes of the official sizes were held against the official modules at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import glm_voice as made
from torch import Tensor

from manifests.errors import ModelError
from models.glm_flow import STEPS, Flow, FlowStream, Windows, frames_of, load, tokens_of_frames, whole
from models.glm_flow_config import read_config
from models.glm_flow_noise import noise

GOLDEN = np.load(Path(__file__).parent / "golden" / "glm_flow.npz")
TOKENS = torch.from_numpy(made.tokens(64, seed=1)).long()
LONG = torch.from_numpy(made.tokens(200, seed=3)).long()
BINS, FRAMES = made.SMALL.bins, 441


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.install(tmp_path_factory.mktemp("glm_flow"))


@pytest.fixture(scope="module")
def net(folder: Path) -> Flow:
    return load(folder, "", "cpu", "float32")


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    with torch.inference_mode():
        yield


def states_of(net: Flow, tokens: Tensor, limit: int | None = None) -> Tensor:
    past, found = None, []
    for block in tokens.split(net.config.block):
        states, past = net.encode(block, past, limit)
        found.append(states)
    return torch.cat(found)


def mel_of(net: Flow, known: Tensor) -> Tensor:
    spread = states_of(net, TOKENS)[tokens_of_frames(0, FRAMES)]
    return net.solve(spread, known, noise(5, "mel", 0, FRAMES, BINS).T)


def far(found: Tensor, name: str) -> float:
    golden = GOLDEN[name]
    assert found.shape == golden.shape and golden.std() > 0.5
    return float(np.abs(found.numpy() - golden).max())


class TestParity:
    def test_encoder(self, net: Flow) -> None:
        assert far(states_of(net, TOKENS), "states") < 1e-5

    def test_encoder_of_a_block_cut_short(self, net: Flow) -> None:
        assert far(states_of(net, TOKENS[:13]), "short_states") < 1e-5

    def test_length_regulator(self, net: Flow) -> None:
        spread = states_of(net, TOKENS)[tokens_of_frames(0, FRAMES)]
        assert far(net.length_regulator(spread)[:, ::5], "regulated") < 1e-5

    def test_estimator(self, net: Flow) -> None:
        given = noise(9, "inputs", 0, FRAMES, 4 * BINS).T.clone()
        given[2 * BINS : 3 * BINS] = given[2 * BINS : 3 * BINS, :1]
        found = net.decoder["estimator"](given[None], torch.tensor(0.3))[0]
        assert far(found[:, ::5], "velocity") < 2e-5

    def test_ten_steps_of_euler(self, net: Flow) -> None:
        assert far(mel_of(net, torch.zeros(BINS, FRAMES))[:, ::5], "mel") < 2e-5

    def test_frames_that_are_known(self, net: Flow) -> None:
        known = torch.zeros(BINS, FRAMES)
        known[:, :200] = 0.5 * noise(6, "known", 0, 200, BINS).T
        assert far(mel_of(net, known)[:, 200::5], "continued") < 2e-5

    def test_what_the_official_one_window_gives(self, net: Flow) -> None:
        assert far(whole(net, TOKENS, seed=5)[:, ::5], "mel") < 2e-5

    def test_names_and_sizes_of_the_official_file(self) -> None:
        shapes = made.flow_shapes(made.OFFICIAL)
        assert len(shapes) == 1185 and sum(int(np.prod(shape)) for shape in shapes.values()) == 111_166_208

    def test_the_official_size_is_taken_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(made.config(made.OFFICIAL))
        with torch.device("meta"):
            own = Flow(read_config(tmp_path / "config.yaml")[0]).state_dict()
        assert {name: tuple(value.shape) for name, value in own.items()} == made.flow_shapes(made.OFFICIAL)


class TestClock:
    def test_frames_of_tokens(self) -> None:
        assert [frames_of(count) for count in (0, 1, 10, 64, 128)] == [0, 7, 69, 441, 882]
        for count in (1, 7, 999, 10**6 + 1, 10**9):
            assert 0 <= 256 * frames_of(count) - 1764 * count < 256

    def test_tokens_of_frames(self) -> None:
        begin = frames_of(10**8)
        tokens = tokens_of_frames(begin, begin + 441)
        assert int(tokens[0]) == 10**8 and set(torch.bincount(tokens - 10**8).tolist()) == {6, 7}
        starts = torch.arange(begin, begin + 441) * 256
        assert bool((starts >= tokens * 1764).all() and (starts < (tokens + 1) * 1764).all())

    def test_official_spreading_where_it_is_exact(self) -> None:
        theirs = torch.nn.functional.interpolate(torch.arange(64.0)[None, None], size=441, mode="nearest")[0, 0]
        assert torch.equal(theirs.long(), tokens_of_frames(0, 441))


class TestNoise:
    def test_it_depends_on_the_place_alone(self) -> None:
        row = noise(0, "mel", 0, 100, 5)
        assert torch.equal(noise(0, "mel", 37, 81, 5), row[37:81]) and noise(0, "mel", 4, 4, 5).shape == (0, 5)
        assert not torch.equal(noise(1, "mel", 0, 100, 5), row) and not torch.equal(noise(0, "x", 0, 100, 5), row)

    def test_unit_variance_without_repetition(self) -> None:
        drawn = noise(0, "mel", 10**9, 10**9 + 2000, 20)
        assert abs(float(drawn.std()) - 1) < 0.02 and abs(float(drawn.mean())) < 0.02
        assert len(drawn.unique(dim=0)) == 2000


class TestStream:
    def frames(self, net: Flow, windows: Windows, tokens: Tensor = LONG) -> list[Tensor]:
        stream = FlowStream(net, windows, seed=0)
        pieces = [stream.push(block, last=len(block) < 10) for block in tokens.split(10)]
        return [*pieces, stream.push(tokens[:0], last=True)]

    def test_one_block_is_one_window(self, net: Flow) -> None:
        for count in (1, 9, 10):
            found = torch.cat(self.frames(net, Windows(), LONG[:count]), 1)
            assert torch.allclose(found, whole(net, LONG[:count], 0), atol=1e-5)

    @pytest.mark.parametrize("count", [11, 57, 200])
    def test_every_frame_once(self, net: Flow, count: int) -> None:
        pieces = self.frames(net, Windows(), LONG[:count])
        assert sum(piece.shape[1] for piece in pieces) == frames_of(count)
        assert all(piece.isfinite().all() for piece in pieces)
        ends = np.cumsum([piece.shape[1] for piece in pieces])
        assert ends[0] == frames_of(10) - 34

    def test_the_second_window_continues_the_first(self, net: Flow) -> None:
        """As officially: what is final is known to the next window, what is held is faded into."""
        first, second, *_ = self.frames(net, Windows(), LONG[:20])
        held = whole(net, LONG[:10], 0)[:, first.shape[1] :]
        known = torch.zeros(BINS, frames_of(20))
        known[:, : first.shape[1]] = first
        spread = states_of(net, LONG[:20])[tokens_of_frames(0, frames_of(20))]
        new = net.solve(spread, known, noise(0, "mel", 0, frames_of(20), BINS).T)[:, first.shape[1] :]
        share = torch.arange(1, 35) / 35
        wanted = torch.cat([held * (1 - share) + new[:, :34] * share, new[:, 34:-34]], 1)
        assert torch.allclose(second, wanted, atol=1e-5)

    def test_no_seam_between_windows(self, net: Flow) -> None:
        """What a stream changes against one window over everything jumps where windows meet no more than inside
        them; without overlap it does."""
        tokens = LONG[:130]
        reference = whole(net, tokens, 0)
        jumps = {}
        for overlap in (0, 34):
            pieces = self.frames(net, Windows(overlap=overlap), tokens)
            change = torch.cat(pieces, 1) - reference
            steps = change.diff(dim=1).norm(dim=0).numpy()
            at = np.cumsum([piece.shape[1] for piece in pieces])[:12] - 1
            jumps[overlap] = steps[at].mean() / np.delete(steps, at).mean()
        assert jumps[34] < 1.25 and jumps[0] > 1.75

    def test_attention_forgets_what_lies_beyond_its_limit(self, net: Flow) -> None:
        other = LONG.clone()
        other[:10] = other[:10].flip(0)
        one, two = (states_of(net, tokens, 20) for tokens in (LONG, other))
        assert not torch.equal(one[20:30], two[20:30])
        assert torch.equal(one[-100:], two[-100:])  # two layers, each 20 tokens back
        one, two = (states_of(net, tokens) for tokens in (LONG, other))
        assert not torch.equal(one[-100:], two[-100:])

    def test_attention_forgets_nothing_inside_its_limit(self, net: Flow) -> None:
        assert torch.equal(states_of(net, LONG, 200), states_of(net, LONG))

    def test_half_precision_is_close(self, net: Flow, folder: Path) -> None:
        half = load(folder, "", "cpu", "bfloat16")
        found, exact = whole(half, LONG[:30], 0), whole(net, LONG[:30], 0)
        assert found.dtype == torch.float32 and half.encoder_proj.weight.dtype == torch.bfloat16
        assert 0 < float((found - exact).norm() / exact.norm()) < 0.05

    def test_guidance_is_one_batch(self, net: Flow) -> None:
        shapes: list[tuple[int, ...]] = []
        hook = net.decoder["estimator"].register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
        whole(net, LONG[:10], 0)
        hook.remove()
        assert shapes == [(2, 4 * BINS, 69)] * STEPS


class TestCheckpoint:
    def test_weights_are_frozen(self, net: Flow) -> None:
        assert not net.training and not any(value.requires_grad for value in net.parameters())

    @pytest.mark.parametrize(
        "change, told",
        [
            (("block_rel_selfattn", "rel_selfattn"), "selfattention_layer_type is 'rel_selfattn'"),
            (("input_frame_rate: 12.5", "input_frame_rate: 50"), "input_frame_rate is 50"),
            (("vocab_size: 16384", "vocab_size: 99999999"), "vocab_size is 99999999"),
            (("num_mid_blocks: 2", "num_mid_blocks: 9999"), "num_mid_blocks is 9999"),
            (("channels: [16, 24]", "channels: [16, 20]"), "do not divide"),
            (("channels: [16, 24]", "channels: all"), "channels is 'all'"),
            (("inference_cfg_rate: 0.7", "inference_cfg_rate: a lot"), "inference_cfg_rate is 'a lot'"),
            (("in_channels: 64", "in_channels: 60"), "in_channels is 60, not 64"),
            (("attention_heads: 4", "attention_heads: 5"), "5 heads do not divide"),
            (("flow: !new:", "flow: !!python/object/apply:"), "not readable as YAML"),
            (("flow: !new:", "flow: !other:"), "not readable as YAML"),
            (("flow:", "flows:"), "is None"),
            (("hift:", "hift: ["), "not readable as YAML"),
        ],
    )
    def test_another_config(self, tmp_path: Path, change: tuple[str, str], told: str) -> None:
        text = made.config(made.SMALL)
        assert change[0] in text
        (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
        with pytest.raises(ModelError) as refused:
            read_config(tmp_path / "config.yaml")
        assert told in str(refused.value) and "fetch it again" in str(refused.value)

    @pytest.mark.parametrize(
        "content", [b"\xff\xfe\x00", b"- 1", b"", b"a: &a [*a]", b"[" * 5000, b"x" * (1 << 20) + b"y"]
    )
    def test_no_config_at_all(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(ModelError, match="fetch it again"):
            read_config(tmp_path / "config.yaml")

    def test_the_config_runs_nothing(self, tmp_path: Path) -> None:
        trap = tmp_path / "ran"
        text = made.config(made.SMALL).replace("!apply:random.seed [1986]", f"!apply:os.mkdir ['{trap}']", 1)
        (tmp_path / "config.yaml").write_text(text)
        assert read_config(tmp_path / "config.yaml")[0].codes == 16_384 and not trap.exists()

    def test_another_model(self, tmp_path: Path) -> None:
        folder = made.install(tmp_path)
        made.save(folder / "flow.pt", made.weights(made.hift_shapes(made.SMALL)))
        with pytest.raises(ModelError, match="holds no Flow: .*fetch the weights again"):
            load(folder, "another", "cpu", "float32")

    def test_other_sizes_than_the_config_names(self, tmp_path: Path) -> None:
        folder = made.install(tmp_path)
        (folder / "config.yaml").write_text(made.config(made.OFFICIAL))
        with pytest.raises(ModelError, match=r"is \[16384, 24\], not \[16384, 512\]"):
            load(folder, "other sizes", "cpu", "float32")
