"""The app of `ituning app` in chromium."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Command
from small_models import make_captioner, randomize_adapters

import ituning_hf
from ituning_hf import ITuningProcessor, save_captioner
from ituning_hf.data.scenes import make_scene

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folders(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The captioners "day" and "night"."""
    root = tmp_path_factory.mktemp("captioners")
    texts = {i: processor.tokenizer.decode([i]) for i in range(len(processor.tokenizer))}
    inner = [i for i, text in texts.items() if not re.fullmatch(" [a-z]+", text)]
    for seed, name in enumerate(("day", "night")):
        model = randomize_adapters(make_captioner(backbones), seed=seed)
        model.generation_config.max_new_tokens = 6  # untrained, it would not end its captions
        model.generation_config.suppress_tokens = inner  # so that a caption has several words
        save_captioner(model, processor, root / name)
    return {name: root / name for name in ("day", "night")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"scene {index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        make_scene(3, index).load().save(path)
    return paths


@pytest.fixture(scope="module")
def url(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running app."""
    models = [f"{name}={folder}" for name, folder in folders.items()]
    folder = tmp_path_factory.mktemp("app")
    environment = {"GRADIO_TEMP_DIR": str(folder / "uploads")}
    flags = ["--port", "0", "--device", "cpu"]
    command = Command(["app", *models, *flags], folder / "output", environment)
    while "The app runs at" not in command.printed:
        assert command.process.is_alive(), command.printed
        time.sleep(0.1)
    yield re.search(r"http://\S+/", command.printed)[0]
    assert [*folder.rglob("*.png")]
    command.process.terminate()
    assert command.end() == 0
    assert not [*folder.rglob("*.png")]  # it removed the uploaded files


@pytest.fixture
def app(page: Any, url: str) -> Any:
    """The open app; it may load nothing from elsewhere."""

    def check(route: Any) -> None:
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()  # the console reports it, which fails the test

    page.route("**/*", check)
    page.goto(url)
    return page


def upload(app: Any, tab: int, *paths: Path) -> None:
    """Give files to a tab, and wait until the server has them."""
    with app.expect_response("**/upload*"):
        app.locator("input[type=file]").nth(tab).set_input_files(paths)


def test_an_image_is_captioned_and_its_words_explained(app: Any, folders, pictures):
    upload(app, 0, pictures[0])
    app.locator("img").first.wait_for()
    app.get_by_role("button", name="Caption", exact=True).click()
    caption = app.frame_locator("iframe").locator("#caption")
    assert caption.inner_text() == ituning_hf.caption(folders["day"], pictures[0])
    assert app.get_by_role("radio").count() == 1
    view = app.frame_locator("iframe").locator("#view > div")
    maps = []
    for word in (0, 1):
        caption.locator("button").nth(word).click()
        maps.append(view.evaluate("map => getComputedStyle(map).backgroundImage"))
    assert maps[0] != maps[1]
    app.frames[1].wait_for_function("innerHeight === document.documentElement.offsetHeight")
    assert all(url.startswith('url("data:image/png') for url in maps)


def test_the_options_and_another_captioner_are_used(app: Any, folders, pictures):
    app.get_by_role("button", name="Options").click()
    app.get_by_label("Captioner").click()
    app.get_by_role("option", name="night").click()
    upload(app, 0, pictures[1])
    app.locator("img").first.wait_for()
    app.get_by_label("number input for Captions").fill("3")  # a number that is just shown may be reset
    app.get_by_label("Prompt").fill("a red")
    app.get_by_role("button", name="Caption", exact=True).click()
    expected = ituning_hf.caption(folders["night"], pictures[1], num_captions=3, prompt="a red")
    explained = app.frame_locator("iframe").locator("#caption")
    assert explained.inner_text() == expected[0]
    choices = app.get_by_role("radio")
    assert choices.evaluate_all("all => all.map(choice => choice.value)") == expected
    choices.nth(2).click()
    app.frame_locator("iframe").get_by_role("img", name=expected[2]).wait_for()
    app.get_by_label("number input for Beams").fill("2")
    app.get_by_role("button", name="Caption", exact=True).click()
    app.get_by_text("Captions is 3 and Beams is 2").wait_for()
    app.locator("iframe").wait_for(state="detached")
    assert choices.count() == 0


def test_many_images_fill_a_gallery_and_a_file(app: Any, folders, pictures, tmp_path: Path):
    (tmp_path / "note.png").write_text("text")
    app.get_by_role("tab", name="Many images").click()
    upload(app, 1, *pictures, tmp_path / "note.png")
    app.get_by_role("button", name="Caption all").click()
    app.get_by_text("1 of 4 images could not be read: note.png").wait_for()
    expected = ituning_hf.caption(folders["day"], pictures)
    assert app.locator(".caption-label").all_inner_texts() == expected
    with app.expect_download() as download:
        app.get_by_text("Download JSON lines").click()
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert rows == [
        {"image": path.name, "captions": [caption]} for path, caption in zip(pictures, expected, strict=True)
    ]
    app.get_by_role("button", name="Clear").click()
    app.get_by_role("button", name="Caption all").click()
    app.get_by_text("Got 0 images").wait_for()
    app.get_by_text("could not be read").wait_for(state="hidden")
    assert app.locator(".caption-label").count() == 0


def test_an_unreadable_image_gives_a_message(app: Any, tmp_path: Path):
    path = tmp_path / "note.png"
    path.write_text("text")
    upload(app, 0, path)
    app.get_by_role("button", name="Caption", exact=True).click()
    app.get_by_text("cannot read note.png: it is not an image").wait_for()
