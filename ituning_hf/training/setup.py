"""From settings to the parts of a run: backbones, captioner, processor, data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from ..checkpoint_ituning import ADAPTER_OPTIONS
from ..configuration_ituning import ITuningConfig
from ..data import CaptionedImage, count_over_long
from ..modeling_ituning import ITuningForCaptioning
from ..processes import one_fate
from ..processing_ituning import ITuningProcessor
from .arguments import TrainArguments
from .small_backbones import make_small_backbones, small_text_config, small_vision_config

Report = Callable[[str], None]

FEW_STEPS = 100  # captions of 30 photographs did not end after 20 and 76 optimizer steps, and did after 120
GIVEN_DATA = "(given in Python)"  # what `run.json` says of data that no setting names
# Pretrained on drawn scenes, and shipped; `examples/pretrain_scene_backbones.py` makes them.
SCENE_BACKBONES = Path(__file__).resolve().parents[1] / "scene_backbones"


@dataclass
class TrainingData:
    """The images of a run.

    Args:
        train: What is trained on.
        evaluation: What the validation loss is computed on; empty without a split for it.
    """

    train: list[CaptionedImage]
    evaluation: list[CaptionedImage]

    def fingerprint(self) -> str:
        """Return a digest of the images' names and captions; pixels are not read."""
        digest = hashlib.sha256()
        for images in (self.train, self.evaluation):
            digest.update(json.dumps([(image.name, image.captions) for image in images]).encode())
        return digest.hexdigest()[:16]


def load_data(args: TrainArguments) -> TrainingData:
    """Read the splits; every file is known to be there afterwards.

    Raises:
        ValueError: for a data set that cannot be read, or has not as many images as the settings say.
        FileNotFoundError: for one that is not there, or whose images are not.
    """
    train = args.load_split("train", args.seed)
    args.check_count("expected_train_images", args.expected_train_images, train, args.seed)
    if args.eval_split == "none":
        return TrainingData(train, [])
    try:
        num_scenes = max(1, args.num_scenes // 10)
        evaluation = args.load_split(args.eval_split, args.seed, num_scenes)
    except ValueError as error:
        raise ValueError(f"{error}. To train without validation, give --eval_split none.") from error
    args.check_count("expected_eval_images", args.expected_eval_images, evaluation, args.seed)
    return TrainingData(train, evaluation)


def with_backbones(args: TrainArguments) -> TrainArguments:
    """Name the shipped backbones where the built-in scenes are trained on and no others are given."""
    if args.dataset != "scenes" or args.vision_model is not None:
        return args
    vision, text = (str(SCENE_BACKBONES / kind) for kind in ("vision", "text"))
    return replace(args, vision_model=vision, text_model=text)


def load_model(
    args: TrainArguments, data: TrainingData, accelerator: Accelerator, report: Report
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Build an untrained captioner over the backbones that the settings name, or over small ones.

    Raises:
        OSError: for a backbone that is not there.
        ValueError: for one that cannot be used, or adapter settings that do not fit it.
    """
    options = {name: getattr(args, name) for name in ADAPTER_OPTIONS}
    vision, text = args.vision_model, args.text_model
    if vision is None or text is None:
        shapes = {"vision_config": small_vision_config(), "text_config": small_text_config()}
        _check_positions(ITuningConfig(**shapes, **options), args)  # before the minutes that follow
        vision, text = _small_backbones(args, data, accelerator, report)
    model = ITuningForCaptioning.from_vision_text_pretrained(vision, text, **options)
    processor = ITuningProcessor.from_vision_text_pretrained(
        vision,
        text,
        vision_revision=model.config.vision_model_revision,
        text_revision=model.config.text_model_revision,
    )
    _check_fit(model, processor, args)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model, processor


def _small_backbones(
    args: TrainArguments, data: TrainingData, accelerator: Accelerator, report: Report
) -> tuple[str, str]:
    """Make them at the start of a run; a resumed one finds them beside its checkpoints."""
    folder = Path(args.output_dir) / "backbones"
    vision, text = folder / "vision", folder / "text"
    with one_fate(accelerator):
        if args.resume_from_checkpoint is None and accelerator.is_main_process:
            report("No --vision_model and --text_model: making small ones of the training data first.")
            make_small_backbones(folder, data.train, seed=args.seed, report=report)
    return str(vision), str(text)


def _check_fit(model: ITuningForCaptioning, processor: ITuningProcessor, args: TrainArguments) -> None:
    vocabulary = model.config.text_config.vocab_size
    if len(processor.tokenizer) > vocabulary:
        raise ValueError(
            f"The tokenizer of {args.text_model} has {len(processor.tokenizer)} tokens, and its language "
            f"model only {vocabulary}: they do not belong together."
        )
    _check_positions(model.config, args)


def _check_positions(config: ITuningConfig, args: TrainArguments) -> None:
    positions = config.text_config.max_position_embeddings
    if args.max_caption_tokens > positions:
        raise ValueError(
            f"--max_caption_tokens is {args.max_caption_tokens}, and the language model has only "
            f"{positions} positions: give at most {positions}."
        )


def describe_steps(total_steps: int) -> list[str]:
    """Warn of a run that is too short to learn much, as a few photographs make it by default."""
    if total_steps >= FEW_STEPS:
        return []
    return [
        f"Few steps  {total_steps:,} in all: captions may not learn where to end; train more epochs, or in "
        "smaller batches"
    ]


def describe_run(
    model: ITuningForCaptioning, processor: ITuningProcessor, data: TrainingData, args: TrainArguments
) -> list[str]:
    """Say what is about to be trained on what, a line each."""
    tensors = model.adapter_state_dict().values()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    config = model.config
    backbones = f"{config.vision_model_name_or_path} + {config.text_model_name_or_path} (frozen)"
    if args.dry_run and args.vision_model is None and args.resume_from_checkpoint is None:
        backbones = "small ones, untrained here; the run would train them first"
    lines = [
        f"Backbones  {backbones}",
        f"Adapter    r = {config.adapter_hidden_size}, {config.adapter_num_heads} heads, in "
        f"{len(config.adapter_layers)} of {config.text_config.num_hidden_layers} layers",
        f"Trainable  {trainable:,} of {total:,} parameters ({trainable / total:.2%}), "
        f"{size / 2**20:.1f} MiB on disk",
        f"Images     {len(data.train):,} to train on, {len(data.evaluation):,} for validation",
    ]
    over_long = count_over_long(data.train, processor, args.max_caption_tokens)
    if over_long:
        lines.append(f"Captions   {over_long:,} are cut at {args.max_caption_tokens} tokens")
    return lines
