"""ONNX Runtime sessions, opened the same way everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manifests.errors import ModelError


def open_session(path: Path, *, threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession` on CPU with `threads` threads (a worker owns one core).

    Raises ModelError when the file is missing or is not a model.
    """
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"no model file at {path}; reinstall the package that ships it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"{path} is not a readable ONNX model ({error}); fetch it again") from error


def package_file(package: str, *parts: str) -> Path:
    """Path of a data file inside an installed package, without importing the package.

    Raises ModelError that names the `pip install` line when the package is missing.
    """
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package {package} is not installed; run: pip install {package}")
    return Path(next(iter(spec.submodule_search_locations)), *parts)
