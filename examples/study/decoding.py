"""Caption the validation split with different settings of generation, and score each.

    python -m examples.study.decoding --model outputs/flickr8k/best --name cross-entropy \
        --dataset data/flickr8k/dataset_flickr8k.json --features features/flickr8k
    python -m examples.study.decoding --model outputs/cider/best --name cider --settings 'beams-[15]' ...

Each setting's result is a JSON file in `results/`; those that exist are not repeated. `report.py` makes the
tables. Requires `pip install 'ituning_hf[eval]'`, and Java for METEOR.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import pairwise
from typing import Any

import torch

from ituning_hf import load_captioner
from ituning_hf.data import load_captioned_images
from ituning_hf.data.inputs import FeatureInputs
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.features import FeatureStore
from ituning_hf.training import TrainArguments
from ituning_hf.utils.files import write_json

from .run import make_parser
from .training import Images, caption

SETTINGS: dict[str, dict[str, Any]] = {
    **{f"beams-{beams}": {"num_beams": beams} for beams in (1, 2, 3, 5, 8, 10)},
    **{f"length-penalty-{x:g}": {"num_beams": 5, "length_penalty": x} for x in (0.0, 0.5, 1.5, 2.0)},
    **{f"repetition-penalty-{x:g}": {"num_beams": 5, "repetition_penalty": x} for x in (1.1, 1.3)},
    **{f"no-repeat-{n}": {"num_beams": 5, "no_repeat_ngram_size": n} for n in (2, 3)},
}


def describe(captions: Sequence[str]) -> dict[str, float]:
    """Return what scores do not show: the mean length in words, and repetition.

    A caption repeats itself if it contains two equal pairs of words, as in "a man and a man".
    """
    words = [caption.lower().split() for caption in captions]
    pairs = [Counter(pairwise(text)) for text in words]
    return {
        "words": sum(map(len, words)) / len(words),
        "repeating": sum(max(counts.values(), default=0) > 1 for counts in pairs) / len(pairs),
        "distinct": len(set(captions)) / len(captions),
        "vocabulary": len({word for text in words for word in text}),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Caption and score with each setting that has no result."""
    options = parse(arguments)
    torch.set_num_threads(1)
    model, processor = load_captioner(options.model, device="cpu", load_vision_model=False)
    images, store = load_captioned_images(options.dataset, "val"), FeatureStore(options.features)
    store.require_fits(model.config, processor.image_processor.to_dict())
    source = Images(images, processor, FeatureInputs(store), TrainArguments())
    references = [list(image.captions) for image in images]
    for name, setting in SETTINGS.items():
        path = options.results / f"decoding-{options.name}-{name}.json"
        if path.exists() or not any(fnmatch(name, pattern) for pattern in options.settings):
            continue
        captions, seconds = caption(model, source, **setting)
        scores = score_captions(captions, references)
        result = {
            "captioner": options.name,
            "name": name,
            "setting": setting,
            "metrics": scores.metrics,
            "intervals": scores.intervals,
            **describe(captions),
            "cpu_seconds_per_caption": seconds,
            "captions": captions,
        }
        write_json(path, result)
        print(f"{name}: CIDEr {scores.metrics['cider']:.3f}, {seconds:.3f} CPU s a caption", flush=True)


def parse(arguments: Sequence[str] | None) -> Any:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a captioner's folder")
    add("--features", required=True, help="the feature store of its images")
    add("--name", required=True, help="of the captioner, in the results' names")
    add("--settings", nargs="+", default=["*"], metavar="PATTERN", help="names of settings (default: all)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
