"""The page of a run, `report.html` in its folder: curves, sample captions over time, and settings."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

from ..captioner.configuration_ituning import ITuningConfig
from ..data.columns import CaptionedImage, CaptionedImages
from ..evaluation.page import thumbnail_url
from ..evaluation.scores import METRIC_NAMES
from ..hub.inspection import describe_config
from ..hub.records import TrainingRecord
from ..pages import render_page
from ..pages.charts import line_chart
from ..utils.files import write_text
from .arguments import TrainArguments
from .run_folder import writing

MAX_POINTS = 100  # of a curve over the steps; each is the mean over an interval
PICTURE_SIDE = 256  # in pixels
Point = tuple[float, float]


class RunPage:
    """Collects the entries of a run's log, and writes the page.

    The page depends on the entries, the images and the settings alone: a resumed run writes the same bytes.

    Args:
        path: The page.
        args: The given settings.
        record: The settings with which the run computes, and what it trains on.
        config: The captioner's configuration.
        images: The validation images, some of which have sample captions. Their files may be missing.
        total_steps: Optimizer steps of the complete run.
    """

    def __init__(
        self,
        path: Path,
        args: TrainArguments,
        record: TrainingRecord,
        config: ITuningConfig,
        images: CaptionedImages,
        total_steps: int,
    ) -> None:
        self.path, self.record, self.images, self.total_steps = path, record, images, total_steps
        self.settings, self.flags = describe_settings(record, config), changed_settings(record.settings, args)
        self.step = 0
        self._interval = math.ceil(total_steps / MAX_POINTS)
        # The number of steps in each interval, and the sums of the steps' numbers, losses and so on, by name.
        self._sums: dict[int, Counter[str]] = {}
        self._scores: dict[str, list[Point]] = {}
        self._samples: dict[str, dict[int, str]] = {}  # by the image's name and the step
        self._pictures: dict[str, tuple[CaptionedImage, str | None]] = {}

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry of the log: a step or a validation."""
        self.step = entry["step"]
        if "loss" in entry:
            sums = self._sums.setdefault((self.step - 1) // self._interval, Counter())
            sums.update(entry | {"steps": 1})
            return
        for name in ("loss", *METRIC_NAMES):
            if (value := entry.get(f"validation_{name}")) is not None:
                self._scores.setdefault(name, []).append((self.step, value))
        for name, caption in entry.get("samples", {}).items():
            self._samples.setdefault(name, {})[self.step] = caption

    def write(self) -> None:
        """Write the page, replacing the last one; raise a TrainingError if it cannot be written."""
        html = render_page(
            "training.html.jinja",
            # Not `self`: Jinja's reference cycles would keep the images, and their file, after the run.
            dataset=self.record.dataset,
            step=self.step,
            total_steps=self.total_steps,
            settings=self.settings,
            flags=self.flags,
            charts=[line_chart(title, series, self.step) for title, series in self._charts() if series],
            best=self._best(),
            samples=[self._sample(name, captions) for name, captions in self._samples.items()],
        )
        with writing(self.path):
            write_text(self.path, html, errors="replace")  # a file name may not be Unicode

    def _charts(self) -> Iterator[tuple[str, dict[str, list[Point]]]]:
        losses = {"training": self._means("loss"), "validation": self._scores.get("loss", [])}
        if rewards := [(step, 100 * value) for step, value in self._means("reward")]:
            yield "CIDEr of the generated captions x 100", {"reward": rewards}
            yield "Tokens of a generated caption", {"length": self._means("sample_length")}
            del losses["training"]  # that of generated captions does not measure progress
        title = "Validation loss" if rewards else "Loss"
        yield title, {name: points for name, points in losses.items() if points}
        scores = {title: self._scores.get(name, []) for name, title in METRIC_NAMES.items()}
        yield (
            "Validation scores x 100",
            {name: [(step, 100 * value) for step, value in line] for name, line in scores.items() if line},
        )
        rates = self._means("learning_rate")
        yield "Learning rate", {"learning rate": rates} if rates else {}

    def _means(self, name: str) -> list[Point]:
        """Return the mean of a value over each interval of steps, at the mean step."""
        return [
            (sums["step"] / sums["steps"], sums[name] / sums["steps"])
            for sums in self._sums.values()
            if name in sums
        ]

    def _best(self) -> tuple[str, float, float, bool] | None:
        """Return the best validation after a step, by the metric that selects the best captioner.

        Returns:
            The metric, its value, the step, and whether the value before training is better.
        """
        metric = self.record.settings["metric_for_best_model"]
        values = dict(self._scores.get(metric, []))
        trained = {step: value for step, value in values.items() if step}
        if not trained:
            return None
        choose = min if metric == "loss" else max
        step = choose(trained, key=trained.__getitem__)
        is_worse = choose(values.values()) != trained[step]
        return METRIC_NAMES.get(metric, "loss"), trained[step], step, is_worse

    def _sample(self, name: str, captions: dict[int, str]) -> dict[str, Any]:
        """Return an image with its captions, the last one first; steps with equal captions share a line."""
        if name not in self._pictures:
            image = next(image for image in self.images if image.name == name)  # one of the first
            self._pictures[name] = image, thumbnail_url(image, PICTURE_SIDE)
        image, url = self._pictures[name]
        lines = []
        for caption, items in groupby(captions.items(), key=lambda item: item[1]):
            steps = [step for step, _ in items]
            lines.append((steps[0], steps[-1], caption))
        return {"name": name, "url": url, "references": image.captions, "lines": lines[::-1]}


def describe_settings(record: TrainingRecord, config: ITuningConfig) -> dict[str, str]:
    """Return the settings of a run in short, without folders of this machine."""
    parts = describe_config(config)
    names = (parts["vision_model"]["name_or_path"], parts["text_model"]["name_or_path"])
    vision, text = ("/".join(Path(name).parts[-2:]) if os.path.isabs(name) else name for name in names)
    adapter, parameters = parts["adapter"], parts["parameters"]
    number = "unknown" if record.num_train_images is None else f"{record.num_train_images:,}"
    return {
        "Vision encoder": vision,
        "Language model": text,
        "Adapters": f"r = {adapter['hidden_size']}, {adapter['num_heads']} heads, "
        f"in {len(adapter['layers'])} layers",
        "Trainable": f"{parameters['trainable']:,} of {parameters['total']:,} parameters",
        "Training images": number + (f", stored features ({record.features})" if record.features else ""),
        "Validation images": f"{record.num_eval_images:,}",
        "Device": f"{record.device}, processes: {record.num_processes}",
    }


def changed_settings(settings: dict[str, Any], args: TrainArguments) -> list[str]:
    """Return the settings that `args` gives and that are not the defaults, as flags."""
    defaults = {field.name: field.default for field in fields(TrainArguments)}
    return [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
        if getattr(args, name) not in (None, [], defaults[name])
    ]
