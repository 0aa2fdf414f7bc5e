"""SPICE of captions."""

from ituning_hf.evaluation.modules import caption_metric


class Spice(caption_metric.CaptionMetric):
    """SPICE by the official program, which needs Java 8 to 11 and models of its own, 0 to 1."""

    metric = "spice"
    paper = "https://arxiv.org/abs/1607.08822"
