"""Model cards: rendered from the files of a captioner, and kept as soon as a person edits their text."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME

from ..captioner.configuration_ituning import ADAPTER_OPTIONS
from ..captioner.pretrained_ituning import is_local
from ..evaluation.scores import METRIC_NAMES
from .inspection import describe
from .records import (
    EvaluationRecord,
    TrainingRecord,
    read_evaluation_records,
    read_training_record,
    write_evaluation_records,
)

TEMPLATE = Path(__file__).with_name("card.md.jinja")
ADAPTER_TEMPLATE = Path(__file__).with_name("adapter_card.md.jinja")  # of a PEFT adapter
PLACEHOLDER = "your-name/your-captioner"  # before the captioner has an id on the Hub
# Transformers runs captioners with this pipeline, and the Hub writes its "Use this model" code for it.
PIPELINE_TAG = "image-text-to-text"
TAGS = ["image-captioning", "i-tuning", "ituning"]
USUAL_METRICS = ("bleu_4", "meteor", "rouge_l", "cider", "spice")
# The Hub has one metric for each family.
_METRIC_IDS = {"bleu_1": "bleu", "bleu_2": "bleu", "bleu_3": "bleu", "bleu_4": "bleu", "rouge_l": "rouge"}
_LIBRARIES = ("python", "torch", "transformers", "accelerate", "ituning_hf")
# The front matter that always follows from the captioner's files; a person may set the rest.
_DERIVED = ("base_model", "base_model_relation", "metrics", "model-index")
_CLIP_LICENCE = "[MIT](https://github.com/openai/CLIP/blob/main/LICENSE)"
_GPT2_LICENCE = "[Modified MIT](https://github.com/openai/gpt-2/blob/master/LICENSE)"
_SIGNATURE = "\n<!-- ituning_hf {digest}: updated by ituning_hf until you edit this text. -->\n"
_SIGNED = re.compile(r"\n<!-- ituning_hf ([0-9a-f]{16}): [^\n]* -->\s*\Z")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The data set of a model card."""

    name: str  # in Markdown
    splits: Mapping[str, int]  # the number of images of each
    hub_id: str | None = None
    terms: str = ""  # of use, in Markdown


def add_evaluation(folder: str | os.PathLike[str], records: Sequence[EvaluationRecord]) -> bool:
    """Store the scores of an evaluation with a captioner, and show them on its model card.

    They replace earlier scores on the same data set and split.

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
        for name, value in ModelCard.load(path).data.to_dict().items():
            if name not in _DERIVED:
                card.data[name] = value
    path.write_text(str(card), encoding="utf-8")
    return True


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
    results_note: str = "",
    repo_id: str | None = None,
    language: str | None = None,
) -> ModelCard:
    """Render the card of a captioner that `describe` described; sections without information are left out."""
    if data is None and training is not None:
        data = _data_of(training)
    backbones = [_backbone(description[f"{kind}_model"], kind) for kind in ("vision", "text")]
    title = title or (repo_id or "").rpartition("/")[2] or "I-Tuning image captioner"
    card = ModelCard.from_template(
        _metadata(title, backbones, data, evaluations, language),
        template_path=str(TEMPLATE),
        title=title,
        notice=notice,
        results_note=results_note,
        repo_id=repo_id or PLACEHOLDER,
        backbones=backbones,
        local=[backbone for backbone in backbones if not backbone["on_hub"]],
        backbone_rows=_backbone_rows(backbones),
        adapter_rows=list(_adapter_rows(description)),
        data=data,
        data_rows=[(split, f"{count:,}") for split, count in data.splits.items()] if data else [],
        training_rows=list(_training_rows(training)) if training else [],
        environment_rows=_environment_rows(training) if training else [],
        validation=_describe_validation(training) if training else "",
        results=_results_table(evaluations),
        commands=list(dict.fromkeys(record.command for record in evaluations if record.metrics)),
    )
    return ModelCard(str(card).rstrip() + "\n")


def _backbone(description: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Add to the description of a frozen model what the template shows."""
    name = description["name_or_path"]
    on_hub = name is not None and not is_local(name)
    licence = _licence(name) if on_hub else ""
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
        "role": {"vision": "vision encoder", "text": "language model"}[kind],
        "on_hub": on_hub,
        "link": link,
        "licence": licence,
        "is_openai": licence in (_CLIP_LICENCE, _GPT2_LICENCE),
    }


def _licence(name: str) -> str:
    """Return the licence of weights that OpenAI published; others are not guessed."""
    if name.startswith("openai/clip-vit-"):
        return _CLIP_LICENCE
    if re.fullmatch(r"(openai-community/)?gpt2(-medium|-large|-xl)?", name):
        return _GPT2_LICENCE
    return f"see [its page](https://huggingface.co/{name})"


def _metadata(
    title: str,
    backbones: Sequence[Mapping[str, Any]],
    data: DataSet | None,
    evaluations: Sequence[EvaluationRecord],
    language: str | None,
) -> ModelCardData:
    """Return the front matter; unknown keys are left out."""
    base_models = [backbone["name_or_path"] for backbone in backbones if backbone["on_hub"]]
    results = [result for record in evaluations for result in _eval_results(record)]
    known: dict[str, Any] = {
        "language": language,
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAG,
        "tags": TAGS,
        "base_model": base_models or None,
        "base_model_relation": "adapter" if base_models else None,
        "datasets": [data.hub_id] if data is not None and data.hub_id is not None else None,
        "metrics": sorted({result.metric_type for result in results}) or None,
    }
    if results:
        known |= {"model_name": title, "eval_results": results}
    return ModelCardData(**known)


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
    splits = {"train": training.num_train_images}
    if training.eval_split is not None:
        splits[training.eval_split] = training.num_eval_images
    if training.dataset is None:
        return DataSet(name="images passed in Python", splits=splits)
    if not training.dataset_on_hub:
        return DataSet(name=f"`{training.dataset}`", splits=splits)
    hub_id = training.dataset.partition(":")[0]  # one of its configurations may follow
    link = f"[{training.dataset}](https://huggingface.co/datasets/{hub_id})"
    return DataSet(name=link, splits=splits, hub_id=hub_id)


def _backbone_rows(backbones: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = {
        "model": [backbone["link"] for backbone in backbones],
        "licence": [backbone["licence"] for backbone in backbones],
        "parameters": [f"{backbone['parameters']:,}, frozen" for backbone in backbones],
        "revision": [_code(backbone["revision"]) for backbone in backbones],
        "fingerprint": [_code(backbone["fingerprint"]) for backbone in backbones],
    }
    return [[label, *cells] for label, cells in rows.items() if any(cells)]


def _adapter_rows(description: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    adapter, parameters = description["adapter"], description["parameters"]
    share = parameters["trainable"] / parameters["total"]
    yield "width r", adapter["hidden_size"]
    yield "attention heads", adapter["num_heads"]
    yield "decoder layers", ", ".join(map(str, adapter["layers"]))
    yield "scale", adapter["scale"]
    yield "dropout", adapter["dropout"]
    yield "hidden state of the encoder", adapter["vision_feature_layer"]
    yield "trainable parameters", f"{parameters['trainable']:,} of {parameters['total']:,} ({share:.2%})"
    if "bytes" in adapter:
        yield "stored as", f"{adapter['dtype']}, {adapter['bytes']:,} bytes"


def _training_rows(record: TrainingRecord) -> Iterator[tuple[str, str]]:
    yield "optimizer", "AdamW on the cross-entropy of the captions' tokens"
    yield "optimizer steps", f"{record.step:,} ({record.epoch:.4g} epochs)"
    if record.features is not None:
        yield "image features", f"computed once and stored in {record.features}"
    shown = record.settings.keys() - {*ADAPTER_OPTIONS, "eval_split", "mixed_precision"}
    for name in sorted(shown):
        value = record.settings[name]
        if value not in (None, []) and value is not False:
            yield f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _environment_rows(record: TrainingRecord) -> list[tuple[str, str]]:
    processes = f"{record.num_processes} process{'es' if record.num_processes > 1 else ''}"
    precision = record.settings.get("mixed_precision")
    versions = [(name, record.versions[name]) for name in _LIBRARIES if name in record.versions]
    return [
        ("device", f"{record.device}, {processes}"),
        ("precision", "fp32" if precision in (None, "no") else f"{precision}, the adapter in fp32"),
        *versions,
    ]


def _describe_validation(record: TrainingRecord) -> str:
    if (found := record.validation) is None:
        return ""
    loss = found.scores.get("loss", math.nan)
    text = (
        f"After step {found.step:,}, the loss on the {record.eval_split} split "
        f"({record.num_eval_images:,} images) was {loss:.4f} per token."
    )
    measured = [name for name in METRIC_NAMES if name in found.scores]
    scores = [f"{METRIC_NAMES[name]} {_score(found.scores, name)}" for name in measured]
    if scores:
        text += f" Greedy captions of {found.num_scored:,} of them: {', '.join(scores)}."
    return text


def _results_table(records: Sequence[EvaluationRecord]) -> list[list[str]]:
    """Return the header and a row for each record; columns without values are left out."""
    if not records:
        return []
    measured = {name for record in records for name in record.metrics}
    shown = [name for name in METRIC_NAMES if name in (measured or USUAL_METRICS)]
    rows = [
        [
            record.dataset,
            record.part,
            f"{record.num_images:,}",
            *(_score(record.metrics, name) for name in shown),
            record.tokenizer or "",
            f"{record.num_unreadable:,}" if record.num_unreadable else "",
        ]
        for record in records
    ]
    names = [METRIC_NAMES[name] for name in shown]
    header = ["data set", "split", "images", *names, "tokenizer", "unreadable images"]
    kept = [i for i, title in enumerate(header) if title in names or any(row[i] for row in rows)]
    return [[row[i] for i in kept] for row in (header, *rows)]


def _score(scores: Mapping[str, float], name: str) -> str:
    return f"{100 * scores[name]:.1f}" if name in scores else ""


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


__all__ = ["DataSet", "add_evaluation", "is_rendered", "render", "render_card", "write_card"]
