"""The page of an explanation in a browser: pointer, click and keyboard show the map of a word."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_file
from PIL import Image

from ituning_hf import Explanation

pytestmark = pytest.mark.browser
HOSTILE = "</style><script>alert(1)</script>"


@pytest.fixture
def view(page: Any, tmp_path: Path) -> Any:
    """The open page of three words, with attention to the left, middle and right third of a grey image."""
    explanation = Explanation(
        image=Image.new("RGB", (240, 80), "grey"),
        caption=f"a  dog {HOSTILE}",
        words=["a", "dog", HOSTILE],
        maps=np.eye(3, dtype=np.float32)[:, None],
        box=(0, 0, 240, 80),
        layers=[1],
    )
    explanation.save(tmp_path / "page.html")
    open_file(page, tmp_path / "page.html")
    return page


def brightest_third(page: Any, selector: str) -> int | None:
    """Return which third of an element has the colour of the most attention, or None if none has."""
    with Image.open(io.BytesIO(page.locator(selector).screenshot())) as shown:
        pixels = np.asarray(shown.convert("RGB")).astype(int)
    yellow = (pixels[..., 0] - pixels[..., 2]).mean(axis=0)  # of each column
    thirds = [part.mean() for part in np.array_split(yellow, 3)]
    return int(np.argmax(thirds)) if max(thirds) > 20 else None


def test_the_pointer_shows_the_map_of_a_word_and_a_click_keeps_it(view: Any):
    words = view.locator("button")
    assert words.all_inner_texts() == ["a", "dog", HOSTILE]
    assert view.locator("#caption").inner_text() == f"a dog {HOSTILE}"
    assert brightest_third(view, "#view") is None
    for index in range(3):
        words.nth(index).hover()
        assert brightest_third(view, "#view") == index
    view.locator(".muted").hover()
    assert brightest_third(view, "#view") is None
    words.nth(1).click()
    words.nth(2).hover()
    assert brightest_third(view, "#view") == 2
    view.locator(".muted").hover()
    assert brightest_third(view, "#view") == 1
    assert [word.get_attribute("aria-pressed") for word in words.all()] == ["false", "true", "false"]
    words.nth(1).click()
    words.nth(1).blur()
    view.locator(".muted").hover()
    assert brightest_third(view, "#view") is None


def test_the_keyboard_moves_through_the_words(view: Any):
    for index in range(3):
        view.keyboard.press("Tab")
        assert brightest_third(view, "#view") == index


def test_each_word_has_a_picture(view: Any):
    figures = view.locator("figure")
    assert figures.all_inner_texts() == ["a", "dog", HOSTILE]
    for index in range(3):
        assert brightest_third(view, f"figure:nth-child({index + 1}) .picture") == index
