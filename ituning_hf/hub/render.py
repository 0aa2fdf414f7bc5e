"""A model card from what is known of a captioner: the same facts give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..captioner.checkpoint_ituning import ADAPTER_OPTIONS
from .evaluation_results import METRIC_NAMES, TOKENIZERS, Benchmark, EvaluationResult, unreadable_note
from .facts import Backbone, CardFacts
from .metadata import metadata
from .tables import table
from .training_record import TrainingRecord, ValidationRecord

TEMPLATE = Path(__file__).with_name("card.md.jinja")
USUAL_METRICS = ("bleu_4", "meteor", "rouge_l", "cider", "spice")
_LIBRARIES = ("python", "torch", "transformers", "accelerate", "ituning_hf")
# Told elsewhere on the card, or of no effect on the weights.
_ELSEWHERE = {*ADAPTER_OPTIONS, "eval_split", "mixed_precision"}
_WITHOUT_EFFECT = {"image_column", "caption_column", "num_sample_captions"}
_OFF_AT_ZERO = {"label_smoothing", "eval_caption_images"}
_BATCH_SIZES = {"per_device_train_batch_size", "gradient_accumulation_steps"}


def render(facts: CardFacts) -> ModelCard:
    """Render a card.

    Args:
        facts: What is known; sections of which nothing is known are left out.
    """
    card = ModelCard.from_template(
        metadata(facts),
        template_path=str(TEMPLATE),
        facts=facts,
        note=_local_note(facts),
        backbones=_backbones_table(facts.vision, facts.text),
        adapter=table(("adapter", ""), list(_adapter_rows(facts))),
        data=_data_table(facts),
        training=table(("setting", "value"), list(_training_rows(facts.training))) if facts.training else "",
        validation=_validation(facts.training),
        results=_results_table(facts.results),
        remarks=_remarks(facts.results),
        commands=_commands(facts.results),
        made_with=_made_with(facts),
    )
    return ModelCard(str(card).rstrip() + "\n")


def _local_note(facts: CardFacts) -> str:
    """Say what follows from backbones that are not on the Hub; nothing if both are there."""
    local = [backbone for backbone in facts.backbones if not backbone.on_hub]
    if not local:
        return ""
    are, them, they_lie = ("are", "them", "they lie") if len(local) > 1 else ("is", "it", "it lies")
    roles = " and the ".join(backbone.role for backbone in local)
    kinds = ["vision" if backbone is facts.vision else "text" for backbone in local]
    options = ", ".join(f"{kind}_model_name_or_path=..." for kind in kinds)
    return (
        f"> The {roles} {are} not on the Hub, so that this captioner works\n"
        f"> only on a machine that has {them}. Where {they_lie} elsewhere, say where:\n"
        f"> `from_pretrained(..., {options})`. To share it, put\n"
        f"> {them} on the Hub, too: `ituning push --help` shows how."
    )


def _backbones_table(*backbones: Backbone) -> str:
    rows = {
        "model": [_name(backbone) for backbone in backbones],
        "licence": [backbone.licence for backbone in backbones],
        "parameters": [f"{backbone.parameters:,}, frozen" for backbone in backbones],
        "revision": [_code(backbone.revision) for backbone in backbones],
        "fingerprint": [_code(backbone.fingerprint) for backbone in backbones],
    }
    shown = [[label, *cells] for label, cells in rows.items() if any(cells)]
    return table(["", *(backbone.role for backbone in backbones)], shown)


def _name(backbone: Backbone) -> str:
    if backbone.name is None:
        return "built in memory"
    if not backbone.on_hub:
        return f"a local folder named `{backbone.name}`"
    return f"[{backbone.name}](https://huggingface.co/{backbone.name})"


def _adapter_rows(facts: CardFacts) -> Iterator[tuple[str, str]]:
    adapter, parameters = facts.adapter, facts.parameters
    share = parameters["trainable"] / parameters["total"]
    yield "width r", str(adapter["hidden_size"])
    yield "attention heads", str(adapter["num_heads"])
    yield "in the language model's layers", _ranges(adapter["layers"])
    yield "scale", str(adapter["scale"])
    yield "dropout", str(adapter["dropout"])
    yield "reads the encoder's hidden state", str(adapter["vision_feature_layer"])
    yield "trainable parameters", f"{parameters['trainable']:,} of {parameters['total']:,} ({share:.2%})"
    if "bytes" in adapter:
        yield "stored as", f"{adapter['dtype']}, {adapter['bytes']:,} bytes"
    if facts.license is not None:
        yield "licence", facts.license


def _ranges(layers: list[int]) -> str:
    """Say sorted numbers in short: those in a row by the first and the last."""
    starts = [i for i in layers if i - 1 not in layers]
    ends = [i for i in layers if i + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def _data_table(facts: CardFacts) -> str:
    if facts.data is None:
        return ""
    return table(
        ("split", "images"), [(name, f"{n:,}") for name, n in facts.data.splits.items()], numbers_from=1
    )


def _training_rows(record: TrainingRecord) -> Iterator[tuple[str, str]]:
    settings = {k: v for k, v in record.settings.items() if k not in _ELSEWHERE | _WITHOUT_EFFECT}
    if settings.get("max_train_steps") is not None:
        settings.pop("num_train_epochs", None)  # it had no say
    if settings.get("early_stopping_patience") is None:
        settings.pop("early_stopping_threshold", None)
    yield "optimiser", "AdamW on the cross-entropy of the captions' tokens"
    yield "optimiser steps", f"{record.step:,} ({record.epoch:.4g} epochs)"
    if record.features is not None:
        yield "image features", f"computed once and stored in {record.features}"
    if settings.keys() >= _BATCH_SIZES:  # another training loop's record may have others
        batch = math.prod(settings[name] for name in _BATCH_SIZES)
        yield "images in a step", f"at most {batch * record.num_processes:,}"
    for name, value in sorted(settings.items()):
        if not _is_off(name, value):
            yield f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_off(name: str, value: Any) -> bool:
    return value is None or value is False or value == [] or (name in _OFF_AT_ZERO and value == 0)


def _validation(record: TrainingRecord | None) -> str:
    if record is None or record.validation is None:
        return ""
    found: ValidationRecord = record.validation
    text = (
        f"After step {found.step:,}, the loss on the {record.eval_split} split "
        f"({record.num_eval_images:,} images) was {found.scores['loss']:.4f} per token."
    )
    scores = [
        f"{name} {_score(found.scores[key])}" for key, name in METRIC_NAMES.items() if key in found.scores
    ]
    if scores:
        text += f" Greedy captions of {found.num_scored:,} of them: {', '.join(scores)}."
    return text


def _results_table(results: tuple[Benchmark, ...]) -> str:
    if not results:
        return ""
    metrics = [result.metrics if isinstance(result, EvaluationResult) else {} for result in results]
    measured = {name for scores in metrics for name in scores}
    shown = [name for name in METRIC_NAMES if name in (measured or USUAL_METRICS)]
    rows = [
        [
            result.dataset,
            _part(result),
            f"{result.num_images:,}",
            *(_score(scores[name]) if name in scores else "" for name in shown),
        ]
        for result, scores in zip(results, metrics, strict=True)
    ]
    header = ("data set", "split", "images", *(METRIC_NAMES[name] for name in shown))
    return table(header, rows, numbers_from=2)


def _remarks(results: tuple[Benchmark, ...]) -> list[str]:
    """Say what the table does not: what the scores leave out, and the tokenizer, each with its rows."""
    measured = [result for result in results if isinstance(result, EvaluationResult)]
    remarks = [
        f"{result.dataset}, {_part(result)}: {unreadable_note(result.num_unreadable)}"
        for result in measured
        if result.num_unreadable
    ]
    for tokenizer, meaning in TOKENIZERS.items():
        its = [result for result in measured if result.tokenizer == tokenizer]
        rows = "; ".join(dict.fromkeys(f"{result.dataset}, {result.split}" for result in its))
        if its:
            remarks.append(f"Tokenizer{'' if its == measured else f' of {rows}'}: {meaning}.")
    return remarks


def _part(result: Benchmark) -> str:
    return f"{result.split}, {result.subset}" if result.subset else result.split


def _commands(results: tuple[Benchmark, ...]) -> list[str]:
    """Return each command once, in order."""
    return list({result.command: None for result in results if isinstance(result, EvaluationResult)})


def _made_with(facts: CardFacts) -> str:
    if (record := facts.training) is None:
        return table(("made with", ""), [("transformers", facts.saved_with)]) if facts.saved_with else ""
    processes = f"{record.num_processes} process{'es' if record.num_processes > 1 else ''}"
    precision = record.settings.get("mixed_precision")
    hardware: dict[str, Any] = {
        "device": f"{record.device}, {processes}",
        "precision": "fp32" if precision in (None, "no") else f"{precision}, the adapter in fp32",
    }
    versions = {name: record.versions[name] for name in _LIBRARIES if name in record.versions}
    return table(("made with", ""), list((hardware | versions).items()))


def _score(value: float) -> str:
    return f"{100 * value:.1f}"  # rounded once, as on the screen


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""
