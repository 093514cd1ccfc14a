"""What people see of a run, piece by piece: log, curves, film, ranks, and how a command line is read."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards_made import make_sample

from manifests.errors import DatasetError, ModelError, UsageError
from models.video_codec import Dct3d
from pipelines import cli
from pipelines.progress import Bar
from pipelines.training import curves, film, ranks
from pipelines.training.asked import named, split
from pipelines.training.log import LOG, Log, finite, rows
from pipelines.training.watch import Watch, high, note, row_of, scalars
from training.events import Sampled, Started, Step, Validated
from training.recipe import load_recipe

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, None, 0.9, 1.0)


def step(number: int, **more: Any) -> Step:
    """A step as the trainer tells it, its loss falling."""
    values: dict[str, Any] = {
        "step": number, "epoch": 0, "loss": 1 / number, "by_level": LEVELS, "by_position": (0.5, 0.6, None),
        "grad_norm": 2.0, "lr": 1e-3, "samples": 4, "chunks": 40, "tokens": 640, "padding": 0.1, "damaged": 0,
        "seconds": 0.5, "wait_s": 0.05, "thinker_s": 0.1, "memory": 2_000_000_000, "flops": 1e12, "mfu": None,
    }  # fmt: skip
    return Step(**values | more)


def begin(at: int = 0) -> Started:
    return Started(at, 100, 10, 40, 4_000_000, 1, "cpu", "bundled 0")


def no_film(event: Sampled, path: Path) -> None:
    raise AssertionError("nothing was sampled")


# -- the log -------------------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.floats() | st.integers() | st.text() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_every_figure_goes_into_json(value: Any) -> None:
    again = json.loads(json.dumps(finite(value), allow_nan=False))
    if isinstance(value, float):
        assert again is None if not math.isfinite(value) else again == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("torn", ["", '{"kind": "step", "st', "\n"])
def test_a_run_that_goes_on_loses_later_lines_alone(tmp_path: Path, torn: str) -> None:
    log = Log(tmp_path)
    for number in range(6):
        log.write({"kind": "step" if number else "started", "step": number})
    log.close()
    if torn.strip():
        with (tmp_path / LOG).open("a") as file:
            file.write(torn)
    again = Log(tmp_path, resumed=3)
    again.write({"kind": "started", "step": 3})
    again.close()
    assert [(row["kind"], row["step"]) for row in rows(tmp_path / LOG)] == [
        ("started", 0), ("step", 1), ("step", 2), ("step", 3), ("started", 3),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write({"kind": "step", "step": 1})
    assert [row["step"] for row in rows(tmp_path / LOG)] == [1]
    log.close()


# -- the watch -----------------------------------------------------------------------------------------------


def test_rates_come_from_the_step() -> None:
    row = row_of(step(1))
    assert (row["samples_per_s"], row["tokens_per_s"]) == (8, 1280)
    assert (row["wait_share"], row["thinker_share"], row["memory_gb"]) == pytest.approx((0.1, 0.2, 2.0))
    assert row["loss_high"] == high(LEVELS) == pytest.approx((0.6 + 0.7 + 0.9 + 1.0) / 4)
    assert high((None,) * 10) is None
    assert note(row) == "loss 1.0000 high 0.8000 8.00 samples/s 1,280 tokens/s data 10%"
    assert note(row_of(step(1, mfu=0.51, damaged=3))).endswith("MFU 51% 3 damaged")


def test_scalars_leave_out_what_was_not_measured() -> None:
    tags = dict(scalars(row_of(step(1))))
    assert tags["training loss by level/0.9"] == 1.0 and "training loss by level/0.7" not in tags
    assert tags["training loss by position/02.6 s"] == 0.6 and "speed/MFU" not in tags
    validated = Validated(4, 0.5, LEVELS, 0.4, LEVELS, "val", 8, 1.0)
    assert dict(scalars(row_of(validated)))["loss/validation of the average"] == 0.4
    assert not list(scalars(row_of(begin())))


def test_steps_are_logged_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", {"log_every": 40})
    with Watch(tmp_path, recipe, no_film, resumed=False, quiet=True) as watch:
        watch.see(begin())
        for number in range(1, 101):
            watch.see(step(number, notes=("sample x is damaged",) if number == 7 else ()))
    assert [row["step"] for row in rows(tmp_path / LOG) if row["kind"] == "step"] == [7, 40, 80, 100]


@pytest.mark.parametrize(
    ("gone", "says"), [("torch.utils.tensorboard", "no TensorBoard"), ("matplotlib.figure", "no matplotlib")]
)
def test_a_missing_package_is_told_and_stops_nothing(
    gone: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, gone, None)
    with Watch(tmp_path, load_recipe("tiny"), no_film, resumed=False, quiet=True) as watch:
        watch.see(begin())
        watch.see(step(1))
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and says in told and "xstreamer[train]" in told
    assert len(list(rows(tmp_path / LOG))) == 2


def test_a_film_that_fails_is_told_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(event: Sampled, path: Path) -> None:
        raise DatasetError("the sample is gone")

    sampled = Sampled(2, np.zeros((3, 128, 2, 2), np.float32), np.zeros((128, 2, 2), np.float32), "key", {}, "val", 1.0)
    with Watch(tmp_path, load_recipe("tiny"), failing, resumed=False, quiet=True) as watch:
        watch.see(begin())
        watch.see(sampled)
    assert "no film of step 2: the sample is gone" in capsys.readouterr().err
    assert list(rows(tmp_path / LOG))[-1]["error"] == "the sample is gone"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [72, 80, 100, 160])
def test_a_bar_fits_its_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    with Bar("train", 40, "steps") as bar:
        bar.add(3, "loss 1.0046 high 0.9 1.22 samples/s 1,209 tokens/s data 0% and so on without an end" * 2)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    shown = [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert all(len(line.rstrip()) <= columns and "3/40 steps" in line for line in shown if "loss" in line)
    assert any("3/40 steps" in line and "loss 1" in line for line in shown), shown
    assert not any("and so on" in line and "steps" not in line for line in shown)  # nothing on a second line


def test_a_bar_that_goes_on_counts_its_own_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("train", 100, "steps", begun=90) as bar:
        bar.add(1)
    told = capsys.readouterr().err
    rate = float(told.split("steps, ")[1].split("/s")[0])
    left = float(told.split("/s, ")[1].split(" s left")[0])
    assert "91/100 steps" in told and rate * left == pytest.approx(9, abs=0.6 * rate + 0.06 * left + 1)


# -- curves --------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 50))
def test_points_are_means_of_neighbours(count: int, most: int) -> None:
    steps = [
        {"kind": "step", "step": n + 1, "loss": float(n), "mfu": None, "by_level": [float(n), None]}
        for n in range(count)
    ]
    points = curves.gathered(steps, most)
    assert len(points.step) == min(count, most) and points.step[-1] == count
    sizes = np.diff(np.concatenate([[0], points.step]))
    assert np.dot(points.of("loss"), sizes) == pytest.approx(count * (count - 1) / 2)
    assert (
        np.array_equal(points.of("by_level")[:, 0], points.of("loss")) and np.isnan(points.of("by_level")[:, 1]).all()
    )
    assert np.isnan(points.of("mfu")).all() and np.isnan(points.of("nothing")).all()


def test_a_run_without_steps_has_no_curves(tmp_path: Path) -> None:
    Log(tmp_path).write({"kind": "started", "step": 0})
    assert curves.draw(tmp_path, "nothing yet") is None and not (tmp_path / curves.CURVES).exists()


# -- the film ------------------------------------------------------------------------------------------------


def members_of(chunks: int = 4) -> dict[str, bytes]:
    return dict(make_sample(3, chunks, (2, 4), with_states=False)[1])


def filmed(path: Path, members: dict[str, bytes], chunks: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(frames, sound) of a film whose left is the real one too."""
    latents = np.load(io.BytesIO(members["latents.npy"])).astype(np.float32)
    film.write_sample(path, latents[1 : 1 + chunks], latents[0], members, "step 5", "cpu")
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return frames, None
        return frames, np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_both_sides_are_alike_where_the_actor_is_perfect(tmp_path: Path) -> None:
    """A wide picture, and fewer chunks than the sample has."""
    frames, sound = filmed(tmp_path / "films" / "f.mp4", members_of(), 3)
    width = 2 * 256
    assert frames.shape == (24, 24 + 256, 256 + 2 * width, 3) and sound is not None
    left, right = frames[:, 24:, 256 : 256 + width], frames[:, 24:, 256 + width :]
    assert np.abs(left.astype(float) - right).mean() < 2
    assert np.abs(np.diff(frames[:, 24:, 256:].astype(float), axis=0)).max() > 5  # it moves
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["f.mp4"]


def test_without_its_sound_a_sample_is_heard_from_its_tokens(tmp_path: Path) -> None:
    members = members_of()
    del members["flac"]
    _, sound = filmed(tmp_path / "f.mp4", members, 4)
    assert sound is not None and np.abs(sound).max() > 0.01
    facts = json.loads(members["json"])
    facts["codecs"]["speech"] = "glm_4_voice 0123456789abcdef"
    members["json"] = json.dumps(facts).encode()
    assert filmed(tmp_path / "g.mp4", members, 4)[1] is None


def test_codecs_that_cannot_decode_are_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    assert isinstance(film.codec_of(f"dct3d {Dct3d().fingerprint()}"), Dct3d)
    with pytest.raises(ModelError, match="no video codec 'h264' here"):
        film.codec_of("h264 0123")
    with pytest.raises(ModelError, match="curate them again"):
        film.codec_of("dct3d 0123456789abcdef")
    with pytest.raises(ModelError, match="models fetch.*--set sample_every=0"):
        film.codec_of("ltx_video_0.9.0 0123456789abcdef")


def test_a_film_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    members = members_of()
    members["flac"] = b"no sound at all"
    with pytest.raises(Exception, match=r"(?i)format|unrecogni"):
        filmed(tmp_path / "f.mp4", members, 2)
    assert list(tmp_path.iterdir()) == []


# -- ranks, and the command line -----------------------------------------------------------------------------


def test_errors_of_other_processes_carry_their_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "OTHERS_WAIT_S", 0.0)
    for rank, starts in (("0", "xstreamer: name a recipe"), ("3", "xstreamer: rank 3: name a recipe")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert cli.main(["train", "nowhere"]) == 2
        assert capsys.readouterr().err.startswith(starts)


def test_weights_stand_behind_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split("a/b=0.5") == ("a/b", 0.5) and split("s3://x/y=2") == ("s3://x/y", 2.0)
    assert split("a/b") == ("a/b", None) and split("a=b") == ("a=b", None)
    monkeypatch.chdir(tmp_path)
    Path("run=2").mkdir()
    assert split("run=2") == ("run=2", None)
    found = named(["a", "b/index.json"], [2.0, 0.5], "sft")
    assert [(d.path, d.profile, d.weight) for d in found] == [
        (str(tmp_path / "a"), "sft", 2.0),
        (str(tmp_path / "b/index.json"), "", 0.5),
    ]
    assert named(["s3://x/y"], [], None)[0].path == "s3://x/y"
    for bad in (["a=nan"], ["a=-1"], ["=2"]):
        with pytest.raises(UsageError, match="PATH=WEIGHT"):
            named(bad, [], None)
    with pytest.raises(UsageError, match="not both"):
        named(["a=2"], [1.0], None)
