"""Refuse versions of libraries that the package does not work with, before it fails at something obscure."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

NAME = "ituning_hf"
OPTIONAL = frozenset({"peft"})


def check_requirements(optional: bool = False) -> None:
    """Refuse installed libraries of other versions than the package's metadata allows.

    What is not installed at all is not looked at: its import says so.

    Args:
        optional: Look at the libraries that the captioner can do without, and at them alone.

    Raises:
        ImportError: with each such library, its version, those that work, and the command that installs them.
    """
    misfits = _misfits([r for r in _requirements() if (r.name in OPTIONAL) == optional])
    if misfits:
        found = ", ".join(f"{requirement.name} {version}" for requirement, version in misfits.items())
        wanted = " ".join(f"'{requirement}'" for requirement in misfits)
        raise ImportError(f"{NAME} does not work with the installed {found}: pip install {wanted}")


def _misfits(requirements: list[Requirement]) -> dict[Requirement, str]:
    """Return the requirements that what is installed does not fit, with its versions."""
    found: dict[Requirement, str] = {}
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found[requirement] = version
    return found


def _requirements() -> list[Requirement]:
    """Return what the package requires without extras; nothing where it runs without being installed."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    requirements = map(Requirement, lines)
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


__all__ = ["check_requirements"]
