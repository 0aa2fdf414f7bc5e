"""The settings of a training run. Imports nothing heavy: `ituning train --help` reads this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.arguments import DatasetArguments
from ..utils.errors import UserError
from ..utils.rules import (
    AT_LEAST_ONE,
    BELOW_ONE,
    CAPTION_LENGTH,
    EVERY,
    FOLDER,
    MODEL,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    one_of,
    some_of,
)
from ..utils.settings import Settings, option

# What photographs are trained over by default; rendered scenes use the bundled miniatures.
DEFAULT_VISION_MODEL = "openai/clip-vit-base-patch16"
DEFAULT_TEXT_MODEL = "gpt2"
SIZES = {"base": "gpt2", "medium": "gpt2-medium", "large": "gpt2-large"}  # the paper's language models

SCHEDULERS = ("linear", "cosine", "constant_with_warmup")
PRECISIONS = ("no", "bf16", "fp16")
FROZEN_PRECISIONS = ("float32", "bfloat16", "int8")
SPLITS = ("val", "test", "none")
AUGMENTATIONS = ("crop", "flip", "color")
TRACKERS = ("tensorboard", "trackio", "wandb")
BEST_METRICS = ("loss", "bleu_4", "rouge_l", "cider")


@dataclass
class ModelArguments:
    """Two frozen backbones and the adapters between them."""

    title: ClassVar[str] = "model"

    vision_model: str | None = option(
        None,
        "frozen vision encoder: the folder or Hub id of a CLIP",
        MODEL,
        f"{DEFAULT_VISION_MODEL}, or a bundled miniature for scenes",
    )
    text_model: str | None = option(
        None,
        "frozen language model: the folder or Hub id of a GPT-2",
        MODEL,
        f"{DEFAULT_TEXT_MODEL}, or a bundled miniature for scenes",
    )
    size: str | None = option(
        None,
        "the paper's size: gpt2, gpt2-medium or gpt2-large, in place of --text_model",
        one_of(tuple(SIZES)),
    )
    adapter_hidden_size: int | None = option(
        None, "width of each adapter's bottleneck", AT_LEAST_ONE, "half the language model's width"
    )
    adapter_num_heads: int | None = option(
        None, "attention heads of each adapter", AT_LEAST_ONE, "the language model's number of heads"
    )
    adapter_layers: list[int] | None = option(
        None, "language model layers with an adapter, from 0; negative: from the top", unset="all"
    )
    adapter_scale: float = option(1.0, "fixed factor on each adapter's output")
    adapter_dropout: float = option(0.0, "dropout probability on each adapter's output", BELOW_ONE)
    vision_feature_layer: int | None = option(
        None,
        "hidden state of the vision encoder that the adapters read; -1 for the last layer",
        unset="the last layer, or that of --features",
    )


@dataclass
class DataArguments(DatasetArguments):
    """Images and their captions."""

    features: str | None = option(
        None,
        "folder written by `ituning features build`: training then loads neither images nor vision encoder",
        FOLDER,
        "encode the images in each step",
    )
    expected_train_images: int | None = option(
        None, "refuse another number of training images", AT_LEAST_ONE, "any number"
    )
    expected_eval_images: int | None = option(
        None, "refuse another number of images in --eval_split", AT_LEAST_ONE, "any number"
    )
    captions_per_image: int = option(
        5, "captions of each image in a batch; an epoch draws that many if an image has more", AT_LEAST_ONE
    )
    max_caption_tokens: int = option(
        64, "longer captions are cut to this many tokens, begin and end token included", CAPTION_LENGTH
    )
    augmentation: list[str] = option(
        [], "random changes of the training images, different in each epoch", some_of(AUGMENTATIONS), "none"
    )
    max_unreadable_share: float = option(
        0.05, "training stops if more than this share of the images cannot be read", SHARE
    )
    dataloader_num_workers: int = option(
        2,
        "processes that read images, at most one per core, for each training process; 0 for no extra process",
        NOT_NEGATIVE,
    )


@dataclass
class OptimizationArguments:
    """AdamW on the adapters' weights."""

    title: ClassVar[str] = "optimization"

    num_train_epochs: float = option(10.0, "passes over the training images", POSITIVE)
    max_train_steps: int | None = option(
        None, "total optimizer steps; overrides --num_train_epochs", AT_LEAST_ONE, "by epochs"
    )
    per_device_train_batch_size: int = option(16, "images in a batch of one process", AT_LEAST_ONE)
    gradient_accumulation_steps: int = option(1, "batches of a process in one optimizer step", AT_LEAST_ONE)
    learning_rate: float = option(5e-4, "peak learning rate of AdamW", POSITIVE)
    lr_scheduler_type: str = option("cosine", "learning rate schedule after warm-up", one_of(SCHEDULERS))
    warmup_ratio: float = option(0.05, "share of the steps in which the learning rate rises from zero", SHARE)
    weight_decay: float = option(0.01, "AdamW's weight decay of matrices; biases have none", NOT_NEGATIVE)
    label_smoothing: float = option(0.0, "probability spread over the whole vocabulary", BELOW_ONE)
    max_grad_norm: float = option(
        1.0, "gradient norm above which gradients are clipped; 0: none", NOT_NEGATIVE
    )
    mixed_precision: str | None = option(
        None,
        "precision of the computation; fp16 needs a GPU. The adapters' weights stay in fp32",
        one_of(PRECISIONS),
        "as set by `accelerate config`",
    )
    frozen_precision: str | None = option(
        None,
        "precision of the frozen weights; int8 is for the language model, on a CPU",
        one_of(FROZEN_PRECISIONS),
        "that of their files",
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, slower steps"
    )
    full_determinism: bool = option(
        False, "use only deterministic algorithms: two runs on a GPU then write the same bytes"
    )
    seed: int = option(0, "seed of weights, order, caption choice, augmentation, dropout and splits", SEED)


@dataclass
class ValidationArguments:
    """Validation on held-out images, the choice of the best captioner, and early stopping."""

    title: ClassVar[str] = "validation"

    eval_split: str = option("val", "split to validate on; none for no validation", one_of(SPLITS))
    eval_steps: str = option("epoch", "optimizer steps between validations, or 'epoch'", EVERY)
    eval_caption_images: int = option(
        0, "images to caption and score (BLEU, ROUGE-L, CIDEr) at each validation", NOT_NEGATIVE
    )
    num_sample_captions: int = option(4, "sample captions to show at each validation", NOT_NEGATIVE)
    metric_for_best_model: str = option(
        "loss", "metric that chooses best/; all but loss need --eval_caption_images", one_of(BEST_METRICS)
    )
    early_stopping_patience: int | None = option(
        None, "stop after this many validations without improvement", AT_LEAST_ONE, "never"
    )
    early_stopping_threshold: float = option(
        0.0, "smallest change of the metric that counts as an improvement", NOT_NEGATIVE
    )


@dataclass
class RunArguments:
    """Output, checkpoints, resumption and trackers."""

    title: ClassVar[str] = "run"

    output_dir: str = option("outputs/captioner", "folder of the run; must not hold another run", FOLDER)
    checkpointing_steps: str = option("epoch", "optimizer steps between checkpoints, or 'epoch'", EVERY)
    max_checkpoints: int = option(2, "number of newest checkpoints to keep", AT_LEAST_ONE)
    resume_from_checkpoint: str | None = option(
        None,
        "folder of the checkpoint to resume from, or 'latest' for the newest in --output_dir",
        FOLDER,
        "start a new run",
        metavar="FOLDER|latest",
    )
    report_to: list[str] = option([], "trackers to report to, besides log.jsonl", some_of(TRACKERS), "none")
    dry_run: bool = option(
        False, "take one optimizer step, print shapes, memory and the plan, and write nothing"
    )


@dataclass
class TrainArguments(
    RunArguments, ValidationArguments, OptimizationArguments, DataArguments, ModelArguments, Settings
):  # a dataclass takes its fields from the last base first
    """The checked settings of a run; `ituning train --help` describes them.

    Raises:
        UserError: for a value of the wrong type or out of its range, or two that contradict each other. The
            message names the command line's flags.
    """

    def __post_init__(self) -> None:
        """Check every value, and the combinations."""
        self.eval_steps, self.checkpointing_steps = str(self.eval_steps), str(self.checkpointing_steps)
        super().__post_init__()
        if self.size is not None and self.text_model is not None:
            raise UserError("--size and --text_model both name a language model: give one of them.")
        if self.features is not None and self.augmentation:
            raise UserError(
                f"--augmentation {' '.join(self.augmentation)} cannot be combined with --features, which are "
                "those of unchanged images: omit one of them."
            )
        if self.metric_for_best_model != "loss" and self.eval_caption_images == 0:
            raise UserError(
                f"--metric_for_best_model {self.metric_for_best_model} needs captions to score: give "
                "--eval_caption_images, for example 200."
            )
        needs_validation = {
            "--eval_caption_images": self.eval_caption_images > 0,
            "--early_stopping_patience": self.early_stopping_patience is not None,
            "--expected_eval_images": self.expected_eval_images is not None,
        }
        for flag, is_given in needs_validation.items():
            if is_given and self.eval_split == "none":
                raise UserError(f"{flag} needs validation, and --eval_split is 'none': give val or test.")
