"""Training recipes: the paper's numbers, what is refused, and that a recipe reads back as it was."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from manifests.errors import UsageError
from models import actor_config
from training import recipe as module
from training.recipe import Dataset, Recipe, as_toml, load_recipe, override, recipe_of, shipped


def test_the_shipped_recipes_are_the_papers_and_a_small_one() -> None:
    assert shipped() == ["finetune", "pretrain", "tiny"]
    pretrain, finetune, tiny = (load_recipe(name) for name in ("pretrain", "finetune", "tiny"))
    assert (pretrain.epochs, pretrain.steps, pretrain.batch, pretrain.micro_batch) == (3, 0, 256 * 2, 2)
    assert (finetune.epochs, finetune.steps) == (0, 200_000)
    for one in (pretrain, finetune):
        assert (one.preset, one.thinker, one.lr, one.dtype) == ("9b", "glm-4-voice-9b", 1e-5, "bfloat16")
        assert one.window * 8 / 25 == pytest.approx(10, abs=0.3)
        assert (one.history, one.reference, one.attention) == ("diffusion_forcing", "global", "chunk")
    assert (tiny.preset, tiny.thinker, tiny.dtype, tiny.compile) == ("tiny", "bundled", "float32", False)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_every_number_of_a_papers_recipe_says_whose_it_is(name: str) -> None:
    text = (resources.files("training.recipes") / f"{name}.toml").read_text()
    blanket = False
    for line in text.splitlines():
        value, _, comment = line.partition("#")
        blanket = blanket or "all below" in comment
        if "=" in value and not value.startswith("name"):
            assert blanket or "ours" in comment or any(c.isdigit() for c in comment), line


def test_words_of_a_recipe_are_those_of_the_actor() -> None:
    assert set(module.PRESETS) == set(actor_config.PRESETS)
    assert module.HISTORIES == actor_config.HISTORIES
    assert module.REFERENCES == actor_config.REFERENCES
    assert module.ATTENTIONS == actor_config.ATTENTIONS


@pytest.mark.parametrize("name", ["pretrain", "finetune", "tiny"])
def test_a_recipe_written_as_toml_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    datasets = [Dataset('a "b" \\ c\n', "sft", 0.5), Dataset("s3://x/é", "", 2.0)]
    recipe = load_recipe(name, {"datasets": datasets, "lr": 3e-7})
    path = tmp_path / "recipe.toml"
    path.write_text(as_toml(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
    assert tomllib.loads(as_toml(recipe))["lr"] == 3e-7


def test_overrides_replace_and_a_length_replaces_the_other() -> None:
    assert load_recipe("pretrain", {"steps": 7}).epochs == 0
    assert load_recipe("finetune", {"epochs": 2}).steps == 0
    assert load_recipe("tiny", dict([override("lr=2e-3")])).lr == 2e-3
    assert override("history=teacher_forcing") == ("history", "teacher_forcing")
    assert override("compile = true") == ("compile", True)
    assert override("betas=[0.9, 0.95]") == ("betas", [0.9, 0.95])
    assert override("init=/a/b c") == ("init", "/a/b c")
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        override("lr")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"warm_up": 3}, "did you mean 'warmup'"),
        ({"lr": "high"}, "lr must be a number"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"compile": 1}, "compile must be true or false"),
        ({"batch": 0}, "batch = 0 must be more than 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"lr": -1.0}, "lr = -1.0"),
        ({"preset": "huge"}, "choose from tiny, small, base, 9b"),
        ({"history": "none"}, "choose from diffusion_forcing, teacher_forcing"),
        ({"thinker": "gpt"}, "unknown thinker 'gpt'"),
        ({"steps": 5, "epochs": 5}, "not both"),
        ({"steps": 0, "epochs": 0}, "not neither"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"betas": [0.9, 1.0]}, "betas must be two numbers"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"clean_share": 1.0}, "clean_share = 1.0"),
        ({"init": ""}, "init must be"),
        ({"datasets": "x"}, "datasets must be a list"),
        ({"datasets": [{"path": "x", "wieght": 2}]}, "did you mean 'weight'"),
        ({"datasets": [{"path": "x", "weight": 0}]}, "must be more than 0"),
        ({"datasets": [{"weight": 1.0}]}, "'path' is missing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe("tiny", change)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a file nor one of finetune, pretrain, tiny"):
        load_recipe("tyni")
    path = tmp_path / "bad.toml"
    path.write_text("lr = = 3")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(str(path))
    with pytest.raises(UsageError, match="'batch' is missing"):
        recipe_of({"preset": "tiny", "thinker": "bundled", "lr": 1e-3, "micro_batch": 1}, "here")


def test_a_recipe_says_no_more_than_its_fields() -> None:
    assert set(tomllib.loads(as_toml(load_recipe("tiny")))) == set(Recipe.__dataclass_fields__) - {"datasets"}
