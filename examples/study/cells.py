"""The cells of the study: each is one captioner, trained and scored.

A cell's name is the name of its result, `results/NAME.json`. The groups are run in their order, because later
ones depend on results of earlier ones: the table has the best learning rate of each method, that with the
highest CIDEr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

ITUNING, UPPER_HALF = "ituning", "ituning_upper_half"
RIVALS = ("clipcap", "image_tokens", "flamingo", "cross_attention")
METHODS = (ITUNING, UPPER_HALF, *RIVALS)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
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


def best_rate(method: str, results: Results) -> float | None:
    """Return the learning rate with the highest CIDEr, None until all three have a result."""
    names = {rate: f"rate-{method}-{rate:g}" for rate in LEARNING_RATES}
    if not results.keys() >= {*names.values()}:
        return None
    return max(LEARNING_RATES, key=lambda rate: results[names[rate]]["metrics"]["cider"])


def table(results: Results) -> dict[str, Cell]:
    """Return the methods whose learning rate is chosen, with three seeds."""
    rates = {method: best_rate(method, results) for method in METHODS}
    return {
        f"table-{method}-{seed}": Cell(method, rate, seed)
        for seed in SEEDS
        for method, rate in rates.items()
        if rate is not None
    }


def best_rival(results: Results) -> str | None:
    """Return the rival with the highest mean CIDEr, None until all have a result for each seed."""
    names = {rival: [f"table-{rival}-{seed}" for seed in SEEDS] for rival in RIVALS}
    if not results.keys() >= {name for of_rival in names.values() for name in of_rival}:
        return None
    return max(RIVALS, key=lambda rival: sum(results[name]["metrics"]["cider"] for name in names[rival]))


def curve(results: Results) -> dict[str, Cell]:
    """Return I-Tuning and the best rival trained on fewer images."""
    return {
        f"images-{method}-{count}-{seed}": Cell(method, rate, seed, num_train_images=count)
        for seed in SEEDS
        for count in (300, 1000)
        for method in (ITUNING, best_rival(results))
        if method is not None and (rate := best_rate(method, results)) is not None
    }


CHANGES: dict[str, dict[str, Any]] = {
    "r-128": {"settings": {"adapter_hidden_size": 128}},
    "r-512": {"settings": {"adapter_hidden_size": 512}},
    "scale-4": {"settings": {"adapter_scale": 4.0}},
    "layer-10": {"vision_feature_layer": 10},
    "no-norm": {"settings": {"vision_feature_norm": False}, "learning_rate": 1e-3},  # diverges at 3e-3
    "learning-rate-0.001": {"learning_rate": 1e-3},
    "gate": {"method": "gate"},
    "linear-init": {"method": "linear_init"},
    "label-smoothing": {"settings": {"label_smoothing": 0.1}},
    "dropout": {"settings": {"adapter_dropout": 0.1}},
    "one-caption": {"settings": {"captions_per_image": 1}},
}


def changes(results: Results) -> dict[str, Cell]:
    """Return single changes of I-Tuning, with the seed 0."""
    rate = best_rate(ITUNING, results)
    if rate is None:
        return {}
    return {f"change-{name}-0": replace(Cell(ITUNING, rate), **change) for name, change in CHANGES.items()}


GROUPS: tuple[Callable[[Results], dict[str, Cell]], ...] = (learning_rates, table, curve, changes)
