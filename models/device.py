"""Where a model runs: what the recipe asked for, or an error; never another device in silence."""

from __future__ import annotations

from manifests.errors import ModelError, UsageError

AUTO, CPU, CUDA = "auto", "cpu", "cuda"


def torch_device(device: str) -> str:
    """`device` ("cpu", "cuda", "cuda:1" or "auto") as torch takes it.

    "auto" alone may choose: CUDA where there is one, else the CPU. Raises ModelError when the device asked for
    is not there, UsageError for another word.
    """
    kind, index = _parsed(device)
    if kind == CPU:
        return CPU
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == AUTO:
        return CUDA if count else CPU
    if index >= count:
        raise ModelError(f"torch sees {count} CUDA devices, not {device!r}; mend the driver or set device = 'auto'")
    return device


def onnx_providers(device: str) -> list[tuple[str, dict[str, str]]]:
    """Execution providers for ONNX Runtime, the first of which must be the one that runs (`models.onnx` checks).

    Raises ModelError when the build of ONNX Runtime lacks what is asked for, UsageError for another word.
    """
    import onnxruntime

    kind, index = _parsed(device)
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    built = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == CPU or (kind == AUTO and not built):
        return [cpu]
    if not built:
        raise ModelError(
            f"this onnxruntime has no CUDA provider, {device!r} was asked for; "
            "run: pip install onnxruntime-gpu, or set device = 'auto'"
        )
    return [("CUDAExecutionProvider", {"device_id": str(index)}), cpu]


def check_device(device: str) -> None:
    """Raises UsageError unless `device` is a word that the others here take, whether or not it is there."""
    _parsed(device)


def _parsed(device: str) -> tuple[str, int]:
    """("cpu" | "cuda" | "auto", index)."""
    kind, colon, index = device.partition(":")
    if kind not in (AUTO, CPU, CUDA) or (colon and (kind != CUDA or not index.isdecimal())):
        raise UsageError(f"device {device!r} must be auto, cpu, cuda or cuda:N")
    return kind, int(index or 0)
