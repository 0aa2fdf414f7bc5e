"""The versions in setup.cfg and constraints.txt agree."""

import configparser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def read_requirements(text: str) -> list[Requirement]:
    """Read a requirement from each line."""
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_every_requirement_has_a_pin_that_satisfies_it():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    required = [requirement for text in lists for requirement in read_requirements(text)]
    lines = read_requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in lines}
    assert len(pins) == len(lines)
    wrong = [
        str(requirement)
        for requirement in required
        if requirement.name != "ituning_hf"
        and not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert wrong == []
