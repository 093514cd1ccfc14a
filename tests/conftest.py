"""One thread a library, no deadlines on a busy machine, and the talking head that test files share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, onnxruntime and BLAS read it when they load

import cv2
import numpy as np
import pytest
from browser import chromium, open_page  # noqa: F401  here once: a browser in every file would be many
from hypothesis import settings

from pipelines.sample import Scene, scene_frames, scene_sound, write_video

cv2.setNumThreads(1)
settings.register_profile("xstreamer", deadline=None)
settings.load_profile("xstreamer")


@dataclass(frozen=True)
class Head:
    """A made talking head. frames: [n, 256, 256, 3] uint8 RGB at 25 fps; sound: [m] float32 at 22,050 Hz, in sync;
    path: both as an MP4 file."""

    scene: Scene
    frames: np.ndarray
    sound: np.ndarray
    path: Path

    @property
    def seconds(self) -> float:
        return self.scene.seconds


@pytest.fixture(scope="session")
def made_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for XSTREAMER_MODELS with every model of the catalogue, small."""
    from makers import every, mirror

    root = tmp_path_factory.mktemp("models")
    mirror.unpublished(root, *every.fetched())
    for name in every.fetched():
        every.make(name, root)
    return root


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    scene = Scene("speech_en_1", 6.4)
    frames, sound = np.stack(list(scene_frames(scene, size=256))), scene_sound(scene)
    path = write_video(tmp_path_factory.mktemp("head") / "head.mp4", frames, sound, 22_050)
    frames.flags.writeable = sound.flags.writeable = False
    return Head(scene, frames, sound, path)
