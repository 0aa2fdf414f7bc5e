"""The page of an evaluation: its content, and its table in a browser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_file
from PIL import Image

from ituning_hf.data.columns import CaptionedImage
from ituning_hf.evaluation import page as pages
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.report import ENTIRE, Evaluation
from ituning_hf.evaluation.scores import CaptionScores

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">&amp;'{{ 7 * 7 }}"
ARGS = EvaluateArguments(predictions="captions.json", dataset="photos")


def make_evaluation(images: list[CaptionedImage], captions: list[str], *, scored: bool = True) -> Evaluation:
    """An evaluation in which image i has a CIDEr of i / 100 and a ROUGE-L that falls with i."""
    number = len(images)
    values = {"rouge_l": np.linspace(1, 0, number).tolist(), "cider": (np.arange(number) / 100).tolist()}
    scores = CaptionScores(per_image=values, counts={}, tokenizer="Python", java_version=None, left_out={})
    parts = {}
    for domain in sorted({image.domain for image in images if image.domain}):
        parts[domain] = scores.part([i for i, image in enumerate(images) if image.domain == domain])
    return Evaluation(
        dataset="photos",
        split="test",
        images=images,
        image_ids=list(range(number)),
        captions=captions,
        unreadable=[],
        speed=None,
        parts=parts | {ENTIRE: scores} if scored else {},
    )


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "0.png"
    Image.linear_gradient("L").convert("RGB").resize((400, 300)).save(path)
    return path


@pytest.fixture(scope="module")
def many(photograph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 10,000 images; those with even numbers are indoors."""
    images = [
        CaptionedImage(
            f"photo {i}.jpg",
            (f"a human caption of number {i}",),
            photograph,
            domain=("indoors", "outdoors")[i % 2],
        )
        for i in range(10_000)
    ]
    path = tmp_path_factory.mktemp("many") / "report.html"
    captions = [f"a {('dog', 'cat', 'bird')[i % 3]} on the {('grass', 'sofa')[i % 2]}" for i in range(10_000)]
    pages.write_page(path, make_evaluation(images, captions), ARGS)
    return path


def test_content(photograph: Path, tmp_path: Path):
    """With an image that does not exist, and one with a name that is not Unicode and hostile texts."""
    images = [
        CaptionedImage("0.png", ("a human caption", "another one"), photograph),
        CaptionedImage("missing.png", ("of a missing image",), tmp_path / "missing.png"),
        CaptionedImage(f"{HOSTILE}\udcff.png", (HOSTILE,), photograph),
    ]
    pages.write_page(tmp_path / "report.html", make_evaluation(images, ["a caption", "", HOSTILE]), ARGS)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>photos, test</title>" in html
    assert "<th>score</th><th>95% interval</th></tr>" in html
    assert "ituning evaluate --dataset photos --predictions captions.json" in html
    assert re.findall(r"<h2.*?>(.*)</h2>", html) == [
        *("Scores", "Scores of single images", "Highest CIDEr", "Lowest CIDEr", "Random images", "All images")
    ]
    assert '<th>CIDEr</th><td>1.0</td><td class="muted">0.0 to 2.0</td></tr>' in html
    assert html.count('<div class="missing">no picture</div>') == 2  # in its group, and at random
    assert html.count('<img src="data:image/jpeg;base64,') == 4
    assert html.count('<div class="caption">(empty)</div>') == 2
    assert "<span>CIDEr 2.0</span>" in html
    assert HOSTILE not in html
    assert html.count("</script>") == 2
    assert "<img src=x" not in html


def test_without_references_the_captions_are_shown(photograph: Path, tmp_path: Path):
    images = [CaptionedImage("0.png", (), photograph)]
    pages.write_page(tmp_path / "report.html", make_evaluation(images, ["a caption"], scored=False), ARGS)
    html = (tmp_path / "report.html").read_text()
    assert re.findall(r"<h2.*?>(.*)</h2>", html) == ["Random images", "All images"]
    assert html.count('<div class="caption">a caption</div>') == 1


def test_a_large_table_has_no_pictures_and_domains_have_columns(many: Path):
    size = many.stat().st_size
    assert 1_000_000 < size < 4_000_000
    html = many.read_text()
    assert html.count("data:image/jpeg") == 3 * pages.NUM_PICTURES
    assert "<th></th><th>all</th><th>indoors</th><th>outdoors</th>" in html
    assert "<th>images</th><td>10,000</td><td>5,000</td><td>5,000</td>" in html


# --- In a browser


def names(page: Any) -> list[str]:
    """The names in the table's rows."""
    return page.locator(".images tbody .name").all_text_contents()


def status(page: Any) -> str:
    return page.locator("#status").text_content()


@pytest.mark.browser
def test_search_filters_sorting_and_pages(page: Any, many: Path):
    open_file(page, many)
    assert len(names(page)) == 50
    assert status(page) == "1 to 50 of 10,000 images"
    page.click("#next")
    assert names(page)[0] == "photo 50.jpg"
    page.click("#previous")
    assert names(page)[0] == "photo 0.jpg"
    assert page.locator("#previous").is_disabled()

    page.fill("[name=search]", "DOG number 99")  # words of the caption and of the human one
    assert names(page)[:3] == ["photo 99.jpg", "photo 399.jpg", "photo 699.jpg"]
    page.fill("[name=search]", "photo 9999.jpg")
    assert (names(page), status(page)) == (["photo 9999.jpg"], "1 to 1 of 1 images")
    page.fill("[name=search]", "nothing like this")
    assert (names(page), status(page)) == ([], "0 images")
    page.click("[type=reset]")
    page.wait_for_function("document.querySelector('#status').textContent.endsWith('10,000 images')")

    page.select_option("[name=domain]", "outdoors")
    assert (names(page)[:2], status(page)) == (["photo 1.jpg", "photo 3.jpg"], "1 to 50 of 5,000 images")
    page.fill("[name=low]", "9990")
    page.fill("[name=high]", "9994")
    assert names(page) == ["photo 9991.jpg", "photo 9993.jpg"]
    page.select_option("[name=metric]", "rouge_l")
    assert names(page) == []
    page.fill("[name=low]", "0")
    page.fill("[name=high]", "100")

    score = page.locator("th[data-key=score]")
    assert score.text_content().strip() == "ROUGE-L"
    score.locator("button").click()
    assert (names(page)[0], score.get_attribute("aria-sort")) == ("photo 1.jpg", "descending")
    score.locator("button").click()
    assert (names(page)[0], score.get_attribute("aria-sort")) == ("photo 9995.jpg", "ascending")
    page.click("th[data-key=name] button")
    assert names(page)[:3] == ["photo 1.jpg", "photo 3.jpg", "photo 5.jpg"]  # not 1, 11, 1001


@pytest.mark.browser
def test_a_click_on_a_bar_lists_its_images(page: Any, many: Path):
    open_file(page, many)
    page.locator("[data-metric=cider] .bar").nth(2).click()
    assert status(page) == "1 to 50 of 501 images"
    assert names(page)[:2] == ["photo 1500.jpg", "photo 1499.jpg"]
    assert page.locator("[data-metric=rouge_l]").is_hidden()
    page.select_option("#chart", "rouge_l")
    assert page.locator("[data-metric=rouge_l]").is_visible()


@pytest.mark.browser
def test_hostile_texts_are_shown_as_they_are(page: Any, photograph: Path, tmp_path: Path):
    images = [CaptionedImage(f"{i}{HOSTILE}", (HOSTILE,), photograph, domain=HOSTILE * 3) for i in range(3)]
    pages.write_page(tmp_path / "report.html", make_evaluation(images, [HOSTILE] * 3), ARGS)
    open_file(page, tmp_path / "report.html")
    assert page.title() == "photos, test"
    assert names(page) == [f"{i}{HOSTILE}" for i in range(3)]
    for shown in (".images tbody .caption", ".images tbody .references li", "figure .caption"):
        assert set(page.locator(shown).all_text_contents()) == {HOSTILE}
    assert page.locator(".images tbody img").count() == 3
    assert page.locator("[name=domain] option").all_text_contents() == ["all", HOSTILE * 3]
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.browser
def test_without_scores_the_table_shows_captions(page: Any, photograph: Path, tmp_path: Path):
    images = [CaptionedImage(f"{i}.png", (), photograph) for i in range(60)]
    captions = [f"caption {i}" for i in range(60)]
    pages.write_page(tmp_path / "report.html", make_evaluation(images, captions, scored=False), ARGS)
    open_file(page, tmp_path / "report.html")
    page.fill("[name=search]", "caption 59")
    assert names(page) == ["59.png"]
    for hidden in (".scored", ".domain", ".images .score"):
        assert all(not found.is_visible() for found in page.locator(hidden).all())
