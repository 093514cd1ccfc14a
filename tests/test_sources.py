"""What a user points at becomes a list of sources, and what a list says of them holds to the shards."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import light
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import numbered, write_movie
from test_scenes import scenes_movie

from manifests.errors import UsageError
from manifests.samples import read_tar
from manifests.shards import read_index
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, SAMPLES_TABLE, SOURCES_TABLE, read
from pipelines.cli import main
from pipelines.pack import PackOptions, pack
from pipelines.recipe import load_profile
from pipelines.sources import LIST_COLUMNS, list_sources
from pipelines.verify import verify

HOSTILE = (
    "new\nline.mp4", "it's \"quoted\".mp4", "dots..mp4...mp4", "Überträger 讲话 🎬.mp4", "  spaces  .mp4", "a#t=1,2.mp4",
    "100%41.mp4", "what?x=1&y=2.mp4", "-dash.mp4", "co:lon.mp4", "[br]*.mp4", "=1+1.mp4", "back\\slash.mp4",
    "line\u2028sep.mp4",
)  # fmt: skip


def names(listing: Any) -> list[str]:
    return [Path(request.path).name for request in listing.sources]


def touched(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def told(call: Any) -> str:
    """The one line that a UsageError shows."""
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


# -- files, folders, globs -----------------------------------------------------------------------------------


def test_a_folder_is_searched_through_sorted_without_hidden_and_other_files(tmp_path: Path) -> None:
    touched(
        tmp_path, "b.mp4", "a/z.MKV", "a/a.webm", ".hidden.mp4", ".cache/x.mp4", "notes.txt", "a/cover.jpg", "noext"
    )
    found = list_sources([str(tmp_path)])
    assert [Path(r.path).relative_to(tmp_path).as_posix() for r in found.sources] == ["a/a.webm", "a/z.MKV", "b.mp4"]
    assert found.ignored == 3
    assert all(Path(r.uri).is_absolute() and r.uri == r.path and not r.facts for r in found.sources)


def test_a_hidden_parent_does_not_hide_what_is_asked_for(tmp_path: Path) -> None:
    assert names(list_sources([str(touched(tmp_path / ".store", "a.mp4"))])) == ["a.mp4"]


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touched(tmp_path, "clip.dat", ".hidden.mp4")
    assert names(list_sources([str(tmp_path / "clip.dat"), str(tmp_path / ".hidden.mp4")])) == [
        "clip.dat",
        ".hidden.mp4",
    ]


def test_globs_also_relative_and_recursive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path, "a1.mp4", "a2.mp4", "b1.mp4", "deep/a3.mp4", "a4/inner.mp4")
    assert names(list_sources([str(tmp_path / "a*")])) == ["a1.mp4", "a2.mp4"]  # a4 is a folder
    monkeypatch.chdir(tmp_path)
    assert names(list_sources(["**/a?.mp4"])) == ["a1.mp4", "a2.mp4", "a3.mp4"]
    assert [r.path for r in list_sources(["deep/*.mp4"]).sources] == [str(tmp_path / "deep" / "a3.mp4")]


def test_a_repeat_counts_once_and_keeps_its_first_place(tmp_path: Path) -> None:
    touched(tmp_path, "a.mp4", "b.mp4")
    arguments = [
        str(tmp_path / "b.mp4"),
        str(tmp_path),
        str(tmp_path / "*.mp4"),
        written(tmp_path, "l.txt", "a.mp4\nb.mp4\n"),
    ]
    assert names(list_sources(arguments)) == ["b.mp4", "a.mp4"]


def test_a_name_with_glob_signs_is_first_of_all_a_name(tmp_path: Path) -> None:
    touched(tmp_path, "[1].mp4", "1.mp4")
    assert names(list_sources([str(tmp_path / "[1].mp4")])) == ["[1].mp4"]


def test_hostile_names_come_out_as_they_are(tmp_path: Path) -> None:
    touched(tmp_path, *HOSTILE)
    assert sorted(names(list_sources([str(tmp_path)]))) == sorted(HOSTILE)
    lines = "".join(json.dumps({"uri": name}, ensure_ascii=False) + "\n" for name in HOSTILE)
    for found in (
        list_sources([str(tmp_path / name) for name in HOSTILE]),
        list_sources([written(tmp_path, "l.jsonl", lines)]),
    ):
        assert names(found) == list(HOSTILE)
    plain = [name for name in HOSTILE if "\n" not in name]
    assert names(list_sources([written(tmp_path, "l.txt", "\r\n".join(plain) + "\r\n")])) == plain


def test_urls_through_fsspec(tmp_path: Path) -> None:
    touched(tmp_path, "a b.mp4", "deep/c.mov", "notes.md")
    base = f"file://{tmp_path}"
    found = list_sources([base])
    assert [r.uri.removeprefix(base) for r in found.sources] == ["/a b.mp4", "/deep/c.mov"] and found.ignored == 1
    assert names(list_sources([f"{base}/*.mp4"])) == ["a b.mp4"]
    assert "nothing at" in told(lambda: list_sources([f"{base}/none.mp4"]))
    assert "cannot list 'nosuch://x/y'" in told(lambda: list_sources(["nosuch://x/y"]))


@pytest.mark.parametrize("argument", ["gone.mp4", "gone/", "new\nline.mp4", "nul\0byte", "", "none-*.mp4", "a**b"])
def test_what_is_not_there_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    folder = touched(tmp_path, "other.mp4") / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert repr(argument) in told(lambda: list_sources([argument]))


def test_an_empty_folder_is_named_and_its_other_files_counted(tmp_path: Path) -> None:
    assert repr(str(tmp_path)) in told(lambda: list_sources([str(tmp_path)]))
    touched(tmp_path, "a.txt", "b.jpg")
    assert "2 other files" in told(lambda: list_sources([str(tmp_path)]))


# -- lists ---------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"uri": "a.mp4", "licence": "CC0", "language": "de", "origin": "a shop, of sorts", "identity": "anna"},
    {"uri": "deep/b.mp4", "start_s": 1.5, "end_s": 4.0, "identity": "ben"},
    {"uri": "deep/b.mp4", "start_s": 5.0, "identity": "ben"},
    {"uri": "c.mp4", "box": [0.0, 0.0, 0.5, 1.0], "identity": 0},
    {"uri": "c.mp4", "box": [320.0, 0.0, 640.0, 360.0], "end_s": 2.0},
]


def as_list(folder: Path, kind: str) -> str:
    """ROWS as a list of that kind."""
    path = folder / f"list.{kind}"
    if kind == "jsonl":
        return written(folder, path.name, "".join(json.dumps(row) + "\n\n" for row in ROWS))
    if kind == "parquet":
        texts = [{**row, "identity": str(row["identity"]) if "identity" in row else None} for row in ROWS]
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in LIST_COLUMNS} for row in texts]), path)
        return str(path)
    lines = [",".join(LIST_COLUMNS)]
    for row in ROWS:
        cells = [row.get(name, "") for name in LIST_COLUMNS]
        lines.append(",".join(f'"{" ".join(map(str, c)) if isinstance(c, list) else c}"' for c in cells))
    return written(folder, path.name, "\ufeff" + "\r\n".join(lines))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_list_gives_paths_spans_boxes_and_facts(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "year=2020"  # no partition: a folder with such a name
    place.mkdir()
    found = list_sources([as_list(place, kind)]).sources
    assert [Path(r.path).relative_to(place).as_posix() for r in found] == [row["uri"] for row in ROWS]
    assert [r.uri.removeprefix(r.path) for r in found] == [
        "", "#t=1.5,4", "#t=5,", "#xywh=0,0,0.5,1", "#t=0,2&xywh=320,0,320,360",
    ]  # fmt: skip
    assert dict(found[0].facts) == {k: v for k, v in ROWS[0].items() if k != "uri"}
    assert dict(found[1].facts) == {"window_start_s": 1.5, "window_end_s": 4.0, "identity": "ben"}
    assert dict(found[2].facts) == {"window_start_s": 5.0, "window_end_s": None, "identity": "ben"}
    assert dict(found[3].facts) == {"box": [0.0, 0.0, 0.5, 1.0], "identity": "0"}
    assert dict(found[4].facts) == {"window_start_s": 0.0, "window_end_s": 2.0, "box": [320.0, 0.0, 640.0, 360.0]}


def test_a_text_list_has_comments_blank_lines_absolute_paths_and_urls(tmp_path: Path) -> None:
    text = "# of today\n\na b.mp4\n  \n/abs/c.mp4\nhttps://host/d.mp4\n"
    found = list_sources([written(tmp_path, "l.txt", text)]).sources
    assert [r.uri for r in found] == [str(tmp_path / "a b.mp4"), "/abs/c.mp4", "https://host/d.mp4"]


@given(
    spans=st.lists(st.tuples(st.integers(0, 86_400_000), st.integers(1, 20_000)), min_size=2, max_size=8, unique=True)
)
def test_unlike_spans_are_unlike_sources(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]]
) -> None:
    rows = [{"uri": "a.mp4", "start_s": a / 1000, "end_s": (a + n) / 1000} for a, n in spans]
    folder = tmp_path_factory.mktemp("spans")
    found = list_sources([written(folder, "l.jsonl", "\n".join(map(json.dumps, rows)))]).sources
    assert len({r.uri for r in found}) == len(rows)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.csv", "uri,start\na.mp4,1\n", "row 1: unknown column 'start'; known: uri"),
        ("l.csv", "a.mp4\nb.mp4\n", "row 1: unknown column 'a.mp4'"),
        ("l.csv", "uri,start_s\na.mp4,1,2\n", "row 1: unknown column '(no header)'"),
        ("l.csv", "uri,start_s\na.mp4,1\n,2\n", "row 2: no uri"),
        ("l.csv", "uri,start_s\na.mp4,1:30\n", "row 1: start_s '1:30' must be a number"),
        ("l.csv", "uri,start_s\na.mp4,nan\n", "row 1: start_s 'nan' must be a number"),
        ("l.csv", "uri,start_s\na.mp4,-1\n", "row 1: start_s '-1' must be"),
        ("l.csv", "uri,end_s\na.mp4,inf\n", "row 1: end_s 'inf' must be"),
        ("l.csv", "uri,start_s,end_s\na.mp4,5,5\n", "row 1: end_s 5.0 is not after start_s 5.0"),
        ("l.csv", "uri,end_s\na.mp4,0\n", "row 1: end_s 0.0 is not after start_s 0.0"),
        ("l.csv", "uri,box\na.mp4,0 0 5\n", "row 1: box '0 0 5' must be x0 y0 x1 y1"),
        ("l.csv", "uri,box\na.mp4,5 0 0 5\n", "must be x0 y0 x1 y1"),
        ("l.csv", "uri,box\na.mp4,0 0 nan 5\n", "must be x0 y0 x1 y1"),
        ("l.csv", "uri,box\na.mp4,a b c d\n", "box 'a b c d' must be"),
        ("l.jsonl", '{"uri": "a.mp4"}\n{"uri": 1\n', "line 2 is no JSON"),
        ("l.jsonl", '{"uri": "a.mp4"}\n\n["a.mp4"]\n', "row 3: ['a.mp4'] is no JSON object"),
        ("l.jsonl", '{"uri": "a.mp4", "start_s": [1]}\n', "start_s [1] must be"),
        ("l.jsonl", '{"uri": "a.mp4", "box": 5}\n', "box 5 must be"),
        ("l.jsonl", '{"uri": "a\\u0000.mp4"}\n', "row 1: no file has the name"),
        ("l.parquet", "no parquet at all", "cannot read the list"),
        ("l.txt", "\n# only a comment\n", "no video in"),
    ],
)  # fmt: skip
def test_a_wrong_list_says_which_row_and_what(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = written(tmp_path, name, text)
    found = told(lambda: list_sources([path]))
    assert says in found and path in found


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"uri\n\xff\xfe.mp4\n")
    assert "l.csv: 'utf-8' codec" in told(lambda: list_sources([str(tmp_path / "l.csv")]))


# -- through curation ----------------------------------------------------------------------------------------

SPANS: list[dict[str, Any]] = [{"uri": "src/talk.mp4", "start_s": 2.0 * n, "end_s": 2.0 * n + 1.6} for n in range(12)]
LISTED: list[dict[str, Any]] = [
    *({**span, "identity": f"person {n % 4}", "licence": "CC0"} for n, span in enumerate(SPANS[:8])),
    *SPANS[8:],  # nobody said who that is
    {"uri": "src/two.mp4", "box": [0.0, 0.0, 0.5, 1.0], "identity": "person 0", "language": "de"},
    {"uri": "src/two.mp4", "box": [96.0, 0.0, 240.0, 160.0], "identity": "person 4", "origin": "a shop"},
    {"uri": "src/solo.mp4", "identity": "person 1"},
    {"uri": "twin.mp4"},
    {"uri": "src/talk.mp4", "start_s": 500.0, "end_s": 510.0},
    {"uri": "src/two.mp4", "box": [1000.0, 0.0, 2000.0, 160.0]},
    {"uri": "src/gone.mp4"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset curated first from a folder of plain and hostile names, then from a list with spans and boxes."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "src").mkdir()
    (folder / "recipe.toml").write_text(light.recipe_toml(folder))
    (folder / "pretrain.toml").write_text(light.PROFILE.format(sync=4.0))
    scenes_movie(folder / "src" / "solo.mp4", [1.4])
    for place, name in enumerate((*HOSTILE, os.fsdecode(b"\xff\xfe.mp4"))):
        path = folder / "src" / name
        write_movie(path.parent / "made.mp4", [numbered(place)] * (28 + place)).rename(path)
    codes = [curated(folder, str(folder / "src"))]
    scenes_movie(folder / "src" / "talk.mp4", [24.0])
    scenes_movie(folder / "src" / "two.mp4", [3.0, 1.5])
    (folder / "twin.mp4").write_bytes((folder / "src" / "solo.mp4").read_bytes())
    codes.append(curated(folder, written(folder, "list.jsonl", "\n".join(map(json.dumps, LISTED)))))
    assert codes == [3, 3]
    return folder


def curated(folder: Path, source: str) -> int:
    paths = ["--recipe", str(folder / "recipe.toml"), "--profile", str(folder / "pretrain.toml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        return main(["curate", source, "-o", str(folder / "ds"), *paths, "--cluster", "1", "--quiet", "--json"])


def rows_of(world: Path) -> dict[str, dict[str, Any]]:
    """Source rows by what follows the folder in their uri."""
    rows = read(Store(world / "ds"), SOURCES_TABLE).to_pylist()
    return {row["uri"].removeprefix(f"{world}/"): row for row in rows}


def clips_of(world: Path, source: dict[str, Any]) -> list[dict[str, Any]]:
    rows = read(Store(world / "ds"), CLIPS_TABLE).to_pylist()
    return [row for row in rows if row["source_id"] == source["source_id"]]


def test_files_with_hostile_names_are_curated(world: Path) -> None:
    rows = rows_of(world)
    for name in HOSTILE:
        assert rows[f"src/{name}"]["status"] == "ok", rows[f"src/{name}"]["error"]
        assert [c["sync_status"] for c in clips_of(world, rows[f"src/{name}"])] == ["ok"]
    [bad] = [row for key, row in rows.items() if "\\udcff" in key]
    assert bad["status"] == "failed" and "\\udcff" in bad["error"] and "\n" not in bad["error"]


def test_clips_lie_inside_their_span_and_nowhere_else(world: Path) -> None:
    rows, found = rows_of(world), []
    for span in SPANS:
        source = rows[f"src/talk.mp4#t={span['start_s']:g},{span['end_s']:g}"]
        clips = clips_of(world, source)
        assert clips and clips[0]["start_s"] == pytest.approx(span["start_s"], abs=0.021)
        assert clips[-1]["end_s"] == pytest.approx(span["end_s"], abs=0.021)
        assert all(span["start_s"] - 0.021 <= c["start_s"] < c["end_s"] <= span["end_s"] + 0.021 for c in clips)
        found.append(source["source_id"])
    assert len(set(found)) == len(SPANS)  # spans of one file are sources of their own


def test_a_box_is_all_that_the_stages_see(world: Path) -> None:
    rows = rows_of(world)
    left, right = rows["src/two.mp4#xywh=0,0,0.5,1"], rows["src/two.mp4#xywh=96,0,144,160"]
    assert left["source_id"] != right["source_id"]
    for row, side in ((left, 120.0), (right, 144.0)):
        clips = clips_of(world, row)
        assert {c["crop_side"] for c in clips} == {side} and len(clips) == 2
    marks = [[c["quality_sharpness"] for c in clips_of(world, row)] for row in (left, right)]
    assert marks[0] != marks[1]  # they looked at other pixels


def test_a_span_or_box_outside_the_file_fails_alone(world: Path) -> None:
    rows = rows_of(world)
    for name, says in (
        ("src/talk.mp4#t=500,510", "in the given span"),
        ("src/two.mp4#xywh=1000,0,1000,160", "leaves nothing of a 240x160 picture"),
        ("src/gone.mp4", "No such file"),
    ):
        assert rows[name]["status"] == "failed" and says in rows[name]["error"], rows[name]["error"]


def test_facts_reach_the_table_and_the_samples(world: Path) -> None:
    rows = rows_of(world)
    first, boxed = rows["src/talk.mp4#t=0,1.6"], rows["src/two.mp4#xywh=96,0,144,160"]
    assert (first["identity"], first["licence"], first["window_start_s"]) == ("person 0", "CC0", 0.0)
    assert (boxed["identity"], boxed["origin"], boxed["box"]) == ("person 4", "a shop", [96.0, 0.0, 240.0, 160.0])
    samples = {s["source_id"]: s for s in read(Store(world / "ds"), SAMPLES_TABLE).to_pylist()}
    content = (world / "ds" / "samples" / samples[boxed["source_id"]]["tar"]).read_bytes()
    facts = [json.loads(members["json"]) for _, members in read_tar(io.BytesIO(content))]
    assert {(f["identity"], f["origin"]) for f in facts} == {("person 4", "a shop")}


def test_what_a_list_says_later_of_a_known_file_counts_and_a_folder_does_not_unsay_it(world: Path) -> None:
    assert rows_of(world)["src/solo.mp4"]["identity"] == "person 1"  # first seen in a folder, without facts
    assert rows_of(world)["twin.mp4"]["status"] == "duplicate"


def packed(world: Path, share: float) -> dict[str, set[str]]:
    """{split: groups that must not be split} as read from the shards."""
    store = Store(world / "ds")
    pack(store, load_profile(str(world / "pretrain.toml")), PackOptions(val_share=share), quiet=True)
    sources = {row["source_id"]: row for row in rows_of(world).values() if row["status"] == "ok"}
    out: dict[str, set[str]] = {}
    for split, index in (("train", "index.json"), ("val", "index-val.json")):
        out[split] = set()
        for shard in read_index(store, "shards/pretrain", index)["shardlist"]:
            for key, _ in read_tar(io.BytesIO(store.read(f"shards/pretrain/{shard['url']}"))):
                source = sources[key.split("-")[0]]
                out[split].add(source["identity"] or source["path"])
    return out


@pytest.mark.parametrize("share", np.linspace(0.05, 0.95, 7))
def test_one_identity_is_never_in_both_splits(world: Path, share: float) -> None:
    found = packed(world, float(share))
    assert found["train"] and found["val"]
    assert not found["train"] & found["val"]
    assert found["train"] | found["val"] >= {f"person {n}" for n in range(5)}
    assert verify(Store(world / "ds"), quiet=True) == []
