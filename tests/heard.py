"""Made speech recognisers, each written once a test run."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from makers import paraformer, whisper
from spoken import NAMES, speech

from models.clock import STORED_RATE
from models.whisper_asr import load_whisper

TURBO = "large-v3-turbo"
FILE = f"{TURBO}.pt"
SAID = whisper.TEXT.split()
_PLACE = tempfile.TemporaryDirectory(prefix="heard")


def whisper_folder(**options: Any) -> Path:
    """Folder "whisper-large-v3-turbo" of a net made with options of `makers.whisper.make`."""
    return _whisper_folder(json.dumps(options, sort_keys=True))


@cache
def _whisper_folder(options: str) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_PLACE.name)) / f"whisper-{TURBO}"
    whisper.make(folder, **json.loads(options))
    return folder


@cache
def chinese_folder() -> Path:
    """Folder "paraformer-zh"."""
    folder = Path(tempfile.mkdtemp(dir=_PLACE.name)) / "paraformer-zh"
    paraformer.make(folder)
    return folder


def made_whisper(**options: Any) -> Any:
    """The net itself."""
    return load_whisper(whisper_folder(**options) / FILE, TURBO, "cpu")


def models_with(**options: Any) -> Path:
    """A folder of all weights: a Whisper made with `options`, and Paraformer."""
    folder = whisper_folder(**options).parent
    link = folder / "paraformer-zh"
    if not link.exists():
        link.symlink_to(chinese_folder())
    return folder


def talk(seconds: float = 5.0, rate: int = STORED_RATE) -> np.ndarray:
    """[n] float32: somebody speaks from the start."""
    return speech(NAMES[0], rate)[: round(seconds * rate)]
