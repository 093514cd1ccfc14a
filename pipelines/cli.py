"""The `xstreamer` command. Parses; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from manifests.errors import UsageError, XstreamerError, one_line
from pipelines.leave import leave
from pipelines.models_command import add_arguments

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_FAILED_SOURCES, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
PROFILES = "pretrain,sft,listening"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="xstreamer", description="Talking-head video in, curated WebDataset shards out.")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, summary: str, dataset: bool = True, json_help: str = "print one JSON object for machines"
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        if dataset:
            sub.add_argument("dataset", help="dataset folder or fsspec URL")
        sub.add_argument("--json", action="store_true", help=json_help)
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        return sub

    _curate_arguments(command("curate", "measure, judge and pack source videos", dataset=False))
    judge = command("judge", "verdicts under other bounds, without a model")
    judge.add_argument("--profile", default=PROFILES, help="profiles by name or TOML file, comma-separated")
    pack = command("pack", "WebDataset shards of what a profile keeps")
    pack.add_argument("--profile", default=PROFILES)
    _pack_arguments(pack)
    export = command("export", "sources and clips as JSON lines or CSV", json_help="a JSON object a line (the default)")
    export.add_argument("--profile", default="pretrain")
    export.add_argument("--csv", action="store_true", help="a CSV table instead of JSON lines")
    report = command("report", "one HTML file to look at: funnel, measures, samples, errors, throughput")
    report.add_argument("--profile", default=PROFILES, help=f"profiles by name or TOML file (default: {PROFILES})")
    report.add_argument("-o", "--output", metavar="DIR", help="folder or URL of the report (default: DATASET/report)")
    report.add_argument("--against", metavar="B", help="show what changed against another dataset or profile")
    _calibrate_arguments(command("calibrate", "what reviews say about each bound, and which clips to review next"))
    _review_arguments(command("review", "a local page to look at clips, move bounds and decide"))
    command("verify", "hash everything again and cross-check tables, samples and shards")
    models = commands.add_parser("models", help="weights: list, fetch, verify", description="Weights of the models.")
    add_arguments(models)
    demo = command("demo", "make sample videos and run the whole way", dataset=False)
    demo.add_argument("-o", "--output", default="demo", help="folder for videos and dataset (default: demo)")
    return top


def _curate_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="files, folders, globs, lists (.txt .csv .jsonl .parquet), URLs"
    )
    sub.add_argument("-o", "--output", required=True, help="dataset folder or fsspec URL; resumes what is there")
    sub.add_argument("--recipe", help="bundled, paper or a TOML file (default: the dataset's, else bundled)")
    sub.add_argument("--device", help="where the models run: cpu, cuda, cuda:N or auto (default: the recipe's)")
    sub.add_argument(
        "--profile", default=PROFILES, help=f"profiles by name or file, comma-separated (default: {PROFILES})"
    )
    sub.add_argument("--cluster", metavar="N|ADDRESS", help="workers, or a Dask scheduler (default: a worker a core)")
    sub.add_argument("--exhaustive", action="store_true", help="measure everything, also in clips that failed already")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N sources")
    sub.add_argument(
        "--dry-run", action="store_true", help="hours of video, expected hours of work and disk; nothing is written"
    )
    sub.add_argument("--retry-failed", action="store_true", help="try failed sources and stages again")
    sub.add_argument(
        "--change-recipe", action="store_true", help="measure again what another recipe measures otherwise"
    )
    _pack_arguments(sub)


def _calibrate_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", required=True, metavar="P", help="the profile, by name or TOML file")
    sub.add_argument("--draw", type=int, default=40, metavar="N", help="clips to draw for review (default: 40)")
    sub.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    sub.add_argument(
        "--cost", type=float, default=4.0, metavar="C", help="good clips that a bad clip kept is worth (default: 4)"
    )
    sub.add_argument(
        "--width",
        type=float,
        default=0.1,
        metavar="W",
        help="open share at which a bound counts as settled (default: 0.1)",
    )
    sub.add_argument("--decisions", default="", metavar="P", help="decisions made under another profile")
    sub.add_argument("--save", default="", metavar="NAME", help="write profiles/NAME.toml with the suggested bounds")


def _review_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="", help="more profiles by TOML file, comma-separated")
    sub.add_argument("--host", default="127.0.0.1", help="where to listen; elsewhere than here it asks for a token")
    sub.add_argument("--port", type=int, default=8321, help="0 for any free one (default: 8321)")
    sub.add_argument("--reviewer", help="who decides (default: the user of this machine)")


def _pack_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--per-shard", type=int, default=512, help="samples a shard at most (default: 512)")
    sub.add_argument("--val-share", type=float, default=0.02, help="share of sources held out (default: 0.02)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code (0 done, 1 failed, 2 wrong usage, 3 done with failed sources)."""
    options = parser().parse_args(arguments)
    try:
        code = int(globals()[f"_{options.command}"](options))
        sys.stdout.flush()  # here, where a reader that left is no error
        return code
    except XstreamerError as error:
        if options.debug:
            raise
        print(f"xstreamer: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("xstreamer: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:
        if options.debug:
            raise
        print(f"xstreamer: {_explained(error)}", file=sys.stderr)
        return EXIT_FAILED


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{str(error.filename)!r}: {error.strerror}; check the path, its rights and the disk"
    return f"unexpected {one_line(error)}; run again with --debug and report it"


def _curate(options: argparse.Namespace) -> int:
    from manifests import dataset
    from manifests.store import Store
    from pipelines.curate import CurateOptions, check_sources, curate
    from pipelines.funnel import print_result
    from pipelines.pack import PackOptions
    from pipelines.recipe import load_profiles, load_recipe, stored_recipe
    from pipelines.sources import list_sources

    if options.limit is not None:
        _positive(options.limit, "--limit")
    _cluster(options.cluster)
    packing = PackOptions(per_shard=_positive(options.per_shard, "--per-shard"), val_share=_share(options.val_share))
    store = Store(_named(options.output, "-o"))
    known = dataset.facts(store)
    stored = stored_recipe(known, store.root) if known else None
    recipe = stored if stored and not options.recipe else load_recipe(options.recipe or "bundled")
    recipe = recipe.on(options.device) if options.device else recipe
    profiles = load_profiles(options.profile, recipe)
    requests = list_sources(options.sources).sources[: options.limit] if options.sources else []
    check_sources(requests, store)
    if options.dry_run:
        return _dry_run(options, requests, recipe, len(profiles))
    found = curate(
        options.output,
        requests,
        CurateOptions(
            recipe=recipe,
            profiles=tuple(profiles),
            cluster=options.cluster,
            exhaustive=options.exhaustive,
            retry_failed=options.retry_failed,
            change_recipe=options.change_recipe,
            pack=packing,
            quiet=options.quiet,
        ),
    )
    print_result(found, options.json)
    return EXIT_FAILED_SOURCES if found["sources"]["failed"]["files"] else EXIT_DONE


def _dry_run(options: argparse.Namespace, requests: Sequence[Any], recipe: Any, profiles: int) -> int:
    from pipelines.estimate import estimate
    from pipelines.models_used import models_notes, models_used

    found = estimate(requests, recipe.name, profiles, options.cluster, options.quiet)
    found["models"] = models_used(recipe)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"sources: {found['sources']}, of which {len(found['unreadable'])} unreadable")
        for bad in found["unreadable"]:
            print(f"  unreadable: {bad['source']!r}: {bad['error']}")
        print(f"video: {found['video_hours']:.2f} h")
        print(f"expected work: {found['expected_work_hours']:.2f} h on {found['workers']} workers")
        print(f"expected disk: at most {found['expected_disk_bytes'] / 1e9:.2f} GB")
        print("\n".join(models_notes(found["models"])))
    return EXIT_FAILED_SOURCES if found["unreadable"] else EXIT_DONE


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise UsageError(f"{name} must be 1 or more")
    return number


def _share(number: float) -> float:
    if not 0 <= number < 1:
        raise UsageError("--val-share must be from 0 to below 1")
    return number


def _cluster(where: str | None) -> None:
    if where is not None and (int(where) < 1 if where.isdecimal() else ":" not in where):
        raise UsageError(f"--cluster {where!r}: give 1 or more workers, or an address like tcp://HOST:8786")


def _named(folder: str, what: str) -> str:
    if not folder.strip():
        raise UsageError(f"{what} is empty; name a folder")
    return folder


def _open(options: argparse.Namespace) -> Any:
    """(store, recipe, profiles) of an existing dataset."""
    from manifests import dataset
    from pipelines.recipe import load_profiles, stored_recipe

    store, facts = dataset.load(_named(options.dataset, "the dataset"))
    recipe = stored_recipe(facts, store.root)
    return store, recipe, load_profiles(options.profile, recipe)


def _judge(options: argparse.Namespace) -> int:
    from pipelines import judge
    from pipelines.funnel import funnel, print_result

    store, recipe, profiles = _open(options)
    found = funnel(store, profiles)
    found["dataset"] = store.root
    found["notes"] = []
    for profile in profiles:
        counts = {name: found["profiles"][profile.name][name]["clips"] for name in ("keep", "reject", "undecided")}
        found["notes"] += judge.explain(profile, recipe.backends, counts, options.dataset)
    print_result(found, options.json)
    return EXIT_DONE


def _pack(options: argparse.Namespace) -> int:
    from pipelines.pack import PackOptions, pack

    store, _, profiles = _open(options)
    packing = PackOptions(per_shard=_positive(options.per_shard, "--per-shard"), val_share=_share(options.val_share))
    out = {}
    for profile in profiles:
        found = pack(store, profile, packing, options.quiet)
        out[profile.name] = {**found.counts(), "kept_without_sample": found.missing}
        if not options.json:
            for split, counts in found.counts().items():
                print(f"{profile.name} {split}: {counts['samples']} samples in {counts['shards']} shards")
            if found.missing:
                print(
                    f"{profile.name}: {len(found.missing)} kept clips have no sample; xstreamer curate -o {store.root}"
                )
    if options.json:
        print(json.dumps(out))
    return EXIT_DONE


def _export(options: argparse.Namespace) -> int:
    from pipelines.export import export_rows, write_csv, write_json

    if options.csv and options.json:
        raise UsageError("--json or --csv, not both")
    store, _, profiles = _open(options)
    if len(profiles) != 1:
        raise UsageError("export takes one profile")
    write = write_csv if options.csv else write_json
    write(export_rows(store, profiles[0]), sys.stdout)
    return EXIT_DONE


def _report(options: argparse.Namespace) -> int:
    from pipelines.report.build import load_profile_list, print_summary, write_report

    out = _named(options.output, "-o") if options.output is not None else None
    profiles = load_profile_list(options.profile)
    found = write_report(_named(options.dataset, "the dataset"), profiles, out, options.against, options.quiet)
    print_summary(found, options.json)
    return EXIT_DONE


def _calibrate(options: argparse.Namespace) -> int:
    from pipelines.calibrate import Asked, run
    from pipelines.calibration.finding import Aim

    if not (0 < options.cost < float("inf") and 0 < options.width < 1):
        raise UsageError("--cost must be above 0 and --width between 0 and 1")
    if options.draw < 0 or options.seed < 0:
        raise UsageError("--draw and --seed must be 0 or more")
    store, recipe, profiles = _open(options)
    if len(profiles) != 1:
        raise UsageError("calibrate takes one profile")
    aim = Aim(options.cost, options.width)
    asked = Asked(aim, options.draw, options.seed, options.decisions, options.save)
    run(store, profiles[0], recipe.backends, asked, options.json)
    return EXIT_DONE


def _review(options: argparse.Namespace) -> int:
    from pipelines.review.serve import Asked, serve

    if options.json:
        raise UsageError("review is for people; leave --json out, and use export for machines")
    profiles = tuple(name.strip() for name in options.profile.split(",") if name.strip())
    serve(
        Asked(_named(options.dataset, "the dataset"), profiles, options.reviewer, options.host, options.port),
        options.quiet,
    )
    return EXIT_DONE


def _verify(options: argparse.Namespace) -> int:
    from manifests import dataset
    from pipelines.verify import verify

    store, _ = dataset.load(_named(options.dataset, "the dataset"))
    faults = verify(store, options.quiet)
    if options.json:
        print(json.dumps({"dataset": store.root, "faults": faults}))
    else:
        print("\n".join(faults) if faults else f"{store.root}: no fault found")
    return EXIT_FAILED if faults else EXIT_DONE


def _models(options: argparse.Namespace) -> int:
    from pipelines.models_command import run

    return run(options)


def _demo(options: argparse.Namespace) -> int:
    from pipelines.demo import run_demo

    return run_demo(options.output, options.json, options.quiet)


def entry() -> None:
    """The process."""
    leave(main())


if __name__ == "__main__":
    entry()
