"""An adapter's file: read whole, and refused where it is not exactly what a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open


def read_adapter_file(path: str) -> dict[str, torch.Tensor]:
    """Read an adapter's safetensors file.

    Raises:
        ValueError: if it is not whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The adapter file {path} cannot be read ({error}): it is corrupt or was cut short; "
            "copy or download it again."
        ) from error


def check_adapter_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str
) -> None:
    """Refuse an adapter file that has not exactly the tensors that the configuration asks for.

    Raises:
        ValueError: with the first few keys that are missing, unexpected, or of another shape or kind.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misfits = [
        f"{key} is {tuple(found[key].shape)} {found[key].dtype}, wanted {tuple(expected[key].shape)} floats"
        for key in expected
        if key in found and (found[key].shape != expected[key].shape or not found[key].is_floating_point())
    ]
    broken = [key for key, tensor in found.items() if not _is_finite(tensor)]
    problems = [
        f"{len(keys)} {what} (first: {keys[:3]})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("not fitting", misfits),
            ("not finite", broken),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"The adapter file of {name!r} does not fit its configuration: {'; '.join(problems)}. "
            "The file and config.json must come from one and the same save_pretrained."
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    # What is not finite makes the sum so, which takes one pass over the memory; the rest takes several, and
    # is for a sum that overflowed.
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.double().isfinite().all())


__all__ = ["check_adapter_tensors", "read_adapter_file"]
