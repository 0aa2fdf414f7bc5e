"""The `ituning` command, from its arguments to its output and exit code."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import edit_json
from tqdm import tqdm

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.cli import main
from ituning_hf.cli.info import format_description
from ituning_hf.data.images import load_image
from ituning_hf.hub.inspection import describe
from ituning_hf.inference.int8 import Int8Linear
from ituning_hf.training.errors import RunStopped
from ituning_hf.utils.terminal import printable

SEARCH = {"num_beams": 3, "max_new_tokens": 7}
LINES = Path("captions.jsonl")


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


@pytest.fixture
def caption(saved_captioner: Path, photos: Path) -> Callable[..., int]:
    """Run `ituning caption` with a saved captioner."""
    options = ["--model", str(saved_captioner), "--num_beams", "3", "--max_new_tokens=7", "--device", "cpu"]
    return lambda *arguments: main(["caption", *options, *arguments])


def expected_captions(
    saved: Path, path: str, prompt: str = "", dtype: Any = None, **options: Any
) -> list[str]:
    """Caption one image with the model and the tokenizer alone."""
    model = ITuningForCaptioning.from_pretrained(saved, dtype=dtype)
    processor = ITuningProcessor.from_pretrained(saved)
    ids = model.generate(**processor(images=load_image(path), text=prompt), **SEARCH | options)
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


def as_line(path: str, captions: list[str]) -> str:
    return "\t".join([path, *(printable(" ".join(caption.split())) for caption in captions)])


def read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]


def printed_paths(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


def test_captions_equal_those_of_the_model(caption, saved_captioner, capsys):
    files = ["photos/c.jpg", "photos/b.png"]
    assert caption(*files, "--output", str(LINES)) == 0
    expected = [(file, expected_captions(saved_captioner, file)) for file in files]
    cleaned = [(file, [" ".join(text.split()) for text in captions]) for file, captions in expected]
    assert read_lines() == [{"image": file, "captions": captions} for file, captions in cleaned]
    output = capsys.readouterr()
    assert output.out.splitlines() == [as_line(file, captions) for file, captions in expected]
    assert output.err == f"ituning: captions of 2 images written to {LINES}\n"


def test_options_reach_the_model(caption, saved_captioner, capsys):
    options = ["--num_captions", "2", "--prompt", "a dog", "--batch_size", "1", "--dtype", "bfloat16"]
    assert caption("photos/b.png", *options, "--output", str(LINES)) == 0
    file, search = "photos/b.png", {"num_return_sequences": 2}
    texts = expected_captions(saved_captioner, file, "a dog", torch.bfloat16, **search)
    assert read_lines() == [{"image": file, "captions": texts}]
    assert capsys.readouterr().out == as_line(file, texts) + "\n"


def test_the_language_model_can_be_quantized(caption, capsys, monkeypatch):
    generate, layers = ITuningForCaptioning.generate, []

    def watched(self, **options):
        layers.append(type(self.get_output_embeddings()))
        return generate(self, **options)

    monkeypatch.setattr(ITuningForCaptioning, "generate", watched)
    assert caption("photos/b.png", "--quantization", "int8") == 0
    assert printed_paths(capsys) == ["photos/b.png"]
    assert layers == [Int8Linear]


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (["photos"], ["photos/b.png", "photos/c.jpg", "photos/sub/a.png"]),
        (["photos/sub", "photos/b.png"], ["photos/sub/a.png", "photos/b.png"]),
        (["photos/*.*g"], ["photos/b.png", "photos/c.jpg"]),
        (["photos/**/*.png"], ["photos/b.png", "photos/sub/a.png"]),
        (["photos/[b].png", "photos/b.png"], ["photos/b.png", "photos/b.png"]),
        (["photos/sub", "-"], ["photos/sub/a.png", "photos/c.jpg", "photos/b.png"]),
        (["[1].png"], ["[1].png"]),
        (["--", "--my_dog"], ["--my_dog"]),
    ],
)
def test_files_folders_globs_and_standard_input(caption, capsys, monkeypatch, images, found):
    for name in ("[1].png", "--my_dog"):
        shutil.copy("photos/b.png", name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"photos/c.jpg\r\n\nphotos/b.png")))
    assert caption(*images) == 0
    assert printed_paths(capsys) == found


def test_a_file_name_that_is_not_unicode(caption, capsys):
    name = os.fsdecode(b"photos/caf\xe9 \xc3\xa9.png")
    Path("photos/b.png").rename(name)
    assert caption("photos", "--output", str(LINES)) == 0
    assert "photos/caf\\udce9 é.png\t" in capsys.readouterr().out
    assert name in [line["image"] for line in read_lines()]
    assert caption(str(LINES), "--output", "again.jsonl") == 0  # as a dataset
    assert Path("again.jsonl").read_bytes() == LINES.read_bytes()


def test_an_unreadable_image_gives_exit_code_1_and_does_not_affect_others(caption, saved_captioner, capsys):
    Path("photos/gone.png").symlink_to("nowhere.png")
    shutil.copy("photos/notes.txt", "photos/notes.png")
    files = ["photos/notes.png", "photos/b.png", "photos/gone.png", "photos/c.jpg"]
    assert caption(*files, "--output", str(LINES)) == 1
    output = capsys.readouterr()
    good = [files[1], files[3]]
    assert output.out.splitlines() == [
        as_line(file, expected_captions(saved_captioner, file)) for file in good
    ]
    assert [line["image"] for line in read_lines()] == good
    first, second, third, _ = output.err.splitlines()
    assert first.startswith("ituning: cannot read photos/notes.png: it is not an image of a")
    assert second.startswith("ituning: cannot read photos/gone.png: there is no such file")
    assert third == "ituning: 2 of 4 images could not be read"


def test_results_are_printed_as_each_batch_is_done(caption, capsys, monkeypatch):
    generate, printed = ITuningForCaptioning.generate, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        printed.append(capsys.readouterr().out.count("\n"))
        if len(printed) == 3:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(ITuningForCaptioning, "generate", interrupted)
    assert caption("photos", "--batch_size", "1") == 130
    assert printed == [0, 1, 1]
    assert capsys.readouterr().err == "ituning: interrupted\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_progress_bar(caption, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread that outlives the test
    assert caption("photos") == 0
    assert len(printed_paths(capsys)) == 3
    assert "3/3" in sys.stderr.getvalue()
    assert "Loading weights" not in sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/*.tif"], "'photos/*.tif' gives no images: name a file, a folder of images"),
        (["photos/b.png", "empty"], "'empty' gives no images"),
        (["missing/"], "'missing/' does not exist"),
        (["-"], "'-' gives no images"),
        (["photos", "--num_captions", "4"], "num_captions is 4 and num_beams 3"),
        (["photos", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["photos", "--output", "no/such/folder.jsonl"], "there is no folder no/such"),
        (["photos", "--model", "nowhere"], "There is no captioner at 'nowhere': the folder does not exist"),
        (["photos", "--text_model", "nowhere"], "frozen text model was not found at"),
        (["photos", "--vision_model", "nowhere"], "frozen vision model was not found at"),
        (["photos", "--model", "org/c", "--revision", "v9"], "There is no captioner at 'org/c'"),
        (["photos", "--model", "org/c"], "not in the local cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_mistake_is_one_line(caption, capsys, monkeypatch, arguments, message):
    Path("empty").mkdir()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert caption(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("ituning: error: ")
    assert output.err.count("\n") == 1
    assert message in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "m", "--zzz=1"], "--zzz is not an option. ituning info --help shows the options"),
        (["demo", "--sede", "3"], "--sede is not an option (did you mean --seed?)"),
        (["caption", "a.png"], "--model is missing. ituning caption --help"),
        (["caption", "a", "--model", "m", "--dtype", "int8"], "--dtype is 'int8', expected one of float32"),
        (["train", "--size", "large", "--text_model", "m"], "--size and --text_model both select a language"),
        (["features", "info"], "FOLDER is missing. ituning features info --help"),
        (["features", "biuld"], "'biuld' is not a command (did you mean build?). ituning features --help"),
        (["draw"], "'draw' is not a command. ituning --help lists the commands"),
        ([], "a command is missing. ituning --help lists the commands"),
    ],
)
def test_a_usage_error_is_one_line(capsys, arguments, message: str):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"ituning: error: {message}")
    assert (output.out, output.err.count("\n")) == ("", 1)


def test_the_error_for_a_moved_backbone_names_the_option_of_the_command(
    saved_captioner, photos, tmp_path, capsys
):
    folder = shutil.copytree(saved_captioner, tmp_path / "moved")
    edit_json(folder / "config.json", text_model_name_or_path="/gone/text")
    assert main(["caption", "photos/b.png", "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "If it has moved" in error
    assert "--text_model MODEL" in error
    assert "from_pretrained" not in error


def test_a_bug_keeps_its_traceback_and_a_mistake_can_show_it(caption, monkeypatch):
    monkeypatch.setattr("ituning_hf.cli.info.read_settings", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["info", "m"])
    monkeypatch.setenv("ITUNING_TRACEBACK", "1")
    with pytest.raises(ValueError, match="gives no images"):
        caption("photos/*.tif")


def test_info(saved_captioner, capsys):
    assert main(["info", str(saved_captioner)]) == 0
    assert capsys.readouterr().out == format_description(describe(saved_captioner)) + "\n"
    assert main(["info", str(saved_captioner), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == describe(saved_captioner)
    assert main(["info", "org/none", "--revision", "v1"]) == 2
    assert "There is no captioner at 'org/none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--version"], [f"ituning {ituning_hf.__version__}\n"]),
        (["--help"], ["train a captioner", "caption images", "ituning info", "ITUNING_TRACEBACK=1"]),
        (["caption", "--help"], ["IMAGE...", "--num_captions INT", "--output FILE", "Exit code: 0; 1"]),
        (["info", "--help"], ["MODEL", "--json", "--revision"]),
        (["evaluate", "--help"], ["METEOR requires Java", "pip install 'ituning_hf[eval]'"]),
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


def test_a_closed_pipe_ends_the_command_quietly(saved_captioner, capsys, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stdout:  # closing it writes what is left, as Python does at exit
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["info", str(saved_captioner)]) == 141
    assert capsys.readouterr().err == ""


def test_characters_that_a_terminal_cannot_show_are_escaped():
    code = "from ituning_hf.cli import main; import sys; sys.exit(main(['\U0001f600']))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "UnicodeEncodeError" not in done.stderr
    assert "\\U0001f600" in done.stderr


def test_a_stopped_demo_says_how_to_resume(monkeypatch, capsys):
    def stopped(folder, seed):
        raise RunStopped(15, "after step 7 of 600")

    monkeypatch.setattr("ituning_hf.demo.story.run_demo", stopped)
    assert main(["demo"]) == 143
    assert capsys.readouterr().err == (
        "ituning: stopped by SIGTERM after step 7 of 600: run the same command to resume\n"
    )
