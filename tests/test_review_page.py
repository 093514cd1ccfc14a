"""The review page in a real Chromium: a reviewer's whole way, by mouse and by keyboard alone, in every size and
theme; what goes wrong is said in the page; hostile names and texts stay text."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import pytest
import reviewed
from browser import SCHEMES, WIDTHS, OpenPage, accessible, overflow, picture, until
from playwright.sync_api import Page
from review_stages import FILMS, HOSTILE, LATE, PROFILE, SAID, SPOKEN, reviewable
from reviewed import clip_row, live
from skimage import data

from manifests.decisions import overrides, read_decisions
from manifests.store import Store
from manifests.tables import CLIPS_TABLE, append, compact, read
from pipelines.recipe import load_profile
from pipelines.review.desk import Desk

Serve = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent))
        portrait = cv2.resize(data.astronaut()[:256, 60:400], (320, 240))
        return reviewable(tmp_path_factory.mktemp("reviewed"), portrait)


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """A dataset of its own for a test that decides or breaks things."""
    shutil.copytree(made.root, tmp_path / "data")
    shutil.copy(made.local("../profile.toml"), tmp_path)
    return Store(tmp_path / "data")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(store, *profiles)` -> address. Asked for before `open_page`, it stops after the pages are closed."""
    with ExitStack() as stack:
        yield lambda store, *profiles: f"http://127.0.0.1:{stack.enter_context(live(store, profiles=profiles))}/"


@pytest.fixture
def address(serve: Serve, store: Store) -> str:
    return serve(store, str(store.local("../profile.toml")))


def ready(page: Page) -> None:
    until(page, "document.querySelector('.card') && document.querySelector('#count-keep')")


def number(page: Page, verdict: str) -> int:
    return int(page.locator(f"#count-{verdict}").inner_text().split()[1])


def cards(page: Page) -> list[str]:
    return page.locator(".card .clip-name").all_inner_texts()


def title(page: Page) -> str:
    return page.locator("#clip-view h2").inner_text().split(" 00:")[0]


def clip_of(store: Store, film: str) -> str:
    rows = read(store, CLIPS_TABLE, ["clip_id", "uri"]).to_pylist()
    return str(next(row["clip_id"] for row in rows if row["uri"].endswith(film)))


def on_clip(page: Page, film: str) -> None:
    until(page, f"document.querySelector('#clip-view h2')?.textContent.startsWith({film!r})")


# -- the whole way -----------------------------------------------------------------------------------------


def test_filter_play_move_a_bound_decide_reload_undo_export(
    store: Store,
    address: str,
    tmp_path: Path,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address, accept_downloads=True)
    ready(page)
    assert sorted(cards(page)) == sorted(FILMS)
    assert (number(page, "keep"), number(page, "reject"), number(page, "undecided")) == (2, 4, 0)
    page.locator("#filter-rule").select_option("sync_confidence")
    until(page, "document.querySelectorAll('.card').length === 2")
    page.locator("#filter-only").check()
    page.locator("#filters-clear").click()
    until(page, "document.querySelectorAll('.card').length === 6")
    page.locator("#filter-verdict").select_option("keep")
    page.locator("#sort").select_option("sync_confidence")
    page.locator("#descending").check()
    until(page, "document.querySelector('.card .clip-name').textContent.startsWith('light.mp4')")
    assert cards(page) == ["light.mp4", "dim.mp4"]

    page.locator(".card-open").first.click()
    on_clip(page, "light.mp4")
    until(page, "document.querySelector('video').readyState >= 3")
    page.keyboard.press("Space")
    until(page, "document.querySelector('video').currentTime > 0.3")
    page.keyboard.press("Space")
    until(page, "document.querySelector('video').paused")
    assert page.evaluate("document.querySelector('video').videoWidth") == 320
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#grid-view').hidden")

    page.locator("#filters-clear").click()
    until(page, "document.querySelectorAll('.card').length === 6")
    page.locator("#bounds-panel > summary").click()
    until(page, "!document.querySelector('#bound-sync_confidence').disabled")
    slider = page.locator("#bound-sync_confidence")
    slider.focus()
    page.keyboard.press("Home")  # everything passes the lowest bound but what lies at it
    until(page, "document.querySelector('#count-keep').textContent.includes('+1')")
    assert number(page, "keep") == 3
    assert page.locator("#fails-sync_confidence").inner_text().startswith("fails 1")
    page.locator("#number-sync_confidence").fill("2")
    page.locator("#number-sync_confidence").press("Enter")
    until(page, "document.querySelector('#count-keep').textContent.includes('+2')")
    page.locator("#bounds-reset").click()
    until(page, "!document.querySelector('#count-keep').textContent.includes('+')")
    assert number(page, "keep") == 2

    order = cards(page)
    page.locator(".card-open").first.focus()
    for key in ("k", "r"):
        page.keyboard.press(key)
    until(page, "document.querySelector('#counts').textContent.includes('2 decided')")
    until(page, "document.querySelector('.card.selected').dataset.at === '2'")
    chosen = {clip_of(store, order[0]): "keep", clip_of(store, order[1]): "reject"}
    assert overrides(store, "pretrain") == chosen

    page.reload()
    ready(page)
    assert page.locator(".card .by").all_inner_texts() == ["by ann", "by ann"]
    page.locator("#filter-decided").select_option("true")
    until(page, "document.querySelectorAll('.card').length === 2")
    with page.expect_download() as coming:
        page.locator("#export").click()
    coming.value.save_as(tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert {row["clip_id"]: (row["decision"], row["reviewer"]) for row in rows} == {
        clip: (choice, "ann") for clip, choice in chosen.items()
    }

    page.locator(".card-open").first.focus()
    page.keyboard.press("u")  # made before the reload: it asks first
    until(page, "document.querySelector('#toast').textContent.includes('Press U again')")
    assert overrides(store, "pretrain") == chosen
    page.keyboard.press("u")
    until(page, "document.querySelector('#counts').textContent.includes('1 decided')")
    assert overrides(store, "pretrain") == {clip_of(store, order[0]): "keep"}


def test_everything_by_keyboard_alone(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, seen = open_page(address)
    ready(page)
    order = cards(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Enter")  # the first clip is marked
    on_clip(page, order[0])
    page.keyboard.press("n")
    on_clip(page, order[1])
    page.keyboard.press("ArrowLeft")
    on_clip(page, order[0])
    page.keyboard.press(".")
    until(page, "Math.abs(document.querySelector('video').currentTime - 0.04) < 1e-6")
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.id") == "reason-text"
    page.keyboard.type("k is a letter here, <b>too</b>")
    page.keyboard.press("Escape")  # nothing is decided
    page.keyboard.press("e")
    page.keyboard.type("out of focus")
    page.keyboard.press("Enter")
    on_clip(page, order[1])
    page.keyboard.press("k")
    page.keyboard.press("k")  # at once: the second is about the next clip
    on_clip(page, order[3])
    page.keyboard.press("u")
    on_clip(page, order[2])
    found = {d.clip_id: (d.choice, d.reason) for d in read_decisions(store) if d.choice != "withdraw"}
    assert found[clip_of(store, order[0])] == ("reject", "out of focus")
    assert overrides(store, "pretrain") == {clip_of(store, order[0]): "reject", clip_of(store, order[1]): "keep"}
    page.go_back()
    until(page, "!document.querySelector('#grid-view').hidden")
    page.go_forward()
    until(page, "!document.querySelector('#clip-view').hidden")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter-text"
    page.keyboard.type("calmly")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.card').length === 6")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible() and page.locator("#help tr").count() == 13
    page.keyboard.press("k")  # a dialog is open: nothing is decided behind it
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible() and len(overrides(store, "pretrain")) == 2
    assert seen.faults() == []


def test_deciding_goes_on_where_the_filter_lets_go(
    serve: Serve,
    tmp_path: Path,
    open_page: OpenPage,
) -> None:
    """70 clips that nobody decided, 60 a page: deciding all of them shows each exactly once."""
    store = reviewed.write(tmp_path, [clip_row(at) for at in range(70)])
    page, _ = open_page(serve(store))
    ready(page)
    page.locator("#filter-decided").select_option("false")
    page.locator("main").focus()
    for at in range(70):
        page.keyboard.press("k")
        if at % 10 == 9:
            until(page, f"document.querySelector('#counts').textContent.includes('{at + 1} decided')")
    until(page, "document.querySelector('#count-keep').textContent.includes('70')")
    assert len(overrides(store, "pretrain")) == 70 and len(read_decisions(store)) == 70


def test_saving_a_profile(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, seen = open_page(address)
    ready(page)
    page.locator("#bounds-panel > summary").click()
    page.locator("#number-sync_confidence").fill("5.5")
    page.locator("#number-sync_confidence").press("Enter")
    until(page, "document.querySelector('#count-keep').textContent.includes('−1')")
    page.locator("#bounds-save").click()
    page.locator("#save-name").fill("pretrain")
    seen.expected.append("status of 400")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#save-error').textContent.includes('already')")
    page.locator("#save-name").fill("strict")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#profile').value === 'strict' && !document.querySelector('#save').open")
    assert number(page, "keep") == 1
    saved = {rule.name: rule for rule in load_profile(str(store.local("profiles/strict.toml"))).rules}
    assert saved["sync_confidence"].bounds == {"light": 5.5} and saved["sync_confidence"].test == "above"


# -- what is drawn -----------------------------------------------------------------------------------------


def test_boxes_waveform_and_curve_are_drawn_where_they_belong(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address)
    ready(page)
    page.locator(".card", has_text="grey.mp4").locator("button").click()
    on_clip(page, "grey.mp4")
    until(page, "document.querySelector('video').readyState >= 2")
    page.evaluate("document.querySelector('video').currentTime = 1.0")
    until(page, "!document.querySelector('video').seeking")
    page.wait_for_timeout(200)
    assert inked(page, "#7ee787") == pytest.approx([105, 40, 265, 210], abs=4)  # between its looks it moves on
    assert inked(page, "#ffb86b")[2] == pytest.approx(150, abs=4)
    page.evaluate("document.querySelector('video').currentTime = 4.0")
    until(page, "!document.querySelector('video').seeking")
    page.wait_for_timeout(200)
    assert inked(page, "#ffb86b") == []  # the text showed until 3 s
    spans = page.evaluate(
        "import('/static/player.js').then((m) => m.spokenSpans({preview: {offset_frames: -5}, speech: {segments: [[1.0, 2.2]]}}))"
    )
    assert spans == [pytest.approx([0.8, 2.0])]
    words = page.locator("figcaption").inner_text()
    assert f"the sound came {LATE} frames late, in sync once corrected" in words


def test_speech_lies_under_the_waveform_that_is_heard(store: Store) -> None:
    """The sound of the films is late; the preview has it corrected; so must be where speech is shaded."""
    desk = Desk(store.root, (str(store.local("../profile.toml")),))
    evidence = desk.clip(clip_of(store, "dim.mp4"), desk.profile("pretrain"))["evidence"]
    assert evidence["preview"]["offset_frames"] == -LATE
    loud = [at / 25 for at, peak in enumerate(evidence["preview"]["waveform"]) if peak > 20]
    shift = evidence["preview"]["offset_frames"] / 25  # as static/player.js does
    shaded = [(start + shift, end + shift) for start, end in evidence["speech"]["segments"]]
    assert shaded == [pytest.approx(span) for span in SPOKEN]
    inside = [any(start - 0.05 <= at <= end + 0.05 for start, end in shaded) for at in loud]
    assert len(loud) > 50 and all(inside)


def inked(page: Page, ink: str) -> list[int]:
    """The box [x0, y0, x1, y1] of pixels of a colour on the film, px of the film; [] where there is none."""
    found: list[int] = page.evaluate(
        """(ink) => {
          const canvas = document.querySelector('.drawn'), video = document.querySelector('video');
          const wanted = [1, 3, 5].map((at) => parseInt(ink.slice(at, at + 2), 16));
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          const scale = Math.min(canvas.width / video.videoWidth, canvas.height / video.videoHeight);
          const left = (canvas.width - video.videoWidth * scale) / 2, top = (canvas.height - video.videoHeight * scale) / 2;
          const rows = new Map(), columns = new Map(), more = (counts, at) => counts.set(at, (counts.get(at) ?? 0) + 1);
          for (let at = 0; at < data.length; at += 4) {
            if (!wanted.every((value, c) => Math.abs(data[at + c] - value) < 8) || data[at + 3] < 200) continue;
            more(columns, (at / 4) % canvas.width);
            more(rows, Math.floor(at / 4 / canvas.width));
          }
          const lines = (counts, least) => [...counts].filter(([, n]) => n > least).map(([at]) => at);
          const x = lines(columns, 20 * scale), y = lines(rows, 60 * scale);
          if (!x.length || !y.length) return [];
          const px = (value, shift) => Math.round((value - shift) / scale);
          return [px(Math.min(...x), left), px(Math.max(...y.filter((v) => v < canvas.height / 2)), top),
                  px(Math.max(...x), left), px(Math.max(...y), top)];
        }""",
        ink,
    )
    return found


def test_hostile_names_and_texts_stay_text(
    address: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address)
    ready(page)
    assert HOSTILE in cards(page)
    page.locator(".card", has_text=HOSTILE).locator("button").click()
    until(page, "document.querySelector('#clip-view h2')")
    assert title(page) == HOSTILE
    said = page.locator("#transcript")
    assert said.inner_text().startswith(SAID.strip()) and said.evaluate("(e) => e.children.length") == 0
    assert said.evaluate("(e) => e.tabIndex === 0 && e.clientHeight < 300 && e.scrollHeight > e.clientHeight")
    assert page.evaluate("document.querySelectorAll('#clip-view :is(img, script, b)').length") == 0
    page.locator("#same-source").click()
    until(page, "document.querySelectorAll('.card').length === 1")
    assert page.locator("#filters").inner_text().count(HOSTILE) == 1
    page.locator("#filter-source-clear").click()
    until(page, "document.querySelectorAll('.card').length === 6")


def test_addresses_of_strangers_do_no_harm(
    address: str,
    open_page: OpenPage,
) -> None:
    for hash_ in ("main", "%7B", "%22x%22", "null", "[]", '{"profile":"x","bounds":{"sync_confidence":"1"},"filter":3}',
                  '{"filter":{"rule":"<img>","verdict":"y","text":5,"decided":"no"},"sort":"z","page":-3,"clip":7}'):  # fmt: skip
        page, _ = open_page(f"{address}#{hash_}")
        ready(page)
        assert number(page, "keep") == 2
    page, seen = open_page(f'{address}#{{"clip":"../../etc/passwd"}}')
    seen.expected += ["status of 404", "status of 400"]
    ready(page)
    assert page.locator(".card").count() == 6


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_a_preview_that_is_gone_is_said(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    for tar in store.names("previews"):
        store.remove(f"previews/{tar}")
    page, seen = open_page(address)
    seen.expected.append("status of 404")
    ready(page)
    until(page, "document.querySelectorAll('.strip.missing').length === 6")
    page.locator(".card-open").first.click()
    until(page, "document.querySelector('.missing-film')?.textContent.includes('xstreamer curate')")
    accessible(page)
    page.keyboard.press("Space")
    page.keyboard.press("r")
    until(page, "document.querySelector('#toast').textContent.startsWith('Rejected')")
    assert len(overrides(store, "pretrain")) == 1


def test_a_decision_that_fails_is_said_and_nothing_moves(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, seen = open_page(address)
    ready(page)
    page.locator(".card-open").first.click()
    until(page, "document.querySelector('#clip-view h2')")
    here = title(page)
    page.route("**/api/decisions", lambda route: route.abort())
    seen.expected += ["ERR_FAILED", "status of 409"]
    page.keyboard.press("k")
    until(page, "document.querySelector('#toast').textContent.includes('does not answer')")
    assert title(page) == here and page.locator("#toast.wrong").is_visible()
    page.unroute("**/api/decisions")
    shutil.rmtree(store.local("decisions"))
    store.local("decisions").write_text("in the way")
    page.keyboard.press("k")
    until(page, "document.querySelector('#toast').textContent.includes('in the way')")
    assert title(page) == here and page.locator("#decide-keep[aria-pressed=false]").count() == 1
    store.local("decisions").unlink()
    page.keyboard.press("k")
    until(page, "document.querySelector('#toast').textContent.startsWith('Kept')")
    assert len(overrides(store, "pretrain")) == 1


def test_read_only_is_said_and_nothing_can_be_decided(
    serve: Serve,
    store: Store,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(serve(Store(store.local().as_uri()), str(store.local("../profile.toml"))))
    ready(page)
    assert "Read-only" in page.locator("#banner").inner_text()
    accessible(page)
    page.locator(".card-open").first.click()
    until(page, "document.querySelector('video')?.readyState >= 2")
    for name in ("decide-keep", "decide-reject", "give-reason", "undo"):
        assert page.locator(f"#{name}").is_disabled()
    page.keyboard.press("k")
    until(page, "document.querySelector('#toast').textContent.includes('Read-only')")
    picture(page, "review-read-only-1280-light")
    assert read_decisions(store) == []


def test_a_dataset_that_was_written_meanwhile_is_loaded_when_asked(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address)
    ready(page)
    rows = read(store, CLIPS_TABLE).to_pylist()
    append(
        store, CLIPS_TABLE, [{**rows[0], "clip_id": f"{rows[0]['source_id']}-000060000-000066000", "preview_tar": None}]
    )
    compact(store, CLIPS_TABLE)
    assert page.locator(".card").count() == 6 and not page.locator("#banner").is_visible()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as on coming back to the window
    until(page, "document.querySelector('#banner').textContent.includes('written since')")
    assert page.locator(".card").count() == 6
    page.reload()
    until(page, "document.querySelector('#banner').textContent.includes('written since')")
    ready(page)
    accessible(page)
    picture(page, "review-stale-1280-light")
    page.locator("#load-it").click()
    until(page, "document.querySelectorAll('.card').length === 7")
    assert not page.locator("#banner").is_visible()


def test_what_another_reviewer_decides_is_counted(
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address)
    ready(page)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    other = Desk(store.root, (str(store.local("../profile.toml")),), "bob")
    other.decide({"clip_id": clip_of(store, "calm.mp4"), "profile": "pretrain", "choice": "keep"})
    until(
        page,
        "(document.dispatchEvent(new Event('visibilitychange')), document.querySelector('#counts').textContent.includes('1 decided'))",
    )
    page.locator(".card", has_text="calm.mp4").locator("button").click()
    until(page, "document.querySelector('.why')?.textContent.includes('decided by bob')")


def test_nothing_to_show_is_said(
    serve: Serve,
    tmp_path: Path,
    store: Store,
    address: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address)
    ready(page)
    page.locator("#filter-text").fill("no such words")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.empty')?.textContent.includes('No clip fits')")
    page.locator("#filters-clear").click()
    ready(page)
    reviewed.begin(Store(tmp_path / "empty"))
    page, _ = open_page(serve(Store(tmp_path / "empty")))
    until(page, "document.querySelector('.empty')?.textContent.includes('no clips yet')")
    accessible(page)
    page, _ = open_page(serve(store))  # no shipped profile fits the recipe of this dataset
    until(page, "document.querySelector('#banner').textContent.includes('--profile FILE')")


# -- for everybody, in every size --------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_can_be_read_by_everybody(
    address: str,
    width: int,
    scheme: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address, width=width, scheme=scheme)
    ready(page)
    until(page, "[...document.images].every((i) => i.complete || i.loading === 'lazy')")
    looked_at(page, f"review-grid-{width}-{scheme}")
    page.keyboard.press("?")
    looked_at(page, f"review-help-{width}-{scheme}")
    page.keyboard.press("Escape")
    page.locator("#bounds-panel > summary").click()
    until(page, "!document.querySelector('#bound-sync_confidence').disabled")
    page.locator("#number-sync_confidence").fill("6.0")
    page.locator("#number-sync_confidence").press("Enter")
    until(page, "document.querySelector('#count-keep').textContent.includes('−1')")
    page.locator("#bounds").scroll_into_view_if_needed()
    looked_at(page, f"review-bounds-{width}-{scheme}")
    page.locator("#bounds-reset").click()
    page.locator(".card", has_text="grey.mp4").locator("button").click()
    on_clip(page, "grey.mp4")
    until(page, "document.querySelector('video').readyState >= 2")
    looked_at(page, f"review-clip-{width}-{scheme}", full=True)
    page.keyboard.press("e")
    looked_at(page, f"review-reason-{width}-{scheme}")


def looked_at(page: Page, name: str, full: bool = False) -> None:
    page.wait_for_timeout(150)
    picture(page, name, full)
    assert overflow(page) == 0
    accessible(page)


def test_the_focus_goes_in_the_order_of_the_page_and_stays_in_dialogs(
    address: str,
    open_page: OpenPage,
) -> None:
    page, _ = open_page(address)
    ready(page)
    order: list[str] = []
    for _ in range(17):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert order[:4] == ["skip", "profile", "reviewer", "help-button"] and order[4] == "SUMMARY"
    assert order[5:9] == ["filter-text", "filter-verdict", "filter-rule", "filter-only"]
    assert order[order.index("filters-clear") + 1] == "SUMMARY"
    assert order[order.index("filters-clear") + 2 :][:2] == ["export", "card-open"]
    page.locator("#help-button").click()
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#help')")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "help-button"


def test_the_profile_that_the_page_is_tested_under_is_valid(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PROFILE)
    assert len(load_profile(str(tmp_path / "p.toml")).rules) == 6
