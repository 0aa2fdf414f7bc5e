"""Rows of CSV, JSON lines and Parquet files, for every command that reads one."""

from __future__ import annotations

import collections
import csv
import itertools
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.errors import UserError
from ..utils.files import open_utf8, parse_json
from .images import IMAGE_SUFFIXES

ROW_SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv", ".txt")

_DELIMITERS = ",;|"  # in order of preference if they are equally frequent; a tab is always a delimiter
_MAX_FIELD = 2**27  # characters of a CSV field, which may be an image in base64; the default is 2**17

Select = Callable[[list[str]], Sequence[str]]


def read_rows(
    path: Path, columns: str | None = None, select: Select = list, any_header: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each row of a `.jsonl` or `.parquet` file, or else of a CSV file.

    Text is UTF-8. A CSV file has the column names in its first line, unless `columns` has them. Its delimiter
    is a tab if this line has one, else a comma, semicolon or bar, whichever is most frequent. Fields may be
    quoted, and are strings without leading and trailing spaces. If a file with tabs is not valid so, such as
    Flickr8k.token.txt, its quotation marks are ordinary characters.

    Args:
        path: The file.
        columns: The column names of a CSV file without a header line, separated by commas.
        select: Receives the column names of a CSV or Parquet file, and returns the columns that are needed of
            a Parquet file. May raise a UserError, which then names the file and the header line.
        any_header: Whether to read a CSV file without a header line, too: its image names are in "image".

    Returns:
        The numbers of lines from 1 or of Parquet rows from 0, for `describe_row`, and the fields.

    Raises:
        UserError: The file is not UTF-8 or not Parquet, a row is malformed, or there is no header line.
    """
    match path.suffix.lower():
        case ".jsonl":
            return _read_json_lines(path)
        case ".parquet":
            return _read_parquet(path, select)
    return _read_csv(path, columns, select, any_header)


def is_csv(path: Path) -> bool:
    """Return whether `read_rows` reads a file as CSV, in which all values are strings."""
    return path.suffix.lower() not in (".jsonl", ".parquet")


def describe_row(path: Path, number: int) -> str:
    """Return the description of a row for messages, given its number from `read_rows`."""
    return f"{path}[{number}]" if path.suffix.lower() == ".parquet" else f"{path}, line {number}"


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_utf8(path, newline="\n") as file:  # other line breaks may be inside a string
        for number, line in enumerate(file, start=1):
            if line.strip():
                fields = parse_json(line, f"{path}, line {number}")
                if not isinstance(fields, dict):
                    raise UserError(
                        f"{path}, line {number}: expected a JSON object, got {reprlib.repr(fields)}"
                    )
                yield number, fields


def _read_parquet(path: Path, select: Select) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(1000, columns=_select(select, file.schema_arrow.names, str(path)))
            yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches))
    except pa.ArrowException as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _read_csv(
    path: Path, columns: str | None, select: Select, any_header: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    given = [] if columns is None else [name.strip() for name in columns.split(",")]
    lines = _read_csv_lines(path)
    first, header = next(lines, (1, given))
    names = given or header
    if not names:
        raise UserError(f"{path} is empty: its first line must contain the column names")
    if not given and any_header and any(map(_is_image_name, header)):
        names = ["image" if _is_image_name(field) else "" for field in header]
    elif not given and any(map(_is_image_name, re.split(r"[\t,;|]", "\t".join(header)))):
        raise UserError(
            f"{path}: there is no header line, the first line is {reprlib.repr(header)}: add one, or name "
            "the columns in their order, for example by --columns image,caption"
        )
    _select(select, names, describe_row(path, first))
    if [name.lower() for name in header] != [name.lower() for name in names]:
        lines = itertools.chain([(first, header)], lines)
    for number, fields in lines:
        if len(fields) > len(names):
            raise UserError(
                f"{describe_row(path, number)}: {len(fields)} fields for {len(names)} columns: put fields "
                'that contain the delimiter in double quotes ("")'
            )
        fields += [""] * (len(names) - len(fields))  # Flickr30k's results.csv lacks a field in one row
        yield number, dict(zip(names, fields, strict=True))


def _read_csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_MAX_FIELD)  # of the process: a reader has no limit of its own
    with open_utf8(path, newline="") as file:
        first = next((line.strip() for line in file if line.strip()), "")
        # strict: otherwise a misplaced quotation mark would silently consume the following rows
        style: dict[str, Any] = {"delimiter": find_delimiter(first), "strict": True}
        if style["delimiter"] == "\t" and path.suffix.lower() != ".csv" and _is_unquoted(file, style):
            style["quoting"] = csv.QUOTE_NONE
        file.seek(0)
        reader, number = csv.reader(file, **style), 1
        try:
            for fields in reader:
                if style["delimiter"] == "\t" and any("\t" in x and "\n" in x for x in fields):
                    raise csv.Error("a quoted field has a tab and a line break")
                if any(fields := [*map(str.strip, fields)]):
                    yield number, fields
                number = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{describe_row(path, number)}: {error}; is a quotation mark missing?") from error


def _is_unquoted(file: IO[str], style: dict[str, Any]) -> bool:
    """Return whether quotation marks are ordinary characters in a file with tabs: they enclose no fields."""
    file.seek(0)
    with suppress(csv.Error):
        collections.deque(csv.reader(file, **style), maxlen=0)
        return False
    file.seek(0)
    lines = {(line.count("\t"), '""' in line) for line in file if line.strip()}
    return len(lines) == 1 and not any(has_escape for _, has_escape in lines)


def find_delimiter(header: str) -> str:
    """Return the delimiter of a CSV file, given its first line."""
    return "\t" if "\t" in header else max(_DELIMITERS, key=header.count)


def _is_image_name(text: str) -> bool:
    suffix, _, _ = os.path.splitext(text.strip())[1].lower().partition("#")  # Flickr8k.token.txt: "dog.jpg#0"
    return suffix in IMAGE_SUFFIXES


def _select(select: Select, names: list[str], where: str) -> Sequence[str]:
    try:
        return select(names)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
