"""Settings from the command line and from a YAML file, and the help that shows them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import yaml

from .options import Kind, Settings, kinds_of

S = TypeVar("S", bound=Settings)

_MAX_WIDTH = 110
# Settings that only one command has, by which a file of it is told.
TELLING = {
    "ituning train": ("learning_rate", "num_train_epochs", "max_train_steps", "eval_split", "augmentation"),
    "ituning evaluate": ("model", "split", "dataset_name", "expected_images", "num_beams", "max_new_tokens"),
    "ituning features build": ("splits", "storage", "shard_size", "vision_revision"),
}
_YAML_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class CommandLine(Generic[S]):
    """The command line of a command that has many settings, each of which may stand in a file too.

    Args:
        settings: The dataclass of all settings.
        sections: Dataclasses with the same fields between them, each with a `title`: the help's groups.
        prog: The command, as in "ituning train".
        description: What it does, for the help.
        examples: Command lines, for the help.
    """

    settings: type[S]
    sections: tuple[Any, ...]
    prog: str
    description: str
    examples: str

    def parse(self, argv: Sequence[str] | None = None) -> S:
        """Read settings from a YAML file (`--config`) and from flags, which win over it.

        Args:
            argv: The command line without the command's name; `sys.argv[1:]` by default.

        Raises:
            ValueError: for an unknown option or an unknown key in the file, or a value that cannot be used.
            FileNotFoundError: if the file is not there.
            SystemExit: after `--help`.
        """
        options, unknown = self._parser().parse_known_args(argv)
        kinds = kinds_of(self.settings)
        if unknown:
            raise ValueError(f"{_not_understood(unknown, kinds)} {self.prog} --help shows them all.")
        given = vars(options)
        settings = read_config(given.pop("config"), self.settings) if "config" in given else {}
        for name, value in given.items():
            settings[name] = _parse(kinds[name], value, f"--{name}")
        return self.settings(**settings)

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(
            prog=self.prog,
            usage=f"{self.prog} [--config FILE] [--OPTION VALUE ...]",
            description=self.description,
            epilog=self.examples,
            formatter_class=_Formatter,
            allow_abbrev=False,  # a typo must not become another option
            argument_default=argparse.SUPPRESS,  # only what was given wins over the file
        )
        parser.add_argument(
            "--config",
            metavar="FILE",
            help="a YAML file of these settings, as 'name: value'; options win over it",
        )
        kinds = kinds_of(self.settings)
        for section in self.sections:
            group = parser.add_argument_group(section.title)
            for declared in dataclasses.fields(section):
                _add_option(group, declared, kinds[declared.name])
        return parser


def read_config(path: str | os.PathLike[str], settings: type) -> dict[str, Any]:
    """Read a file of settings: YAML, or JSON, which is YAML too; a run's `run.json` gives that run's.

    Args:
        path: The file.
        settings: The dataclass of the settings that it may hold.

    Raises:
        ValueError: if it is not a mapping, has a key twice or one that is no setting, or a value that is
            not of the setting's type.
        FileNotFoundError: if it is not there.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_TextLoader)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config {path}: there is no such file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "text"
        raise ValueError(f"--config {path} holds a {kind}, expected settings as 'name: value'.")
    kinds = kinds_of(settings)
    if isinstance(content.get("settings"), dict) and not kinds.keys() & content.keys():
        content = content["settings"]
    for name in content:
        if name not in kinds:
            hint = _other_command(content, kinds) or _nearest(name, kinds, "")
            raise ValueError(f"--config {path}: {name!r} is no setting{hint}")
    found = {}
    for name, value in content.items():
        null = isinstance(value, str) and value in _YAML_NULLS
        found[name] = _null(kinds[name]) if null else _parse(kinds[name], value, f"{path}: {name}")
    return found


def _parse(kind: Kind, value: Any, source: str) -> Any:
    try:
        return kind.parse(value)
    except ValueError:
        raise ValueError(f"{source} is {value!r}, expected {kind.name}.") from None


def _null(kind: Kind) -> Any:
    """YAML's null: no value, or an empty list; the settings refuse it where there must be one."""
    return [] if kind.is_list and not kind.is_optional else None


def _not_understood(unknown: Sequence[str], known: Iterable[str]) -> str:
    flags = [text.partition("=")[0] for text in unknown if text.startswith("--")]
    if not flags:
        return f"{unknown[0]!r} belongs to no option."
    return f"{flags[0]} is no option{_nearest(flags[0], [*known, 'config'], '--')}"


def _other_command(names: Iterable[str], known: Iterable[str]) -> str:
    """Name the command that a file is for, where it has more of its settings than of this one's."""
    told = {command: set(names).intersection(telling) for command, telling in TELLING.items()}
    likeliest = max(told, key=lambda command: len(told[command]))
    own = set().union(*told.values()).intersection(known)
    is_other = len(told[likeliest] - own) > len(own)
    return f": this looks like a file for `{likeliest}`." if is_other else ""


def _nearest(name: str, known: Iterable[str], prefix: str) -> str:
    """Suggest what a misspelt name may have meant."""
    found = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), list(known), n=1)
    return f": did you mean {prefix}{found[0]}?" if found else "."


class _TextLoader(yaml.BaseLoader):
    """Reads every value as text for the setting's own type, and refuses a key that stands there twice.

    YAML's own types take 5e-4 for text and `no` for false, and of two equal keys it takes the last.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} stands there twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Parser(argparse.ArgumentParser):
    """Tells mistakes as every other part of the program does, in one line."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--\w+)(/[\w-]+)?", r"\1", message)  # its name once
        raise ValueError(f"{message}; {self.prog} --help shows the options.")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows each option once, though hyphens are understood too, and its value once."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - 2
        super().__init__(prog, max_help_position=26, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        name = action.option_strings[0]
        is_flag = action.nargs == "?" and action.metavar == "BOOL"  # it alone means true
        return name if is_flag else f"{name} {action.metavar}"


def _add_option(group: Any, declared: dataclasses.Field[Any], kind: Kind) -> None:
    names = dict.fromkeys([f"--{declared.name}", f"--{declared.name.replace('_', '-')}"])
    details: dict[str, Any] = {"help": _help(declared), "metavar": _metavar(declared, kind)}
    if kind.is_list:
        details["nargs"] = "+"
    elif kind.item is bool:  # a flag, that `--flag false` takes back where the file sets it
        details |= {"nargs": "?", "const": "true"}
    group.add_argument(*names, **details)


def _metavar(declared: dataclasses.Field[Any], kind: Kind) -> str:
    name = declared.metadata["metavar"] or kind.item.__name__.upper()
    return f"{name} ..." if kind.is_list else name


def _help(declared: dataclasses.Field[Any]) -> str:
    """The setting's meaning, and its default once."""
    text, default = declared.metadata["help"], declared.default
    if default is False:
        return text
    shown = f"{default:g}" if isinstance(default, float) else default
    return f"{text} (default: {declared.metadata['unset'] or shown})"
