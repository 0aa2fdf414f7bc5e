"""The package's layout: directions of imports, Hub files that stand alone, and names of model families."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import ituning_hf

PACKAGE = Path(ituning_hf.__file__).parent
# A folder may import from itself and from the groups before its own.
ORDER = (
    {"captioner", "utils"},
    {"data", "pages"},
    {"features"},
    {"inference"},
    {"evaluation"},
    {"hub"},
    {"training", "tuner", "serving"},
    {"demo"},
    {"cli"},
)
RANK = {folder: rank for rank, group in enumerate(ORDER) for folder in group}
# NumPy and Pillow are required by the image processor; accelerate is imported for offloaded models only.
HUB_FILE_PACKAGES = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "PIL", "accelerate"}
# ITuningForCaptioning.from_peft, guarded: remote code runs without the package.
ALLOWED = {("captioner/modeling_ituning.py", "tuner")}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_names(module: str) -> Iterator[list[str]]:
    """Yield the parts of every absolute name that a module imports, inside functions too."""
    parents = ["ituning_hf", *Path(module).parts[:-1]]
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from ([*base, alias.name] for alias in node.names)


def test_every_module_is_in_a_known_folder():
    assert {module.split("/")[0] for module in MODULES} <= RANK.keys() | {"__init__.py", "_version.py"}


def test_imports_run_in_one_direction():
    for module in MODULES:
        folder = module.split("/")[0]
        imported = {name[1] for name in imported_names(module) if name[0] == "ituning_hf"} & RANK.keys()
        later = {name for name in imported - {folder} if RANK[name] >= RANK.get(folder, len(ORDER))}
        assert {(module, name) for name in later} <= ALLOWED


def test_the_hub_files_import_only_libraries_and_one_another():
    files = [module for module in MODULES if module.startswith("captioner/")]
    assert len(files) == 13  # twelve and __init__.py
    allowed = sys.stdlib_module_names | HUB_FILE_PACKAGES | {"ituning_hf"}
    wrong = [(module, name) for module in files for name in imported_names(module) if name[0] not in allowed]
    assert wrong == []


FAMILY = re.compile(
    r"(?i:gpt|(?<!o)llama|smollm|qwen|gemma|siglip|deit|dino)|(?<![A-Z])OPT(?![A-Z]{2})|(?<![a-z])opt(?![a-z])"
    r"|ViT(?![a-z])|(?<![a-z])vit(?![a-z])|CLIP|Clip(?![a-z])|(?<![a-z])clip(?![a-z])"
)
# Files about families. The demo is a story of two models.
NAME_FAMILIES = r"captioner/(encoders|decoders)_ituning\.py|demo/.*|evaluation/(modules/)?clip_score\.py"
EXCEPT = re.compile(
    r"(full CLIP for )?(Ref)?CLIPScore|clip_(scores?|model)\b"  # the metric and its option
    r"|np\.clip\(|clip_grad_norm_"
    r"|^(DEFAULT_(VISION|TEXT)_MODEL|SIZES) = .*"  # the default backbones
    r'|SubConfigSpec\(AutoConfig, model_type="\w+"\)'
    r"|^ *(>>>|\.\.\.) .*",  # examples in docstrings, which run
    re.MULTILINE,
)


def test_only_the_files_of_the_families_name_them():
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".jinja")]
    found = []
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        if not re.fullmatch(NAME_FAMILIES, name):
            text = EXCEPT.sub("", path.read_text(encoding="utf-8"))
            found += [f"{name}: {line}" for line in text.splitlines() if FAMILY.search(line)]
    assert found == []
