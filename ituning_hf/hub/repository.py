"""Create repositories on the Hub, and explain its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi

from ..utils.errors import UserError
from ..utils.hub import explain_hub_error


def create_repository(api: HfApi, repo_id: str, private: bool, **options: Any) -> str:
    """Create a repository if it does not exist.

    Args:
        api: The client.
        repo_id: The repository's name, with or without the user's or organization's.
        private: Whether it must be private.
        **options: For `HfApi.create_repo`, such as the type.

    Returns:
        The complete name.

    Raises:
        UserError: It exists and is public, and must be private.
    """
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True, **options).repo_id
    if private and not api.repo_info(repo_id, repo_type=options.get("repo_type")).private:
        kind = options.get("repo_type", "model")
        raise UserError(
            f"The {kind} {repo_id!r} exists and is public: make it private in its settings on the Hub, or "
            "push without --private."
        )
    return repo_id


@contextmanager
def hub_errors(failed: str) -> Iterator[None]:
    """Explain errors of the Hub and of the connection in one line."""
    try:
        yield
    except Exception as error:
        if (explanation := explain_hub_error(error)) is None:
            raise
        raise OSError(f"{failed}: {explanation}.") from error
