"""Datasets for the report and the review page, made at once: real tables, previews and decisions, no video."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manifests import dataset
from manifests.records import CLIP_STAGES, clip_id
from manifests.samples import write_tar
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, RUNS_TABLE, SOURCES_TABLE, append, compact, read
from manifests.verdicts import KEEP, REJECT, judge_row
from pipelines.recipe import load_profile

Row = dict[str, Any]
BACKENDS = {
    "speech": "silero", "speakers": "centerface", "sync": "correlation", "quality": "piqe", "duplicates": "dct3",
    "overlay": "rapidocr", "denoise": "noisereduce", "transcribe": "whisper-paraformer", "encode": "bundled",
    "preview": "h264",
}  # fmt: skip
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'.mp4"
WORDS = "the ferry leaves at nine & <b>nobody</b> is late </script><script>alert(3)</script>"
OVERLAY = "<img src=x onerror=alert(4)> BREAKING"
PER_SOURCE = 12
LATE = ("overlay", "denoise", "transcribe", "encode")
ERRORS = ("decode failed at frame {}", "no face in {} frames", "<i>odd</i> size {}")


def made_dataset(folder: Path, clips: int = 240, seed: int = 1, previews: bool = True, shift: float = 0.0) -> Store:
    """A dataset of `clips` clips, of which rules reject some, stages failed at some and were skipped for some.

    shift: added to every sync_confidence, so that another dataset of the same clips judges otherwise.
    """
    store = Store(folder)
    rng = np.random.default_rng(seed)
    sources = [source_row(k) for k in range(-(-clips // PER_SOURCE))]
    rows = [clip_row(rng, sources[k // PER_SOURCE], k % PER_SOURCE, shift) for k in range(clips)]
    dataset.save(store, FACTS)
    failed = {"uri": "/videos/damaged.mp4", "path": "/videos/damaged.mp4", "order": 999, "status": "failed"}
    append(store, SOURCES_TABLE, [*sources, failed | {"error": "not a video: <b>moov</b> is missing"}])
    append(store, CLIPS_TABLE, rows)
    append(store, RUNS_TABLE, [run for row in rows for run in run_rows(row)] + [scenes_run(s) for s in sources])
    for table in (SOURCES_TABLE, CLIPS_TABLE, RUNS_TABLE):
        compact(store, table)
    if previews:
        write_previews(store, rows)
    return store


def decided_dataset(folder: Path, **options: Any) -> Store:
    """`made_dataset` in which two people decided on four clips, half of them against the rules of `pretrain`."""
    store = made_dataset(folder, **options)
    profile = load_profile("pretrain")
    judged = [(row["clip_id"], *judge_row(profile, row)) for row in read(store, CLIPS_TABLE).to_pylist()]
    kept, lost = ([clip for clip in judged if clip[1] == verdict] for verdict in (KEEP, REJECT))
    pairs = [(kept[0], REJECT, "ann"), (kept[1], KEEP, "ann"), (lost[0], KEEP, "bob"), (lost[1], REJECT, "bob")]
    facts = {"profile": "pretrain", "reason": "lips <b>late</b>"}
    write_decisions(
        store,
        [
            {"clip_id": clip, "choice": choice, "reviewer": who, "verdict": verdict, "failing": failing, **facts}
            for (clip, verdict, failing, _), choice, who in pairs
        ],
    )
    return store


FACTS: Row = {
    "recipe": {"name": "mine", "device": "cpu", "stages": {s: {"backend": b} for s, b in BACKENDS.items()}},
    "fingerprints": {},
    "revisions": {"sync": "opencv 5.0.0", "transcribe": "whisper <large>"},
    "models": [
        {
            "name": "whisper-large-v3",
            "stages": ["transcribe"],
            "identity": "a1b2",
            "licence": "MIT",
            "commercial": True,
        },
        {"name": "face<net>", "stages": ["speakers"], "identity": None, "licence": None, "commercial": None},
        {
            "name": "research-net",
            "stages": ["sync"],
            "identity": "c3d4",
            "licence": "CC BY-NC 4.0",
            "commercial": False,
        },
    ],
    "software": {"xstreamer": "0.1.0", "numpy": "2.4.0"},
}


def source_row(number: int) -> Row:
    name = HOSTILE if number == 3 else f"talk {number:03d}.mp4"
    return {
        "uri": f"/videos/{name}",
        "path": f"/videos/{name}",
        "source_id": f"{(number + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}",
        "order": number,
        "status": "ok",
        "container": "mp4" if number % 3 else "matroska",
        "duration_s": 150.0,
        "height": (360, 720, 1080)[number % 3],
        "width": 640,
        "fps": 25.0,
        "video_codec": "h264",
        "audio_codec": "aac" if number % 4 else "opus",
        "licence": ("CC BY 4.0", "CC BY-NC 4.0", None)[number % 3],
        "language": "en" if number % 2 else "de",
    }


def clip_row(rng: np.random.Generator, source: Row, place: int, shift: float) -> Row:
    start = place * 12.0
    length = float(rng.choice([3.2, 6.0, 9.6, 11.84]))
    row: Row = {
        "clip_id": clip_id(source["source_id"], start, start + length),
        "source_id": source["source_id"],
        "uri": source["uri"],
        "scene": place,
        "start_s": start,
        "end_s": start + length,
        "duration_s": length,
        "audio_present": bool(rng.random() > 0.02),
        "speech_share": float(np.clip(rng.normal(0.75, 0.25), 0, 1)),
        "speaker_count": int(rng.choice([0, 1, 2, 3], p=[0.02, 0.88, 0.08, 0.02])),
        "face_coverage": float(np.clip(rng.normal(1.02, 0.05), 0, 1)),
        "face_size_px": float(rng.normal(190, 50)),
        "sync_confidence": float(rng.normal(8, 3) + shift) if rng.random() > 0.03 else None,
        "sync_offset_frames": int(rng.normal(0, 4)),
        "sync_residual_frames": int(rng.choice([-2, -1, 0, 1, 2], p=[0.03, 0.1, 0.74, 0.1, 0.03])),
        "quality_piqe": float(rng.normal(70, 9)),
        "quality_sharpness": float(rng.lognormal(2.6, 0.4)),
        "quality_resolution": float(np.clip(rng.normal(140, 35), 20, 256)),
        "near_hash": f"{rng.integers(2**62):016x}",
    }
    return row | late_measures(rng, row)


def late_measures(rng: np.random.Generator, row: Row) -> Row:
    """What the costly stages found, and how every stage ended."""
    lost = row["speaker_count"] != 1 or row["speech_share"] < 0.3
    broken = rng.random() < 0.04
    out: Row = {f"{stage}_status": "ok" for stage in CLIP_STAGES}
    out |= {f"{stage}_backend": backend for stage, backend in BACKENDS.items()}
    if row["sync_confidence"] is None:
        out["sync_status"] = "unmeasured"
    if lost:
        return out | {f"{s}_status": "skipped" for s in LATE} | {f"{s}_backend": None for s in LATE}
    if broken:
        return out | {"overlay_status": "failed"}
    text = OVERLAY if rng.random() < 0.12 else ""
    return out | {
        "overlay_text_count": int(bool(text)),
        "overlay_area": 0.08 if text else 0.0,
        "overlay_text": text,
        "noise_snr_db": float(rng.normal(22, 6)),
        "noise_removed_db": float(rng.normal(8, 3)),
        "transcript": WORDS,
        "word_count": 9,
        "asr_confidence": float(rng.uniform(0.3, 0.99)),
        "spoken_language": str(rng.choice(["en", "zh", "de"], p=[0.7, 0.2, 0.1])),
        "sample_chunks": int(row["duration_s"] / 0.32) - 1,
        "sample_bytes": int(rng.integers(400_000, 900_000)),
    }


def run_rows(row: Row) -> list[Row]:
    out = []
    for place, stage in enumerate(CLIP_STAGES):
        status = row[f"{stage}_status"]
        spent = 0.0 if status == "skipped" else 0.05 * (place + 1) * row["duration_s"]
        error = None
        if status == "failed":
            error = ERRORS[int(row["start_s"]) // 12 % 3].format(int(row["start_s"]))
        if status == "unmeasured":
            error = f"too short: {row['duration_s']:.2f} s"
        out.append(
            {"clip_id": row["clip_id"], "stage": stage, "fingerprint": "f", "status": status, "seconds": spent}
            | {"media_seconds": spent / 4, "error": error}
        )
    return out


def scenes_run(source: Row) -> Row:
    facts = {"clip_id": source["source_id"], "stage": "scenes", "fingerprint": "f", "status": "ok"}
    return facts | {"seconds": 30.0, "media_seconds": 0.0}


def strip_jpg(number: int) -> bytes:
    """Five frames of a moving disc on a colour of its own, 96 px high."""
    hue = np.full((1, 1, 3), (number * 37 % 180, 120, 200), np.uint8)
    strip = np.full((96, 5 * 128, 3), cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0], np.uint8)
    for k in range(5):
        cv2.circle(strip, (k * 128 + 24 + 20 * k, 48), 24, (240, 240, 240), -1)
        cv2.putText(strip, str(number), (k * 128 + 6, 88), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1)
    return bytes(cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def write_previews(store: Store, rows: Sequence[Mapping[str, Any]]) -> None:
    """Previews of all clips but every seventh; the clips table then names their tars."""
    by_source: dict[str, dict[str, dict[str, bytes]]] = {}
    for number, row in enumerate(rows):
        if number % 7 != 3:
            members = {"mp4": b"\0" * 16, "jpg": strip_jpg(number)}
            by_source.setdefault(row["source_id"], {})[row["clip_id"]] = members
    for source, samples in by_source.items():
        with store.writing(f"previews/{source}-00000.tar") as file:
            write_tar(file, samples)
    append(store, CLIPS_TABLE, [{**row, "preview_tar": f"{row['source_id']}-00000.tar"} for row in rows])
    compact(store, CLIPS_TABLE)


def write_decisions(store: Store, decisions: Sequence[Mapping[str, Any]]) -> None:
    """Lines of one session, as a reviewer's page appends them."""
    lines = [
        json.dumps({"decision_id": f"{k:032x}", "time": f"2026-01-01T00:00:{k:02d}.000000+00:00", **decision})
        for k, decision in enumerate(decisions)
    ]
    store.write("decisions/session.jsonl", ("\n".join(lines) + "\n").encode())
