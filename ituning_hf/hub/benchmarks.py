"""The cards of the captioners for the paper's benchmarks; none of them is trained yet.

The image counts are those of `data.benchmarks`. Sources of the terms of use:

- COCO: https://cocodataset.org/#termsofuse.
- Flickr30k: https://github.com/BryanPlummer/flickr30k_entities.
- NoCaps: https://nocaps.org/download; the licence is the tag of its copy on the Hub.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from ..captioner.configuration_ituning import ITuningConfig
from ..data import benchmarks as counts
from .card import DataSet, render
from .inspection import describe_config
from .records import EvaluationRecord

NOTICE = (
    "**No weights have been published yet**, and nothing was measured. The cells of the results stay empty "
    "until they are measured."
)
COCO = DataSet(
    name="COCO, Karpathy's splits",
    splits={
        "train and restval": counts.COCO.num_train_images,
        "val": counts.COCO.splits["val"],
        "test": counts.COCO.splits["test"],
    },
    terms=(
        "Annotations: CC BY 4.0. The images belong to others and are under Flickr's terms of use "
        "([COCO's terms](https://cocodataset.org/#termsofuse))."
    ),
)
FLICKR30K = DataSet(
    name="Flickr30k, Karpathy's splits",
    splits=counts.FLICKR30K.splits,
    terms=(
        "The images are under Flickr's terms of use, for non-commercial research and education "
        "([its authors' note](https://github.com/BryanPlummer/flickr30k_entities))."
    ),
)
NOCAPS_NOTE = (
    "Zero-shot, by domain: the captioner was not trained on images of [NoCaps](https://nocaps.org). "
    "[Its copy on the Hub](https://huggingface.co/datasets/HuggingFaceM4/NoCaps) is tagged CC BY 2.0. The "
    "references of its test split are not public; its server computes the scores."
)


def _unmeasured(dataset: str, split: str, num_images: int, subset: str | None = None) -> EvaluationRecord:
    return EvaluationRecord(dataset=dataset, split=split, num_images=num_images, metrics={}, subset=subset)


NOCAPS = [
    *(
        _unmeasured("NoCaps", "val", images, domain)
        for domain, images in counts.NOCAPS_DOMAINS["val"].items()
    ),
    _unmeasured("NoCaps", "val", counts.NOCAPS.splits["val"]),
    _unmeasured("NoCaps", "test", counts.NOCAPS.splits["test"]),
]
_CARDS: dict[str, dict[str, Any]] = {
    "coco.md": {
        "title": "I-Tuning Base, trained on COCO",
        "data": COCO,
        "evaluations": [_unmeasured("COCO Karpathy", "test", counts.COCO.splits["test"])],
    },
    "flickr30k.md": {
        "title": "I-Tuning Base, trained on Flickr30k",
        "data": FLICKR30K,
        "evaluations": [_unmeasured("Flickr30k Karpathy", "test", counts.FLICKR30K.splits["test"])],
    },
    "nocaps.md": {
        "title": "I-Tuning Base, trained on COCO, evaluated on NoCaps",
        "data": COCO,
        "evaluations": NOCAPS,
        "results_note": NOCAPS_NOTE,
    },
}


def base_config() -> ITuningConfig:
    """Return the paper's Base size: CLIP ViT-B/16, GPT-2, and adapters of half its width in every layer."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
    }
    return ITuningConfig(
        vision_config=vision,
        text_config={"model_type": "gpt2"},
        vision_model_name_or_path="openai/clip-vit-base-patch16",
        text_model_name_or_path="gpt2",
    )


def benchmark_cards() -> dict[str, ModelCard]:
    """Render the cards by file name."""
    description = describe_config(base_config())
    return {name: render(description, notice=NOTICE, language="en", **card) for name, card in _CARDS.items()}
