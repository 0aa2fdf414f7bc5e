"""Public names that are imported when they are first used, and actions that follow an import."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Its modules are attributes too, imported when they are first used.

    Args:
        package: The package's `__name__`.
        modules: The public names in each of its modules.
    """
    origins = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in origins:
            if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{origins[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origins})

    return get, names, sorted(origins)


class ImportHook:
    """A finder that runs actions after modules were imported, but not in the middle of importing others.

    An action imports modules of `packages`. A module whose import is still in progress is incomplete, and an
    action that needed it would fail. So actions wait until this thread is not importing any module of
    `packages`. For example, importing a model of Transformers imports the Auto classes before it is complete.

    Args:
        actions: For each module's name, what follows its import. It runs at once if the import was earlier.
        packages: Names of packages, whose modules are watched.
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]], packages: Sequence[str]) -> None:
        self.actions = dict(actions)
        self.prefixes = tuple(f"{package}." for package in packages)
        self.depth = threading.local()  # `value`: the watched modules that this thread is importing
        self.due: list[Callable[[], None]] = []

    def install(self) -> None:
        """Watch imports from here on."""
        sys.meta_path.insert(0, self)
        self.due += [self.actions.pop(name) for name in list(self.actions) if name in sys.modules]
        self._run()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module as Python would, and make its loader report the end of the import."""
        if not name.startswith(self.prefixes) and name not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth.value = getattr(self.depth, "value", 0) + 1
            try:
                execute(module)
            finally:
                self.depth.value -= 1
            if name in self.actions:
                self.due.append(self.actions.pop(name))
            if self.depth.value == 0:
                self._run()

        # The loader belongs to this module alone. A wrapper class would have to imitate all its methods.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _run(self) -> None:
        while self.due:
            self.due.pop(0)()
