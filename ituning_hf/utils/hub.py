"""Explain errors of the Hub's client in one line, with what to do."""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LOG_IN = "(`hf auth login`, or HF_TOKEN in the environment)"


def explain_hub_error(error: BaseException) -> str | None:
    """Explain why a request to the Hub failed.

    Args:
        error: The error. Its causes are examined too.

    Returns:
        One line, without a full stop; None if the Hub did not cause the error, or only lacks the file.
    """
    chain, following = [error], error.__cause__ or error.__context__
    while following is not None:
        chain.append(following)
        following = following.__cause__ or following.__context__
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return None if isinstance(cause, EntryNotFoundError) else _explain_answer(cause)
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to contact the Hub"
        if isinstance(cause, HTTPError):
            return f"{constants.ENDPOINT} cannot be reached ({cause}); try again later"
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in chain):
        return "it is not in the local cache, and HF_HUB_OFFLINE is set"
    return None


def _explain_answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message", "").strip().rstrip(".") or f"status {status}"
    if isinstance(error, GatedRepoError):
        return f"request access on its page and give a token {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no such repository, or it is private: give a token that may read it {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if status == 401:
        return f"the token is not valid {_LOG_IN}: {said}"
    if status == 403:
        return f"the token lacks the permission: {said}; give one that may write to the repository {_LOG_IN}"
    if status == 429 or status >= 500:
        return f"the Hub is temporarily unavailable ({status}); try again later"
    return f"the Hub refused the request: {said}"
