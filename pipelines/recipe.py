"""Recipes (which backend measures each stage, with what parameters) and profiles (which bounds decide)."""

from __future__ import annotations

import functools
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from curation.registry import BACKENDS, build_stage
from curation.scenes import SceneOptions, fingerprint_facts
from curation.stage import Stage, fingerprint
from manifests.errors import DatasetError, UsageError
from manifests.records import CLIP_STAGES
from manifests.verdicts import Profile, check_bounds, parse_profile
from models.device import AUTO, CPU, check_device


@dataclass(frozen=True)
class Recipe:
    """What measures. stages: {stage: {"backend": name, parameter: value}}; plain data, so it travels.

    device: where models run that are not bound to the CPU: "cpu", "cuda", "cuda:N", or "auto", which alone may
    choose. A stage may name another. It changes no fingerprint.
    """

    name: str
    scenes: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "cpu"

    def data(self) -> dict[str, Any]:
        """As stored in dataset.json and sent to workers."""
        stages = {name: dict(body) for name, body in self.stages.items()}
        return {"name": self.name, "scenes": dict(self.scenes), "stages": stages, "device": self.device}

    def on(self, device: str) -> Recipe:
        """This recipe with every model on `device`. Raises UsageError where no stage could run there."""
        check_device(device)
        if not any(hasattr(stage, "device") for stage in build_stages(self).values()):
            if device in (AUTO, CPU):
                return self
            raise UsageError(f"recipe {self.name!r} has no model that runs on a device of choice; leave --device out")
        stages = {name: {k: v for k, v in body.items() if k != "device"} for name, body in self.stages.items()}
        moved = replace(self, stages=stages, device=device)
        build_stages(moved)
        return moved

    @property
    def backends(self) -> dict[str, str]:
        """Backend by stage, by the name that its measures carry."""
        return {name: stage.backend for name, stage in build_stages(self).items()}

    def scene_options(self) -> SceneOptions:
        """Raises UsageError for an unknown parameter."""
        known = {f.name for f in fields(SceneOptions)}
        unknown = set(self.scenes) - known
        if unknown:
            raise UsageError(
                f"recipe {self.name!r}: [scenes] has no {sorted(unknown)[0]!r}; it has {', '.join(sorted(known))}"
            )
        options = SceneOptions(**self.scenes)
        _check_types(options, f"recipe {self.name!r}: [scenes]")
        return options


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name or a TOML file by path. Raises UsageError."""
    content, origin = _load(name, "recipe", "")
    unknown = set(content) - {"name", "about", "scenes", "stages", "device"}
    if unknown:
        raise UsageError(f"{origin}: unknown key {sorted(unknown)[0]!r}; known: name, about, device, scenes, stages")
    if not isinstance(content.get("name"), str) or not isinstance(content.get("stages"), dict):
        raise UsageError(f"{origin}: a recipe needs a name and [stages.NAME] tables")
    if not isinstance(content.get("scenes", {}), dict):
        raise UsageError(f"{origin}: scenes must be a table; write [scenes]")
    if not isinstance(content.get("device", ""), str):
        raise UsageError(f"{origin}: device must be text: auto, cpu, cuda or cuda:N")
    recipe = Recipe(content["name"], content.get("scenes", {}), content["stages"], content.get("device", "cpu"))
    for stage, body in recipe.stages.items():
        if not isinstance(body, dict) or not isinstance(body.get("backend"), str):
            raise UsageError(f"{origin}: [stages.{stage}] needs a backend, by name")
        if stage not in CLIP_STAGES:
            raise UsageError(f"{origin}: unknown stage {stage!r}; stages are {', '.join(CLIP_STAGES)}")
    missing = [stage for stage in CLIP_STAGES if stage not in recipe.stages]
    if missing:
        raise UsageError(f"{origin}: no backend for stage {missing[0]!r}; add [stages.{missing[0]}]")
    recipe.scene_options()
    build_stages(recipe)
    return recipe


def stored_recipe(facts: Mapping[str, Any], root: str) -> Recipe:
    """The recipe in a dataset.json. Raises DatasetError when there is none, UsageError when it is not known here."""
    body, prints = facts.get("recipe"), facts.get("fingerprints")
    if not isinstance(body, dict) or not isinstance(prints, dict) or set(CLIP_STAGES) - set(body.get("stages", {})):
        raise DatasetError(f"{root}: dataset.json is damaged (no recipe); restore it or choose another folder")
    recipe = Recipe(body.get("name", ""), body.get("scenes", {}), body["stages"], body.get("device", "cpu"))
    build_stages(recipe)
    return recipe


def load_profile(name: str) -> Profile:
    """A shipped profile by name or a TOML file by path. Raises UsageError."""
    return parse_profile(*_load(name, "profile", "profiles"))


def load_profiles(names: str, recipe: Recipe) -> list[Profile]:
    """Profiles from a comma-separated list, each with a bound for every backend of the recipe."""
    found = [load_profile(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise UsageError("--profile names no profile; try pretrain")
    if len({p.name for p in found}) != len(found):
        raise UsageError(f"--profile {names}: two profiles of one name; rename one")
    for profile in found:
        check_profile(profile, recipe)
    return found


def check_profile(profile: Profile, recipe: Recipe) -> None:
    """Raises UsageError when `profile` lacks a bound for a backend of `recipe`, or names one that does not exist."""
    backends = recipe.backends
    check_bounds(profile, backends, {stage: {*names, backends[stage]} for stage, names in BACKENDS.items()})


def shipped(kind: str) -> list[str]:
    """Names of the shipped recipes ("") or profiles ("profiles")."""
    folder = resources.files("pipelines.recipes") / kind if kind else resources.files("pipelines.recipes")
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def _load(name: str, what: str, folder: str) -> tuple[dict[str, Any], str]:
    if name in shipped(folder):
        place = resources.files("pipelines.recipes") / folder if folder else resources.files("pipelines.recipes")
        return tomllib.loads((place / f"{name}.toml").read_text()), name
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"no {what} {name!r}: neither a file nor one of {', '.join(shipped(folder))}")
    try:
        return tomllib.loads(path.read_text()), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def build_stages(recipe: Recipe) -> dict[str, Stage]:
    """The recipe's stages in funnel order. Raises UsageError for an unknown backend or parameter."""
    out = {}
    for name in CLIP_STAGES:
        body = dict(recipe.stages[name])
        backend = body.pop("backend")
        stage = build_stage(name, backend, body)
        if hasattr(stage, "device") and "device" not in body:
            stage = replace(stage, device=recipe.device)  # type: ignore[type-var]
        _check_types(stage, f"recipe {recipe.name!r}: [stages.{name}]")
        if hasattr(stage, "device"):
            check_device(stage.device)
        out[name] = stage
    return out


def _check_types(options: Any, where: str) -> None:
    """Raises UsageError for a parameter of another type than its default; a whole number will do for a float."""
    for parameter in fields(options):
        value, default = getattr(options, parameter.name), parameter.default
        if isinstance(default, bool | int | float | str):
            kinds: tuple[type, ...] = (int, float) if type(default) is float else (type(default),)
            if type(value) not in kinds:
                raise UsageError(f"{where} {parameter.name} = {value!r} must be like {default!r}")


@functools.lru_cache(maxsize=8)
def stages_of(recipe_json: str) -> dict[str, Stage]:
    """Stages of a recipe as JSON, built once a process."""
    return build_stages(Recipe(**json.loads(recipe_json)))


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Fingerprint of every stage, `scenes` included."""
    text = json.dumps(fingerprint_facts(recipe.scene_options()), sort_keys=True)
    out = {"scenes": hashlib.sha256(text.encode()).hexdigest()[:16]}
    for name, stage in build_stages(recipe).items():
        out[name] = fingerprint(stage, out)
    return out


@functools.lru_cache(maxsize=8)
def prints_of(recipe_json: str) -> dict[str, str]:
    """Fingerprints of a recipe as JSON as this machine has it, computed once a process."""
    return fingerprints(Recipe(**json.loads(recipe_json)))


def dependants(recipe: Recipe, changed: set[str]) -> set[str]:
    """`changed` and every stage that reads one of them, directly or not."""
    out = set(changed)
    for name, stage in build_stages(recipe).items():
        if out & set(stage.reads):
            out.add(name)
    return out
