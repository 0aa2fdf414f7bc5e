"""METEOR of captions."""

from ituning_hf.evaluation.modules import caption_metric


class Meteor(caption_metric.CaptionMetric):
    """METEOR 1.5 by the official program, which needs Java, 0 to 1."""

    metric = "meteor"
    paper = "https://aclanthology.org/W14-3348"
