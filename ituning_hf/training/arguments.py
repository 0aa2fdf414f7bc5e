"""What a training run can be told, on the command line or in a YAML file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

SCHEDULERS = ("linear", "cosine", "constant_with_warmup")
PRECISIONS = ("no", "bf16", "fp16")
AUGMENTATIONS = ("crop", "flip", "color")
TRACKERS = ("tensorboard", "trackio", "wandb")
BEST_METRICS = ("loss", "bleu_4", "rouge_l", "cider")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _list_option(text: str) -> Any:
    return field(default_factory=list, metadata={"help": text})


@dataclass
class TrainArguments:
    """The settings of a run; each field's help says what it means and in what unit.

    Raises:
        ValueError: for a value out of its range, worded with the command line's flag.
    """

    # The model
    vision_model: str | None = _option(
        None,
        "The frozen vision encoder: a CLIP's folder or Hub id. Without --vision_model and --text_model, "
        "small ones are made from the training data first.",
    )
    text_model: str | None = _option(None, "The frozen language model: a GPT-2's folder or Hub id.")
    adapter_hidden_size: int | None = _option(
        None, "Width of each adapter's bottleneck. Default: half the decoder's width."
    )
    adapter_num_heads: int | None = _option(None, "Heads of each adapter. Default: the decoder's.")
    adapter_layers: list[int] | None = _option(
        None, "Decoder layers that carry an adapter, from 0; negative counts from the top. Default: all."
    )
    adapter_scale: float = _option(1.0, "Fixed factor on each adapter's output.")
    adapter_dropout: float = _option(0.0, "Dropout probability on each adapter's output.")
    vision_feature_layer: int = _option(-1, "The encoder's hidden state to read; -1 is the last layer's.")

    # The data
    dataset: str = _option(
        "scenes",
        "'scenes' for the built-in rendered scenes, a Karpathy .json file, or a folder with metadata.jsonl.",
    )
    image_root: str | None = _option(None, "The folder that a Karpathy file's image names are relative to.")
    num_scenes: int = _option(1000, "How many scenes to train on, with --dataset scenes.")
    captions_per_image: int = _option(5, "Captions of each image in a batch; the rest wait for other epochs.")
    max_caption_tokens: int = _option(64, "Captions are cut at so many tokens, begin and end token included.")
    image_column: str | None = _option(
        None, "Column of images in a CSV, Parquet or `datasets` data set. Default: found by its usual names."
    )
    caption_column: str | None = _option(
        None,
        "Column of captions in a CSV, Parquet or `datasets` data set. Default: found by its usual names.",
    )
    val_share: float = _option(
        0.1, "Share of the images that become the val split, by seed, where the data set has no splits."
    )
    augmentation: list[str] = _list_option(
        f"Random changes of the images, any of: {', '.join(AUGMENTATIONS)}."
    )
    max_unreadable_share: float = _option(
        0.05, "Give up when more than this share of the images cannot be read."
    )
    eval_split: str = _option("val", "Split for the validation loss: val, test, or none.")
    dataloader_num_workers: int = _option(2, "Processes that read images beside each training process.")

    # The optimization
    num_train_epochs: float = _option(10, "Passes over the training images.")
    max_train_steps: int | None = _option(None, "Optimizer steps in all; takes the place of the epochs.")
    per_device_train_batch_size: int = _option(16, "Images in a batch of one process.")
    gradient_accumulation_steps: int = _option(1, "Batches of each process in an optimizer step.")
    learning_rate: float = _option(5e-4, "AdamW's peak learning rate.")
    lr_scheduler_type: str = _option("cosine", f"Decay after warm-up: {', '.join(SCHEDULERS)}.")
    warmup_ratio: float = _option(0.05, "Share of the steps in which the learning rate rises from zero.")
    weight_decay: float = _option(0.01, "AdamW's weight decay, on matrices; biases have none.")
    label_smoothing: float = _option(0.0, "Share of each target's probability spread over the vocabulary.")
    max_grad_norm: float = _option(1.0, "Clip the gradient's norm to this; 0 does not clip.")
    mixed_precision: str | None = _option(
        None, f"{', '.join(PRECISIONS)}. Default: what `accelerate config` says. The adapter stays in fp32."
    )
    gradient_checkpointing: bool = _option(False, "Recompute activations: less memory, slower steps.")
    seed: int = _option(0, "Of everything random.")

    # Validation
    eval_steps: str = _option("epoch", "Validate every so many optimizer steps, or each 'epoch'.")
    eval_caption_images: int = _option(
        0, "Validation images to caption for BLEU, ROUGE-L and CIDEr at each validation; 0 for none."
    )
    num_sample_captions: int = _option(
        4, "Validation images, always the same, whose captions are shown at each validation."
    )
    metric_for_best_model: str = _option(
        "loss",
        f"What the best captioner is best at: {', '.join(BEST_METRICS)}; all but loss are of captions.",
    )
    early_stopping_patience: int | None = _option(
        None, "Stop after so many validations in a row without a better one. Default: never."
    )
    early_stopping_threshold: float = _option(
        0.0, "How much better a validation must be to count as better for early stopping."
    )

    # The run
    output_dir: str = _option("outputs/captioner", "Where the run is written; must not hold another run.")
    checkpointing_steps: str = _option(
        "epoch", "Save a checkpoint to resume from every so many optimizer steps, or each 'epoch'."
    )
    max_checkpoints: int = _option(2, "Checkpoints kept, the newest ones.")
    resume_from_checkpoint: str | None = _option(
        None, "A checkpoint's folder, or 'latest' for the newest one in --output_dir."
    )
    report_to: list[str] = _list_option(f"Trackers to report to, any of: {', '.join(TRACKERS)}.")
    dry_run: bool = _option(
        False, "Build everything, take one batch, print shapes, memory and the planned steps, and stop."
    )

    def __post_init__(self) -> None:
        """Check every value before anything is loaded."""
        self._check_models()
        self._check_ranges()
        self._check_choices()

    def _check_models(self) -> None:
        if (self.vision_model is None) != (self.text_model is None):
            given = "--vision_model" if self.vision_model else "--text_model"
            raise ValueError(f"only {given} is given: give both --vision_model and --text_model, or neither.")

    def _check_ranges(self) -> None:
        at_least_one = ("num_scenes", "captions_per_image", "per_device_train_batch_size")
        for name in (*at_least_one, "gradient_accumulation_steps"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "max_caption_tokens", self.max_caption_tokens >= 3, "at least 3")
        _require(self, "num_train_epochs", self.num_train_epochs > 0, "more than 0")
        _require(
            self, "max_train_steps", self.max_train_steps is None or self.max_train_steps >= 1, "at least 1"
        )
        _require(self, "learning_rate", self.learning_rate > 0, "more than 0")
        for name in ["weight_decay", "max_grad_norm", "dataloader_num_workers", "seed"]:
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ["warmup_ratio", "max_unreadable_share"]:
            _require(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        _require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "0 to 1, 1 excluded")

    def _check_choices(self) -> None:
        choices = {
            "lr_scheduler_type": SCHEDULERS,
            "mixed_precision": (None, *PRECISIONS),
            "eval_split": ("val", "test", "none"),
        }
        for name, allowed in choices.items():
            shown = ", ".join(str(choice) for choice in allowed if choice is not None)
            _require(self, name, getattr(self, name) in allowed, f"one of {shown}")
        steps = self.checkpointing_steps
        valid = steps == "epoch" or (str(steps).isdecimal() and int(steps) >= 1)
        _require(self, "checkpointing_steps", valid, "'epoch' or a number of steps")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dataclasses.asdict(self)


def parse_arguments(argv: Sequence[str] | None = None) -> TrainArguments:
    """Read settings from a YAML file (`--config`) and from flags, which win over it.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` by default.

    Raises:
        ValueError: for an unknown key in the file, or a value out of its range.
        FileNotFoundError: if the file is not there.
        SystemExit: for flags that cannot be read, as argparse does.
    """
    parser = HfArgumentParser(TrainArguments, prog="ituning train", description=_DESCRIPTION)
    parser.add_argument("--config", metavar="FILE", help="A YAML file of these settings; flags win over it.")
    known, _ = parser.parse_known_args(argv)
    if known.config is not None:
        parser.set_defaults(**read_config(known.config))
    settings = vars(parser.parse_args(argv))
    del settings["config"]
    return TrainArguments(**settings)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ValueError: if it is not a mapping, or has keys that are no settings.
        FileNotFoundError: if it is not there.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config {path}: there is no such file.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected settings as 'name: value'.")
    names = {f.name: f for f in dataclasses.fields(TrainArguments)}
    if unknown := sorted(set(content) - set(names), key=str):
        raise ValueError(f"{path} has unknown setting(s) {unknown}; known are {sorted(names)}.")
    return {name: _as_declared(name, value, path) for name, value in content.items()}


def _as_declared(name: str, value: Any, path: str | os.PathLike[str]) -> Any:
    """Turn YAML's value into the field's type: YAML reads 5e-4 as text, and 10 as a whole number."""
    declared = TrainArguments.__annotations__[name].removesuffix(" | None")
    if value is None:
        return None
    convert = {"int": int, "float": float, "str": str}.get(declared)
    try:
        wrong_kind = isinstance(value, bool) != (declared == "bool")
        if wrong_kind or (declared == "int" and value != int(value)):
            raise ValueError
        return convert(value) if convert else value
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {name} is {value!r}, expected {declared}.") from None


def _require(args: TrainArguments, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"--{name} is {getattr(args, name)!r}, expected {expected}.")


_DESCRIPTION = """Train an image captioner: small adapters between a frozen CLIP and a frozen GPT-2.
Only the adapters are trained and stored."""
