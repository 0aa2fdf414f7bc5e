"""A reviewed captioner's way to the Hub: one commit, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..captioner.fingerprint_ituning import fingerprint
from ..utils.hub import explain_hub_error
from .contents import CARD, Place, Review
from .review import FILES, review_captioner
from .writing import is_rendered


@dataclass(frozen=True)
class PushResult:
    """Where a captioner now is."""

    repo_id: str
    url: str
    commit: str
    changed: bool  # False: the same content was there already, and no commit was made
    card_kept: bool  # the card there was edited on the Hub, and stays
    not_for_all: Mapping[str, str]  # of a public captioner: its frozen models that are "private" or "gated"


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
) -> PushResult:
    """Put a saved captioner on the Hub, where one line loads it.

    All of it goes in one commit, so that nobody meets a half of it, and pushing again after a failure
    does no harm. Backbones do not go: what is uploaded names them, each at a commit. The folder stays as
    it is.

    What an earlier captioner left in the repository and this one has not, such as its evaluation, is removed
    in the same commit; other files stay. A model card that was edited there stays too, unless the folder's
    was written or edited by a person.

    Args:
        folder: The captioner, as `save_captioner` wrote it.
        repo_id: The repository, such as "org/ituning-coco"; made if it is not there.
        private: Make the repository private.
        revision: The branch; "main" by default, and made if it is not there.
        commit_message: What the history says.
        token: By default the one that `hf auth login` stored, or HF_TOKEN.
        vision_model: The id on the Hub of the frozen vision encoder, where the captioner was trained over a
            local copy of it. Its weights' fingerprint must be the recorded one; its files are downloaded
            for that, if the cache has them not.
        text_model: The same of the frozen language model.

    Returns:
        Where it is.

    Raises:
        ValueError: for an id that the Hub cannot have, or an empty message; for what must not go (see
            `review_captioner`), all told at once and before anything is sent; or a model on the Hub that is
            not the one the adapter was trained on; or a repository that is public and was asked to be
            private.
        OSError: if there is no captioner, or the Hub cannot be reached or refuses.
    """
    check_repo_id(repo_id)
    if not commit_message.strip():
        raise ValueError(f"commit_message is {commit_message!r}, expected what the history is to say.")
    review = review_captioner(folder, vision_model=vision_model, text_model=text_model)
    api = HfApi(token=token)
    revisions = {kind: _commit_of(api, kind, place) for kind, place in review.places.items()}
    with _telling(f"{str(folder)!r} was not pushed to {repo_id!r}, and pushing again does no harm"):
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id!r} was there already and is public, and nothing was pushed: make it private in "
                "its settings on the Hub, or push without --private."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        before = api.model_info(repo_id, revision=revision)
        contents = review.contents(repo_id, revisions)
        if card_kept := _is_edited_there(api, review, repo_id, before):
            del contents[CARD]
        commit = api.create_commit(
            repo_id, _operations(contents, before), commit_message=commit_message, revision=revision
        ).oid
    url, changed = f"{api.endpoint}/{repo_id}", commit != before.sha
    not_for_all = {} if before.private else _not_for_all(api, review)
    return PushResult(repo_id, url, commit, changed, card_kept, not_for_all)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no captioner's id on the Hub, before long work and with no network.

    Args:
        repo_id: "org/name", or a name alone, which the Hub completes by that of the token's owner.

    Raises:
        ValueError: naming it.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no id on the Hub ({error}): give one such as org/my-captioner."
        ) from error


def _not_for_all(api: HfApi, review: Review) -> dict[str, str]:
    """Tell of each frozen model that not everybody may load why, as far as the Hub lets this user know."""
    found = {}
    for place in review.places.values():
        with suppress(HTTPError):  # the captioner is there by now, and that counts
            info = api.model_info(place.name)
            if info.private or info.gated:
                found[place.name] = "private" if info.private else "gated"
    return found


def _is_edited_there(api: HfApi, review: Review, repo_id: str, before: ModelInfo) -> bool:
    """Tell whether a person wrote or edited the card on the Hub, and nobody the folder's."""
    if CARD not in _names(before) or not review.card_is_rendered:
        return False
    return not is_rendered(Path(api.hf_hub_download(repo_id, CARD, revision=before.sha)))


def _operations(
    contents: Mapping[str, Path | bytes], before: ModelInfo
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """List what makes the repository this captioner's; of other files it holds nothing is touched."""
    outdated = sorted((_names(before) & FILES) - {*contents, CARD})
    return [
        *(CommitOperationAdd(name, content) for name, content in contents.items()),
        *(CommitOperationDelete(name) for name in outdated),
    ]


def _names(info: ModelInfo) -> set[str]:
    return {file.rfilename for file in info.siblings or ()}


def _commit_of(api: HfApi, kind: str, place: Place) -> str:
    """Find the commit to load a frozen model at, and prove that it is the model that the adapter knows."""
    if place.revision is not None:
        return place.revision
    with _telling(f"the frozen {kind} model cannot be had from {place.name!r}"):
        commit = api.model_info(place.name).sha
        found = fingerprint(kind, place.name, revision=commit, token=api.token)
    if found != place.fingerprint:
        raise ValueError(
            f"The {kind} model {place.name!r} on the Hub is not the one this adapter was trained on: its "
            f"weights have fingerprint {found}, wanted {place.fingerprint}. Give the "
            f"right one, --{kind}_model ID."
        )
    return str(commit)


@contextmanager
def _telling(failed: str) -> Iterator[None]:
    """Tell in one line what the Hub, or the way to it, had against it."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        if (explanation := explain_hub_error(error)) is None:
            raise
        raise OSError(f"{failed}: {explanation}.") from error


__all__ = ["PushResult", "check_repo_id", "push_captioner"]
