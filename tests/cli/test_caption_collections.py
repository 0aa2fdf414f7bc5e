"""`ituning caption` for collections: its outputs, what exists already, kills, and several processes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import Command, run_on_two, signal_in
from small_models import contents, randomize_adapters, read_lines

from ituning_hf import iter_captions, load_captioner
from ituning_hf.cli import main
from ituning_hf.data.images import iter_images
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.inference import job, loading, outputs
from ituning_hf.inference.xmp import EMPTY_PACKET, get_description, set_description

SEARCH = {"num_beams": 2, "max_new_tokens": 5}
OPTIONS = ["--num_beams", "2", "--max_new_tokens", "5", "--batch_size", "2", "--device", "cpu"]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine pictures, two of them in a subfolder."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "sub").mkdir()
    for i in range(9):
        image = Image.linear_gradient("L").rotate(40 * i).convert("RGB")
        image.paste((28 * i, 250 - 28 * i, 40 * i % 256), (0, 0, 20 + 25 * i, 200))
        image.resize((40, 40)).save(folder / ("sub" if i > 6 else "") / f"{i}.png")
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the nine pictures in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn, "photos")
    return Path("photos")


@pytest.fixture(scope="session")
def captions(drawn: Path, saved_captioner: Path) -> dict[str, list[str]]:
    """The captions of the nine pictures, two of each, by their paths in the folder."""
    model, processor = load_captioner(saved_captioner, device="cpu")
    paths = [*map(Path, iter_images(drawn))]
    results = iter_captions(model, processor, paths, num_captions=2, batch_size=2, **SEARCH)
    found = {path.relative_to(drawn).as_posix(): r.captions for path, r in zip(paths, results, strict=True)}
    assert len({tuple(texts) for texts in found.values()}) > 6  # most can be told apart
    return {name: [" ".join(text.split()) for text in texts] for name, texts in found.items()}


@pytest.fixture
def caption(saved_captioner: Path, photos: Path) -> Callable[..., int]:
    """Run `ituning caption` with a saved captioner."""
    return lambda *arguments: main(["caption", "--model", str(saved_captioner), *OPTIONS, *arguments])


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


def hidden(folder: Path = Path()) -> list[str]:
    """Return the work that is left in a folder."""
    return sorted(path.name for path in folder.rglob(".*"))


def read_rows(path: Path) -> list[tuple[str, list[str]]]:
    """Read an output with a reader that is not ours."""
    if path.suffix == ".jsonl":
        return [(row["image"], row["captions"]) for row in read_lines(path)]
    if path.suffix == ".parquet":
        return [(row["image"], row["captions"]) for row in pq.read_table(path).to_pylist()]
    rows: dict[str, list[str]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").split("\n")):
        rows.setdefault(row["image"], []).append(row["caption"])
    return list(rows.items())


@pytest.mark.parametrize("suffix", outputs.TABLE_SUFFIXES)
def test_a_file_of_rows_is_a_dataset_for_any_working_directory(
    caption, captions, tmp_path, suffix, monkeypatch
):
    outside = tmp_path / "0.png"
    Path("photos/0.png").rename(outside)
    Path("out").mkdir()
    Path("photos").rename("out/photos")
    file = Path("out") / f"captions{suffix}"
    assert caption("out/photos", str(outside), "--num_captions", "2", "--output", str(file)) == 0
    expected = [(f"photos/{name}", texts) for name, texts in captions.items() if name != "0.png"]
    assert read_rows(file) == [*expected, (str(outside), captions["0.png"])]
    assert hidden() == []
    monkeypatch.chdir("/")
    images = load_captioned_images(tmp_path / file, "train", val_share=0.01)
    assert {image.name: [*image.captions] for image in images}.items() <= dict(
        read_rows(tmp_path / file)
    ).items()
    assert len(images) == 8
    assert [image.load().size for image in images] == [(40, 40)] * 8


@pytest.mark.parametrize("suffix", outputs.TABLE_SUFFIXES)
def test_rows_of_a_file_stay_and_new_ones_are_added(caption, captions, capsys, suffix):
    file, folder = Path(f"captions{suffix}"), Path("photos")
    for name in ("3.png", "sub/8.png"):
        (folder / name).rename(f"{Path(name).stem}.later")
    assert caption("photos", "--output", str(file)) == 0
    before = file.read_bytes()
    if suffix != ".parquet":
        before = before.replace(captions["1.png"][0].encode(), b"a caption that somebody corrected").rstrip(
            b"\n"
        )
        file.write_bytes(before)
    rows = read_rows(file)
    capsys.readouterr()
    assert caption("photos", "--output", str(file)) == 0
    assert capsys.readouterr().err.startswith("ituning: nothing to do: all images have captions")
    for name in ("3.png", "sub/8.png"):
        Path(f"{Path(name).stem}.later").rename(folder / name)
    assert caption("photos", "--output", str(file)) == 0
    assert f"captions of 2 images written to {file}; 7 were there\n" in capsys.readouterr().err
    assert read_rows(file)[:7] == rows
    assert [name for name, _ in read_rows(file)[7:]] == ["photos/3.png", "photos/sub/8.png"]
    assert suffix == ".parquet" or file.read_bytes().startswith(before + b"\n")
    assert hidden() == []


def test_overwrite_replaces_the_rows_of_the_given_pictures(caption, captions):
    file = Path("captions.jsonl")
    rows = [f'{{"image": "{name}", "captions": ["by hand"]}}\n' for name in ("photos/0.png", "elsewhere.png")]
    file.write_text("".join(rows))
    assert caption("photos", "--output", str(file), "--overwrite") == 0
    assert read_rows(file) == [
        ("elsewhere.png", ["by hand"]),
        *((f"photos/{name}", texts[:1]) for name, texts in captions.items()),
    ]
    assert Path("captions.jsonl.bak").read_text() == "".join(rows)


def test_a_folder_that_moves_with_its_captions_keeps_them(caption, monkeypatch, capsys):
    as_rank(monkeypatch, 0, 2)
    assert caption("photos", "--output", "photos/captions.jsonl") == 0
    as_rank(monkeypatch, 0, 1)
    for old, new, message in [
        ("photos", "album", "captions of 9 images written"),
        ("album", "b", "nothing to do"),
    ]:
        Path(old).rename(new)
        assert caption(new, "--output", f"{new}/captions.jsonl") == 0
        assert message in capsys.readouterr().err


def test_a_caption_file_beside_each_picture(caption, captions, capsys):
    Path("photos/1.txt").write_text("by hand\n")
    Path("photos/2.caption").write_text("by hand\n")
    before = contents("photos")
    assert caption("photos", "--num_captions", "2", "--format", "txt") == 0
    new = {Path(n).with_suffix(".txt").as_posix(): "".join(f"{t}\n" for t in c) for n, c in captions.items()}
    del new["1.txt"], new["2.txt"]
    after = contents("photos")
    assert {name: text.decode() for name, text in after.items() if name not in before} == new
    assert before.items() <= after.items()
    assert hidden() == []
    assert caption("photos", "--num_captions", "2", "--format", "txt") == 0
    assert "all images have captions" in capsys.readouterr().err
    assert contents("photos") == after


def test_caption_files_of_a_glob(caption, captions):
    assert caption("photos/**/*.png", "--format", "txt") == 0
    found = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.txt"))
    assert found == [str(Path(name).with_suffix(".txt")) for name in sorted(captions)]
    assert hidden() == []


def test_pictures_with_one_caption_file_are_refused_before_work(caption, capsys):
    shutil.copy("photos/1.png", "photos/1.jpg")
    before = contents("photos")
    assert caption("photos", "--format", "txt") == 2
    assert "1 caption files would each belong to several images, such as " in capsys.readouterr().err
    assert contents("photos") == before
    assert caption("photos", "--format", "xmp") == 0
    assert contents("photos").keys() == before.keys() | {f"{name}.xmp" for name in before}


def test_an_xmp_sidecar_of_each_picture(caption, captions, capsys):
    by_hand, bare = Path("photos/1.png.xmp"), Path("photos/2.png.xmp")
    by_hand.write_bytes(set_description(EMPTY_PACKET, "by hand"))
    bare.write_bytes(EMPTY_PACKET.replace(b"</rdf:RDF>", b"<!-- mine --></rdf:RDF>"))
    assert caption("photos", "--format", "xmp") == 0
    found = {name: get_description(Path(f"photos/{name}.xmp").read_bytes()) for name in captions}
    not_xml = "[\x01-\x08\x0e-\x1b]"
    expected = {
        name: " ".join(re.sub(not_xml, "\ufffd", text).split()) for name, (text, _) in captions.items()
    }
    assert found == expected | {"1.png": "by hand"}
    assert b"<!-- mine -->" in bare.read_bytes()
    assert Path("photos/2.png.xmp.bak").read_bytes() == EMPTY_PACKET.replace(b"</", b"<!-- mine --></", 1)
    by_hand.write_text("not XMP")
    assert caption("photos", "--format", "xmp") == 2
    assert (
        "1.png.xmp is not XMP (syntax error: line 1, column 0): correct or remove it"
        in capsys.readouterr().err
    )


def test_an_image_folder(caption, captions):
    assert caption("photos", "--num_captions", "2", "--format", "imagefolder") == 0
    expected = [{"file_name": name, "captions": texts} for name, texts in captions.items()]
    assert read_lines("photos/metadata.jsonl") == expected
    table = datasets.load_dataset("imagefolder", data_dir="photos", split="train")
    assert sorted(table["captions"]) == sorted(captions.values())
    images = load_captioned_images("photos", "train", val_share=0.01)
    assert {image.name: [*image.captions] for image in images}.items() <= captions.items()


def test_a_folder_of_parts(caption, captions, monkeypatch):
    """The images of each process are those that a hash of their names selects."""
    Path("photos").rename("parts")
    later = Path("parts/3.png").rename("later")
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        assert caption("parts", "--output", "parts/") == 0
    later.rename("parts/3.png")
    as_rank(monkeypatch, 0, 1)
    assert caption("parts", "--output", "parts/") == 0
    expected = {
        "part-00000-of-00001.parquet": ["3.png"],
        "part-00000-of-00002.parquet": ["0.png", "1.png", "2.png", "6.png", "sub/8.png"],
        "part-00001-of-00002.parquet": ["4.png", "5.png", "sub/7.png"],
    }
    found = {file.name: read_rows(file) for file in sorted(Path("parts").glob("*.parquet"))}
    assert found == {file: [(name, captions[name][:1]) for name in names] for file, names in expected.items()}
    assert hidden(Path("parts")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--output", "captions.json"], "--output is 'captions.json', expected a .jsonl, .csv or"),
        (["photos", "--output", "photos.csv"], "expected a .jsonl, .csv or .parquet file"),
        (["photos", "--output", "a.csv", "--format", "txt"], "--output and --format both select where"),
        (["photos", "--format", "xmp", "--num_captions", "2"], "--format xmp has one caption"),
        (["photos/1.png", "--format", "imagefolder"], "--format imagefolder requires one IMAGE"),
        (["photos", "0.png", "--output", "photos/metadata.jsonl"], "describes the images of its folder"),
        (["photos", "--output", "blocked.csv"], "error: blocked.csv cannot be written to"),
        (["photos", "--output", "parts"], "is of another number of processes than 1"),
    ],
)
def test_a_mistake_is_refused_before_work(caption, capsys, arguments, message):
    shutil.copy("photos/0.png", "0.png")
    Path("photos.csv").mkdir()
    Path(".blocked.csv.parts").touch()
    Path("parts/.part-00000-of-00002.parquet.parts").mkdir(parents=True)
    before = contents(".")
    assert caption(*arguments) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert message in output.err
    assert contents(".") == before


def test_an_unreadable_picture_has_no_row_and_is_tried_again(caption, capsys):
    picture = Path("photos/3.png")
    content = picture.read_bytes()
    picture.write_bytes(content[:50])
    for _ in range(2):
        assert caption("photos", "--output", "captions.csv") == 1
        first, second, _ = capsys.readouterr().err.splitlines()
        assert first.startswith("ituning: cannot read photos/3.png: it cannot be decoded")
        assert second in [f"ituning: 1 of {n} images could not be read" for n in (9, 1)]
        assert len(read_rows(Path("captions.csv"))) == 8
    picture.write_bytes(content)
    assert caption("photos", "--output", "captions.csv") == 0
    assert read_rows(Path("captions.csv"))[8][0] == "photos/3.png"


def test_a_picture_that_is_given_twice_has_one_row(caption):
    assert (
        caption("photos/1.png", "./photos/1.png", str(Path.cwd() / "photos/1.png"), "--output", "c.jsonl")
        == 0
    )
    assert [name for name, _ in read_rows(Path("c.jsonl"))] == ["photos/1.png"]


@pytest.fixture
def whole(saved_captioner: Path, drawn: Path, tmp_path: Path) -> dict[str, bytes]:
    """The outputs of one process that nobody killed, by suffix."""
    folder = tmp_path / "whole"
    shutil.copytree(drawn, folder / "photos")
    arguments = ["caption", "--model", str(saved_captioner), *OPTIONS, str(folder / "photos")]
    for suffix in outputs.TABLE_SUFFIXES:
        assert main([*arguments, "--output", str(folder / f"captions{suffix}")]) == 0
    return {suffix: (folder / f"captions{suffix}").read_bytes() for suffix in outputs.TABLE_SUFFIXES}


@pytest.fixture
def signalled(saved_captioner: Path, photos: Path) -> Callable[..., Command]:
    """Run `ituning caption` in a process that sends itself a signal in one of its calls of a function."""

    def run(place: str, call: int, signum: int, *arguments: str) -> Command:
        module, function = place.split(".")
        prepare = partial(signal_in, f"ituning_hf.inference.{module}", function, call, signum)
        argv = ["caption", "--model", str(saved_captioner), *OPTIONS, *arguments]
        command = Command(argv, Path("log"), prepare=prepare)
        command.end()
        return command

    return run


@pytest.mark.parametrize("suffix", outputs.TABLE_SUFFIXES)
def test_work_continues_after_kills(signalled, caption, whole, suffix):
    file, journal = Path(f"captions{suffix}"), Path(f".captions{suffix}.parts/0-of-1.jsonl")
    for place, call, lines in [
        ("captioning.load_image", 4, 0),
        ("captioning.generate_captions", 2, 1),
        ("job.clean_caption", 5, 3),
        ("outputs.put_in_place", 1, 5),
        ("job._remove", 1, 5),
    ]:
        command = signalled(place, call, signal.SIGKILL, "photos", "--output", str(file))
        assert command.end() == -signal.SIGKILL, command.printed
        assert journal.read_bytes().count(b'"') > 0 or lines == 0
        with journal.open("ab") as torn:  # as a kill in the middle of a line
            torn.write(b'\n[4, "key", [["a caption th')
        assert file.exists() == (place == "job._remove")
    assert caption("photos", "--output", str(file)) == 0
    assert file.read_bytes() == whole[suffix]
    assert hidden() == []


@pytest.mark.stress
def test_ten_thousand_pictures_killed_ten_times(signalled, caption, tmp_path):
    Path("many").mkdir()
    for i in range(10_000):
        os.link(f"photos/{i % 7}.png", f"many/{i:05d}.png")
    fast = ["--batch_size", "64", "--num_beams", "1", "--max_new_tokens", "4", "--output"]
    assert caption("many", *fast, "whole.jsonl") == 0
    for _ in range(10):
        command = signalled("captioning.generate_captions", 15, signal.SIGKILL, "many", *fast, "killed.jsonl")
        assert command.end() == -signal.SIGKILL, command.printed
    assert Path(".killed.jsonl.parts/0-of-1.jsonl").read_bytes().count(b"\n") == 140
    assert caption("many", *fast, "killed.jsonl") == 0
    assert Path("killed.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert len(read_rows(Path("killed.jsonl"))) == 10_000


def test_sidecars_after_a_kill_are_those_of_whole_work(signalled, caption):
    shutil.copytree("photos", "others")
    assert caption("others", "--format", "txt") == 0
    command = signalled("outputs.draft_of", 6, signal.SIGKILL, "photos", "--format", "txt")
    assert command.end() == -signal.SIGKILL, command.printed
    assert 0 < len([*Path("photos").rglob("*.txt")]) < 9
    assert caption("photos", "--format", "txt") == 0
    assert contents("photos") == contents("others")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_after_a_batch(signalled, caption, whole, signum):
    command = signalled("captioning.generate_captions", 2, signum, "photos", "--output", "captions.jsonl")
    assert command.end() == 128 + signum
    assert "ituning: finishing the batch; Ctrl-C once more ends at once" in command.printed
    assert f"stopped by {signum.name} after a batch; the same command continues" in command.printed
    assert Path(".captions.jsonl.parts/0-of-1.jsonl").read_bytes().count(b"\n") == 2
    assert caption("photos", "--output", "captions.jsonl") == 0
    assert Path("captions.jsonl").read_bytes() == whole[".jsonl"]


@pytest.mark.parametrize("suffix", outputs.TABLE_SUFFIXES)
def test_two_processes_write_what_one_writes(saved_captioner, photos, whole, suffix, tmp_path):
    argv = ["caption", "--model", str(saved_captioner), *OPTIONS, "photos", "--output", f"captions{suffix}"]
    runs = run_on_two(argv, tmp_path)
    lines = [line for run in runs for line in run.printed.splitlines() if "\t" in line]
    assert sorted(line.split("\t")[0] for line in lines) == sorted(iter_images("photos"))
    assert Path(f"captions{suffix}").read_bytes() == whole[suffix]
    assert hidden() == []


def test_two_processes_of_torchrun(saved_captioner, photos, whole):
    argv = [
        "--nproc_per_node",
        "2",
        "-m",
        "ituning_hf.cli",
        "caption",
        "--model",
        str(saved_captioner),
        *OPTIONS,
    ]
    argv += ["photos", "--output", "captions.jsonl"]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", *argv], check=True)
    assert Path("captions.jsonl").read_bytes() == whole[".jsonl"]


def test_another_number_of_processes_continues(photos, whole, caption, monkeypatch, capsys):
    as_rank(monkeypatch, 1, 3)
    assert caption("photos", "--output", "captions.jsonl") == 0
    assert "the last process that finishes writes captions.jsonl" in capsys.readouterr().err
    for rank in range(2):
        assert not Path("captions.jsonl").exists()
        as_rank(monkeypatch, rank, 2)
        assert caption("photos", "--output", "captions.jsonl") == 0
    assert Path("captions.jsonl").read_bytes() == whole[".jsonl"]
    assert hidden() == []


def test_a_process_that_starts_late_does_not_begin_again(photos, caption, monkeypatch):
    Path("photos/1.png").write_text("no picture")
    arguments = ("photos/1.png", "--output", "captions.jsonl", "--overwrite")
    for rank, exit_code in enumerate((1, 0)):
        as_rank(monkeypatch, rank, 2)
        assert caption(*arguments) == exit_code
        assert Path("captions.jsonl").exists() == (rank == 1)
    assert hidden() == []


def test_processes_without_a_common_folder(photos, whole, caption, monkeypatch, tmp_path, capsys):
    """The journals of one host are copied to the other one."""
    for rank in range(2):
        shutil.copytree(tmp_path / "photos", tmp_path / f"host{rank}/photos")
        monkeypatch.chdir(tmp_path / f"host{rank}")
        as_rank(monkeypatch, rank, 2)
        assert caption("photos", "--output", "captions.jsonl") == 0
        assert not Path("captions.jsonl").exists()
    journal = Path("../host0/.captions.jsonl.parts/0-of-2.jsonl").read_text()
    copy = Path(".captions.jsonl.parts/0-of-2.jsonl")
    copy.write_text(journal.replace(json.loads(journal.splitlines()[1])[1], "of other work"))
    assert caption("photos", "--output", "captions.jsonl") == 2
    assert "0-of-2.jsonl is of other images or settings" in capsys.readouterr().err
    copy.write_text(journal)
    assert caption("photos", "--output", "captions.jsonl") == 0
    assert "captions of 9 images written to captions.jsonl" in capsys.readouterr().err
    assert Path("captions.jsonl").read_bytes() == whole[".jsonl"]
    assert hidden() == []


def test_nothing_is_begun_if_another_process_has_finished(photos, caption, monkeypatch, capsys):
    """The other process finishes while this one loads the captioner."""
    assert caption("photos", "--output", "captions.jsonl") == 0
    before = Path("captions.jsonl").read_bytes()
    monkeypatch.setattr(job, "has_work", lambda output, names: True)
    assert caption("photos", "--output", "captions.jsonl") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert Path("captions.jsonl").read_bytes() == before
    assert hidden() == []


def test_unfinished_work_is_not_continued_with_other_settings(
    photos, caption, monkeypatch, capsys, captioner
):
    as_rank(monkeypatch, 0, 2)
    assert caption("photos", "--output", "captions.jsonl") == 0
    before = contents(".")
    for name, value, was, now in [
        ("batch_size", "3", "2", "3"),
        ("prompt", "a dog", "None", "'a dog'"),
        ("num_beams", "3", "2", "3"),
        ("max_new_tokens", "6", "5", "6"),
        ("dtype", "bfloat16", "None", "'bfloat16'"),
        ("overwrite", "true", "False", "True"),
    ]:
        capsys.readouterr()
        assert caption("photos", "--output", "captions.jsonl", f"--{name}={value}") == 2
        message = f"unfinished work has {name} {was}, and now it is {now}: give the same to continue"
        assert message in capsys.readouterr().err
    digest = loading.captioner_digest
    monkeypatch.setattr(loading, "captioner_digest", lambda model: digest(randomize_adapters(model, seed=3)))
    assert caption("photos", "--output", "captions.jsonl") == 2
    assert "unfinished work has captioner" in capsys.readouterr().err
    assert contents(".") == before


def test_pictures_that_come_and_go_during_the_work(photos, caption, monkeypatch, capsys):
    as_rank(monkeypatch, 0, 2)
    assert caption("photos", "--output", "captions.jsonl") == 0
    Path("photos/2.png").unlink()
    Path("photos/3.png").rename("elsewhere.png")
    shutil.copy("photos/1.png", "photos/2 new.png")
    assert caption("elsewhere.png", "--output", "captions.jsonl") == 2
    assert "unfinished work is on other images" in capsys.readouterr().err
    as_rank(monkeypatch, 0, 1)
    assert caption("photos", "--output", "captions.jsonl") == 1
    error = capsys.readouterr().err
    assert "photos/2.png: there is no such file" in error
    assert "2 of 9 images could not be read" in error
    assert "1 new images are captioned by the next run" in error
    assert len(read_rows(Path("captions.jsonl"))) == 7
    assert caption("photos", "--output", "captions.jsonl") == 0
    assert [name for name, _ in read_rows(Path("captions.jsonl"))][7:] == ["photos/2 new.png"]


def test_files_that_are_no_pictures_are_counted(caption, capsys):
    for name in ("a.TXT", "sub/b.txt", "c.mp4", "README", "by Mr. Smith", ".hidden"):
        Path("photos", name).write_text("no picture")
    Path("photos/1.png").rename("photos/1.jpe")
    assert caption("photos", "--output", "captions.jsonl") == 0
    assert capsys.readouterr().err == (
        "ituning: left out 3 files that are not images: 2 (no suffix), 1 .mp4\n"
        "ituning: captions of 9 images written to captions.jsonl\n"
    )
    assert len(read_rows(Path("captions.jsonl"))) == 9


@pytest.mark.parametrize("kind", ["captions.jsonl", "captions.parquet", "saved", "shards/{000..001}.tar"])
def test_the_pictures_of_a_dataset(caption, captions, kind):
    files = sorted(name for name in captions if "/" not in name)
    rows = [{"image": f"photos/{name}", "captions": ["a human caption"]} for name in files]
    names = [f"photos/{name}" for name in files]
    if kind == "captions.jsonl":
        Path(kind).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "captions.parquet":
        pq.write_table(pa.Table.from_pylist(rows), kind)
    elif kind == "saved":
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.map(lambda row: row, features=table.features).save_to_disk(kind)
    else:
        Path("shards").mkdir()
        for i in range(2):
            with tarfile.open(f"shards/00{i}.tar", "w") as shard:
                for name in files[i::2]:
                    shard.add(f"photos/{name}", name)
    assert caption(kind, "--batch_size", "2", "--output", "out.jsonl") == 0
    found = read_rows(Path("out.jsonl"))
    if kind in ("captions.jsonl", "captions.parquet"):  # the others name their images themselves
        assert [name for name, _ in found] == names
    assert {tuple(texts) for _, texts in found} == {tuple(captions[name][:1]) for name in files}
