"""Training on a machine that has torch, numpy and safetensors alone: shards with stored states are all it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare import bare_run
from shards_made import make_shards

from models.thinker import BUNDLED, identity

ABSENT = ("av", "cv2", "pyarrow", "rich", "scipy", "tensorboard", "tiktoken", "transformers", "webdataset", "whisper")
NOTHING_ELSE = f"""
import importlib.util
assert not [name for name in {ABSENT} if importlib.util.find_spec(name)]
"""
READ = """
from training.contract import wanted_by
from training.data import loader, open_data, validation_batches
from training.recipe import Dataset, load_recipe
data = open_data([Dataset(sys.argv[1])], wanted_by("bundled"), hashes=True)
print(data.contract.thinker)
for batch in loader(load_recipe("tiny", {"epochs": 1, "batch": 2, "workers": 2}), data):
    print(batch.latents.shape[0], batch.states.shape[2])
print(sum(len(batch) for batch in validation_batches(data, 8, 2)))
"""
TRAIN = """
from pathlib import Path
from training.recipe import Dataset, load_recipe
from training.trainer import Run, train
asked = {"steps": 2, "batch": 2, "save_every": 1, "validate_every": 1, "sample_every": 2, "sample_seconds": 0.64,
         "sample_steps": 2, "datasets": [Dataset(sys.argv[1])]}
for event in train(Run(load_recipe("tiny", asked), Path(sys.argv[2]), "cpu")):
    print(type(event).__name__, getattr(event, "loss", ""))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made"), 4, val=2)


def test_shards_are_read_on_a_bare_machine(shards: Path, tmp_path: Path) -> None:
    done = bare_run(tmp_path, NOTHING_ELSE + READ, str(shards))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [identity(BUNDLED), "2 192", "2 192", "2", ""]


def test_the_actor_trains_on_a_bare_machine(shards: Path, tmp_path: Path) -> None:
    """Two steps, checkpoints, validation and a rendered sample."""
    done = bare_run(tmp_path, NOTHING_ELSE + TRAIN, str(shards), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    events = [line.split()[0] for line in done.stdout.splitlines()]
    assert events.count("Step") == 2 and {"Validated", "Sampled", "Saved"} <= set(events)
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2
