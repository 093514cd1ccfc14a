"""Which backends measure a stage, by name; modules load when a recipe names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from curation.stage import Stage
from manifests.errors import UsageError
from manifests.records import CLIP_STAGES

BACKENDS: dict[str, dict[str, str]] = {
    "speech": {"silero": "curation.speech:SileroSpeech"},
    "speakers": {"centerface": "curation.speakers:CenterFaceSpeakers"},
    "sync": {"correlation": "curation.sync:CorrelationSync"},
    "quality": {"piqe": "curation.quality:FaceCropQuality"},
    "duplicates": {"phash": "curation.duplicates:PerceptualHash"},
    "overlay": {"rapidocr": "curation.overlay:RapidOcrOverlay"},
    "denoise": {"noisereduce": "curation.denoise:SpectralGate"},
    "transcribe": {"pocketsphinx": "curation.transcribe:PocketSphinxTranscribe"},
    "encode": {"bundled": "curation.encode:BundledEncode"},
}


def build_stage(stage: str, backend: str, params: Mapping[str, Any]) -> Stage:
    """The stage `stage` measured by `backend` with `params`, its models not yet loaded.

    Raises UsageError for an unknown stage, backend or parameter, and names those that exist.
    """
    if stage not in BACKENDS:
        raise UsageError(f"unknown stage {stage!r} in the recipe; stages are {', '.join(CLIP_STAGES)}")
    if backend not in BACKENDS[stage]:
        known = ", ".join(BACKENDS[stage])
        raise UsageError(f"unknown backend {backend!r} for stage {stage!r} in the recipe; choose from {known}")
    module, name = BACKENDS[stage][backend].split(":")
    kind = getattr(import_module(module), name)
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(params) - fields)
    if unknown:
        known = ", ".join(sorted(fields)) or "none"
        raise UsageError(f"{stage}.{backend} has no parameter {unknown[0]!r}; it has: {known}")
    return kind(**params)
