"""Settings of a command: dataclass fields made by `option`, read from flags and from a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from shutil import get_terminal_size
from types import NoneType
from typing import Any, ClassVar, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from .config_file import read_config_file
from .errors import UserError
from .rules import ANY, TEXT, Rule

REQUIRED = dataclasses.MISSING  # as the default of an option that must be given
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's words


def option(
    default: Any,
    text: str,
    rule: Rule = ANY,
    unset: str | None = None,
    *,
    metavar: str | None = None,
    positional: bool = False,
) -> Any:
    """Return the dataclass field of a setting.

    Args:
        default: The value if none is given; a list is copied. `REQUIRED` if one must be given.
        text: The meaning, with the unit, for the help.
        rule: The condition on the value.
        unset: The meaning of the default, if that is None or an empty list.
        metavar: The value's name in the help, if not that of the rule or of the type.
        positional: Whether it is given without a flag. A positional list takes all remaining arguments.
    """
    metavar = metavar or rule.metavar
    metadata = {"help": text, "rule": rule, "unset": unset, "metavar": metavar, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Settings:
    """Base of a command's settings: a dataclass of `option` fields. Wrong values raise a UserError."""

    title: ClassVar[str] = "options"  # the help's heading of the fields that a class declares

    def __post_init__(self) -> None:
        """Convert and check every value."""
        _refuse(_convert_values(type(self), vars(self)))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dataclasses.asdict(self)


S = TypeVar("S", bound=Settings)


def read_settings(
    settings: type[S], argv: Sequence[str], prog: str, description: str, examples: str = ""
) -> S:
    """Read settings from a YAML file (`--config`) and from flags, which take precedence.

    Args:
        settings: The dataclass.
        argv: The arguments after the command's name.
        prog: The command, such as "ituning train".
        description: Its purpose, for the help.
        examples: Command lines, and what else ends the help.

    Raises:
        UserError: for unknown names, missing ones and values that cannot be used, all at once.
        SystemExit: after `--help`.
    """
    declared = {field.name: field for field in dataclasses.fields(settings)}
    end = argv.index("--") if "--" in argv else len(argv)  # after it there are no flags
    parser = _make_parser(settings, prog, description, examples)
    parsed, rest = parser.parse_known_args(_normalize(argv[:end], settings))
    unknown = [text for text in rest if text.startswith("-") and text != "-"]
    words = [*(text for text in rest if text not in unknown), *argv[end + 1 :]]
    given = vars(parsed)
    for name, field in declared.items():
        if field.metadata["positional"] and words:
            is_list = get_origin(get_type_hints(settings)[name]) is list
            given[name], words = (words, []) if is_list else (words[0], words[1:])
    config = given.pop("config", None)
    given = ({} if config is None else read_config_file(config)) | given
    names = [name for name in given if name not in declared]
    problems = [f"{config}: {name!r} is not a setting{nearest(name, declared)}" for name in names]
    problems += [_explain_unknown(text.partition("=")[0], declared) for text in unknown]
    if words and not unknown:  # a word after an unknown flag may be its value
        problems.append(f"unexpected argument {words[0]!r}")
    values = {name: value for name, value in given.items() if name in declared}
    problems += _convert_values(settings, values)
    missing = [field for name, field in declared.items() if name not in given]
    required = [field for field in missing if field.default is field.default_factory is REQUIRED]
    problems += [f"{_label(field)} is missing" for field in required]
    _refuse(problems, f". {prog} --help shows the options")
    return settings(**values)


def _explain_unknown(flag: str, declared: Mapping[str, dataclasses.Field[Any]]) -> str:
    """Describe a flag that is not an option; a positional setting is never suggested as one."""
    flags = ["config"]
    for name, field in declared.items():
        if not field.metadata["positional"]:
            flags.append(name)
        elif flag.lstrip("-") in (name, name.removesuffix("s")):
            return f"{flag} is not an option: give {_label(field)} without a flag"
    return f"{flag} is not an option{nearest(flag, flags, '--')}"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question that suggests the known name closest to a misspelt one, or an empty text.

    A name that ends in the given one (`epochs`), or has it as its initials (`lr`), is closest.
    """
    name, known = name.lstrip("-"), list(known)
    found = [x for x in known if x.endswith(f"_{name}") or name == re.sub("([a-z])[a-z]*_?", r"\1", x)]
    found += difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {prefix}{found[0]}?)" if found else ""


def _refuse(problems: Sequence[str], advice: str = "") -> None:
    if problems:
        several = "\n- ".join([f"{len(problems)} errors{advice}:", *problems])
        raise UserError(several if len(problems) > 1 else problems[0] + advice)


def _label(field: dataclasses.Field[Any]) -> str:
    return field.metadata["metavar"] if field.metadata["positional"] else f"--{field.name}"


def _convert_values(settings: type[Settings], values: dict[str, Any]) -> list[str]:
    """Convert the values of fields in place, and return what is wrong with them."""
    hints, problems = get_type_hints(settings), []
    for name, value in values.items():
        field = settings.__dataclass_fields__[name]
        rule = field.metadata["rule"]
        try:
            if rule is not TEXT or not isinstance(value, str):
                value = _convert(value, hints[name])
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("a finite number")
            if value is not None and not rule.holds(value):
                raise ValueError(rule.expected)
        except ValueError as expected:
            problems.append(f"{_label(field)} is {value!r}, expected {expected}")
        values[name] = value
    return problems


def _convert(value: Any, hint: Any) -> Any:
    """Convert text, or what a Python caller gave, to the annotated type; an error says what was expected."""
    if NoneType in get_args(hint):
        return None if value in (None, "none", ["none"]) else _convert(value, get_args(hint)[0])
    if get_origin(hint) is list:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return [] if items in ([None], ["none"]) else [_convert(item, get_args(hint)[0]) for item in items]
    if isinstance(value, str) and hint is bool:
        value = _BOOLEANS.get(value.lower(), value)
    elif isinstance(value, (str, os.PathLike)):
        with suppress(ValueError):
            value = hint(os.path.expanduser(value))  # no shell expands ~ in a YAML file
    is_right = isinstance(value, (int, float) if hint is float else hint)
    if not is_right or isinstance(value, bool) != (hint is bool):  # a bool is an int too
        raise ValueError(_TYPE_NAMES[hint])
    return value


def _normalize(argv: Sequence[str], settings: type[Settings]) -> list[str]:
    """Spell flags with underscores, and write a boolean's value into its flag: --dry_run=true."""
    booleans = [f"--{name}" for name, hint in get_type_hints(settings).items() if hint in (bool, bool | None)]
    arguments: list[str] = []
    for text in argv:
        flag, equals, value = text.partition("=")
        if flag.startswith("--"):
            arguments.append(flag.replace("-", "_").replace("__", "--", 1) + equals + value)
        elif arguments and arguments[-1] in booleans and text.lower() in (*_BOOLEANS, "none"):
            arguments[-1] += f"={text}"
        else:
            arguments.append(text)
    return [f"{text}=true" if text in booleans else text for text in arguments]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if message.endswith("expected one argument"):
            message += f" (if it begins with -, write {message.partition(':')[0]}=-x)"
        raise UserError(f"{message}. {self.prog} --help shows the options")


def _make_parser(settings: type[Settings], prog: str, description: str, examples: str) -> _Parser:
    declared, hints = dataclasses.fields(settings), get_type_hints(settings)
    positional = [_label(field) for field in declared if field.metadata["positional"]]
    width = min(get_terminal_size().columns, 110) - 2
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *positional, "[--config FILE] [--OPTION VALUE ...]"]),
        description=description,
        epilog=examples,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=26, width=width),
        allow_abbrev=False,  # a typo must not become another option
        argument_default=argparse.SUPPRESS,  # only given flags take precedence over the file
    )
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # also -1e-3, which Python before 3.14 refuses
    parser.add_argument("--config", metavar="FILE", help="a YAML file of options; flags take precedence")
    groups: dict[str, Any] = {Settings.title: parser}
    for field in declared:
        owners: list[Any] = [base for base in settings.__mro__ if hasattr(base, "title")]
        title = next(owner.title for owner in reversed(owners) if field.name in owner.__dataclass_fields__)
        groups[title] = groups.get(title) or parser.add_argument_group(title)
        _add_option(groups[title], field, hints[field.name])
    return parser


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    text, shown = field.metadata["help"].replace("%", "%%"), field.metadata["unset"] or field.default
    if shown is not None and shown is not False and shown is not REQUIRED:
        text += f" (default: {shown:g})" if isinstance(shown, float) else f" (default: {shown})"
    value_type = get_args(hint)[0] if NoneType in get_args(hint) else hint
    item_type = (get_args(value_type) or [value_type])[0]
    metavar = field.metadata["metavar"] or ("" if item_type is bool else item_type.__name__.upper())
    nargs = None if item_type is value_type else "+"
    if field.metadata["positional"]:
        nargs = argparse.SUPPRESS  # shown in the help and never matched
    group.add_argument(_label(field), nargs=nargs, metavar=metavar, help=text)
