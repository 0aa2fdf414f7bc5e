"""The base class of the modules.

They import this module, not the class: `evaluate` uses the first metric class that it finds in a script.
"""

from inspect import cleandoc
from typing import Any

import datasets
import evaluate

from ituning_hf.evaluation.metrics import score_captions


class CaptionMetric(evaluate.Metric):
    """A metric that compares captions with human captions.

    Attributes:
        metric: Its name for `score_captions`.
        paper: The address of the paper that defines it.
        inputs: The types of the inputs.
    """

    metric: str
    paper: str
    inputs: dict[str, Any] = {
        "predictions": datasets.Value("string"),
        "references": [datasets.Value("string")],
    }

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=cleandoc(self.__doc__ or ""),
            citation=self.paper,
            features=datasets.Features(self.inputs),
            inputs_description="predictions: a caption for each image. references: its human captions.",
            reference_urls=[self.paper],
        )

    def _compute(
        self, *, predictions: list[str], references: list[list[str]], java: bool | None = None
    ) -> dict[str, float]:
        return score_captions(predictions, references, java, only=self.metric).metrics
