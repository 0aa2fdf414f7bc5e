"""The cells of the study: each is one captioner, trained and scored.

A cell's name is the name of its result, `results/NAME.json`. The groups are run in their order, because later
ones depend on results of earlier ones: the table has the best learning rate of each method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

ITUNING, UPPER_HALF = "ituning", "ituning_upper_half"
RIVALS = ("clipcap", "image_tokens", "flamingo", "cross_attention")
METHODS = (ITUNING, UPPER_HALF, *RIVALS)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)

Results = dict[str, dict[str, Any]]  # the content of the result files by name


@dataclass(frozen=True)
class Cell:
    """One captioner: the method, the training and the images.

    Args:
        method: A key of `methods.BUILDERS`.
        learning_rate: The peak learning rate.
        seed: Of the new weights, the order of the images, and the choice of captions.
        visits: Images seen in training, each with all its captions. Those seen again count again.
        num_train_images: Images to train on, evenly spaced over the training split; None for all.
        num_eval_images: Images to score, evenly spaced over the validation split.
        vision_feature_layer: The hidden state of the encoder, as for `ituning features build`.
        settings: Other settings of `ituning train`, by name.
    """

    method: str = ITUNING
    learning_rate: float = 1e-3
    seed: int = 0
    visits: int = 3000
    num_train_images: int | None = None
    num_eval_images: int = 500
    vision_feature_layer: int = -1
    settings: dict[str, Any] = field(default_factory=dict)


def learning_rates(results: Results) -> dict[str, Cell]:
    """Return three learning rates for each method, with one seed and a third of the visits."""
    return {
        f"rate-{method}-{rate:g}": Cell(method, rate, visits=1000, num_eval_images=250)
        for method in METHODS
        for rate in LEARNING_RATES
    }


def best_rate(method: str, results: Results) -> float:
    """Return the learning rate with the lowest validation loss."""
    losses = {
        rate: results[name]["metrics"]["loss"]
        for rate in LEARNING_RATES
        if (name := f"rate-{method}-{rate:g}") in results
    }
    return min(losses, key=losses.__getitem__, default=LEARNING_RATES[1])


def table(results: Results) -> dict[str, Cell]:
    """Return the methods at their best learning rate, with three seeds."""
    return {
        f"table-{method}-{seed}": Cell(method, best_rate(method, results), seed)
        for seed in SEEDS
        for method in METHODS
    }


def best_rival(results: Results) -> str:
    """Return the rival with the highest CIDEr, the mean over the seeds."""

    def cider(rival: str) -> float:
        names = [f"table-{rival}-{seed}" for seed in SEEDS]
        return sum(results[name]["metrics"]["cider"] for name in names if name in results)

    return max(RIVALS, key=cider)


def curve(results: Results) -> dict[str, Cell]:
    """Return I-Tuning and the best rival trained on fewer images."""
    return {
        f"images-{method}-{count}-{seed}": Cell(
            method, best_rate(method, results), seed, num_train_images=count
        )
        for seed in SEEDS
        for count in (300, 1000)
        for method in (ITUNING, best_rival(results))
    }


CHANGES: dict[str, dict[str, Any]] = {
    "r-128": {"settings": {"adapter_hidden_size": 128}},
    "r-512": {"settings": {"adapter_hidden_size": 512}},
    "scale-4": {"settings": {"adapter_scale": 4.0}},
    "layer-10": {"vision_feature_layer": 10},
    "no-norm": {"settings": {"vision_feature_norm": False}},
    "gate": {"method": "gate"},
    "linear-init": {"method": "linear_init"},
    "label-smoothing": {"settings": {"label_smoothing": 0.1}},
    "dropout": {"settings": {"adapter_dropout": 0.1}},
    "one-caption": {"settings": {"captions_per_image": 1}},
}


def changes(results: Results) -> dict[str, Cell]:
    """Return single changes of I-Tuning, with the seed 0."""
    cell = Cell(ITUNING, best_rate(ITUNING, results))
    return {f"change-{name}-0": replace(cell, **change) for name, change in CHANGES.items()}


GROUPS: tuple[Callable[[Results], dict[str, Cell]], ...] = (learning_rates, table, curve, changes)
