"""A real headless Chromium for the pages: Debian's, driven by Playwright; what a page does wrong fails the test.

Fixtures, for every test by way of conftest: `chromium` (one a session; Playwright cannot be started twice in a
process), `open_page` (closes its pages and fails on any console message of level error, page error or failed request).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

SCREENSHOTS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
"""Where pictures of the pages are put for people; not in git."""
WIDTHS = (1280, 390)
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
_ACCEPTED = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


@dataclass
class Seen:
    """What a page did: messages of level error, uncaught errors and dialogs, requests [(method, url)] and those that failed."""

    errors: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of messages that a test provokes; they are no errors."""

    def faults(self) -> list[str]:
        """Errors that no test provoked."""
        return [error for error in self.errors if not any(part in error for part in self.expected)]

    def network(self) -> list[str]:
        """Addresses asked for beyond the disk and the page itself."""
        return [url for _, url in self.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]


OpenPage = Callable[..., tuple[Page, Seen]]


def executable() -> str:
    """Debian's Chromium. Fails the test, with what to do, where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("no chromium on this machine; run: apt-get install -y chromium")
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for every test of the session."""
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """`open_page(address, width=1280, scheme="light", **context options)` -> (page, what it did so far).

    At the end of the test every page that was opened must be without a fault.
    """
    opened: list[tuple[Any, Seen]] = []

    def open_one(address: str, width: int = 1280, scheme: Scheme = "light", **options: Any) -> tuple[Page, Seen]:
        size = ViewportSize(width=width, height=844 if width < 600 else 800)
        context = chromium.new_context(viewport=size, color_scheme=scheme, **options)
        page, seen = context.new_page(), Seen()
        opened.append((context, seen))
        watch(page, seen)
        page.goto(address)
        return page, seen

    yield open_one
    for context, _ in opened:
        context.close()
    faults = [fault for _, seen in opened for fault in seen.faults()]
    assert not faults, "\n".join(faults)


def watch(page: Page, seen: Seen) -> None:
    """Notes in `seen` what `page` does from now on."""
    page.on("console", lambda said: seen.errors.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(f"uncaught: {error}"))
    page.on("dialog", lambda dialog: _refuse(dialog, seen))
    page.on("request", lambda request: seen.requests.append((request.method, request.url)))
    page.on("requestfailed", lambda request: seen.errors.extend(_failure(request)))


def _refuse(dialog: Any, seen: Seen) -> None:
    seen.errors.append(f"dialog: {dialog.message}")
    dialog.dismiss()


def _failure(request: Any) -> list[str]:
    aborted = request.failure == "net::ERR_ABORTED"  # the page itself gave it up: a seek in a film, a newer question
    return [] if aborted else [f"request: {request.url} {request.failure}"]


def accessible(page: Page, context: str | dict[str, Any] | None = None) -> None:
    """Asserts that axe finds nothing: labels, contrast, landmarks, order of headings. context: where it looks."""
    found = Axe().run(page, context, {"resultTypes": ["violations"], "runOnly": list(_ACCEPTED)})
    faults = [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found.response["violations"]
        for node in fault["nodes"]
    ]
    assert not faults, "\n".join(faults[:20])


def until(page: Page, expression: str, seconds: float = 15.0) -> None:
    """Waits until `expression` is true in the page. Playwright's own way evaluates text inside the page, which a
    content security policy without 'unsafe-eval' forbids."""
    ends = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < ends, f"never true: {expression}"
        page.wait_for_timeout(50)


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def picture(page: Page, name: str, full: bool = False) -> Path:
    """Writes build/screenshots/NAME.png. full: the whole page, not the window alone."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    return path
