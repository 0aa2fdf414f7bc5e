"""What the modules share.

They import it as a module, since `evaluate` takes the first class of metrics that it finds in a script for
the script's own.
"""

from inspect import cleandoc

import datasets
import evaluate

from ..metrics import score_captions

CAPTIONS = {"predictions": datasets.Value("string"), "references": [datasets.Value("string")]}
_INPUTS = """

Args:
    predictions: A caption for each image.
    references: The captions of each image by people.
    java: True demands Java, False does without, None takes it where it is found.
"""


class CaptionMetric(evaluate.Metric):
    """A metric of captions against what people wrote; subclasses say which."""

    metric: str  # as `score_captions` calls it
    paper: str

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=cleandoc(self.__doc__ or ""),
            citation=self.paper,
            features=datasets.Features(CAPTIONS),
            inputs_description=_INPUTS,
            reference_urls=[self.paper],
        )

    def _compute(
        self, *, predictions: list[str], references: list[list[str]], java: bool | None = None
    ) -> dict[str, float]:
        return score_captions(predictions, references, java, only=[self.metric]).metrics
