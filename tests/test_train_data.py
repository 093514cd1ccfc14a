"""The data of a run: every sample as it was stored, in the same order at any number of ranks and threads, and one clear
line for what cannot be trained on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare import ROOT
from loaded import array, ids, opened, recipe, stored
from shards_made import make_shards

from manifests.errors import DatasetError
from models.clock import SPEECH_HZ
from models.dialogue_layout import turn_of
from models.thinker import BUNDLED, STATES, identity
from training import samples as samples_module
from training.batch import NO_SEGMENT, Batch, micro_batches, pad_states
from training.data import AHEAD, loader, validation_batches
from training.samples import whole_sample

MADE = 11


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven samples in three shards, three to validate with, states stored."""
    return make_shards(tmp_path_factory.mktemp("made"), MADE, val=3)


# what a batch holds


def test_every_sample_comes_once_an_epoch_as_it_was_stored(shards: Path) -> None:
    data, members = opened(shards), stored(shards)
    batches = list(loader(recipe(epochs=2), data))
    for epoch in range(2):
        assert Counter(ids([b for b in batches if b.epoch == epoch])) == Counter(members.keys())
    for batch in batches:
        assert batch.damaged == 0 and batch.notes == () and batch.wait_s > 0
        for row, name in enumerate(batch.ids):
            check_row(batch, row, members[name])


def check_row(batch: Batch, row: int, members: dict[str, bytes]) -> None:
    chunks = json.loads(members["json"])["chunks"]
    assert int(batch.chunks[row]) == chunks
    assert batch.latents.dtype == batch.references.dtype == torch.float16
    assert np.array_equal(batch.latents[row, : 1 + chunks].numpy(), array(members["latents.npy"]))
    assert not batch.latents[row, 1 + chunks :].any()
    assert np.array_equal(batch.references[row].numpy(), array(members["reference.npy"]))
    assert np.array_equal(batch.text[row], array(members["text.npy"]))
    assert np.array_equal(batch.speech[row], array(members["speech.npy"]))
    if batch.states is None or batch.segments is None or batch.ticks is None:
        assert STATES not in members
        return
    states = array(members[STATES])
    turn = turn_of(len(batch.text[row]), len(batch.speech[row]))
    assert np.array_equal(batch.states[row, : len(states)].numpy(), states)
    assert batch.segments[row].tolist() == [*turn.segment, *[NO_SEGMENT] * (batch.segments.shape[1] - len(turn))]
    assert (batch.ticks[row, : len(turn)].double() / SPEECH_HZ).tolist() == turn.times.tolist()


def test_a_batch_is_as_long_as_its_longest_sample(shards: Path) -> None:
    for batch in loader(recipe(), opened(shards)):
        assert batch.latents.shape == (len(batch), 1 + int(batch.chunks.max()), 128, 2, 2)
        assert batch.seconds == pytest.approx(int(batch.chunks.sum()) * 0.32)


def test_batches_are_of_like_length(tmp_path: Path) -> None:
    data = opened(make_shards(tmp_path, 32, (1, 1), range(2, 18), False, 8))
    spread = [int(b.chunks.max() - b.chunks.min()) for b in loader(recipe(batch=2, shuffle_buffer=16), data)]
    chance = [int(b.chunks.max() - b.chunks.min()) for b in loader(recipe(batch=2, shuffle_buffer=1), data)]
    assert sum(spread) < sum(chance) / 2


def test_samples_without_states_bring_their_tokens(tmp_path: Path) -> None:
    data = opened(make_shards(tmp_path, 4, with_states=False))
    assert (data.contract.thinker, data.contract.hidden) == ("", 0)
    members = stored(tmp_path / "shards/pretrain")
    for batch in loader(recipe(), data):
        assert batch.states is batch.segments is batch.ticks is None
        for row, name in enumerate(batch.ids):
            check_row(batch, row, members[name])


def test_states_are_used_only_where_every_dataset_stores_them(shards: Path, tmp_path: Path) -> None:
    assert opened(shards).contract.thinker == identity(BUNDLED)
    both = opened(shards, make_shards(tmp_path, 4, with_states=False, seed=1))
    assert both.contract.hidden == 0
    assert all(batch.states is None for batch in loader(recipe(), both))


def test_parts_of_a_batch_are_padded_no_longer_than_they_need(shards: Path) -> None:
    (batch,) = loader(recipe(batch=MADE, shuffle_buffer=1), opened(shards))
    members = stored(shards)
    parts = micro_batches(batch, 4, 5)
    assert [len(part) for part in parts] == [4, 4, 3, 0, 0]
    for part in parts[:3]:
        assert part.latents.shape[1] == 1 + int(part.chunks.max())
        assert part.segments is not None and (part.segments != NO_SEGMENT).any(dim=0).all()
        for row, name in enumerate(part.ids):
            check_row(part, row, members[name])
    assert parts[4].latents.shape == (0, 1, 128, 2, 2)
    with pytest.raises(ValueError, match="too few"):
        micro_batches(batch, 4, 2)


def test_padding_nobodys_states_leaves_one_empty_place() -> None:
    states, segments, ticks = pad_states([], 5)
    assert (states.shape, segments.shape, ticks.shape) == ((0, 1, 5), (0, 1), (0, 1))


# order


@pytest.mark.parametrize("world", [2, 3])
def test_the_batch_of_a_step_is_the_same_at_any_number_of_ranks(shards: Path, world: int) -> None:
    data, asked = opened(shards), recipe(epochs=2, batch=4)
    alone = [set(batch.ids) for batch in loader(asked, data)]
    ranks = [list(loader(asked, data, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for step, whole in enumerate(alone):
        together = ids([batches[step] for batches in ranks])
        assert len(together) == len(whole) and set(together) == whole


def test_fewer_shards_than_ranks_is_no_matter(tmp_path: Path) -> None:
    data = opened(make_shards(tmp_path, 8, (1, 1), with_states=False, per_shard=8))
    assert len(data.listings[0].train) == 1
    ranks = [list(loader(recipe(batch=8), data, rank, 4)) for rank in range(4)]
    assert [len(ids(batches)) for batches in ranks] == [2, 2, 2, 2]
    assert len({name for batches in ranks for name in ids(batches)}) == 8


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(shards: Path, workers: int) -> None:
    data = opened(shards)
    for mine, other in zip(
        loader(recipe(epochs=3), data), loader(recipe(epochs=3, workers=workers), data), strict=True
    ):
        assert (mine.ids, mine.epoch, mine.step) == (other.ids, other.epoch, other.step)
        assert torch.equal(mine.latents, other.latents)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cursor_resumes_with_exactly_the_rest(shards: Path, workers: int) -> None:
    data, asked = opened(shards), recipe(epochs=2, workers=workers)
    whole = list(loader(asked, data))
    for at, batch in enumerate(whole):
        rest = list(loader(asked, data, start=(batch.epoch, batch.step)))
        assert [b.ids for b in rest] == [b.ids for b in whole[at:]]


def test_a_run_of_so_many_steps_takes_so_many(shards: Path) -> None:
    data = opened(shards)
    assert [(b.epoch, b.step) for b in loader(recipe(steps=6, epochs=0), data)] == [
        (at // 4, at % 4) for at in range(6)
    ]
    rest = loader(recipe(steps=6, epochs=0), data, start=(1, 1))
    assert [(b.epoch, b.step) for b in rest] == [(1, 1)]


def test_weights_are_passes_and_a_second_pass_has_a_name_of_its_own(shards: Path, tmp_path: Path) -> None:
    other = make_shards(tmp_path, 6, seed=5)
    data = opened(shards, other, weights=(2, 0.5))
    for epoch in range(2):
        seen = ids([b for b in loader(recipe(epochs=2), data) if b.epoch == epoch])
        assert len(seen) == len(set(seen))
        first, second = {n for n in seen if "#" not in n}, {n for n in seen if n.endswith("#2")}
        assert {n.removesuffix("#2") for n in second} == set(stored(shards))
        assert set(stored(shards)) < first and len(first - set(stored(shards))) == 3


def test_a_dataset_that_would_never_be_read_is_refused(shards: Path, tmp_path: Path) -> None:
    data = opened(shards, make_shards(tmp_path, 2, seed=5), weights=(1, 0.1))
    with pytest.raises(DatasetError, match=f"{tmp_path}.*weight 0.1 of 2 samples is none"):
        data.plan(recipe())


def test_validation_is_the_same_on_every_call_and_split_evenly(shards: Path) -> None:
    data = opened(shards)
    assert data.validation_samples == 3
    assert set(ids(list(validation_batches(data, 9, 2)))) == set(stored(shards, "val"))
    ranks = [list(validation_batches(data, 3, 1, rank, 2)) for rank in range(2)]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[1, 1], [1, 0]]
    assert len(set(ids(ranks[0]) + ids(ranks[1]))) == 3
    assert len(ids(list(validation_batches(data, 2, 4)))) == 2


def test_a_whole_sample_has_what_one_listens_to(shards: Path) -> None:
    (listing,) = opened(shards).listings
    for split in ("train", "val"):
        members = stored(shards, split)
        for number in range(len(members)):
            key, found = whole_sample(listing, split, number)
            assert found == members[key] and "flac" in found
    with pytest.raises(DatasetError, match="no val sample 3"):
        whole_sample(listing, "val", 3)


# threads


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("xstreamer-data")]


def test_no_more_than_a_few_batches_are_built_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(make_shards(tmp_path, 40, (1, 1), range(1, 2), False, 40))
    read, sample = [], samples_module.Reader.sample

    def counted(self: samples_module.Reader, slot: samples_module.Slot) -> Any:
        read.append(slot)
        return sample(self, slot)

    monkeypatch.setattr(samples_module.Reader, "sample", counted)
    batches = loader(recipe(batch=1, workers=2), data)
    next(batches)
    while len(read) < 1 + 2 * AHEAD:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(read) == 1 + 2 * AHEAD
    batches.close()


def test_closing_the_loader_ends_its_threads(shards: Path) -> None:
    batches = loader(recipe(epochs=9, workers=2), opened(shards))
    next(batches)
    assert reading_threads()
    batches.close()
    for thread in reading_threads():
        thread.join(10)
    assert not reading_threads()


def test_an_error_in_a_thread_is_the_loaders_error(shards: Path, tmp_path: Path) -> None:
    data = opened(shutil.copytree(shards, tmp_path / "copy"))
    (tmp_path / "copy/train-000001.tar").unlink()
    with pytest.raises(DatasetError, match=r"train-000001.tar is not there"):
        list(loader(recipe(workers=2), data))
    for thread in reading_threads():
        thread.join(10)
    assert not reading_threads()


ENDLESS = """
import sys
from training.contract import wanted_by
from training.data import loader, open_data
from training.recipe import Dataset, load_recipe
data = open_data([Dataset(sys.argv[1])], wanted_by("bundled"))
for batch in loader(load_recipe("tiny", {"epochs": 10**9, "workers": 2}), data):
    if batch.epoch == 2:
        print("reading", flush=True)
"""


def test_an_interrupt_leaves_nothing_behind(shards: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(shards)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and said.rstrip().endswith("KeyboardInterrupt")
