"""`xstreamer train --plan`: figures that follow from one another, advice that works, refusals."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shards_made import make_shards

from manifests.errors import UsageError
from models.actor_facts import parameters, thinker_facts, train_flops
from models.thinker import BUNDLED, GLM_4_VOICE
from pipelines.cli import main
from pipelines.training.plan_figures import Corpus, advice, cluster_of, config_of, figures, network_seconds
from pipelines.training.plan_table import corpus_of
from training.recipe import Recipe, load_recipe, override

BASE = Corpus(100_000, 550_000.0, 20.0, 256, False, 4096, "here")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["train", "--plan", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_papers_pretraining(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--recipe", "pretrain")
    assert found["corpus"]["samples"] == 2_780_920
    assert found["steps"] == 3 * -(-2_780_920 // 512) == 16_296
    assert found["tokens_per_step"] == 512 * 17 * 64  # 5.5 s are 17 chunks
    assert found["fits"]
    flops = found["run_flops"] / (256 * 312e12 * found["cluster"]["mfu"] * 3600)
    assert found["hours"] == pytest.approx(flops)
    assert found["gpu_hours"] == pytest.approx(256 * flops)


def test_the_papers_finetuning(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--recipe", "finetune")
    assert (found["steps"], found["corpus"]["samples"]) == (200_000, 217_074)
    assert found["corpus"]["longest"] == 60
    assert found["fits"]


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_tables_say_what_the_object_says(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--recipe", recipe)
    assert main(["train", "--plan", "--recipe", recipe]) == 0
    shown = capsys.readouterr().out
    assert f"{found['steps']:,}" in shown
    assert f"{found['memory_bytes']['total'] / 1e9:,.1f}" in shown
    assert f"{found['memory_bytes']['thinker'] / 1e9:,.1f}" in shown


def test_of_shards_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_shards(tmp_path / "d", samples=6, chunks=[4, 8])
    found = plan(capsys, "--recipe", "tiny", "--gpus", "1", "--set", "batch=2", f"{folder}=2")
    assert (found["corpus"]["samples"], found["corpus"]["states"]) == (12, True)
    assert found["corpus"]["hidden"] == thinker_facts(BUNDLED).hidden
    assert (found["chunks"], found["tokens_per_step"]) == (6, 2 * 6 * 4)
    assert (found["thinker_step_flops"], found["memory_bytes"]["thinker"]) == (0, 0)
    assert main(["train", "--plan", "--recipe", "tiny", "--gpus", "1", "--hours", "3", str(folder)]) == 2
    assert "leave --hours" in capsys.readouterr().err


def test_a_plan_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan(capsys, "--recipe", "pretrain")
    assert not list(tmp_path.iterdir())


def test_flops_and_time_follow_from_the_recipe() -> None:
    recipe, cluster = load_recipe("pretrain"), cluster_of(64, "h100", 0.5)
    found = figures(recipe, BASE, cluster)
    assert found.step_flops == train_flops(config_of(recipe, BASE), [17] * 512, (8, 8))
    assert found.compute_s == pytest.approx((found.step_flops + found.thinker_step_flops) / (64 * 0.5 * 989e12))
    assert figures(recipe, replace(BASE, states=True), cluster).thinker_step_flops == 0
    assert figures(replace(recipe, checkpointing=False), BASE, cluster).step_hardware_flops < found.step_hardware_flops


def test_a_batch_that_does_not_divide_makes_all_wait_for_the_fullest_gpu() -> None:
    recipe = load_recipe("pretrain")
    even, odd = (figures(replace(recipe, batch=batch), BASE, cluster_of(256, "h100")) for batch in (512, 513))
    assert odd.compute_s == pytest.approx(1.5 * even.compute_s)


def told(recipe: Recipe, said: str) -> Recipe:
    """The recipe with what the advice says to set."""
    changes = dict(override(text) for text in re.findall(r"--set (\S+)", said))
    return replace(recipe, **changes)


@pytest.mark.parametrize(
    ("name", "gpus", "gpu", "changes"),
    [
        ("pretrain", 256, "a100-80", {"checkpointing": False}),
        ("pretrain", 256, "a100-80", {"micro_batch": 64, "batch": 16384}),
        ("pretrain", 64, "a100-80", {"replicas": 32}),
        ("finetune", 16, "a100-80", {"replicas": 4}),
        ("pretrain", 4, "h100", {}),
        ("finetune", 512, "h200", {"replicas": 512}),
    ],
)
def test_what_does_not_fit_fits_as_advised(name: str, gpus: int, gpu: str, changes: dict[str, Any]) -> None:
    recipe, cluster = replace(load_recipe(name), **changes), cluster_of(gpus, gpu)
    assert not figures(recipe, BASE, cluster).fits
    said = advice(recipe, BASE, cluster)
    assert said.startswith("it fits"), said
    assert figures(told(recipe, said), replace(BASE, states="--states" in said), cluster).fits


def test_where_nothing_fits_it_says_from_how_many_gpus_on() -> None:
    recipe = load_recipe("pretrain")
    said = advice(recipe, BASE, cluster_of(1, "h200"))
    assert said.startswith("no setting fits; on 2 GPUs")
    assert figures(told(recipe, said), replace(BASE, states=True), cluster_of(2, "h200")).fits
    said = advice(replace(recipe, batch=1), replace(BASE, longest=6000.0), cluster_of(1, "a100-80"))
    assert said.startswith("no setting fits: larger GPUs")


def test_nodes_share_a_network_and_one_node_needs_none() -> None:
    whole = parameters(config_of(load_recipe("pretrain"), BASE))
    assert network_seconds(whole, cluster_of(8, "a100-80"), 1, 1) == 0
    split = network_seconds(whole, cluster_of(256, "a100-80"), 1, 1)
    assert split == pytest.approx((2 + 2 + 4) * whole / (8 * 25e9))
    assert network_seconds(whole, cluster_of(256, "a100-80"), 1, 4) > 2 * split
    copies = network_seconds(whole, cluster_of(256, "a100-80"), 32, 4)
    assert copies == pytest.approx(8 * whole / (8 * 25e9))  # a copy a node: gradients alone, however many parts


def test_a_slow_network_is_the_limit_and_copies_are_advised() -> None:
    recipe = replace(load_recipe("pretrain"), micro_batch=1)
    cluster = replace(cluster_of(256, "a100-80"), network=4e9)
    found = figures(recipe, BASE, cluster)
    assert found.hours == pytest.approx(found.steps * found.network_s / 3600)
    said = advice(recipe, BASE, cluster)
    assert said.startswith("the network is the limit; --set replicas=")
    changed = figures(told(recipe, said.partition(" takes")[0]), BASE, cluster)
    assert changed.fits
    assert changed.hours < found.hours


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"hours": None, "samples": None, "longest": None, "size": None, "states": False, **given}
    )


def test_hours_without_shards() -> None:
    found = corpus_of(load_recipe("tiny"), options(hours=11.0))
    assert (found.samples, found.seconds, found.hidden) == (7200, 39600.0, thinker_facts(BUNDLED).hidden)
    found = corpus_of(load_recipe("pretrain"), options(hours=11.0, samples=9900, size=512, states=True))
    assert (found.samples, found.size, found.states) == (9900, 512, True)
    assert found.hidden == thinker_facts(GLM_4_VOICE).hidden


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "tiny"], "--hours"),
        ([], "--recipe"),
        (["--recipe", "tiny", "--hours", "1", "--set", "batch=2", "--gpus", "256"], "256 GPUs for 2 samples"),
        (["--recipe", "pretrain", "--gpus", "0"], "--gpus 0"),
        (["--recipe", "pretrain", "--gpu", "abacus"], "a100-80, h100, h200"),
        (["--recipe", "pretrain", "--mfu", "1.2"], "--mfu 1.2"),
        (["--recipe", "pretrain", "--set", "replicas=3"], "replicas = 3"),
        (["--recipe", "pretrain", "--hours", "-1"], "cannot be"),
        (["--recipe", "pretrain", "--hours", "nan"], "cannot be"),
        (["--recipe", "pretrain", "--hours", "10", "--samples", "1"], "cannot be"),
        (["--recipe", "pretrain", "--size", "250"], "divides by 32"),
        (["--recipe", "pretrain", "--samples", "10"], "--hours"),
        (["--recipe", "pretrain", "--longest", "inf"], "cannot be"),
    ],
)
def test_refusals_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--plan", *words]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert said in shown[0]


def test_replicas_that_do_not_divide() -> None:
    with pytest.raises(UsageError, match="replicas = 3 does not divide 256"):
        figures(replace(load_recipe("pretrain"), replicas=3), BASE, cluster_of(256, "h100"))
