"""A card that a person wrote or edited, made fit for the Hub: the words stay, the metadata are completed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import yaml_dump

from .facts import PLACEHOLDER

_FRONT_MATTER = re.compile(r"\A\s*---\n((?:.*\n)*?)---[ \t]*(?:\n|\Z)")
_MARK = "\ufeff"  # which editors of Windows put first, and behind which the Hub finds no front matter


def read_metadata(card: str) -> dict[str, Any]:
    """Return what a card tells the Hub in its front matter.

    Raises:
        ValueError: if that is not YAML, or no mapping.
    """
    found = _FRONT_MATTER.match(card.removeprefix(_MARK))
    try:
        content = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise ValueError(f"its front matter is not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"its front matter holds a {type(content).__name__}, expected 'name: value'")
    return content or {}


def complete_card(card: str, before: ModelCard, after: ModelCard, repo_id: str) -> str:
    """Make a person's card fit for the Hub.

    Args:
        card: Its text. What it lacks of the metadata is added, and the models that it was made from are
            completed; nothing that a person set is taken away.
        before: The card that is rendered for the folder: where the person's still has its lines, they follow.
        after: The card that is rendered for the Hub.
        repo_id: Stands in for the placeholder of cards that were rendered.
    """
    text = _follow(card.removeprefix(_MARK), before.text, after.text).replace(PLACEHOLDER, repo_id)
    known, own = after.data.to_dict(), read_metadata(text)
    added = {key: value for key, value in known.items() if own.get(key) is None}
    models = _as_list(own.get("base_model"))
    unnamed = [model for model in known.get("base_model", []) if model not in models]
    if models and unnamed:
        added["base_model"] = [*models, *unnamed]
    return _with_metadata(text, added) if added else text


def _follow(text: str, before: str, after: str) -> str:
    """Make the changes from one text to another in a third, wherever it has what is changed."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    for _, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        block = "".join(old[a:b])
        if block.strip() and before.count(block) == 1:  # a blank line stands anywhere
            text = text.replace(block, "".join(new[c:d]))
    return text


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _with_metadata(card: str, added: Mapping[str, Any]) -> str:
    """Set keys in the front matter; the lines of the others stay as a person wrote them."""
    found = _FRONT_MATTER.match(card)
    lines, rest = (found[1], card[found.end() :]) if found else ("", f"\n{card}")
    for key in added:
        lines = re.sub(rf"^{re.escape(key)}[ \t]*:.*\n(?:[ \t-].*\n)*", "", lines, flags=re.MULTILINE)
    return f"---\n{lines}{yaml_dump(dict(added), sort_keys=False)}---\n{rest}"


__all__ = ["complete_card", "read_metadata"]
