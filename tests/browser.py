"""Pages in a real browser, for the tests marked `browser`. A plugin of tests/conftest.py."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; without one of them the test is skipped."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="requires playwright: pip install playwright"
    )
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("requires chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def watched_page(browser: Any) -> Iterator[Any]:
    """Yield a new page; raise an AssertionError at the end for errors in its console or its scripts."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    problems: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    context.close()
    assert problems == []


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A new page of 1200 x 800 pixels; errors in its console or its scripts fail the test."""
    with watched_page(browser) as opened:
        yield opened


def open_file(page: Any, path: Path) -> None:
    """Open a self-contained page: it may load nothing but itself and data URLs, now and later."""

    def check(route: Any) -> None:
        url = route.request.url
        if url == path.absolute().as_uri() or url.startswith("data:"):
            route.continue_()
        else:
            route.abort()  # the console reports it, which fails the test

    page.route("**/*", check)
    page.goto(path.absolute().as_uri())
