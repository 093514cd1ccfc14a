"""The report in a real Chromium, opened from the disk: it draws, asks nothing of the network, can be read by
everybody in every size and theme, and hostile names stay text."""

from __future__ import annotations

import os
from pathlib import Path

import light
import pytest
from browser import SCHEMES, OpenPage, accessible, overflow, picture, until
from command import TESTS, call
from made import clicks, numbered, write_movie
from made_dataset import FACTS, HOSTILE, OVERLAY, decided_dataset, made_dataset
from playwright.sync_api import Page

from manifests import dataset
from manifests.store import Store

EVIL = ("<script>alert(1)<", "script>.mp4")
"""A folder and a file, which together make a path that holds a whole script element."""


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store = decided_dataset(folder / "ds")
    made_dataset(folder / "before", 228, previews=False, shift=1.5)
    arguments: list[str | Path] = ["--profile", "pretrain", "--against", folder / "before", "--quiet"]
    assert call("report", store.root, *arguments).code == 0
    return folder / "ds" / "report" / "report.html"


ALL_DRAWN = "[...document.querySelectorAll('.plot')].every((p) => !p.checkVisibility() || p.querySelector('.main-svg'))"


def settled(page: Page) -> None:
    """Every chart that is not folded away is drawn, every strip that was asked for is there."""
    until(page, f"document.querySelector('.plot .main-svg') && {ALL_DRAWN}")
    until(page, "[...document.images].every((i) => i.complete || i.loading === 'lazy')")


def drawn(page: Page, chart: str) -> None:
    """Scrolls to a chart and waits for it."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    until(page, f"document.querySelector('#{chart} .main-svg')")


def test_the_page_draws_from_the_disk_and_is_accessible(open_page: OpenPage, page_path: Path) -> None:
    page, seen = open_page(page_path.as_uri())
    settled(page)
    charts = page.locator(".plot:visible").count()
    assert charts > 20 and page.locator(".plot:visible .bars path, .plot:visible .heatmaplayer image").count() > charts
    page.locator("img").first.scroll_into_view_if_needed()
    until(page, "document.images[0].naturalWidth > 0")
    assert seen.network() == []
    asked = {url.rsplit("/", 1)[-1].rsplit(".", 1)[-1] for _, url in seen.requests if url.startswith("file:")}
    assert asked == {"html", "jpg"}
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        accessible(page)
        for name in ("overview", "against", "profile-pretrain", "measures"):
            page.evaluate(f"document.getElementById('{name}').scrollIntoView()")
            picture(page, f"report-{scheme}-1280-{name}")


def test_the_page_fits_a_telephone(open_page: OpenPage, page_path: Path) -> None:
    page, _ = open_page(page_path.as_uri(), width=390)
    page.evaluate(
        "document.querySelectorAll('details.rule, .chart details').forEach((d, i) => { d.open = i % 5 == 0 })"
    )
    settled(page)
    assert overflow(page) == 0
    outside = "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, .plot, .visually-hidden'))"
    over = page.evaluate(
        f"{outside}.filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"
    )
    assert over == []
    accessible(page)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        for name in ("overview", "profile-pretrain", "measures", "stages"):
            page.evaluate(f"document.getElementById('{name}').scrollIntoView()")
            picture(page, f"report-{scheme}-390-{name}")


def test_arrow_keys_walk_through_a_chart_and_say_what_it_shows(open_page: OpenPage, page_path: Path) -> None:
    page, _ = open_page(page_path.as_uri())
    drawn(page, "funnel-pretrain")
    page.locator("#funnel-pretrain").focus()
    page.keyboard.press("ArrowRight")
    assert "cut into clips" in page.locator("#said").inner_text()
    page.keyboard.press("ArrowRight")
    said = page.locator("#said").inner_text()
    assert said.startswith("duration: ") and "left" in said
    page.wait_for_selector("#funnel-pretrain .hoverlayer text")
    page.keyboard.press("ArrowDown")
    assert "lost" in page.locator("#said").inner_text()
    page.keyboard.press("End")
    assert page.locator("#said").inner_text().startswith("kept: ")
    drawn(page, "overlap-pretrain")
    page.locator("#overlap-pretrain").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "duration and audio_present" in page.locator("#said").inner_text()


def test_the_theme_changes_under_an_open_page(open_page: OpenPage, page_path: Path) -> None:
    page, _ = open_page(page_path.as_uri())
    drawn(page, "funnel-pretrain")
    colour = "getComputedStyle(document.querySelector('#funnel-pretrain .xtick text')).fill"
    page.wait_for_selector("#funnel-pretrain .xtick text")
    light_text = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    until(page, f"{colour} !== {light_text!r}")
    assert page.evaluate(colour) == "rgb(232, 236, 242)"


def test_a_table_says_what_its_chart_does(open_page: OpenPage, page_path: Path) -> None:
    page, _ = open_page(page_path.as_uri())
    figure = page.locator("figure:has(#measure-spoken_language-whisper_paraformer)")
    drawn(page, "measure-spoken_language-whisper_paraformer")
    figure.locator("summary").click()
    cells = figure.locator("table tbody tr").evaluate_all(
        "rows => rows.map((r) => [...r.cells].map((c) => c.innerText))"
    )
    data = page.evaluate("document.getElementById('measure-spoken_language-whisper_paraformer').data[0]")
    assert cells == [[name, str(count)] for name, count in zip(data["y"], data["x"], strict=True)] and len(cells) == 3


def test_no_script_but_the_report_s_own_may_run(open_page: OpenPage, page_path: Path) -> None:
    page, seen = open_page(page_path.as_uri())
    seen.expected += ["Content Security Policy"]
    add = "const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s)"
    page.evaluate(add)
    fetched = page.evaluate("fetch('https://example.org/').then(() => 'sent', (error) => error.name)")
    assert page.evaluate("window.ran") is None and fetched == "TypeError"
    assert any("script-src" in error for error in seen.errors) and any("connect" in error for error in seen.errors)


def test_hostile_names_texts_and_reasons_are_shown_as_text(open_page: OpenPage, page_path: Path) -> None:
    page, _ = open_page(page_path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    settled(page)
    text = page.locator("main").inner_text()
    for shown in (f"/videos/{HOSTILE}", OVERLAY, "lips <b>late</b>", "face<net>"):
        assert shown in text
    assert page.locator("img[src=x], main b, main i").count() == 0


def test_a_source_called_script_is_text_from_curation_on(
    open_page: OpenPage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "src" / EVIL[0]
    folder.mkdir(parents=True)
    write_movie(folder / EVIL[1], [numbered(7)] * 60, audio=clicks(2.4))
    (tmp_path / "recipe.toml").write_text(light.recipe_toml(tmp_path))
    (tmp_path / "pretrain.toml").write_text(light.PROFILE.format(sync=4.0))
    files = ["--profile", str(tmp_path / "pretrain.toml"), "--quiet"]
    made = ["--recipe", str(tmp_path / "recipe.toml"), "--cluster", "1"]
    assert call("curate", tmp_path / "src", "-o", tmp_path / "ds", *made, *files).code == 0
    assert call("report", tmp_path / "ds", *files).code == 0
    page, _ = open_page((tmp_path / "ds" / "report" / "report.html").as_uri())
    settled(page)
    assert "<script>alert(1)</script>.mp4" in page.locator("#mix").inner_text()
    assert page.locator("body script").count() == 3
    assert page.locator(".strip.none").count() > 0  # its preview holds no picture
    assert call("verify", tmp_path / "ds", "--quiet").code == 0


def test_an_empty_report_is_whole(open_page: OpenPage, tmp_path: Path) -> None:
    dataset.save(Store(tmp_path / "ds"), FACTS)
    assert call("report", tmp_path / "ds").code == 0
    page, seen = open_page((tmp_path / "ds" / "report" / "report.html").as_uri(), width=390)
    settled(page)
    assert "no clips yet" in page.locator("#overview").inner_text() and seen.network() == [] and overflow(page) == 0
    accessible(page)
    picture(page, "report-light-390-empty")
