"""A benchmark's tables, on the screen and as JSON, with what is needed to run it again."""

from __future__ import annotations

import json
import os
import platform
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import ituning_hf

Row = dict[str, Any]  # by column; None is a cell that stays empty


@dataclass
class Report:
    """Tables with the command, the versions and the kind of machine they were measured with.

    Args:
        title: What was measured.
        command: The command line that measures it again.
        versions: Of Python and of the libraries, by name.
        machine: Its processors and threads; no name of a machine.
        tables: Rows by the table's name.
        notes: Sentences printed beneath.
    """

    title: str
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, title: str, script: str, arguments: Sequence[str], device: str) -> Report:
        """Begin the report of a command.

        Args:
            title: What is measured.
            script: The command's file, of which the name is kept.
            arguments: Its command line.
            device: Where it computes.
        """
        command = shlex.join(["python", f"examples/{Path(script).name}", *arguments])
        return cls(title, command, _versions(), _machine(torch.device(device)))

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a report that was saved."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def tell(self, output: Path | None) -> None:
        """Print it, and save it where a file is named."""
        self.print()
        if output is not None:
            self.save(output)

    def print(self) -> None:
        """Print it, the tables aligned."""
        print(self.title)
        print(f"  {self.command}")
        for facts in (self.versions, self.machine):
            print("  " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        for name, rows in self.tables.items():
            print(f"\n{name}\n{format_table(rows)}")
        for note in self.notes:
            print(f"\n{note}")


def format_table(rows: Sequence[Row]) -> str:
    """Lay rows out under their columns' names, numbers to the right; a screen's width is not much."""
    names = [*dict.fromkeys(column for row in rows for column in row)]
    columns = [_column(name, [row.get(name) for row in rows], is_first=name == names[0]) for name in names]
    height = max(len(column) for column in columns)
    # Names of one line stand directly over the numbers.
    filled = [[" " * len(column[0])] * (height - len(column)) + column for column in columns]
    return "\n".join("  ".join(line).rstrip() for line in zip(*filled, strict=True))


def _column(name: str, values: Sequence[Any], is_first: bool) -> list[str]:
    """Return a column's lines, all of one width: its name, wrapped to what it needs, and its cells."""
    is_text = any(isinstance(value, str) for value in values)
    # Milliseconds have digits too.
    digits = 3 if max((abs(v) for v in values if isinstance(v, float)), default=1.0) >= 0.1 else 5
    cells = [_cell(value, digits) for value in values]
    if is_text and is_first:
        cells = nested(cells)
    lines = [*textwrap.wrap(name, max(map(len, ["........", *cells, *name.split()]))), *cells]
    width = max(map(len, lines))
    return [line.ljust(width) if is_text else line.rjust(width) for line in lines]


def nested(names: Sequence[str]) -> list[str]:
    """Leave out of names what they go on from: "a", "a, b" becomes "a", "  b"."""
    lines: list[str] = []
    above = ""
    for name in names:
        goes_on = above and name.startswith(f"{above}, ")
        lines.append(name.replace(f"{above}, ", "  ", 1) if goes_on else name)
        above = above if goes_on else name
    return lines


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _versions() -> dict[str, str]:
    libraries = {"torch": torch, "transformers": transformers, "peft": peft, "ituning_hf": ituning_hf}
    return {
        "python": platform.python_version(),
        **{name: str(library.__version__) for name, library in libraries.items()},
    }


def _machine(device: torch.device) -> dict[str, Any]:
    facts = {"CPU": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"GPU": torch.cuda.get_device_name(device), **facts} if device.type == "cuda" else facts


def _processor() -> str:
    """Name the processor as its maker does, where Linux says so."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
