"""The card in a captioner's folder: written, renewed, and never written over what a person wrote."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME

from .facts import PLACEHOLDER, facts_of
from .render import render

_SIGNATURE = (
    "\n<!-- Rendered by ituning_hf, {digest}. Edit it freely: an edited card is never written over. -->\n"
)
_SIGNED = re.compile(r"\n<!-- Rendered by ituning_hf, ([0-9a-f]{16})\. [^\n]* -->\n\Z")


def render_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
    language: str | None = None,
) -> ModelCard:
    """Render the model card of a saved captioner from the files in its folder.

    Args:
        folder: The captioner's, with `config.json` and the adapter. `training.json` and `evaluation.json`
            tell more.
        repo_id: Its id on the Hub, for the usage code; by default a placeholder.
        license: The adapter's licence, by the Hub's identifier, such as "apache-2.0".
        language: The captions' language, as a code of two letters.

    Returns:
        The card; the same files and arguments give the same bytes.

    Raises:
        OSError: if there is no captioner.
        ValueError: if one of its files is damaged, or the licence or language is no identifier.
    """
    _check_identifier("license", license, "apache-2.0")
    _check_identifier("language", language, "en")
    card = render(facts_of(folder, repo_id=repo_id or PLACEHOLDER, license=license, language=language))
    text = str(card)
    return ModelCard(text + _SIGNATURE.format(digest=_digest(text)))


def write_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
    language: str | None = None,
) -> bool:
    """Write the model card of a saved captioner, `README.md` in its folder.

    A card ends with a digest of itself. One whose digest holds was rendered by this package: it is renewed,
    and keeps the licence and the language that it was given before where no others are given. Any other was
    written or edited by a person, and is left alone.

    Args:
        folder: The captioner's.
        repo_id: As for `render_card`, like the arguments that follow it.
        license: The adapter's licence.
        language: The captions' language.

    Returns:
        Whether it was written; False if a person's card is there.

    Raises:
        OSError, ValueError: as `render_card`.
    """
    path = Path(folder) / REPOCARD_NAME
    if path.exists():
        if not is_rendered(path):
            return False
        before = ModelCard(path.read_text(encoding="utf-8")).data
        license, language = license or before.get("license"), language or before.get("language")
    card = render_card(folder, repo_id=repo_id, license=license, language=language)
    path.write_text(str(card), encoding="utf-8")
    return True


def _check_identifier(name: str, value: str | None, example: str) -> None:
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", value):
        raise ValueError(f"{name} is {value!r}, expected the Hub's identifier, such as {example!r}.")


def is_rendered(path: Path) -> bool:
    """Tell whether this package rendered a card, and nobody has edited it since."""
    # A checkout may have changed its line ends, which reading undoes. What is not UTF-8 is not ours.
    text = path.read_text(encoding="utf-8", errors="replace")
    signed = _SIGNED.search(text)
    return signed is not None and signed[1] == _digest(text[: signed.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
