"""Render the cards in model_cards/ for the paper's benchmarks, on which no captioner has been trained yet.

python examples/render_model_cards.py                    # into model_cards/
python examples/render_model_cards.py --folder cards/

Sources of the image counts and the terms of use:

- COCO and Flickr30k: Karpathy's splits, https://cs.stanford.edu/people/karpathy/deepimagesent/;
  https://cocodataset.org/#termsofuse and https://github.com/BryanPlummer/flickr30k_entities.
- NoCaps: https://nocaps.org/download; the licence is the tag of its copy on the Hub.
"""

import argparse
from pathlib import Path

from benchmarking import captioner_config

from ituning_hf.hub.card import DataSet, render
from ituning_hf.hub.inspection import describe_config
from ituning_hf.hub.records import EvaluationRecord

FOLDER = Path(__file__).resolve().parents[1] / "model_cards"
NOTICE = (
    "**No weights have been published yet** and nothing has been measured, so the result cells are empty."
)
NOCAPS_NOTICE = (
    " The evaluation is zero-shot: the captioner was not trained on [NoCaps](https://nocaps.org). [The copy "
    "on the Hub](https://huggingface.co/datasets/HuggingFaceM4/NoCaps) is tagged CC BY 2.0. The references "
    "of the test split are not public; the NoCaps server computes its scores."
)
COCO = DataSet(
    name="COCO, Karpathy's splits",
    splits={"train and restval": 113_287, "val": 5_000, "test": 5_000},
    terms=(
        "Annotations: CC BY 4.0. The images belong to their owners and are subject to Flickr's terms of use "
        "([COCO's terms](https://cocodataset.org/#termsofuse))."
    ),
)
FLICKR30K = DataSet(
    name="Flickr30k, Karpathy's splits",
    splits={"train": 29_000, "val": 1_014, "test": 1_000},
    terms=(
        "The images are subject to Flickr's terms of use, for non-commercial research and education "
        "([note by the authors](https://github.com/BryanPlummer/flickr30k_entities))."
    ),
)
# Card, title, notice, training data, and the rows of the results: dataset, split, subset, images.
CARDS: list[tuple[str, str, str, DataSet, list[tuple[str, str, str | None, int]]]] = [
    (
        "coco.md",
        "I-Tuning Base, trained on COCO",
        NOTICE,
        COCO,
        [("COCO Karpathy", "test", None, 5_000)],
    ),
    (
        "flickr30k.md",
        "I-Tuning Base, trained on Flickr30k",
        NOTICE,
        FLICKR30K,
        [("Flickr30k Karpathy", "test", None, 1_000)],
    ),
    (
        "nocaps.md",
        "I-Tuning Base, trained on COCO, evaluated on NoCaps",
        NOTICE + NOCAPS_NOTICE,
        COCO,
        [
            ("NoCaps", "val", "in-domain", 648),
            ("NoCaps", "val", "near-domain", 2_938),
            ("NoCaps", "val", "out-domain", 914),
            ("NoCaps", "val", None, 4_500),
            ("NoCaps", "test", None, 10_600),
        ],
    ),
]


def main() -> None:
    """Write the cards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="output folder (default: model_cards/)")
    folder = parser.parse_args().folder
    config = captioner_config(  # the paper's Base size
        "base",
        vision_model_name_or_path="openai/clip-vit-base-patch16",
        text_model_name_or_path="gpt2",
    )
    description = describe_config(config)
    for name, title, notice, data, rows in CARDS:
        results = [
            EvaluationRecord(dataset=dataset, split=split, subset=subset, num_images=images, metrics={})
            for dataset, split, subset, images in rows
        ]
        card = render(description, data=data, evaluations=results, title=title, notice=notice)
        card.data["language"] = "en"
        (folder / name).write_text(str(card), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main()
