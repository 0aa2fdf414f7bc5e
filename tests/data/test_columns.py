"""The Arrow columns of a dataset, compared with lists of records."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ituning_hf.data.columns import CaptionedImage, CaptionedImages, FilePart
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.utils.errors import UserError

from .conftest import save_image

IMAGES = [
    CaptionedImage(
        f"{i}.jpg", tuple(f"caption {j} of {i}" for j in range(i % 4)), Path(f"/photos/{i}.jpg"), i
    )
    for i in range(5000)  # more than one batch
]


@pytest.fixture(scope="module")
def images() -> CaptionedImages:
    return CaptionedImages.from_images(iter(IMAGES))


def test_rows_slices_and_selections_are_those_of_a_list(images: CaptionedImages) -> None:
    assert list(images) == IMAGES
    assert (len(images), images[7], images[-1]) == (5000, IMAGES[7], IMAGES[-1])
    with pytest.raises(IndexError):
        images[5000]
    assert list(images[4990:3:-7]) == IMAGES[4990:3:-7]
    chosen = images.select([4, 4999, 2, 4])
    assert list(chosen) == [chosen[i] for i in range(4)] == [IMAGES[i] for i in (4, 4999, 2, 4)]
    assert list(chosen[1:].select([0, 2])) == [IMAGES[4999], IMAGES[4]]
    assert list(images[:0]) == list(CaptionedImages.from_images([])) == []


def test_columns(images: CaptionedImages) -> None:
    chosen = images.select([3, 4998])
    assert chosen.column("name").to_pylist() == ["3.jpg", "4998.jpg"]
    assert chosen.column("path").to_pylist() == ["/photos/3.jpg", "/photos/4998.jpg"]
    assert images.column("image_id").to_pylist() == list(range(5000))
    assert images[10:12].column("captions").to_pylist() == [list(IMAGES[i].captions) for i in (10, 11)]


def test_sources(tmp_path: Path) -> None:
    photo = save_image(tmp_path / "a.png", (9, 8, 7))
    content = photo.read_bytes()
    (tmp_path / "shard").write_bytes(b"12345" + content + b"678")
    part = FilePart(tmp_path / "shard", 5, len(content))
    given = [CaptionedImage(str(i), ("a",), source) for i, source in enumerate((photo, content, part))]
    images = CaptionedImages.from_images(given)
    assert list(images) == given
    for image in images:
        assert (image.read(), image.num_bytes) == (content, len(content))
        assert image.load().getpixel((0, 0)) == (9, 8, 7)
    for lost in (photo, part.path):
        lost.unlink()
    for image in (images[0], images[2]):
        with pytest.raises(UnreadableImageError, match=r"^cannot read .*(a\.png|2)"):
            image.load()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([42, 7, None, -3], [42, 7, None, -3]),
        ([None], [None]),
        ([42, "a", None, 7], ["42", "a", None, "7"]),
        (["007", "12"], ["007", "12"]),
        ([2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
        ([2**63, 1], [str(2**63), "1"]),
    ],
)
def test_ids_are_integers_if_all_of_them_are(given: list, expected: list) -> None:
    images = CaptionedImages.from_images(
        CaptionedImage(str(i), ("a",), b"", image_id) for i, image_id in enumerate(given)
    )
    assert [image.image_id for image in images] == images.column("image_id").to_pylist() == expected


def test_concatenation(images: CaptionedImages) -> None:
    both = CaptionedImages.concatenate([images[:3], images.select([8, 5]), images[:0]])
    assert list(both) == [IMAGES[i] for i in (0, 1, 2, 8, 5)]


def test_the_fingerprint_depends_on_names_captions_and_order(images: CaptionedImages) -> None:
    def fingerprint(*rows: tuple[str, list[str]]) -> str:
        made = CaptionedImages.from_images(CaptionedImage(name, tuple(texts), b"") for name, texts in rows)
        return made.fingerprint()

    assert fingerprint(("ab", ["c"]), ("d", [])) == fingerprint(("ab", ["c"]), ("d", []))
    different = [
        fingerprint(("ab", ["c"]), ("d", [])),
        fingerprint(("a", ["c"]), ("bd", [])),
        fingerprint(("ab", ["c"]), ("D", [])),
        fingerprint(("ab", []), ("d", ["c"])),
        fingerprint(("ab", ["c", ""]), ("d", [])),
        fingerprint(("d", []), ("ab", ["c"])),
        fingerprint(("ab", ["c"])),
        fingerprint(),
    ]
    assert len(set(different)) == len(different)
    # not on how the rows are divided into chunks
    parts = [images[:3], images[3:2500], images.select(range(2500, 5000)[::-1]).select(range(2500)[::-1])]
    assert CaptionedImages.concatenate(parts).fingerprint() == images.fingerprint()


def test_a_file_name_that_is_not_utf_8_is_read_back() -> None:
    image = CaptionedImage("caf\udce9.jpg", ("a",), Path("photos/caf\udce9.jpg"))
    assert list(CaptionedImages.from_images([image])) == [image]


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"jpg' is not valid Unicode: rename the file"):
        CaptionedImages.from_images([CaptionedImage("half \ud83d.jpg", ("a",), Path("a"))])


def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full_device(**_: str) -> tuple[int, str]:
        (tmp_path / "file").touch()
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "file")

    monkeypatch.setattr(tempfile, "mkstemp", open_full_device)
    with pytest.raises(UserError, match=rf"temporary file in {tmp_path}: free some, or set TMPDIR"):
        CaptionedImages.from_images(IMAGES)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, pickle, sys
from pathlib import Path
from ituning_hf.data.columns import CaptionedImage, CaptionedImages

images = CaptionedImages.from_images([CaptionedImage(n, ("a",), Path(n)) for n in ("a", "b")])
if os.fork() == 0:
    sys.exit(images[1].name != "b")  # runs the exit handlers of this process
assert os.wait()[1] == 0
(file,) = Path(os.environ["TMPDIR"]).iterdir()
pickled = pickle.dumps(images)  # as for a process that is not forked
assert str(file).encode() in pickled
assert pickle.loads(pickled)[1].name == "b"
print("read by both")
"""


def test_processes_share_one_temporary_file_that_its_owner_removes(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    env = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "read by both\n"
    assert list(folder.iterdir()) == []
