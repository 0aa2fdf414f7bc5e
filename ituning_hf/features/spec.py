"""The specification of a feature store, `store.json`: how its features were computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from ..captioner.backbones_ituning import Backbone
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.encoders_ituning import encoder_family
from ..captioner.processing_ituning import load_image_processor
from .arguments import BuildArguments

STORE_FILE = "store.json"
DTYPES = {"bfloat16": torch.bfloat16, "int8": torch.int8, "float32": torch.float32}

# The other settings of an image processor are class names, which change between library versions.
_IMAGE_PROCESSOR_FIELDS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
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
        """All settings that determine the stored values. They do not include the path of the encoder."""
        config = ITuningConfig(**self.vision_model).vision_config
        layers = config.num_hidden_layers + 1  # -1 is the last one
        return {
            "storage": self.storage,
            "mixed_precision": self.mixed_precision,
            "vision_model_fingerprint": self.vision_model["vision_model_fingerprint"],
            "vision_feature_layer": self.vision_feature_layer % layers,
            **{
                f"vision_config.{name}": getattr(config, name) for name in encoder_family(config).architecture
            },
            **{f"image_processor.{name}": self.image_processor.get(name) for name in _IMAGE_PROCESSOR_FIELDS},
        }

    def make_image_processor(self) -> Any:
        """Return the encoder's image processor."""
        config = ITuningConfig(**self.vision_model).vision_config
        return encoder_family(config).image_processor_class.from_dict(self.image_processor)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the store's files, with a row for each image.

        `key` is the hash of `name`; `num_bytes` and `digest` describe the image file. An image that could not
        be read has an `error`, and zeros as its features. `features` has the bytes of N x d_v numbers,
        `scales` (for int8 only) those of N numbers of type float32.
        """
        size = self.num_tokens * self.hidden_size * DTYPES[self.storage].itemsize
        columns = {"key": pa.uint64(), "name": pa.string(), "num_bytes": pa.int64(), "digest": pa.uint64()}
        columns |= {"error": pa.string(), "features": pa.binary(size)}
        if self.storage == "int8":
            columns["scales"] = pa.binary(self.num_tokens * 4)
        return pa.schema(columns)

    @property
    def bytes_per_image(self) -> int:
        """The size of an image on disk: its features, and about 100 bytes of other columns."""
        return 100 + sum(kind.byte_width for kind in self.schema.types if pa.types.is_fixed_size_binary(kind))

    def differences(self, other: FeatureSpec) -> str:
        """List the settings in which another computation differs: "storage 'int8', not 'bfloat16'; ..."."""
        pairs = zip(self.computation.items(), other.computation.values(), strict=True)
        return "; ".join(f"{name} {own!r}, not {value!r}" for (name, own), value in pairs if own != value)

    def of_captioner(self, config: ITuningConfig, image_processor: dict[str, Any]) -> FeatureSpec:
        """Return the specification with the encoder of a captioner, given its image processor's `to_dict`."""
        names = ("vision_model_fingerprint", "vision_config")
        encoder = {name: value for name, value in config.to_dict().items() if name in names}
        encoder, image_processor = _as_json(encoder), _as_json(image_processor)
        layer = config.vision_feature_layer
        return replace(
            self, vision_model=encoder, image_processor=image_processor, vision_feature_layer=layer
        )


def describe_encoder(args: BuildArguments) -> FeatureSpec:
    """Return the specification of a build. The encoder is not loaded.

    Raises:
        CaptionerError: The encoder is not supported, or has no such layer.
        OSError: The encoder does not exist.
    """
    encoder = Backbone("vision", args.vision_model, args.vision_revision)
    fields = encoder.config_fields()
    vision = ITuningConfig(**fields, vision_feature_layer=args.vision_feature_layer).vision_config
    return FeatureSpec(
        vision_model=_as_json(fields),
        image_processor=_as_json(load_image_processor(encoder.name_or_path, encoder.revision).to_dict()),
        vision_feature_layer=args.vision_feature_layer,
        storage=args.storage,
        mixed_precision=args.mixed_precision,
        num_tokens=encoder_family(vision).num_tokens(vision),
        hidden_size=vision.hidden_size,
    )


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings after a round trip through JSON: without tuples and enums."""
    return json.loads(json.dumps(settings))
