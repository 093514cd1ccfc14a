"""ONNX Runtime sessions, opened the same way everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manifests.errors import ModelError
from models.device import AUTO, onnx_providers


def open_session(path: Path, *, threads: int = 1, device: str = "cpu") -> Any:
    """An `onnxruntime.InferenceSession` on `device` with `threads` threads (a worker owns one core).

    Raises ModelError when the file is missing or is not a model, and where the session would run on another
    device than asked for (the library would only warn); "auto" takes the CPU where CUDA does not start.
    """
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"no model file at {path}; reinstall the package that ships it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = onnx_providers(device)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ModelError(f"{path} is not a readable ONNX model ({error}); fetch it again") from error
    if device != AUTO and session.get_providers()[0] != providers[0][0]:
        raise ModelError(f"{path} cannot run on {device!r} (CUDA did not start); set device = 'auto' or 'cpu'")
    return session


def package_file(package: str, *parts: str) -> Path:
    """Path of a data file inside an installed package, without importing the package.

    Raises ModelError that names the `pip install` line when the package is missing.
    """
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package {package} is not installed; run: pip install {package}")
    return Path(next(iter(spec.submodule_search_locations)), *parts)
