"""What of a captioner is stored and how it comes back: the adapter alone, over recorded backbones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import resolve_revision

from .adapter_file_ituning import check_adapter_tensors, read_adapter_file
from .backbones_ituning import (
    check_in_memory,
    load_backbone,
    load_pretrained_backbone,
    refuse_local_backbones,
    split_device_map,
)
from .configuration_ituning import ITuningConfig
from .decoders_ituning import bare_copy
from .generation_file_ituning import read_generation_settings
from .recorded_ituning import RecordedBackbone, UnloadedVisionModel, record_backbone, recorded_fields
from .seal_ituning import check_adapter_unchanged, tensors_fingerprint

logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_ituning.ITuningConfig",
    "AutoModel": "modeling_ituning.ITuningForCaptioning",
    "AutoModelForImageTextToText": "modeling_ituning.ITuningForCaptioning",
}
ADAPTER_OPTIONS = (
    "adapter_hidden_size",
    "adapter_num_heads",
    "adapter_scale",
    "adapter_layers",
    "adapter_dropout",
    "vision_feature_layer",
)
# What the Auto classes, pipelines and old habit pass to every model, and this one has no use for: it is
# always loaded lazily, and always from safetensors.
_PASSED_BY_CALLERS = frozenset(
    {
        "trust_remote_code",
        "adapter_kwargs",
        "code_revision",
        "_from_auto",
        "_from_pipeline",
        "tqdm_class",
        "low_cpu_mem_usage",
        "use_safetensors",
    }
)


class ITuningPreTrainedModel(PreTrainedModel):
    """Loading and saving of a captioner; [`ITuningForCaptioning`] adds what it computes."""

    config_class = ITuningConfig

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike[str] | RecordedBackbone,
        text: str | os.PathLike[str],
        *,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **adapter_options: Any,
    ) -> Any:
        """Build a new, untrained captioner over two frozen models.

        Args:
            vision: A CLIP vision encoder, or a full CLIP: a local folder or a Hub id. Or what is recorded of
                one, which is then not loaded: the captioner takes `visual_features` alone.
            text: A GPT-2 language model: a local folder or a Hub id.
            vision_revision: The encoder's revision on the Hub; recorded as a commit hash where known.
            text_revision: The language model's revision on the Hub.
            dtype: The backbones' precision; the adapter is in fp32.
            attn_implementation: "sdpa" or "eager".
            token: For private backbones.
            cache_dir: Where downloads are kept.
            local_files_only: Never ask the Hub.
            **adapter_options: `adapter_hidden_size`, `adapter_num_heads`, `adapter_scale`,
                `adapter_layers`, `adapter_dropout`, `vision_feature_layer`; see [`ITuningConfig`].

        Returns:
            The captioner in evaluation mode. Its logits are the language model's until it is trained.

        Raises:
            TypeError: for an adapter option that does not exist.
            ValueError: for one out of its range, or a backbone that is incomplete or of another kind.
            OSError: for a backbone that is not there.
        """
        if unknown := sorted(set(adapter_options) - set(ADAPTER_OPTIONS)):
            raise TypeError(f"unknown adapter option(s) {unknown}; expected some of {list(ADAPTER_OPTIONS)}.")
        hub: dict[str, Any] = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        encoder = (
            record_backbone("vision", vision, vision_revision, **hub)
            if isinstance(vision, (str, os.PathLike))
            else vision
        )
        decoder = record_backbone("text", text, text_revision, **hub)
        recorded = recorded_fields("vision", encoder) | recorded_fields("text", decoder)
        config = ITuningConfig(**recorded, **adapter_options)  # refuses bad options before weights are read
        load: dict[str, Any] = {"attn_implementation": attn_implementation, **hub}
        load |= {} if dtype is None else {"dtype": dtype}
        vision_model = (
            UnloadedVisionModel(config.vision_config)
            if encoder is vision
            else load_pretrained_backbone("vision", encoder.name, revision=encoder.revision, **load)
        )
        text_model = load_pretrained_backbone("text", decoder.name, revision=decoder.revision, **load)
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
        output_loading_info: bool = False,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a saved captioner: its backbones from where they were recorded, then its adapter.

        Args:
            pretrained_model_name_or_path: The adapter's folder or Hub id.
            config: A configuration, or its place, instead of the adapter's own.
            vision_model: The recorded vision encoder, where it is in memory already: of another captioner,
                say. It is shared.
            text_model: The recorded language model, where it is in memory already, with another captioner's
                adapters or none. Its modules stay as they are, and its weights are shared; like the
                encoder's, they no longer ask for gradients. (An Auto class copies it first.)
            load_vision_model: False leaves the vision encoder out, whether it is there or not: the captioner
                takes `visual_features` alone, and goes on recording its encoder when it is saved.
            dtype: Precision of everything, such as `torch.bfloat16` or "bfloat16". By default each part
                keeps that of its file.
            device_map: A device, "auto", or a dictionary from module names to devices.
            attn_implementation: "sdpa" or "eager".
            quantization_config: For the language model alone; the adapter is never quantised.
            generation_config: In place of the adapter's own.
            output_loading_info: Also return a dictionary of missing and unexpected keys. Those lists are
                empty, since such a file is refused.
            revision: The adapter's revision on the Hub; the backbones have their own.
            subfolder: Where in the repository the adapter lies.
            token: For private repositories, the backbones' too.
            cache_dir: Where downloads are kept.
            local_files_only: Never ask the Hub.
            force_download: Download again what is in the cache.
            **kwargs: Fields of the configuration to replace, notably `vision_model_name_or_path` and
                `text_model_name_or_path` for backbones that have moved.

        Returns:
            The captioner in evaluation mode; with `output_loading_info`, a pair of it and a dictionary.

        Raises:
            OSError: if the adapter or a backbone is not there, or config.json cannot be read.
            ValueError: if a backbone is not the one the adapter was trained on, or the adapter file is
                corrupt or does not fit, or it or config.json was changed since they were saved, or
                generation_config.json holds no such settings, or what is in memory already is to be loaded
                in some way.
            TypeError: for a keyword that does not exist, or a backbone in memory of another class.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub: dict[str, Any] = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        old_name = kwargs.pop("torch_dtype", None)  # dtype's until Transformers 5
        dtype = old_name if dtype is None else dtype
        own = {"revision": resolve_revision(name, revision, **hub), "subfolder": subfolder}
        hub["force_download"] = force_download
        config = _load_config(name if config is None else config, kwargs, **own, **hub)
        # First, because it is small: a bad one is found before long work.
        tensors = read_adapter_file(cached_file(name, SAFE_WEIGHTS_NAME, **own, **hub))
        check_adapter_unchanged(tensors, config, name)
        # The Auto classes put it into the configuration that they hand over.
        load = {"attn_implementation": attn_implementation or config._attn_implementation, **hub}
        load |= {} if dtype is None else {"dtype": dtype}
        wishes = {
            "load_vision_model=False": None if load_vision_model else False,
            "dtype": dtype,
            "device_map": device_map,
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
        }
        _refuse_two_wishes({"vision_model": vision_model, "text_model": text_model}, wishes)
        maps = split_device_map(device_map, ("vision", "text") if load_vision_model else ("text",))
        if vision_model is not None:
            check_in_memory("vision", vision_model, config, **hub)
        elif load_vision_model:
            vision_model = load_backbone("vision", config, device_map=maps["vision"], **load)
        if text_model is not None:
            check_in_memory("text", text_model, config, **hub)
            text_model = bare_copy(text_model)
            text_model.activation_checkpointing_disable()  # another captioner may train with it
        else:
            load |= {} if quantization_config is None else {"quantization_config": quantization_config}
            text_model = load_backbone("text", config, device_map=maps["text"], **load)
        with torch.device("meta"):  # the file brings the adapter's tensors
            model = cls(config, vision_model or UnloadedVisionModel(config.vision_config), text_model)
        model.load_adapter_state_dict(tensors, name, dtype)
        model._load_generation_config(generation_config, name, **own, **hub)
        model.name_or_path = config.name_or_path = name
        model.eval()
        info: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set()}
        info |= {"mismatched_keys": set(), "error_msgs": []}
        return (model, info) if output_loading_info else model

    def load_adapter_state_dict(
        self, tensors: Mapping[str, torch.Tensor], name: str, dtype: str | torch.dtype | None = None
    ) -> None:
        """Put the tensors that `adapter_state_dict` gave in place: all of them, and nothing else.

        Args:
            tensors: The adapter's weights under their full names.
            name: Where they come from, for the message.
            dtype: The precision they get; their own by default.

        Raises:
            ValueError: if they are not exactly this captioner's.
        """
        expected = self.adapter_state_dict()
        check_adapter_tensors(tensors, expected, name)
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        for i, adapter in self.adapters().items():
            own = next(tensor for key, tensor in tensors.items() if f".{i}.adapter." in key)
            adapter.to(dtype or own.dtype)
        self.load_state_dict(tensors, strict=False)

    def _load_generation_config(
        self, generation_config: GenerationConfig | None, name: str, **kwargs: Any
    ) -> None:
        if generation_config is not None:
            self.generation_config = generation_config
            return
        optional = {"_raise_exceptions_for_missing_entries": False}
        if (path := cached_file(name, GENERATION_CONFIG_NAME, **kwargs, **optional)) is not None:
            self.generation_config = read_generation_settings(
                path, self.generation_config, self.config.text_config.vocab_size
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the adapter alone, with the configuration, generation settings and code to load it.

        The configuration gets fingerprints of the adapter and of itself, by which a later change is found.

        Args:
            save_directory: The folder; made if it is not there.
            state_dict: Weights to save in place of the model's own, as a distributed run gathers them. Of
                a whole model's the adapter is taken.
            **kwargs: For `PreTrainedModel.save_pretrained`: `push_to_hub`, `repo_id`, `token` and so on.
        """
        if kwargs.get("push_to_hub"):
            refuse_local_backbones(self.config)
        if self.config.vision_model_fingerprint is None or self.config.text_model_fingerprint is None:
            logger.warning(
                "This captioner's backbones were built in memory and are stored nowhere, so the saved "
                "adapter cannot be loaded again. Save both backbones, and create the captioner with "
                "from_vision_text_pretrained."
            )
        adapter = self.adapter_state_dict()
        if state_dict is not None:
            adapter = {name: state_dict[name] for name in adapter}
        self.config.auto_map = dict(AUTO_MAP)
        self.config.adapter_fingerprint = tensors_fingerprint(adapter)
        super().save_pretrained(save_directory, state_dict=adapter, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Put the adapter, with the configuration and the code to load it, on the Hub.

        A model card that the repository has on its main branch stays as it is.

        Args:
            repo_id: The repository; made if it is not there.
            **kwargs: For `PreTrainedModel.push_to_hub`: `private`, `commit_message`, `token` and so on.

        Returns:
            What the Hub says of the commit.

        Raises:
            ValueError: if a backbone lies in a local folder, before anything is sent.
        """
        refuse_local_backbones(self.config)
        return super().push_to_hub(repo_id, **kwargs)


def _refuse_two_wishes(in_memory: dict[str, Any], wishes: dict[str, Any]) -> None:
    """Refuse to load in some way what is in memory already.

    Raises:
        ValueError: naming both arguments.
    """
    of_one = {"load_vision_model=False": ["vision_model"], "quantization_config": ["text_model"]}
    for wish, value in wishes.items():
        for name in of_one.get(wish, in_memory):
            if in_memory[name] is not None and value is not None:
                raise ValueError(
                    f"Got both {name} and {wish}: a backbone in memory stays as and where it is. Give one of "
                    "them."
                )


def _load_config(config: Any, kwargs: dict[str, Any], **hub_kwargs: Any) -> Any:
    """Load a captioner's configuration; what `kwargs` names of its fields wins over the file.

    Any object that is no place is a configuration, though under remote code not of this very class: the file
    is then loaded twice, once for AutoConfig and once beside the model's.

    Raises:
        TypeError: for a keyword that is no field, and that nobody is known to pass.
    """
    if isinstance(config, (str, os.PathLike)):
        config, kwargs = ITuningConfig.from_pretrained(
            config, return_unused_kwargs=True, **hub_kwargs, **kwargs
        )
    if unknown := sorted(set(kwargs) - _PASSED_BY_CALLERS):
        raise TypeError(f"from_pretrained got unexpected keyword argument(s) {unknown}.")
    return config


__all__ = ["ADAPTER_OPTIONS", "AUTO_MAP", "ITuningPreTrainedModel"]
