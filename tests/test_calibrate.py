"""`xstreamer calibrate` on datasets: what counts as a review, which clips are drawn, what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import WIDTHS, OpenPage, accessible, overflow, picture
from command import asked as curate_arguments
from command import call, made_bench
from made_dataset import BACKENDS, made_dataset

from manifests.decisions import Decision, DecisionLog
from manifests.errors import DatasetError, UsageError
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, read
from manifests.verdicts import KEEP, Profile, judge_table, parse_profile
from pipelines.calibrate import Asked, Calibration, as_row, calibrate, clip_list, read_clip_list, save, write
from pipelines.calibration.finding import FEW, FIXED, MOVES, Aim
from pipelines.recipe import load_profile

PROFILE = parse_profile(
    {
        "name": "qa",
        "rules": {
            "speaker_count": {"equals": {"centerface": 1}},
            "sync_confidence": {"above": {"correlation": 4.0}},
            "quality_sharpness": {"min": {"piqe": 6.5}},
        },
    },
    "test",
)
BEST = 7.0
"""Below it people reject more often than not out of sync clips."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_dataset(tmp_path_factory.mktemp("calibrate") / "ds", clips=1800, previews=False)


def review(store: Store, places: np.ndarray, seed: int = 1, reason: str = "") -> list[str]:
    """Decisions of one who rejects what is out of sync or shows no single speaker, and does not look at sharpness."""
    rows = read(store, CLIPS_TABLE, ["clip_id", "sync_confidence", "speaker_count"]).to_pylist()
    rng, log = np.random.default_rng(seed), DecisionLog(store)
    for place in places:
        row = rows[place]
        chance = 1 / (1 + np.exp(2.5 * ((row["sync_confidence"] or 0.0) - BEST)))
        bad = row["speaker_count"] != 1 or rng.random() < chance
        log.add(Decision(row["clip_id"], "qa", "reject" if bad else "keep", "ann", reason))
    return [rows[place]["clip_id"] for place in places]


@pytest.fixture
def fresh(clips: Store) -> Iterator[Store]:
    """The dataset without a decision."""
    yield clips
    for folder in ("decisions", "calibration", "profiles"):
        for name in clips.names(folder):
            clips.remove(f"{folder}/{name}")


def calibrated(store: Store, profile: Profile = PROFILE, **more: Any) -> Calibration:
    return calibrate(store, profile, BACKENDS, Asked(**more))


def finding_of(found: Calibration, rule: str) -> Any:
    return next(one for one in found.findings if one.evidence.scale.rule.name == rule)


def test_the_bound_that_people_want_is_suggested_and_saved(fresh: Store) -> None:
    review(fresh, np.arange(0, 1800, 3))
    found = calibrated(fresh, aim=Aim(cost=1.0), save="better")
    sync = finding_of(found, "sync_confidence")
    assert sync.state == MOVES and sync.low <= BEST <= sync.high and abs(sync.bound - BEST) < 1
    assert sync.then_recall.value > sync.recall.value
    speakers = finding_of(found, "speaker_count")
    assert speakers.state == FIXED and speakers.precision.low > 0.9 and speakers.bound is None
    path = save(found, BACKENDS)
    saved = load_profile(path)
    bounds = {rule.name: dict(rule.bounds) for rule in saved.rules}
    assert saved.name == "better" and bounds["sync_confidence"] == {"correlation": sync.bound}
    assert bounds["quality_sharpness"] == {"piqe": 6.5}
    with pytest.raises(UsageError, match="already"):
        save(found, BACKENDS)


def test_a_rule_that_people_do_not_share_is_found_too_strict_or_left_open(fresh: Store) -> None:
    review(fresh, np.arange(0, 1800, 2))
    found = calibrated(fresh, aim=Aim(cost=1.0), save="none")
    sharp = finding_of(found, "quality_sharpness")
    assert sharp.state != MOVES and sharp.precision.value < 0.6
    calm = calibrate(fresh, Profile("qa", PROFILE.rules[2:]), BACKENDS, found.asked)
    with pytest.raises(UsageError, match="no bound"):
        save(calm, BACKENDS)


def test_clips_that_fail_another_rule_or_were_rejected_for_one_do_not_count(fresh: Store) -> None:
    rows = read(fresh, CLIPS_TABLE, PROFILE.columns())
    failing = judge_table(PROFILE, rows)["failing"].to_pylist()
    alone = [k for k, rules in enumerate(failing) if rules == ["sync_confidence"]][:20]
    both = [k for k, rules in enumerate(failing) if len(rules) > 1 and "sync_confidence" in rules][:5]
    review(fresh, np.array(alone[:14] + both))
    review(fresh, np.array(alone[14:]), reason="quality_sharpness: smeared")
    reviews = finding_of(calibrated(fresh), "sync_confidence").evidence.reviewed
    assert len(reviews.places) + reviews.elsewhere == 20 and reviews.elsewhere >= 1
    assert reviews.others == 5 and set(reviews.places) <= set(alone)
    assert finding_of(calibrated(fresh), "sync_confidence").state == FEW


def test_the_share_of_bad_clips_kept_is_that_of_all_kept_clips(fresh: Store) -> None:
    kept = np.array(judge_table(PROFILE, read(fresh, CLIPS_TABLE, PROFILE.columns()))["verdict"].to_pylist()) == KEEP
    sync = np.nan_to_num(read(fresh, CLIPS_TABLE, ["sync_confidence"])["sync_confidence"].to_numpy())
    truth = (1 / (1 + np.exp(2.5 * (sync[kept] - BEST)))).mean()
    places = np.flatnonzero(kept)
    near = places[sync[places] < 4.6]  # as the review page's filter has it
    chosen = np.unique(np.concatenate([near, places[::12]]))
    review(fresh, chosen)
    share = calibrated(fresh).kept
    plain = (1 / (1 + np.exp(2.5 * (sync[chosen] - BEST)))).mean()
    assert share and share.low <= truth <= share.high
    assert abs(share.value - truth) < abs(plain - truth) / 3


def test_the_draw_is_the_same_again_spreads_over_sources_and_takes_no_decided_clip(fresh: Store) -> None:
    decided = review(fresh, np.arange(0, 1800, 4))
    first, again, other = (calibrated(fresh, draw=60, seed=seed).next_clips() for seed in (1, 1, 2))
    ids = [row["clip_id"] for row in first]
    assert first == again and first != other
    assert len(set(ids)) == 60 and not set(ids) & set(decided)
    assert len({clip[:16] for clip in ids}) >= 40
    assert sum(row["for"] is None for row in first) == 12
    assert len(calibrated(fresh, draw=5000).drawn) < 1800 - len(decided) + 1
    assert calibrated(fresh, draw=0).drawn == []


def test_clips_are_drawn_where_the_bound_is_open(fresh: Store) -> None:
    review(fresh, np.arange(0, 1800, 4))
    found = calibrated(fresh, draw=60, aim=Aim(cost=1.0))
    sync = finding_of(found, "sync_confidence")
    values = found.ground.snapshot.values("sync_confidence")
    drawn = np.array([values[one.place] for one in found.drawn if one.rule == "sync_confidence"])
    inside = ((values > sync.low) & (values < sync.high)).mean()
    assert len(drawn) >= 15 and ((drawn > sync.low) & (drawn < sync.high)).mean() > 2 * inside


def test_drawn_clips_narrow_the_interval_more_than_others_do(fresh: Store) -> None:
    stakes = {}
    for way in ("drawn", "even"):
        for name in fresh.names("decisions"):
            fresh.remove(f"decisions/{name}")
        review(fresh, np.arange(0, 1800, 15))
        rng = np.random.default_rng(7)
        for step in range(3):
            found = calibrated(fresh, draw=80, aim=Aim(cost=1.0))
            left = np.setdiff1d(np.arange(1800), list(found.decided))
            places = np.array([one.place for one in found.drawn]) if way == "drawn" else rng.choice(left, 80, False)
            review(fresh, places, seed=step)
        stakes[way] = finding_of(calibrated(fresh, aim=Aim(cost=1.0)), "sync_confidence").stake
    assert stakes["drawn"] < stakes["even"]


def test_a_list_of_clips_is_read_back(fresh: Store) -> None:
    found = calibrated(fresh, draw=7)
    assert read_clip_list(clip_list(found)) == [row["clip_id"] for row in found.next_clips()]
    assert read_clip_list("# all\n\n a-1 # why\r\nb-2\nb-2\n") == ["a-1", "b-2"]


def test_a_dataset_that_cannot_be_written_is_calibrated_all_the_same(tmp_path: Path) -> None:
    store = made_dataset(tmp_path / "ds", clips=1200, previews=False)
    review(store, np.arange(0, 1200, 2))
    for name in ("calibration", "profiles"):
        store.local(name).write_text("a file where a folder must be")
    found = calibrated(store, save="new", aim=Aim(cost=1.0))
    assert write(found) == ([], [f"{store.root} is in the way: a file where a folder must be; choose another folder"])
    with pytest.raises(DatasetError, match="in the way"):
        save(found, BACKENDS)


def test_the_page_opens_from_disk_without_a_fault(fresh: Store, open_page: OpenPage) -> None:
    review(fresh, np.arange(0, 1800, 3))
    found = calibrated(fresh, aim=Aim(cost=1.0))
    written, refused = write(found)
    assert refused == [] and [Path(path).name for path in written] == ["qa-next.txt", "qa.html"]
    for width, scheme in zip(WIDTHS, ("light", "dark"), strict=True):
        page, seen = open_page(Path(written[1]).as_uri(), width, scheme)
        page.locator("#rule-sync_confidence .main-svg").first.wait_for()
        accessible(page)
        assert overflow(page) <= 0 and seen.network() == []
        text = page.locator("main").inner_text()
        assert "Ask for more than" in text and "suggested" in text
        picture(page, f"calibration-{width}-{scheme}", full=True)


def test_texts_stay_text(tmp_path: Path) -> None:
    store = made_dataset(tmp_path / "<img src=x onerror=alert(1)>", clips=24, previews=False)
    written, _ = write(calibrated(store))
    assert b"<img" not in Path(written[1]).read_bytes()


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(dataset curated with light stages, its profile)."""
    with made_bench(tmp_path_factory.mktemp("bench")) as bench:
        assert call(*curate_arguments(bench, bench / "src" / "mute.mp4", bench / "ds")).code == 0
        yield bench / "ds", bench / "pretrain.toml"


def test_the_command_from_no_decision_to_settled(curated: tuple[Path, Path]) -> None:
    root, profile = curated
    told = call("calibrate", root, "--profile", profile)
    assert told.code == 0 and "xstreamer review" in told.out
    listed = read_clip_list((root / "calibration" / "pretrain-next.txt").read_text())
    ids = read(Store(root), CLIPS_TABLE, ["clip_id"])["clip_id"].to_pylist()
    assert listed and set(listed) <= set(ids)
    log = DecisionLog(Store(root))
    made = [Decision(clip, "pretrain", "keep", "ann") for clip in listed]
    for one in made:
        log.add(one)
    found = json.loads(call("calibrate", root, "--profile", profile, "--json").out)
    assert found["decided"] == len(listed) and found["next"] == [] and found["kept"]["bad"]["value"] == 0
    assert {row["rule"] for row in found["rules"]} == {"duration", "speaker_count", "sync_confidence", "overlay_text"}
    log.add(Decision(made[0].clip_id, "pretrain", "withdraw", "ann", undoes=made[0].decision_id))
    again = json.loads(call("calibrate", root, "--profile", profile, "--json").out)
    assert again["decided"] == len(listed) - 1 and [row["clip_id"] for row in again["next"]] == [made[0].clip_id]
    other = json.loads(call("calibrate", root, "--profile", profile, "--decisions", "sft", "--json").out)
    assert other["decided"] == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--profile", "nobody"], "no profile 'nobody'"),
        (["--profile", "PROFILE", "--cost", "0"], "--cost"),
        (["--profile", "PROFILE", "--width", "1"], "--width"),
        (["--profile", "PROFILE", "--draw", "-1"], "--draw"),
        (["--profile", "PROFILE", "--save", "x"], "nothing to save"),
    ],
)
def test_wrong_usage_is_one_line(curated: tuple[Path, Path], more: list[str], says: str) -> None:
    root, profile = curated
    told = call("calibrate", root, *(str(profile) if one == "PROFILE" else one for one in more))
    assert told.code == 2 and says in told.line()


def test_a_dataset_without_clips_says_what_to_do(tmp_path: Path) -> None:
    assert call("calibrate", tmp_path, "--profile", "pretrain").code == 1
    store = made_dataset(tmp_path / "none", clips=0, previews=False)
    with pytest.raises(DatasetError, match="curate"):
        calibrated(store)


def test_what_is_printed_for_machines_is_json(fresh: Store) -> None:
    review(fresh, np.arange(0, 1800, 6))
    found = json.loads(json.dumps(as_row(calibrated(fresh)), allow_nan=False))
    sync = next(row for row in found["rules"] if row["rule"] == "sync_confidence")
    assert [row["bound"] for row in sync["sweep"]] == sorted(row["bound"] for row in sync["sweep"])
    assert any(row["bound"] == 4.0 for row in sync["sweep"])
