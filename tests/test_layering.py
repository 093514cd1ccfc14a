"""The arrows of the house, read from the source: who may import whom, no circles, what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("manifests", "models", "curation", "training", "inference", "pipelines")
MAY = {
    "manifests": set(),
    "models": {"manifests"},
    "curation": {"models", "manifests"},
    "training": {"models", "manifests"},
    "inference": {"models", "manifests"},
    "pipelines": {"curation", "training", "inference", "models", "manifests"},
}
FORBIDDEN = {
    "manifests": {"torch", "cv2", "dask", "distributed", "av", "onnxruntime"},
    "models": {"dask", "distributed", "pyarrow", "av"},
    "curation": {"dask", "distributed", "pyarrow", "argparse"},
    "training": {"dask", "distributed"},
    "inference": {"dask", "distributed"},
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports; only those at import time when `top_level`."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    seen = {name.split(".")[0] for name in imports(path)}
    assert seen & set(ROOMS) <= MAY[room] | {room}
    assert not seen & FORBIDDEN.get(room, set())


def test_modules_import_in_no_circle() -> None:
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    edges = {name: {other for other in imports(path) if other in modules} for name, path in modules.items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        assert state.get(name) != 1, f"circle: {' -> '.join([*trail, name])}"
        if name not in state:
            state[name] = 1
            for other in sorted(edges[name] - {name}):
                visit(other, [*trail, name])
            state[name] = 2

    for name in sorted(modules):
        visit(name, [])
    assert len(state) == len(modules)


HEAVY = {"torch", "av", "cv2", "onnxruntime", "pyarrow", "distributed", "dask", "scipy", "webdataset", "rich"}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_command_answers_help_without_heavy_imports() -> None:
    assert not loaded_by("import pipelines.cli; pipelines.cli.parser().format_help()") & HEAVY


def test_manifests_load_no_torch() -> None:
    names = "shards, tables, verdicts, records, samples, dataset"
    assert not loaded_by(f"from manifests import {names}") & {"torch", "cv2", "av"}
