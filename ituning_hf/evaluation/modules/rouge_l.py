"""ROUGE-L of captions."""

from ituning_hf.evaluation.modules import caption_metric


class RougeL(caption_metric.CaptionMetric):
    """ROUGE-L by the official scorer of the COCO caption benchmark, 0 to 1."""

    metric = "rouge_l"
    paper = "https://aclanthology.org/W04-1013"
