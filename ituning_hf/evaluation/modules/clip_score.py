"""CLIPScore of captions."""

import datasets

from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.evaluation.modules import caption_metric


class ClipScore(caption_metric.CaptionMetric):
    """CLIPScore (0 to 2.5) and RefCLIPScore (0 to 1.43).

    The full CLIP, a folder or a Hub id, is the configuration's name:
    `evaluate.load(metric_path("clip_score"), "openai/clip-vit-base-patch32")`.
    """

    paper = "https://arxiv.org/abs/2104.08718"
    inputs = caption_metric.CaptionMetric.inputs | {"images": datasets.Value("string")}

    def _compute(  # type: ignore[override]
        self, *, predictions: list[str], references: list[list[str]], images: list[str]
    ) -> dict[str, float]:
        found = clip_scores(self.config_name, images, predictions, references)
        return {name: sum(values) / len(values) for name, values in found.items()}
