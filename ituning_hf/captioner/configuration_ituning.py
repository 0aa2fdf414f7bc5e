"""The captioner's configuration: two frozen backbones and the adapters between them."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils.versions import require_version

# Checked before importing names that older versions do not have.
require_version("transformers>=5.23", "I-Tuning captioners need it: pip install -U transformers")

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

logger = logging.get_logger(__name__)

FORMAT_VERSION = 2  # version 1 has no `vision_feature_norm`
ADAPTER_OPTIONS = (
    "adapter_hidden_size",
    "adapter_num_heads",
    "adapter_scale",
    "adapter_layers",
    "adapter_dropout",
    "vision_feature_layer",
    "vision_feature_norm",
)
HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download")

_SIZES = {
    "vision_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"),
    "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
}


class CaptionerError(ValueError):
    """A configuration, adapter file or backbone cannot be used. The message says what to do."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Convert the various exceptions that libraries raise for a malformed file to `CaptionerError`."""
    try:
        yield
    except (CaptionerError, StrictDataclassError, OSError, ImportError):
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise CaptionerError(f"{what} cannot be read ({type(error).__name__}: {error}).") from error


class ITuningConfig(PreTrainedConfig):
    r"""Configuration of an [`ITuningForCaptioning`] model.

    The paper's three sizes differ only in the decoder. In each, all layers have an adapter, and
    `adapter_hidden_size` is half the decoder's hidden size.

    Args:
        vision_config: The configuration of the frozen vision encoder, or a dictionary. By default, that of
            Transformers for the paper's type of encoder.
        text_config: The configuration of the frozen language model of hidden size d, or a dictionary. By
            default, that of Transformers for the paper's type of language model.
        vision_model_name_or_path: The Hub id or absolute path of the encoder's weights.
        vision_model_revision: The encoder's revision on the Hub; a commit hash if it is known.
        vision_model_fingerprint: The fingerprint of its weights; see [`Backbone.fingerprint`].
        text_model_name_or_path: The Hub id or absolute path of the language model's weights.
        text_model_revision: The language model's revision on the Hub.
        text_model_fingerprint: The fingerprint of its weights.
        adapter_hidden_size: The bottleneck width r of each adapter. `None` means the largest multiple of h up
            to d / 2.
        adapter_num_heads: The number of attention heads h of each adapter; must divide r. `None` means the
            decoder's number or, if that does not divide a given r, the largest smaller one that does.
        adapter_scale: The constant factor lambda on the adapter's output.
        adapter_layers: The decoder layers that have an adapter, counted from 0 at the bottom; negative
            indices count from the top. `None` means all layers.
        adapter_dropout: Dropout probability on the adapter's output during training.
        vision_feature_layer: The index of the encoder's hidden state used as visual memory: -1 is its output,
            after the final norm if it has one; 0 is the output of the embeddings, n that of the n-th layer.
        vision_feature_norm: Whether each token of the visual memory is normalized; see `normalize_tokens`. In
            the paper it is not.
        format_version: The version of the checkpoint format.

    Raises:
        CaptionerError: if a value is out of range; the message has the value and the expected range.

    Example:
    ```python
    >>> from ituning_hf import ITuningConfig
    >>> config = ITuningConfig(adapter_layers=[6, 7, 8, 9, 10, 11])
    >>> config.adapter_hidden_size, config.adapter_num_heads
    (384, 12)

    ```
    """

    model_type = "ituning"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
    }

    vision_config: Any = None  # a dictionary or a configuration; after __init__ a configuration
    text_config: Any = None
    vision_model_name_or_path: str | None = None
    vision_model_revision: str | None = None
    vision_model_fingerprint: str | None = None
    text_model_name_or_path: str | None = None
    text_model_revision: str | None = None
    text_model_fingerprint: str | None = None
    adapter_hidden_size: int | None = None
    adapter_num_heads: int | None = None
    adapter_scale: float = 1.0
    adapter_layers: list[int] | None = None
    adapter_dropout: float = 0.0
    vision_feature_layer: int = -1
    vision_feature_norm: bool = True
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        """Replace `None` with the decoder's sizes, and check every value."""
        if unknown := [name for name in kwargs if name.startswith(("adapter_", "vision_", "text_"))]:
            logger.warning(
                f"ITuningConfig ignores the unknown fields {unknown}; known are {sorted(_OWN_FIELDS)}."
            )
        if self.format_version != FORMAT_VERSION:
            raise CaptionerError(
                f"format_version is {self.format_version!r}, expected {FORMAT_VERSION}: upgrade ituning_hf."
            )
        for name in ("vision_config", "text_config"):
            if not isinstance(value := getattr(self, name), dict | PreTrainedConfig | None):
                raise CaptionerError(f"{name} is {value!r}, expected the frozen model's configuration.")
            # A copy: Transformers would set the attention implementation of a loaded model's configuration
            # to None, and that model would then attend to later tokens.
            setattr(self, name, copy.deepcopy(value))
        for name in _TEXT_FIELDS:
            if not isinstance(value := getattr(self, name), str | None):
                raise CaptionerError(f"{name} is {value!r}, expected a string or None.")
        with reading("vision_config or text_config"):
            super().__post_init__(**kwargs)
        for name, fields in _SIZES.items():
            for field in fields:
                if not _is_int(size := getattr(getattr(self, name), field)) or size < 1:
                    raise CaptionerError(f"{name}.{field} is {size!r}, expected a positive integer.")
        layer, depth = self.vision_feature_layer, self.vision_config.num_hidden_layers
        if not _is_int(layer) or not -depth - 1 <= layer <= depth:
            expected = f"{-depth - 1} to {depth} for an encoder of {depth} layers"
            raise CaptionerError(f"vision_feature_layer is {layer!r}, expected {expected}.")
        resolve_adapter(self, self.text_config)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from a dictionary; keyword arguments override its fields.

        The stored revision of a backbone is dropped if its path is overridden. The stored
        `attn_implementation` is ignored: it could name a kernel that Transformers would download and run.
        """
        model_type = config_dict.get("model_type", cls.model_type) if isinstance(config_dict, dict) else None
        if model_type != cls.model_type:
            raise CaptionerError(
                f"config.json has model_type {model_type!r}, expected {cls.model_type!r}: it is not a saved "
                "captioner. Create one with from_vision_text_pretrained."
            )
        config_dict = _without_attn_implementation(config_dict)
        if config_dict.get("format_version") == 1:
            config_dict |= {"vision_feature_norm": False, "format_version": FORMAT_VERSION}
        for backbone in ("vision", "text"):
            if (path := kwargs.get(f"{backbone}_model_name_or_path")) is not None:
                kwargs[f"{backbone}_model_name_or_path"] = absolute_if_local(path)
                config_dict[f"{backbone}_model_revision"] = None
            if isinstance(stored := config_dict.get(f"{backbone}_config"), dict):
                config_dict[f"{backbone}_config"] = _without_attn_implementation(stored)
        for name in [name for name in kwargs if name in _OWN_FIELDS]:
            config_dict[name] = kwargs.pop(name)  # Transformers would set it without checking it
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise CaptionerError(f"config.json has a value that cannot be used: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration to store, without the quantization and load paths of the backbones."""
        output = super().to_dict()
        output["text_config"].pop("quantization_config", None)
        for backbone in ("vision_config", "text_config"):
            output[backbone].pop("_name_or_path", None)
        return output


_OWN_FIELDS = frozenset(ITuningConfig.__annotations__) - {"vision_config", "text_config"}
_TEXT_FIELDS = sorted(name for name in _OWN_FIELDS if name.endswith(("_path", "_revision", "_fingerprint")))


def _without_attn_implementation(stored: dict[str, Any]) -> dict[str, Any]:
    """Remove `attn_implementation` and all private fields, under which it is stored, too."""
    ignored = [key for key in stored if key == "attn_implementation" or key.startswith("_")]
    return {key: value for key, value in stored.items() if key not in ignored}


def resolve_adapter(options: Any, decoder: Any) -> None:
    """Replace adapter options that are `None` with sizes from the decoder's configuration; check all."""
    if options.adapter_layers is None:
        options.adapter_layers = list(range(decoder.num_hidden_layers))
    options.adapter_layers = _resolve_layers(options.adapter_layers, decoder.num_hidden_layers)
    options.adapter_hidden_size, options.adapter_num_heads = _resolve_width(
        options.adapter_hidden_size, options.adapter_num_heads, decoder
    )
    if not _is_finite(options.adapter_scale):
        raise CaptionerError(f"adapter_scale is {options.adapter_scale!r}, expected a finite number.")
    if not _is_finite(options.adapter_dropout) or not 0.0 <= options.adapter_dropout < 1.0:
        raise CaptionerError(f"adapter_dropout is {options.adapter_dropout!r}, expected 0 <= p < 1.")
    if not isinstance(options.vision_feature_norm, bool):
        raise CaptionerError(f"vision_feature_norm is {options.vision_feature_norm!r}, expected a bool.")


def _resolve_width(width: Any, heads: Any, decoder: Any) -> tuple[int, int]:
    """Return r and h, where h divides r."""
    for name, value in (("adapter_hidden_size", width), ("adapter_num_heads", heads)):
        if value is not None and (not _is_int(value) or value < 1):
            raise CaptionerError(f"{name} is {value!r}, expected a positive integer.")
    if heads is None:
        heads = decoder.num_attention_heads
        while width is not None and width % heads:
            heads -= 1
    if width is None and (width := decoder.hidden_size // 2 // heads * heads) == 0:
        raise CaptionerError(
            f"adapter_num_heads is {heads}, more than half the decoder's hidden size {decoder.hidden_size}: "
            "give fewer, or an adapter_hidden_size."
        )
    if width % heads:
        raise CaptionerError(
            f"adapter_num_heads is {heads}, which does not divide adapter_hidden_size {width}."
        )
    return width, heads


def _resolve_layers(layers: Any, depth: int) -> list[int]:
    """Return the layer indices as non-negative numbers in ascending order."""
    if not isinstance(layers, list | tuple | range | set | frozenset):
        raise CaptionerError(f"adapter_layers is {layers!r}, expected a list of layer indices or None.")
    if outside := [i for i in layers if not _is_int(i) or not -depth <= i < depth]:
        raise CaptionerError(
            f"adapter_layers contains {outside}, expected integers from {-depth} to {depth - 1}"
        )
    resolved = sorted({i % depth for i in layers})
    if not resolved:
        raise CaptionerError("adapter_layers is empty: list at least one layer, or use None for all.")
    if len(resolved) < len(layers):
        raise CaptionerError(f"adapter_layers is {list(layers)}, which contains a layer twice.")
    return resolved


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    # Not math.isfinite, which raises OverflowError for integers that no float can represent.
    return (_is_int(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def absolute_if_local(name_or_path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a local folder; return anything else, such as a Hub id, unchanged."""
    name = os.fspath(name_or_path)
    return os.path.abspath(name) if os.path.isdir(name) else name


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into download options and the others."""
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    return hub, {name: value for name, value in options.items() if name not in hub}


ITuningConfig.register_for_auto_class()

__all__ = ["ADAPTER_OPTIONS", "CaptionerError", "ITuningConfig", "absolute_if_local", "resolve_adapter"]
