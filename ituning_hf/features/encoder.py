"""The frozen vision encoder at work, without a captioner around it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.encoders_ituning import encoder_family
from ..captioner.pretrained_ituning import load_pretrained_backbone, resolve_backbone
from ..captioner.processing_ituning import load_image_processor
from .arguments import MIXED_PRECISIONS, STORAGES
from .quantisation import pack
from .spec import FeatureSpec, as_stored

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def describe_encoder(
    vision_model: str | os.PathLike[str],
    *,
    vision_revision: str | None = None,
    vision_feature_layer: int = -1,
    storage: str = "bfloat16",
    mixed_precision: str = "no",
) -> FeatureSpec:
    """Say what a store of an encoder's features is made by; the encoder is not loaded.

    Args:
        vision_model: A CLIP vision encoder, or a full CLIP: a local folder or a Hub id.
        vision_revision: Its revision on the Hub; recorded as a commit hash where known.
        vision_feature_layer: Which hidden state is taken; see `ITuningConfig`.
        storage: "bfloat16", "int8" or "float32".
        mixed_precision: "no", "bf16" or "fp16": what the encoder computes in.

    Raises:
        ValueError: For an encoder of another kind, or a setting out of its range.
        OSError: The encoder is not there.
    """
    for name, value, known in (
        ("storage", storage, STORAGES),
        ("mixed_precision", mixed_precision, MIXED_PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    source = resolve_backbone("vision", vision_model, vision_revision)
    config = ITuningConfig(vision_config=source.config, vision_feature_layer=vision_feature_layer)  # checks
    encoder = config.vision_config
    return FeatureSpec(
        vision_model_name_or_path=source.name_or_path,
        vision_model_revision=source.revision,
        vision_model_fingerprint=source.fingerprint,
        vision_config=as_stored(config.to_dict()["vision_config"]),
        image_processor=as_stored(load_image_processor(source.name_or_path, source.revision).to_dict()),
        vision_feature_layer=vision_feature_layer,
        storage=storage,
        mixed_precision=mixed_precision,
        num_tokens=encoder_family(encoder).num_tokens(encoder),
        hidden_size=encoder.hidden_size,
    )


class Encoder:
    """A vision encoder that computes features as they are stored.

    Args:
        spec: Which encoder, and how.
        device: Where it computes.

    Raises:
        ValueError: Weights are missing.
        OSError: The encoder is not there.
    """

    def __init__(self, spec: FeatureSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        name, revision = spec.vision_model_name_or_path, spec.vision_model_revision
        self.model: Any = load_pretrained_backbone("vision", name, revision=revision).to(device)

    def __call__(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the features of images.

        Args:
            pixel_values: Shape (num_images, 3, image_size, image_size).

        Returns:
            What `pack` made of them, on the CPU.

        Raises:
            FloatingPointError: They are not finite.
        """
        with self._precision():
            family = encoder_family(self.model.config)
            features = family.encode(self.model, pixel_values.to(self.device), self.spec.vision_feature_layer)
        if not features.isfinite().all():
            raise FloatingPointError(
                "the vision encoder's features are not finite: compute in another precision "
                "(mixed_precision), or look for damage in its weights"
            )
        return {kind: tensor.cpu() for kind, tensor in pack(features, self.spec.storage).items()}

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = _DTYPES.get(self.spec.mixed_precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)
