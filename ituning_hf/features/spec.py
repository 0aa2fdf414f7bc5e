"""The specification of a feature store, `store.json`: how its features were computed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..captioner.backbones_ituning import Backbone
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.encoders_ituning import encoder_family
from ..captioner.processing_ituning import load_image_processor
from ..utils.errors import UserError
from ..utils.files import read_json
from ..utils.rules import MIXED_PRECISIONS
from .arguments import STORAGES

STORE_FILE = "store.json"

# Bytes per value, and bytes per token for its scale.
_BYTES = {"bfloat16": (2, 0), "int8": (1, 4), "float32": (4, 0)}

# The other settings of an image processor are class names, which change between library versions.
_IMAGE_PROCESSOR_FIELDS = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


@dataclass(frozen=True)
class FeatureSpec:
    """How the features of a store were computed and stored."""

    vision_model: dict[str, Any]  # the fields of `ITuningConfig` that describe the encoder
    image_processor: dict[str, Any]  # the settings of the image processor
    vision_feature_layer: int  # the stored hidden state; see `ITuningConfig`
    storage: str  # the stored data type, one of `STORAGES`
    mixed_precision: str  # of the computation, one of `MIXED_PRECISIONS`; "no" means that of the weights
    num_tokens: int  # N, including the class token
    hidden_size: int  # d_v, the hidden size of the encoder

    @property
    def computation(self) -> dict[str, Any]:
        """All settings that determine the stored values; see `describe_computation`."""
        return {"storage": self.storage, "mixed_precision": self.mixed_precision} | describe_computation(
            self.vision_model["vision_model_fingerprint"],
            self.vision_config,
            self.image_processor,
            self.vision_feature_layer,
        )

    @property
    def vision_config(self) -> Any:
        """The encoder's configuration."""
        return ITuningConfig(**self.vision_model).vision_config

    def make_image_processor(self) -> Any:
        """Return the encoder's image processor."""
        return encoder_family(self.vision_config).image_processor_class.from_dict(self.image_processor)

    @property
    def bytes_per_image(self) -> int:
        """The size of the features of one image on disk, without the header."""
        per_number, per_token = _BYTES[self.storage]
        return self.num_tokens * (self.hidden_size * per_number + per_token)

    def differences(self, computation: Mapping[str, Any]) -> str:
        """List the settings that differ from another computation: "storage 'int8', not 'bfloat16'; ..."."""
        own = self.computation
        changed = [name for name, value in computation.items() if own[name] != value]
        return "; ".join(f"{name} {own[name]!r}, not {computation[name]!r}" for name in changed)


def describe_encoder(
    vision_model: str | os.PathLike[str],
    *,
    vision_revision: str | None = None,
    vision_feature_layer: int = -1,
    storage: str = "bfloat16",
    mixed_precision: str = "no",
) -> FeatureSpec:
    """Return the specification of a feature store for an encoder, without loading the encoder.

    Args:
        vision_model: A local folder or Hub id of a vision encoder, or of a full CLIP.
        vision_revision: Its revision on the Hub.
        vision_feature_layer: The hidden state to store; see `ITuningConfig`.
        storage: "bfloat16", "int8" or "float32".
        mixed_precision: "no", "bf16" or "fp16": the precision of the encoder's computation.

    Raises:
        UserError: `storage` or `mixed_precision` is unknown.
        CaptionerError: The encoder is not supported, or has no such layer.
        OSError: The encoder does not exist.
    """
    choices = {"storage": (storage, STORAGES), "mixed_precision": (mixed_precision, MIXED_PRECISIONS)}
    for name, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    encoder = Backbone("vision", vision_model, vision_revision)
    fields = encoder.config_fields()
    vision = ITuningConfig(**fields, vision_feature_layer=vision_feature_layer).vision_config
    return FeatureSpec(
        vision_model=_as_json(fields),
        image_processor=_as_json(load_image_processor(encoder.name_or_path, encoder.revision).to_dict()),
        vision_feature_layer=vision_feature_layer,
        storage=storage,
        mixed_precision=mixed_precision,
        num_tokens=encoder_family(vision).num_tokens(vision),
        hidden_size=vision.hidden_size,
    )


def read_spec(folder: Path) -> FeatureSpec:
    """Read the specification of a store; raise OSError if it is missing, UserError if it is damaged."""
    path = folder / STORE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a feature store: it has no {STORE_FILE}. `ituning features build` creates one"
        )
    content = read_json(path)
    try:
        return FeatureSpec(**content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): build the store again in another folder") from error


def describe_computation(
    fingerprint: str | None, vision_config: Any, image_processor: Mapping[str, Any], layer: int
) -> dict[str, Any]:
    """Return all settings that determine an encoder's features, which do not include its path."""
    architecture, image_processor = encoder_family(vision_config).architecture, _as_json(image_processor)
    return {
        "vision_model_fingerprint": fingerprint,
        "vision_feature_layer": layer % (vision_config.num_hidden_layers + 1),  # -1 is the last layer
        **{f"vision_config.{name}": getattr(vision_config, name) for name in architecture},
        **{f"image_processor.{name}": image_processor.get(name) for name in _IMAGE_PROCESSOR_FIELDS},
    }


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings after a round trip through JSON: without tuples and enums."""
    return json.loads(json.dumps(settings))
