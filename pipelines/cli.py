"""The `xstreamer` command. Parses; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from manifests.errors import UsageError, XstreamerError, one_line
from pipelines.arguments import parser
from pipelines.leave import leave
from pipelines.training.ranks import heading

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_FAILED_SOURCES, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code (0 done, 1 failed, 2 wrong usage, 3 done with failed sources)."""
    options = parser().parse_args(arguments)
    try:
        code = int(globals()["_" + options.command.replace("-", "_")](options))
        sys.stdout.flush()  # here, where a reader that left is no error
        return code
    except XstreamerError as error:
        if options.debug:
            raise
        print(f"{heading(options.command)}{error}", file=sys.stderr)
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
        print(f"{heading(options.command)}{_explained(error)}", file=sys.stderr)
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


def _train(options: argparse.Namespace) -> int:
    from pipelines.training.command import train

    return train(options)


def _export_actor(options: argparse.Namespace) -> int:
    from pipelines.training.command import export_actor

    return export_actor(options)


def _stream(options: argparse.Namespace) -> int:
    from pipelines.streaming.command import stream

    return stream(options)


def _demo(options: argparse.Namespace) -> int:
    from pipelines.demo import run_demo

    return run_demo(options.output, options.json, options.quiet)


def entry() -> None:
    """The process."""
    leave(main())


if __name__ == "__main__":
    entry()
