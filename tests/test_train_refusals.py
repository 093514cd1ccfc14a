"""Data that cannot be trained on, foreign or not there: refused in one line before the first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loaded import LENIENT, Samples, one_line, opened, packed, recipe, stored
from shards_made import make_sample, make_shards

from manifests.errors import DatasetError, UsageError
from manifests.shards import write_index
from manifests.store import Store
from models.thinker import BUNDLED, GLM_4_VOICE, identity
from training.contract import Wanted, wanted_by
from training.data import loader, open_data
from training.index import listed, verify
from training.reading import Damaged
from training.recipe import Dataset


@pytest.fixture(scope="module")
def made() -> Samples:
    """Six samples, by key."""
    return dict(make_sample(number, 2 + number % 3, (1, 1)) for number in range(6))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made"), 6, (1, 1), range(2, 5), per_shard=3)


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """The same shards, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


# what is foreign, and what is not there


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "another video codec version": (
        {"codecs": {"video": "dct3d 0123", "speech": "", "text": ""}},
        "video codec dct3d 0123, not dct3d 7",
    ),
    "another speech codec": ({"codecs": {"speech": "glm_4_voice 1"}}, "speech codec glm_4_voice 1, not fsq_mel"),
    "another text codec": ({"codecs": {"text": "glm_4_bpe 1"}}, "text codec glm_4_bpe 1, not whisper_bpe"),
    "another frame rate": ({"fps": 30}, "another clock .30 fps, 8 frames a chunk, 12.5 .* not 25 fps"),
    "another chunk": ({"chunk_frames": 4}, "another clock .25 fps, 4 frames a chunk"),
    "another token rate": ({"speech_hz": 25}, "another clock .25 fps, 8 frames a chunk, 25 speech"),
    "no clock": ({"fps": None}, "another clock .None fps"),
    "another thinker": ({"thinker": "glm-4-voice-9b 0123"}, "states of thinker glm-4-voice-9b 0123, not bundled"),
    "another bundled thinker": ({"thinker": "bundled 0123"}, "states of thinker bundled 0123, not bundled"),
    "nobody's states": ({"thinker": None}, "stores no states of a Thinker that it names"),
}


def laid_over(members: dict[str, bytes], facts: Mapping[str, Any]) -> dict[str, bytes]:
    found = json.loads(members["json"])
    codecs = {name: value for name, value in facts.get("codecs", {}).items() if value}
    return members | {"json": json.dumps(found | facts | {"codecs": found["codecs"] | codecs}).encode()}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_shards_are_refused_before_the_first_step(case: str, made: Samples, tmp_path: Path) -> None:
    facts, why = FOREIGN[case]
    samples = {key: laid_over(members, facts) for key, members in made.items()}
    with pytest.raises(DatasetError, match=why) as raised:
        opened(packed(tmp_path, samples))
    assert "train-000000.tar" in one_line(raised)


@pytest.mark.parametrize("case", [name for name in FOREIGN if name != "nobody's states"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_foreign_sample_among_others_is_refused_and_no_damage(
    case: str, workers: int, made: Samples, tmp_path: Path
) -> None:
    foreign = list(made)[4]
    samples = made | {foreign: laid_over(made[foreign], FOREIGN[case][0])}
    with pytest.raises(DatasetError, match=f"sample {foreign} in .*train-000001.tar") as raised:
        list(loader(recipe(workers=workers, **LENIENT), opened(packed(tmp_path, samples))))
    assert not isinstance(raised.value, Damaged)
    one_line(raised)


def test_a_run_that_goes_on_refuses_shards_of_another_codec(shards: Path) -> None:
    wanted = replace(wanted_by(BUNDLED), video="ltx_video-0.9.5 77")
    with pytest.raises(DatasetError, match=r"video codec dct3d \w+, not ltx_video-0.9.5 77"):
        open_data([Dataset(str(shards))], wanted)


def test_mixed_grids_are_refused(shards: Path, made: Samples, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has latents of \(h, w\) \(2, 1\), .* has \(1, 1\)") as raised:
        opened(shards, make_shards(tmp_path / "other", 2, (2, 1)))
    one_line(raised)
    key, members = make_sample(77, 3, (2, 1))
    with pytest.raises(DatasetError, match=f"sample {key} .* latents of .h, w. .2, 1., the samples before it .1, 1."):
        list(loader(recipe(**LENIENT), opened(packed(tmp_path, made | {key: members}))))


def test_datasets_of_two_video_codecs_do_not_go_together(shards: Path, tmp_path: Path) -> None:
    codecs = json.loads(next(iter(stored(shards).values()))["json"])["codecs"]
    other = make_shards(tmp_path, 2, (1, 1), facts={"codecs": codecs | {"video": "ltx_video-0.9.5 77"}})
    assert opened(other).contract.video == "ltx_video-0.9.5 77"
    with pytest.raises(DatasetError, match=r"has the video codec ltx_video-0.9.5 77, .* has dct3d"):
        opened(shards, other)


def test_states_of_a_thinker_that_is_not_here_are_known_by_its_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path / "none"))
    wanted = wanted_by(GLM_4_VOICE)
    assert (wanted.thinker, wanted.text, wanted.speech) == (GLM_4_VOICE, "glm_4_bpe", "glm_4_voice")
    by_name = Wanted(thinker=BUNDLED)
    assert open_data([Dataset(str(shards))], by_name).contract.thinker == identity(BUNDLED)
    with pytest.raises(DatasetError, match="states of thinker bundled .*, not glm-4-voice-9b"):
        open_data([Dataset(str(shards))], Wanted(thinker=GLM_4_VOICE))
    with pytest.raises(DatasetError, match="codec fsq_mel .*, not glm_4_voice"):
        open_data([Dataset(str(shards))], wanted)


def no_samples(folder: Path) -> None:
    write_index(Store(folder.parent), folder.name, {"train": [], "val": []}, {"profile": "x"})


def rewrite(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def listing(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return write


def zeros(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))


NOT_THERE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda folder: (folder / "index.json").unlink(), r"there is no .*index.json; name a folder"),
    "no folder": (shutil.rmtree, r"there is no .*index.json"),
    "half an index": (rewrite("index.json", b'{"shardlist": ['), "index.json is damaged .* pack again"),
    "an index of bytes": (rewrite("index.json", b"\xff\xfe"), "index.json is damaged"),
    "another json": (rewrite("index.json", b"[1, 2]"), "is no index of shards"),
    "another kind": (listing(lambda index: index.update(__kind__="x")), "is no index of shards"),
    "a shard of no size": (listing(lambda index: index["shardlist"][0].pop("nsamples")), "without url and nsamples"),
    "a shard of text": (listing(lambda index: index["shardlist"].append("x")), "without url and nsamples"),
    "no samples": (no_samples, "lists no samples"),
    "no shard": (lambda folder: (folder / "train-000001.tar").unlink(), "train-000001.tar is listed .* No such file"),
    "a short shard": (rewrite("train-000001.tar", b"x" * 1024), "train-000001.tar has 1024 bytes, its index lists"),
    "nothing readable": (zeros, "no sample can be read: .*train-000000.tar holds 0 samples, fewer than"),
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_data_that_is_not_there_is_one_line(case: str, copy: Path) -> None:
    change, why = NOT_THERE[case]
    change(copy)
    with pytest.raises(DatasetError, match=why) as raised:
        opened(copy)
    one_line(raised)


def test_no_dataset_at_all_is_one_line() -> None:
    with pytest.raises(DatasetError, match="no dataset to train on"):
        opened()


def test_a_dataset_is_named_by_its_folder_its_index_or_its_profile(shards: Path) -> None:
    dataset = shards.parent.parent
    for named in (
        Dataset(str(shards)),
        Dataset(f"{shards}/"),
        Dataset(f"{shards}/index.json"),
        Dataset(str(dataset), "pretrain"),
    ):
        assert listed(named).samples == 6
    with pytest.raises(DatasetError, match="name a profile of this dataset: pretrain"):
        listed(Dataset(str(dataset)))


def test_a_hash_that_is_wrong_is_found_when_asked(copy: Path) -> None:
    path = copy / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    opened(copy)
    with pytest.raises(DatasetError, match="train-000001.tar is not the file that its index lists .sha256") as raised:
        opened(copy, hashes=True)
    one_line(raised)


def test_hashing_tells_how_far_it_is(shards: Path) -> None:
    found = listed(Dataset(str(shards)))
    read: list[int] = []
    verify([found], read.append)
    assert sum(read) == sum(shard.filesize for shard in (*found.train, *found.val))


def test_fewer_samples_than_ranks_is_one_line(shards: Path) -> None:
    with pytest.raises(DatasetError, match="6 samples an epoch are fewer than 7 ranks") as raised:
        next(loader(recipe(batch=8), opened(shards), 0, 7))
    one_line(raised)
    with pytest.raises(UsageError, match="a batch of 3 samples a step is fewer than 4 ranks"):
        next(loader(recipe(batch=3), opened(shards), 0, 4))
