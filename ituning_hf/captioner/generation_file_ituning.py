"""Default generation settings from their file, which people edit: refused where they cannot be meant."""

from __future__ import annotations

import math
import os
from typing import Any

from transformers import GenerationConfig

from .json_ituning import read_json_object

_COUNTS = ("max_new_tokens", "max_length", "num_beams", "num_return_sequences")
_COUNTS_FROM_0 = ("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size")
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "length_penalty", "repetition_penalty")
_FLAGS = ("do_sample", "use_cache", "output_scores", "output_logits", "return_dict_in_generate")
_TOKENS = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
_TOKEN_LISTS = ("eos_token_id", "forced_eos_token_id")


def read_generation_settings(
    path: str | os.PathLike[str], own: GenerationConfig, vocab_size: int
) -> GenerationConfig:
    """Read `generation_config.json`.

    Args:
        path: The file.
        own: The captioner's own settings, whose tokens stand in for those that the file leaves out.
        vocab_size: The language model's; token ids are below it.

    Returns:
        The settings.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming the file and the setting, if it holds something else than settings.
    """
    stored = read_json_object(path)
    for name, value in stored.items():
        if value is not None and (wanted := _misses(name, value, vocab_size)):
            raise ValueError(
                f"{os.fspath(path)} has {name}={value!r}, expected {wanted}: change or remove it."
            )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if stored.get(name) is None:
            stored[name] = getattr(own, name)
    try:
        return GenerationConfig.from_dict(stored)
    except Exception as error:  # whatever comes of a value of another kind, deep in Transformers
        raise ValueError(
            f"{os.fspath(path)} holds no generation settings ({type(error).__name__}: {error}): mend it, or "
            "remove it for the captioner's own."
        ) from error


def _misses(name: str, value: Any, vocab_size: int) -> str | None:
    """Say what a setting should have been, if it is something else."""

    def is_integer(value: Any, first: int, end: float = math.inf) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and first <= value < end

    if name in _COUNTS and not is_integer(value, 1):
        return "a positive integer"
    if name in _COUNTS_FROM_0 and not is_integer(value, 0):
        return "an integer from 0"
    if name in _NUMBERS and not (is_integer(value, -(2**31), 2**31) or _is_finite(value)):
        return "a number"
    if name in _FLAGS and not isinstance(value, bool):
        return "true or false"
    if name in (*_TOKENS, *_TOKEN_LISTS):
        ids = value if name in _TOKEN_LISTS and isinstance(value, list) and value else [value]
        if not all(is_integer(one, 0, vocab_size) for one in ids):
            return f"a token id from 0 to {vocab_size - 1}"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


__all__ = ["read_generation_settings"]
