"""What a training run can be told, and what each of its settings may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.arguments import DatasetArguments
from ..utils.rules import (
    AT_LEAST_ONE,
    BELOW_ONE,
    CAPTION_LENGTH,
    EVERY,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    one_of,
    some_of,
)
from ..utils.settings import Settings, option

SCHEDULERS = ("linear", "cosine", "constant_with_warmup")
PRECISIONS = ("no", "bf16", "fp16")
FROZEN_PRECISIONS = ("float32", "bfloat16", "int8")
SPLITS = ("val", "test", "none")
AUGMENTATIONS = ("crop", "flip", "color")
TRACKERS = ("tensorboard", "trackio", "wandb")
BEST_METRICS = ("loss", "bleu_4", "rouge_l", "cider")
SIZES = {"base": "gpt2", "medium": "gpt2-medium", "large": "gpt2-large"}  # the paper's


@dataclass
class ModelArguments:
    """Two frozen backbones and the adapters between them."""

    title: ClassVar[str] = "model"

    vision_model: str | None = option(
        None,
        "the frozen vision encoder: a CLIP's folder or Hub id; goes with --text_model",
        NOT_EMPTY,
        "MODEL",
        "a small one, trained on the training images first",
    )
    text_model: str | None = option(
        None,
        "the frozen language model: a GPT-2's folder or Hub id",
        NOT_EMPTY,
        "MODEL",
        "a small one, trained on the training captions first",
    )
    size: str | None = option(
        None,
        "the paper's size, which selects gpt2, gpt2-medium or gpt2-large if --text_model is not given",
        one_of(tuple(SIZES)),
        "|".join(SIZES),
    )
    adapter_hidden_size: int | None = option(
        None,
        "width of each adapter's bottleneck, in features",
        AT_LEAST_ONE,
        unset="half the language model's width",
    )
    adapter_num_heads: int | None = option(
        None, "attention heads of each adapter", AT_LEAST_ONE, unset="as many as the language model's"
    )
    adapter_layers: list[int] | None = option(
        None,
        "layers of the language model with an adapter, counted from 0; negative ones count from the top",
        unset="all",
    )
    adapter_scale: float = option(1.0, "fixed factor on each adapter's output")
    adapter_dropout: float = option(0.0, "dropout probability on each adapter's output", BELOW_ONE)
    vision_feature_layer: int | None = option(
        None,
        "which of the vision encoder's hidden states is read; -1 is the last layer's",
        unset="the last layer's, or that of --features",
    )


@dataclass
class DataArguments(DatasetArguments):
    """Images and their captions."""

    features: str | None = option(
        None,
        "what `ituning features build` wrote for the images: in place of opening them, and of the vision "
        "encoder's weights; --vision_model need not be given then",
        NOT_EMPTY,
        "FOLDER",
        "the images are opened, and encoded at each step",
    )
    expected_train_images: int | None = option(
        None,
        "images that there must be to train on: a data set with more or fewer is refused at once",
        AT_LEAST_ONE,
        unset="any number",
    )
    expected_eval_images: int | None = option(
        None, "images that there must be in --eval_split", AT_LEAST_ONE, unset="any number"
    )
    captions_per_image: int = option(
        5, "captions of each image in a batch; of more, each epoch draws so many", AT_LEAST_ONE
    )
    max_caption_tokens: int = option(64, "tokens a caption is cut at, begin and end included", CAPTION_LENGTH)
    augmentation: list[str] = option(
        [],
        "random changes of the training images, a new draw in each epoch",
        some_of(AUGMENTATIONS),
        "|".join(AUGMENTATIONS),
        "none",
    )
    max_unreadable_share: float = option(
        0.05, "share of the images that may be unreadable before training gives up", SHARE
    )
    dataloader_num_workers: int = option(
        2,
        "processes that read images for each training process, at most as many as there are cores; 0 reads "
        "in the training process",
        NOT_NEGATIVE,
    )


@dataclass
class OptimizationArguments:
    """AdamW on the adapters' weights."""

    title: ClassVar[str] = "optimisation"

    num_train_epochs: float = option(10.0, "passes over the training images", POSITIVE)
    max_train_steps: int | None = option(
        None, "optimizer steps in all, in place of --num_train_epochs", AT_LEAST_ONE, unset="by epochs"
    )
    per_device_train_batch_size: int = option(16, "images in a batch of one process", AT_LEAST_ONE)
    gradient_accumulation_steps: int = option(
        1, "batches of each process that make one optimizer step", AT_LEAST_ONE
    )
    learning_rate: float = option(5e-4, "peak learning rate of AdamW", POSITIVE)
    lr_scheduler_type: str = option(
        "cosine", "how the learning rate goes on after warm-up", one_of(SCHEDULERS), "|".join(SCHEDULERS)
    )
    warmup_ratio: float = option(0.05, "share of the steps in which the learning rate rises from zero", SHARE)
    weight_decay: float = option(0.01, "AdamW's weight decay of matrices; biases have none", NOT_NEGATIVE)
    label_smoothing: float = option(
        0.0, "share of each target token's probability that is spread over the vocabulary", BELOW_ONE
    )
    max_grad_norm: float = option(
        1.0, "largest gradient norm, longer gradients are scaled down to it; 0 for no limit", NOT_NEGATIVE
    )
    mixed_precision: str | None = option(
        None,
        "precision of the computation; the adapters' weights stay in fp32. fp16 is for GPUs: a step whose "
        "gradients overflow is skipped, counts as a step, and leaves the schedule where it is",
        one_of(PRECISIONS),
        "|".join(PRECISIONS),
        "as `accelerate config` says",
    )
    frozen_precision: str | None = option(
        None,
        "what the frozen models' weights are held in; int8 is for the language model, on a CPU. The "
        "adapters' stay in fp32",
        one_of(FROZEN_PRECISIONS),
        "|".join(FROZEN_PRECISIONS),
        "that of their files",
    )
    gradient_checkpointing: bool = option(
        False, "compute activations a second time in the backward pass: less memory, slower steps"
    )
    full_determinism: bool = option(
        False,
        "compute by deterministic algorithms alone, so that two runs write the same bytes on a GPU too",
    )
    seed: int = option(0, "seed of weights, order, caption choice, augmentation, dropout and splits", SEED)


@dataclass
class ValidationArguments:
    """What is measured on held-out images, how often, and what follows from it."""

    title: ClassVar[str] = "validation"

    eval_split: str = option(
        "val", "split to validate on; none does not validate", one_of(SPLITS), "|".join(SPLITS)
    )
    eval_steps: str = option(
        "epoch",
        "optimizer steps between validations, or 'epoch' for one after each epoch",
        EVERY,
        "INT|epoch",
    )
    eval_caption_images: int = option(
        0,
        "images of the split to caption at each validation for BLEU, ROUGE-L and CIDEr; 0 for none",
        NOT_NEGATIVE,
    )
    num_sample_captions: int = option(
        4, "images of the split, always the same, whose captions are shown at each validation", NOT_NEGATIVE
    )
    metric_for_best_model: str = option(
        "loss",
        "what decides which captioner is kept as best; all but loss need --eval_caption_images",
        one_of(BEST_METRICS),
        "|".join(BEST_METRICS),
    )
    early_stopping_patience: int | None = option(
        None,
        "validations in a row without a better one after which training stops",
        AT_LEAST_ONE,
        unset="never",
    )
    early_stopping_threshold: float = option(
        0.0, "least gain, in units of the metric, that counts as better for early stopping", NOT_NEGATIVE
    )


@dataclass
class RunArguments:
    """Where a run is written, how it is resumed, and who is told."""

    title: ClassVar[str] = "run"

    output_dir: str = option(
        "outputs/captioner",
        "folder that the run is written to; must not hold another run",
        NOT_EMPTY,
        "FOLDER",
    )
    checkpointing_steps: str = option(
        "epoch",
        "optimizer steps between checkpoints to resume from, or 'epoch' for one after each epoch",
        EVERY,
        "INT|epoch",
    )
    max_checkpoints: int = option(2, "checkpoints that are kept, the newest ones", AT_LEAST_ONE)
    resume_from_checkpoint: str | None = option(
        None,
        "go on from a checkpoint: its folder, or 'latest' for the newest one in --output_dir",
        NOT_EMPTY,
        "FOLDER|latest",
        "start anew",
    )
    report_to: list[str] = option(
        [], "trackers to report to, beside log.jsonl", some_of(TRACKERS), "|".join(TRACKERS), "none"
    )
    dry_run: bool = option(
        False,
        "build everything, take one optimizer step, print shapes, memory and the plan, and write nothing",
    )


# The order in which the help shows them.
SECTIONS = (ModelArguments, DataArguments, OptimizationArguments, ValidationArguments, RunArguments)


@dataclass
class TrainArguments(
    RunArguments, ValidationArguments, OptimizationArguments, DataArguments, ModelArguments, Settings
):  # a dataclass takes its fields from the last base first
    """The settings of a run, each of them checked; `ituning train --help` says what they mean.

    Raises:
        ValueError: for a value of the wrong type or out of its range, or two that contradict each other,
            worded with the command line's flags.
    """

    paths: ClassVar[frozenset[str]] = DatasetArguments.paths | {
        "vision_model",
        "text_model",
        "features",
        "output_dir",
        "resume_from_checkpoint",
    }

    def __post_init__(self) -> None:
        """Check every value, and those that depend on each other."""
        self.eval_steps, self.checkpointing_steps = str(self.eval_steps), str(self.checkpointing_steps)
        super().__post_init__()
        self._check_features()
        self._check_models()
        self._check_validation()

    def _check_features(self) -> None:
        if self.features is None:
            return
        if self.augmentation:
            raise ValueError(
                f"--augmentation is {self.augmentation}, and --features holds what the vision encoder made "
                "of the images as they are: leave one of them out."
            )
        if self.text_model is None and self.size is None and self.dataset != "scenes":
            raise ValueError(
                "--features is given and --text_model is not, and small backbones would be trained with an "
                "encoder of their own, whose features those are not: give --text_model."
            )

    def _check_models(self) -> None:
        if self.features is not None:  # they tell of their encoder
            return
        if (self.vision_model is None) != ((self.text_model or self.size) is None):
            given = "--vision_model" if self.vision_model else "--text_model"
            raise ValueError(f"only {given} is given: give both --vision_model and --text_model, or neither.")

    def _check_validation(self) -> None:
        if self.metric_for_best_model != "loss" and self.eval_caption_images == 0:
            raise ValueError(
                f"--metric_for_best_model is {self.metric_for_best_model!r}, a score of captions, and "
                "--eval_caption_images is 0: give a number of images to caption, for example 200."
            )
        needs_validation = {
            "--eval_caption_images": self.eval_caption_images > 0,
            "--early_stopping_patience": self.early_stopping_patience is not None,
            "--expected_eval_images": self.expected_eval_images is not None,
        }
        for flag, is_given in needs_validation.items():
            if is_given and self.eval_split == "none":
                raise ValueError(f"{flag} needs validation, and --eval_split is 'none': give val or test.")
