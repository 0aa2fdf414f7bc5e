"""The `ituning` command, from its arguments to its output and exit code."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import edit_json, make_captioner
from tqdm import tqdm
from transformers.utils import logging

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.cli import main
from ituning_hf.cli.description import format_description
from ituning_hf.data.images import load_image
from ituning_hf.hub.inspection import describe
from ituning_hf.inference.int8 import Int8Linear
from ituning_hf.utils.terminal import printable

SHORT = ["--num_beams", "3", "--max_new_tokens", "7", "--device", "cpu"]
PACKAGE = Path(ituning_hf.__file__).parent


@pytest.fixture(autouse=True)
def _transformers_says_as_much_as_before() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def saved(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    make_captioner(backbones).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder "photos" in the working directory: b.png, c.jpg and sub/a.png, and a text beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for i, name in enumerate(("b.png", "c.jpg", "sub/a.png")):
        image = Image.linear_gradient("L").rotate(90 * i).convert("RGB")
        image.paste((40 * i, 200, 80 * i), (0, 0, 90, 90 + 40 * i))
        image.save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("not a photograph")
    return Path("photos")


def expected_captions(saved: Path, path: str, **options: Any) -> list[str]:
    """What the model's own means say of one image, with the settings of `SHORT`."""
    model, processor = ITuningForCaptioning.from_pretrained(saved), ITuningProcessor.from_pretrained(saved)
    inputs = processor(images=load_image(path), text=options.pop("prompt", ""))
    ids = model.generate(**inputs, **{"num_beams": 3, "max_new_tokens": 7} | options)
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


def as_line(path: str, captions: list[str]) -> str:
    return "\t".join([path, *(printable(" ".join(caption.split())) for caption in captions)])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_captions_are_the_models(saved, photos, capsys):
    files = ["photos/c.jpg", "photos/b.png"]
    code = main(["caption", *files, "--model", str(saved), *SHORT, "--output", "captions.jsonl"])
    expected = [(file, expected_captions(saved, file)) for file in files]
    assert code == 0
    assert read_lines(Path("captions.jsonl")) == [{"image": f, "captions": c} for f, c in expected]
    output = capsys.readouterr()
    assert output.out.splitlines() == [as_line(file, captions) for file, captions in expected]
    assert output.err == ""


def test_options_reach_the_model(saved, photos, capsys):
    arguments = ["--num_captions", "2", "--prompt", "a dog", "--batch_size", "1", "--dtype", "bfloat16"]
    main(["caption", "photos/b.png", "--model", str(saved), *SHORT, *arguments, "--output", "c.jsonl"])
    model = ITuningForCaptioning.from_pretrained(saved, dtype=torch.bfloat16)
    processor = ITuningProcessor.from_pretrained(saved)
    inputs = processor(images=load_image("photos/b.png"), text="a dog")
    ids = model.generate(**inputs, num_beams=3, max_new_tokens=7, num_return_sequences=2)
    texts = [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    assert read_lines(Path("c.jsonl")) == [{"image": "photos/b.png", "captions": texts}]
    assert capsys.readouterr().out == as_line("photos/b.png", texts) + "\n"


def test_the_language_model_may_be_in_int8(saved, photos, capsys, monkeypatch):
    generated = ITuningForCaptioning.generate
    layers = []

    def looking(self, **kwargs):
        layers.append(type(self.get_output_embeddings()))
        return generated(self, **kwargs)

    monkeypatch.setattr(ITuningForCaptioning, "generate", looking)
    assert main(["caption", "photos/b.png", "--model", str(saved), *SHORT, "--quantization", "int8"]) == 0
    assert capsys.readouterr().out.startswith("photos/b.png\t")
    assert layers == [Int8Linear]


def captioned(saved: Path, capsys: pytest.CaptureFixture[str], *images: str) -> list[str]:
    """The paths that the command printed, in their order."""
    assert main(["caption", *images, "--model", str(saved), *SHORT]) == 0
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (["photos"], ["photos/b.png", "photos/c.jpg", "photos/sub/a.png"]),
        (["photos/sub", "photos/b.png"], ["photos/sub/a.png", "photos/b.png"]),
        (["photos/*.*g"], ["photos/b.png", "photos/c.jpg"]),
        (["photos/**/*.png"], ["photos/b.png", "photos/sub/a.png"]),
        (["photos/[b].png", "photos/b.png"], ["photos/b.png", "photos/b.png"]),
    ],
)
def test_files_folders_and_globs(saved, photos, capsys, images, found):
    assert captioned(saved, capsys, *images) == found


def test_a_file_whose_name_looks_like_a_glob(saved, photos, capsys):
    (photos / "b.png").rename(photos / "[1].png")
    assert captioned(saved, capsys, "photos/[1].png") == ["photos/[1].png"]


def test_paths_on_standard_input(saved, photos, capsys, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"photos/c.jpg\r\n\nphotos/b.png"))
    monkeypatch.setattr(sys, "stdin", lines)
    assert captioned(saved, capsys, "photos/sub", "-") == ["photos/sub/a.png", "photos/c.jpg", "photos/b.png"]


def test_a_file_name_that_is_not_unicode(saved, photos, capsys):
    name = os.fsdecode(b"photos/caf\xe9 \xc3\xa9.png")
    (photos / "b.png").rename(name)
    main(["caption", "photos", "--model", str(saved), *SHORT, "--output", "captions.jsonl"])
    assert "photos/caf\\udce9 é.png\t" in capsys.readouterr().out
    assert name in [line["image"] for line in read_lines(Path("captions.jsonl"))]


def test_an_unreadable_image_fails_at_the_end_and_harms_no_other(saved, photos, capsys):
    files = ["photos/notes.txt", "photos/b.png", "photos/missing.png", "photos/c.jpg"]
    assert main(["caption", *files, "--model", str(saved), *SHORT, "--output", "captions.jsonl"]) == 1
    output = capsys.readouterr()
    good = [files[1], files[3]]
    assert output.out.splitlines() == [as_line(file, expected_captions(saved, file)) for file in good]
    assert [line["image"] for line in read_lines(Path("captions.jsonl"))] == good
    first, second, last = output.err.splitlines()
    assert first.startswith("ituning: cannot read photos/notes.txt: it is none of JPEG")
    assert second.startswith("ituning: cannot read photos/missing.png: there is no such file")
    assert last == "ituning: 2 of 4 images could not be read"


def test_rotated_palette_and_16_bit_images_are_accepted(saved, photos, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("photos/b.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save("photos/turned.png", exif=exif)
        image.quantize(9).save("photos/palette.png")
        image.convert("L").convert("I;16").point(lambda value: value * 257).save("photos/deep.png")
    files = ["photos/b.png", "photos/turned.png", "photos/palette.png", "photos/deep.png"]
    assert main(["caption", *files, "--model", str(saved), *SHORT]) == 0
    captions = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert captions[0] == captions[1]
    assert len(captions) == 4


def test_results_are_written_as_each_batch_is_done(saved, photos, capsys, monkeypatch):
    batches = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        batches.append((capsys.readouterr().out.count("\n"), len(read_lines(Path("captions.jsonl")))))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    generate = ITuningForCaptioning.generate
    monkeypatch.setattr(ITuningForCaptioning, "generate", interrupted)
    arguments = ["--batch_size", "1", "--output", "captions.jsonl"]
    assert main(["caption", "photos", "--model", str(saved), *SHORT, *arguments]) == 130
    assert batches == [(0, 0), (1, 1), (1, 2)]
    assert capsys.readouterr().err == "ituning: interrupted\n"
    assert len(read_lines(Path("captions.jsonl"))) == 2


def test_an_output_file_is_replaced_only_when_told(saved, photos, capsys):
    output = Path("captions.jsonl")
    output.write_text("three days of work")
    arguments = ["caption", "photos/b.png", "--model", str(saved), *SHORT, "--output", str(output)]
    assert main(arguments) == 2
    assert "captions.jsonl exists: give another --output, or --overwrite" in capsys.readouterr().err
    assert output.read_text() == "three days of work"
    assert main([*arguments, "--overwrite"]) == 0
    assert [line["image"] for line in read_lines(output)] == ["photos/b.png"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_progress_bar(saved, photos, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread that outlives the test
    assert len(captioned(saved, capsys, "photos")) == 3
    assert "3/3" in sys.stderr.getvalue()
    assert "Loading weights" not in sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/*.tif"], r"no images: 'photos/*.tif' gave nothing, expected files that match it"),
        (["photos/b.png", "empty"], "no images: 'empty' gave nothing, expected images in that folder"),
        (["-"], "no images: '-' gave nothing, expected paths on standard input, one a line"),
        (["photos", "--num_captions", "4"], "num_captions is 4 and num_beams 3"),
        (["photos", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["photos", "--output", "no/such/folder.jsonl"], "there is no folder no/such"),
        (["photos", "--model", "nowhere"], "There is no captioner at 'nowhere': the folder does not exist"),
        (
            ["photos", "--text_model", "nowhere"],
            "frozen text model was not found at",
        ),
        (
            ["photos", "--vision_model", "nowhere"],
            "frozen vision model was not found at",
        ),
        (["photos", "--model", "org/c", "--revision", "v9"], "There is no captioner at 'org/c'"),
        (
            ["photos", "--model", "org/c"],
            "not in the local cache, and HF_HUB_OFFLINE is set",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(saved, photos, capsys, monkeypatch, arguments, message):
    Path("empty").mkdir()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["caption", "--model", str(saved), *SHORT, *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("ituning: error: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def test_options_may_have_underscores_as_those_of_train(saved, photos, capsys):
    files = ["photos/b.png", "photos/c.jpg"]
    output = "my_captions.jsonl"
    short = ["--num_beams", "3", "--max_new_tokens=7", "--device", "cpu", "--prompt=my_dog"]
    assert main(["caption", *files, "--model", str(saved), *short, "--output", output]) == 0
    expected = [expected_captions(saved, file, prompt="my_dog") for file in files]
    assert [line["captions"] for line in read_lines(Path(output))] == expected


def test_a_file_whose_name_looks_like_an_option(saved, photos, capsys):
    name = "--my_dog"
    shutil.copy("photos/b.png", name)
    assert main(["caption", "--model", str(saved), *SHORT, "--", name]) == 0
    assert capsys.readouterr().out == as_line(name, expected_captions(saved, name)) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["caption", "a.png", "--model", "m", "--num_beem", "3"],
            "--num_beem is not an option (did you mean",
        ),
        (["info", "m", "--zzz=1"], "--zzz is not an option. ituning info --help shows the options"),
        (["info", "m", "n"], "unexpected argument 'n'. ituning info --help"),
        (["demo", "--sede", "3"], "--sede is not an option (did you mean --seed?)"),
        (["caption", "a.png", "--num_beams", "0", "--model", "m"], "--num_beams is 0, expected at least 1"),
        (["caption", "a.png"], "--model is missing. ituning caption --help"),
        (["caption", "a.png", "--model", "m", "--dtype", "int8"], "--dtype is 'int8', expected one of auto"),
        (["features", "info"], "FOLDER is missing. ituning features info --help"),
        (["features", "biuld"], "'biuld' is not a command (did you mean build?). ituning features --help"),
        (["serve"], "'serve' is not a command. ituning --help lists the commands"),
        ([], "a command is missing. ituning --help lists the commands"),
    ],
)
def test_a_usage_error_is_one_line(capsys, arguments, message: str):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"ituning: error: {message}")
    assert (output.out, output.err.count("\n")) == ("", 1)


def test_a_backbone_that_has_moved_is_asked_for_by_the_commands_own_option(saved, photos, tmp_path, capsys):
    folder = shutil.copytree(saved, tmp_path / "moved")
    edit_json(folder / "config.json", text_model_name_or_path="/gone/text")
    assert main(["caption", "photos/b.png", "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "If it has moved" in error
    assert "--text_model MODEL" in error
    assert "from_pretrained" not in error


def test_the_traceback_can_be_had(photos, monkeypatch):
    monkeypatch.setenv("ITUNING_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no images"):
        main(["caption", "photos/*.tif", "--model", "any"])


def test_info(saved, capsys):
    assert main(["info", str(saved)]) == 0
    assert capsys.readouterr().out == format_description(describe(saved)) + "\n"
    assert main(["info", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == describe(saved)
    assert main(["info", "org/none", "--revision", "v1"]) == 2
    assert "There is no captioner at 'org/none'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("ituning_hf.cli.info.read_settings", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["info", "m"])


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--version"], [f"ituning {ituning_hf.__version__}\n"]),
        (["--help"], ["train a captioner", "caption images", "ituning info", "ITUNING_TRACEBACK=1"]),
        (["caption", "--help"], ["IMAGE...", "--num_captions INT", "--output FILE", "Exit code: 0; 1"]),
        (["info", "--help"], ["MODEL", "--json", "--revision"]),
        (["evaluate", "--help"], ["METEOR needs Java", "pip install 'ituning_hf[eval]'"]),
        (["features", "--help"], ["build", "describe a store"]),
        (["features", "build", "--help"], ["--shard_size INT", "302,592 bytes"]),
    ],
)
def test_help_and_version(capsys, monkeypatch, arguments, texts):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    output = capsys.readouterr().out
    assert all(text in output for text in texts)
    assert max(map(len, output.splitlines())) <= 80


def test_a_reader_that_has_gone_ends_it_quietly(saved):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ituning_hf.cli", "info", str(saved)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(write)
    assert done.returncode == 141
    assert "Error" not in done.stderr


def test_what_a_terminal_cannot_show_ends_nothing(tmp_path: Path):
    code = "from ituning_hf.cli import main; import sys; sys.exit(main(['info', 'nowhere \U0001f600']))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "UnicodeEncodeError" not in done.stderr
    assert "\\U0001f600" in done.stderr


def test_a_stopped_demo_says_how_to_go_on(monkeypatch, capsys):
    from ituning_hf.training.errors import RunStopped

    def stopped(folder, seed):
        raise RunStopped(15, "after step 7 of 600")

    monkeypatch.setattr("ituning_hf.demo.story.run_demo", stopped)
    assert main(["demo"]) == 143
    assert capsys.readouterr().err == (
        "ituning: stopped by SIGTERM after step 7 of 600: run the same command to resume\n"
    )
