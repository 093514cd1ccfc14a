"""What a command line asks of a run: data, recipe, folder, and where it goes on from."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import UsageError
from manifests.store import Store
from training.checkpoint_meta import FOLDER, latest, newest, step_of
from training.occupied import LOCK, occupied
from training.recipe import Dataset, Recipe, as_toml, load_recipe, override, shipped

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Asked:
    """recipe: whole, with its data. folder: RUN. resume: whether it may go on with what is there; checkpoint: where
    from, None for step 0."""

    recipe: Recipe
    folder: Path
    resume: bool
    checkpoint: Path | None


def asked(options: argparse.Namespace) -> Asked:
    """The run that the options of `train` mean. Nothing is written. Raises UsageError, DatasetError."""
    changes = dict(override(text) for text in options.set)
    if options.steps is not None:
        changes["steps"] = options.steps
    datasets = named(options.shards, options.weight, options.profile)
    if datasets:
        changes["datasets"] = datasets
    checkpoint = newest(Path(options.resume)) if options.resume else None
    folder = _folder(options.output) if options.output is not None else checkpoint and checkpoint.parent.parent
    recipe = load_recipe(options.recipe or _stored(folder, checkpoint, resume=options.resume is not None), changes)
    folder = folder or Path(f"run-{recipe.name}")
    if not recipe.datasets:
        raise UsageError("no shards to train on; name a folder that `xstreamer pack` wrote: DATASET/shards/PROFILE")
    if options.resume == "":
        checkpoint = latest(folder)
    return Asked(recipe, folder, options.resume is not None, checkpoint)


def _folder(text: str) -> Path:
    if not text.strip():
        raise UsageError("-o is empty; name the folder of the run")
    if "://" in text:
        raise UsageError(f"-o {text}: a run is a folder that all its machines see, not a URL; mount it")
    return Path(text)


def _stored(folder: Path | None, checkpoint: Path | None, *, resume: bool) -> str:
    """The recipe of a run that goes on. Raises UsageError where none is named and none is stored."""
    places = [place / RECIPE for place in (folder, checkpoint and checkpoint.parent.parent) if place]
    found = next((place for place in places if place.is_file()), None)
    if resume and found:
        return str(found)
    where = "; or -o RUN, a run to go on with" if resume else ""
    raise UsageError(f"name a recipe: --recipe {', '.join(shipped())} or a TOML file{where}")


def named(shards: Sequence[str], weights: Sequence[float], profile: str | None) -> tuple[Dataset, ...]:
    """The datasets that SHARDS ("PATH" or "PATH=WEIGHT"), --weight and --profile mean. Raises UsageError."""
    if weights and len(weights) != len(shards):
        raise UsageError(
            f"--weight is given {len(weights)} times for {len(shards)} datasets; give one for each, in order"
        )
    found = []
    for at, text in enumerate(shards):
        path, weight = split(text)
        if weights and weight is not None:
            raise UsageError(f"{text!r}: the weight is either here or in --weight, not both")
        chosen = weights[at] if weights else 1.0 if weight is None else weight
        if not path or not (math.isfinite(chosen) and chosen > 0):
            raise UsageError(f"{text!r}: name PATH or PATH=WEIGHT, the weight above 0")
        path = path if "://" in path else str(Path(path).absolute())  # a run goes on from any folder
        found.append(Dataset(path, "" if profile is None or path.endswith(".json") else profile, chosen))
    return tuple(found)


def split(text: str) -> tuple[str, float | None]:
    """("PATH", WEIGHT) of "PATH=WEIGHT"; a path that exists or whose end is no number is a path."""
    path, equals, weight = text.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        return text, None
    return (path, number) if equals and not Path(text).exists() else (text, None)


def prepare(run: Asked) -> str:
    """Makes RUN, with nothing in it; what people should be told about where it begins, if anything.

    Raises UsageError where RUN is another run's, in the way, trained into right now, or further than it shall go.
    """
    folder = run.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name another folder for the run: -o RUN")
    if not run.resume and begun(folder):
        raise UsageError(f"{folder} is there already; go on with it: --resume, or begin another run: -o {free(folder)}")
    known = (folder / RECIPE).is_file() or (folder / FOLDER).is_dir()
    if run.resume and begun(folder) and not known:
        raise UsageError(f"{folder} holds something else than a run; name another folder: -o {free(folder)}")
    if run.checkpoint and 0 < run.recipe.steps < (step := step_of(run.checkpoint)):
        raise UsageError(
            f"{run.checkpoint} is beyond {run.recipe.steps} steps already; ask for {step + 1} or more: --steps"
        )
    with occupied(folder):
        pass
    return f"{folder} has no checkpoint yet; it begins at step 0" if run.resume and not run.checkpoint else ""


def begin(run: Asked) -> None:
    """Writes the recipe that the run goes by, once the trainer has taken it. Raises DatasetError."""
    Store(run.folder).write(RECIPE, as_toml(run.recipe).encode())


def begun(folder: Path) -> bool:
    """Whether there is more in `folder` than a run leaves that was refused before its first step."""
    found = folder.iterdir() if folder.is_dir() else ()
    return any(path.name not in (RECIPE, LOCK) and (path.name != FOLDER or any(path.iterdir())) for path in found)


def free(folder: Path) -> Path:
    """A name beside `folder` that is not taken."""
    number = 2
    while (found := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return found
