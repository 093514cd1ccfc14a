"""GLM-4-Voice's vocoder: the official one's numbers stage by stage, a stream that equals the whole.

tests/golden/glm_hift.npz is what the official code gives (github.com/THUDM/GLM-4-Voice, commit eb00ce9,
cosyvoice/hifigan, with torch 2.15.0 on the CPU, float32) for the weights of `makers.glm_voice` (SMALL, loaded
strictly). HiFTGenerator.inference of noise(7, "spectrogram", 0, 40) as mel frames, with OFFSETS for its random phases
and noise(8, "samples", 0, 40, 256 x 9) for its noise, gave pitch, source and sound; of samples, every third. mel_sound:
the last 4,096 samples, every third, of the 441 frames of the golden mel of tests/test_glm_flow.py.
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
from models import glm_flow
from models.clock import STORED_RATE
from models.glm_flow_config import read_config
from models.glm_flow_noise import noise
from models.glm_hift import FRAME, PITCH_REACH, REACH, Hift, HiftStream, folded, load

GOLDEN = np.load(Path(__file__).parent / "golden" / "glm_hift.npz")
BINS, FRAMES = made.SMALL.bins, 40
MEL = noise(7, "spectrogram", 0, FRAMES, BINS).T.contiguous()
LONG = noise(7, "longer", 0, 200, BINS).T.contiguous()
OFFSETS = torch.linspace(-3, 3, 9)
OFFSETS[0] = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.install(tmp_path_factory.mktemp("glm_hift"))


@pytest.fixture(scope="module")
def net(folder: Path) -> Hift:
    return load(folder, "", "cpu")


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    with torch.inference_mode():
        yield


def drawn(frames: int) -> Tensor:
    return noise(8, "samples", 0, frames, FRAME * 9).view(-1, 9)


def far(found: Tensor, name: str) -> float:
    golden = GOLDEN[name]
    assert found.shape == golden.shape
    return float(np.abs(found.numpy() - golden).max())


class TestParity:
    def test_pitch(self, net: Hift) -> None:
        golden = GOLDEN["pitch"]
        assert golden.std() > 50 and golden.min() < 10 < golden.max()
        assert far(net.f0_predictor(MEL), "pitch") < 5e-4  # Hz

    def test_source(self, net: Hift) -> None:
        source, _ = net.source(net.f0_predictor(MEL), 0.0, OFFSETS, drawn(FRAMES))
        assert GOLDEN["source"].std() > 0.05 and far(source[::3], "source") < 5e-5

    def test_sound(self, net: Hift) -> None:
        source, _ = net.source(net.f0_predictor(MEL), 0.0, OFFSETS, drawn(FRAMES))
        assert GOLDEN["sound"].std() > 0.05 and far(net(MEL, source)[::3], "sound") < 2e-4

    def test_tokens_to_sound(self, net: Hift, folder: Path) -> None:
        """After five seconds the pitch's rounding alone has moved nine harmonics' phases: the official code in
        float32 is 2.7e-3 from itself in float64."""
        tokens = torch.from_numpy(made.tokens(64, seed=1)).long()
        mel = glm_flow.whole(glm_flow.load(folder, "", "cpu", "float32"), tokens, seed=5)
        source, _ = net.source(net.f0_predictor(mel), 0.0, OFFSETS, drawn(441))
        assert far(net(mel, source)[-4096::3], "mel_sound") < 5e-3

    def test_names_and_sizes_of_the_official_file(self) -> None:
        shapes = made.hift_shapes(made.OFFICIAL)
        assert len(shapes) == 227 and sum(int(np.prod(shape)) for shape in shapes.values()) == 20_460_591

    def test_the_official_size_is_taken_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(made.config(made.OFFICIAL))
        with torch.device("meta"):
            own = Hift(read_config(tmp_path / "config.yaml")[1]).state_dict()
            state = folded({name: torch.empty(shape) for name, shape in made.hift_shapes(made.OFFICIAL).items()})
        assert {name: value.shape for name, value in own.items()} == {
            name: value.shape for name, value in state.items()
        }

    def test_folding_is_torchs_weight_norm(self) -> None:
        for kind in (torch.nn.Conv1d, torch.nn.ConvTranspose1d):
            layer = torch.nn.utils.weight_norm(kind(4, 6, 3))
            state = layer.state_dict()
            state["weight_g"] = 2 * state["weight_g"]
            layer.load_state_dict(state)
            weight = folded({f"x.{name}": value for name, value in state.items()})["x.weight"]
            layer(torch.zeros(1, 4, 9))
            assert torch.allclose(weight, layer.weight, atol=1e-6)


class TestStream:
    def sound(self, net: Hift, cuts: list[int], mel: Tensor = LONG) -> Tensor:
        stream = HiftStream(net, seed=0)
        pieces = [stream.push(piece) for piece in mel.split(cuts, 1)]
        return torch.cat([*pieces, stream.push(mel[:, :0], last=True)])

    @pytest.mark.parametrize("cuts", [[69, 69, 62], [1] * 60 + [140], [5, 100, 95], [200]])
    def test_any_pieces_give_what_the_whole_gives(self, net: Hift, cuts: list[int]) -> None:
        whole = HiftStream(net, seed=0).push(LONG, last=True)
        assert len(whole) == 200 * FRAME and float(whole.std()) > 0.05
        assert float((self.sound(net, cuts) - whole).abs().max()) < 1e-3

    @pytest.mark.parametrize("frames", [0, 1, 2, 5, 20])
    def test_few_frames(self, net: Hift, frames: int) -> None:
        sound = self.sound(net, [1] * frames or [0], LONG[:, :frames])
        assert sound.shape == (frames * FRAME,) and bool(sound.isfinite().all())

    def test_how_far_behind_sound_lies(self, net: Hift) -> None:
        stream = HiftStream(net, seed=0)
        given = [len(stream.push(piece)) for piece in LONG.split([HiftStream.LOOKAHEAD, 1, 30, 150], 1)]
        assert HiftStream.LOOKAHEAD == 19 and given == [0, FRAME, 30 * FRAME, 150 * FRAME]

    def test_what_was_given_holds_whatever_follows(self, net: Hift) -> None:
        """One frame changes sound within its reach and nowhere else."""
        other = LONG.clone()
        other[:, 100] += 3
        one, two = (net.f0_predictor(mel) for mel in (LONG, other))
        assert (one != two).nonzero()[:, 0].tolist() == list(range(100 - PITCH_REACH, 101 + PITCH_REACH))
        source, _ = net.source(one, 0.0, OFFSETS, drawn(200))
        bent = source.clone()
        bent[100 * FRAME : 101 * FRAME] *= -1
        for changed in (net(other, source), net(LONG, bent)):
            frames = (changed != net(LONG, source)).nonzero()[:, 0] // FRAME
            assert 100 - REACH <= int(frames.min()) <= 100 - REACH + 4
            assert 100 + REACH - 4 <= int(frames.max()) <= 100 + REACH

    def test_state_does_not_grow(self, net: Hift) -> None:
        stream, held = HiftStream(net, seed=0), []
        for piece in LONG.repeat(1, 4).split(40, 1):
            stream.push(piece)
            held.append(sum(value.numel() for value in vars(stream).values() if isinstance(value, Tensor)))
        assert len(set(held[1:])) == 1


class TestSource:
    def test_phase_goes_on_where_it_was(self, net: Hift) -> None:
        pitch = 80 + 200 * torch.rand(120, generator=torch.Generator().manual_seed(0))
        whole, end = net.source(pitch, 0.25, OFFSETS, drawn(120))
        phase, pieces = 0.25, []
        for at in range(0, 120, 7):
            piece, phase = net.source(pitch[at : at + 7], phase, OFFSETS, drawn(120)[at * FRAME : (at + 7) * FRAME])
            pieces.append(piece)
        assert torch.allclose(torch.cat(pieces), whole, atol=1e-6) and abs(phase - end) < 1e-9

    def test_no_step_where_pieces_meet(self, net: Hift) -> None:
        """A steady tone without noise: steps of its samples are as large where pieces meet as inside."""
        pitch, quiet = torch.full((10,), 220.0), torch.zeros(10 * FRAME, 9)
        first, phase = net.source(pitch, 0.0, OFFSETS, quiet)
        second, _ = net.source(pitch, phase, OFFSETS, quiet)
        steps = torch.cat([first, second]).diff().abs()
        assert float(steps[len(first) - 1]) <= float(steps[: len(first) - 1].max()) * 1.001
        begun, _ = net.source(pitch, 0.0, OFFSETS, quiet)
        assert float((first - begun).abs().max()) == 0 < float((second - begun).abs().max())

    def test_precision_does_not_wear_off(self, net: Hift) -> None:
        """Six minutes of a pitch that no binary number is: the phase is that of exact arithmetic."""
        phase, pitch = 0.0, torch.full((100,), 123.4)
        for _ in range(310):
            _, phase = net.source(pitch, phase, OFFSETS, torch.zeros(1, 9))
        hertz = float(pitch[0])
        assert abs((phase - 31_000 * FRAME * hertz / STORED_RATE + 0.5) % 1 - 0.5) < 1e-6

    def test_unvoiced_frames_are_noise(self, net: Hift) -> None:
        silent = torch.zeros(4)
        source, phase = net.source(silent, 0.3, OFFSETS, drawn(4))
        other, _ = net.source(silent, 0.9, OFFSETS, drawn(4))
        assert torch.equal(source, other) and phase == pytest.approx(0.3) and float(source.std()) > 0.01
        assert float(net.source(silent, 0.3, OFFSETS, 0 * drawn(4))[0].std()) < 1e-6


def test_another_model(tmp_path: Path) -> None:
    folder = made.install(tmp_path)
    made.save(folder / "hift.pt", made.weights(made.flow_shapes(made.SMALL)))
    with pytest.raises(ModelError, match="holds no Hift: .*fetch the weights again"):
        load(folder, "another", "cpu")


def test_a_list_in_the_place_of_tensors(tmp_path: Path) -> None:
    folder = made.install(tmp_path)
    torch.save([torch.zeros(3)], folder / "hift.pt")
    with pytest.raises(ModelError, match="holds a list, no table of tensors"):
        load(folder, "a list", "cpu")
