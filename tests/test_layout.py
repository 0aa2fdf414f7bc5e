"""The package's layout: imports run in one direction, and the Hub files stand alone."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ituning_hf

PACKAGE = Path(ituning_hf.__file__).parent
# A folder may import from its own group and from the groups before it.
ORDER = (
    {"captioner"},
    {"utils"},
    {"data"},
    {"features"},
    {"inference"},
    {"evaluation"},
    {"hub"},
    {"training", "tuner"},
    {"demo"},
    {"cli"},
)
RANK = {folder: rank for rank, group in enumerate(ORDER) for folder in group}
# accelerate is imported for offloaded models only.
HUB_FILE_PACKAGES = {"torch", "transformers", "safetensors", "huggingface_hub", "accelerate"}
# ITuningForCaptioning.from_peft, guarded: remote code runs without the package.
ALLOWED = {("captioner/modeling_ituning.py", "tuner")}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_modules(module: str) -> Iterator[str]:
    """Yield the absolute name of everything that a module imports, inside functions too."""
    parents = ["ituning_hf", *Path(module).parts[:-1]]
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def imported_folders(module: str) -> set[str]:
    names = [name.split(".") for name in imported_modules(module)]
    folders = {parts[1] for parts in names if parts[0] == "ituning_hf" and len(parts) > 1}
    return folders - {"_version", "__version__", "_lazy"}


@pytest.mark.parametrize("module", [module for module in MODULES if "/" in module])
def test_imports_run_in_one_direction(module: str):
    folder = module.split("/")[0]
    assert folder in RANK, f"{folder}/ has no place in the order of imports"
    for imported in imported_folders(module):
        allowed = imported == folder or (
            RANK.get(imported, len(ORDER)) < RANK[folder] or (module, imported) in ALLOWED
        )
        assert allowed, f"{module} imports {imported}"
    if folder == "utils":
        assert "captioner" not in imported_folders(module)


def test_only_these_modules_lie_outside_the_folders():
    assert {module for module in MODULES if "/" not in module} == {"__init__.py", "_version.py"}


def test_the_hub_files_import_libraries_and_one_another_only():
    files = sorted((PACKAGE / "captioner").glob("*.py"))
    assert len(files) == 10  # nine and __init__.py
    for path in files:
        module = f"captioner/{path.name}"
        names = {name.split(".")[0] for name in imported_modules(module)}
        allowed = sys.stdlib_module_names | HUB_FILE_PACKAGES | {"ituning_hf"}
        assert names <= allowed, module
