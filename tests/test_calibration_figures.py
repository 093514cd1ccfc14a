"""The figures of calibration against known truth: intervals cover, weights undo uneven reviewing, bounds converge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.decisions import Decision
from manifests.verdicts import Rule, parse_profile
from pipelines.calibration.crossing import crossing, plain_between, reviews_to_settle
from pipelines.calibration.evidence import Evidence, Reviewed, counted
from pipelines.calibration.intervals import Strata, merged, recall_of, share_of, wilson
from pipelines.calibration.people import agreements, kappa, named_rules, truths
from pipelines.calibration.scale import Scale

SYNC = Scale(Rule("sync", "sync_confidence", "min", {"": 4.0}), "")


def falling(scores: np.ndarray, middle: float = 5.0, slope: float = 1.2, floor: float = 0.03) -> np.ndarray:
    """Chance that people reject a clip of this score."""
    return floor + (1 - 2 * floor) / (1 + np.exp(slope * (scores - middle)))


def reviewed(
    rng: np.random.Generator, clips: int, reviews: int, crowding: float
) -> tuple[Evidence, np.ndarray, np.ndarray]:
    """(evidence, [n] scores, [n] bad) of a corpus; clips within 1 of the bound are reviewed `crowding` times as often."""
    scores = rng.normal(8, 3, clips).astype(np.float32)
    bad = rng.random(clips) < falling(scores)
    chance = np.where(np.abs(scores - 4) < 1, crowding, 1.0)
    places = np.sort(rng.choice(clips, reviews, replace=False, p=chance / chance.sum()))
    edges = SYNC.edges(scores)
    now = int(np.searchsorted(edges, np.float32(4)))
    bins = SYNC.bins(scores, edges)
    return counted(SYNC, edges, now, bins, np.zeros(clips, bool), Reviewed(places, bad[places], 0, 0)), scores, bad


def test_wilson_is_the_one_of_the_books() -> None:
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


@pytest.mark.parametrize(("clips", "reviews", "crowding"), [(5000, 150, 1), (5000, 200, 10), (50_000, 300, 30)])
def test_intervals_cover_and_weights_undo_uneven_reviewing(clips: int, reviews: int, crowding: float) -> None:
    rng = np.random.default_rng(11)
    covered, errors, plain = [], [], []
    for _ in range(250):
        evidence, scores, bad = reviewed(rng, clips, reviews, crowding)
        fails = scores < 4
        truth = [bad[fails].mean(), (bad & fails).sum() / bad.sum(), bad[~fails].mean()]
        found = evidence.quality(evidence.now)
        covered.append([s is not None and s.low <= t <= s.high for s, t in zip(found, truth, strict=True)])
        errors.append([s.value - t if s else math.nan for s, t in zip(found, truth, strict=True)])
        seen = evidence.reviewed.places
        plain.append((bad & fails)[seen].sum() / bad[seen].sum() - truth[1])
    assert (np.mean(covered, 0) >= 0.90).all()
    assert (np.abs(np.nanmean(errors, 0)) < 0.02).all()
    if crowding >= 10:
        assert abs(np.mean(plain)) > 2 * abs(np.nanmean(errors, 0)[1])


def test_uneven_reviewing_gives_the_share_that_even_reviewing_gives() -> None:
    rng = np.random.default_rng(5)
    even, uneven = (
        [reviewed(rng, 20_000, 400, crowding)[0].quality(0)[2] for _ in range(40)] for crowding in (1.0, 20.0)
    )
    means = [float(np.mean([share.value for share in some if share])) for some in (even, uneven)]
    assert means[0] == pytest.approx(means[1], abs=0.015)


def test_reviewing_every_clip_leaves_no_doubt() -> None:
    evidence, scores, bad = reviewed(np.random.default_rng(1), 300, 300, 1)
    precision, recall, _ = evidence.quality(evidence.now)
    fails = scores < 4
    assert precision and recall
    assert precision.value == pytest.approx(bad[fails].mean()) and precision.high - precision.low < 1e-3
    assert recall.value == pytest.approx((bad & fails).sum() / bad.sum()) and recall.high - recall.low < 1e-3


strata = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


def table(rows: list[tuple[int, int, int]]) -> Strata:
    clips = np.array([c + r for c, r, _ in rows])
    reviews = np.array([r for _, r, _ in rows])
    return Strata(clips, reviews, np.minimum(reviews, [b for _, _, b in rows]))


@given(strata, st.integers(1, 12))
def test_merging_loses_no_clip_and_leaves_no_stratum_without_reviews(
    rows: list[tuple[int, int, int]], least: int
) -> None:
    whole = table(rows)
    found = merged(whole, least)
    for name in ("clips", "reviews", "bad"):
        assert getattr(found, name).sum() == getattr(whole, name).sum()
    assert len(found.clips) <= 1 or (found.reviews > 0).all()


@given(strata, strata)
def test_shares_lie_in_their_intervals(left: list[tuple[int, int, int]], right: list[tuple[int, int, int]]) -> None:
    fails, passes = merged(table(left), 5), merged(table(right), 5)
    precision, missed = share_of(fails), share_of(passes)
    recall = recall_of(float(fails.clips.sum()), precision, float(passes.clips.sum()), missed)
    for share in (precision, missed, recall):
        if share:
            assert 0 <= share.low <= share.value + 1e-9 and share.value <= share.high + 1e-9 <= 1 + 2e-9


def turn(share: float) -> float:
    """Where `falling` crosses `share`."""
    return 5.0 - math.log((share - 0.03) / (0.94 - (share - 0.03))) / 1.2


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_interval_of_the_bound_covers_the_best_one(share: float) -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        scores = rng.uniform(0, 12, 80)
        found = crossing(scores, rng.random(80) < falling(scores), share)
        covered.append(found.low <= turn(share) <= found.high)
    assert np.mean(covered) >= 0.90


def test_the_suggested_bound_converges_to_the_best_one() -> None:
    rng = np.random.default_rng(3)
    errors, widths = [], []
    for n in (100, 3000):
        found = []
        for _ in range(12):
            scores = rng.uniform(0, 12, n)
            found.append(crossing(scores, rng.random(n) < falling(scores), 0.2))
        errors.append(np.mean([abs(np.mean(one.gap) - turn(0.2)) for one in found]))
        widths.append(np.mean([one.high - one.low for one in found]))
    assert errors[1] < 0.25 and errors[1] < errors[0] / 2
    assert widths[1] < widths[0] / 2


def test_reviewing_near_the_bound_alone_moves_the_bound_nowhere() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(30):
        scores = np.concatenate([rng.uniform(0, 12, 100), rng.uniform(4, 8, 400)])
        found.append(np.mean(crossing(scores, rng.random(500) < falling(scores), 0.2).gap))
    assert np.mean(found) == pytest.approx(turn(0.2), abs=0.2)


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30), st.sampled_from((0.2, 0.5)))
def test_the_bound_is_the_one_of_least_cost(said: list[tuple[int, bool]], share: float) -> None:
    scores, bad = np.array([s for s, _ in said], float), np.array([b for _, b in said])
    found = crossing(scores, bad, share)

    def cost(bound: float) -> float:
        fails = scores < bound
        return share * float((~bad & fails).sum()) + (1 - share) * float((bad & ~fails).sum())

    best = min(cost(bound) for bound in np.arange(-0.5, 10))
    assert cost(found.gap[1]) == pytest.approx(best)
    assert found.low <= found.gap[0] and found.gap[1] <= found.high


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e4))
def test_a_plain_bound_parts_the_scores(low: float, room: float) -> None:
    assert low < plain_between(low, low + room) < low + room
    whole = plain_between(low, low + room + 1, whole=True)
    assert low < whole <= low + room + 1 and whole == int(whole)


def test_a_plain_bound_has_few_digits() -> None:
    assert plain_between(5.3117, 5.9013) == 5.6
    assert plain_between(0.30001, 0.3009) in (0.3004, 0.3005)
    assert plain_between(2.0, 3.0, whole=True) == 3
    assert plain_between(-math.inf, 4.0) < 4 < plain_between(4.0, math.inf)


def test_reviews_to_settle_fall_as_reviews_are_added_and_tell_about_how_many_it_takes() -> None:
    rows, ratios = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scores = rng.normal(8, 3, 8000)
        bad = rng.random(8000) < falling(scores)
        seen = np.zeros(8000, bool)
        seen[rng.choice(8000, 150, replace=False)] = True
        needed, reviews = [1], []
        while needed[-1] > 0:
            found = crossing(scores[seen], bad[seen], 0.2)
            inside = (scores > found.low) & (scores < found.high)
            needed.append(reviews_to_settle(found, scores[seen], bad[seen], 0.2, scores[inside], 200))
            reviews.append(int(seen.sum()))
            left = np.flatnonzero(inside & ~seen)
            seen[rng.choice(left, min(60, len(left)), replace=False)] = True
        rows.append([needed[1], needed[1 + len(reviews) // 2], needed[-1]])
        ratios.append(needed[1] / max(reviews[-1] - reviews[0], 60))
    means = np.mean(rows, 0)
    assert means[1] < 0.8 * means[0] and means[2] == 0
    assert 1 / 3 < np.median(ratios) < 3


def test_what_is_all_reviewed_is_settled() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 10, 200)
    bad = rng.random(200) < falling(scores)
    found = crossing(scores, bad, 0.2)
    inside = scores[(scores > found.low) & (scores < found.high)]
    assert len(inside) > 5 and reviews_to_settle(found, scores, bad, 0.2, inside, 5) == 0


@given(
    st.sampled_from(("min", "above", "max", "below", "within")),
    st.lists(st.integers(-40, 40), min_size=2, max_size=60),
    st.integers(-8, 8),
    st.booleans(),
)
def test_a_score_fails_its_bound_where_the_rule_fails(test: str, steps: list[int], bound: int, whole: bool) -> None:
    limit = abs(bound) if test == "within" else bound
    rule = Rule("r", "sync_offset_frames" if whole else "sync_confidence", test, {"": limit if whole else limit / 10})
    values = np.array(steps, np.float32) / (1 if whole else 10)
    scale = Scale(rule, "")
    scores = scale.scores(values)
    edges = scale.edges(scores)
    now = int(np.searchsorted(edges, np.float32(scale.edge(float(scale.bound)))))
    fails = scale.bins(scores, edges) <= now
    assert fails.tolist() == [not rule.passes(float(v), None) for v in values]
    for at, edge in enumerate(edges):
        other = Rule("r", rule.measure, test, {"": scale.bound_of(float(edge))})
        if test != "within" or other.bounds[""] >= 0:
            assert (scale.bins(scores, edges) <= at).tolist() == [not other.passes(float(v), None) for v in values]


PROFILE = parse_profile(
    {
        "name": "p",
        "rules": {
            "sync_offset": {"measure": "sync_offset_frames", "within": 10},
            "sync_confidence": {"min": 4},
            "overlay_text": {"measure": "overlay_text_count", "max": 0},
        },
    },
    "test",
)


@pytest.mark.parametrize(
    ("reason", "rules"),
    [
        ("", set()),
        ("ugly", set()),
        ("sync_confidence", {"sync_confidence"}),
        ("low Sync Confidence!", {"sync_confidence"}),
        ("sync_offset_frames is off, overlay text", {"sync_offset", "overlay_text"}),
        ("presync_confidences", set()),
    ],
)
def test_a_reason_names_rules_by_name_or_measure(reason: str, rules: set[str]) -> None:
    assert named_rules(PROFILE, reason) == rules


def decision(clip: str, choice: str, reviewer: str = "ann", **more: str) -> Decision:
    return Decision(clip, "p", choice, reviewer, **more)  # type: ignore[arg-type]


def test_a_rejection_is_about_the_rules_that_it_names() -> None:
    said = truths(
        PROFILE,
        {"a": decision("a", "reject", reason="overlay_text"), "b": decision("b", "reject"), "c": decision("c", "keep")},
    )
    assert [said["a"].about(rule) for rule in ("overlay_text", "sync_offset")] == [True, None]
    assert said["b"].about("sync_offset") is True and said["c"].about("sync_offset") is False


def test_kappa_is_the_one_of_the_books() -> None:
    said = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert kappa(said) == pytest.approx(0.4)
    assert kappa([]) is None and kappa([(True, True)] * 3) is None


def test_reviewers_are_compared_by_what_each_last_said_and_nobody_withdrew() -> None:
    first = decision("a", "keep")
    made = [
        first,
        decision("a", "reject", "bob"),
        decision("a", "withdraw", undoes=first.decision_id),
        decision("a", "reject"),
        decision("b", "keep"),
        decision("b", "reject", "bob"),
        decision("c", "keep", "cy"),
    ]
    (found,) = agreements(made, "p")
    assert (found.reviewers, found.clips, found.agree) == (("ann", "bob"), 2, 1)
