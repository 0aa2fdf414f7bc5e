"""Markdown tables that are also readable as text."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    """Lay out a table.

    Args:
        header: A text for each column.
        rows: As many for each row.
        numbers_from: The first of the columns that are aligned to the right, which are all that follow.

    Returns:
        Its lines, without a line break at the end.
    """
    cells = [[_cell(text) for text in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    first = len(header) if numbers_from is None else numbers_from
    rule = ["-" * (width - 1) + ":" if i >= first else "-" * width for i, width in enumerate(widths)]
    lines = [
        " | ".join(
            text.rjust(width) if i >= first else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
