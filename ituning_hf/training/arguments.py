"""The settings of a training run. It imports no heavy libraries, so `ituning train --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..data.arguments import DatasetArguments
from ..utils.errors import UserError
from ..utils.rules import (
    AT_LEAST_ONE,
    BELOW_ONE,
    CAPTION_LENGTH,
    EVERY,
    FOLDER,
    MIXED_PRECISIONS,
    MODEL,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    one_of,
    some_of,
)
from ..utils.settings import Settings, option

# The default backbones; synthetic scenes use the bundled miniatures.
DEFAULT_VISION_MODEL = "openai/clip-vit-base-patch16"
DEFAULT_TEXT_MODEL = "gpt2"
SIZES = {"base": "gpt2", "medium": "gpt2-medium", "large": "gpt2-large"}  # the paper's language models

OBJECTIVES = ("cross_entropy", "cider")
SAMPLINGS = ("beams", "random")
BASELINES = ("mean", "greedy")
# Options of the adapter whose default differs from the paper, as far as it is known.
PRESETS: dict[str, dict[str, Any]] = {"paper": {"vision_feature_norm": False}}

SCHEDULERS = ("linear", "cosine", "constant_with_warmup")
FROZEN_PRECISIONS = ("float32", "bfloat16", "int8")
EVAL_SPLITS = ("val", "test", "none")
AUGMENTATIONS = ("crop", "flip", "color")
TRACKERS = ("tensorboard", "trackio", "wandb")
BEST_METRICS = ("loss", "bleu_4", "rouge_l", "cider")


@dataclass
class ModelArguments:
    """Two frozen backbones and the adapters between them."""

    title: ClassVar[str] = "model"

    init_from: str | None = option(
        None,
        "captioner to train further, with its backbones and adapters: a folder, a Hub id, or a run's folder",
        MODEL,
        "new adapters between --vision_model and --text_model",
    )
    vision_model: str | None = option(
        None,
        "frozen vision encoder, a folder or Hub id; docs/families.md lists what is supported",
        MODEL,
        f"{DEFAULT_VISION_MODEL}, or a bundled miniature for scenes",
    )
    text_model: str | None = option(
        None,
        "frozen language model, a folder or Hub id; docs/families.md lists what is supported",
        MODEL,
        f"{DEFAULT_TEXT_MODEL}, or a bundled miniature for scenes",
    )
    size: str | None = option(
        None,
        f"model size in the paper ({', '.join(SIZES.values())}); replaces --text_model",
        one_of(tuple(SIZES)),
    )
    preset: str | None = option(
        None,
        "adapter options of a publication: paper sets --vision_feature_norm false; flags take precedence",
        one_of(tuple(PRESETS)),
    )
    adapter_hidden_size: int | None = option(
        None,
        "width of each adapter's bottleneck, a multiple of the heads",
        AT_LEAST_ONE,
        "the largest up to half the language model's width",
    )
    adapter_num_heads: int | None = option(
        None,
        "attention heads of each adapter, a divisor of the width",
        AT_LEAST_ONE,
        "the largest up to the language model's number",
    )
    adapter_layers: list[int] | None = option(
        None,
        "indices of the language model layers with an adapter; negative indices count from the top",
        unset="all",
    )
    adapter_scale: float | None = option(None, "constant factor on each adapter's output", unset="1")
    adapter_dropout: float | None = option(
        None, "dropout probability on each adapter's output", BELOW_ONE, "0, or that of --init_from"
    )
    vision_feature_layer: int | None = option(
        None,
        "index of the encoder's hidden state that the adapters attend to; -1 is its output",
        unset="-1, or that of --features",
    )
    vision_feature_norm: bool | None = option(
        None, "normalize each image token; false is as in the paper", unset="true, or that of --init_from"
    )
    no_repeat_ngram_size: int | None = option(
        None,
        "generate no sequence of this many tokens twice in a caption; 0 permits all. Saved in the captioner",
        NOT_NEGATIVE,
        "0, or that of --init_from",
    )


@dataclass
class DataArguments(DatasetArguments):
    """Images and their captions."""

    features: str | None = option(
        None,
        "folder written by `ituning features build`, used instead of the images and the vision encoder",
        FOLDER,
        "images are encoded in each step",
    )
    expected_train_images: int | None = option(
        None,
        "refuse to train on any other number of images; for tar shards, the length of an epoch",
        AT_LEAST_ONE,
        "any number",
    )
    expected_eval_images: int | None = option(
        None, "refuse any other number of images in all of --eval_split", AT_LEAST_ONE, "any number"
    )
    captions_per_image: int = option(
        5, "captions per image in a batch; if an image has more, each epoch samples this many", AT_LEAST_ONE
    )
    max_caption_tokens: int = option(
        64, "truncate captions to this many tokens, including BOS and EOS", CAPTION_LENGTH
    )
    augmentation: list[str] = option(
        [],
        "random augmentation of the training images, different in each epoch",
        some_of(AUGMENTATIONS),
        "none",
    )
    max_unreadable_share: float = option(
        0.05, "stop training if more than this share of the images cannot be read", SHARE
    )
    dataloader_num_workers: int = option(
        2,
        "worker processes that read images, per training process, at most one per core; 0 uses none",
        NOT_NEGATIVE,
    )


@dataclass
class ObjectiveArguments:
    """What an optimizer step minimizes."""

    title: ClassVar[str] = "objective"

    objective: str = option(
        "cross_entropy",
        "cross_entropy, or cider: maximize the CIDEr of generated captions, starting from --init_from",
        one_of(OBJECTIVES),
    )
    sampling: str = option(
        "beams",
        "cider: captions to reward, the beams of a beam search or random samples",
        one_of(SAMPLINGS),
    )
    num_samples: int = option(5, "cider: captions to reward for each image", AT_LEAST_ONE)
    baseline: str = option(
        "mean",
        "cider: reward to exceed, the mean of the image's other captions or that of its greedy caption",
        one_of(BASELINES),
    )
    cross_entropy_weight: float = option(
        0.1, "cider: weight of the cross-entropy in the loss; the reward has the rest", BELOW_ONE
    )


@dataclass
class OptimizationArguments:
    """AdamW on the adapters' weights."""

    title: ClassVar[str] = "optimization"

    num_train_epochs: float = option(10.0, "passes over the training images", POSITIVE)
    max_train_steps: int | None = option(
        None, "total optimizer steps; overrides --num_train_epochs", AT_LEAST_ONE, "set by --num_train_epochs"
    )
    per_device_train_batch_size: int = option(16, "images per batch in each process", AT_LEAST_ONE)
    gradient_accumulation_steps: int = option(1, "batches per optimizer step in each process", AT_LEAST_ONE)
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", POSITIVE)
    lr_scheduler_type: str = option("cosine", "learning rate schedule after warm-up", one_of(SCHEDULERS))
    warmup_ratio: float = option(0.05, "share of the steps used for linear warm-up", SHARE)
    weight_decay: float = option(0.01, "weight decay of weight matrices; biases have none", NOT_NEGATIVE)
    label_smoothing: float = option(
        0.0, "label smoothing: probability spread over the whole vocabulary", BELOW_ONE
    )
    max_grad_norm: float = option(1.0, "maximum gradient norm, for clipping; 0 for no clipping", NOT_NEGATIVE)
    mixed_precision: str | None = option(
        None,
        "precision of the computation; fp16 requires a GPU. The adapters' weights stay in fp32",
        one_of(MIXED_PRECISIONS),
        "as set by `accelerate config`",
    )
    frozen_precision: str | None = option(
        None,
        "precision of the frozen weights; int8 applies to the language model only, on a CPU",
        one_of(FROZEN_PRECISIONS),
        "float32 on a CPU, else as stored",
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: saves memory, but is slower"
    )
    full_determinism: bool = option(
        False, "use only deterministic algorithms, so that two runs on a GPU give identical files"
    )
    seed: int = option(
        0, "seed of initialization, data order, caption sampling, augmentation, dropout and splits", SEED
    )


@dataclass
class ValidationArguments:
    """Validation on held-out images, the choice of the best captioner, and early stopping."""

    title: ClassVar[str] = "validation"

    eval_split: str = option("val", "split for validation; none for no validation", one_of(EVAL_SPLITS))
    eval_steps: str = option("epoch", "optimizer steps between validations, or 'epoch'", EVERY)
    max_eval_images: int = option(
        5000,
        "validate on at most this many images, evenly spaced over --eval_split and always the same",
        AT_LEAST_ONE,
    )
    eval_caption_images: int = option(
        0, "images to caption and score with BLEU, ROUGE-L and CIDEr at each validation", NOT_NEGATIVE
    )
    num_sample_captions: int = option(4, "sample captions to show at each validation", NOT_NEGATIVE)
    metric_for_best_model: str = option(
        "loss", "metric that selects best/; all but loss require --eval_caption_images", one_of(BEST_METRICS)
    )
    early_stopping_patience: int | None = option(
        None, "stop after this many validations without improvement", AT_LEAST_ONE, "never"
    )
    early_stopping_threshold: float = option(
        0.0, "minimum change of the metric that counts as an improvement", NOT_NEGATIVE
    )


@dataclass
class RunArguments:
    """Output, checkpoints, resumption and trackers."""

    title: ClassVar[str] = "run"

    output_dir: str = option("outputs/captioner", "folder of the run; must not contain another run", FOLDER)
    checkpointing_steps: str = option("epoch", "optimizer steps between checkpoints, or 'epoch'", EVERY)
    max_checkpoints: int = option(2, "number of checkpoints to keep", AT_LEAST_ONE)
    resume_from_checkpoint: str | None = option(
        None,
        "folder of the checkpoint to resume from, or 'latest' for the newest in --output_dir",
        FOLDER,
        "start a new run",
        metavar="FOLDER|latest",
    )
    report_to: list[str] = option(
        [], "experiment trackers to report to, in addition to log.jsonl", some_of(TRACKERS), "none"
    )
    dry_run: bool = option(
        False, "take one optimizer step, print shapes, memory and the plan, and write nothing"
    )


@dataclass
class TrainArguments(
    RunArguments,
    ValidationArguments,
    OptimizationArguments,
    ObjectiveArguments,
    DataArguments,
    ModelArguments,
    Settings,
):  # dataclass fields are collected from the last base class first
    """The checked settings of a run; `ituning train --help` describes them.

    Raises:
        UserError: if a value has the wrong type or is out of range, or two values contradict each other. The
            message has the command line flags.
    """

    def __post_init__(self) -> None:
        """Check all values and their combinations."""
        self.eval_steps, self.checkpointing_steps = str(self.eval_steps), str(self.checkpointing_steps)
        super().__post_init__()
        for name, value in PRESETS.get(self.preset or "", {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.size is not None and self.text_model is not None:
            raise UserError("--size and --text_model both select a language model: give one of them.")
        if self.features is not None and self.augmentation:
            raise UserError(
                f"--augmentation {' '.join(self.augmentation)} cannot be combined with --features, which are "
                "computed from the original images: omit one of them."
            )
        self._check_objective()
        if self.metric_for_best_model != "loss" and self.eval_caption_images == 0:
            raise UserError(
                f"--metric_for_best_model {self.metric_for_best_model} requires captions to score: give "
                "--eval_caption_images, for example 200."
            )
        needs_validation = {
            "--eval_caption_images": self.eval_caption_images > 0,
            "--early_stopping_patience": self.early_stopping_patience is not None,
            "--expected_eval_images": self.expected_eval_images is not None,
        }
        for flag, is_given in needs_validation.items():
            if is_given and self.eval_split == "none":
                raise UserError(f"{flag} requires validation, but --eval_split is 'none': give val or test.")

    def _check_objective(self) -> None:
        if self.objective == "cross_entropy":
            for field in fields(ObjectiveArguments):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} belongs to --objective cider: give both, or omit it.")
            return
        if self.init_from is None:
            raise UserError(
                "--objective cider requires a captioner that was trained on cross-entropy: give its run's "
                "folder as --init_from."
            )
        if self.label_smoothing > 0:
            raise UserError(
                f"--label_smoothing {self.label_smoothing} cannot be combined with --objective cider, which "
                "needs the captioner's own probabilities: omit it."
            )
        if self.sampling == "beams" and self.baseline == "greedy":
            raise UserError("--baseline greedy requires --sampling random; beams have --baseline mean.")
        if self.baseline == "mean" and self.num_samples == 1:
            raise UserError(
                "--baseline mean needs other captions of the image, but --num_samples is 1: give at least 2, "
                "or --sampling random --baseline greedy."
            )
