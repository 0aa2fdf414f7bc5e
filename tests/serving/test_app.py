"""What the app computes for a request, and its command. test_app_in_browser.py clicks its buttons."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

import ituning_hf
from ituning_hf.cli import main
from ituning_hf.serving.app_requests import MAX_FILES, AppRequests
from ituning_hf.serving.captioners import load_captioners

OPTIONS = {"num_beams": 3, "num_captions": 2, "prompt": "a dog", "max_new_tokens": 6}


@pytest.fixture(scope="module")
def requests(saved_captioner: Path) -> Iterator[AppRequests]:
    requests = AppRequests(load_captioners([f"day={saved_captioner}"], device="cpu"))
    yield requests
    requests.folder.cleanup()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """An image that is stored on its side, and a file that is not an image."""
    exif = Image.Exif()
    exif[274] = 6
    Image.linear_gradient("L").resize((40, 60)).save(tmp_path / "dog.jpg", exif=exif)
    (tmp_path / "<b>.png").write_text("text")
    return [str(tmp_path / name) for name in ("dog.jpg", "<b>.png")]


def test_the_defaults_are_those_of_the_captioner(requests: AppRequests, saved_captioner: Path, files):
    beams, length = requests.defaults("day")
    found = requests.caption("day", files[0], beams, 1, "", length)
    assert found == [ituning_hf.caption(saved_captioner, files[0])]


def test_several_captions_are_all_different(requests: AppRequests, saved_captioner: Path, files):
    found = requests.caption("day", files[0], *OPTIONS.values())
    assert found == list(dict.fromkeys(ituning_hf.caption(saved_captioner, files[0], **OPTIONS)))
    assert all(caption.startswith("a dog") for caption in found)


def test_the_page_explains_the_chosen_caption(requests: AppRequests, saved_captioner: Path, files):
    page = requests.explain("day", files[0], "a dog runs")
    assert page == ituning_hf.explain(saved_captioner, files[0], text="a dog runs").to_html()


def test_many_files_give_a_gallery_and_tables(
    requests: AppRequests, saved_captioner: Path, files, monkeypatch
):
    warnings: list[str] = []
    monkeypatch.setattr(gr, "Warning", warnings.append)
    done: list[tuple[int, int]] = []
    shown, jsonl, csv, note = requests.caption_files("day", files, *OPTIONS.values(), progress=done.append)
    captions = ituning_hf.caption(saved_captioner, files[0], **OPTIONS)
    [(thumbnail, text)] = shown
    assert (thumbnail.size, text) == ((60, 40), "\n".join(captions))
    assert json.loads(Path(jsonl).read_text()) == {"image": "dog.jpg", "captions": captions}
    assert Path(csv).read_text().splitlines()[0] == "image,caption"
    assert done == [(0, 2), (1, 2)]
    assert note == "1 of 2 images could not be read: <b>.png"
    assert [warning.partition(" is not")[0] for warning in warnings] == ["cannot read &lt;b&gt;.png: it"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda app, files: app.caption("day", None, 5, 1, "", 9), "There is no image"),
        (lambda app, files: app.caption("day", files[1], 5, 1, "", 9), "cannot read &lt;b&gt;.png"),
        (lambda app, files: app.caption("day", files[0], 2, 3, "", 9), "Captions is 3 and Beams is 2: raise"),
        (
            lambda app, files: app.caption_files("day", files, 1, 2, "", 9, progress=print),
            "Captions is 2 and Beams is 1",
        ),
        (lambda app, files: app.caption("day", files[0], 2, 1, "a " * 48, 9), "positions"),
        (lambda app, files: app.explain("day", files[0], ""), "text to explain is empty"),
        (lambda app, files: app.caption_files("day", None, 1, 1, "", 9, progress=print), "Got 0 images"),
        (
            lambda app, files: app.caption_files("day", files * MAX_FILES, 1, 1, "", 9, progress=print),
            f"expected 1 to {MAX_FILES}",
        ),
    ],
)
def test_errors_are_shown_in_the_browser(requests: AppRequests, files, request_, message: str):
    with pytest.raises(gr.Error, match=message):
        request_(requests, files)


def test_the_command_names_the_missing_extra(saved_captioner: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(saved_captioner)]) == 2
    assert "pip install 'ituning_hf[app]'" in capsys.readouterr().err


def test_a_port_in_use_is_refused(saved_captioner: Path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["app", str(saved_captioner), "--port", str(other.getsockname()[1])]) == 2
    assert "choose another address or port" in capsys.readouterr().err
