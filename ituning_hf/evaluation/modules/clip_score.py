"""CLIPScore of captions."""

import datasets
import evaluate

from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.evaluation.modules.caption_metric import CAPTIONS


class ClipScore(evaluate.Metric):
    """CLIPScore (0 to 2.5) and RefCLIPScore (0 to 1.43).

    The full CLIP, a folder or a Hub id, is the configuration's name:
    `evaluate.load(metric_path("clip_score"), "openai/clip-vit-base-patch32")`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="https://arxiv.org/abs/2104.08718",
            features=datasets.Features(CAPTIONS | {"images": datasets.Value("string")}),
            inputs_description="predictions and references: captions. images: the path of each image's file.",
        )

    def _compute(
        self, *, predictions: list[str], references: list[list[str]], images: list[str]
    ) -> dict[str, float]:
        found = clip_scores(self.config_name, images, predictions, references)
        return {name: sum(values) / len(values) for name, values in found.items()}
