import pickle
from pathlib import Path

import pytest

from ituning_hf.data.records import CaptionedImage, check_images_exist, clean_caption
from ituning_hf.data.scenes import make_scene

from .conftest import save_image


def test_cleaning_collapses_white_space() -> None:
    assert clean_caption("  a dog\r\n  runs\t\u00a0fast . ") == "a dog runs fast ."


def test_loads_a_file(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", (1, 2, 3))
    image = CaptionedImage("a.png", ("a",), path).load()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (40, 34), (1, 2, 3))


def test_loads_a_scene() -> None:
    scene = make_scene(0, 5)
    assert CaptionedImage("scene", ("a",), scene).load().tobytes() == scene.render().tobytes()


def test_records_are_pickled(tmp_path: Path) -> None:
    for source in (tmp_path / "a.png", make_scene(0, 5)):
        record = CaptionedImage("a", ("a",), source)
        assert pickle.loads(pickle.dumps(record)) == record


def test_missing_images_make_one_error(tmp_path: Path) -> None:
    there = save_image(tmp_path / "there.png")
    names = ["a.png", "b.png", "c.png", "d.png"]
    records = [CaptionedImage(name, ("a",), tmp_path / name) for name in names]
    records += [
        CaptionedImage("there.png", ("a",), there),
        CaptionedImage("scene", ("a",), make_scene(0, 0)),
    ]
    expected = "4 of the split's 6 images are missing \\(.*a.png, .*b.png, .*c.png, ...\\): unpack them"
    with pytest.raises(FileNotFoundError, match=expected):
        check_images_exist(records)
    check_images_exist(records[4:])


def test_the_folders_of_missing_images_are_named(tmp_path: Path) -> None:
    save_image(tmp_path / "train2014" / "0.jpg")
    folders = ["train2014", "val2014", "val2014", "train2014", "elsewhere", "more"]
    records = [
        CaptionedImage(str(i), ("a",), tmp_path / folder / f"{i}.jpg") for i, folder in enumerate(folders)
    ]
    with pytest.raises(FileNotFoundError) as caught:
        check_images_exist(records)
    assert str(caught.value).endswith(
        "): unpack them there, give --image_root, the folder that their names are relative to, or mend the "
        f"names. Missing are 2 of 2 in {tmp_path}/val2014 (there is no val2014/ in {tmp_path}), 1 of 2 in "
        f"{tmp_path}/train2014, 1 of 1 in {tmp_path}/elsewhere (there is no elsewhere/ in {tmp_path}), ..."
    )


def test_empty_images_are_told_and_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.png", "b.png", "c.png"]
    records = [CaptionedImage(name, ("a",), tmp_path / name) for name in names]
    for name in names[:2]:
        save_image(tmp_path / name)
    (tmp_path / "c.png").touch()
    check_images_exist(records)
    (message,) = caplog.messages
    place = tmp_path / "c.png"
    assert (
        message == f"1 of the split's 3 images are empty files or none ({place}): unpack or copy them again"
    )
