"""What is trained, on what, and how: a frozen set of numbers, in TOML.

The recipes beside this file carry the paper's numbers (section 4.1) and say which are ours. A recipe knows no
device and no number of machines: the same recipe means the same training anywhere.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from manifests.errors import UsageError
from models.thinker import kind_of

PRESETS = ("tiny", "small", "base", "9b")
HISTORIES = ("diffusion_forcing", "teacher_forcing")
REFERENCES = ("global", "none")
ATTENTIONS = ("chunk", "token_causal")
DTYPES = ("bfloat16", "float32")
RANDOM, GLM, CHECKPOINT = "random", "glm-4-voice-9b", "checkpoint"


@dataclass(frozen=True)
class Dataset:
    """Shards to train on. path: the folder or fsspec URL of a profile's shards, its index.json, or of a dataset when
    `profile` names one. weight: passes an epoch, 2 for twice, 0.5 for half of it."""

    path: str
    profile: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A training run, whole. Numbers of samples and steps are global, over all machines.

    preset, history, reference, attention, window: the Actor (`models.actor`), window in chunks. thinker: whose states
    it follows. init: "random", "glm-4-voice-9b", or the path of a pretrained Actor ("checkpoint": one must be named).
    epochs or steps: how long, one of the two, the other 0. batch: samples a step, over all ranks; micro_batch:
    samples that a rank computes at a time. warmup: steps over which the learning rate rises linearly to `lr`, to stay
    there; cooldown: share of the run at whose end it falls linearly to 0. clip: largest norm of the gradient. ema: decay of the weights' moving average a step, 0 for none.
    clean_share: share of chunks seen at noise level 0. checkpointing: compute activations again instead of keeping
    them. compile: torch.compile, block by block. replicas: groups of ranks that hold a whole copy each (HSDP); 1
    splits the weights over all. shuffle_buffer: samples of each lane that are sorted by length at a time. workers:
    threads a rank that read. max_damaged: share of samples that may be damaged before the run stops. save_every,
    validate_every, sample_every: steps, 0 for never but that a run's end is always saved; log_every: steps; keep:
    checkpoints kept. sample_seconds: length of the sample video, sample_steps: its denoising steps.
    """

    preset: str
    thinker: str
    batch: int
    micro_batch: int
    lr: float
    name: str = ""
    init: str = RANDOM
    history: str = "diffusion_forcing"
    reference: str = "global"
    attention: str = "chunk"
    window: int = 32
    seed: int = 0
    epochs: int = 0
    steps: int = 0
    warmup: int = 0
    cooldown: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    ema: float = 0.0
    clean_share: float = 0.1
    dtype: str = "bfloat16"
    compile: bool = False
    checkpointing: bool = False
    replicas: int = 1
    shuffle_buffer: int = 64
    workers: int = 2
    max_damaged: float = 0.01
    save_every: int = 0
    keep: int = 3
    validate_every: int = 0
    validate_samples: int = 0
    sample_every: int = 0
    sample_seconds: float = 10.0
    sample_steps: int = 25
    log_every: int = 1
    datasets: tuple[Dataset, ...] = ()


CHOICES: Mapping[str, Sequence[str]] = {
    "preset": PRESETS,
    "history": HISTORIES,
    "reference": REFERENCES,
    "attention": ATTENTIONS,
    "dtype": DTYPES,
}
POSITIVE = ("batch", "micro_batch", "lr", "clip", "window", "replicas", "shuffle_buffer", "keep", "log_every")
SHARES = ("clean_share", "cooldown", "ema", "max_damaged")
BELOW_ONE = ("clean_share", "ema")
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    place = resources.files("training.recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in place.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or a TOML file by path, with `overrides` of its fields (`datasets` a sequence of
    `Dataset`). Naming `steps` drops the recipe's `epochs`, and the other way round. Raises UsageError."""
    content, origin = _read(name)
    changes = dict(overrides or {})
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if changes.get(one) and other not in changes:
            content[other] = 0
    content.setdefault("name", Path(name).stem)
    return recipe_of({**content, **changes}, origin)


def recipe_of(content: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe in a table. origin: what errors call it. Raises UsageError for a key that no recipe has, a missing
    one, and a value that cannot be."""
    body = dict(content)
    _check_keys(body, Recipe, origin)
    body["datasets"] = tuple(_dataset(entry, origin) for entry in _listed(body, "datasets", origin))
    if "betas" in body:
        body["betas"] = tuple(float(beta) for beta in _listed(body, "betas", origin) if _is(beta, "float"))
    for entry in fields(Recipe):
        if entry.name in body and entry.type in _KINDS and not _is(body[entry.name], str(entry.type)):
            raise UsageError(f"{origin}: {entry.name} must be {_KINDS[str(entry.type)][1]}, not {body[entry.name]!r}")
        if entry.name in body and entry.type == "float":
            body[entry.name] = float(body[entry.name])
    recipe = Recipe(**body)
    _check(recipe, origin)
    return recipe


def override(text: str) -> tuple[str, Any]:
    """(field, value) of "lr=1e-4", the value as TOML has it; bare words are text. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{text!r} must be FIELD=VALUE, such as lr=1e-4")
    try:
        return key.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def with_datasets(recipe: Recipe, datasets: Sequence[Dataset]) -> Recipe:
    """`recipe` on other data."""
    return replace(recipe, datasets=tuple(datasets))


def as_toml(recipe: Recipe) -> str:
    """The recipe as a TOML file that `load_recipe` reads back as the same one."""
    lines = [
        f"{entry.name} = {_toml(getattr(recipe, entry.name))}" for entry in fields(Recipe) if entry.name != "datasets"
    ]
    for dataset in recipe.datasets:
        lines += ["", "[[datasets]]", *(f"{f.name} = {_toml(getattr(dataset, f.name))}" for f in fields(Dataset))]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return (
        json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, str | bool)
        else repr(value)
    )


def _read(name: str) -> tuple[dict[str, Any], str]:
    """(content, what errors call it)."""
    if name in shipped():
        return tomllib.loads((resources.files("training.recipes") / f"{name}.toml").read_text("utf-8")), name
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"no recipe {name!r}: neither a file nor one of {', '.join(shipped())}")
    try:
        return tomllib.loads(path.read_text("utf-8")), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def _check_keys(body: Mapping[str, Any], kind: type, origin: str) -> None:
    known = {entry.name: entry for entry in fields(kind)}
    for key in body:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.0)[0]
            raise UsageError(f"{origin}: unknown key {key!r}; did you mean {near!r}?")
    missing = [key for key, entry in known.items() if key not in body and entry.default is MISSING]
    if missing:
        raise UsageError(f"{origin}: {missing[0]!r} is missing; add it")


def _listed(body: Mapping[str, Any], key: str, origin: str) -> Sequence[Any]:
    found = body.get(key, ())
    if not isinstance(found, list | tuple):
        raise UsageError(f"{origin}: {key} must be a list, not {found!r}")
    return found


def _dataset(entry: Any, origin: str) -> Dataset:
    if isinstance(entry, Dataset):
        return entry
    if not isinstance(entry, Mapping):
        raise UsageError(f"{origin}: a dataset must be a table [[datasets]] with a path, not {entry!r}")
    _check_keys(entry, Dataset, f"{origin}: [[datasets]]")
    found = Dataset(**entry)
    if not (_is(found.path, "str") and _is(found.profile, "str") and _is(found.weight, "float")) or not found.path:
        raise UsageError(f"{origin}: [[datasets]] takes path and profile as text and weight as a number, not {entry!r}")
    return replace(found, weight=float(found.weight))


def _is(value: Any, kind: str) -> bool:
    wanted = _KINDS[kind][0]
    return isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))


def _check(recipe: Recipe, origin: str) -> None:
    """Raises UsageError for a value that cannot be."""
    for key, among in CHOICES.items():
        if getattr(recipe, key) not in among:
            raise UsageError(f"{origin}: {key} = {getattr(recipe, key)!r}; choose from {', '.join(among)}")
    kind_of(recipe.thinker)
    for entry in fields(Recipe):
        value = getattr(recipe, entry.name)
        if entry.type in ("int", "float") and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{origin}: {entry.name} = {value!r} must be 0 or more")
    for key in POSITIVE:
        if not getattr(recipe, key) > 0:
            raise UsageError(f"{origin}: {key} = {getattr(recipe, key)!r} must be more than 0")
    for key in SHARES:
        if getattr(recipe, key) > 1 or (key in BELOW_ONE and getattr(recipe, key) == 1):
            raise UsageError(f"{origin}: {key} = {getattr(recipe, key)!r} must be a share, below 1")
    if bool(recipe.epochs) == bool(recipe.steps):
        raise UsageError(f"{origin}: give either epochs or steps, not {'both' if recipe.epochs else 'neither'}")
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        raise UsageError(f"{origin}: betas must be two numbers from 0 to below 1")
    if not recipe.init:
        raise UsageError(f"{origin}: init must be {RANDOM}, {GLM} or the path of a pretrained Actor")
    for dataset in recipe.datasets:
        if not (math.isfinite(dataset.weight) and dataset.weight > 0):
            raise UsageError(f"{origin}: weight {dataset.weight!r} of {dataset.path} must be more than 0")
