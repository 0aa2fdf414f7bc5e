"""What a setting is made of: its field, its rule, and how it is read from text and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

_KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's words


@dataclass(frozen=True)
class Rule:
    """What a setting's value must be.

    Args:
        expected: In words, for the error.
        holds: Whether a value of the declared type fulfils it.
    """

    expected: str
    holds: Callable[[Any], bool]


ANY = Rule("anything", lambda value: True)
NOT_EMPTY = Rule("something, not an empty text", lambda text: text.strip() != "")
AT_LEAST_ONE = Rule("at least 1", lambda number: number >= 1)
NOT_NEGATIVE = Rule("at least 0", lambda number: number >= 0)
POSITIVE = Rule("more than 0", lambda number: number > 0)
SHARE = Rule("0 to 1", lambda number: 0 <= number <= 1)
BELOW_ONE = Rule("0 to 1, 1 excluded", lambda number: 0 <= number < 1)
BETWEEN_0_AND_1 = Rule("more than 0 and less than 1", lambda number: 0 < number < 1)
CAPTION_LENGTH = Rule("at least 3", lambda tokens: tokens >= 3)  # begin, one of the caption, end
SEED = Rule("0 to 2147483647", lambda seed: 0 <= seed < 2**31)
EVERY = Rule(
    "'epoch' or a number of steps, at least 1",
    lambda text: text == "epoch" or (text.isdecimal() and int(text) >= 1),
)


def one_of(choices: Sequence[str]) -> Rule:
    """Return the rule of a setting that is one of a few words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def some_of(choices: Sequence[str]) -> Rule:
    """Return the rule of a list of some of a few words, each at most once."""
    return Rule(
        f"none, or any of {', '.join(choices)}, each once",
        lambda values: set(values) <= set(choices) and len(set(values)) == len(values),
    )


def option(
    default: Any, text: str, rule: Rule = ANY, metavar: str | None = None, unset: str | None = None
) -> Any:
    """Return the dataclass field of a setting.

    Args:
        default: Its value where nothing is given; a list is copied.
        text: What it means, with its unit.
        rule: What its value must be.
        metavar: What stands for its value in the help; by default the type's name.
        unset: What its default amounts to, where that is None or an empty list.
    """
    metadata = {"help": text, "rule": rule, "metavar": metavar, "unset": unset}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Kind:
    """A setting's type, taken apart.

    Args:
        item: int, float, str or bool: the type of the value, or of a list's items.
        is_list: Whether it is a list.
        is_optional: Whether it may be None.
    """

    item: type
    is_list: bool
    is_optional: bool

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """Take apart an annotation, such as `int`, `list[str]` or `list[int] | None`."""
        is_optional = NoneType in get_args(hint)
        if is_optional:
            hint = next(part for part in get_args(hint) if part is not NoneType)
        is_list = get_origin(hint) is list
        return cls(get_args(hint)[0] if is_list else hint, is_list, is_optional)

    @property
    def name(self) -> str:
        """The type in words, for errors."""
        return f"a list, each {_KIND_NAMES[self.item]}" if self.is_list else _KIND_NAMES[self.item]

    def parse(self, value: str | list[str]) -> Any:
        """Turn what a command line or a file holds into a value of this type.

        A single text stands for a list of one; `none` for no word at all, and for no value where there need
        be none.

        Raises:
            ValueError: if it cannot be read so.
        """
        if self.is_optional and value in ("none", ["none"]):
            return None
        if self.is_list:
            items = [value] if isinstance(value, str) else value
            return (
                [] if self.item is str and items == ["none"] else [self._parse_item(item) for item in items]
            )
        return self._parse_item(value)

    def _parse_item(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no single value")
        if self.item is bool:
            if text.lower() not in _BOOLEANS:
                raise ValueError(f"{text!r} is neither true nor false")
            return _BOOLEANS[text.lower()]
        return self.item(text)

    def adapt(self, value: Any) -> Any:
        """Bring what a Python caller may reasonably give into the declared form: a path, a lone text."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self.is_list and isinstance(value, str):
            return self.parse(value)
        if self.is_list and isinstance(value, (list, tuple)):
            return [] if list(value) == ["none"] else list(value)
        return value

    def holds(self, value: Any) -> bool:
        """Say whether a value is of this type; a whole number is a number too, and a truth value is not."""
        if value is None:
            return self.is_optional
        if self.is_list:
            return isinstance(value, list) and all(self._is_item(item) for item in value)
        return self._is_item(value)

    def _is_item(self, value: Any) -> bool:
        if isinstance(value, bool):
            return self.item is bool
        return isinstance(value, (int, float) if self.item is float else self.item)


def kinds_of(settings: type) -> dict[str, Kind]:
    """Return the type of each field of a dataclass, by its name."""
    hints = get_type_hints(settings)
    return {declared.name: Kind.of(hints[declared.name]) for declared in fields(settings)}


def check_value(name: str, value: Any, kind: Kind, rule: Rule) -> None:
    """Check a setting's value.

    Raises:
        ValueError: worded with the command line's flag.
    """
    if not kind.holds(value):
        raise ValueError(f"--{name} is {value!r}, expected {kind.name}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--{name} is {value}, expected a finite number.")
    if value is not None and not rule.holds(value):
        raise ValueError(f"--{name} is {value!r}, expected {rule.expected}.")


@dataclass
class Settings:
    """Base of the settings of a command: a dataclass whose fields are all made by `option`.

    Raises:
        ValueError: for a value of the wrong type or out of its range, worded with the command line's flags.
    """

    paths: ClassVar[frozenset[str]] = frozenset()  # those in which ~ stands for the home folder

    def __post_init__(self) -> None:
        """Check every value before anything is loaded."""
        kinds = kinds_of(type(self))
        for declared in fields(self):
            kind, rule = kinds[declared.name], declared.metadata["rule"]
            value = kind.adapt(getattr(self, declared.name))
            if declared.name in self.paths and isinstance(value, str):
                value = os.path.expanduser(value)  # no shell has seen a YAML file
            if rule is EVERY and type(value) is int:
                value = str(value)
            setattr(self, declared.name, value)
            check_value(declared.name, value, kind, rule)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)
