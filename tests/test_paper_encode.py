"""The paper's encode backend: bundled samples in all but the codecs, and a fingerprint that tells which."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from made import numbered, write_movie
from makers import glm_speech, glm_text, ltx_video, mirror

from curation.clip import Clip
from curation.denoise import MARGIN_S
from curation.encode import BundledEncode, reference_frames
from curation.media import probe
from curation.paper_encode import PaperEncode
from curation.registry import build_stage
from curation.stage import Result, fingerprint
from manifests.errors import ModelError, UsageError
from models.clock import STORED_RATE
from models.weights import catalogue

KEY = "0123456789abcdef-000000000-000004000"
CHUNKS = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper_encode")
    mirror.unpublished(root, glm_speech.NAME, glm_text.NAME, *ltx_video.NAMES.values())
    glm_speech.make(root / glm_speech.NAME)
    glm_text.make(root / glm_text.NAME)
    for name in ltx_video.NAMES.values():
        ltx_video.make(root / name)
    return root


@pytest.fixture(autouse=True)
def found(weights: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(weights))
        yield


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of numbered frames, with sound like nothing else in it."""
    rng = np.random.default_rng(5)
    sound = (rng.normal(0, 0.1, 50 * 882 + 441) * np.repeat(rng.uniform(0, 1, 26), 1764)[: 50 * 882 + 441]).astype("f4")
    path = tmp_path_factory.mktemp("movie") / "movie.mkv"
    pictures = (numbered(index, (64, 64)) for index in range(50))
    return write_movie(path, pictures, audio=sound, rate=STORED_RATE, audio_codec="pcm_s16le")


def opened(movie: Path) -> Clip:
    """The clip as the encode stage meets it."""
    info = probe(str(movie))
    row = {"crop_x": 0.0, "crop_y": 0.0, "crop_side": 64.0, "source_id": KEY[:16], "transcript": "talking, 你好"}
    clip = Clip(KEY, str(movie), info, 0.0, 2.0, row=row)
    clip.record("denoise", {}, None, clip.audio(STORED_RATE, -MARGIN_S, clip.seconds + MARGIN_S))
    return clip


@pytest.fixture(scope="module")
def measured(weights: Path, movie: Path) -> Any:
    """Results by stage, each made once."""

    @cache
    def of(stage: Any) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XSTREAMER_MODELS", str(weights))
            return stage.measure(opened(movie))

    return of


def array(result: Result, name: str) -> np.ndarray:
    found: np.ndarray = np.load(io.BytesIO(result.files[name]), allow_pickle=False)
    return found


def printed(stage: Any) -> str:
    return fingerprint(stage, {name: name for name in stage.reads})


@pytest.mark.parametrize("ltx", ltx_video.NAMES)
def test_a_sample_is_the_bundled_one_but_for_the_codecs(ltx: str, measured: Any) -> None:
    paper, bundled = measured(PaperEncode(size=64, ltx=ltx)), measured(BundledEncode(size=64))
    assert paper.measures.keys() == bundled.measures.keys() and paper.measures["sample_chunks"] == CHUNKS
    assert paper.files.keys() == bundled.files.keys()
    for name in ("latents.npy", "reference.npy", "speech.npy"):
        ours, theirs = array(paper, name), array(bundled, name)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
        assert np.isfinite(ours.astype(np.float32)).all() and not np.array_equal(ours, theirs)
    assert array(paper, "text.npy").dtype == np.int32
    assert paper.files["flac"] == bundled.files["flac"] and paper.files["jpg"] == bundled.files["jpg"]
    facts = [json.loads(result.files["json"]) for result in (paper, bundled)]
    assert [fact.pop("codecs")["video"].split()[0] for fact in facts] == [f"ltx_video_{ltx}", "dct3d"]
    assert [fact.pop("text_tokens") for fact in facts] == [len(array(one, "text.npy")) for one in (paper, bundled)]
    assert facts[0] == facts[1]


def test_tokens_can_be_made_again_from_what_is_stored(measured: Any) -> None:
    stage = PaperEncode(size=64)
    result = measured(stage)
    sound, rate = soundfile.read(io.BytesIO(result.files["flac"]), dtype="float32")
    assert np.array_equal(stage.speech.encode(sound, rate), array(result, "speech.npy"))
    assert len(array(result, "speech.npy")) == 4 * CHUNKS
    assert stage.text.decode(array(result, "text.npy")) == "talking, 你好"


def test_latents_are_those_of_the_frames(measured: Any, movie: Path) -> None:
    stage = PaperEncode(size=64)
    result, clip = measured(stage), opened(movie)
    rgb = clip.portrait((0.0, 0.0, 64.0), 64, 0, 8 * CHUNKS + 1)[..., ::-1]
    assert np.array_equal(stage.video.encode(rgb[:1])[0], array(result, "latents.npy")[0])
    for latent, at in zip(array(result, "reference.npy"), reference_frames(len(rgb)), strict=True):
        assert np.array_equal(stage.video.encode(rgb[at : at + 1])[0], latent)


def test_the_same_clip_gives_the_same_bytes(measured: Any, movie: Path) -> None:
    stage = PaperEncode(size=64)
    assert dict(stage.measure(opened(movie)).files) == dict(measured(stage).files)


def test_it_is_registered_and_light() -> None:
    stage = build_stage("encode", "paper", {"ltx": "0.9.5", "size": 64})
    assert stage == PaperEncode(size=64, ltx="0.9.5") and stage.backend == "paper"
    assert pickle.loads(pickle.dumps(stage)) == stage and len(pickle.dumps(stage)) < 1000


def test_an_unknown_vae_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(UsageError, match=r"'0\.9\.1' is unknown; choose from 0\.9\.0, 0\.9\.5"):
        build_stage("encode", "paper", {"ltx": "0.9.1"})


class TestFingerprint:
    def test_parameters_count_the_device_does_not(self) -> None:
        stage = PaperEncode()
        changes: tuple[dict[str, Any], ...] = ({"ltx": "0.9.5"}, {"size": 128}, {"min_speech_share": 0.2})
        assert len({printed(stage), *(printed(dataclasses.replace(stage, **change)) for change in changes)}) == 4
        assert printed(PaperEncode(device="cuda:3")) == printed(stage) != printed(BundledEncode())

    @pytest.mark.parametrize("name", ["ltx-video-0.9.0", "glm-4-voice-tokenizer", "glm-4-voice-text"])
    def test_other_weights_count(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = printed(PaperEncode())
        mirror.unpublished(tmp_path, glm_speech.NAME, glm_text.NAME, *ltx_video.NAMES.values())
        for maker, model in ((glm_speech, glm_speech.NAME), (glm_text, glm_text.NAME), (ltx_video, "ltx-video-0.9.0")):
            maker.make(tmp_path / model)
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        assert printed(PaperEncode()) == before
        config = next((tmp_path / name).glob("*config.json"))
        (tmp_path / "lock.json").unlink()
        config.write_text(config.read_text() + "\n")
        assert printed(PaperEncode()) != before

    def test_missing_weights_are_named_before_anything_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
        with pytest.raises(ModelError, match="models fetch"):
            PaperEncode().revision()


def test_its_models_and_licences_are_known() -> None:
    for ltx, name in ltx_video.NAMES.items():
        assert PaperEncode(ltx=ltx).weights() == (name, glm_speech.NAME, glm_text.NAME)
    assert [catalogue()[name].commercial for name in PaperEncode().weights()] == [False, False, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(movie: Path) -> None:
    with pytest.raises(ModelError, match="CUDA"):
        PaperEncode(size=64, device="cuda").measure(opened(movie))
