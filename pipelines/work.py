"""What a worker does: plain functions of plain data, so that they travel. The coordinator commits the rows.

A worker opens models on first use and keeps them; it writes sample tars itself, whole or not at all.
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.clip import Clip, SpanDecoder
from curation.media import MediaInfo, probe
from curation.scenes import SceneOptions, find_scenes
from curation.stage import Result, Stage, Unmeasured
from manifests.errors import ModelError, SourceError, one_line
from manifests.records import ALWAYS_MEASURED, CLIP_STAGES, clip_id, file_digest, source_id
from manifests.samples import Sample, load_samples, sample_bytes, sample_digest, write_tar
from manifests.store import Store
from manifests.verdicts import REJECT, Profile, judge_row, parse_profile
from models.lock import identity
from pipelines.recipe import prints_of, stages_of

READ_BYTES = 1 << 22
FOLDERS = {"encode": "samples", "preview": "previews"}
"""Where the files of a stage go, in tars of one group of clips each."""
Row = dict[str, Any]


# -- sources -----------------------------------------------------------------------------------------------


def register(requests: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Source rows of files: hashed and probed. requests: {"uri", "path", "order", facts...}."""
    return [_register(request) for request in requests]


def _register(request: Mapping[str, Any]) -> Row:
    row: Row = {**request, "status": "ok", "error": None}
    path = str(request["path"])
    try:
        row |= stamp(path)
        row["source_id"] = _hash(path, str(request["uri"]))
        info = probe(path)
        info.within(row.get("box"))
        row |= info.row()
    except (SourceError, OSError) as error:
        row |= {"status": "failed", "error": one_line(error)}
    return row


def stamp(path: str) -> Row:
    """{"bytes", "stamp"}: what changes when the file does. Raises OSError, SourceError."""
    if "://" not in path:
        facts = Path(path).stat()
        return {"bytes": facts.st_size, "stamp": str(facts.st_mtime_ns)}
    import fsspec

    fs, name = fsspec.core.url_to_fs(path)
    found = fs.info(name)
    tag = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("LastModified") or ""
    return {"bytes": int(found.get("size") or 0), "stamp": str(tag)}


def _hash(path: str, uri: str) -> str:
    """Id by content; a span or box of a file is a source of its own."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        digest = file_digest(iter(lambda: file.read(READ_BYTES), b""))
    fragment = uri.removeprefix(path)
    return source_id(file_digest([digest.encode(), fragment.encode()]) if fragment else digest)


def scan(task: Mapping[str, Any]) -> list[Row]:
    """Scenes of sources. task: {"options", "sources"}. A row each: uri, cuts, spans, seconds, error."""
    options = SceneOptions(**task["options"])
    return [_scan(source, options) for source in task["sources"]]


def _scan(source: Mapping[str, Any], options: SceneOptions) -> Row:
    began = time.perf_counter()
    out: Row = {"uri": source["uri"], "cuts": [], "spans": [], "error": None}
    try:
        found = find_scenes(source["path"], media_info(source), options, window(source))
        out["cuts"] = list(found.cuts)
        out["spans"] = [(s.scene, s.start_s, s.end_s) for s in found.spans]
    except (SourceError, OSError) as error:
        out["error"] = one_line(error)
    out["seconds"] = time.perf_counter() - began
    return out


def window(source: Mapping[str, Any]) -> tuple[float, float] | None:
    """The span that the source list asked for, s from the first frame."""
    start, end = source.get("window_start_s"), source.get("window_end_s")
    return None if start is None else (start, end if end is not None else float("inf"))


def media_info(source: Mapping[str, Any]) -> MediaInfo:
    """The container facts in a source row, seen through its box."""
    names = MediaInfo.__dataclass_fields__.keys() - {"box"}
    return MediaInfo(**{name: source[name] for name in names}).within(source.get("box"))


# -- clips -------------------------------------------------------------------------------------------------


def measure(task: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Measures and encodes groups of clips, a group a source. Returns rows of clips, runs and samples.

    task: {"root", "recipe" (JSON), "fingerprints", "profiles" (TOML content), "exhaustive",
    "groups": [{"source": row, "tar": name, "clips": [{"row", "stages", "evidence", "kept"}]}]}.
    """
    stages = _stages(task)
    profiles = [parse_profile(content, "profile") for content in task["profiles"]]
    out: dict[str, list[Row]] = {"clips": [], "runs": [], "samples": []}
    for group in task["groups"]:
        source = group["source"]
        made: dict[str, dict[str, Sample]] = {stage: {} for stage in FOLDERS}
        with SpanDecoder(source["path"], media_info(source)) as decoder:
            for order in group["clips"]:
                clip = _clip(source, order, stages, decoder)
                gate = () if task["exhaustive"] or order["kept"] else profiles
                runs, files = measure_clip(clip, stages, order["stages"], gate, task["fingerprints"])
                for stage, members in files.items():
                    made[stage][clip.clip_id] = members
                    clip.row[f"{FOLDERS[stage].removesuffix('s')}_tar"] = group["tar"]
                out["clips"].append(clip.row)
                out["runs"] += runs
                del clip  # its frames, before the next clip's are decoded
        for stage, by_clip in made.items():
            if by_clip:
                store_samples(Store(task["root"]), FOLDERS[stage], group["tar"], by_clip)
        out["samples"] += [
            sample_row(key, source["source_id"], [key], group["tar"], sample, task["fingerprints"]["encode"])
            for key, sample in made["encode"].items()
        ]
    return out


def _stages(task: Mapping[str, Any]) -> dict[str, Stage]:
    """The recipe's stages. Raises ModelError where this machine's software or weights would measure otherwise than
    the one that started the run: its measures would carry a fingerprint that is not theirs."""
    here, asked = prints_of(task["recipe"]), task["fingerprints"]
    unlike = sorted(stage for stage in asked if here[stage] != asked[stage])
    if unlike:
        raise ModelError(
            f"worker {platform.node()} has other software or weights for {', '.join(unlike)} than the machine that "
            "started the run; install the same packages and weights there (xstreamer models verify), then restart it"
        )
    replaced = _replaced(task["recipe"])
    if replaced:
        raise ModelError(f"worker {platform.node()} still holds older weights of {', '.join(replaced)}; restart it")
    return stages_of(task["recipe"])


@functools.cache
def _first_seen(model: str) -> str:
    """What `model` was when this process first ran a recipe with it, which is what its loaders hold."""
    return identity([model])


@functools.lru_cache(maxsize=8)
def _replaced(recipe: str) -> list[str]:
    """Models of a recipe (JSON) whose files were replaced since this process may have loaded them."""
    models = dict.fromkeys(name for stage in stages_of(recipe).values() for name in stage.weights())
    return [name for name in models if _first_seen(name) != identity([name])]


def _clip(source: Mapping[str, Any], order: Mapping[str, Any], stages: Mapping[str, Stage], decode: Any) -> Clip:
    row = dict(order["row"])
    facts = {name: source[name] for name in ("licence", "language", "origin", "identity") if source.get(name)}
    return Clip(
        clip_id=row["clip_id"],
        uri=source["path"],
        info=media_info(source),
        start_s=row["start_s"],
        end_s=row["end_s"],
        row=row,
        evidence=dict(order["evidence"]),
        facts=facts,
        stages=stages,
        decode=decode,
    )


def measure_clip(
    clip: Clip,
    stages: Mapping[str, Stage],
    wanted: Collection[str],
    profiles: Sequence[Profile],
    prints: Mapping[str, str],
) -> tuple[list[Row], dict[str, Sample]]:
    """Runs the stages in `wanted` in funnel order; (run rows, what stages of FOLDERS made, by stage).

    Once every profile of `profiles` rejects the clip on what was measured, the stages that are not always
    measured are skipped. A stage that raises is recorded as failed; the others go on. Raises ModelError, which is
    no fault of the clip: its model or device is not there or not right, and so for every clip.
    """
    runs: list[Row] = []
    files: dict[str, Sample] = {}
    for place, name in enumerate(CLIP_STAGES):
        if name not in wanted:
            continue
        stage = stages[name]
        began, media = time.perf_counter(), clip.media_seconds
        if name not in ALWAYS_MEASURED and rejected(profiles, clip.row, CLIP_STAGES[:place]):
            status, error, result = "skipped", None, Result({})
        else:
            status, error, result = _run(stage, clip)
        clip.row |= dict.fromkeys(stage.measures)
        clip.evidence.pop(name, None)
        clip.record(name, result.measures, result.evidence, result.product)
        clip.row |= {f"{name}_status": status, f"{name}_backend": stage.backend}
        if result.files:
            files[name] = dict(result.files)
        runs.append(
            {
                "clip_id": clip.clip_id,
                "stage": name,
                "fingerprint": prints[name],
                "status": status,
                "seconds": time.perf_counter() - began,
                "media_seconds": clip.media_seconds - media,
                "error": error,
                "evidence": None if result.evidence is None else json.dumps(result.evidence, separators=(",", ":")),
            }
        )
    return runs, files


def _run(stage: Stage, clip: Clip) -> tuple[str, str | None, Result]:
    try:
        return "ok", None, stage.measure(clip)
    except Unmeasured as reason:
        return "unmeasured", one_line(reason), Result(getattr(reason, "measures", {}))
    except ModelError:
        raise
    except Exception as error:  # one clip's fault must not end the run; it is recorded and counted
        return "failed", one_line(error), Result({})


def rejected(profiles: Sequence[Profile], row: Mapping[str, Any], stages: Collection[str]) -> bool:
    """True when every profile rejects the clip on geometry and on what `stages` measured; never for none."""
    return bool(profiles) and all(judge_row(profile, row, stages)[0] == REJECT for profile in profiles)


def store_samples(store: Store, folder: str, tar: str, made: Mapping[str, Sample]) -> None:
    """Writes `folder`/`tar` anew with `made` beside what it already holds."""
    merged = {**load_samples(store, tar, folder), **made}
    with store.writing(f"{folder}/{tar}") as file:
        write_tar(file, merged)


def sample_row(key: str, source: str, clips: Sequence[str], tar: str, files: Sample, print_: str) -> Row:
    """Row of the samples table."""
    facts = json.loads(files["json"])
    return {
        "sample_id": key,
        "source_id": source,
        "clip_ids": " ".join(clips),
        "start_s": facts["start_s"],
        "tar": tar,
        "chunks": facts["chunks"],
        "text_tokens": facts["text_tokens"],
        "bytes": sample_bytes(files),
        "digest": sample_digest(files),
        "fingerprint": print_,
    }


# -- long-form samples ---------------------------------------------------------------------------------------


def encode_long(task: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Encodes runs of contiguous clips as one sample each.

    task: {"root", "recipe", "fingerprints", "source", "tar", "runs": [{"row", "clips", "evidence"}]}.
    Returns rows of samples, and of failures as runs.
    """
    stages = _stages(task)
    source = task["source"]
    out: dict[str, list[Row]] = {"samples": [], "runs": []}
    encoded: dict[str, Sample] = {}
    for order in task["runs"]:
        key = clip_id(source["source_id"], order["row"]["start_s"], order["row"]["end_s"])
        clip = _clip(source, {**order, "row": {**order["row"], "clip_id": key}}, stages, None)
        began = time.perf_counter()
        status, error, result = _run(stages["encode"], clip)
        if result.files:
            encoded[key] = dict(result.files)
            print_ = task["fingerprints"]["encode"]
            out["samples"].append(
                sample_row(key, source["source_id"], order["clips"], task["tar"], result.files, print_)
            )
        out["runs"].append(
            {
                "clip_id": key,
                "stage": "encode",
                "fingerprint": task["fingerprints"]["encode"],
                "status": status,
                "seconds": time.perf_counter() - began,
                "error": error,
            }
        )
    if encoded:
        store_samples(Store(task["root"]), FOLDERS["encode"], task["tar"], encoded)
    return out
