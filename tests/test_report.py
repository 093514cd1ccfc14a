"""The report: what it compares, its bytes, datasets that are being written, bad input."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command import Told, call
from made_dataset import FACTS, HOSTILE, OVERLAY, WORDS, decided_dataset, made_dataset, strip_jpg

from manifests import dataset
from manifests.decisions import read_decisions, standing
from manifests.records import clip_id
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, append, compact, read
from manifests.verdicts import Profile, judge_row, parse_profile
from pipelines.recipe import load_profile
from pipelines.report import frozen as frozen_module
from pipelines.report.against import Side, compare
from pipelines.report.build import write_report
from pipelines.report.frozen import Frozen, Moved, steadily
from pipelines.report.gather import gather
from pipelines.report.strips import jpeg_size

Row = dict[str, Any]
PRETRAIN = load_profile("pretrain")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return decided_dataset(tmp_path_factory.mktemp("made") / "ds")


def rows_of(store: Store) -> list[Row]:
    return read(store, CLIPS_TABLE).to_pylist()


# -- what is being written ---------------------------------------------------------------------------------


def test_a_table_of_several_generations_reads_as_one(tmp_path: Path) -> None:
    store = made_dataset(tmp_path / "ds", 60, previews=False)
    rows = rows_of(store)
    append(store, CLIPS_TABLE, [{**rows[5], "sync_confidence": 99.0}, {**rows[6], "scene": -1}])
    several = Frozen(store)
    seen = [
        row for _, piece in several.batches(CLIPS_TABLE, ["clip_id", "sync_confidence"]) for row in piece.to_pylist()
    ]
    assert sorted(row["clip_id"] for row in seen) == sorted(row["clip_id"] for row in rows_of(store))
    assert len(seen) == 59 and [r["sync_confidence"] for r in seen if r["clip_id"] == rows[5]["clip_id"]] == [99.0]
    apart = gather(several, [PRETRAIN])
    append(store, CLIPS_TABLE, [{**rows[7], "sync_confidence": 99.0}])  # not seen: it came later
    assert apart.tallies[0].combos == gather(several, [PRETRAIN]).tallies[0].combos
    compact(store, CLIPS_TABLE)
    with pytest.raises(Moved):
        list(several.batches(CLIPS_TABLE, ["clip_id"]))


def test_a_table_that_is_rewritten_meanwhile_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made_dataset(tmp_path / "ds", 24, previews=False)
    original, states = frozen_module.pq.read_table, iter([True, False])

    def disturbed(*args: Any, **options: Any) -> pa.Table:
        if next(states, False):
            compact(store, CLIPS_TABLE)
            raise FileNotFoundError("compacted")
        return original(*args, **options)

    monkeypatch.setattr(frozen_module.pq, "read_table", disturbed)
    assert len(steadily(lambda now: gather(now, [PRETRAIN]), store).ids) == 24


# -- comparing ---------------------------------------------------------------------------------------------


def sides(before: Store, now: Store, old: Profile = PRETRAIN, new: Profile = PRETRAIN) -> Any:
    return compare(Side(Frozen(before), old).load(), Side(Frozen(now), new).load())


def test_clips_that_changed_and_why_the_measure_moved(tmp_path: Path, made: Store) -> None:
    other = made_dataset(tmp_path / "other", 228, previews=False, shift=1.5)
    one, rows = sides(other, made), {r["clip_id"]: r for r in rows_of(made)}
    then = {r["clip_id"]: r for r in rows_of(other)}
    assert one.matched["clips"] == 228 and one.only_now["clips"] == 12 and one.only_before["clips"] == 0
    decided = standing(read_decisions(made), "pretrain")
    pairs: Counter[tuple[str, str]] = Counter()
    began = 0
    for clip, old in then.items():
        was, now = judge_row(PRETRAIN, old), judge_row(PRETRAIN, rows[clip])
        pairs[was[0], decided[clip].choice if clip in decided else now[0]] += 1
        began += "sync_confidence" not in was[1] and "sync_confidence" in now[1]
    assert {(c["before"], c["now"]): c["clips"] for c in one.changes if c["clips"]} == dict(pairs)
    (rule,) = one.rules
    assert rule["rule"] == "sync_confidence" and rule["began"] == began > 3 and rule["ceased"] == 0
    assert rule["causes"] == {"measure moved": began} and rule["bounds"] == ["more than 4", "more than 4"]
    assert one.people == 2 and one.changed == sum(n for (a, b), n in pairs.items() if a != b)
    assert sides(made, made).changed == 0


def test_two_profiles_of_one_dataset_differ_by_their_bounds(made: Store) -> None:
    one = sides(made, made, PRETRAIN, load_profile("sft"))
    causes = {row["rule"]: row["causes"] for row in one.rules}
    assert set(causes["sync_confidence"]) == {"bound moved"} and set(causes["sync_residual"]) == {"rule is new"}
    assert one.changed > 10 and all(1 <= len(e["ids"]) <= 4 for e in one.examples)


def test_a_value_that_came_or_went_is_told_from_one_that_moved(tmp_path: Path) -> None:
    store, other = (made_dataset(tmp_path / name, 12, previews=False) for name in ("a", "b"))
    rows = rows_of(other)
    append(other, CLIPS_TABLE, [{**rows[0], "sync_confidence": None}, {**rows[1], "sync_confidence": -1.0}])
    (rule,) = sides(store, other).rules
    assert rule["causes"] == {"measure moved": 1, "no longer measured": 1}
    assert (rule["lost"], rule["began"]) == (1, 1)


# -- the file ----------------------------------------------------------------------------------------------


def report(store: Store, *arguments: str | Path) -> Told:
    return call("report", store.root, "--quiet", *arguments)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_dataset_gives_the_same_bytes_and_stale_strips_go(made: Store, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    told = report(made, "--profile", "pretrain,sft", "-o", first, "--json")
    facts = json.loads(told.out)
    assert told.code == 0 and facts["report"] == str(first / "report.html")
    stale = second / "thumbnails" / f"{clip_id('a' * 16, 0, 5)}.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    (second / "thumbnails" / "mine.txt").write_text("kept")
    assert report(made, "--profile", "pretrain,sft", "-o", second).code == 0
    assert not stale.exists() and (second / "thumbnails" / "mine.txt").exists()
    (second / "thumbnails" / "mine.txt").unlink()
    assert files(first) == files(second)
    strips = [name for name in files(first) if name.endswith(".jpg")]
    page = (first / "report.html").read_text()
    assert len(strips) == facts["thumbnails"] > 20 and all(f'src="{name}"' in page for name in strips)
    assert facts["without_thumbnail"] > 0 and "this clip has no preview" in page
    assert facts["profiles"]["pretrain"]["keep"]["clips"] > 20


def test_names_words_and_reasons_are_text(made: Store, tmp_path: Path) -> None:
    report(made, "--profile", "pretrain", "-o", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "&lt;img src=x onerror=alert(4)&gt; BREAKING" in page
    for text in (HOSTILE, WORDS, OVERLAY, "<b>late</b>", "<b>moov</b>", "face<net>", "<i>odd</i>", "<large>"):
        assert text not in page
    assert page.count("<script") == page.count("</script") == 3
    said = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    assert said and json.loads(said[1])["funnel-pretrain"]["data"]
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", re.sub(r"(?s)<script>.*?</script>", "", page))


def test_rule_names_reach_plotly_as_text(made: Store, tmp_path: Path) -> None:
    rule = {"measure": "duration_s", "min": 4.8}
    profile = parse_profile({"name": "odd", "rules": {"<b>x</b>": rule, "</script><i>": rule}}, "test")
    write_report(made.root, [profile], str(tmp_path), None)
    page = (tmp_path / "report.html").read_text()
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert "&lt;b&gt;x&lt;/b&gt;" in charts["funnel-odd"]["data"][0]["y"] and "<b>x</b>" not in page


def test_models_of_newer_and_older_datasets(made: Store, tmp_path: Path) -> None:
    report(made, "--profile", "pretrain", "-o", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "CC BY-NC 4.0" in page and "not allowed" in page and "the licence does not say" in page
    old = made_dataset(tmp_path / "old", 12, previews=False)
    dataset.save(old, {**FACTS, "models": {"sync": "opencv 5"}, "revisions": None, "software": None})
    assert report(old, "--profile", "pretrain", "-o", tmp_path / "o").code == 0
    assert "No downloaded model" in (tmp_path / "o" / "report.html").read_text()


def test_previews_that_are_gone_or_damaged_leave_a_placeholder(tmp_path: Path) -> None:
    store = made_dataset(tmp_path / "ds", 48)
    tars = sorted((tmp_path / "ds" / "previews").iterdir())
    tars[0].unlink()
    tars[1].write_bytes(tars[1].read_bytes()[:700])
    (tmp_path / "outside.tar").write_bytes(tars[2].read_bytes())
    outside = [row for row in rows_of(store) if row["preview_tar"] == tars[2].name]
    append(store, CLIPS_TABLE, [{**row, "preview_tar": "../../outside.tar"} for row in outside])
    found = json.loads(report(store, "--profile", "pretrain", "--json").out)
    assert found["thumbnails"] > 3 and found["without_thumbnail"] > 3
    shown = {path.name[:16] for path in (tmp_path / "ds" / "report" / "thumbnails").iterdir()}
    assert shown and not shown & {outside[0]["source_id"], tars[0].name[:16]}
    assert (
        jpeg_size(strip_jpg(1)) == (640, 96) and jpeg_size(b"\xff") is None and jpeg_size(b"\xff\xd8\xff\xe0") is None
    )


def test_an_empty_dataset_has_a_report(tmp_path: Path) -> None:
    dataset.save(Store(tmp_path / "ds"), FACTS)
    told = report(Store(tmp_path / "ds"))
    assert told.code == 0 and "keep 0, reject 0, undecided 0" in told.out
    assert "This dataset has no clips yet." in (tmp_path / "ds" / "report" / "report.html").read_text()
    assert report(Store(tmp_path / "ds"), "--against", "sft").code == 0


# -- bad input ---------------------------------------------------------------------------------------------


def without_plotly(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "plotly", None)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["report", "{tmp}/nothing"], 1, "is no dataset"),
        (["report", " "], 2, "the dataset is empty"),
        (["report", "{ds}", "-o", "{file}"], 1, "a file where a folder must be"),
        (["report", "{ds}", "-o", ""], 2, "-o is empty"),
        (["report", "{ds}", "--against", "{tmp}/nothing"], 2, "neither a dataset"),
        (["report", "{ds}", "--against", ""], 2, "--against is empty"),
        (["report", "{ds}", "--profile", "sft", "--against", "sft"], 2, "name another"),
        (["report", "{ds}", "--profile", "best"], 2, "no profile 'best'"),
        (["report", "{ds}", "--profile", "sft,sft"], 2, "two profiles of one name"),
        (["report", "{ds}", "--profile", "{blind}"], 2, "no bound for backend 'correlation'"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    made: Store, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "blind.toml").write_text('name = "blind"\n[rules.sync_confidence]\nmin = { syncnet = 3 }\n')
    places = {"tmp": tmp_path, "ds": made.root, "file": tmp_path / "file", "blind": tmp_path / "blind.toml"}
    told = call(*(argument.format(**places) for argument in arguments), "--quiet")
    assert told.code == code and part in told.line()


def test_a_missing_package_is_one_line_with_the_command(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_plotly(monkeypatch)
    told = report(made)
    assert told.code == 1 and 'pip install "xstreamer[review]"' in told.line()


def test_a_damaged_table_part_is_one_line(tmp_path: Path) -> None:
    store = made_dataset(tmp_path / "ds", 12, previews=False)
    (part,) = (tmp_path / "ds" / "tables" / "clips").iterdir()
    part.write_bytes(part.read_bytes()[:200])
    assert "cannot be read" in report(store, "--profile", "pretrain").line()
