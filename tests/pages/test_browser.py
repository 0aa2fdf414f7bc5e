"""The fixtures of browser.py notice what a page must not do."""

from pathlib import Path
from typing import Any

import pytest
from browser import open_file, watched_page

SELF_CONTAINED = "<title>one</title><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
pytestmark = pytest.mark.browser


def test_a_self_contained_page_opens(page: Any, tmp_path: Path):
    (tmp_path / "page.html").write_text(SELF_CONTAINED)
    open_file(page, tmp_path / "page.html")
    assert page.title() == "one"


@pytest.mark.parametrize(
    "content",
    [
        "<img src='other.png'>",
        "<img src='https://example.org/other.png'>",
        "<script>fetch('https://example.org')</script>",
        "<script>throw new Error('a bug')</script>",
    ],
)
def test_problems_of_a_page_are_found(browser: Any, tmp_path: Path, content: str):
    (tmp_path / "page.html").write_text(SELF_CONTAINED + content)
    (tmp_path / "other.png").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"ERR_|a bug"), watched_page(browser) as page:
        load(page, tmp_path / "page.html")


def load(page: Any, path: Path) -> None:
    open_file(page, path)
    page.wait_for_load_state("networkidle")
