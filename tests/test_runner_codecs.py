"""Streams through the paper's picture codec, which looks ahead: nothing is lost at the end, nor at an interruption."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from makers import ltx_video, mirror
from streams_made import astronaut, make_actor, sound

from inference.cast import Cast, dialogue_of, latent_of, load_cast, recorded, runner_of
from inference.pictures import Frames
from inference.runner import Runner
from inference.schedule import Plan
from models.actor_weights import read_facts
from models.clock import STORED_RATE
from models.ltx_video import LtxVideo


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    root, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("actor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(root))
        mirror.unpublished(root, "ltx-video-0.9.0")
        ltx_video.make(root / "ltx-video-0.9.0")
        codecs = dict(read_facts(make_actor(folder))[0].codecs)
        codecs["video"] = f"ltx_video_0.9.0 {LtxVideo('0.9.0').fingerprint()}"
        yield load_cast(make_actor(folder, codecs=codecs), "cpu")


def noted(run: Runner) -> list[np.ndarray]:
    """The latents that its pictures are made of."""
    made: list[np.ndarray] = []
    push = run.pictures.push

    def pushed(chunk: int, latents: np.ndarray) -> list[Frames]:
        made.append(latents)
        return push(chunk, latents)

    run.pictures.push = pushed  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("exact", [True, False])
def test_the_film_is_as_long_as_the_speech_and_is_the_whole_decode(cast: Cast, exact: bool) -> None:
    latent = latent_of(cast, astronaut())
    run = runner_of(cast, latent, dialogue_of(cast), Plan(2), exact=exact)
    made, recording = noted(run), recorded(cast.tokenizer, sound(3.0), STORED_RATE)
    run.speak(recording.codes, recording.samples)
    chunks = list(run.chunks(frames=recording.frames))
    shown, heard = (np.concatenate([getattr(each, name) for each in chunks]) for name in ("frames", "sound"))
    assert len(shown) == 75 and np.array_equal(heard, recording.samples)
    assert [chunk.index for chunk in chunks] == list(range(10))
    wanted = cast.video.decode(np.stack([latent, *made]).astype(np.float32))[1 : 1 + 75]
    off = np.abs(shown.astype(int) - wanted)
    assert off[:8].mean() < (0.5 if exact else 6), off.mean()
    assert off.mean() < (0.5 if exact else 6)


def test_after_an_interruption_every_chunk_still_comes_once(cast: Cast) -> None:
    latent = latent_of(cast, astronaut())
    run = runner_of(cast, latent, dialogue_of(cast), Plan(2))
    recording = recorded(cast.tokenizer, sound(6.0), STORED_RATE)
    run.speak(recording.codes, recording.samples)
    stream = run.chunks(endless=True)
    before = [next(stream) for _ in range(5)]
    run.interrupt()
    after = [next(stream) for _ in range(10)]
    assert [chunk.index for chunk in before + after] == list(range(15))
    assert not after[1].sound.any() and before[-1].sound.any()
