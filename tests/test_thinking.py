"""A Thinker that reads on: in pieces as in one, back and on again, over memory that never grows; no number of a
piece, a place or an id that is out of reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import glm_thinker
from test_thinker import CONFIGS, PLAIN

from manifests.errors import ModelError
from models.bundled_thinker import BundledVocabulary
from models.glm_weights import load_glm
from models.thinker import Thinker, load_thinker
from models.thinker_stream import LEAST_PLACES, ThinkerStream

IDS = np.random.default_rng(5).integers(0, 512, 700)


@pytest.fixture(scope="module", params=["bundled", *CONFIGS])
def thinker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Thinker:
    if request.param == "bundled":
        return load_thinker("bundled")
    folder = tmp_path_factory.mktemp("glm")
    glm_thinker.write(folder, CONFIGS[request.param], seed=11, dtype="float32")
    return Thinker(load_glm(folder, dtype="float32"), BundledVocabulary(), request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Thinker:
    folder = tmp_path_factory.mktemp("small")
    glm_thinker.write(folder, PLAIN, seed=11, dtype="float32")
    return Thinker(load_glm(folder, dtype="float32"), BundledVocabulary(), "plain")


def whole(thinker: Thinker, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """States and logits of all at once, without a cache, by transformers."""
    with torch.inference_mode():
        states = thinker.model.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
        return states, thinker.model.lm_head(states)


def in_pieces(stream: ThinkerStream, ids: np.ndarray, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """States of all of `ids`, and the logits after each piece."""
    ends = np.cumsum([*sizes, len(ids) - sum(sizes)])
    reads = [stream.read(piece) for piece in np.split(ids, ends[:-1]) if len(piece)]
    return torch.cat([read.states for read in reads]), torch.stack([read.logits for read in reads])


@pytest.mark.parametrize("sizes", [[1] * 299, [300], [77, *[1] * 223], [20, 39, 1, 1, 39, 100, 1, 1, 98]])
def test_pieces_are_the_whole(thinker: Thinker, sizes: list[int]) -> None:
    ids = IDS[:300]  # over more than LEAST_PLACES, so that two sizes of what is looked at come
    states, logits = in_pieces(ThinkerStream(thinker, 400), ids, sizes)
    wanted, after = whole(thinker, ids)
    ends = np.unique(np.minimum(np.cumsum([*sizes, 300]), 300)) - 1
    assert (states - wanted).abs().max() < 1e-4
    assert (logits - after[ends]).abs().max() < 1e-4


@pytest.mark.parametrize("context", [60, LEAST_PLACES, LEAST_PLACES + 1, 300])
def test_the_last_place_is_used(small: Thinker, context: int) -> None:
    stream = ThinkerStream(small, context)
    states, _ = in_pieces(stream, IDS[:context], [context - 3, 1, 1])
    assert stream.room == 0
    assert (states - whole(small, IDS[:context])[0]).abs().max() < 1e-4


def test_half_the_bits_read_on_too(tmp_path: Path) -> None:
    glm_thinker.write(tmp_path, PLAIN, seed=11, dtype="float32")
    half = Thinker(load_glm(tmp_path, dtype="bfloat16"), BundledVocabulary(), "half")
    stream = ThinkerStream(half, 100)
    states, logits = in_pieces(stream, IDS[:60], [20] + [1] * 39)
    wanted, after = whole(half, IDS[:60])
    assert stream.keys.dtype == states.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(states.float(), wanted.float(), dim=-1).min() > 0.999
    assert torch.nn.functional.cosine_similarity(logits[-1], after[-1].float(), dim=-1) > 0.999


class TestRewind:
    def test_what_was_forgotten_leaves_no_trace(self, thinker: Thinker) -> None:
        used, new = ThinkerStream(thinker, 300), ThinkerStream(thinker, 300)
        in_pieces(used, IDS[:290], [40] + [1] * 50)
        used.rewind(40)
        new.read(IDS[:40])
        for piece in (IDS[300:301], IDS[400:439], IDS[500:501]):
            again, fresh = used.read(piece), new.read(piece)
            assert torch.equal(again.states, fresh.states) and torch.equal(again.logits, fresh.logits)

    def test_from_the_beginning_is_a_new_one(self, small: Thinker) -> None:
        used, new = ThinkerStream(small, 300), ThinkerStream(small, 300)
        used.read(IDS[:299])
        used.rewind(0)
        assert torch.equal(used.read(IDS[99:200]).states, new.read(IDS[99:200]).states)

    def test_it_knows_what_it_has_read(self, small: Thinker) -> None:
        stream = ThinkerStream(small, 300)
        stream.read(IDS[:50])
        other = IDS[:80].copy()
        assert stream.shared(other) == 50 and stream.shared(other[:20]) == 20
        other[33] += 1
        assert stream.shared(other) == 33
        stream.rewind(10)
        assert stream.shared(other) == 10

    def test_only_back(self, small: Thinker) -> None:
        stream = ThinkerStream(small, 300)
        stream.read(IDS[:50])
        for length in (51, -1):
            with pytest.raises(ValueError, match="50 tokens have been read, there are no first"):
                stream.rewind(length)


def test_memory_is_taken_once(small: Thinker) -> None:
    stream = ThinkerStream(small, 300)
    held = stream.keys.data_ptr(), stream.values.data_ptr(), stream.keys.nbytes, stream.ids.ctypes.data
    rng = np.random.default_rng(0)
    for at in range(1500):
        if stream.room < 40:
            stream.rewind(int(rng.integers(0, 200)))
        stream.read(rng.integers(0, 512, 39 if at % 5 == 0 else 1))
    assert stream.forwards == 1500
    assert held == (stream.keys.data_ptr(), stream.values.data_ptr(), stream.keys.nbytes, stream.ids.ctypes.data)
    assert stream.keys.shape == (3, 2, 300, 16)


def test_states_alone_cost_no_logits(small: Thinker) -> None:
    plain, asked = ThinkerStream(small, 300), ThinkerStream(small, 300)
    read = plain.read(IDS[:39], logits=False)
    assert len(read.logits) == 0
    assert torch.equal(read.states, asked.read(IDS[:39]).states)


class TestRefused:
    def test_ids_that_are_none(self, small: Thinker) -> None:
        for ids in ([512], [3, -1]):
            with pytest.raises(ModelError, match="are not all among the 512 of thinker plain; were the tokens made"):
                ThinkerStream(small, 300).read(np.array(ids))

    def test_more_than_there_is_room_for(self, small: Thinker) -> None:
        stream = ThinkerStream(small, 30)
        stream.read(IDS[:20])
        for count in (11, 0):
            with pytest.raises(ValueError, match=f"{count} tokens to read, there is room for 1 to 10"):
                stream.read(IDS[:count])
        assert stream.length == 20 and stream.forwards == 1
