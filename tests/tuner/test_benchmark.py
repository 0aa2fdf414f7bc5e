"""The benchmark of generation runs, and compares ways that give the same captions."""

import re
import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "benchmarks" / "peft_generation.py"


@pytest.fixture(scope="module")
def benchmark() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_it_prints_each_way_beside_the_captioner(benchmark, capsys):
    benchmark["main"](["--small", "--rounds", "2", "--tokens", "4"])
    table = capsys.readouterr().out
    rows = re.findall(r"^(captioner|PEFT|PEFT, each step) +\d+\.\d{3} +\d+\.\d{3}$", table, re.MULTILINE)
    assert rows == ["captioner", "PEFT", "PEFT, each step"]
    assert re.search(r"^captioner .* 1\.000$", table, re.MULTILINE)


def test_ways_that_differ_are_not_compared(benchmark):
    with pytest.raises(RuntimeError, match="different tokens"):
        benchmark["measure"]({"a": lambda: torch.zeros(2), "b": lambda: torch.ones(2)}, rounds=1)


def test_the_size_is_the_papers_base(benchmark):
    captioner = benchmark["build_captioner"](small=False)
    assert sum(p.numel() for p in captioner.parameters() if p.requires_grad) == 14_178_816
