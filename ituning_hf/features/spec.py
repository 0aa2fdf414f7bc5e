"""What a store's features were made by: `store.json`, and what must fit it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.pretrained_ituning import BackboneSource
from ..utils.files import write_json
from ..utils.json_files import parse_json

STORE_FILE = "store.json"
FORMAT_VERSION = 1
# The bytes of one number, and what comes with each token: of 8-bit numbers their scale.
_BYTES = {"bfloat16": (2, 0), "int8": (1, 4), "float32": (4, 0)}

# Two encoders of the same weights compute the same if these are the same; the rest of a configuration says
# who saved it, or is of no consequence to a hidden state.
_ENCODER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
# Likewise of the image preparation; the rest names classes, which come and go with the library.
_PREPARATION_FIELDS = (
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
    """What the features of a store were made by.

    Args:
        vision_model_name_or_path: Where the encoder's weights came from.
        vision_model_revision: Their revision on the Hub, a commit hash where it is known.
        vision_model_fingerprint: What the weights hash to; see `pretrained_ituning.py`.
        vision_config: The encoder's configuration.
        image_processor: The image preparation's settings.
        vision_feature_layer: Which of the encoder's hidden states was taken; see `ITuningConfig`.
        storage: The form that the numbers are stored in, one of `STORAGES`.
        mixed_precision: The precision that the encoder computed in, one of `MIXED_PRECISIONS`; "no" is the
            precision of its weights.
        num_tokens: N, the tokens of an image, the class token among them.
        hidden_size: d_v, the numbers of a token.
        format_version: The version of the store's format.
    """

    vision_model_name_or_path: str
    vision_model_revision: str | None
    vision_model_fingerprint: str
    vision_config: dict[str, Any]
    image_processor: dict[str, Any]
    vision_feature_layer: int
    storage: str
    mixed_precision: str
    num_tokens: int
    hidden_size: int
    format_version: int = FORMAT_VERSION

    @property
    def vision_model(self) -> BackboneSource:
        """What is recorded of the encoder, for a captioner that does not load it."""
        return BackboneSource(
            name_or_path=self.vision_model_name_or_path,
            revision=self.vision_model_revision,
            fingerprint=self.vision_model_fingerprint,
            config=self.vision_config,
        )

    @property
    def computation(self) -> dict[str, Any]:
        """What decides on the numbers: neither where the encoder lies nor who saved it."""
        places = ("vision_model_name_or_path", "vision_model_revision")
        fields = {name: value for name, value in asdict(self).items() if name not in places}
        return fields | {
            "vision_config": {name: self.vision_config.get(name) for name in _ENCODER_FIELDS},
            "image_processor": {name: self.image_processor.get(name) for name in _PREPARATION_FIELDS},
            # -1 and the depth are one layer.
            "vision_feature_layer": self.vision_feature_layer % (self.vision_config["num_hidden_layers"] + 1),
        }

    def digest(self) -> str:
        """Return a digest of `computation`, by which a shard knows the store that it belongs to."""
        content = json.dumps(self.computation, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def bytes_per_image(self) -> int:
        """What the features of one image take on disk; names and headers come on top, about 300 bytes."""
        return feature_bytes(self.num_tokens, self.hidden_size, self.storage)


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they come back from JSON: no tuples, no enumerations."""
    return json.loads(json.dumps(settings))


def feature_bytes(num_tokens: int, hidden_size: int, storage: str) -> int:
    """Compute what the features of one image take on disk.

    CLIP ViT-B/16 has 197 tokens of 768 numbers:

    >>> feature_bytes(197, 768, "bfloat16"), feature_bytes(197, 768, "int8")
    (302592, 152084)
    """
    of_number, of_token = _BYTES[storage]
    return num_tokens * (hidden_size * of_number + of_token)


def write_spec(folder: Path, spec: FeatureSpec) -> None:
    """Write `store.json`, whole or not at all."""
    write_json(folder / STORE_FILE, asdict(spec))


def read_spec(folder: Path) -> FeatureSpec:
    """Read `store.json`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of a later format.
    """
    path = folder / STORE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no store of features: it has no {STORE_FILE}. `ituning features build` makes one."
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(
                f"{path} has format_version {version}, and this code reads up to {FORMAT_VERSION}: the store "
                "was built by a newer ituning_hf, so upgrade the package."
            )
        spec = FeatureSpec(**{field.name: content[field.name] for field in fields(FeatureSpec)})
        spec.digest()  # which takes values of the right kinds
        return spec
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): bring it back from a copy, or build the "
            "store anew in another folder."
        ) from error


def check_fits(found: FeatureSpec, wanted: FeatureSpec, folder: Path) -> None:
    """Refuse to add features to a store that was made by something else.

    Args:
        found: The store's.
        wanted: What would be added.
        folder: The store's, for the message.

    Raises:
        ValueError: With each thing that differs, and both of its values.
    """
    differences = [
        *_encoder_differences(found, wanted),
        *_differences(found, wanted, ("storage", "mixed_precision")),
        *_preparation_differences(found, wanted.image_processor),
    ]
    if differences:
        raise ValueError(
            f"the store in {folder} was made otherwise: {'; '.join(differences)}. Build into another folder, "
            "or with what that one was made by."
        )


def check_fits_captioner(
    found: FeatureSpec, config: ITuningConfig, image_processor: dict[str, Any], folder: Path
) -> None:
    """Refuse a store whose features are not what a captioner's own encoder would give.

    Args:
        found: The store's.
        config: The captioner's.
        image_processor: The settings of the captioner's image preparation.
        folder: The store's, for the message.

    Raises:
        ValueError: With each thing that differs, and both of its values.
    """
    vision = config.vision_config
    differences = [
        *_dict_differences("vision_config", found.vision_config, vision.to_dict(), _ENCODER_FIELDS),
        *_differences(found, config, ("vision_model_fingerprint",)),
        *_layer_difference(found, config, vision.num_hidden_layers),
        *_preparation_differences(found, as_stored(image_processor)),
    ]
    if differences:
        raise ValueError(
            f"the features in {folder} are not of this captioner's vision encoder: {'; '.join(differences)} "
            "(the store's, the captioner's). Give the store that was built with "
            f"{config.vision_model_name_or_path}, or build it: `ituning features build`."
        )


def _encoder_differences(found: FeatureSpec, wanted: FeatureSpec) -> Iterator[str]:
    configs = found.vision_config, wanted.vision_config
    yield from _dict_differences("vision_config", *configs, _ENCODER_FIELDS)
    yield from _differences(found, wanted, ("vision_model_fingerprint",))
    yield from _layer_difference(found, wanted, wanted.vision_config["num_hidden_layers"])


def _preparation_differences(found: FeatureSpec, wanted: dict[str, Any]) -> Iterator[str]:
    yield from _dict_differences("image_processor", found.image_processor, wanted, _PREPARATION_FIELDS)


def _layer_difference(found: Any, wanted: Any, depth: int) -> Iterator[str]:
    layers = found.vision_feature_layer, wanted.vision_feature_layer
    if layers[0] % (depth + 1) != layers[1] % (depth + 1):  # -1 and the depth are one layer
        yield f"vision_feature_layer {layers[0]}, not {layers[1]}"


def _differences(found: Any, wanted: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        values = getattr(found, name), getattr(wanted, name)
        if values[0] != values[1]:
            yield f"{name} {values[0]!r}, not {values[1]!r}"


def _dict_differences(
    where: str, found: dict[str, Any], wanted: dict[str, Any], keys: tuple[str, ...]
) -> Iterator[str]:
    for key in keys:
        if found.get(key) != wanted.get(key):
            yield f"{where}.{key} {found.get(key)!r}, not {wanted.get(key)!r}"
