"""Everything that a model card is rendered from, and how it is found in a captioner's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .evaluation_results import Benchmark, is_absolute, read_evaluations
from .inspection import describe
from .training_record import DRAWN_SCENES, TrainingRecord, read_training_record

PLACEHOLDER = "your-name/your-captioner"  # where a captioner was not given its id on the Hub

_CLIP = ("MIT", "https://github.com/openai/CLIP/blob/main/LICENSE")
_GPT2 = ("Modified MIT", "https://github.com/openai/gpt-2/blob/master/LICENSE")
# Licences as OpenAI states them where it published the weights. Of any other backbone none is guessed.
_LICENCES = {
    "openai/clip-vit-base-patch16": _CLIP,
    "openai/clip-vit-base-patch32": _CLIP,
    "openai/clip-vit-large-patch14": _CLIP,
    "openai/clip-vit-large-patch14-336": _CLIP,
    **{
        f"{owner}gpt2{size}": _GPT2
        for owner in ("", "openai-community/")
        for size in ("", "-medium", "-large", "-xl")
    },
}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen model under the adapter.

    Args:
        role: What it is there for, in words.
        name: Its id on the Hub or the last part of its folder's name; None if it was built in memory.
        on_hub: Whether that is an id.
        revision: Its revision on the Hub.
        fingerprint: The digest of its weights that is checked at loading.
        parameters: How many it has.
    """

    role: str
    name: str | None
    on_hub: bool
    revision: str | None
    fingerprint: str | None
    parameters: int

    @classmethod
    def of(cls, role: str, description: dict[str, Any]) -> Backbone:
        """Take it from a part of what `describe` returns."""
        place = description["name_or_path"]
        on_hub = place is not None and not is_absolute(place)
        facts = {key: description[key] for key in ("revision", "fingerprint", "parameters")}
        return cls(
            role=role, name=place if on_hub or place is None else last_part(place), on_hub=on_hub, **facts
        )

    @property
    def is_openais(self) -> bool:
        """Whether it is one of the models that OpenAI published, whose training data are known in kind."""
        return self.on_hub and self.name in _LICENCES

    @property
    def licence(self) -> str:
        """Its licence with a link to who says so, or where to look; empty if there is no such place."""
        if not self.on_hub:
            return ""
        if not self.is_openais:
            return f"see [its page](https://huggingface.co/{self.name})"
        name, source = _LICENCES[str(self.name)]
        return f"[{name}]({source})"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a captioner was trained and validated on.

    Args:
        name: What to call the data set, in Markdown.
        splits: The number of images of each split, by its name.
        hub_id: Its id on the Hub.
        terms: Who may do what with it, in Markdown.
    """

    name: str
    splits: dict[str, int]
    hub_id: str | None = None
    terms: str = ""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card tells.

    Args:
        vision: The frozen vision encoder.
        text: The frozen language model.
        adapter: Its shape, as `describe` tells it.
        parameters: "trainable", "frozen" and "total".
        data: What it was trained on, if that is known.
        training: How it was trained, if that is known.
        results: What was measured. A benchmark that is no `EvaluationResult` was not: its cells stay empty.
        results_note: How to read that, in Markdown.
        repo_id: Its id on the Hub.
        title: The heading, if it is not the captioner's name on the Hub.
        notice: What a reader must know first.
        saved_with: The version of Transformers that wrote it.
        license: The adapter's, by the Hub's identifier.
        language: Of its captions, as a code of two letters.
    """

    vision: Backbone
    text: Backbone
    adapter: dict[str, Any]
    parameters: dict[str, int]
    data: DataFacts | None = None
    training: TrainingRecord | None = None
    results: tuple[Benchmark, ...] = ()
    results_note: str = ""
    repo_id: str = PLACEHOLDER
    title: str = ""
    notice: str = ""
    saved_with: str | None = None
    license: str | None = None
    language: str | None = None

    @property
    def backbones(self) -> tuple[Backbone, Backbone]:
        """Both frozen models."""
        return self.vision, self.text

    @property
    def is_named(self) -> bool:
        """Whether it has a name on the Hub."""
        return self.repo_id != PLACEHOLDER

    @property
    def heading(self) -> str:
        """What to call it."""
        name = self.repo_id.rpartition("/")[2] if self.is_named else "I-Tuning image captioner"
        return self.title or name


def facts_of(folder: str | os.PathLike[str], **given: Any) -> CardFacts:
    """Find out what is known of a saved captioner, from the files in its folder alone.

    Args:
        folder: The captioner's.
        **given: What no file tells: `repo_id`, `license`, `language`.

    Raises:
        OSError: if there is no captioner.
        ValueError: if one of its files is damaged.
    """
    description, training = describe(folder), read_training_record(folder)
    return CardFacts(
        vision=Backbone.of("vision encoder", description["vision_model"]),
        text=Backbone.of("language model", description["text_model"]),
        adapter=description["adapter"],
        parameters=description["parameters"],
        data=None if training is None else _data_of(training),
        training=training,
        results=tuple(read_evaluations(folder)),
        saved_with=description["versions"]["saved_with_transformers"],
        **given,
    )


def _data_of(training: TrainingRecord) -> DataFacts:
    splits = {"train": training.num_train_images}
    if training.eval_split is not None:
        splits[training.eval_split] = training.num_eval_images
    if training.dataset in (None, DRAWN_SCENES):
        return DataFacts(name=training.dataset or "images given in Python", splits=splits)
    if not training.dataset_on_hub:
        return DataFacts(name=f"`{training.dataset}`", splits=splits)
    hub_id = training.dataset.partition(":")[0]  # what follows is one of its configurations
    link = f"[{training.dataset}](https://huggingface.co/datasets/{hub_id})"
    return DataFacts(name=link, splits=splits, hub_id=hub_id)


def last_part(path: str) -> str:
    """Return the last part of a path of any system."""
    kind = PureWindowsPath if PureWindowsPath(path).is_absolute() else PurePosixPath
    return kind(path).name
