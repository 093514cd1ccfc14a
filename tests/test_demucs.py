"""Demucs: the voice in place, to the sample, in windows that leave no seam; files that are not its own are refused."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import demucs as maker
from spoken import NAMES, clip_with, pink, si_sdr, speech, with_noise
from tensors_alive import alive

from curation.audio import Audio
from curation.clip import Clip
from curation.demucs_denoise import DemucsDenoise, placed
from curation.denoise import MARGIN_S, SpectralGate
from curation.stage import Unmeasured
from manifests.errors import ModelError
from models.clock import STORED_RATE
from models.separation import RATE, load_htdemucs, vocals

GAIN = 0.5
HALF_DB = 20 * np.log10(1 / GAIN)


@pytest.fixture(scope="session")
def amplifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all weights in which htdemucs gives half of what it hears."""
    folder = tmp_path_factory.mktemp("amplifier")
    maker.make(folder / "htdemucs", gain=GAIN)
    return folder


@pytest.fixture(scope="session")
def scrambler(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A net of random weights, loaded."""
    folder = tmp_path_factory.mktemp("scrambler")
    maker.make(folder, gain=None)
    return load_htdemucs(folder / maker.FILE, "cpu")


@pytest.fixture
def models(amplifier: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSTREAMER_MODELS", str(amplifier))
    return amplifier


def net(folder: Path) -> Any:
    return load_htdemucs(folder / "htdemucs" / maker.FILE, "cpu")


def talk(seconds: float, rate: int = STORED_RATE) -> np.ndarray:
    clean = speech(NAMES[0], rate)[: round(seconds * rate)]
    return with_noise(clean, pink(len(clean)), 15.0)


class TestVocals:
    def test_it_equals_the_library(self, scrambler: Any) -> None:
        """`demucs.api.Separator.separate_tensor` with no shifts: its normalisation and its `apply_model`."""
        from demucs.apply import apply_model

        samples = talk(4.3, RATE)
        mix = torch.from_numpy(samples).expand(2, -1)
        mean, std = mix.mean(0).mean(), mix.mean(0).std() + 1e-8
        with torch.inference_mode():
            stems = apply_model(scrambler, ((mix - mean) / std)[None], shifts=0, split=True, overlap=0.25) * std + mean
        want = stems[0, 3].mean(0).numpy()
        got = vocals(scrambler, samples, "cpu")
        assert np.abs(want).max() > 1e-3
        np.testing.assert_allclose(got, want, atol=2e-6)

    def test_no_window_shows(self, amplifier: Path) -> None:
        """Windows of 3.9 s, faded over 1 s: the error is of one size at the seams and elsewhere."""
        samples = talk(10.0, RATE)
        model = net(amplifier)
        wrong = np.abs(vocals(model, samples, "cpu") - GAIN * samples)
        stride = int(0.75 * int(RATE * model.segment))
        seams = np.concatenate([wrong[at - 2000 : at + 2000] for at in range(stride, len(samples) - 2000, stride)])
        assert wrong.max() < 0.02 * np.abs(samples).max()
        assert seams.mean() < 1.5 * wrong.mean()

    @pytest.mark.parametrize("count", [1, 30, 5_000, int(3.9 * RATE), int(3.9 * RATE) + 1])
    def test_any_length_comes_back_as_long(self, amplifier: Path, count: int) -> None:
        samples = talk(4.0, RATE)[-count:]
        out = vocals(net(amplifier), samples, "cpu")
        assert out.dtype == np.float32 and out.shape == (count,) and np.isfinite(out).all()

    def test_the_same_sound_gives_the_same_bytes(self, scrambler: Any) -> None:
        samples = talk(2.5, RATE)
        first = vocals(scrambler, samples, "cpu")
        np.random.seed(1)
        torch.manual_seed(7)
        assert vocals(scrambler, samples, "cpu").tobytes() == first.tobytes()

    def test_louder_sound_gives_a_louder_voice(self, scrambler: Any) -> None:
        samples = talk(2.5, RATE)
        np.testing.assert_allclose(
            vocals(scrambler, 4 * samples, "cpu"), 4 * vocals(scrambler, samples, "cpu"), atol=1e-5
        )

    def test_memory_grows_by_the_recording_alone(self, amplifier: Path) -> None:
        """The net is shown one window at a time, and when it is, no tensor is kept of the windows before."""
        model, shown, kept = net(amplifier), [], []

        def look(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
            shown.append(given[0].shape[-1])
            kept.append(sum(one.nbytes for one in alive() if id(one) not in own))

        samples = np.resize(talk(5.0, RATE), 13 * RATE)
        tracemalloc.start()
        vocals(model, samples, "cpu")
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        hook = model.register_forward_pre_hook(look)
        try:
            vocals(model, samples, "cpu")
        finally:
            hook.remove()
        assert len(shown) == 5 and set(shown) == {int(RATE * model.segment)}
        assert kept[-1] <= kept[1] + 1024
        assert arrays < 6 * samples.nbytes  # itself normalised, the voice, the sum of the fades, the answer


class TestStage:
    def test_the_voice_stays_in_place_to_the_sample(self, models: Path, tmp_path: Path) -> None:
        sound = talk(6.0)
        clip = clip_with(tmp_path / "talk.mkv", sound)
        product = DemucsDenoise().measure(clip).product
        assert product.rate == STORED_RATE and product.start_s == 0 and product.samples.dtype == np.float32
        heard = clip.audio(STORED_RATE, -MARGIN_S, clip.seconds + MARGIN_S).samples
        assert len(product.samples) == len(heard)
        shifts = range(-3, 4)
        middle = slice(5000, -5000)
        fits = [float(np.roll(product.samples, -shift)[middle] @ heard[middle]) for shift in shifts]
        assert shifts[int(np.argmax(fits))] == 0
        assert si_sdr(heard[middle], product.samples[middle]) > 30

    @pytest.mark.parametrize("rate", [44_100, 48_000])
    def test_whatever_rate_the_source_has(self, models: Path, tmp_path: Path, rate: int) -> None:
        clip = clip_with(tmp_path / "talk.mkv", talk(4.0, rate), rate=rate)
        product = DemucsDenoise().measure(clip).product
        want = clip.audio(STORED_RATE, -MARGIN_S, clip.seconds + MARGIN_S)
        assert (product.start_s, len(product.samples)) == (want.start_s, len(want.samples))
        assert si_sdr(want.samples[5000:-5000], product.samples[5000:-5000]) > 30

    def test_it_measures_what_the_bundled_one_does(self, models: Path, tmp_path: Path) -> None:
        clip = clip_with(tmp_path / "talk.mkv", talk(6.0))
        found, bundled = DemucsDenoise().measure(clip).measures, SpectralGate().measure(clip).measures
        assert found["noise_snr_db"] == bundled["noise_snr_db"]
        assert found["noise_removed_db"] == pytest.approx(HALF_DB, abs=0.2)

    def test_margins_and_the_same_again(self, models: Path, tmp_path: Path) -> None:
        whole = clip_with(tmp_path / "long.mkv", talk(7.0))
        clip, again = (Clip("part", whole.uri, whole.info, 1.04, 6.0) for _ in range(2))
        result = DemucsDenoise().measure(clip)
        made = DemucsDenoise().product(again, {})
        assert made.start_s == result.product.start_s == pytest.approx(-MARGIN_S, abs=1 / STORED_RATE)
        assert made.samples.tobytes() == result.product.samples.tobytes()

    def test_without_a_voice_the_sound_stays_as_it_is(self, models: Path, tmp_path: Path) -> None:
        clip = clip_with(tmp_path / "hiss.mkv", pink(4 * STORED_RATE) * 0.05)
        result = DemucsDenoise().measure(clip)
        assert result.measures == {"noise_snr_db": None, "noise_removed_db": 0.0}
        np.testing.assert_array_equal(result.product.samples, clip.audio(STORED_RATE, -MARGIN_S, 4.5).samples)

    def test_without_sound_nothing_is_measured(self, models: Path, tmp_path: Path) -> None:
        with pytest.raises(Unmeasured, match="sound"):
            DemucsDenoise().measure(clip_with(tmp_path / "mute.mkv", None, seconds=3.0))

    def test_a_device_that_is_not_there_is_an_error(self, models: Path, tmp_path: Path) -> None:
        device = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
        with pytest.raises(ModelError, match="CUDA"):
            DemucsDenoise(device=device).measure(clip_with(tmp_path / "talk.mkv", talk(2.0)))

    def test_missing_weights_name_the_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path / "none"))
        with pytest.raises(ModelError, match="models fetch htdemucs"):
            DemucsDenoise().measure(clip_with(tmp_path / "talk.mkv", talk(2.0)))
        with pytest.raises(ModelError, match="models fetch htdemucs"):
            DemucsDenoise().revision()


@given(st.integers(-60, 60), st.integers(0, 40), st.integers(0, 50))
def test_sound_is_placed_where_it_lies(first: int, length: int, count: int) -> None:
    samples = np.arange(1, length + 1, dtype=np.float32)
    out = placed(Audio(samples, 100, 2.0 + first / 100), 2.0, count)
    want = [at - first + 1 if 0 <= at - first < length else 0 for at in range(count)]
    assert out.tolist() == want


class TestBadFiles:
    """Each one line that names the file, and none runs what is in it."""

    def refused(self, path: Path, match: str) -> None:
        with pytest.raises(ModelError, match=match) as error:
            load_htdemucs(path, "cpu")
        assert path.name in str(error.value) and "\n" not in str(error.value)

    def stored(self, **changed: Any) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = maker.HTDemucs(**(maker.OFFICIAL | maker.SMALL))
        return maker.package(model) | changed

    def test_code_in_the_pickle_is_not_run(self, tmp_path: Path) -> None:
        trap = tmp_path / "sprung"

        class Bomb:
            def __reduce__(self) -> Any:
                return (Path.touch, (trap,))

        path = tmp_path / "bomb.th"
        maker.write(self.stored(training_args=Bomb()), path)
        self.refused(path, "could run code")
        assert not trap.exists()

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_a_plain_pickle(self, tmp_path: Path) -> None:
        path = tmp_path / "plain.th"
        path.write_bytes(pickle.dumps({"klass": "HTDemucs", "state": {}}))
        self.refused(path, "no HTDemucs|no whole torch file|refused")

    def test_the_file_builds_no_net_itself(self, tmp_path: Path) -> None:
        """The class may be named; a pickle that calls it gets a stand-in, which is no class of a net."""

        class Built:
            def __reduce__(self) -> Any:
                return (maker.HTDemucs, ())

        path = tmp_path / "built.th"
        maker.write(self.stored(klass=Built()), path)
        self.refused(path, "no HTDemucs")

    def test_a_file_cut_off(self, tmp_path: Path) -> None:
        maker.make(tmp_path)
        path = tmp_path / maker.FILE
        path.write_bytes(path.read_bytes()[:-5000])
        self.refused(path, "no whole torch file")

    def test_another_model(self, tmp_path: Path) -> None:
        path = tmp_path / "other.th"
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
        self.refused(path, "no HTDemucs")

    @pytest.mark.parametrize(
        "changed",
        [
            {"channels": 10**9}, {"t_layers": 1000}, {"depth": -1}, {"segment": 1000}, {"segment": "long"},
            {"sources": [["vocals"] * 9, {"a": 1}]}, {"nothing_of_the_sort": 1}, {"rescale": float("inf")},
        ],
        ids=str,
    )  # fmt: skip
    def test_arguments_that_no_htdemucs_has(self, tmp_path: Path, changed: dict[str, Any]) -> None:
        stored = self.stored()
        path = tmp_path / "odd.th"
        maker.write(stored | {"kwargs": stored["kwargs"] | changed}, path)
        self.refused(path, f"argument '{next(iter(changed))}'")

    def test_tensors_of_a_wider_net(self, tmp_path: Path) -> None:
        stored = self.stored()
        path = tmp_path / "wide.th"
        maker.write(stored | {"kwargs": stored["kwargs"] | {"channels": 50_000}}, path)
        self.refused(path, r"holds no HTDemucs: .* is \[.*\], not \[.*\]")

    def test_a_tensor_is_missing(self, tmp_path: Path) -> None:
        stored = self.stored()
        del stored["state"]["tdecoder.0.conv_tr.bias"]
        path = tmp_path / "less.th"
        maker.write(stored, path)
        self.refused(path, r"tdecoder\.0\.conv_tr\.bias is missing")

    def test_another_net_of_the_same_class(self, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            model = maker.HTDemucs(**(maker.OFFICIAL | maker.SMALL | {"sources": ["drums", "bass"]}))
        path = tmp_path / "band.th"
        maker.write(maker.package(model), path)
        self.refused(path, "stem 'vocals'")
