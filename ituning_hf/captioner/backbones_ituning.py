"""The frozen backbones: find, check and load them; a fingerprint identifies their weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel, modeling_utils
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import resolve_revision

from .configuration_ituning import CaptionerError, ITuningConfig, absolute_if_local, reading
from .decoder_layers_ituning import DecoderFamily
from .decoders_ituning import decoder_family
from .encoders_ituning import EncoderFamily, encoder_family

# While Transformers initializes a model, it changes torch's default dtype and initializers for all threads.
# The lock is stored in Transformers' module because every saved captioner has its own copy of this file.
MODEL_INIT_LOCK = vars(modeling_utils).setdefault("_ituning_model_init_lock", threading.RLock())

_FINGERPRINT_ROWS = 8
# Names of tensors that replace a weight in the quantized layers of bitsandbytes and `ituning_hf`.
QUANTIZED = re.compile(
    r"\.(integers|scale|SCB|weight_format|weight\.(absmax|quant_map|quant_state\..+|nested_\w+))$"
)
_OUTPUT_WEIGHT = "lm_head.weight"  # the name of the output layer in every supported language model
_Rows = tuple[list[int], torch.Tensor]  # the shape and the first rows of a weight


class Backbone:
    """A frozen model in a local folder or on the Hub: its configuration, weights and fingerprint.

    Args:
        part: "vision" or "text".
        name_or_path: A local folder or a Hub id. Of a full vision-language model, only the vision part
            is used.
        revision: The revision on the Hub.
        **hub: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Attributes:
        name_or_path: The Hub id, or the absolute path of the folder.
        revision: The commit hash, if it is known.
        config: The configuration; of a full vision-language model, that of the vision part.
        family: Its [`EncoderFamily`] or [`DecoderFamily`].

    Raises:
        OSError: if the model is not found.
        CaptionerError: if its configuration is damaged or its family is not supported.
    """

    def __init__(
        self, part: str, name_or_path: str | os.PathLike[str], revision: str | None = None, **hub: Any
    ) -> None:
        self.part, self.name_or_path = part, absolute_if_local(name_or_path)
        self.revision = resolve_commit(self.name_or_path, revision, hub)
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
            if os.path.isdir(name) and not os.path.exists(os.path.join(name, CONFIG_NAME)):
                raise FileNotFoundError(f"it has no {CONFIG_NAME} (to convert GGUF, see docs/families.md)")
            with reading(f"The configuration of {name!r}"):
                config = AutoConfig.from_pretrained(name, trust_remote_code=False, **self._hub)
        except OSError as error:  # Transformers' message does not always contain the model's name
            raise OSError(
                f"The frozen {self.part} model was not found at {name!r}: "
                f"{'' if is_local(name) else 'there is no such folder, and as a Hub id: '}"
                f"{str(error).rstrip('.')}. If it "
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

        The result does not depend on the dtype in which the model is loaded, and is the same for a full model
        and its vision part.
        """
        digest = hashlib.sha256()
        for key, (shape, rows) in sorted(self._weights.items()):
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

    def check_unchanged(
        self, model: Any, state_dict: Mapping[str, torch.Tensor] | None = None, advice: str = ""
    ) -> None:
        """Raise an error unless a model in memory is this backbone.

        Compares its class, and the first 8 rows of its weights, with the checkpoint. A conversion to another
        dtype is not a change. Quantized and sharded weights, and those on the meta device, are not compared.

        Args:
            model: The model.
            state_dict: Its weights; by default `model.state_dict()`.
            advice: The end of the message if a weight differs.

        Raises:
            TypeError: if the model is of another class.
            CaptionerError: if weights differ or were added.
        """
        if not isinstance(getattr(model, "_orig_mod", model), self.family.model_class):
            expected = self.family.model_class.__name__
            raise TypeError(f"{self.part}_model is a {type(model).__name__}, expected a {expected}.")
        problem = f"The {self.part} model in memory is not the one at {self.name_or_path!r}"
        # torch.compile and PEFT add parts to names.
        state = {
            name.replace("_orig_mod.", "").replace(".base_layer.", "."): tensor
            for name, tensor in (model.state_dict() if state_dict is None else state_dict).items()
            if ".adapter." not in name
        }
        in_memory = {
            name.removeprefix(self.family.weight_prefix): tensor
            for name, tensor in self.family.as_stored(getattr(model, "_orig_mod", model), state).items()
        }
        stored = self._weights
        if _OUTPUT_WEIGHT in in_memory and _OUTPUT_WEIGHT not in stored:  # tied
            stored = stored | {_OUTPUT_WEIGHT: stored[self.family.first_weight]}
        added = [
            key
            for key in in_memory
            if not (key in stored or QUANTIZED.search(key) or self.family.not_weights.search(key))
        ]
        if added and getattr(model, "hf_quantizer", None) is None:
            raise CaptionerError(
                f"{problem}: it has {len(added)} additional weights (first: {added[:3]}). If they are a LoRA "
                "or another PEFT adapter, save it with PEFT and call unload(), or call merge_and_unload()."
            )
        for key, (shape, rows) in stored.items():
            tensor = in_memory.get(key)
            if tensor is None or not _is_readable(tensor):
                continue
            found_shape, found = _first_rows(tensor)
            if found_shape != shape or not _is_close(rows, found.cpu()):
                raise CaptionerError(f"{problem}: {key} differs. {advice}".rstrip())

    @cached_property
    def _weights(self) -> dict[str, _Rows]:
        """Read the first rows of all weights, by name without prefix; of a full model, the vision part."""
        weights = _read_checkpoint(self.name_or_path, self._hub)
        prefix = self.family.weight_prefix
        if any(key.startswith(prefix) for key in weights):
            own = [key for key in weights if key.startswith(prefix) or key == _OUTPUT_WEIGHT]
            weights = {key.removeprefix(prefix): weights[key] for key in own}
        if (expected := self.family.first_weight) not in weights:
            name = self.family.model_class.__name__
            raise CaptionerError(f"{self.name_or_path!r} is not a {name}: it has no weight {expected!r}.")
        if getattr(self.config, "tie_word_embeddings", True) and _OUTPUT_WEIGHT in weights:
            # Some checkpoints contain the tied weight twice. Transformers does not tie different weights.
            (_, output), (_, embedding) = weights[_OUTPUT_WEIGHT], weights[expected]
            if torch.equal(output, embedding):
                del weights[_OUTPUT_WEIGHT]
        return {key: rows for key, rows in weights.items() if not self.family.not_weights.search(key)}


def load_backbone(
    part: str, config: ITuningConfig, model: Any, hub: dict[str, Any], device_map: Any = None, **load: Any
) -> Any:
    """Load a backbone from its source in the configuration, or check `model`, which is in memory.

    Raises `CaptionerError` if it is not the backbone that the adapter was trained on.
    """
    name, revision, expected = recorded_backbone(config, part)
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


def recorded_backbone(config: ITuningConfig, part: str) -> tuple[str | None, str | None, str | None]:
    """Return the name or path, the revision and the fingerprint of a backbone."""
    fields = ("name_or_path", "revision", "fingerprint")
    name, revision, fingerprint = (getattr(config, f"{part}_model_{field}") for field in fields)
    return name, revision, fingerprint


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


def resolve_commit(name: str, revision: str | None, hub: dict[str, Any]) -> str | None:
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
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return {key: _first_rows(tensor) for key, tensor in state.items()}
    raise OSError(f"no {SAFE_WEIGHTS_NAME}, {SAFE_WEIGHTS_INDEX_NAME} or {WEIGHTS_NAME} at {name!r}.")


def _read_rows(path: str) -> dict[str, _Rows]:
    with open_safetensors(path) as file:
        return {key: _first_rows(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _is_readable(tensor: torch.Tensor) -> bool:
    is_sharded = hasattr(tensor, "device_mesh") or tensor.numel() == 0  # by FSDP, by DeepSpeed
    is_quantized = not tensor.is_floating_point() or tensor.dtype.itemsize < 2
    return not (is_quantized or is_sharded or tensor.is_meta)


def _is_close(stored: torch.Tensor, found: torch.Tensor) -> bool:
    """Return whether weights are equal up to dtype conversions and the rounding of an undone merge."""
    half, brain = torch.float16, torch.bfloat16
    for conversions in ((), (half,), (brain,), (half, brain), (brain, half)):
        converted = stored
        for dtype in (*conversions, found.dtype):
            converted = converted.to(dtype)
        tolerance = 1e-6 * float(converted.abs().max())  # subtracting what was added leaves a rounding error
        if torch.allclose(converted, found, rtol=0, atol=tolerance):
            return True
    return False


def _first_rows(tensor: Any) -> tuple[list[int], torch.Tensor]:
    """Read the shape and the first rows of a tensor in memory or on disk; of a scalar, its value."""
    shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else tensor.get_shape()
    return shape, tensor[:_FINGERPRINT_ROWS] if shape else tensor[...]


def open_safetensors(path: str | os.PathLike[str]) -> Any:
    """Open a safetensors file; raise `CaptionerError` if it is damaged."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CaptionerError(f"{os.fspath(path)} is damaged ({error}): copy or download it again.") from error
