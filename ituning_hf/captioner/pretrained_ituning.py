"""Saving and loading: the adapter is saved; the frozen backbones are located, checked and loaded.

A captioner's folder contains only the adapter's weights. `config.json` has the names of both backbones and
fingerprints of their weights, because an adapter on other weights would silently generate wrong captions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, modeling_utils
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)
from transformers.utils.hub import resolve_revision

from .configuration_ituning import (
    ADAPTER_OPTIONS,
    CaptionerError,
    ITuningConfig,
    absolute_if_local,
    reading,
    split_hub_options,
)
from .decoders_ituning import DecoderFamily, decoder_family
from .encoders_ituning import EncoderFamily, UnloadedVisionModel, encoder_family

logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_ituning.ITuningConfig",
    "AutoModel": "modeling_ituning.ITuningForCaptioning",
    "AutoModelForImageTextToText": "modeling_ituning.ITuningForCaptioning",
}
# Keyword arguments that the Auto classes and pipelines pass to every model and that have no effect here.
_IGNORED = {"trust_remote_code", "code_revision", "adapter_kwargs", "tqdm_class", "low_cpu_mem_usage"}
_IGNORED |= {"use_safetensors", "_from_auto", "_from_pipeline"}

# While Transformers initializes a model, it changes torch's default dtype and initializers for all threads.
# The lock is stored in Transformers' module because every saved captioner has its own copy of this file.
MODEL_INIT_LOCK = vars(modeling_utils).setdefault("_ituning_model_init_lock", threading.RLock())

_FINGERPRINT_ROWS = 8
# Names of the tensors that replace a weight in the quantized layers of bitsandbytes and `ituning_hf`.
_QUANTIZED = re.compile(r"\.(integers|scale|SCB|weight_format|weight\..+)$")
_Rows = tuple[list[int], torch.Tensor]  # the shape and the first rows of a weight


class ITuningPreTrainedModel(PreTrainedModel):
    """Saving and loading of a captioner; [`ITuningForCaptioning`] adds the computation."""

    config_class = ITuningConfig

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike[str] | Mapping[str, Any],
        text: str | os.PathLike[str],
        *,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        **options: Any,
    ) -> Any:
        """Create a new, untrained captioner from two frozen models.

        Args:
            vision: The local folder or Hub id of a CLIP vision encoder or a full CLIP. An encoder given as
                its [`Backbone.config_fields`] is not loaded: the captioner then takes only `visual_features`.
            text: The local folder or Hub id of a GPT-2 language model.
            vision_revision: The encoder's revision on the Hub; stored as a commit hash if it is known.
            text_revision: The language model's revision on the Hub.
            dtype: The dtype of the backbones; the adapter is in fp32.
            attn_implementation: "sdpa" or "eager".
            **options: The adapter's options (`ADAPTER_OPTIONS`; see [`ITuningConfig`]), and `token`,
                `cache_dir`, `local_files_only`.

        Returns:
            The captioner in evaluation mode. Until it is trained, its logits equal the language model's.

        Raises:
            TypeError: if an option does not exist.
            CaptionerError: if an option is out of range, or a backbone is incomplete or not supported.
            OSError: if a backbone is not found.
        """
        hub, adapter_options = split_hub_options(options)
        if unknown := sorted(set(adapter_options) - set(ADAPTER_OPTIONS)):
            raise TypeError(f"unknown adapter option(s) {unknown}; the options are {list(ADAPTER_OPTIONS)}.")
        load: dict[str, Any] = {"attn_implementation": attn_implementation, "dtype": dtype}
        decoder = Backbone("text", text, text_revision, **hub)
        if isinstance(vision, Mapping):
            encoder, fields = None, dict(vision)
        else:
            encoder = Backbone("vision", vision, vision_revision, **hub)
            fields = encoder.config_fields()
        config = ITuningConfig(**fields, **decoder.config_fields(), **adapter_options)
        vision_model = encoder.load(**load) if encoder else UnloadedVisionModel(config.vision_config)
        text_model = decoder.load(**load)
        return cls(config, vision_model, text_model).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: Any = None,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
        load_vision_model: bool = True,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        generation_config: GenerationConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        **kwargs: Any,
    ) -> Any:
        """Load a saved captioner: both backbones from the sources in `config.json`, then the adapter.

        Args:
            pretrained_model_name_or_path: The adapter's folder or Hub id.
            config: A configuration, or its path, to use instead of the saved one.
            vision_model: A vision encoder that is already in memory. It is shared and frozen.
            text_model: A language model that is already in memory, with or without another captioner's
                adapters. Its weights are shared and frozen. (An Auto class copies it first.)
            load_vision_model: False skips the vision encoder, which need not exist. The captioner then takes
                only `visual_features`, and keeps the encoder's name when it is saved.
            dtype: The dtype of all parts, such as `torch.bfloat16` or "bfloat16"; by default each file's.
            device_map: A device, "auto", or a dictionary from module names to devices.
            attn_implementation: "sdpa" or "eager".
            quantization_config: For the language model only; the adapter is never quantized.
            generation_config: Used instead of the saved one.
            revision: The adapter's revision on the Hub; those of the backbones are in `config.json`.
            subfolder: The folder inside the repository that contains the adapter.
            **kwargs: `token`, `cache_dir`, `local_files_only`, `force_download`; and configuration fields to
                override, such as `vision_model_name_or_path` and `text_model_name_or_path` for backbones that
                have moved.

        Returns:
            The captioner in evaluation mode.

        Raises:
            OSError: if the adapter or a backbone is not found, or a JSON file is damaged.
            CaptionerError: if a file cannot be used, or a backbone is not the one used in training.
            TypeError: if a keyword argument is unknown, or a backbone in memory is of another class.
            ValueError: if arguments contradict each other.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub, kwargs = split_hub_options(kwargs)
        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype  # the earlier name
        own = {"revision": _resolve_commit(name, revision, hub), "subfolder": subfolder, **hub}
        load = {"attn_implementation": attn_implementation, "dtype": dtype, "device_map": device_map}
        for_text = load | {"quantization_config": quantization_config}
        for backbone, model, options in (("vision", vision_model, load), ("text", text_model, for_text)):
            if model is not None and (given := [key for key, value in options.items() if value is not None]):
                raise ValueError(f"Got both {backbone}_model and {given[0]}: pass one of them.")
        if config is None or isinstance(config, (str, os.PathLike)):
            config, kwargs = ITuningConfig.from_pretrained(
                name if config is None else config, return_unused_kwargs=True, **own, **kwargs
            )
        if unknown := sorted(set(kwargs) - _IGNORED):
            raise TypeError(f"from_pretrained got unexpected keyword argument(s) {unknown}.")
        tensors = read_adapter_file(cached_file(name, SAFE_WEIGHTS_NAME, **own))
        # The Auto classes move this argument to the configuration.
        attention = {"attn_implementation": attn_implementation or config._attn_implementation}
        if load_vision_model or vision_model is not None:
            vision_model = load_backbone("vision", config, vision_model, hub, **load | attention)
        is_shared = text_model is not None
        text_model = load_backbone("text", config, text_model, hub, **for_text | attention)
        if is_shared:
            text_model = decoder_family(config.text_config).without_adapters(text_model)
            text_model.activation_checkpointing_disable()  # another captioner may have enabled it
        with torch.device("meta"):  # the adapter's tensors come from its file
            model = cls(config, vision_model or UnloadedVisionModel(config.vision_config), text_model)
        model.load_adapter_state_dict(tensors, name, dtype)
        default = model.generation_config
        model.generation_config = generation_config or load_generation_config(name, default, **own)
        model.name_or_path = config.name_or_path = name
        config._commit_hash = own["revision"]  # not stored; `caption` loads the processor from it
        return model.eval()

    def load_adapter_state_dict(
        self, tensors: Mapping[str, torch.Tensor], name: str, dtype: str | torch.dtype | None = None
    ) -> None:
        """Load weights with the keys of `adapter_state_dict`; raise `CaptionerError` unless all match.

        `name` is the source of the weights, for the error message. `dtype` is the dtype to convert them to.
        """
        check_adapter_tensors(tensors, self.adapter_state_dict(), name)
        if dtype is None or dtype == "auto":
            dtype = next(iter(tensors.values())).dtype
        for adapter in self.adapters().values():
            adapter.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        self.load_state_dict(tensors, strict=False)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the adapter, the configuration, the generation settings and the model code.

        Args:
            save_directory: The folder; it is created if it does not exist.
            state_dict: A complete state dict, such as Accelerate gathers, to save the adapter from.
            **kwargs: Passed to `PreTrainedModel.save_pretrained`, such as `push_to_hub` and `repo_id`.
        """
        if kwargs.get("push_to_hub"):
            check_backbones_are_public(self.config)
        if self.config.vision_model_fingerprint is None or self.config.text_model_fingerprint is None:
            logger.warning("The backbones exist only in memory, so the saved captioner cannot be loaded.")
        adapter = self.adapter_state_dict()
        if state_dict is not None:
            adapter = {name: state_dict[name] for name in adapter}
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, state_dict=adapter, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the adapter, the configuration and the model code.

        A model card that is already on the repository's main branch is kept.

        Args:
            repo_id: The repository; it is created if it does not exist.
            **kwargs: Passed to `PreTrainedModel.push_to_hub`, such as `private` and `commit_message`.

        Raises:
            CaptionerError: if a backbone is a local folder; nothing is uploaded.
        """
        check_backbones_are_public(self.config)
        return super().push_to_hub(repo_id, **kwargs)


# --- The adapter's files


def read_adapter_file(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read an adapter's safetensors file; raise `CaptionerError` if it is damaged."""
    with _open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _open_safetensors(path: str | os.PathLike[str]) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CaptionerError(f"{os.fspath(path)} is damaged ({error}): copy or download it again.") from error


def check_adapter_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str
) -> None:
    """Raise `CaptionerError` unless the weights are finite and have exactly the expected names and shapes."""
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "mismatched": [
            f"{key} is {tuple(found[key].shape)} {found[key].dtype}, expected floats {tuple(wanted.shape)}"
            for key, wanted in expected.items()
            if key in found and not (found[key].shape == wanted.shape and found[key].is_floating_point())
        ],
        "not finite": [key for key, tensor in found.items() if not _is_finite(tensor)],
    }
    if listed := [f"{len(keys)} {what} (first: {keys[:3]})" for what, keys in problems.items() if keys]:
        raise CaptionerError(
            f"The adapter weights of {name!r} do not match config.json: {'; '.join(listed)}."
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    # A non-finite value makes the sum non-finite. The slower second test handles sums that overflow.
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.double().isfinite().all())


def load_generation_config(name: str, default: GenerationConfig, **hub: Any) -> GenerationConfig:
    """Load `generation_config.json`, with `default` for a missing file and for missing token ids."""
    path = cached_file(name, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return default
    with reading(path):
        config = GenerationConfig.from_pretrained(os.path.dirname(path), local_files_only=True)
    for field in ("num_beams", "max_new_tokens", "num_return_sequences"):
        value = getattr(config, field)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise CaptionerError(f"{path} has {field}={value!r}, expected a positive integer.")
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (value := getattr(config, field)) is None:
            setattr(config, field, getattr(default, field))
        elif not all(isinstance(token, int) for token in (value if isinstance(value, list) else [value])):
            raise CaptionerError(f"{path} has {field}={value!r}, expected a token id or a list of them.")
    if config.guidance_scale not in (None, 1):
        raise CaptionerError(f"{path} has guidance_scale={config.guidance_scale!r}, which is not supported.")
    return config


# --- The backbones


class Backbone:
    """A frozen model in a local folder or on the Hub: its configuration, weights and fingerprint.

    Args:
        part: "vision" or "text".
        name_or_path: A local folder or a Hub id. Of a full CLIP, only the vision part is used.
        revision: The revision on the Hub.
        **hub: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Attributes:
        name_or_path: The Hub id, or the absolute path of the folder.
        revision: The commit hash, if it is known.
        config: The configuration; of a full CLIP, that of the vision part.
        family: Its [`EncoderFamily`] or [`DecoderFamily`].

    Raises:
        OSError: if the model is not found.
        CaptionerError: if its configuration is damaged or its family is not supported.
    """

    def __init__(
        self, part: str, name_or_path: str | os.PathLike[str], revision: str | None = None, **hub: Any
    ) -> None:
        self.part, self.name_or_path = part, absolute_if_local(name_or_path)
        self.revision = _resolve_commit(self.name_or_path, revision, hub)
        self._hub = {"revision": self.revision, **hub}
        self.config = self._load_config()
        self.family: EncoderFamily | DecoderFamily = (
            encoder_family(self.config) if part == "vision" else decoder_family(self.config)
        )

    def _load_config(self) -> Any:
        name = self.name_or_path
        try:
            if is_local(name) and not os.path.isdir(name):
                raise FileNotFoundError("there is no such folder")
            with reading(f"The configuration of {name!r}"):
                config = AutoConfig.from_pretrained(name, trust_remote_code=False, **self._hub)
        except OSError as error:  # Transformers' message does not always contain the model's name
            raise OSError(
                f"The frozen {self.part} model was not found at {name!r}: {str(error).rstrip('.')}. If it "
                f"has moved, pass {self.part}_model_name_or_path=... to from_pretrained."
            ) from error
        return getattr(config, "vision_config", config) if self.part == "vision" else config

    def config_fields(self) -> dict[str, Any]:
        """Return the fields of an [`ITuningConfig`] that describe this backbone."""
        return {
            f"{self.part}_config": self.config.to_dict(),
            f"{self.part}_model_name_or_path": self.name_or_path,
            f"{self.part}_model_revision": self.revision,
            f"{self.part}_model_fingerprint": self.fingerprint(),
        }

    def load(self, **options: Any) -> PreTrainedModel:
        """Load the model; `options` are arguments of `from_pretrained`, ignored if None.

        Raises `CaptionerError` for missing weights, which Transformers would initialize randomly.
        """
        # attn_implementation is always set, because the stored configuration could name a remote kernel.
        options = {key: x for key, x in options.items() if x is not None} | self._hub
        options.setdefault("attn_implementation", "sdpa")
        with MODEL_INIT_LOCK:
            # Mismatched sizes are reported below, together with missing weights.
            model, info = self.family.load(
                self.name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        if broken := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
            raise CaptionerError(
                f"The {self.part} model at {self.name_or_path!r} is incomplete: {len(broken)} weights are "
                f"missing or have a shape that does not match its config.json (first: {broken[:3]})."
            )
        return model

    def fingerprint(self) -> str:
        """Hash the first rows of each weight, as stored on disk, to 32 hexadecimal digits.

        The result does not depend on the dtype in which the model is loaded, and is the same for a full CLIP
        and its vision part.
        """
        digest = hashlib.sha256()
        for key, (shape, rows) in sorted(self._read_weights().items()):
            digest.update(f"{key} {shape}".encode())
            digest.update(rows.float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def check_fingerprint(self, expected: str | None) -> None:
        """Raise `CaptionerError` unless the fingerprint is the expected one; None accepts any."""
        if expected is not None and (found := self.fingerprint()) != expected:
            where = f"{self.name_or_path!r}" + (f" (revision {self.revision})" if self.revision else "")
            raise CaptionerError(
                f"The {self.part} model at {where} is not the one this adapter was trained on: its "
                f"fingerprint is {found}, expected {expected}. Use the {self.part} model of the training run."
            )

    def check_unchanged(self, model: Any) -> None:
        """Raise an error unless a model in memory is this backbone.

        Compares its class, and the first rows of its weights, in its dtype, with the checkpoint. Quantized
        and offloaded weights are not compared.
        """
        if not isinstance(model, self.family.model_class):
            expected = self.family.model_class.__name__
            raise TypeError(f"{self.part}_model is a {type(model).__name__}, expected a {expected}.")
        problem = f"The {self.part} model in memory is not the one at {self.name_or_path!r}"
        stored = self._read_weights()
        state = {key.removeprefix(self.family.weight_prefix): x for key, x in model.state_dict().items()}
        in_memory = {
            key: tensor
            for key, tensor in state.items()
            if ".adapter." not in key and not self.family.not_weights.search(key)
        }
        if added := [key for key in in_memory if key not in stored and not _QUANTIZED.search(key)]:
            raise CaptionerError(
                f"{problem}: it has {len(added)} additional weights (first: {added[:3]}). Remove what was "
                "added to it, such as LoRA."
            )
        for key, (shape, rows) in stored.items():
            tensor = in_memory.get(key)
            if tensor is None or not tensor.is_floating_point() or tensor.is_meta:
                continue
            found_shape, found = _first_rows(tensor)
            if found_shape != shape or not torch.equal(rows.to(tensor.dtype), found.cpu()):
                raise CaptionerError(f"{problem}: {key} differs.")

    def _read_weights(self) -> dict[str, _Rows]:
        """Read the first rows of all weights, by name without prefix; of a full CLIP, the vision part."""
        weights = _read_checkpoint(self.name_or_path, self._hub)
        prefix = self.family.weight_prefix
        if prefixed := [key for key in weights if key.startswith(prefix)]:
            weights = {key.removeprefix(prefix): weights[key] for key in prefixed}
        if (expected := self.family.first_weight) not in weights:
            name = self.family.model_class.__name__
            raise CaptionerError(f"{self.name_or_path!r} is not a {name}: it has no weight {expected!r}.")
        return {key: rows for key, rows in weights.items() if not self.family.not_weights.search(key)}


def load_backbone(
    part: str, config: ITuningConfig, model: Any, hub: dict[str, Any], device_map: Any = None, **load: Any
) -> Any:
    """Load a backbone from its source in the configuration, or check `model`, which is in memory.

    Raises `CaptionerError` if it is not the backbone that the adapter was trained on.
    """
    name, revision, expected = (
        getattr(config, f"{part}_model_{field}") for field in ("name_or_path", "revision", "fingerprint")
    )
    if name is None or expected is None:
        raise CaptionerError(
            f"The configuration has {part}_model_name_or_path={name!r} and {part}_model_fingerprint="
            f"{expected!r}, so the backbone cannot be loaded: use from_vision_text_pretrained(vision, text)."
        )
    backbone = Backbone(part, name, revision, **hub)
    backbone.check_fingerprint(expected)
    if model is None:
        model = backbone.load(device_map=_own_device_map(device_map, f"{part}_model"), **load)
    else:
        backbone.check_unchanged(model)
    wanted = getattr(config, f"{part}_config")
    for field in backbone.family.architecture:
        if (found := getattr(model.config, field)) != getattr(wanted, field):
            raise CaptionerError(
                f"The {part} model has {field}={found!r}, expected {getattr(wanted, field)!r} as in training."
            )
    return model


def is_local(name: str) -> bool:
    """Return whether a name is a local path, existing or not, rather than a Hub id."""
    try:
        validate_repo_id(name)
    except ValueError:
        return True
    return os.path.isdir(name)


def check_backbones_are_public(config: ITuningConfig) -> None:
    """Raise `CaptionerError` if a backbone exists only on this machine."""
    fields = ["vision_model_name_or_path", "text_model_name_or_path"]
    names = {field: getattr(config, field) for field in fields}
    if local := {field: name for field, name in names.items() if name is None or is_local(name)}:
        raise CaptionerError(
            f"This captioner's backbones are not on the Hub: {local}. Load it with Hub ids, from_pretrained("
            "folder, vision_model_name_or_path=..., text_model_name_or_path=...), and push the result."
        )


def _resolve_commit(name: str, revision: str | None, hub: dict[str, Any]) -> str | None:
    """Return the commit hash of a Hub revision, if known, so that all files come from one commit."""
    hub = {key: value for key, value in hub.items() if key != "force_download"}
    resolved = resolve_revision(name, revision, **hub)
    return getattr(resolved, "resolved", resolved)


def _own_device_map(device_map: Any, module: str) -> Any:
    """Return the part of a device map for one backbone; a single device or "auto" applies to both."""
    if not isinstance(device_map, Mapping):
        return device_map
    own = {
        key.removeprefix(module).removeprefix("."): device
        for key, device in device_map.items()
        if f"{key}.".startswith(f"{module}.")
    }
    if not own and "" not in device_map:
        raise ValueError(f"device_map has no device for {module!r}, only for {sorted(device_map)}.")
    return own or {"": device_map[""]}


def _read_checkpoint(name: str, hub: dict[str, Any]) -> dict[str, _Rows]:
    def find(filename: str) -> str | None:
        return cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub)

    with reading(f"The weights of {name!r}"):
        if (path := find(SAFE_WEIGHTS_NAME)) is not None:
            return _read_rows(path)
        if (path := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
            shards = set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values())
            return {k: x for shard in shards for k, x in _read_rows(cached_file(name, shard, **hub)).items()}
        if (path := find(WEIGHTS_NAME)) is not None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return {key: _first_rows(tensor) for key, tensor in state.items()}
    raise OSError(f"no {SAFE_WEIGHTS_NAME}, {SAFE_WEIGHTS_INDEX_NAME} or {WEIGHTS_NAME} at {name!r}.")


def _read_rows(path: str) -> dict[str, _Rows]:
    with _open_safetensors(path) as file:
        return {key: _first_rows(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _first_rows(tensor: Any) -> tuple[list[int], torch.Tensor]:
    """Read the shape and the first rows of a tensor in memory or on disk; of a scalar, its value."""
    shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else tensor.get_shape()
    return shape, tensor[:_FINGERPRINT_ROWS] if shape else tensor[...]
