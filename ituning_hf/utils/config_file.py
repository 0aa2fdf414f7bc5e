"""The file of settings that `--config` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

_YAML_TAG = "tag:yaml.org,2002:"


class _TextLoader(yaml.BaseLoader):
    """Reads every value as text. YAML's own types would read 5e-4 as text, and no as false."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag.removeprefix(_YAML_TAG) not in ("str", "seq", "map"):
            tag = node.tag.replace(_YAML_TAG, "!!")
            raise yaml.YAMLError(f"{tag} in line {node.start_mark.line + 1} is a tag: write the value alone")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"{repeated!r} appears twice")
        return super().construct_mapping(node, deep)


def read_config_file(path: str) -> dict[str, Any]:
    """Read a YAML file of settings, or the `run.json` of a training run, which holds them as "settings"."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_TextLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not a YAML file of settings: {error}") from error
    is_run = isinstance(content, dict) and "ituning_hf" in content  # the version, in run.json only
    settings = content.get("settings") if is_run else content
    if not isinstance(settings, dict):
        raise UserError(f"--config {path} holds no settings, expected lines of 'name: value'")
    return {name: None if value in ("", "~", "null") else value for name, value in settings.items()}
