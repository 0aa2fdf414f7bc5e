"""What of a captioner goes to the Hub, and what each of its files holds there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.constants import REPOCARD_NAME as CARD
from transformers.utils import CONFIG_NAME

from ..captioner.json_ituning import parse_json
from .evaluation_results import is_absolute
from .facts import facts_of
from .render import render
from .writing import is_rendered, write_card
from .written_card import complete_card


@dataclass(frozen=True)
class Place:
    """Where a frozen model will be loaded from by whoever uses the captioner."""

    name: str
    revision: str | None  # None: the commit is still to be found out, and the fingerprint to be compared
    recorded: str
    fingerprint: str

    def replace_in(self, text: str) -> str:
        """Name this place wherever a text names the local folder that it stands in for."""
        if not is_absolute(self.recorded):  # an id, which may be any word, such as "gpt2"
            return text
        return re.sub(r"(?<![\w.-])" + re.escape(self.recorded) + r"(?![\w-]|\.\w)", self.name, text)


@dataclass(frozen=True)
class Review:
    """A captioner's folder that may go to the Hub."""

    folder: Path
    names: tuple[str, ...]
    places: Mapping[str, Place]  # "vision" and "text"
    left_out: tuple[str, ...]  # hidden files and folders

    @property
    def card_is_rendered(self) -> bool:
        """Whether this package rendered the card, and nobody has edited it since."""
        return is_rendered(self.folder / CARD)

    def contents(self, repo_id: str, revisions: Mapping[str, str]) -> dict[str, Path | bytes]:
        """Return what each file will hold: itself, or other bytes where it names a place that is replaced.

        A card that was rendered is rendered anew, with the captioner's id in it. A person's keeps its words;
        what is left in it of the rendered one is rendered anew, and its metadata completed.

        Args:
            repo_id: The captioner's id on the Hub.
            revisions: For "vision" and "text" the commit that each model will be loaded at.
        """
        contents = {name: self._content(name, revisions) for name in self.names}
        with TemporaryDirectory() as folder:
            for name, content in contents.items():
                data = content if isinstance(content, bytes) else content.read_bytes()
                Path(folder, name).write_bytes(data)
            if write_card(folder, repo_id=repo_id):
                contents[CARD] = Path(folder, CARD).read_bytes()
            else:
                contents[CARD] = self._written_card(Path(folder), repo_id)
        return contents

    def _written_card(self, prepared: Path, repo_id: str) -> Path | bytes:
        """Complete a person's card by what the files that will be on the Hub tell."""
        before, after = render(facts_of(self.folder)), render(facts_of(prepared, repo_id=repo_id))
        text = complete_card((prepared / CARD).read_text(encoding="utf-8"), before, after, repo_id)
        path = self.folder / CARD
        return path if text == path.read_text(encoding="utf-8") else text.encode()

    def _content(self, name: str, revisions: Mapping[str, str]) -> Path | bytes:
        """Replace local folders where one may be named: nothing else, the vocabulary least, is a text."""
        path = self.folder / name
        if name != CARD and not name.endswith("config.json"):
            return path
        stored = path.read_text(encoding="utf-8")
        if name == CARD:
            text = self._replace_in(stored)
            return path if text == stored else text.encode()
        before = parse_json(stored)
        after = self._replace_in(before)  # older captioners name them in more than one place
        if name == CONFIG_NAME:
            for kind, place in self.places.items():
                after[f"{kind}_model_name_or_path"] = place.name
                after[f"{kind}_model_revision"] = place.revision or revisions[kind]
        return path if after == before else (json.dumps(after, indent=2, sort_keys=True) + "\n").encode()

    def _replace_in(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._replace_in(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._replace_in(part) for part in value]
        if isinstance(value, str):
            for place in self.places.values():
                value = place.replace_in(value)
        return value

    def sizes(self, repo_id: str) -> dict[str, int]:
        """Return the size in bytes of each file that will go; the commits need not be known for that.

        Args:
            repo_id: The captioner's id on the Hub.
        """
        contents = self.contents(repo_id, dict.fromkeys(self.places, "0" * 40))
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(contents.items())
        }


__all__ = ["CARD", "Place", "Review"]
