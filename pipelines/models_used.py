"""Which models a recipe runs, under which licences: refused before a run when they are missing, shown after it,
kept in the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manifests.errors import ModelError
from models.device import AUTO, CPU, onnx_providers, torch_device
from models.lock import identity
from models.weights import ENV, catalogue, entry, missing, models_dir, require
from pipelines.recipe import Recipe, build_stages

Row = dict[str, Any]


def stages_by_model(recipe: Recipe) -> dict[str, list[str]]:
    """{model: the stages that run it}, in funnel order. Raises ModelError for a model in no catalogue."""
    out: dict[str, list[str]] = {}
    for name, stage in build_stages(recipe).items():
        for model in stage.weights():
            if model not in catalogue():
                place = models_dir() / "catalogue.toml"
                raise ModelError(f"stage {name!r} ({stage.backend}) runs {model!r}, in no catalogue; add it to {place}")
            out.setdefault(model, []).append(name)
    return out


def require_models(recipe: Recipe) -> None:
    """Raises one ModelError that names every model of `recipe` that is not here, and the command that fetches them."""
    require(list(stages_by_model(recipe)))


def require_devices(recipe: Recipe) -> None:
    """Raises ModelError where this machine lacks a device on which `recipe` insists."""
    for stage in build_stages(recipe).values():
        device = getattr(stage, "device", CPU)
        if device in (AUTO, CPU):
            continue
        torch_device(device)
        if any(file.path.endswith(".onnx") for name in stage.weights() for file in entry(name).files):
            onnx_providers(device)


def models_used(recipe: Recipe) -> list[Row]:
    """What `recipe` runs: [{"name", "stages", "identity", "licence", "commercial"}].

    identity: what the files are, as in fingerprints; None while they are missing. commercial: whether the licence
    allows commercial use, None where it does not say.
    """
    out = []
    for name, stages in stages_by_model(recipe).items():
        model = entry(name)
        out.append(
            {
                "name": name,
                "stages": stages,
                "identity": None if missing([name]) else identity([name]),
                "licence": model.licence,
                "commercial": model.commercial,
            }
        )
    return out


def models_notes(rows: Sequence[Row]) -> list[str]:
    """Lines for people: what ran, what its licence forbids, what it does not say, what is missing."""
    lines = [f"models: {', '.join(row['name'] for row in rows)}"] if rows else []
    for commercial, text in ((False, "not for commercial use"), (None, "licence says nothing of commercial use")):
        some = [f"{row['name']} ({row['licence']})" for row in rows if row["commercial"] is commercial]
        lines += [f"{text}: {', '.join(some)}"] if some else []
    absent = [row["name"] for row in rows if row["identity"] is None]
    if absent:
        lines.append(f"not here yet; run: xstreamer models fetch {' '.join(absent)}, or set {ENV}")
    return lines
