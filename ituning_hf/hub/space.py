"""Creates a Space on the Hub that runs the app for a pushed captioner."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, SpaceCard
from huggingface_hub.constants import REPOCARD_NAME

from ..utils.errors import UserError
from .repository import create_repository, hub_errors

_PACKAGE = Path(__file__).parents[1]
_APP = '''\
"""The app for {repo_id}."""

from ituning_hf.serving.app import launch_app
from ituning_hf.serving.captioners import load_captioners

launch_app(load_captioners(["{repo_id}"])).block_thread()
'''
_CARD = """\
---
title: {title!r}
---

An app for the image captioner [{repo_id}](https://huggingface.co/{repo_id}), made by `ituning push --space`.
The folder `ituning_hf` has its code.
"""


def push_space(
    repo_id: str,
    *,
    private: bool = False,
    commit_message: str = "Upload app",
    token: str | None = None,
) -> CommitInfo:
    """Create the Space that runs the app for a captioner on the Hub, or update it.

    The package is not installed from an index: its code is uploaded to the Space. The text of the Space's
    README.md, and its settings other than the versions and the captioner, stay if the Space exists.

    Args:
        repo_id: The captioner's repository, which is also the Space's name.
        private: Make the Space private.
        commit_message: The message of the commit.
        token: The token; by default the stored one or HF_TOKEN.

    Returns:
        The commit of the Space.

    Raises:
        UserError: if gradio is not installed, or the Space exists and is public with `private=True`.
        OSError: if the Hub cannot be reached or refuses.
    """
    api = HfApi(token=token)
    require_gradio()
    with hub_errors(f"The Space {repo_id!r} was not pushed"), TemporaryDirectory() as staged:
        exists = api.file_exists(repo_id, REPOCARD_NAME, repo_type="space")
        space = {"repo_type": "space", "space_sdk": "gradio"}
        repo_id = create_repository(api, repo_id, private, **space)
        card = api.hf_hub_download(repo_id, REPOCARD_NAME, repo_type="space") if exists else None
        _stage(Path(staged), repo_id, card)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=staged,
            commit_message=commit_message,
            delete_patterns=f"{_PACKAGE.name}/*",
        )


def list_space_files(repo_id: str) -> dict[str, int]:
    """Return the size in bytes of each file of a new Space; the Hub is not asked.

    The files of the package count as one, named "ituning_hf/".

    Raises:
        UserError: if gradio is not installed.
    """
    with TemporaryDirectory() as staged:
        _stage(Path(staged), repo_id, None)
        package, *files = sorted(Path(staged).iterdir(), key=Path.is_file)
        code = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
        return {path.name: path.stat().st_size for path in sorted(files)} | {f"{package.name}/": code}


def require_gradio() -> str:
    """Return the installed version of gradio, which the Space runs too.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return version("gradio")
    except PackageNotFoundError as error:
        raise UserError(
            "--space gives the Space the installed version of gradio, and it is not installed: run pip "
            "install 'ituning_hf[app]'."
        ) from error


def _stage(staged: Path, repo_id: str, card: str | None) -> None:
    """Write the Space's files to a folder; `card` is the path of its README.md, if it has one."""
    left_out = shutil.ignore_patterns("__pycache__", "scene_backbones")
    shutil.copytree(_PACKAGE, staged / _PACKAGE.name, ignore=left_out)
    (staged / "app.py").write_text(_APP.format(repo_id=repo_id), encoding="utf-8")
    lines = [line for line in requires("ituning_hf") or () if "extra ==" not in line]  # gradio is the SDK
    (staged / "requirements.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    _write_card(staged / REPOCARD_NAME, repo_id, card)


def _write_card(path: Path, repo_id: str, existing: str | None) -> None:
    new = _CARD.format(title=repo_id.rpartition("/")[2], repo_id=repo_id)
    card = SpaceCard(new if existing is None else Path(existing).read_text("utf-8"))
    settings: dict[str, Any] = {
        "sdk": "gradio",
        "sdk_version": require_gradio(),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [repo_id],
    }
    for name, value in settings.items():
        card.data[name] = value
    card.save(path)


__all__ = ["list_space_files", "push_space"]
