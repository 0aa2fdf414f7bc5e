"""The caption metrics as modules for Hugging Face's `evaluate`.

`evaluate` copies a module's file into its cache and imports the copy, so these files use absolute imports.
"""

from pathlib import Path

from ...utils.errors import UserError

_NAMES = ("bleu", "cider", "clip_score", "meteor", "rouge_l", "spice")


def metric_path(name: str) -> str:
    """Return the path of a metric's module, for `evaluate.load` and `evaluate.combine`; no network is needed.

    `compute` takes `predictions`, a caption for each image, `references`, the human captions of each image,
    and `java`, see `compute_caption_metrics`. CLIPScore takes `images`, paths of files, instead of `java`.

    Args:
        name: "bleu", "rouge_l", "cider", "meteor", "spice" or "clip_score".

    Raises:
        UserError: There is no such metric.

    Example:
        >>> import evaluate
        >>> from ituning_hf.evaluation import metric_path
        >>> metrics = evaluate.combine([metric_path("bleu"), metric_path("cider")])
        >>> scores = metrics.compute(
        ...     predictions=["a dog runs", "two cats sleep"],
        ...     references=[["a dog runs on grass", "A running dog."], ["Two cats are asleep."]],
        ...     java=False,
        ... )
        >>> print(*(f"{name} {score:.3f}" for name, score in scores.items()))
        bleu_1 0.705 bleu_2 0.669 bleu_3 0.574 bleu_4 0.020 cider 2.849
    """
    if name not in _NAMES:
        raise UserError(f"there is no metric {name!r}, expected one of {', '.join(_NAMES)}.")
    return str(Path(__file__).with_name(f"{name}.py"))
