"""`xstreamer demo`: sample videos of a talking photograph, curated the whole way to verified shards."""

from __future__ import annotations

import sys
from pathlib import Path

from manifests.errors import XstreamerError
from manifests.store import Store
from pipelines.curate import CurateOptions, curate
from pipelines.funnel import print_result
from pipelines.recipe import load_profiles, load_recipe
from pipelines.sample import make_call, make_demo
from pipelines.sources import list_sources
from pipelines.verify import verify


def run_demo(output: str, as_json: bool, quiet: bool) -> int:
    """Makes OUTPUT/videos, OUTPUT/dataset, and for `stream` OUTPUT/portrait.png and OUTPUT/speech.flac; prints the
    funnel. A second run resumes, as `curate` does."""
    videos, dataset = Path(output, "videos"), Path(output, "dataset")
    if not videos.is_dir():
        if not quiet:
            print(f"making sample videos in {videos} ...", file=sys.stderr, flush=True)
        partial = videos.with_name(".videos-being-made")
        try:
            make_demo(partial)
            make_call(output)
            partial.rename(videos)
        except OSError as error:
            raise XstreamerError(f"cannot write {videos}: {error.strerror}; choose another -o") from error
    recipe = load_recipe("bundled")
    profiles = tuple(load_profiles("pretrain,sft,listening", recipe))
    found = curate(str(dataset), list_sources([str(videos)]).sources, CurateOptions(recipe, profiles, quiet=quiet))
    faults = verify(Store(dataset), quiet)
    found["faults"] = faults
    print_result(found, as_json)
    if not as_json:
        print("\n".join(faults) if faults else "verified: every sample and shard is whole")
        print(f"look at it:  xstreamer export {dataset} --profile pretrain --csv")
    return 1 if faults else 0
