"""Model cards of I-Tuning adapters and of adapters over a captioner, and their push to the Hub.

PEFT would write "text-generation" and the local folder of the base model into the card, and Transformers'
`push_to_hub` would replace that card with an empty one. Neither can be configured by a method.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.constants import REPOCARD_NAME
from peft import PeftModel

from ..captioner.backbones_ituning import is_local
from ..captioner.configuration_ituning import ITuningConfig
from ..utils.errors import UserError
from .config import ITuningTunerConfig


def is_over_captioner(model: PeftModel) -> bool:
    """Return whether the base model is a captioner, of the package or loaded with `trust_remote_code`."""
    config = getattr(model.get_base_model(), "config", None)
    return getattr(config, "model_type", None) == ITuningConfig.model_type


def write_card(model: PeftModel, folder: str, tags: Sequence[str] = ()) -> None:
    """Write the card of "default", if it is an I-Tuning adapter, or of the active adapter."""
    from ..hub.card import write_adapter_card  # here, because importing PEFT imports this module

    config = model.peft_config.get("default")
    if not isinstance(config, ITuningTunerConfig):
        config = model.active_peft_config
    configs: Any = model.peft_config.items()
    others = {name: c.peft_type.value for name, c in configs if not isinstance(c, ITuningTunerConfig)}
    write_adapter_card(folder, config, others, is_over_captioner(model), tags)


def push(
    model: PeftModel,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: Sequence[str] | None = None,
) -> Any:
    """Upload the adapters and their card; a card that was edited on the Hub is kept.

    Args:
        model: The PEFT model.
        repo_id: The repository; created if it does not exist.
        private: Make a new repository private.
        token: The token; by default the stored one or HF_TOKEN.
        revision: The branch, created if it does not exist; "main" by default.
        commit_message: The title of the commit.
        commit_description: The rest of its message.
        create_pr: Open a pull request instead.
        max_shard_size: Ignored: an adapter is one file.
        tags: Further tags for the card.

    Returns:
        The commit.

    Raises:
        UserError: if the base model or the vision encoder is a local folder; nothing is uploaded.
    """
    for config in model.peft_config.values():
        for field in ("base_model_name_or_path", "vision_model_name_or_path"):
            name = getattr(config, field, None)
            if name is not None and is_local(name):
                raise UserError(
                    f"{field} is the local folder {name!r}, which others do not have: set it in "
                    "model.peft_config to the Hub id of the same model."
                )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with TemporaryDirectory() as folder:
        if api.file_exists(repo_id, REPOCARD_NAME, revision=revision):
            card = api.hf_hub_download(repo_id, REPOCARD_NAME, revision=revision)
            shutil.copyfile(card, Path(folder, REPOCARD_NAME))
        model.save_pretrained(folder)
        write_card(model, folder, tags or ())
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or "Upload adapter",
            commit_description=commit_description,
            create_pr=create_pr,
        )


def replace_method(name: str, replacement: Any, applies_to: Callable[[PeftModel], bool]) -> None:
    """Replace a method of `PeftModel` for some models; others keep the original."""
    original = getattr(PeftModel, name)

    @wraps(original)
    def method(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        return (replacement if applies_to(self) else original)(self, *args, **kwargs)

    setattr(PeftModel, name, method)


__all__ = ["is_over_captioner", "push", "replace_method", "write_card"]
