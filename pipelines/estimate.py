"""`curate --dry-run`: hours of video, expected hours of work and disk, from the headers alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from curation.media import probe
from manifests.errors import SourceError, one_line
from pipelines.progress import Bar
from pipelines.sources import SourceRequest

CORE_SECONDS = {"bundled": 0.9, "paper": 27.0}
"""Core-seconds of work a second of video: bundled as benchmarks/curate.py measured on a mixture of good and bad
sources; paper as benchmarks/models.py measured on a CPU, every clip kept. No GPU was measured."""
UNKNOWN_CORE_SECONDS = 2.0
BYTES_PER_SECOND = 110_000
"""Of an encoded sample at 256 x 256: latents, tokens, sound. Stored once in samples/, once a profile in shards/."""
PREVIEW_BYTES_PER_SECOND = 30_000
"""Of a preview of 360 px, every clip's."""


def estimate(
    requests: Sequence[SourceRequest], recipe: str, profiles: int, cluster: str | None, quiet: bool
) -> dict[str, Any]:
    """Counts, seconds of video, hours of work on the given workers, bytes of disk at most; unreadable files."""
    seconds, bad = 0.0, []
    with Bar("probe", len(requests), "files", quiet) as bar:
        for request in requests:
            try:
                start, end = request.facts.get("window_start_s"), request.facts.get("window_end_s")
                length = probe(request.path).duration_s
                seconds += max(0.0, min(length, end or length) - (start or 0.0))
            except (SourceError, OSError) as error:
                bad.append({"source": request.uri, "error": one_line(error)})
            bar.add(1)
    workers = int(cluster) if cluster and cluster.isdecimal() else os.cpu_count() or 1
    work = seconds * CORE_SECONDS.get(recipe, UNKNOWN_CORE_SECONDS) / workers
    return {
        "sources": len(requests),
        "unreadable": bad,
        "video_hours": seconds / 3600,
        "workers": workers,
        "expected_work_hours": work / 3600,
        "expected_disk_bytes": round(seconds * (BYTES_PER_SECOND * (1 + profiles) + PREVIEW_BYTES_PER_SECOND)),
    }
