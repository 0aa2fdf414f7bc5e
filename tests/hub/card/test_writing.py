"""The card in the folder: renewed as long as it is ours, and a person's is left alone."""

from pathlib import Path

import pytest

from ituning_hf.hub.evaluation_results import write_evaluations
from ituning_hf.hub.writing import render_card, write_card


@pytest.fixture
def readme(saved: Path) -> Path:
    return saved / "README.md"


def test_a_rendered_card_is_renewed(saved: Path, readme: Path, results):
    assert readme.read_text() == str(render_card(saved))
    write_evaluations(saved, results)
    assert write_card(saved, repo_id="org/mine")
    assert readme.read_text() == str(render_card(saved, repo_id="org/mine"))
    assert "COCO Karpathy" in readme.read_text()
    assert "your-name" not in readme.read_text()


def test_a_card_is_renewed_from_a_checkout_with_other_line_ends(saved: Path, readme: Path):
    text = readme.read_text()
    readme.write_bytes(text.replace("\n", "\r\n").encode())
    assert write_card(saved)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("## Limits", "## My limits"),
        lambda text: text.replace("library_name", "license: mit\nlibrary_name"),
        lambda text: text + "\nMore of it.\n",
        lambda text: text.rpartition("\n<!--")[0],
        lambda text: "# My own\n",
        lambda text: "",
    ],
)
def test_an_edited_card_is_left_alone(saved: Path, readme: Path, edit):
    edited = edit(readme.read_text())
    readme.write_text(edited)
    assert not write_card(saved, license="mit")
    assert readme.read_text() == edited


def test_a_card_in_another_encoding_is_a_persons(saved: Path, readme: Path):
    readme.write_bytes("# Café".encode("latin-1"))
    assert not write_card(saved)
    assert readme.read_bytes() == b"# Caf\xe9"


def test_licence_and_language_once_given_are_kept(saved: Path, readme: Path):
    write_card(saved, license="mit", language="de")
    write_card(saved)
    assert readme.read_text() == str(render_card(saved, license="mit", language="de"))
    write_card(saved, license="apache-2.0")
    assert readme.read_text() == str(render_card(saved, license="apache-2.0", language="de"))


def test_no_captioner_no_card(tmp_path: Path):
    with pytest.raises(OSError, match="There is no captioner at"):
        write_card(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("license", "MIT\n---"), ("language", "English")])
def test_what_is_no_identifier_is_refused(saved: Path, name: str, value: str):
    before = (saved / "README.md").read_bytes()
    with pytest.raises(ValueError, match=f"{name} is .*, expected the Hub's identifier, such as"):
        write_card(saved, **{name: value})
    assert (saved / "README.md").read_bytes() == before
