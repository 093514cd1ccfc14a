"""A video goes in, an avatar comes out: curate, train, export-actor, stream, each by the real command."""

from __future__ import annotations

import io
import json
from importlib import resources
from pathlib import Path

import av
import numpy as np
import soundfile
from command import call
from streams_made import alike, play, write_picture

from manifests.samples import read_tar
from models.clock import samples_of
from pipelines.sample import Scene, make_video

SIZE = 128


def run(*arguments: str | Path) -> str:
    done = call(*map(str, arguments), "--quiet", "--json")
    assert done.code == 0, done.err
    return done.out


def small_recipe(path: Path) -> Path:
    """The bundled recipe, but for small pictures and the Thinker's states beside them."""
    bundled = (resources.files("pipelines.recipes") / "bundled.toml").read_text()
    own = f'[stages.encode]\nsize = {SIZE}\nthinker = "bundled"\n'
    path.write_text(bundled.replace("[stages.encode]\n", own))
    return path


def test_a_video_becomes_an_avatar_that_says_what_it_said(tmp_path: Path) -> None:
    video = make_video(tmp_path / "me.mp4", [Scene("speech_en_4", 6.4, seed=3)])
    recipe, data, actor = small_recipe(tmp_path / "small.toml"), tmp_path / "data", tmp_path / "actor"
    run("curate", video, "-o", data, "--recipe", recipe, "--profile", "pretrain", "--cluster", "1", "--val-share", "0")
    shards = data / "shards" / "pretrain"
    run("train", shards, "--recipe", "tiny", "--steps", "4", "-o", tmp_path / "run")
    run("export-actor", tmp_path / "run", "-o", actor)

    (shard,) = shards.glob("train-*.tar")
    with shard.open("rb") as file:
        ((_, sample),) = list(read_tar(file))
    speech, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
    (tmp_path / "speech.flac").write_bytes(sample["flac"])
    with av.open(str(video)) as container:
        portrait = write_picture(tmp_path / "me.png", next(container.decode(video=0)).to_ndarray(format="rgb24"))

    film = tmp_path / "film.mp4"
    asked = ["--checkpoint", actor, "--portrait", portrait, "--speech", tmp_path / "speech.flac", "-o", film]
    figures = json.loads(run("stream", *asked, "--steps", "3", "--devices", "cpu"))
    chunks = json.loads(sample["json"])["chunks"]
    found = play(film)
    assert found.frames.shape == (8 * chunks, SIZE, SIZE, 3)
    assert figures["chunks"] == chunks and figures["passes"] == chunks + 3 - 1
    assert (found.rate, found.samples) == (rate, samples_of(chunks, rate)) == (rate, len(speech))
    assert alike(found.sound, speech) > 0.97
    assert np.diff(found.frames.astype(int), axis=0).any((1, 2, 3)).mean() > 0.9  # it moves
