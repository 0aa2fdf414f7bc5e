"""The captioner's configuration: two frozen backbones, and the shape of the adapter between them.

Copied into every saved captioner and run there on its own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .requirements_ituning import check_transformers

check_transformers()

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from .seal_ituning import check_config_unchanged, json_fingerprint

logger = logging.get_logger(__name__)


class CaptionerError(ValueError):
    """A configuration, adapter file or backbone that cannot be used. The message says what to do."""


# 2: with fingerprints. Code for version 1 would carry them over when it saves, true no longer.
FORMAT_VERSION = 2
SUPPORTED_VISION_MODELS = ("clip_vision_model",)
SUPPORTED_TEXT_MODELS = ("gpt2",)


class ITuningConfig(PreTrainedConfig):
    r"""Configuration of an [`ITuningForCaptioning`] model.

    The paper's sizes come from the decoder alone, with `adapter_hidden_size` left at half its width:
    Base (GPT-2), Medium (GPT-2 medium), Large (GPT-2 large).

    Args:
        vision_config (`dict` or `CLIPVisionConfig`, *optional*):
            The frozen vision encoder. Defaults to CLIP ViT's defaults.
        text_config (`dict` or `GPT2Config`, *optional*):
            The frozen language model, of width `d`. Defaults to GPT-2's defaults.
        vision_model_name_or_path (`str`, *optional*):
            Where the encoder's weights come from: a Hub id, or a local folder (kept as an absolute path).
        vision_model_revision (`str`, *optional*):
            The encoder's revision on the Hub, a commit hash where it is known.
        vision_model_fingerprint (`str`, *optional*):
            What the encoder's weights must hash to; see `fingerprint_ituning.py`.
        text_model_name_or_path (`str`, *optional*):
            Where the language model's weights come from.
        text_model_revision (`str`, *optional*):
            The language model's revision on the Hub.
        text_model_fingerprint (`str`, *optional*):
            What the language model's weights must hash to.
        adapter_fingerprint (`str`, *optional*):
            What the adapter's tensors must hash to; see `seal_ituning.py`. `save_pretrained` sets it.
        adapter_hidden_size (`int`, *optional*):
            The bottleneck width `r` of each adapter. `None` means `d / 2`.
        adapter_num_heads (`int`, *optional*):
            The attention heads `h` of each adapter; must divide `r`. `None` means the decoder's heads.
        adapter_scale (`float`, *optional*, defaults to 1.0):
            The fixed factor lambda on the adapter's output.
        adapter_layers (`list[int]`, *optional*):
            The decoder layers that carry an adapter, counted from 0 at the bottom; negative indices
            count from the top. `None` means all of them.
        adapter_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability on the adapter's output while it trains.
        vision_feature_layer (`int`, *optional*, defaults to -1):
            Which of the encoder's hidden states is the visual memory: -1 is the last layer's output,
            0 the embeddings' (as in `output_hidden_states`).
        format_version (`int`, *optional*, defaults to 2):
            The version of the checkpoint format; what is saved has the newest.

    Raises:
        ValueError: for a value out of its range; the message holds the value and what was expected.

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

    vision_config: Any = None  # given as a dictionary or a configuration, and then a configuration
    text_config: Any = None
    vision_model_name_or_path: str | None = None
    vision_model_revision: str | None = None
    vision_model_fingerprint: str | None = None
    text_model_name_or_path: str | None = None
    text_model_revision: str | None = None
    text_model_fingerprint: str | None = None
    adapter_fingerprint: str | None = None
    adapter_hidden_size: int | None = None
    adapter_num_heads: int | None = None
    adapter_scale: float = 1.0
    adapter_layers: list[int] | None = None
    adapter_dropout: float = 0.0
    vision_feature_layer: int = -1
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve what was left at `None` and check the rest."""
        _warn_of_unknown_keys(kwargs)
        _check_fields(self)
        super().__post_init__(**kwargs)
        _check_backbones(self)
        resolve_adapter(self, self.text_config)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a dictionary; keywords that name a field win over it.

        A stored one that was changed since it was saved is refused; a keyword changes a field on purpose.
        A backbone that is brought from another place than the recorded one does not keep the recorded
        revision: a commit of one repository means nothing in another. How attention is computed is up to
        who loads it, and no stored dictionary can choose: Transformers takes the name of a repository there,
        and runs the kernel that it finds in it.
        """
        if (kind := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise ValueError(
                f"config.json is a {kind!r} model's, expected {cls.model_type!r}: this is no saved "
                "captioner. ITuningForCaptioning.from_vision_text_pretrained builds one over two backbones."
            )
        _check_format_version(config_dict.get("format_version", FORMAT_VERSION))  # a newer one's are others
        check_config_unchanged(config_dict)
        config_dict = _without_callers_choice(config_dict)
        for part in ("vision_config", "text_config"):
            if isinstance(stored := config_dict.get(part), dict):
                config_dict[part] = _without_callers_choice(stored)
        for backbone in ("vision_model", "text_model"):
            if (place := kwargs.get(f"{backbone}_name_or_path")) is not None:
                kwargs[f"{backbone}_name_or_path"] = as_recorded_path(place)
                config_dict[f"{backbone}_revision"] = None
        for name in [name for name in kwargs if name in _OWN_FIELDS]:
            config_dict[name] = kwargs.pop(name)
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, NotImplementedError):
            raise
        except Exception as error:  # whatever comes of a value of another kind, deep in Transformers
            raise ValueError(
                f"config.json makes no captioner's configuration ({type(error).__name__}: {error}): copy or "
                "download it again."
            ) from error

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a stored configuration, as Transformers does; what is wrong with the file is said in one way.

        Raises:
            OSError: if it is not there, or is not JSON.
        """
        try:
            found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise OSError(
                f"The config.json of {os.fspath(pretrained_model_name_or_path)!r} cannot be read "
                f"({type(error).__name__}: {error}): copy or download it again."
            ) from error
        if not isinstance(found, dict):
            raise OSError(
                f"The config.json of {os.fspath(pretrained_model_name_or_path)!r} holds a "
                f"{type(found).__name__}, expected an object: copy or download it again."
            )
        return found, kwargs

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Store the configuration, with a fingerprint of what is stored."""
        stored = json.loads(self.to_json_string(use_diff)) | {"format_version": FORMAT_VERSION}
        stored["config_fingerprint"] = json_fingerprint(stored)
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(stored, indent=2, sort_keys=True) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as it is stored.

        How a backbone is quantised is up to who loads it, and where it comes from is recorded once.
        """
        output = super().to_dict()
        output["text_config"].pop("quantization_config", None)
        for backbone in ("vision_config", "text_config"):
            output[backbone].pop("_name_or_path", None)
        return output


# Not a captioner's to say: how attention is computed, and what Transformers keeps for itself.
_CALLERS_CHOICE = frozenset({"attn_implementation", "config_fingerprint"})
_PARTS = {
    "vision_config": (SUPPORTED_VISION_MODELS, "a CLIP vision encoder"),
    "text_config": (SUPPORTED_TEXT_MODELS, "a GPT-2 language model"),
}
_OWN_FIELDS = frozenset(ITuningConfig.__annotations__) - frozenset(_PARTS)
_PROVENANCE = sorted(name for name in _OWN_FIELDS if name.endswith(("_path", "_revision", "_fingerprint")))


def _without_callers_choice(stored: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in stored.items() if key not in _CALLERS_CHOICE and not key.startswith("_")
    }


def _warn_of_unknown_keys(kwargs: dict[str, Any]) -> None:
    """Warn of keys that look like ours and are not; Transformers adds keys of its own freely."""
    unknown = [name for name in kwargs if name.startswith(("adapter_", "vision_", "text_"))]
    if unknown:
        logger.warning(
            f"ITuningConfig does not know {unknown} and ignores them; it knows {sorted(_OWN_FIELDS)}."
        )


def _check_format_version(version: Any) -> None:
    if not _is_int(version) or version < 1:
        raise ValueError(f"format_version is {version!r}, expected an integer from 1 to {FORMAT_VERSION}.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version is {version!r}, and this code reads up to {FORMAT_VERSION}: "
            "the captioner was saved by a newer ituning_hf, so upgrade the package."
        )


def _check_fields(config: ITuningConfig) -> None:
    """Check what Transformers would take for something else, or trip over without saying at which field."""
    _check_format_version(config.format_version)
    for name in _PROVENANCE:
        if not isinstance(value := getattr(config, name), str | None):
            raise ValueError(f"{name} is {value!r}, expected text or None.")
    for part, (supported, wanted) in _PARTS.items():
        given = getattr(config, part)
        if isinstance(given, dict):
            kind = given.get("model_type", supported[0])
        elif isinstance(given, PreTrainedConfig | None):
            kind = getattr(given, "model_type", supported[0])
        else:
            raise ValueError(f"{part} is {given!r}, expected the frozen model's configuration.")
        if kind not in supported:
            raise ValueError(f"{part}.model_type is {kind!r}, expected one of {supported}: give {wanted}.")


def _check_backbones(config: ITuningConfig) -> None:
    vision, text = config.vision_config, config.text_config
    if getattr(text, "add_cross_attention", False):
        raise ValueError(
            "text_config.add_cross_attention is True, expected False: I-Tuning brings its own "
            "cross-attention, so give a plain language model."
        )
    if text.bos_token_id is None or text.eos_token_id is None:
        raise ValueError(
            f"text_config has bos_token_id={text.bos_token_id} and eos_token_id={text.eos_token_id}: "
            "captions need a begin and an end token, so set both."
        )
    depth, layer = vision.num_hidden_layers, config.vision_feature_layer
    if not _is_int(layer) or not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"vision_feature_layer is {layer!r}, expected {-depth - 1} to {depth} for an encoder of "
            f"{depth} layers."
        )


def resolve_adapter(options: Any, decoder: Any) -> None:
    """Take from the decoder what an adapter's options leave at `None`, and check the rest.

    Args:
        options: Has `adapter_hidden_size`, `adapter_num_heads`, `adapter_layers`, `adapter_scale` and
            `adapter_dropout`; the first three are resolved in place.
        decoder: The language model's configuration.

    Raises:
        ValueError: for a value out of its range; the message holds the value and what was expected.
    """
    if options.adapter_hidden_size is None:
        options.adapter_hidden_size = decoder.hidden_size // 2
    if options.adapter_num_heads is None:
        options.adapter_num_heads = decoder.num_attention_heads
    if options.adapter_layers is None:
        options.adapter_layers = list(range(decoder.num_hidden_layers))
    options.adapter_layers = _resolve_layers(options.adapter_layers, decoder.num_hidden_layers)
    _check_adapter(options)


def _resolve_layers(layers: list[int], depth: int) -> list[int]:
    """Turn negative indices into positive ones and sort."""
    if not isinstance(layers, list | tuple | range | set | frozenset):
        raise ValueError(f"adapter_layers is {layers!r}, expected a list of layer indices or None.")
    layers = list(layers)
    outside = [i for i in layers if not _is_int(i) or not -depth <= i < depth]
    if outside:
        raise ValueError(
            f"adapter_layers holds {outside}, expected integers from {-depth} to {depth - 1} for a "
            f"decoder of {depth} layers."
        )
    resolved = sorted(i % depth for i in layers)
    if not resolved:
        raise ValueError("adapter_layers is empty: name at least one layer, or leave it at None for all.")
    if len(set(resolved)) < len(resolved):
        repeated = sorted({i for i in resolved if resolved.count(i) > 1})
        raise ValueError(f"adapter_layers is {layers}, which names layer(s) {repeated} more than once.")
    return resolved


def _check_adapter(options: Any) -> None:
    width, heads = options.adapter_hidden_size, options.adapter_num_heads
    for name, value in (("adapter_hidden_size", width), ("adapter_num_heads", heads)):
        if not _is_int(value) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a positive integer.")
    if width % heads:
        raise ValueError(
            f"adapter_hidden_size is {width}, which adapter_num_heads ({heads}) does not divide: change one "
            "of them."
        )
    if not _is_finite(options.adapter_scale):
        raise ValueError(f"adapter_scale is {options.adapter_scale!r}, expected a finite number.")
    if not _is_finite(options.adapter_dropout) or not 0.0 <= options.adapter_dropout < 1.0:
        raise ValueError(f"adapter_dropout is {options.adapter_dropout!r}, expected 0 <= p < 1.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    # Python's own integers know no bound, and torch takes none beyond a float's.
    return (_is_int(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def as_recorded_path(name_or_path: str | os.PathLike[str]) -> str:
    """Return a local folder as an absolute path and anything else, a Hub id, as it is."""
    name = os.fspath(name_or_path)
    return os.path.abspath(name) if os.path.isdir(name) else name


ITuningConfig.register_for_auto_class()

__all__ = ["CaptionerError", "ITuningConfig"]
