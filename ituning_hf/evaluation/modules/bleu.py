"""BLEU of captions."""

from ituning_hf.evaluation.modules import caption_metric


class Bleu(caption_metric.CaptionMetric):
    """BLEU-1 to BLEU-4 by the official scorer of the COCO caption benchmark, 0 to 1."""

    metric = "bleu"
    paper = "https://aclanthology.org/P02-1040"
