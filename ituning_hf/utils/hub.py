"""What the Hub's client raises, in one line each: what is the matter, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

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
    """Say what kept the Hub from doing what was asked.

    Args:
        error: What was raised; the errors that it was raised from are looked at too.

    Returns:
        One line, without a full stop; None if the Hub, or the way to it, has no part in the error, or the
        Hub just has no such file.
    """
    chain = list(_with_causes(error))
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return None if isinstance(cause, EntryNotFoundError) else _explain_answer(cause)
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"
        if isinstance(cause, HTTPError):
            return f"{constants.ENDPOINT} cannot be reached, or broke off ({cause}); try again later"
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in chain):
        return "it is not in this machine's cache, and the Hub is not asked (HF_HUB_OFFLINE)"
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message", "").strip().rstrip(".") or f"it answers {status}"
    if isinstance(error, GatedRepoError):
        return f"access to it must be asked for on its page, and the token be given {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no such repository, or it is private: give a token that may read it {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "the Hub's repository has no such revision"
    if status == 401:
        return f"the Hub wants a token that is valid {_LOG_IN}: {said}"
    if status == 403:
        return f"the token may not do this: {said}; give one that may write there {_LOG_IN}"
    if status == 429 or status >= 500:
        return f"the Hub cannot do it for now ({status}); try again later"
    return f"the Hub refuses: {said}"


__all__ = ["explain_hub_error"]
