"""The part of a model card that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .evaluation_results import METRIC_NAMES, EvaluationResult
from .facts import CardFacts
from .training_record import DRAWN_SCENES

# Transformers has no pipeline "image-to-text" any more: it takes the name for "image-text-to-text", which is
# the one that runs a captioner, and the one that the Hub writes its "Use this model" code for. (With a chat
# template beside it, that code would ask the captioner a question, which it cannot answer.)
PIPELINE_TAG = "image-text-to-text"
TAGS = ["image-captioning", "i-tuning", "ituning", "clip", "gpt2"]
# The Hub's names of metrics; of a family such as BLEU there is one.
_METRIC_IDS = {"bleu_1": "bleu", "bleu_2": "bleu", "bleu_3": "bleu", "bleu_4": "bleu", "rouge_l": "rouge"}
_SLUGS = {DRAWN_SCENES: "ituning-scenes"}  # of names that are no name elsewhere


def metadata(facts: CardFacts) -> ModelCardData:
    """Return what the Hub is told; what is not known is left out."""
    base_models = [str(backbone.name) for backbone in facts.backbones if backbone.on_hub]
    data, results = facts.data, list(_eval_results(facts))
    known: dict[str, Any] = {
        "language": facts.language,
        "license": facts.license,
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAG,
        "tags": TAGS,
        "base_model": base_models or None,
        "base_model_relation": "adapter" if base_models else None,
        "datasets": [data.hub_id] if data is not None and data.hub_id is not None else None,
        "metrics": sorted({result.metric_type for result in results}) or None,
    }
    if results:
        known |= {"model_name": facts.heading, "eval_results": results}
    return ModelCardData(**known)


def _eval_results(facts: CardFacts) -> Iterator[EvalResult]:
    for result in facts.results:
        if not isinstance(result, EvaluationResult):
            continue
        subset = f", {result.subset}" if result.subset else ""
        for metric, name in METRIC_NAMES.items():
            if metric in result.metrics:
                yield EvalResult(
                    task_type="image-to-text",  # the Hub's task; the tag above is a pipeline's name
                    task_name="Image Captioning",
                    dataset_type=_slug(result.dataset),
                    dataset_name=f"{result.dataset} ({result.split}{subset})",
                    dataset_config=result.subset,
                    dataset_split=result.split,
                    metric_type=_METRIC_IDS.get(metric, metric),
                    metric_name=name,
                    metric_value=round(100 * result.metrics[metric], 2),
                )


def _slug(dataset: str) -> str:
    return _SLUGS.get(dataset) or re.sub(r"[^\w/.-]+", "-", dataset.lower()).strip("-")
