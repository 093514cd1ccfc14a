"""The command line of `xstreamer`: every command and its options; nothing heavy is imported."""

from __future__ import annotations

import argparse

from pipelines import models_command
from pipelines.streaming.command import stream_arguments
from pipelines.training import command as training

PROFILES = "pretrain,sft,listening"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="xstreamer",
        description="Talking-head video in, curated WebDataset shards out, and an avatar trained on them.",
    )
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
    models_command.add_arguments(models)
    training.train_arguments(command("train", "train the Actor on shards; also under torchrun", dataset=False))
    training.export_arguments(
        command("export-actor", "one safetensors file and its JSON of a training run", dataset=False)
    )
    stream_arguments(command("stream", "a film of a portrait that speaks and answers", dataset=False))
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
