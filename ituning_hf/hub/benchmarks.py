"""The cards of the captioners that the paper's benchmarks call for, of which none was trained yet.

Facts of the data, and where they come from; the counts are those of `data.benchmarks`:

- COCO, Karpathy's splits: `dataset_coco.json`; terms: https://cocodataset.org/#termsofuse.
- Flickr30k, Karpathy's splits: `dataset_flickr30k.json`; terms, as the authors of its Entities state them:
  https://github.com/BryanPlummer/flickr30k_entities.
- NoCaps: https://nocaps.org/download; the licence is the tag of its copy on the Hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import ModelCard
from transformers import CLIPVisionConfig, GPT2Config

from ..captioner.configuration_ituning import ITuningConfig
from ..data import benchmarks as counts
from .evaluation_results import Benchmark
from .facts import Backbone, CardFacts, DataFacts
from .inspection import describe_config
from .render import render

NOTICE = (
    "**No such weights have been published yet**, and nothing was measured. This card says what is known "
    "beforehand; the cells of the results stay empty until they are measured."
)

COCO = DataFacts(
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
FLICKR30K = DataFacts(
    name="Flickr30k, Karpathy's splits",
    splits=dict(counts.FLICKR30K.splits),
    terms=(
        "The images are under Flickr's terms of use, for non-commercial research and education "
        "([its authors' note](https://github.com/BryanPlummer/flickr30k_entities))."
    ),
)
COCO_TEST = Benchmark(dataset="COCO Karpathy", split="test", num_images=counts.COCO.splits["test"])
FLICKR30K_TEST = Benchmark(
    dataset="Flickr30k Karpathy", split="test", num_images=counts.FLICKR30K.splits["test"]
)
NOCAPS = tuple(
    Benchmark(dataset="NoCaps", split=split, num_images=images, subset=domain)
    for split, domain, images in (
        *(("val", domain, images) for domain, images in counts.NOCAPS_DOMAINS["val"].items()),
        ("val", None, counts.NOCAPS.splits["val"]),
        ("test", None, counts.NOCAPS.splits["test"]),
    )
)
NOCAPS_NOTE = (
    "Zero-shot, by domain: the captioner has seen no picture of [NoCaps](https://nocaps.org). "
    "[Its copy on the Hub](https://huggingface.co/datasets/HuggingFaceM4/NoCaps) is tagged CC BY 2.0. The "
    "references of its test split are not public: its server scores them."
)


@dataclass(frozen=True)
class _Planned:
    title: str
    data: DataFacts
    results: tuple[Benchmark, ...]
    note: str = ""


_PLANNED = {
    "coco.md": _Planned("I-Tuning Base, trained on COCO", COCO, (COCO_TEST,)),
    "flickr30k.md": _Planned("I-Tuning Base, trained on Flickr30k", FLICKR30K, (FLICKR30K_TEST,)),
    "nocaps.md": _Planned("I-Tuning Base, trained on COCO, evaluated on NoCaps", COCO, NOCAPS, NOCAPS_NOTE),
}


def base_config() -> ITuningConfig:
    """Return the paper's Base size: CLIP ViT-B/16, GPT-2, and an adapter of half its width in every layer."""
    vision = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16
    )
    return ITuningConfig(
        vision_config=vision.to_dict(),
        text_config=GPT2Config().to_dict(),
        vision_model_name_or_path="openai/clip-vit-base-patch16",
        text_model_name_or_path="gpt2",
    )


def benchmark_cards() -> dict[str, ModelCard]:
    """Render the cards of captioners that are yet to be trained, by file name."""
    description = describe_config(base_config())
    return {
        name: render(
            CardFacts(
                vision=Backbone.of("vision encoder", description["vision_model"]),
                text=Backbone.of("language model", description["text_model"]),
                adapter=description["adapter"],
                parameters=description["parameters"],
                data=planned.data,
                results=planned.results,
                title=planned.title,
                notice=NOTICE,
                results_note=planned.note,
                language="en",
            )
        )
        for name, planned in _PLANNED.items()
    }
