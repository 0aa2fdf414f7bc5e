"""What the README and the docstrings show must run."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

import ituning_hf
from ituning_hf import cli
from ituning_hf.training import parse_arguments

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
MODULES = [
    "adapter_ituning",
    "configuration_ituning",
    "modeling_ituning",
    "processing_ituning",
    "captioning",
    "demo.scoring",
    "training.memory",
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
    module = importlib.import_module(f"ituning_hf.{name}")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_readmes_training_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed: 1")
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


def test_the_readmes_other_commands_are_understood():
    lines = [line for line in commands("ituning") if line[0] != "train"]
    assert {line[0] for line in lines} == {"caption", "demo", "info"}
    for line in lines:
        cli._parser().parse_args(line)


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert re.findall(r"@[A-Z]+@|TODO|XXX", README) == []


def test_the_readme_names_every_module():
    package = Path(ituning_hf.__file__).parent
    for path in package.iterdir():
        if path.suffix == ".py" and not path.name.startswith("_"):
            assert path.name in README, path.name
