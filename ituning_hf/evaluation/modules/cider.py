"""CIDEr of captions."""

from ituning_hf.evaluation.modules import caption_metric


class Cider(caption_metric.CaptionMetric):
    """CIDEr by the official scorer of the COCO caption benchmark, 0 to 10.

    Its document frequencies come from the given references: pass the complete dataset at once.
    """

    metric = "cider"
    paper = "https://arxiv.org/abs/1411.5726"
