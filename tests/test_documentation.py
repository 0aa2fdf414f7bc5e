"""What the README and the docstrings show must run."""

import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from small_models import make_captioner
from transformers import GPT2Config, GPT2LMHeadModel

import ituning_hf
from ituning_hf import ITuningProcessor, cli, save_captioner
from ituning_hf.cli.evaluate import parse_arguments as parse_evaluation
from ituning_hf.cli.features import parse_arguments as parse_build
from ituning_hf.cli.train import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = Path(ituning_hf.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^ *>>> (?!.*# doctest: \+SKIP)", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def commands(program: str) -> list[list[str]]:
    """Return the README's command lines of a program, without the program."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [
        shlex.split(part, comments=True)[len(program.split()) :] for part in parts if part.startswith(program)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_readmes_training_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed: 1")
    Path("examples").symlink_to(ROOT / "examples")
    launchers = [
        "accelerate launch examples/train.py",
        "accelerate launch --multi_gpu examples/train.py",
        "torchrun --nproc_per_node 2 examples/train.py",
        "ituning train",
    ]
    lines = {launcher: commands(launcher) for launcher in launchers}
    assert lines[launchers[0]] == [[]]  # bare
    for launcher in launchers:
        assert lines[launcher], launcher
        for line in lines[launcher]:
            parse_arguments(line)


def test_the_readmes_evaluations_and_builds_are_understood(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert commands("ituning evaluate")
    assert commands("ituning features build")
    for line in commands("ituning evaluate"):
        parse_evaluation(line)
    for line in commands("ituning features build"):
        parse_build(line)


def test_the_readmes_other_commands_are_understood():
    lines = [line for line in commands("ituning") if line[0] not in ("train", "evaluate", "features")]
    assert {line[0] for line in lines} == {"caption", "convert", "demo", "info", "push", "replay"}
    for line in lines:
        cli._parser().parse_args(line)


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert re.findall(r"@[A-Z]+@|TODO|XXX", README) == []


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_files_that_a_page_names_are_there(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|\.ci|examples)/[\w/.]+)`", text) + re.findall(r"\]\(([\w/.]+)\)", text)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_readme_names_every_module():
    for path in PACKAGE.iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith(("_", ".")) and name != "py.typed":
            assert name in README, name


def test_the_readmes_python_runs(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Small models stand where the README has its folder, and lie in folders named like its Hub ids."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(backbones["clip"], "openai/clip-vit-base-patch16")
    shutil.copytree(backbones["text"], "gpt2")  # the tokenizer's files; a width that can be halved twice
    GPT2LMHeadModel(GPT2Config.from_pretrained("gpt2", n_embd=24)).save_pretrained("gpt2")
    save_captioner(make_captioner(backbones), processor, "outputs/captioner/best")
    for name in ("dog.jpg", "bike.jpg"):
        Image.new("RGB", (50, 40), "brown").save(name)
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    captions = [["a red square"], ["a blue one"]]
    names = {"images": images, "captions": captions}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 9
    for block in blocks:
        exec(block, names)  # our own text
    assert names["loss"].requires_grad
    assert len(names["ids"]) == 2
    for line in commands("ituning convert"):
        assert cli.main(["convert", *line]) == 0
