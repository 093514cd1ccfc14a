"""`xstreamer stream`: a portrait, what it is told, and a film of it that plays while it grows. Heavy imports are inside
the functions that run them."""

from __future__ import annotations

import argparse
import json
import math
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import UsageError
from pipelines.streaming.script import LISTEN, SAY, SPEAK, WAIT, Line, read_script

if TYPE_CHECKING:
    from inference.cast import Cast, Recording
    from inference.runner import Runner
    from inference.schedule import Event, Plan

EXIT_DONE, EXIT_INTERRUPTED = 0, 130
AUTO = "auto"
FPS, SEGMENT_S = 25, 2.08
LONGEST_FILM_S = 24 * 3600.0


def stream_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `stream`."""
    sub.add_argument("--checkpoint", required=True, metavar="C", help="folder that export-actor wrote")
    sub.add_argument("--portrait", required=True, metavar="P", help="picture of one person, from the front")
    told = sub.add_mutually_exclusive_group()
    told.add_argument("--text", metavar="T", help="what the avatar is asked; it answers")
    told.add_argument("--speech", metavar="F", help="recording that the avatar says, heard as it is")
    told.add_argument("--script", metavar="FILE", help="lines of: say TEXT, listen FILE, speak FILE, wait SECONDS")
    sub.add_argument("-o", "--output", required=True, metavar="FILM", help="the film, an .mp4 file")
    sub.add_argument(
        "--seconds", type=float, metavar="N", help="length of the film (default: until everything is said)"
    )
    sub.add_argument("--steps", type=int, default=25, metavar="N", help="denoising steps a chunk (default: 25)")
    sub.add_argument(
        "--stride",
        default="1",
        metavar="N",
        help="steps between neighbouring chunks, 1 to the steps; auto: the lowest latency that holds real time here "
        "(default: 1)",
    )
    sub.add_argument(
        "--devices", default=AUTO, metavar="D[,D]", help="cpu, cuda, cuda:N or auto; or the Thinker's and the Actor's"
    )
    sub.add_argument("--seed", type=int, default=0, help="of noise and words (default: 0)")
    sub.add_argument("--temperature", type=float, metavar="T", help="of the Thinker's words, 0 for the likeliest")
    sub.add_argument("--record", metavar="FILE", help="write the schedule as it ran, JSON lines")
    sub.add_argument("--force", action="store_true", help="of several faces the largest, of none the middle")


def stream(options: argparse.Namespace) -> int:
    """Streams into a film; the exit code. Raises XstreamerError."""
    try:
        return _streamed(options, *_checked(options))
    except KeyboardInterrupt:  # before the first chunk, or for the second time
        said = "what was shown until then plays" if Path(options.output).is_file() else "nothing was shown yet"
        print(f"xstreamer: interrupted; {said}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _streamed(options: argparse.Namespace, lines: list[Line], stride: int | None) -> int:
    from inference.cast import dialogue_of, latent_of, load_cast, paced, runner_of
    from inference.dialogue import LONGEST_ANSWER
    from inference.film import Film
    from inference.sampling import Sampling
    from inference.schedule import Plan
    from models.device import CPU
    from models.memory import keep_freed_memory

    film = Film(options.output)
    sampling = Sampling() if options.temperature is None else Sampling(temperature=options.temperature)
    plan = Plan(options.steps, 1 if stride is None else stride, seed=options.seed)
    cast = load_cast(options.checkpoint, options.devices)
    if cast.devices[1] == CPU:
        keep_freed_memory()
    latent = latent_of(cast, options.portrait, force=options.force)
    recordings, rate = _heard(cast, lines)
    if stride is None:
        plan, pace = paced(cast, latent, options.steps, options.seed)
        keeps = "holds real time" if pace.holds else "is taken: none holds real time, this comes nearest"
        print(f"xstreamer: stride {pace.stride} {keeps} ({pace.load:.2f} s of work a second)", file=sys.stderr)
    seconds = options.seconds
    longest = LONGEST_ANSWER if seconds is None else min(LONGEST_ANSWER, math.ceil(seconds / SEGMENT_S) + 1)
    talk = dialogue_of(cast, sampling=sampling, seed=options.seed, longest=longest)
    try:
        with _recorded(options.record, plan) as record:
            runner = runner_of(cast, latent, talk, plan, rate=rate, exact=True, record=record)
            _tell(runner, lines, recordings)
            stopped = _run(runner, film, _frames(seconds, lines, recordings), options.quiet or options.json)
            runner.engine.pyramid.stop()
    finally:
        getattr(talk, "close", lambda: None)()
    return _said(options, runner, film, stopped, plan)


def _checked(options: argparse.Namespace) -> tuple[list[Line], int | None]:
    """What is to be said, and the stride, None for auto. Raises UsageError before anything heavy is loaded."""
    if options.seconds is not None and not 1 / FPS <= options.seconds <= LONGEST_FILM_S:
        raise UsageError(f"--seconds {options.seconds:g} must be from {1 / FPS} to {LONGEST_FILM_S:.0f}")
    if options.seed < 0:
        raise UsageError("--seed must be 0 or more")
    if options.stride != AUTO and not options.stride.isdecimal():
        raise UsageError(f"--stride {options.stride!r}: give a whole number, or {AUTO}")
    lines = []
    if options.text is not None:
        if not options.text.strip():
            raise UsageError("--text is empty; give the avatar something to answer to")
        lines = [Line(SAY, options.text)]
    elif options.speech is not None:
        lines = [Line(SPEAK, options.speech)]
    elif options.script is not None:
        lines = read_script(Path(options.script))
    elif options.seconds is None:
        raise UsageError("nothing to say; give --text, --speech or --script, or --seconds of silence")
    _check_written(options, lines)
    if options.seconds is None and any(line.verb in (SAY, LISTEN) for line in lines) and not options.quiet:
        print("xstreamer: the film ends with the answer; --seconds N ends it earlier", file=sys.stderr)
    return lines, None if options.stride == AUTO else int(options.stride)


def _check_written(options: argparse.Namespace, lines: list[Line]) -> None:
    """Raises UsageError where a file that is read, or written too, would be written over."""
    said = [line.what for line in lines if line.verb in (LISTEN, SPEAK)]
    others = {"-o": options.output, "--record": options.record}
    if options.record and Path(options.record).is_dir():
        raise UsageError(f"--record {options.record!r} is a folder; name a file")
    for option, written in others.items():
        for name in (options.portrait, options.script, *said, *(others[each] for each in others if each != option)):
            if written and name and Path(written).resolve() == Path(name).resolve():
                raise UsageError(f"{option} {written!r} would be written over {name!r}; name another file")


def _heard(cast: Cast, lines: list[Line]) -> tuple[dict[str, Recording], int | None]:
    """Every recording that is named, and the rate of the film's sound: the recordings' own where nothing else is heard
    and all have the same, so that not a sample of them changes; else the speech decoder's."""
    from inference.cast import at_rate, read_speech, recorded

    found = {line.what: read_speech(line.what) for line in lines if line.verb in (LISTEN, SPEAK)}
    rates = {found[line.what][1] for line in lines if line.verb == SPEAK}
    answers = any(line.verb in (SAY, LISTEN) for line in lines)
    rate = rates.pop() if len(rates) == 1 and not answers else cast.decoder.rate
    return {name: recorded(cast.tokenizer, at_rate(*each, rate), rate) for name, each in found.items()}, rate


def _tell(runner: Runner, lines: list[Line], recordings: dict[str, Recording]) -> None:
    for line in lines:
        if line.verb == SAY:
            runner.ask(line.what)
        elif line.verb == WAIT:
            runner.wait(float(line.what))
        elif line.verb == LISTEN:
            runner.ask(recordings[line.what].codes)
        else:
            recording = recordings[line.what]
            runner.speak(recording.codes, recording.samples)


def _frames(seconds: float | None, lines: list[Line], recordings: dict[str, Recording]) -> int | None:
    """Of the film, where that is known beforehand."""
    if seconds is not None:
        return max(1, round(seconds * FPS))
    if len(lines) == 1 and lines[0].verb == SPEAK:
        return recordings[lines[0].what].frames
    return None


def _run(runner: Runner, film: Any, frames: int | None, quiet: bool) -> bool:
    """Whether it was interrupted."""
    from inference.dialogue import LONGEST_ANSWER
    from pipelines.progress import Bar

    title, total = ("stream", frames / FPS) if frames else ("stream (at most)", LONGEST_ANSWER * SEGMENT_S)
    with Bar(title, total, "s of video", quiet) as bar, _interruptible(runner) as stops:
        runner.run(film, frames=frames, seen=lambda media: bar.add(len(media.frames) / FPS))
    return bool(stops)


@contextmanager
def _interruptible(runner: Runner) -> Iterator[list[int]]:
    """The first Ctrl-C, or SIGTERM, lets the step that runs come to its end and closes the film; the second is one."""
    stops: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stops.append(number)
        if len(stops) > 1:
            raise KeyboardInterrupt
        runner.stop()

    try:
        before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone is told of signals
        before = {}
    try:
        yield stops
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _recorded(path: str | None, plan: Plan) -> Iterator[Callable[[Event], None] | None]:
    """What the engine tells its schedule to: a file that appears when the stream ends; None where none is wanted."""
    from inference.schedule import event_line, plan_line
    from manifests.store import Store

    if path is None:
        yield None
        return
    with Store(Path(path).parent).writing(Path(path).name) as file:
        file.write(f"{plan_line(plan)}\n".encode())

        def write(event: Event) -> None:
            file.write(f"{event_line(event)}\n".encode())

        yield write


def _said(options: argparse.Namespace, runner: Runner, film: Any, stopped: bool, plan: Any) -> int:
    """Tells the figures; the exit code."""
    from inference.figures import memory_gb, told

    apart = hasattr(runner.talk, "pid")  # a process of its own, which has ended by now
    figures = runner.figures.as_json(
        film=str(film.path),
        bytes=film.path.stat().st_size if film.frames else 0,
        rate=runner.sound.rate,
        steps=plan.steps,
        stride=plan.stride,
        passes=runner.engine.passes,
        stalls=runner.engine.pyramid.late,
        interrupted=stopped,
        thinker_memory_gb=memory_gb(resource.RUSAGE_CHILDREN) if apart else None,
    )
    if options.json:
        print(json.dumps(figures))
    elif film.frames:
        print("\n".join([f"{film.path}: {told(figures)[0]}", *told(figures)[1:]]))
    if stopped:
        left = f"{film.path} holds {film.seconds:.2f} s and plays" if film.frames else "nothing was shown yet"
        print(f"xstreamer: interrupted; {left}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE
