"""Latents to pictures while they come: what the whole video has, in order, without a seam, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from makers import ltx_video as made
from makers import mirror

from inference.pictures import EXACT, LIVE, NEXT, PORTRAIT, Frames, Pictures, Reach
from models.clock import CHUNK_FRAMES
from models.ltx_video import CONTEXT, NOISE, VERSIONS, LtxVideo
from models.video_codec import Dct3d, VideoCodec

LENGTH = 32
DEPTH = {
    "0.9.0": made.SMALL["0.9.0"] | {"layers_per_block": [1] * 5, "decoder_layers_per_block": [2, 2, 2, 2, 2]},
    "0.9.5": made.SMALL["0.9.5"] | {"decoder_layers_per_block": [2, 2, 2, 2]},
}
"""Between the small nets and the official ones, so that a chunk sees several others on both sides."""


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("ltx")
    mirror.unpublished(root, *made.NAMES.values())
    for version, name in made.NAMES.items():
        made.write(root / name, DEPTH[version])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSTREAMER_MODELS", str(root))
        yield root


def moving(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """[length, 128, 1, 1] float32 of unit variance, which changes slowly."""
    steps = np.random.default_rng(seed).standard_normal((length + 5, 128, 1, 1)).astype(np.float32)
    return np.sum([steps[i : i + length] for i in range(6)], axis=0) / np.float32(6**0.5)


def whole(codec: VideoCodec, latents: np.ndarray) -> np.ndarray:
    """Decoded at once, with no window at all."""
    if not isinstance(codec, LtxVideo):
        return codec.decode(latents)
    import torch

    return codec._decoder()(torch.from_numpy(latents), NOISE[codec.version], 0).numpy()


def streamed(codec: VideoCodec, latents: np.ndarray, reach: Reach | None = None) -> tuple[list[Frames], list[int]]:
    """All frames in the order given, and how many chunks were pushed when each came."""
    pictures = Pictures(codec, latents[0], reach=reach)
    found, when = [], []
    for chunk, each in enumerate(latents[1:]):
        new = pictures.push(chunk, each)
        found += new
        when += [chunk + 1] * len(new)
    rest = pictures.flush()
    return found + rest, when + [len(latents) - 1] * len(rest)


def joined(found: list[Frames]) -> np.ndarray:
    return np.concatenate([each.pixels for each in found])


def grey(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far apart, frame by frame: mean grey levels."""
    return np.abs(one.astype(int) - other.astype(int)).mean(axis=(1, 2, 3))


def seam(change: np.ndarray) -> tuple[float, float]:
    """Changes [n] from a frame to the next, from frame 1 on: their mean from one chunk to the next, and inside."""
    edge = np.arange(len(change)) % CHUNK_FRAMES == CHUNK_FRAMES - 1
    return float(change[edge].mean()), float(change[~edge].mean())


def jumps(video: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """By how much what is wrong changes, at the edges of chunks and inside: frames of these nets are noise, under
    which a seam would hide."""
    wrong = video[1:].astype(int) - wanted[1:]
    return seam(grey(wrong[1:], wrong[:-1]))


CODECS: dict[str, Callable[[], VideoCodec]] = {
    "dct3d": Dct3d,
    **{f"ltx {version}": partial(LtxVideo, version) for version in VERSIONS},
}


@cache
def wanted_of(version: str) -> np.ndarray:
    return whole(LtxVideo(version), moving())


@cache
def streamed_of(version: str, reach: Reach) -> np.ndarray:
    return joined(streamed(LtxVideo(version), moving(), reach)[0])


@pytest.mark.parametrize("name", CODECS)
def test_the_portrait_comes_first_then_every_chunk_once_and_in_order(name: str) -> None:
    codec = CODECS[name]()
    found, when = streamed(codec, moving(12))
    assert [each.chunk for each in found] == [PORTRAIT, *range(11)]
    assert [len(each.pixels) for each in found] == [1, *[8] * 11]
    ahead = (NEXT if name == "dct3d" else LIVE).ahead
    assert when == [max(1, ahead), *[min(11, chunk + 1 + ahead) for chunk in range(11)]]


def test_the_bundled_codec_streams_the_very_bytes_of_the_whole() -> None:
    latents = moving()
    found, _ = streamed(Dct3d(), latents)
    assert np.array_equal(joined(found), whole(Dct3d(), latents))


@pytest.mark.parametrize("version", VERSIONS)
def test_ltx_streams_what_the_whole_has(version: str) -> None:
    """With all the context to a grey level; live to a small part of what its frames change by."""
    wanted = wanted_of(version)
    assert wanted.std() > 30
    exact, live, blind = (streamed_of(version, reach) for reach in (EXACT, LIVE, Reach(LIVE.past, 0)))
    assert np.abs(exact.astype(int) - wanted).max() <= 1
    change = grey(wanted[1:], wanted[:-1]).mean()
    assert grey(live, wanted).mean() < 0.03 * change and grey(live, wanted).max() < 0.06 * change
    assert grey(blind, wanted).mean() > 0.2 * change  # the look ahead is needed


@pytest.mark.parametrize("version", VERSIONS)
def test_there_is_no_seam_where_windows_meet(version: str) -> None:
    codec, latents = LtxVideo(version), moving()
    wanted = wanted_of(version)
    edge, inside = seam(grey(wanted[2:], wanted[1:-1]))
    for reach, most in ((EXACT, 0.001), (LIVE, 0.05)):
        video = streamed_of(version, reach)
        found, calm = seam(grey(video[2:], video[1:-1]))
        assert found / calm == pytest.approx(edge / inside, rel=0.02)
        assert max(jumps(video, wanted)) < most * inside
    parts = [codec.decode(latents[:1]), *(codec.decode(each[None], first=False) for each in latents[1:])]
    apart, within = jumps(np.concatenate(parts), wanted)
    assert apart > 1.2 * within > 0.2 * inside  # chunks decoded one by one do show theirs


def test_the_reach_says_how_late_frames_are() -> None:
    for ahead in (1, 3):
        _, when = streamed(LtxVideo(), moving(8), Reach(2, ahead))
        assert when == [ahead, *[min(7, chunk + 1 + ahead) for chunk in range(7)]]


def test_memory_does_not_grow() -> None:
    pictures = Pictures(Dct3d(), moving(1)[0], kept=6)
    latent, held = moving(1)[0], []
    for chunk in range(300):
        pictures.push(chunk, latent)
        held.append(len(pictures._latents))
    assert max(held) == held[20] == held[-1] == 6 + NEXT.past + NEXT.ahead


# interruptions


@pytest.mark.parametrize("name", ["dct3d", "ltx 0.9.0"])
def test_after_an_interruption_it_is_the_video_that_was_shown_and_goes_on(name: str) -> None:
    codec, old, new = CODECS[name](), moving(), moving(seed=1)
    pictures = Pictures(codec, old[0], kept=4, reach=None if name == "dct3d" else EXACT)
    for chunk in range(20):
        before = pictures.push(chunk, old[chunk + 1])
    given = before[-1].chunk
    shown = given - 4
    pictures.drop(shown)
    found: list[Frames] = []
    for chunk in range(shown + 1, 22):
        found += pictures.push(chunk, new[chunk + 1])
    found += pictures.flush()
    assert [each.chunk for each in found] == list(range(shown + 1, 22))
    wanted = whole(codec, np.concatenate([old[: shown + 2], new[shown + 2 : 23]]))[8 * (shown + 1) + 1 :]
    assert np.abs(joined(found).astype(int) - wanted).max() <= (0 if name == "dct3d" else 1)


def test_an_interruption_goes_back_to_what_was_given_and_kept() -> None:
    latents = moving()
    pictures = Pictures(LtxVideo(), latents[0], reach=Reach(2, 3), kept=2)
    pictures.drop(PORTRAIT)  # nothing came yet
    for chunk in range(10):
        pictures.push(chunk, latents[chunk + 1])
    for shown in (-2, PORTRAIT, 3, 7, 12):  # given: up to chunk 6
        with pytest.raises(ValueError, match=f"back to chunk {shown}"):
            pictures.drop(shown)
    pictures.drop(4)
    with pytest.raises(ValueError, match="chunk 10 came where chunk 5"):
        pictures.push(10, latents[11])
    found = [each for chunk in range(5, 9) for each in pictures.push(chunk, latents[chunk + 1])]
    assert [each.chunk for each in found] == [5]


def test_before_the_portrait_was_given_all_can_be_dropped() -> None:
    latents = moving()
    pictures = Pictures(LtxVideo(), latents[0])
    assert pictures.push(0, latents[1]) == []
    pictures.drop(PORTRAIT)
    found = [each for chunk in range(6) for each in pictures.push(chunk, latents[chunk + 1])]
    assert [each.chunk for each in found] == [PORTRAIT, 0]


def test_codecs_choose_their_reach() -> None:
    portrait = moving(1)[0]
    assert Pictures(Dct3d(), portrait).reach == NEXT == Reach(1, 1)
    assert Pictures(LtxVideo(), portrait).reach == LIVE
    assert Reach(CONTEXT, CONTEXT) == EXACT
