"""benchmarks/stream.py on a CPU, small, in real processes; its limits against counted work; the GPU's random Thinker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stream import goals
from benchmarks.stream_endless import gone
from benchmarks.stream_models import official_glm, random_actor, random_glm, states_of
from benchmarks.stream_parts import actor_limits, finish, guarded, pass_flops, running
from inference.dialogue import Dialogue
from inference.schedule import Plan
from models.actor_config import actor_config
from models.actor_facts import CARDS, parameters, thinker_facts
from models.clock import SEGMENT_SPEECH_TOKENS
from models.thinker import GLM_4_VOICE

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TINY = "--runs 1 --steps 2 --strides N --grid 2x2 --contexts 5 --tokens 2 --seconds 0.64 --chunks 400"
SETTINGS = "dct3d+fsq:1:1,none+none:1:2"  # the stride of the second is more than its steps


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream", *TINY.split(), "--settings", SETTINGS, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's table")
class TestTable:
    def test_every_part_is_measured(self, found: dict[str, Any]) -> None:
        (actor,), (thinker,), (stream, _) = (found[part] for part in ("actor", "thinker", "stream"))
        assert (actor["N"], actor["stride"], actor["in flight"]) == (2, 2, 1)
        assert actor["ms a round"] * 2 == pytest.approx(actor["ms a chunk"]["median"])
        assert actor["x real time"]["median"] * actor["s a minute"] == pytest.approx(60)
        assert thinker["Thinker"] == "bundled" and thinker["context"] == 5
        assert thinker["x real time"]["median"] == pytest.approx(thinker["drawn tokens/s"]["median"] / 18.75)
        assert 0 < stream["first frame s"]["least"] <= stream["first frame s"]["most"]
        assert stream["first frame s"]["median"] < stream["from the question s"]["median"]
        parts = sum(stream[f"{part} s"] for part in ("thinker", "actor", "pictures", "sound"))
        assert 0 < parts <= 1.05 * stream["s a minute"] and stream["pictures s"] > 0

    def test_an_endless_one_is_followed(self, found: dict[str, Any]) -> None:
        (row,) = found["endless"]
        assert row["chunks"] == 400 and row["least %"] <= row["rise %"] <= row["most %"]
        assert row["ms a chunk, first tenth"] > 0 and row["MB more at the peak"] >= 0

    def test_it_says_what_ran_and_has_no_goals_here(self, found: dict[str, Any]) -> None:
        assert found["preset"] == "tiny" and found["device"].startswith("CPU") and "goals" not in found
        assert found["actor parameters"] == parameters(actor_config("tiny", 192))
        assert "% of limit" not in found["actor"][0] and found["paper"] == {"thinker": 51.2, "actor": 58.2}

    def test_a_setting_that_fails_is_a_row(self, found: dict[str, Any]) -> None:
        row = found["stream"][1]
        assert row["setting"] == "none+none:1:2" and "stride 2 is more than the 1 steps" in row["failed"]


@pytest.mark.parametrize("rise", [0.0, 0.1, -0.02])
def test_a_rise_is_found_under_noise(rise: float) -> None:
    dice = np.random.default_rng(0)
    times = np.linspace(1 - rise / 2, 1 + rise / 2, 10_000) * dice.gamma(100, 0.01, 10_000)
    times[dice.integers(0, 10_000, 50)] *= 20  # the machine did something else
    found = gone(times)
    assert found["least %"] < 100 * rise < found["most %"] and found["most %"] - found["least %"] < 2


def test_a_setting_that_does_not_fit_is_a_row_and_no_end() -> None:
    def too_much() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    assert guarded({"N": 25}, too_much) == {
        "N": 25,
        "failed": "out of memory: CUDA out of memory. Tried to allocate 2 GiB",
    }
    assert guarded({"N": 25}, lambda: {"ms": 1}) == {"N": 25, "ms": 1}


def test_the_limit_is_just_under_what_a_round_computes() -> None:
    actor, grid = random_actor("tiny", CPU), (4, 4)
    assert all(bool(value.any()) for name, value in actor.named_parameters() if name.endswith("weight"))
    engine = running(actor, Plan(2, 1), grid)
    states = states_of(actor.config.states)
    with torch.inference_mode():
        finish(engine, states, 2)
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            finish(engine, states, 1)
    limit = pass_flops(actor.config, 3, 16)  # two chunks in flight and one to commit
    assert limit < counter.get_total_flops() < 1.4 * limit  # heads are widened, and the ring has spare places


def test_what_an_h200_allows() -> None:
    config, card = actor_config("9b", thinker_facts(GLM_4_VOICE).hidden), CARDS["h200"]
    slow, fast = (actor_limits(config, Plan(25, stride), 64, card) for stride in (25, 1))
    assert slow["weights"] == pytest.approx(25 * 2 * 9.62e9 / 4.8e12, rel=1e-3)
    assert slow["weights"] == pytest.approx(25 * fast["weights"])
    assert slow["FLOPs"] == pytest.approx(fast["FLOPs"], rel=0.02)  # a chunk goes through as many passes
    assert 0.032 < fast["FLOPs"] < 0.04 and fast["FLOPs"] > fast["weights"]


def test_goals_take_the_best_of_real_settings() -> None:
    def median(value: float) -> dict[str, float]:
        return {"median": value, "least": value, "most": value}

    graphs = {"Thinker": "glm-4-voice-9b", "CUDA graphs": "yes"}
    rows: dict[str, list[dict[str, Any]]] = {
        "actor": [
            {"N": 10, "stride": 1, "x real time": median(9.0)},
            {"N": 25, "stride": 1, "x real time": median(5.5)},
            {"N": 25, "stride": 5, "x real time": median(4.0)},
            {"N": 25, "failed": "out of memory"},
        ],
        "thinker": [{**graphs, "context": 512, "drawn % of limit": 70.0}, {**graphs, "context": 4096, "drawn % of limit": 59.0}],
        "stream": [
            {"setting": "none+none:25:1", "x real time": median(3.0), "first frame s": median(0.3)},
            {"setting": "dct3d+fsq:25:1", "x real time": median(2.5), "first frame s": median(0.7)},
            {"setting": "dct3d+fsq:10:2", "x real time": median(2.0), "first frame s": median(0.5)},
        ],
    }  # fmt: skip
    told = goals(rows)
    assert [(row["found"], row["met"]) for row in told] == [(5.5, "yes"), (59.0, "no"), (2.5, "yes"), (0.5, "yes")]
    assert told[0]["where"] == "N 25, stride 1" and told[3]["where"] == "setting dct3d+fsq:10:2"
    assert [row["found"] for row in goals({"actor": rows["actor"][3:]})] == ["not measured"] * 4


def test_the_random_thinker_of_a_gpu_holds_a_dialogue() -> None:
    sizes = {"hidden_size": 32, "ffn_hidden_size": 48, "kv_channels": 8, "num_attention_heads": 4, "num_layers": 2}
    thinker = random_glm({**official_glm(), **sizes}, CPU)
    numbers = [value for name, value in thinker.model.named_parameters() if value.dim() > 1]
    assert {value.dtype for value in thinker.model.parameters()} == {torch.bfloat16}
    assert all(bool(value.isfinite().all()) and float(value.float().std()) > 0 for value in numbers)
    dialogue = Dialogue(thinker, np.zeros(SEGMENT_SPEECH_TOKENS, np.int32), held=True)
    dialogue.ask("Tell me about the sea.")
    segment = next(dialogue.segments())
    assert segment.spoken and segment.states.shape == (39, 32) and len(segment.text) == 13
    assert 0.3 < float(segment.states.astype(np.float32).std()) < 3
