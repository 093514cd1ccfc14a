"""`xstreamer models list|fetch|verify`: the weights on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from manifests.errors import ModelError, UsageError

if TYPE_CHECKING:
    from models.download import Meter, Watch
    from models.weights import Weights

Row = dict[str, Any]
PIPE_WIDTH = 400
"""Columns of the table where no terminal sets them."""


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The verbs of `xstreamer models`."""
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in (
        ("list", "every model: licence, size, source, and whether it is here"),
        ("fetch", "download what is missing; goes on where it broke off"),
        ("verify", "hash everything that is here against what was published or recorded"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.add_argument("names", nargs="*", metavar="NAME", help="models by name")
        verb.add_argument("--recipe", help="the models of a recipe (paper, bundled or a TOML file)")
        if name == "fetch":
            verb.add_argument("--again", action="store_true", help="also what is here already")
            verb.add_argument(
                "--accept-changed", action="store_true", help="record a file that the publisher has replaced"
            )
        verb.add_argument("--json", action="store_true", help="print one JSON object for machines")
        verb.add_argument("--quiet", action="store_true", help="no progress bars")
        verb.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def run(options: argparse.Namespace) -> int:
    """Runs the verb; the exit code."""
    return {"list": _list, "fetch": _fetch, "verify": _verify}[options.verb](options)


def _chosen(options: argparse.Namespace) -> list[str]:
    """The models asked for by name and recipe, in order; none when nothing was asked for."""
    from models.weights import entry
    from pipelines.models_used import stages_by_model
    from pipelines.recipe import load_recipe

    try:
        names = [entry(name).name for name in options.names]
    except ModelError as error:
        raise UsageError(str(error)) from None
    if options.recipe:
        names += stages_by_model(load_recipe(options.recipe))
    return list(dict.fromkeys(names))


def licence(model: Weights) -> str:
    """The licence, marked where it forbids commercial use or does not say."""
    mark = {True: "", False: "NON-COMMERCIAL: ", None: "commercial use not stated: "}
    return mark[model.commercial] + model.licence


def _list(options: argparse.Namespace) -> int:
    from models.weights import catalogue, entry, models_dir

    names = _chosen(options) or ([] if options.recipe else list(catalogue()))
    rows = [_row(entry(name)) for name in names]
    if options.json:
        print(json.dumps({"folder": str(models_dir()), "models": rows}))
    else:
        _show([entry(name) for name in names], rows)
    return 0


def _row(model: Weights) -> Row:
    from models.inventory import presence
    from models.weights import models_dir

    found = presence(model.name)
    return {**asdict(model), "folder": str(models_dir() / model.name), **asdict(found)}


def _show(models: Sequence[Weights], rows: Sequence[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from models.weights import models_dir

    colours = {"ready": "green", "in package": "green", "missing": "yellow", "partial": "yellow"}
    table = Table(box=box.SIMPLE)
    for name in ("model", "for", "licence", "size", "source", "state"):
        whole = name in ("model", "size", "state")
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold", no_wrap=whole)
    for model, row in zip(models, rows, strict=True):
        mark = {True: "", False: "bold red", None: "yellow"}[model.commercial]
        state = Text(row["state"], colours.get(row["state"], "red"))
        size = _size(row["bytes"]) if row["bytes"] is not None else _at_least(model)
        cells = (model.name, model.purpose, Text(licence(model), mark), size, _source(model), state)
        table.add_row(*cells)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table)
    here = sum(row["on_disk"] for row in rows if not row["package"])
    missing = [row["name"] for row in rows if row["state"] in ("missing", "partial")]
    console.print(f"folder: {models_dir()} ({_size(here)})", highlight=False, markup=False, soft_wrap=True)
    if missing:
        line = f"{len(missing)} not here; run: xstreamer models fetch NAME..., or --recipe paper"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _source(model: Weights) -> str:
    if model.package:
        return f"package {model.package}"
    place = model.homepage.split("://")[-1]
    commit = len(model.revision) == 40 and " " not in model.revision
    revision = model.revision[:12] if commit else model.revision
    return f"{place} @ {revision}" if revision else place


def _at_least(model: Weights) -> str:
    """The size of those files whose size is published."""
    known = sum(file.bytes or 0 for file in model.files)
    return f"over {_size(known)}" if known else "?"


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _watch(name: str, quiet: bool) -> Watch:
    """Bars and news on standard error."""
    from models.download import Watch
    from pipelines.progress import Bar

    def bar(total: int) -> AbstractContextManager[Meter]:
        scale, unit = (1e6, "MB") if total >= 1e7 else (1e3, "kB")
        return _Scaled(Bar(name, total / scale, unit, quiet), scale)

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return Watch(bar, say)


class _Scaled:
    """A bar that is told bytes and shows a larger unit."""

    def __init__(self, bar: Any, scale: float) -> None:
        self.bar, self.scale = bar, scale

    def __enter__(self) -> _Scaled:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def add(self, amount: float) -> None:
        """`amount` more bytes."""
        self.bar.add(amount / self.scale)


def _fetch(options: argparse.Namespace) -> int:
    from models.fetch import fetch, refuse_offline
    from models.weights import models_dir

    names = _chosen(options)
    if not names and not options.recipe:
        raise UsageError("name the models to fetch, or --recipe paper; xstreamer models list shows them")
    refuse_offline(names, options.again)
    fetched: list[str] = []
    failed: list[str] = []
    for name in names:
        try:
            new = fetch(name, _watch(name, options.quiet), options.again, options.accept_changed)
            fetched += [str(path) for path in new]
            if new and not options.json:
                print(f"{name}: {', '.join(map(str, new))}")
        except ModelError as error:
            if options.debug:
                raise
            failed.append(str(error))
            print(f"xstreamer: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps({"folder": str(models_dir()), "fetched": fetched, "failed": failed}))
    elif not failed:
        print(f"{len(names)} models are here, {len(fetched)} files of them new, in {models_dir()}")
    return 1 if failed else 0


def _verify(options: argparse.Namespace) -> int:
    from models.inventory import faults, presence
    from models.weights import catalogue, models_dir
    from pipelines.progress import Bar

    chosen = _chosen(options)
    names = chosen or ([] if options.recipe else list(catalogue()))
    found: list[str] = []
    size = sum(presence(name).on_disk for name in names)
    with Bar("verify", size / 1e6, "MB", options.quiet) as bar:
        for name in names:
            found += faults(name, bool(chosen), lambda count: bar.add(count / 1e6))
    if options.json:
        print(json.dumps({"folder": str(models_dir()), "models": names, "faults": found}))
    else:
        print("\n".join(found) if found else f"{models_dir()}: no fault found")
    return 1 if found else 0
