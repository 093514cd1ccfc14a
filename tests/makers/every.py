"""Every model of the catalogue, made: random or hand-made weights in the official format, under official names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from models.weights import CATALOGUE, read_catalogue

MAKERS = {
    "easyocr": "easyocr", "glm-4-voice-9b": "glm_thinker", "glm-4-voice-decoder": "glm_voice",
    "glm-4-voice-text": "glm_text", "glm-4-voice-tokenizer": "glm_speech", "htdemucs": "demucs",
    "insightface": "insightface", "ltx-video": "ltx_video", "paraformer": "paraformer",
    "pyiqa": "pyiqa", "syncnet": "syncnet", "whisper": "whisper", "yolox": "yolox",
}  # fmt: skip
"""The maker of models whose name begins so."""


def maker_of(name: str) -> str:
    """Raises KeyError for a model that nobody makes."""
    found = [maker for start, maker in MAKERS.items() if name.startswith(start)]
    if not found:
        raise KeyError(f"no maker for the weights of {name}; add one to tests/makers")
    return found[0]


def fetched() -> list[str]:
    """Names of the models that are fetched, not packaged."""
    import models.weights as shipped

    known = read_catalogue((Path(shipped.__file__).parent / CATALOGUE).read_text(), CATALOGUE)
    return [name for name, model in known.items() if not model.package]


def make(name: str, root: Path, true_size: bool = False) -> Path:
    """Writes model `name` into its folder under `root` (XSTREAMER_MODELS), in its true size or small; the folder."""
    module = import_module(f"{__package__}.{maker_of(name)}")
    options = {"metric": name.removeprefix("pyiqa-")} if name.startswith("pyiqa-") else {}
    module.make(root / name, true_size, **options)
    return root / name
