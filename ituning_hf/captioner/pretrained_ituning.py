"""Saving and loading: only the adapter is saved; the backbones are loaded from their own files.

A captioner's folder contains only the adapter's weights. `config.json` has the names of both backbones and
fingerprints of their weights, because an adapter on other weights would silently generate wrong captions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    is_accelerate_available,
    logging,
)

from .backbones_ituning import (
    QUANTIZED,
    Backbone,
    check_backbones_are_public,
    load_backbone,
    open_safetensors,
    recorded_backbone,
    resolve_commit,
)
from .configuration_ituning import ADAPTER_OPTIONS, CaptionerError, ITuningConfig, reading, split_hub_options
from .decoders_ituning import decoder_family
from .encoders_ituning import UnloadedVisionModel

logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_ituning.ITuningConfig",
    "AutoModel": "modeling_ituning.ITuningForCaptioning",
    "AutoModelForImageTextToText": "modeling_ituning.ITuningForCaptioning",
}
# Keyword arguments that the Auto classes and pipelines pass to every model and that have no effect here.
_IGNORED = {"trust_remote_code", "code_revision", "adapter_kwargs", "tqdm_class", "low_cpu_mem_usage"}
_IGNORED |= {"use_safetensors", "_from_auto", "_from_pipeline"}


class ITuningPreTrainedModel(PreTrainedModel):
    """Saving and loading of a captioner; [`ITuningForCaptioning`] adds the computation."""

    config_class = ITuningConfig
    _cache_dir: str | None = None  # where the backbones were found

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
            vision: The local folder or Hub id of a vision encoder, or of a full vision-language
                model, of which only the vision part is used. An encoder given as its
                [`Backbone.config_fields`] is not loaded: the captioner then takes only `visual_features`.
            text: The local folder or Hub id of a language model.
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
        model = cls(config, vision_model, text_model)
        model._cache_dir = hub.get("cache_dir")
        return model.eval()

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
            dtype: The dtype of all parts, such as `torch.bfloat16` or "bfloat16"; by default each file's. A
                model that is already in memory must have it.
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
        own = {"revision": resolve_commit(name, revision, hub), "subfolder": subfolder, **hub}
        load = {"attn_implementation": attn_implementation, "dtype": dtype, "device_map": device_map}
        for_text = load | {"quantization_config": quantization_config}
        for backbone, model, options in (("vision", vision_model, load), ("text", text_model, for_text)):
            if model is None:
                continue
            if str(options["dtype"]).removeprefix("torch.") == str(model.dtype).removeprefix("torch."):
                options = options | {"dtype": None}  # it agrees, and is for the other parts
            if given := [key for key, value in options.items() if value is not None]:
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
            if vision_model is None:
                vision_model = UnloadedVisionModel(config.vision_config)
            model = cls(config, vision_model, text_model)
        model.load_adapter_state_dict(tensors, name, dtype)
        default = model.generation_config
        model.generation_config = generation_config or load_generation_config(name, default, **own)
        model.name_or_path = config.name_or_path = name
        model._cache_dir = hub.get("cache_dir")
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

        A captioner to which `add_adapter` added a PEFT adapter, such as LoRA, saves that adapter instead, as
        other Transformers models do.

        Raises:
            CaptionerError: if a backbone was changed, such as by a merged LoRA; see `save_backbone`. The
                first 8 rows of each weight are compared with its file.
        """
        has_peft_adapter = getattr(self, "_hf_peft_config_loaded", False)
        if kwargs.get("is_main_process", True) and not has_peft_adapter:
            if kwargs.get("push_to_hub"):
                check_backbones_are_public(self.config)
            weights = self._weights_in_memory() if state_dict is None else state_dict
            state_dict = self._adapter_weights(weights)
            self._check_backbones(weights)
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def _weights_in_memory(self) -> Mapping[str, torch.Tensor]:
        """Return the state dict; if the adapter is offloaded, with all offloaded weights."""
        weights = self.state_dict()
        is_offloaded = any(weights[name].is_meta for name in self.adapter_state_dict())
        if is_offloaded and is_accelerate_available():
            from accelerate.utils.modeling import get_state_dict_offloaded_model

            weights = get_state_dict_offloaded_model(self)
        return weights

    def _adapter_weights(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the adapter's weights in a state dict, by their names in a checkpoint."""
        names = {name: name.replace("_orig_mod.", "") for name in self.adapter_state_dict()}  # torch.compile
        if wrapped := [x for x in names.values() if x.rpartition(".adapter.")[2].count(".") != 1]:
            raise CaptionerError(
                f"The adapters are wrapped by PEFT (first: {wrapped[0]}): save the PEFT model, or call "
                "merge_and_unload() before you save the captioner."
            )
        if missing := [name for name in names if name not in state_dict]:
            raise CaptionerError(f"state_dict lacks {len(missing)} of the adapter's weights: {missing[:3]}.")
        return {plain: state_dict[name] for name, plain in names.items()}

    def _check_backbones(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Raise `CaptionerError` if a backbone in memory, or in a state dict, is not the recorded one."""
        weights = self.state_dict() if state_dict is None else state_dict
        for part in ("vision", "text"):
            model, prefix = getattr(self, f"{part}_model"), f"{part}_model."
            name, revision, expected = recorded_backbone(self.config, part)
            if name is None or expected is None:
                logger.warning(
                    f"The {part} model exists only in memory, so a saved captioner cannot be loaded."
                )
            elif not isinstance(model, UnloadedVisionModel):
                own = {key.removeprefix(prefix): x for key, x in weights.items() if key.startswith(prefix)}
                try:
                    backbone = Backbone(
                        part, name, revision, cache_dir=self._cache_dir, local_files_only=True
                    )
                    backbone.check_fingerprint(expected)
                except (OSError, CaptionerError) as error:  # the files have moved or changed since loading
                    logger.warning(f"The {part} model could not be compared with its files: {error}")
                else:
                    advice = (
                        f'To keep the changed {part} model, call model.save_backbone("{part}", folder), then '
                        "save the captioner. To discard it, load the captioner again."
                    )
                    backbone.check_unchanged(model, own, advice)

    def save_backbone(self, part: str, save_directory: str | os.PathLike[str]) -> None:
        """Save a backbone that was changed after loading, and record it as the captioner's.

        A captioner's folder contains only the adapter. If a backbone was trained, or a LoRA was merged into
        it, save it before the captioner.

        Args:
            part: "vision" or "text".
            save_directory: The folder for the backbone; it is created if it does not exist.

        Raises:
            CaptionerError: if the backbone is not loaded, was quantized after loading, has compiled parts, or
                has PEFT adapters that are not merged.

        Example:
        ```python
        >>> model.save_backbone("text", "my-language-model")  # doctest: +SKIP
        >>> model.save_pretrained("my-captioner")  # doctest: +SKIP

        ```
        """
        if part not in ("vision", "text"):
            raise CaptionerError(f"part is {part!r}, expected 'vision' or 'text'.")
        model = getattr(self, f"{part}_model")
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        problem = f"The {part} model cannot be saved: it"
        if isinstance(model, UnloadedVisionModel) or any(p.is_meta for p in model.parameters()):
            raise CaptionerError(f"{problem} is not in memory. Load the captioner completely.")
        if wrapped := [name for name, module in model.named_modules() if hasattr(module, "base_layer")]:
            raise CaptionerError(
                f"{problem} has PEFT adapters (first: {wrapped[0]}). Call merge_and_unload() first."
            )
        names = list(model.state_dict())
        if any("_orig_mod." in name for name in names):
            raise CaptionerError(f"{problem} has compiled parts. Save it before torch.compile.")
        if any(QUANTIZED.search(name) for name in names) and getattr(model, "hf_quantizer", None) is None:
            raise CaptionerError(f"{problem} was quantized after loading. Load it without quantization.")
        if part == "text":
            model = decoder_family(self.config.text_config).without_adapters(model)
        model.save_pretrained(save_directory)
        for field, value in Backbone(part, save_directory).config_fields().items():
            if field != f"{part}_config":  # shared with the model
                setattr(self.config, field, value)

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
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


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
