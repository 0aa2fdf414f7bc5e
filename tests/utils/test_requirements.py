"""What is said where a library is of a version that the package does not work with."""

import configparser
import subprocess
import sys
from importlib import metadata
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ituning_hf.utils.requirements import check_requirements

ROOT = Path(__file__).resolve().parents[2]
REQUIRES = [
    "transformers<6,>=5.23",
    "accelerate<2,>=1.10",
    "peft<0.22,>=0.21",
    "torch>=2.6",
    "windows-only>=9; sys_platform == 'win32'",
    "pytest>=999; extra == 'dev'",
    "not-installed-at-all>=3",
]


def requirements_of_setup() -> dict[str, Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions that seem to be installed; a test changes them."""
    versions = {"transformers": "5.23.0", "accelerate": "1.10.0", "peft": "0.21.0", "torch": "2.13.0+cpu"}
    versions |= {"windows-only": "1", "pytest": "9"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(metadata, "version", version)
    return versions


@pytest.mark.parametrize(
    ("library", "version"),
    [
        *(
            ("transformers", version)
            for version in ("5.23", "5.23.0", "5.99.1", "5.24.0.dev0", "5.23.0.post1")
        ),
        *(("accelerate", version) for version in ("1.10", "1.10.1", "1.15.0", "1.99")),
        *(("peft", version) for version in ("0.21.0", "0.21.2", "0.21.3.dev0")),
        ("torch", "2.6.0+cu124"),
    ],
)
def test_versions_in_the_range_are_taken(installed, library: str, version: str):
    installed[library] = version
    check_requirements()
    check_requirements(optional=True)


@pytest.mark.parametrize("version", ["4.57.6", "5.22.2", "5.23.0.dev0", "6.0.0"])
def test_another_transformers_is_refused(installed, version: str):
    installed["transformers"] = version
    with pytest.raises(ImportError) as raised:
        check_requirements()
    does_not_work = f"ituning_hf does not work with the installed transformers {version}"
    assert str(raised.value) == f"{does_not_work}: pip install 'transformers<6,>=5.23'"


def test_all_that_does_not_fit_is_named_at_once(installed):
    installed |= {"transformers": "5.0.0", "accelerate": "2.0.0", "torch": "2.5.1"}
    with pytest.raises(ImportError) as raised:
        check_requirements()
    assert str(raised.value) == (
        "ituning_hf does not work with the installed transformers 5.0.0, accelerate 2.0.0, torch 2.5.1: "
        "pip install 'transformers<6,>=5.23' 'accelerate<2,>=1.10' 'torch>=2.6'"
    )


@pytest.mark.parametrize("version", ["0.20.0", "0.22.0", "1.0"])
def test_another_peft_is_refused_by_the_peft_method_alone(installed, version: str):
    installed["peft"] = version
    check_requirements()
    with pytest.raises(
        ImportError, match=rf"^ituning_hf does not work with the installed peft {version}: pip "
    ):
        check_requirements(optional=True)


def test_a_package_that_was_not_installed_says_nothing(installed, monkeypatch: pytest.MonkeyPatch):
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    installed["transformers"] = "4.0"
    monkeypatch.setattr(metadata, "requires", requires)
    check_requirements()


@pytest.mark.parametrize("name", ["transformers", "accelerate", "peft"])
def test_a_range_has_two_ends(name: str):
    specifiers = requirements_of_setup()[name].specifier
    assert sorted(specifier.operator for specifier in specifiers) == ["<", ">="]


IMPORT = """
import sys
from importlib import metadata

true = metadata.version
metadata.version = lambda name: "4.57.6" if name == "transformers" else true(name)
metadata.requires = lambda name: ["transformers>=5.23,<6"]
try:
    import ituning_hf
except ImportError as error:
    print(error, "transformers" in sys.modules)
"""


def test_importing_the_package_says_it_before_transformers_is_imported():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    message, transformers_is_imported = done.stdout.rsplit(" ", 1)
    assert message.startswith("ituning_hf does not work with the installed transformers 4.57.6: pip install ")
    assert transformers_is_imported == "False\n"


def test_both_ends_of_the_ranges_are_taken_from_the_packages_own():
    loader = SourceFileLoader("versions", str(ROOT / ".ci" / "versions"))
    spec = spec_from_loader("versions", loader)
    assert spec is not None
    versions = module_from_spec(spec)
    loader.exec_module(versions)
    newest = {r.name: r for r in map(Requirement, versions.requirements("newest"))}
    lowest = {r.name: r for r in map(Requirement, versions.requirements("lowest"))}
    own = requirements_of_setup()
    assert newest == {name: own[name] for name in ("accelerate", "peft", "transformers")}
    for name, requirement in lowest.items():
        (end,) = requirement.specifier
        assert f">={end.version}" in str(own[name].specifier)
        assert end.operator == "=="
    assert versions.pinned()["torch"]
