"""The caption metrics as modules for Hugging Face's `evaluate`."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def metric_path(name: str) -> str:
    """Return the folder of a metric's module, for `evaluate.load` and `evaluate.combine`.

    They load without network. `compute` takes `predictions`, a caption for each image, `references`,
    the captions of each image by people, and `java` as `compute_caption_metrics` does; CLIPScore wants
    `images` too, paths of files.

    Args:
        name: "bleu", "rouge_l", "cider", "meteor", "spice" or "clip_score".

    Raises:
        ValueError: There is no such metric.

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
    names = sorted(script.stem for script in _FOLDER.glob("*/*.py"))
    if name not in names:
        raise ValueError(f"there is no metric {name!r}; expected one of {names}")
    return str(_FOLDER / name)
