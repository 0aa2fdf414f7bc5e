"""CIDEr of captions."""

from .. import caption_metric


class Cider(caption_metric.CaptionMetric):
    """CIDEr by the official scorer of the COCO caption benchmark, 0 to 10.

    Its weights are counted over the references given: hand it a whole data set at once.
    """

    metric = "cider"
    paper = "https://arxiv.org/abs/1411.5726"
