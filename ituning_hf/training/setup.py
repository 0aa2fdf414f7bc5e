"""Build the captioner and the processor of a run over its backbones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..captioner.backbones_ituning import Backbone
from ..captioner.configuration_ituning import ADAPTER_OPTIONS, ITuningConfig
from ..captioner.decoders_ituning import decoder_family
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor, load_image_processor, load_tokenizer
from ..features.store import FeatureStore
from ..inference import loading
from ..inference.int8 import quantize_frozen_weights, require_cpu
from ..utils.devices import default_dtype
from ..utils.errors import UserError
from .arguments import DEFAULT_TEXT_MODEL, DEFAULT_VISION_MODEL, SIZES, TrainArguments
from .run_folder import BEST, LAST

# Pretrained on rendered scenes by `examples/pretrain_scene_backbones.py`.
SCENE_BACKBONES = Path(__file__).resolve().parents[1] / "data" / "scene_backbones"


def with_backbones(args: TrainArguments) -> TrainArguments:
    """Fill in the backbones that neither the settings nor `args.init_from` name.

    Stored features name their own encoder. A run's folder becomes the folder of its captioner.
    """
    vision: str | None = DEFAULT_VISION_MODEL
    text: str | None = DEFAULT_TEXT_MODEL
    if args.init_from is not None:
        vision, text = None, None
    elif args.dataset == "scenes":
        vision, text = str(SCENE_BACKBONES / "vision"), str(SCENE_BACKBONES / "text")
    if args.size is not None:
        text = SIZES[args.size]
    vision_model = args.vision_model or (vision if args.features is None else None)
    return replace(
        args,
        init_from=args.init_from and _captioner_of_run(args.init_from),
        vision_model=vision_model,
        text_model=args.text_model or text,
        size=None,
    )


def _captioner_of_run(name: str) -> str:
    """Return the best captioner in a run's folder, or else the last one; another name as it is."""
    folders = [Path(name) / part for part in (BEST, LAST)]
    return next((str(folder) for folder in folders if folder.is_dir()), name)


def check_backbones(args: TrainArguments) -> None:
    """Raise `load_model`'s error for backbones that are not found or not supported, without loading them."""
    with _naming_the_options(args):
        if args.vision_model is not None:
            Backbone("vision", args.vision_model)
        if args.text_model is not None:
            config = Backbone("text", args.text_model).config
            decoder_family(config).check_config(config)


@contextmanager
def _naming_the_options(args: TrainArguments) -> Iterator[None]:
    """Add the options for local folders to the error if a default backbone cannot be found."""
    try:
        yield
    except OSError as error:
        is_default = {DEFAULT_VISION_MODEL, *SIZES.values()} & {args.vision_model, args.text_model}
        if args.init_from is not None or not is_default:
            raise
        problem = " ".join(str(error).split())
        raise OSError(
            f"{args.vision_model} and {args.text_model} cannot be loaded ({problem}). To use models on this "
            "machine, give --vision_model FOLDER and --text_model FOLDER."
        ) from error


def load_model(
    args: TrainArguments, features: FeatureStore | None, device: torch.device
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Build an untrained captioner over the backbones that the settings name, and its processor.

    With `args.init_from`, load that captioner instead, to train it further. With stored features, the vision
    encoder is not loaded.

    Raises:
        OSError: for a backbone that cannot be found.
        ValueError: for one that cannot be used, or adapter settings that do not fit it or the captioner.
    """
    options = {name: value for name in ADAPTER_OPTIONS if (value := getattr(args, name)) is not None}
    if args.frozen_precision == "int8":
        require_cpu(device)
    elif (dtype := args.frozen_precision or default_dtype(device)) is not None:
        options["dtype"] = dtype
    with _naming_the_options(args):
        if args.init_from is not None:
            model, processor = _load_saved(args, features, options)
        else:
            model, processor = _load_over_backbones(
                args.vision_model, str(args.text_model), features, options
            )
    positions = model.config.text_config.max_position_embeddings
    if args.max_caption_tokens > positions:
        raise UserError(
            f"--max_caption_tokens is {args.max_caption_tokens}, and the language model has only "
            f"{positions} positions: give at most {positions}."
        )
    if args.no_repeat_ngram_size is not None:
        model.generation_config.no_repeat_ngram_size = args.no_repeat_ngram_size
    if args.frozen_precision == "int8":
        quantize_frozen_weights(model)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model, processor


def _load_over_backbones(
    vision: str | None, text: str, features: FeatureStore | None, options: dict[str, Any]
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    encoder: Any = vision
    if features is not None:
        encoder = features.spec.vision_model
        if vision is not None:
            encoder = Backbone("vision", vision).config_fields()
        options = {"vision_feature_layer": features.spec.vision_feature_layer} | options
    model = ITuningForCaptioning.from_vision_text_pretrained(encoder, text, **options)
    if vision is not None:
        image_processor = load_image_processor(vision, model.config.vision_model_revision)
    elif features is not None:
        image_processor = features.spec.make_image_processor()
    if features is not None:
        features.require_fits(model.config, image_processor.to_dict())
    tokenizer = load_tokenizer(text, model.config.text_model_revision)
    return model, ITuningProcessor(image_processor, tokenizer)


def _load_saved(
    args: TrainArguments, features: FeatureStore | None, options: dict[str, Any]
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Load a captioner to train further. Of the adapter's options, only the dropout may be another one."""
    name = str(args.init_from)
    asked = {key: options.pop(key) for key in ADAPTER_OPTIONS if key in options and key != "adapter_dropout"}
    backbones = {"vision_model": args.vision_model, "text_model": args.text_model}  # if they have moved
    model = loading.load_model(name, "cpu", load_vision_model=features is None, **backbones, **options)
    config = ITuningConfig.from_dict(model.config.to_dict(), **asked)
    for option in asked:
        if (saved := getattr(model.config, option)) != getattr(config, option):
            raise UserError(
                f"--{option} is {asked[option]}, but {name} was saved with {saved}: omit the option."
            )
    for adapter in model.adapters().values():
        adapter.float()  # also if the captioner was saved, or its backbones are loaded, in half precision
    processor = loading.load_processor(name)
    if features is not None:
        features.require_fits(model.config, processor.image_processor.to_dict())
    return model, processor
