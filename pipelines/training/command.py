"""`xstreamer train` and `xstreamer export-actor`. Heavy imports are inside the functions that run them."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.training.plan_options import plan_arguments
from pipelines.training.ranks import rank

if TYPE_CHECKING:
    from pipelines.training.asked import Asked
    from pipelines.training.watch import Filmer, Watch
    from training.parallel import World

EXIT_DONE, EXIT_INTERRUPTED = 0, 130
AGAIN_S = 1.0
"""A signal so soon after the first is the same Ctrl-C: terminals and torchrun both send one."""


def train_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    sub.add_argument(
        "shards",
        nargs="*",
        metavar="SHARDS",
        help="folders of shards or their index.json, local or fsspec URLs; PATH=WEIGHT for passes an epoch",
    )
    sub.add_argument("--recipe", help="pretrain, finetune, tiny or a TOML file (with --resume: the run's own)")
    sub.add_argument("-o", "--output", metavar="RUN", help="folder of the run (default: run-RECIPE)")
    sub.add_argument("--profile", metavar="P", help="SHARDS are datasets; train on what this profile keeps")
    sub.add_argument(
        "--weight", type=float, action="append", default=[], metavar="W", help="one for each of SHARDS, in order"
    )
    sub.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="go on, from the run's newest checkpoint or this one",
    )
    sub.add_argument("--steps", type=int, metavar="N", help="steps of the whole run, instead of the recipe's length")
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value for a key of the recipe"
    )
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: auto)")
    sub.add_argument("--verify-hashes", action="store_true", help="hash every shard before the first step")
    sub.add_argument("--plan", action="store_true", help="print parameters, memory and hours; nothing is trained")
    plan_arguments(sub)


def export_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `export-actor`."""
    sub.add_argument("run", metavar="RUN", help="folder of a run, or one of its checkpoints")
    sub.add_argument(
        "-o", "--output", metavar="DIR", help="where actor.safetensors and actor.json go (default: RUN/actor)"
    )
    sub.add_argument(
        "--weights",
        choices=("average", "last"),
        help="the weights' moving average or the last ones (default: the average, where the run keeps one)",
    )
    sub.add_argument("--dtype", default="", help="float32, bfloat16 or float16 (default: what the run computes in)")


def train(options: argparse.Namespace) -> int:
    """Trains; the exit code. Raises XstreamerError."""
    if options.plan:
        from pipelines.training import plan_table

        return plan_table.run(options) if rank() == 0 else EXIT_DONE
    from pipelines.training.asked import asked, begun
    from training.parallel import world

    run = asked(options)
    try:
        with world(options.device) as where:
            where.first(lambda: _ready(run, where, options))
            return _train(run, where, options)
    except KeyboardInterrupt:
        if rank() == 0:
            on = f"go on with: xstreamer train -o {run.folder} --resume" if begun(run.folder) else "nothing was begun"
            print(f"xstreamer: interrupted; {on}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _ready(run: Asked, where: World, options: argparse.Namespace) -> None:
    """What can be found wrong before anything is built, on one process for all."""
    from pipelines.training.asked import prepare
    from pipelines.training.film import codec_of
    from training.contract import wanted_by
    from training.data import open_data
    from training.plan import lanes_of

    if options.verify_hashes:
        _hashed(run, options.quiet)
    data = open_data(run.recipe.datasets, wanted_by(run.recipe.thinker))
    lanes_of(data.plan(run.recipe), where.rank, where.size)
    if run.recipe.sample_every:
        codec_of(data.contract.video, str(where.device))
    said = prepare(run)
    if said:
        print(f"xstreamer: {said}", file=sys.stderr)


def _hashed(run: Asked, quiet: bool) -> None:
    from pipelines.progress import Bar
    from training.index import listed, verify

    listings = [listed(dataset) for dataset in run.recipe.datasets]
    size = sum(max(0, shard.filesize) for listing in listings for shard in (*listing.train, *listing.val))
    with Bar("hash", size / 1e6, "MB", quiet) as bar:
        verify(listings, lambda read: bar.add(read / 1e6))


def _train(run: Asked, where: World, options: argparse.Namespace) -> int:
    from contextlib import ExitStack, closing

    from pipelines.training.asked import begin
    from pipelines.training.watch import Watch
    from training.events import Event, Started
    from training.trainer import Run
    from training.trainer import train as events_of

    first, stop, begun, steps, done = where.rank == 0, Stop(), time.monotonic(), 0, 0
    events = cast(Generator[Event], events_of(Run(run.recipe, run.folder, options.device, run.checkpoint, stop)))
    with ExitStack() as held:
        watch = held.enter_context(Watch(run.folder, run.recipe, _filmer(where), run.resume, options.quiet))
        held.enter_context(closing(events))
        held.enter_context(stop.heard(first and not options.quiet))
        for event in events:
            if isinstance(event, Started):
                steps, stop.ready = event.steps, True
                where.first(lambda: begin(run))
            done = event.step
            if first:
                watch.see(event)
    if first:
        _told(run, watch, done, steps, time.monotonic() - begun, options.json)
    return EXIT_INTERRUPTED if stop.asked and done < steps else EXIT_DONE


class Stop:
    """Ctrl-C, or a queue's SIGTERM: the first ends the run after its step, with a checkpoint; the second, or one before
    the first step, at once. Asked by the trainer after every step."""

    def __init__(self) -> None:
        self.asked, self.ready = False, False
        self._at, self._say = 0.0, False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def heard(self, say: bool) -> Iterator[None]:
        """While the block runs, signals come here. say: on standard error too."""
        self._say = say
        before = {each: signal.signal(each, self._signal) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _signal(self, _number: int, _frame: Any) -> None:
        now = time.monotonic()
        if not self.ready or (self.asked and now - self._at > AGAIN_S):
            raise KeyboardInterrupt
        if not self.asked and self._say:
            print(
                "\nxstreamer: finishing this step and saving a checkpoint; Ctrl-C again leaves at once",
                file=sys.stderr,
                flush=True,
            )
        self.asked, self._at = True, now


def _filmer(where: World) -> Filmer:
    """Writes the film of what was sampled."""
    from pipelines.training.film import write_sample
    from training.events import Sampled

    def film(event: Sampled, path: Path) -> None:
        write_sample(path, event.latents, event.portrait, event.members, f"step {event.step:,}", str(where.device))

    return film


def _told(run: Asked, watch: Watch, done: int, steps: int, seconds: float, as_json: bool) -> None:
    """How the run ended: for people, or one JSON object."""
    step, validated, saved = (watch.last.get(kind, {}) for kind in ("step", "validated", "saved"))
    film = watch.last.get("sampled", {}).get("film")
    found: dict[str, Any] = {"run": str(run.folder), "step": done, "steps": steps, "done": done >= steps}
    found |= {"seconds": round(seconds, 3), "loss": step.get("loss"), "loss_high": step.get("loss_high")}
    newest = saved.get("path") or (str(run.checkpoint) if run.checkpoint else None)
    found |= {"validation_loss": validated.get("loss"), "checkpoint": newest, "film": film}
    if as_json:
        print(json.dumps(found))
        return
    print(f"{run.folder}: {done:,} of {steps:,} steps" + "".join(_losses(found)))
    print(f"  checkpoint: {found['checkpoint'] or 'none was due: save_every is 0'}")
    if film:
        print(f"  to look at: {run.folder / film}, {run.folder / 'curves.png'}")
    if done < steps:
        print(f"  go on with: xstreamer train -o {run.folder} --resume")
    else:
        print(f"  next: xstreamer export-actor {run.folder}")


def _losses(found: dict[str, Any]) -> Iterator[str]:
    for name, label in (("loss", "loss"), ("loss_high", "at levels from 0.5"), ("validation_loss", "validation")):
        if found[name] is not None:
            yield f", {label} {found[name]:.4f}"


def export_actor(options: argparse.Namespace) -> int:
    """Writes an Actor's two files; the exit code. Raises XstreamerError."""
    from dataclasses import asdict

    from manifests.errors import UsageError
    from models.actor_weights import FACTS, WEIGHTS
    from training import export
    from training.checkpoint_meta import newest

    if options.output is not None and not options.output.strip():
        raise UsageError("-o is empty; name a folder")
    checkpoint = newest(Path(options.run))
    output = Path(options.output) if options.output else checkpoint.parent.parent / "actor"
    average = None if options.weights is None else options.weights == "average"
    found = export.export_actor(checkpoint, output, ema=average, dtype=options.dtype)
    if options.json:
        print(json.dumps({"actor": str(output), "checkpoint": str(checkpoint), **asdict(found)}, default=str))
        return EXIT_DONE
    which = "moving average" if found.averaged else "last weights"
    print(f"{output / WEIGHTS}: {found.size / 1e6:,.1f} MB, {found.dtype}, {which} of step {found.step:,}")
    print(f"{output / FACTS}: preset {found.config.preset}, thinker {found.thinker}, what else goes with it")
    return EXIT_DONE
