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
    "speakers": {
        "centerface": "curation.speakers:CenterFaceSpeakers",
        "yolox-insightface": "curation.people:PeopleSpeakers",
    },
    "sync": {
        "correlation": "curation.sync:CorrelationSync",
        "syncnet": "curation.syncnet:SyncNetSync",
    },
    "quality": {"piqe": "curation.quality:FaceCropQuality", "pyiqa": "curation.learned_quality:LearnedQuality"},
    "duplicates": {"dct3": "curation.duplicates:PerceptualHash"},
    "overlay": {"rapidocr": "curation.overlay:RapidOcrOverlay", "easyocr": "curation.overlay:EasyOcrOverlay"},
    "denoise": {
        "noisereduce": "curation.denoise:SpectralGate",
        "demucs": "curation.demucs_denoise:DemucsDenoise",
    },
    "transcribe": {
        "pocketsphinx": "curation.transcribe:PocketSphinxTranscribe",
        "whisper-paraformer": "curation.whisper_transcribe:WhisperParaformerTranscribe",
    },
    "encode": {"bundled": "curation.encode:BundledEncode", "paper": "curation.paper_encode:PaperEncode"},
    "preview": {"h264": "curation.preview:H264Preview"},
}


def build_stage(stage: str, backend: str, params: Mapping[str, Any]) -> Stage:
    """The stage `stage` measured by `backend` with `params`, its models not yet loaded.

    backend: a name of BACKENDS, or "module:Class" of a Stage of your own that workers can import.

    Raises UsageError for an unknown stage, backend or parameter, and names those that exist.
    """
    if stage not in BACKENDS:
        raise UsageError(f"unknown stage {stage!r} in the recipe; stages are {', '.join(CLIP_STAGES)}")
    if ":" in backend:
        kind = _plugin(stage, backend)
    elif backend in BACKENDS[stage]:
        module, name = BACKENDS[stage][backend].split(":")
        kind = getattr(import_module(module), name)
    else:
        known = ", ".join(BACKENDS[stage])
        raise UsageError(f"unknown backend {backend!r} for stage {stage!r} in the recipe; choose from {known}")
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(params) - fields)
    if unknown:
        known = ", ".join(sorted(fields)) or "none"
        raise UsageError(f"{stage}.{backend} has no parameter {unknown[0]!r}; it has: {known}")
    built = kind(**params)
    assert isinstance(built, Stage)
    return built


def _plugin(stage: str, backend: str) -> type:
    """The user's own class. Raises UsageError when it is not there or measures another stage."""
    module, _, name = backend.partition(":")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"backend {backend!r} of stage {stage!r}: {error}; is it on PYTHONPATH?") from None
    if not (isinstance(kind, type) and issubclass(kind, Stage) and kind.name == stage):
        raise UsageError(f"backend {backend!r} is no Stage with name {stage!r}")
    return kind
