"""From settings to the parts of a run: backbones, captioner, processor, data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoTokenizer, CLIPImageProcessorPil

from ..captioner.configuration_ituning import ADAPTER_OPTIONS, ITuningConfig
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import resolve_backbone
from ..captioner.processing_ituning import ITuningProcessor, load_image_processor
from ..data.dataset import count_over_long
from ..data.records import CaptionedImage
from ..features.store import FeatureStore
from ..hub.inspection import describe_config
from ..inference.int8 import quantize_frozen_weights, require_cpu
from ..utils.distributed import one_fate
from .arguments import SIZES, TrainArguments
from .small_backbones import make_small_backbones, small_text_config, small_vision_config

Report = Callable[[str], None]

FEW_STEPS = 100  # captions of 30 photographs did not end after 20 and 76 optimizer steps, and did after 120
GIVEN_DATA = "(given in Python)"  # what `run.json` says of data that no setting names
# Pretrained on drawn scenes, and shipped; `examples/pretrain_scene_backbones.py` makes them.
SCENE_BACKBONES = Path(__file__).resolve().parents[1] / "data" / "scene_backbones"


@dataclass
class TrainingData:
    """The images of a run.

    Args:
        train: What is trained on.
        evaluation: What the validation loss is computed on; empty without a split for it.
        features: What the vision encoder made of them; None to open them.
    """

    train: list[CaptionedImage]
    evaluation: list[CaptionedImage]
    features: FeatureStore | None = None

    def fingerprint(self) -> str:
        """Return a digest of the images' names and captions; pixels are not read."""
        digest = hashlib.sha256()
        for images in (self.train, self.evaluation):
            digest.update(json.dumps([(image.name, image.captions) for image in images]).encode())
        return digest.hexdigest()[:16]

    def describe_features(self) -> dict[str, str] | None:
        """Return the storage and the fingerprint of the features, None if the images are opened."""
        if self.features is None:
            return None
        images = [*self.train, *self.evaluation]
        return {"storage": self.features.spec.storage, "fingerprint": self.features.fingerprint(images)}


def load_data(args: TrainArguments) -> TrainingData:
    """Read the splits; every file is known to be there afterwards, unless there are features in its place.

    Raises:
        ValueError: for a data set that cannot be read, or has not as many images as the settings say.
        FileNotFoundError: for one that is not there, or whose images are not.
    """
    require_images = args.features is None
    train = args.load_split("train", args.seed, require_images=require_images)
    args.check_count("expected_train_images", args.expected_train_images, train, args.seed)
    if args.eval_split == "none":
        return TrainingData(train, [])
    try:
        num_scenes = max(1, args.num_scenes // 10)
        evaluation = args.load_split(args.eval_split, args.seed, num_scenes, require_images=require_images)
    except ValueError as error:
        raise ValueError(f"{error}. To train without validation, give --eval_split none.") from error
    args.check_count("expected_eval_images", args.expected_eval_images, evaluation, args.seed)
    return TrainingData(train, evaluation)


def with_features(args: TrainArguments, data: TrainingData) -> TrainingData:
    """Open the features that the settings name; they are known to be of all the images afterwards.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are damaged, not of all the images, or of other pictures.
    """
    if args.features is None:
        return data
    store = FeatureStore(args.features)
    for images in (data.train, data.evaluation):
        store.require(images)
    return replace(data, features=store)


def with_backbones(args: TrainArguments) -> TrainArguments:
    """Name the language model of a size; the shipped backbones for the scenes if no others are given."""
    if args.size is not None and args.text_model is None:
        return replace(args, text_model=SIZES[args.size])
    if args.dataset != "scenes" or args.text_model is not None:
        return args
    vision, text = (str(SCENE_BACKBONES / kind) for kind in ("vision", "text"))
    # Features tell of the encoder that made them.
    return replace(args, vision_model=vision if args.features is None else args.vision_model, text_model=text)


def load_model(
    args: TrainArguments, data: TrainingData, accelerator: Accelerator, report: Report
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Build an untrained captioner over the backbones that the settings name, or over small ones.

    Raises:
        OSError: for a backbone that is not there.
        ValueError: for one that cannot be used, or adapter settings that do not fit it.
    """
    options = {name: value for name in ADAPTER_OPTIONS if (value := getattr(args, name)) is not None}
    vision, text = args.vision_model, args.text_model
    if text is None:
        shapes = {"vision_config": small_vision_config(), "text_config": small_text_config()}
        _check_positions(ITuningConfig(**shapes, **options), args)  # before the minutes that follow
        vision, text = _small_backbones(args, data, accelerator, report)
    int8 = args.frozen_precision == "int8"
    if int8:
        require_cpu(accelerator.device)
    elif args.frozen_precision is not None:
        options["dtype"] = args.frozen_precision
    model, processor = _load_over_backbones(vision, text, data.features, options)
    _check_fit(model, processor, args)
    if int8:
        quantize_frozen_weights(model)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model, processor


def _load_over_backbones(
    vision: str | None, text: str, features: FeatureStore | None, options: dict[str, Any]
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Build the captioner and its processor; with features the vision encoder is not loaded."""
    if features is None:
        model = ITuningForCaptioning.from_vision_text_pretrained(str(vision), text, **options)
        image_processor = load_image_processor(str(vision), model.config.vision_model_revision)
    else:
        encoder = features.spec.vision_model if vision is None else resolve_backbone("vision", vision)
        options = {"vision_feature_layer": features.spec.vision_feature_layer} | options
        model = ITuningForCaptioning.from_vision_text_pretrained(encoder, text, **options)
        image_processor = (
            CLIPImageProcessorPil.from_dict(features.spec.image_processor)
            if vision is None
            else load_image_processor(vision, encoder.revision)
        )
        features.require_fits(model.config, image_processor.to_dict())
    tokenizer = AutoTokenizer.from_pretrained(text, revision=model.config.text_model_revision or "main")
    return model, ITuningProcessor(image_processor, tokenizer)


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
    total = describe_config(model.config)["parameters"]["total"]  # the encoder's may not be loaded
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    config = model.config
    backbones = f"{config.vision_model_name_or_path} + {config.text_model_name_or_path} (frozen)"
    if args.dry_run and args.text_model is None and args.resume_from_checkpoint is None:
        backbones = "small ones, untrained here; the run would train them first"
    lines = [
        f"Backbones  {backbones}",
        f"Adapter    r = {config.adapter_hidden_size}, {config.adapter_num_heads} heads, in "
        f"{len(config.adapter_layers)} of {config.text_config.num_hidden_layers} layers",
        f"Trainable  {trainable:,} of {total:,} parameters ({trainable / total:.2%}), "
        f"{size / 2**20:.1f} MiB on disk",
        f"Images     {len(data.train):,} to train on, {len(data.evaluation):,} for validation",
    ]
    if data.features is not None:
        spec = data.features.spec
        lines.append(
            f"Features   {spec.storage}, {spec.num_tokens} x {spec.hidden_size} for each image, in "
            f"{args.features}; neither images nor vision encoder are loaded"
        )
    over_long = count_over_long(data.train, processor, args.max_caption_tokens)
    if over_long:
        lines.append(f"Captions   {over_long:,} are cut at {args.max_caption_tokens} tokens")
    return lines
