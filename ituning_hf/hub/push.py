"""Pushes a saved captioner to the Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..captioner import modeling_ituning
from ..captioner.backbones_ituning import Backbone, is_local
from ..inference.loading import load_processor, read_config
from ..utils.errors import UserError
from ..utils.files import read_json, write_json
from .card import PLACEHOLDER, is_rendered, read_front_matter, write_card
from .endpoint import ENDPOINT_FILES, write_endpoint_files
from .inspection import describe
from .records import EVALUATION_FILE, TRAINING_FILE
from .repository import create_repository, hub_errors

_CODE = sorted(Path(modeling_ituning.__file__).parent.glob("*_ituning.py"))
# The files of a captioner; nothing else is pushed.
FILES = (
    CONFIG_NAME,
    SAFE_WEIGHTS_NAME,
    REPOCARD_NAME,
    GENERATION_CONFIG_NAME,
    TRAINING_FILE,
    EVALUATION_FILE,
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    *(path.name for path in _CODE),
)


def push_captioner(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload captioner",
    token: str | None = None,
    vision_model: str | None = None,
    text_model: str | None = None,
    endpoint: bool = False,
) -> CommitInfo:
    """Push a saved captioner to the Hub. The folder does not change.

    The backbones are not uploaded; the pushed configuration names them. Files of an earlier captioner, such
    as its evaluation, are removed from the repository; other files stay. A model card that was edited on the
    Hub stays, unless the card in the folder was edited too.

    Args:
        folder: The captioner's folder, as `save_captioner` wrote it.
        repo_id: The repository, such as "org/ituning-coco"; created if it does not exist.
        private: Make the repository private.
        revision: The branch, created if it does not exist; "main" by default.
        commit_message: The message of the commit.
        token: The token; by default the stored one or HF_TOKEN.
        vision_model: The Hub id of the frozen vision encoder, if the captioner was trained over a local copy.
            Its weights must have the recorded fingerprint.
        text_model: The Hub id of the frozen language model, in the same case.
        endpoint: Push `handler.py` and `requirements.txt` too, with which Hugging Face Inference Endpoints
            serve the captioner.

    Returns:
        The commit; the last one if the repository had the same files.

    Raises:
        UserError: for an invalid repository id; a captioner that cannot be loaded; a backbone in a local
            folder, or one on the Hub with other weights; or a public repository with `private=True`.
        OSError: if there is no captioner, or the Hub cannot be reached or refuses.
    """
    unpinned = _check_captioner(folder, repo_id, vision_model, text_model)
    api = HfApi(token=token)
    backbones = {kind: _pin(api, folder, kind, name) for kind, name in unpinned.items()}
    with hub_errors(f"{os.fspath(folder)!r} was not pushed to {repo_id!r}"), TemporaryDirectory() as staged:
        repo_id = create_repository(api, repo_id, private)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        _stage(folder, Path(staged), repo_id, backbones, endpoint)
        files = [*FILES, *(ENDPOINT_FILES if endpoint else ())]
        if _card_was_edited_on_hub(api, repo_id, revision, Path(staged)):
            files.remove(REPOCARD_NAME)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=staged,
            revision=revision,
            commit_message=commit_message,
            allow_patterns=files,
            delete_patterns=files,
        )


def list_files(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    vision_model: str | None = None,
    text_model: str | None = None,
    endpoint: bool = False,
) -> dict[str, int]:
    """Return the size in bytes of each file that `push_captioner` uploads; the Hub is not asked.

    The arguments and errors are those of `push_captioner`.
    """
    unpinned = _check_captioner(folder, repo_id, vision_model, text_model)
    backbones = {kind: (name, "0" * 40) for kind, name in unpinned.items()}
    with TemporaryDirectory() as staged:
        _stage(folder, Path(staged), repo_id, backbones, endpoint)
        return {path.name: path.stat().st_size for path in sorted(Path(staged).iterdir())}


def missing_metadata(folder: str | os.PathLike[str]) -> list[str]:
    """Return which of "license" and "language" the model card of a captioner does not name."""
    data = read_front_matter(folder)
    return [name for name in ("license", "language") if not data.get(name)]


def _check_captioner(
    folder: str | os.PathLike[str], repo_id: str, vision_model: str | None, text_model: str | None
) -> dict[str, str]:
    """Refuse a captioner that others could not load, without network access.

    Returns the Hub ids of the backbones without a known commit: the given ones, and those stored without.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a Hub id, such as org/my-captioner: {error}") from error
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {os.fspath(folder)!r}: give a saved captioner.")
    description = describe(folder)  # reads the adapter and compares it with the configuration
    load_processor(folder)
    read_front_matter(folder)
    unpinned, local = {}, {}
    for kind, given in (("vision", vision_model), ("text", text_model)):
        stored = description[f"{kind}_model"]
        name = given or stored["name_or_path"]
        if name is None or is_local(name):
            local[kind] = name
        elif given or stored["revision"] is None:
            unpinned[kind] = name
    if local:
        folders = " ".join(
            f"The frozen {kind} model is the local folder {name!r}." for kind, name in local.items()
        )
        flags = " ".join(f"--{kind}_model org/NAME" for kind in local)
        raise UserError(
            f"{folders} Others cannot load a local folder: give the Hub id of the same model, {flags}. `hf "
            "upload org/NAME FOLDER` uploads a model."
        )
    return unpinned


def _pin(api: HfApi, folder: str | os.PathLike[str], kind: str, name: str) -> tuple[str, str]:
    """Return a backbone's Hub id and newest commit, after a comparison with the recorded fingerprint."""
    with hub_errors(f"The frozen {kind} model {name!r} cannot be read"):
        commit = str(api.model_info(name).sha)
        found = Backbone(kind, name, commit, token=api.token).fingerprint()
    expected = read_config(folder)[1].get(f"{kind}_model_fingerprint")
    if found != expected:
        raise UserError(
            f"{name!r} is not the {kind} model that the adapter was trained on: its weights have fingerprint "
            f"{found}, expected {expected}. Give the correct model, --{kind}_model ID."
        )
    return name, commit


def _stage(
    folder: str | os.PathLike[str],
    staged: Path,
    repo_id: str,
    backbones: Mapping[str, tuple[str, str]],
    endpoint: bool,
) -> None:
    """Copy a captioner's files to a folder, with the backbones and the repository's id filled in.

    The code comes from this package: in the captioner's folder it may have been changed.
    """
    for name in FILES:
        if (source := Path(folder, name)).is_file():
            shutil.copyfile(source, staged / name)
    for source in _CODE:
        shutil.copyfile(source, staged / source.name)
    config = read_json(staged / CONFIG_NAME)
    for kind, (name, commit) in backbones.items():
        config |= {f"{kind}_model_name_or_path": name, f"{kind}_model_revision": commit}
    if backbones:
        write_json(staged / CONFIG_NAME, config)
    if not write_card(staged, repo_id=repo_id):  # a person's card
        card = staged / REPOCARD_NAME
        card.write_bytes(card.read_bytes().replace(PLACEHOLDER.encode(), repo_id.encode()))
    if endpoint:
        write_endpoint_files(staged)


def _card_was_edited_on_hub(api: HfApi, repo_id: str, revision: str | None, staged: Path) -> bool:
    """Return whether a person wrote or edited the card on the Hub, and not the one in the folder."""
    if not is_rendered(staged / REPOCARD_NAME):
        return False
    if not api.file_exists(repo_id, REPOCARD_NAME, revision=revision):
        return False
    return not is_rendered(Path(api.hf_hub_download(repo_id, REPOCARD_NAME, revision=revision)))


__all__ = ["list_files", "missing_metadata", "push_captioner"]
