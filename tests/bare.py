"""A bare machine: an interpreter that finds torch, numpy, safetensors and what those need, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ("numpy", "safetensors", "torch")


def bare_run(folder: Path, code: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs `code` there, with the repository in reach; `folder` is where its packages are linked together."""
    site = folder / "site"
    site.mkdir(parents=True, exist_ok=True)
    for dist in needed(CORE):
        for path in {Path(file).parts[0] for file in dist.files or () if ".." not in Path(file).parts}:
            place = Path(str(dist.locate_file(path)))
            if place.exists() and not (site / path).exists():
                (site / path).symlink_to(place)
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]\n"
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, "-I", "-S", "-c", start + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=timeout)


def needed(names: tuple[str, ...]) -> list[Distribution]:
    """The distributions called `names` and, extras aside, all that they require."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        required = [line for line in found[name].requires or () if "extra ==" not in line]
        waiting += [match[0] for line in required if (match := re.match(r"[A-Za-z0-9_.-]+", line))]
    return list(found.values())
