"""Telling a frozen backbone from another one by its weights, on disk and in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file

from .json_ituning import read_json_object

# For each backbone: its class, the prefix that its weights may carry on disk, and its first embedding.
_NAMES = {
    "vision": ("CLIPVisionModel", "vision_model.", "embeddings.patch_embedding.weight"),
    "text": ("GPT2LMHeadModel", "transformer.", "wte.weight"),
}
# Buffers and tied copies, which some ways of saving write and others do not.
_NOT_WEIGHTS = re.compile(r"(^|\.)(attn\.(masked_)?bias|position_ids|lm_head\.weight)$")
# What stands beside or in place of a weight that is held in fewer bits: by bitsandbytes, and by int8.py.
_QUANTISED = re.compile(r"\.(integers|scale|SCB|weight_format|weight\..+)$")
_ROWS = 8
_Reader = Callable[[], tuple[list[int], torch.Tensor]]


def fingerprint(kind: str, name: str, **hub_kwargs: Any) -> str:
    """Hash the first rows of every weight of a backbone, as they are stored on disk.

    It is cheap (a small part of the file is read), and does not change with the precision or the
    quantisation that the backbone is later loaded in, nor between a full CLIP and its vision part saved
    alone.

    Args:
        kind: "vision" or "text".
        name: A local folder or a Hub id.
        **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: if there are no weights at that place.
        ValueError: if the weights are not those of such a model.
    """
    return _digest(_open_own_weights(kind, name, hub_kwargs))


def model_fingerprint(kind: str, model: PreTrainedModel) -> str | None:
    """Return what `fingerprint` would of a backbone in memory; equal in the precision of its file alone.

    None if some of its weights are not in memory.

    Args:
        kind: "vision" or "text".
        model: The backbone, with adapters of ours or without.
    """
    own = _own_tensors(kind, model)
    if any(tensor.is_meta for tensor in own.values()):
        return None
    return _digest({key: partial(_first_rows, tensor) for key, tensor in own.items()})


def _digest(weights: Mapping[str, _Reader]) -> str:
    digest = hashlib.sha256()
    for key, read in sorted(weights.items()):
        shape, rows = read()
        digest.update(f"{key} {shape}".encode())
        digest.update(rows.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def check_weights_unchanged(kind: str, model: PreTrainedModel, name: str, **hub_kwargs: Any) -> None:
    """Refuse a backbone in memory whose weights are not those at the place that it was loaded from.

    The first rows of each are compared, in the precision that it has in memory; quantised ones are not.

    Args:
        kind: "vision" or "text".
        model: The backbone in memory.
        name: Where it was loaded from.
        **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: if there are no weights at that place.
        ValueError: with the first weight that differs, or that does not belong there.
    """
    own = _own_tensors(kind, model)
    weights = _open_own_weights(kind, name, hub_kwargs)
    if added := [key for key in own if key not in weights and not _QUANTISED.search(key)]:
        raise ValueError(
            f"The {kind} model in memory is not the one at {name!r}: it has {len(added)} weights more "
            f"(first: {added[:3]}). Take off what was added to it, such as a LoRA."
        )
    for key, read in weights.items():
        tensor = own.get(key)
        if tensor is None or not tensor.is_floating_point() or tensor.is_meta:
            continue
        (shape, rows), (stored_shape, stored) = _first_rows(tensor), read()
        if shape != stored_shape or not torch.equal(stored.to(tensor.dtype), rows.cpu()):
            raise ValueError(
                f"The {kind} model in memory is not the one at {name!r}, which a saved captioner would "
                f"bring back: its {key} differs (was something merged into it, or was it trained?). Save "
                "it to a folder, and load it from there."
            )


def _own_tensors(kind: str, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights of a backbone in memory by their names on disk, without prefix and adapters."""
    prefix = _NAMES[kind][1]
    tensors = {key.removeprefix(prefix): tensor for key, tensor in model.state_dict().items()}
    return {
        key: tensor
        for key, tensor in tensors.items()
        if ".adapter." not in key and not _NOT_WEIGHTS.search(key)
    }


def _open_own_weights(kind: str, name: str, hub_kwargs: dict[str, Any]) -> dict[str, _Reader]:
    """Open a backbone's weights; of a full CLIP the vision part's, without their prefix."""
    class_name, prefix, embedding = _NAMES[kind]
    weights = _open_weights(name, hub_kwargs)
    prefixed = {key.removeprefix(prefix): key for key in weights if key.startswith(prefix)}
    own = prefixed or {key: key for key in weights}
    if embedding not in own:
        raise ValueError(
            f"The weights at {name!r} are not those of a {class_name}: there is no {embedding!r} among their "
            f"{len(weights)} tensors."
        )
    return {key: weights[stored] for key, stored in own.items() if not _NOT_WEIGHTS.search(key)}


def _open_weights(name: str, hub_kwargs: dict[str, Any]) -> dict[str, _Reader]:
    """Map each tensor's name to a function that reads its shape and first rows."""

    def find(filename: str) -> str | None:
        return cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    if (path := find(SAFE_WEIGHTS_NAME)) is not None:
        return _open_safetensors(path)
    if (path := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        shards = sorted(set(read_json_object(path)["weight_map"].values()))
        return {key: read for shard in shards for key, read in _open_safetensors(find(shard)).items()}
    if (path := find(WEIGHTS_NAME)) is not None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: partial(_first_rows, tensor) for key, tensor in state.items()}
    raise OSError(f"no {SAFE_WEIGHTS_NAME}, {SAFE_WEIGHTS_INDEX_NAME} or {WEIGHTS_NAME} at {name!r}.")


def _open_safetensors(path: str | None) -> dict[str, _Reader]:
    file = safe_open(path, framework="pt")
    return {key: partial(_first_rows, file.get_slice(key)) for key in file.keys()}  # noqa: SIM118


def _first_rows(tensor: Any) -> tuple[list[int], torch.Tensor]:
    """Read the shape and a few rows of a tensor, or of one on disk; a single number has no rows."""
    shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else tensor.get_shape()
    return shape, tensor[:_ROWS] if shape else tensor[...]


__all__ = ["check_weights_unchanged", "fingerprint", "model_fingerprint"]
