"""Make the tables and plots of the study from the results of its cells.

    python -m examples.study.report --dataset data/flickr8k/dataset_flickr8k.json --output_dir docs/study

Prints the tables in Markdown, and writes the plots if every method has a result.

Intervals are 95% percentile bootstraps (1,000 resamples) over seeds and images together: each resample draws
seeds and images with replacement and takes the mean over the seeds. Differences are paired: a resample has
the same images and seeds for all methods, and methods with the same seed train on the same images and
captions in the same order. With three seeds, the bootstrap understates the variance between seeds by a third.
The single changes and the settings of generation have one captioner: their intervals are over the images.

Requires `pip install 'ituning_hf[eval,viz]'`, and Java for METEOR.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ituning_hf.data import CaptionedImages, load_captioned_images
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.evaluation.scores import CaptionScores

from .cells import CHANGES, ITUNING, METHODS, SEEDS, Results, best_rival
from .decoding import SETTINGS
from .run import load_results, make_parser
from .training import evenly_spaced

METRICS = {"cider": "CIDEr", "bleu_4": "BLEU-4", "meteor": "METEOR", "rouge_l": "ROUGE-L"}
RESAMPLES = 1000
TITLES = {
    "ituning": "I-Tuning, all layers",
    "ituning_upper_half": "I-Tuning, upper half",
    "clipcap": "prefix of 10 (ClipCap, MLP)",
    "image_tokens": "49 image tokens (LLaVA, pixel shuffle)",
    "flamingo": "gated blocks (Flamingo, no resampler)",
    "cross_attention": "cross-attention (SmallCap, no retrieval)",
}


@dataclass
class Scored:
    """A method's captioners, one for each seed, with the scores of their captions.

    Args:
        results: The content of the result files.
        scores: The scores of the captions of each.
    """

    results: list[dict[str, Any]]
    scores: list[CaptionScores]

    @classmethod
    def load(cls, names: Iterable[str], results: Results, images: CaptionedImages) -> Scored:
        """Score the captions of the results that exist."""
        found = [results[name] for name in names if name in results]
        return cls(found, [score(result, images) for result in found])

    def mean(self, name: str) -> float:
        """Return the mean over the seeds of a score, or of another number of the results."""
        scores = [scores.metrics for scores in self.scores]
        found = [
            result["metrics"] | score | result for result, score in zip(self.results, scores, strict=True)
        ]
        return float(np.mean([values[name] for values in found]))

    @cached_property
    def resamples(self) -> dict[str, np.ndarray]:
        """Each metric of each resample, of shape (RESAMPLES,)."""
        # Two generators, so that methods with different numbers of seeds have the same images, too.
        of_images, of_seeds = np.random.default_rng(0), np.random.default_rng(1)
        count, found = self.scores[0].num_images, []
        for _ in range(RESAMPLES):
            drawn = np.bincount(of_images.integers(count, size=count), minlength=count)
            seeds = of_seeds.integers(len(self.scores), size=len(self.scores))
            found.append([list(self.scores[seed].weighted(drawn).values()) for seed in seeds])
        return dict(zip(self.scores[0].metrics, np.mean(found, axis=1).T, strict=True))


def score(result: dict[str, Any], images: CaptionedImages) -> CaptionScores:
    """Score the captions of a result."""
    chosen = evenly_spaced(images, result["cell"]["num_eval_images"])
    return score_captions(result["captions"], [list(image.captions) for image in chosen])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bounds that contain 95% of the values."""
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rates_table(results: Results) -> str:
    """Return the table of the learning rates: CIDEr, the highest in bold, and validation loss."""
    rates = sorted({result["cell"]["learning_rate"] for name, result in results.items() if _is(name, "rate")})
    rows = []
    for method in METHODS:
        found = [results.get(f"rate-{method}-{rate:g}", {}).get("metrics") for rate in rates]
        best = max((metrics["cider"] for metrics in found if metrics), default=None)
        cells = []
        for metrics in found:
            mark = "**" if metrics and metrics["cider"] == best else ""
            cells.append(
                f"{mark}{100 * metrics['cider']:.1f}{mark} ({metrics['loss']:.3f})" if metrics else ""
            )
        rows.append([TITLES[method], *cells])
    return markdown(["CIDEr (loss)", *(f"{rate:g}" for rate in rates)], rows)


def methods_table(scored: dict[str, Scored]) -> str:
    """Return the table of the methods' scores, each with its interval, and the difference to I-Tuning."""
    rows = []
    for method, found in scored.items():
        cells = []
        for metric in METRICS:
            if metric not in found.resamples:  # METEOR without Java
                cells.append("")
                continue
            low, high = interval(found.resamples[metric])
            cells.append(f"{100 * found.mean(metric):.1f} ({100 * low:.1f} to {100 * high:.1f})")
        rows.append([TITLES[method], f"{found.mean('loss'):.3f}", *cells, difference(found, scored[ITUNING])])
    return markdown(["", "loss", *METRICS.values(), "CIDEr, difference to I-Tuning"], rows)


def difference(found: Scored, base: Scored) -> str:
    """Return the difference in CIDEr with its interval."""
    if found is base:
        return ""
    low, high = interval(found.resamples["cider"] - base.resamples["cider"])
    return f"{100 * (found.mean('cider') - base.mean('cider')):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def costs_table(scored: dict[str, Scored]) -> str:
    """Return the table of what each method costs."""
    columns = {
        "trainable parameters": ("trainable_parameters", "{:,.0f}"),
        "CPU s a step": ("cpu_seconds_per_step", "{:.2f}"),
        "CPU s of training": ("cpu_seconds_training", "{:,.0f}"),
        "peak MB": ("peak_memory_mb", "{:,.0f}"),
        "CPU s a caption": ("cpu_seconds_per_caption", "{:.3f}"),
    }
    rows = [
        [TITLES[method], *(form.format(found.mean(name)) for name, form in columns.values())]
        for method, found in scored.items()
    ]
    return markdown(["", *columns], rows)


def changes_table(results: Results, images: CaptionedImages) -> str:
    """Return the table of the single changes, with the differences to the unchanged method."""
    base = Scored.load([f"table-{ITUNING}-0"], results, images)
    rows = []
    for name in CHANGES:
        found = Scored.load([f"change-{name}-0"], results, images)
        if found.results:
            loss = found.mean("loss") - base.mean("loss")
            rows.append([name, f"{found.mean('loss'):.3f}", f"{loss:+.3f}", difference(found, base)])
    return markdown(["change", "loss", "difference", "CIDEr, difference"], rows)


def decoding_table(results: Results) -> str:
    """Return the table of captioners and settings of generation."""
    found = [result for name, result in results.items() if _is(name, "decoding")]
    rows = []
    for result in sorted(found, key=lambda result: (result["captioner"], [*SETTINGS].index(result["name"]))):
        scores, (low, high) = result["metrics"], result["intervals"]["cider"]
        cells = [f"{100 * scores[metric]:.1f}" if metric in scores else "" for metric in METRICS]
        cells[0] += f" ({100 * low:.1f} to {100 * high:.1f})"
        cells += [f"{result['words']:.1f}", f"{result['repeating']:.1%}", f"{result['distinct']:.1%}"]
        rows.append([result["captioner"], result["name"], *cells, f"{result['cpu_seconds_per_caption']:.3f}"])
    header = [
        "captioner",
        "generation",
        *METRICS.values(),
        "words",
        "repeating",
        "distinct",
        "CPU s a caption",
    ]
    return markdown(header, rows)


def _is(name: str, group: str) -> bool:
    return name.startswith(f"{group}-")


def plot(points: dict[str, list[tuple[float, np.ndarray]]], title: str, path: Path) -> None:
    """Draw CIDEr, with its intervals, over a logarithmic axis, a series for each method."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for marker, (name, series) in zip("osD^vPX", points.items(), strict=False):
        x, values = [x for x, _ in series], [100 * resamples for _, resamples in series]
        middle = np.array([resamples.mean() for resamples in values])
        low, high = np.array([interval(resamples) for resamples in values]).T
        axes.errorbar(
            x, middle, (middle - low, high - middle), fmt=f"{marker}-", capsize=3, label=TITLES[name]
        )
    axes.set(xscale="log", xlabel=title, ylabel="CIDEr x 100")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def make_plots(
    scored: dict[str, Scored], results: Results, images: CaptionedImages, num_train_images: int, folder: Path
) -> None:
    """Write the plots of CIDEr over trained parameters, CPU minutes, and training images."""
    folder.mkdir(parents=True, exist_ok=True)

    def points(method: str, column: str, unit: float) -> list[tuple[float, np.ndarray]]:
        return [(scored[method].mean(column) / unit, scored[method].resamples["cider"])]

    for name, column, unit, title in (
        ("parameters", "trainable_parameters", 1e6, "million trained parameters"),
        ("minutes", "cpu_seconds_training", 60, "CPU minutes of training"),
    ):
        plot({method: points(method, column, unit) for method in scored}, title, folder / f"{name}.png")
    curves: dict[str, list[tuple[float, np.ndarray]]] = {}
    for method in filter(None, (ITUNING, best_rival(results))):
        found = {
            count: Scored.load([f"images-{method}-{count}-{seed}" for seed in SEEDS], results, images)
            for count in (300, 1000)
        }
        found[num_train_images] = scored[method]
        curves[method] = [(count, x.resamples["cider"]) for count, x in found.items() if x.results]
    plot(curves, "training images (3,000 visits)", folder / "images.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write the plots."""
    options = parse(arguments)
    results = load_results(options.results)
    train_images, images = (load_captioned_images(options.dataset, split) for split in ("train", "val"))
    scored = {
        method: found
        for method in METHODS
        if (found := Scored.load([f"table-{method}-{seed}" for seed in SEEDS], results, images)).results
    }
    tables = [
        rates_table(results),
        methods_table(scored),
        costs_table(scored),
        changes_table(results, images),
        decoding_table(results),
    ]
    print(*tables, sep="\n\n")
    if len(scored) == len(METHODS):
        make_plots(scored, results, images, len(train_images), options.output_dir)


def parse(arguments: Sequence[str] | None) -> Any:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("docs/study"), help="of the plots (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
