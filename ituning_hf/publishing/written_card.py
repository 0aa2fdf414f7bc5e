"""A card that a person wrote or edited, made fit for the Hub: the words stay, the metadata are completed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

from ..model_card.facts import PLACEHOLDER

_FRONT_MATTER = re.compile(r"\A\s*---\n((?:.*\n)*?)---[ \t]*(?:\n|\Z)")


def read_metadata(card: str) -> dict[str, Any]:
    """Return what a card tells the Hub in its front matter.

    Raises:
        ValueError: if that is not YAML, or no mapping.
    """
    found = _FRONT_MATTER.match(card)
    try:
        content = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise ValueError(f"its front matter is not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"its front matter holds a {type(content).__name__}, expected 'name: value'")
    return content or {}


def complete_card(card: str, known: Mapping[str, Any], repo_id: str, note: str) -> str:
    """Make a person's card fit for the Hub.

    Args:
        card: Its text.
        known: Metadata. What the card lacks of it is added, and the models that it was made from are
            completed; nothing that a person set is taken away.
        repo_id: Stands in for the placeholder of cards that were rendered.
        note: What such a card said of backbones that are not on the Hub; empty if it said nothing.
    """
    text = card.replace(PLACEHOLDER, repo_id)
    if note:
        text = text.replace(f"{note}\n\n", "")
    own = read_metadata(text)
    added = {key: value for key, value in known.items() if own.get(key) is None}
    if (models := _as_list(own.get("base_model"))) and set(known.get("base_model", ())) - set(models):
        added["base_model"] = list(dict.fromkeys([*models, *known["base_model"]]))
    return _with_metadata(text, added) if added else text


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
