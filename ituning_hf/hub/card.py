"""Model cards: rendered from the files of a captioner, and never overwritten once a user edits the text."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from jinja2 import Environment, FileSystemLoader

from ..captioner.backbones_ituning import is_local
from ..captioner.configuration_ituning import ADAPTER_OPTIONS
from ..evaluation.scores import METRIC_NAMES
from ..utils.errors import UserError
from ..utils.files import write_text
from .inspection import describe
from .records import (
    EvaluationRecord,
    TrainingRecord,
    read_evaluation_records,
    read_training_record,
    write_evaluation_records,
)

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent))  # compiles each of them once
TEMPLATE = "card.md.jinja"
ADAPTER_TEMPLATE = "adapter_card.md.jinja"  # of an I-Tuning adapter in PEFT
OVER_CAPTIONER_TEMPLATE = "over_captioner_card.md.jinja"  # of a LoRA
PLACEHOLDER = "your-name/your-captioner"  # before the captioner has an id on the Hub
# Transformers runs captioners with this pipeline, and the Hub writes its "Use this model" code for it.
PIPELINE_TAG = "image-text-to-text"
TAGS = ["image-captioning", "i-tuning", "ituning"]
USUAL_METRICS = ("bleu_4", "meteor", "rouge_l", "cider", "spice")
# The Hub has one metric for each family.
_METRIC_IDS = {"bleu_1": "bleu", "bleu_2": "bleu", "bleu_3": "bleu", "bleu_4": "bleu", "rouge_l": "rouge"}
# The front matter that always follows from the captioner's files; a person may set the rest.
_DERIVED = ("base_model", "base_model_relation", "datasets", "metrics", "model-index")
_SIGNATURE = "\n<!-- ituning_hf {digest}: updated by ituning_hf until you edit this text. -->\n"
_SIGNED = re.compile(r"\n<!-- ituning_hf ([0-9a-f]{16}): [^\n]* -->\s*\Z")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The dataset of a model card."""

    name: str  # in Markdown
    splits: Mapping[str, int]  # the number of images of each
    hub_id: str | None = None
    terms: str = ""  # of use, in Markdown


def add_evaluation(folder: str | os.PathLike[str], records: Sequence[EvaluationRecord]) -> bool:
    """Store the scores of an evaluation with a captioner, and show them on its model card.

    They replace earlier scores on the same dataset and split.

    Args:
        folder: The captioner's folder.
        records: The scores of all images, and of each subset.

    Returns:
        Whether the card shows them; False if a person edited the card.
    """
    replaced = {(record.dataset, record.split) for record in records}
    earlier = read_evaluation_records(folder)
    kept = [record for record in earlier if (record.dataset, record.split) not in replaced]
    write_evaluation_records(folder, [*kept, *records])
    return write_card(folder)


def write_card(folder: str | os.PathLike[str], *, repo_id: str | None = None) -> bool:
    """Write the model card of a captioner, `README.md`, unless a person wrote or edited its text.

    What a person adds to the front matter, such as `license` and `language`, is kept.

    Args:
        folder: The captioner's folder.
        repo_id: The captioner's id on the Hub, for the usage code; a placeholder by default.

    Returns:
        Whether the card was written; False if a person's card is there.
    """
    path = Path(folder) / REPOCARD_NAME
    card = render_card(folder, repo_id=repo_id)
    if path.exists():
        if not is_rendered(path):
            return False
        for name, value in read_front_matter(folder).items():
            if name not in _DERIVED:
                card.data[name] = value
    write_text(path, str(card))
    return True


def write_adapter_card(
    folder: str | os.PathLike[str],
    config: Any,
    others: Mapping[str, str],
    over_captioner: bool = False,
    tags: Sequence[str] = (),
) -> None:
    """Write the model card of a PEFT adapter, `README.md`; a person's text and front matter are kept.

    The front matter of such a card is completed with the library, the tags and the base models.

    Args:
        folder: The adapter's folder.
        config: The adapter's [`ITuningTunerConfig`], or any PEFT configuration over a captioner.
        others: The method of each adapter on the same model that is not I-Tuning's, such as "LORA", by name.
        over_captioner: Whether the base model is a captioner, and not a language model.
        tags: Further tags.
    """
    names = {"captioner" if over_captioner else "text": config.base_model_name_or_path}
    if not over_captioner:
        names["vision"] = config.vision_model_name_or_path
    models: dict[str, Any] = {kind: _backbone(kind, {"name_or_path": name}) for kind, name in names.items()}
    tags = [*TAGS, *sorted({method.lower() for method in others.values()}), *tags]
    template = OVER_CAPTIONER_TEMPLATE if over_captioner else ADAPTER_TEMPLATE
    card = _fill(template, _metadata("peft", tags, models), config=config, others=others, **models)
    card = ModelCard(str(card) + _SIGNATURE.format(digest=_digest(str(card))))
    path = Path(folder) / REPOCARD_NAME
    if path.exists():
        earlier = read_front_matter(folder)
        if not is_rendered(path):
            card.text = ModelCard.load(path).text
        for name, value in earlier.items():
            if name == "tags":
                card.data[name] = list(dict.fromkeys([*tags, *value]))
            elif name not in (*_DERIVED, "library_name"):
                card.data[name] = value
    write_text(path, str(card))


def check_card(folder: str | os.PathLike[str]) -> None:
    """Raise a UserError if `write_card` could not update the card because of its front matter."""
    path = Path(folder) / REPOCARD_NAME
    if path.exists() and is_rendered(path):
        read_front_matter(folder)


def read_front_matter(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the front matter of a captioner's card, if any; raise a UserError if it cannot be read."""
    path = Path(folder) / REPOCARD_NAME
    try:
        return ModelCard.load(path).data.to_dict() if path.exists() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"{path} has front matter that cannot be read ({' '.join(str(error).split())}): correct it, or "
            "remove the file, which is then generated again."
        ) from error


def is_rendered(path: Path) -> bool:
    """Return whether the text of a card is as `write_card` wrote it, without later edits."""
    # Reading normalises line ends, which git may have changed. Other encodings than UTF-8 are not ours.
    content = path.read_text(encoding="utf-8", errors="replace")
    signed = _SIGNED.search(content)
    return signed is not None and signed[1] == _digest(content)


def _digest(content: str) -> str:
    """Return the digest of a card's text, without front matter and signature."""
    text = re.sub(r"\A---\n.*?\n---\n", "", _SIGNED.sub("", content), flags=re.DOTALL)
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _metadata(
    library: str, tags: list[str], models: Mapping[str, Mapping[str, Any]], **fields: Any
) -> ModelCardData:
    """Return the front matter of a card; base models are those of `models` that are on the Hub."""
    base_models = [model["name_or_path"] for model in models.values() if model["on_hub"]]
    return ModelCardData(
        library_name=library,
        pipeline_tag=PIPELINE_TAG,
        tags=tags,
        base_model=base_models or None,
        base_model_relation="adapter" if base_models else None,
        **fields,
    )


def render_card(folder: str | os.PathLike[str], *, repo_id: str | None = None) -> ModelCard:
    """Render the model card of a saved captioner; the same files give the same bytes."""
    card = render(
        describe(folder),
        training=read_training_record(folder),
        evaluations=read_evaluation_records(folder),
        repo_id=repo_id,
    )
    return ModelCard(str(card) + _SIGNATURE.format(digest=_digest(str(card))))


def render(
    description: Mapping[str, Any],
    *,
    training: TrainingRecord | None = None,
    data: DataSet | None = None,
    evaluations: Sequence[EvaluationRecord] = (),
    title: str = "",
    notice: str = "",
    repo_id: str | None = None,
) -> ModelCard:
    """Render the card of a captioner that `describe` described; sections without information are left out."""
    if data is None and training is not None:
        data = _data_of(training)
    title = title or (repo_id or "").rpartition("/")[2] or "I-Tuning image captioner"
    backbones = {kind: _backbone(kind, description[f"{kind}_model"]) for kind in ("vision", "text")}
    results = [result for record in evaluations for result in _eval_results(record)]
    metadata = _metadata(
        "transformers",
        TAGS,
        backbones,
        datasets=[data.hub_id] if data is not None and data.hub_id is not None else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return _fill(
        TEMPLATE,
        metadata,
        title=title,
        notice=notice,
        repo_id=repo_id or PLACEHOLDER,
        vision=backbones["vision"],
        text=backbones["text"],
        local=[backbone for backbone in backbones.values() if not backbone["on_hub"]],
        adapter=description["adapter"],
        parameters=description["parameters"],
        data=data,
        training=training,
        settings=list(_settings(training)) if training else [],
        metric_names=METRIC_NAMES,
        results=_results_table(evaluations) if evaluations else [],
        commands=list(dict.fromkeys(record.command for record in evaluations if record.metrics)),
    )


def _fill(template: str, metadata: ModelCardData, **values: Any) -> ModelCard:
    text = TEMPLATES.get_template(template).render(card_data=metadata.to_yaml(), **values)
    return ModelCard(text.rstrip() + "\n")


def _backbone(kind: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the description of a frozen model what the template shows."""
    name = description["name_or_path"]
    on_hub = name is not None and not is_local(name)
    if name is None:
        link = "built in memory"
    elif on_hub:
        link = f"[{name}](https://huggingface.co/{name})"
    else:
        path = PureWindowsPath if PureWindowsPath(name).is_absolute() else PurePosixPath
        link = f"a local folder named `{path(name).name}`"
    return {
        **description,
        "kind": kind,
        "role": {"vision": "vision encoder", "text": "language model"}.get(kind),
        "on_hub": on_hub,
        "link": link,
    }


def _eval_results(record: EvaluationRecord) -> Iterator[EvalResult]:
    for metric, name in METRIC_NAMES.items():
        if metric in record.metrics:
            yield EvalResult(
                task_type="image-to-text",  # the Hub's task, which is not the pipeline's name
                task_name="Image Captioning",
                dataset_type=re.sub(r"[^\w/.-]+", "-", record.dataset.lower()).strip("-"),
                dataset_name=f"{record.dataset} ({record.part})",
                dataset_config=record.subset,
                dataset_split=record.split,
                metric_type=_METRIC_IDS.get(metric, metric),
                metric_name=name,
                metric_value=round(100 * record.metrics[metric], 2),
            )


def _data_of(training: TrainingRecord) -> DataSet:
    images = training.num_train_images
    splits = {} if images is None else {"train": images}
    if training.eval_split is not None:
        splits[training.eval_split] = training.num_eval_images
    if training.dataset is None:
        return DataSet(name="images passed in Python", splits=splits)
    if not training.dataset_on_hub:
        return DataSet(name=f"`{training.dataset}`", splits=splits)
    hub_id = training.dataset.partition(":")[0]  # one of its configurations may follow
    link = f"[{training.dataset}](https://huggingface.co/datasets/{hub_id})"
    return DataSet(name=link, splits=splits, hub_id=hub_id)


def _settings(record: TrainingRecord) -> Iterator[tuple[str, str]]:
    """Return the settings of the training that the card shows nowhere else."""
    for name in sorted(record.settings.keys() - {*ADAPTER_OPTIONS, "eval_split", "mixed_precision"}):
        value = record.settings[name]
        if value not in (None, []) and value is not False:
            yield f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _results_table(records: Sequence[EvaluationRecord]) -> list[list[str]]:
    """Return the header, and a row for each record."""
    measured = {name for record in records for name in record.metrics} or USUAL_METRICS
    shown = {name: title for name, title in METRIC_NAMES.items() if name in measured}
    rows = [["dataset", "split", "images", *shown.values(), "tokenizer"]]
    for record in records:
        unreadable = f" ({record.num_unreadable:,} unreadable)" if record.num_unreadable else ""
        scores = (f"{100 * record.metrics[name]:.1f}" if name in record.metrics else "" for name in shown)
        images = f"{record.num_images:,}{unreadable}"
        rows.append([record.dataset, record.part, images, *scores, record.tokenizer or ""])
    return rows


__all__ = [
    "DataSet",
    "add_evaluation",
    "check_card",
    "is_rendered",
    "read_front_matter",
    "render",
    "render_card",
    "write_adapter_card",
    "write_card",
]
