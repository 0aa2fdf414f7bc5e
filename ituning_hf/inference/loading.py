"""Find and load a saved captioner, in a folder or on the Hub."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME, cached_file

from ..captioner.backbones_ituning import is_local
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..utils.devices import default_dtype, usable_device
from ..utils.errors import UserError
from ..utils.files import read_json
from ..utils.hub import explain_hub_error
from .int8 import quantize_frozen_weights, require_cpu


def load_captioner(
    model_name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    vision_model: str | os.PathLike[str] | torch.nn.Module | None = None,
    text_model: str | os.PathLike[str] | torch.nn.Module | None = None,
    load_vision_model: bool = True,
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Load a saved captioner in evaluation mode, and its processor.

    Args:
        model_name_or_path: The captioner's folder or Hub id.
        device: By default CUDA if there is a GPU, then Apple's MPS, then the CPU.
        dtype: The precision of all weights, such as "bfloat16". By default float32 on a CPU, as in training,
            and elsewhere that of each file.
        quantization: "int8" quantises the frozen language model's weights, on a CPU; see
            [`quantize_frozen_weights`].
        revision: The captioner's revision on the Hub. Its configuration has the revisions of the backbones.
        vision_model: The folder or Hub id of the frozen vision encoder, if it has moved; or the encoder of a
            loaded captioner, to share it.
        text_model: The folder or Hub id of the frozen language model, if it has moved; or that of a loaded
            captioner, to share its weights.
        load_vision_model: False skips the vision encoder: the captioner then takes only `visual_features`.

    Returns:
        The captioner and its processor.

    Raises:
        OSError: The captioner or a backbone cannot be found.
        UserError: There is no processor, or the device cannot be used, or not with int8.
        ValueError: It is not a captioner, a file is damaged, or a backbone is not the one it was trained on.
    """
    model = load_model(
        model_name_or_path,
        device,
        quantization=quantization,
        vision_model=vision_model,
        text_model=text_model,
        dtype=dtype or default_dtype(usable_device(device)),
        revision=revision,
        load_vision_model=load_vision_model,
    )
    return model, load_processor(model_name_or_path, revision)


def load_model(
    name: str | os.PathLike[str],
    device: Any = None,
    *,
    quantization: str | None = None,
    vision_model: str | os.PathLike[str] | torch.nn.Module | None = None,
    text_model: str | os.PathLike[str] | torch.nn.Module | None = None,
    **options: Any,
) -> ITuningForCaptioning:
    """Load a captioner without its processor; `options` are for `from_pretrained`."""
    target = usable_device(device)
    if quantization not in (None, "int8"):
        raise UserError(f"quantization is {quantization!r}, expected 'int8' or None.")
    if quantization is not None:
        require_cpu(target)
    read_config(name, options.get("revision"))  # its errors name what is there instead of a captioner
    for backbone, given in (("vision", vision_model), ("text", text_model)):
        if isinstance(given, torch.nn.Module):
            options[f"{backbone}_model"] = given
        elif given is not None:
            options[f"{backbone}_model_name_or_path"] = os.fspath(given)
    model: Any = ITuningForCaptioning.from_pretrained(name, **options)
    if quantization is not None:
        quantize_frozen_weights(model)
    return model.to(target)


def load_processor(name: str | os.PathLike[str], revision: str | None = None) -> ITuningProcessor:
    """Load the processor that was saved with a captioner.

    Raises:
        UserError: There is none.
        OSError: The Hub is unreachable or denies access.
    """
    if not os.fspath(name):
        raise UserError(
            "This captioner was never saved, so it has no processor on disk: pass one, "
            "caption(model, images, processor)."
        )
    try:
        return ITuningProcessor.from_pretrained(name, revision=revision or "main")
    except OSError as error:
        if (explanation := explain_hub_error(error)) is not None:
            raise OSError(f"The processor of {os.fspath(name)!r} cannot be loaded: {explanation}.") from error
        raise UserError(
            f"There is no processor in {os.fspath(name)!r}: save it with the captioner, "
            "ituning_hf.save_captioner(model, processor, folder)."
        ) from error


def read_config(
    model_name_or_path: str | os.PathLike[str], revision: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Read a captioner's `config.json`; return the local folder that holds the file, and its contents.

    Raises:
        OSError: if there is no such file.
        UserError: if it belongs to another model.
    """
    name = os.fspath(model_name_or_path)
    try:
        path = cached_file(name, CONFIG_NAME, revision=revision)
        if path is None:  # Transformers excuses a folder without config.json, and no other file
            raise FileNotFoundError(f"no {CONFIG_NAME} in {name!r}")
    except OSError as error:
        raise OSError(f"There is no captioner at {name!r}: {_explain(name, revision, error)}.") from error
    config = read_json(path)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != ITuningConfig.model_type:
        adapter = _describe_peft_adapter(name, revision)
        advice = "give an I-Tuning captioner" if adapter is None else f"it {adapter}"
        raise UserError(
            f"{name!r} holds a model of type {model_type!r}, expected {ITuningConfig.model_type!r}: {advice}."
        )
    return Path(path).parent, config


def find_optional(name: str, filename: str, revision: str | None = None) -> Path | None:
    """Find a file in a folder or Hub repository; return None if it is missing or the Hub is unreachable."""
    try:
        path = cached_file(name, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if path is None else Path(path)


def captioner_digest(model: ITuningForCaptioning) -> str:
    """Return a digest of what determines captions: the adapters, backbones and generation settings."""
    digest = hashlib.sha256(model.generation_config.to_json_string().encode())
    digest.update(f"{model.config.vision_model_fingerprint} {model.config.text_model_fingerprint}".encode())
    for name, tensor in sorted(model.adapter_state_dict().items()):
        # In fp32, because the default precision depends on the device.
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def holds_peft_adapter(name: str, revision: str | None = None) -> bool:
    """Return whether a folder or Hub repository holds a PEFT adapter, of any method."""
    return find_optional(name, "adapter_config.json", revision) is not None


def _describe_peft_adapter(name: str, revision: str | None) -> str | None:
    """Say which PEFT adapter a folder or repository contains and how to use it; None if there is none."""
    path = find_optional(name, "adapter_config.json", revision)
    if path is None:
        return None
    config = read_json(path)
    method = config.get("peft_type") if isinstance(config, dict) else None
    if method == "ITUNING":
        return "contains a PEFT adapter: convert it to a captioner with `ituning convert`"
    return (
        f"contains a PEFT adapter of the method {method}: load its captioner, and then the adapter with "
        "PeftModel.from_pretrained(captioner, folder)"
    )


def _explain(name: str, revision: str | None, error: OSError) -> str:
    """Describe what a folder or repository without `config.json` contains."""
    if (adapter := _describe_peft_adapter(name, revision)) is not None:
        return f"{'the folder' if os.path.isdir(name) else 'the repository'} {adapter}"
    if os.path.isfile(name):
        return "it is a file, not a folder"
    if not os.path.isdir(name):
        if is_local(name):
            return "the folder does not exist"
        reason = explain_hub_error(error) or str(error).rstrip(".")
        return f"the folder does not exist, and as a Hub id: {reason}"
    subfolders = sorted(path.parent.name for path in Path(name).glob(f"*/{CONFIG_NAME}"))
    found = f", but its subfolders {subfolders} do" if subfolders else ""
    return f"the folder has no {CONFIG_NAME}{found}"
