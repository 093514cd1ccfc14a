"""The command as the tests run it, and a folder of good and bad files for it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import light
import numpy as np
import pytest
from made import clicks, numbered, write_movie
from test_scenes import scenes_movie

from pipelines import cli

TESTS = Path(__file__).resolve().parent
EVIL = '=HYPERLINK("x").mp4'


Mixed = tuple[Path, subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """The one line on standard error."""
        assert self.err.count("\n") == 1 and self.err.startswith("xstreamer: "), self.err
        assert "Traceback" not in self.err and "unexpected" not in self.err, self.err
        assert self.out == ""
        return self.err


def call(*arguments: str | Path) -> Told:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Told(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, **more: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes | more)


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        for begin in range(0, 32_000, 1024):
            samples = np.sin(np.arange(begin, begin + 1024) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, begin
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@contextlib.contextmanager
def made_bench(folder: Path) -> Iterator[Path]:
    """`folder` with the light recipe, a profile and good and bad files under src/; workers find the light stages."""
    src = folder / "src"
    src.mkdir()
    (folder / "recipe.toml").write_text(light.recipe_toml(folder))
    (folder / "pretrain.toml").write_text(light.PROFILE.format(sync=4.0))
    write_movie(src / EVIL, [numbered(7)] * 60, audio=clicks(2.4))
    scenes_movie(src / "mute.mp4", [2.0, 3.0, 0.8])
    (src / "zero.mp4").write_bytes(b"")
    (src / "text.mp4").write_text("I am no video\n" * 100)
    sound_only(src / "sound.mp4")
    whole = write_movie(folder / "whole.mkv", [numbered(n % 250, (128, 192)) for n in range(200)]).read_bytes()
    (src / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (src / "head.mp4").write_bytes((src / "mute.mp4").read_bytes()[:2000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        yield folder


def asked(bench: Path, source: Path, out: Path) -> list[str]:
    """`curate` with the light recipe."""
    files = ["--recipe", str(bench / "recipe.toml"), "--profile", str(bench / "pretrain.toml")]
    return ["curate", str(source), "-o", str(out), *files, "--cluster", "1", "--quiet"]


def curated(bench: Path) -> Mixed:
    """A dataset of the good and bad files, and how the command that made it ended."""
    process = start(*asked(bench, bench / "src", bench / "ds"), "--json")
    out, err = process.communicate()
    return bench / "ds", subprocess.CompletedProcess([], process.returncode, out, err)
