"""Generation: Transformers' `generate` conditioned on images; prompts start with the BOS token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, StaticCache
from transformers.generation import GenerationMode

from .adapter_ituning import check_rows
from .configuration_ituning import CaptionerError, ITuningConfig
from .decoders_ituning import decoder_family

SUPPORTED_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
# Captions are short. This limits a model that never generates the EOS token.
DEFAULT_MAX_NEW_TOKENS = 40
# Seq2SeqTrainer writes this default into the model's generation configuration. Transformers would then warn
# in each call that it contradicts max_new_tokens.
UNSET_MAX_LENGTH = 20


class ITuningGenerationMixin(GenerationMixin):
    """Transformers' generation, conditioned on images."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        pixel_values: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""Caption images. Accepts the arguments of `GenerationMixin.generate` in addition to the images.

        Each image is encoded once, and its keys and values are projected once for all steps and beams.

        Args:
            inputs: An alias of `input_ids` or, with four dimensions, of `pixel_values`.
            generation_config: Replaces the model's generation configuration.
            pixel_values: Images, of shape (num_images, 3, image_size, image_size).
            visual_features: Replaces `pixel_values`; shape (num_images, N, d_v).
            input_ids: Left-padded prompts of shape (num_images * k, T), image-major. A BOS token is added to
                prompts that lack it. Without prompts, each image gets one caption.
            attention_mask: 1 at tokens, 0 at padding, of the shape of `input_ids`.
            labels: Ignored. With labels, as in a training batch or from `Seq2SeqTrainer`, `input_ids` hold
                the targets and are ignored too: each image gets one caption.
            **kwargs: Passed to `GenerationMixin.generate`.

        Returns:
            Token ids of shape (num_images * k * num_return_sequences, length), including the prompt; or a
            `ModelOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: if inputs are inconsistent with each other or with the backbones.
            CaptionerError: if the generation mode is not supported.
        """
        if kwargs.get("cache_implementation") == "paged":
            return self.generate_batch()
        if isinstance(inputs, Mapping):
            raise TypeError("Got a batch as one argument: pass its parts, generate(**batch).")
        if inputs is not None:
            is_image = inputs.ndim == 4
            if (pixel_values if is_image else input_ids) is not None:
                name = "pixel_values" if is_image else "input_ids"
                raise ValueError(f"inputs and {name} are two names for one argument: pass one of them.")
            pixel_values, input_ids = (inputs, input_ids) if is_image else (pixel_values, inputs)
        if labels is not None:
            input_ids = None
            kwargs.pop("label_smoothing", None)
        visual_key_values = self.project_visual(self._visual_memory(pixel_values, visual_features))
        key, _ = next(iter(visual_key_values.values()))  # (num_images, h, N, r / h)
        if input_ids is None:
            # The adapter's device, because `self.device` is that of the first weight, which may be offloaded.
            input_ids = torch.empty((key.shape[0], 0), dtype=torch.long, device=key.device)
            attention_mask = None
        check_rows(input_ids.shape[0], key.shape[0])
        own = self._complete_generation_config()
        past = kwargs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            given = generation_config or own
            begin = own.bos_token_id if given.bos_token_id is None else given.bos_token_id
            pad = own.pad_token_id if given.pad_token_id is None else given.pad_token_id
            if attention_mask is None:
                attention_mask = mask_of_padding(input_ids, begin, pad)
            input_ids, attention_mask = add_bos_token(input_ids, attention_mask, begin)
        if kwargs.get("max_length", getattr(generation_config, "max_length", None)) is not None:
            # The default max_new_tokens must not override a given max_length.
            kwargs.setdefault("max_new_tokens", getattr(generation_config, "max_new_tokens", None))
        return super().generate(
            input_ids,
            generation_config=generation_config,
            attention_mask=attention_mask,
            visual_key_values=visual_key_values,
            **kwargs,
        )

    def _complete_generation_config(self) -> GenerationConfig:
        """Add missing special tokens to the model's configuration, and remove the default length.

        Seq2SeqTrainer replaces the configuration, or writes defaults into it.
        """
        own, text = self.generation_config, self.config.text_config
        for name, token in decoder_family(text).special_tokens(text).items():
            if getattr(own, name) is None:
                setattr(own, name, token)
        if own.max_new_tokens is not None and own.max_length == UNSET_MAX_LENGTH:
            own.max_length = None
        return own

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Raise an error: continuous batching is not supported."""
        raise CaptionerError("Continuous batching (paged) is not supported: use generate with a batch.")

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: Any, generation_mode_kwargs: Any
    ) -> None:
        if generation_mode not in SUPPORTED_MODES:
            supported = [mode.value for mode in SUPPORTED_MODES]
            raise CaptionerError(
                f"Generation mode {generation_mode.value!r} is not supported: use one of {supported}."
            )
        check_guidance(generation_config.guidance_scale)
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _validate_generated_length(
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        positions = self.config.text_config.max_position_embeddings
        if generation_config.max_length - 1 > positions:  # the last token is never an input
            new = generation_config.max_length - input_ids_length
            raise CaptionerError(
                f"A prompt of {input_ids_length} tokens and {new} new tokens exceed the language model's "
                f"{positions} positions: lower max_new_tokens, or shorten the prompt."
            )

    def _prepare_static_cache(
        self, cache_implementation: str, batch_size: int, max_cache_len: int, *args: Any, **kwargs: Any
    ) -> StaticCache:
        """Create a static cache for this call; Transformers would reuse the longest earlier one."""
        return StaticCache(
            config=self.config.text_config,
            max_cache_len=max_cache_len,
            offloading="offloaded" in cache_implementation,
        )


def default_generation_config(config: ITuningConfig) -> GenerationConfig:
    """Return the generation settings of a captioner without `generation_config.json`."""
    text = config.text_config
    return GenerationConfig(
        **decoder_family(text).special_tokens(text),
        max_new_tokens=min(DEFAULT_MAX_NEW_TOKENS, text.max_position_embeddings),
    )


def check_guidance(guidance_scale: float | None) -> None:
    """Raise an error if classifier-free guidance is requested."""
    if guidance_scale not in (None, 1):
        # Transformers would call the model without an image for the unconditional branch.
        raise CaptionerError(f"guidance_scale={guidance_scale} is not supported: leave it unset.")


def mask_of_padding(input_ids: torch.Tensor, bos_token_id: int, pad_token_id: int) -> torch.Tensor:
    """Infer the mask of left-padded prompts. If BOS also pads, the last leading one is the BOS token."""
    is_padding = (input_ids == pad_token_id).long().cumprod(dim=1)  # (rows, T)
    if pad_token_id == bos_token_id:
        next_is_padding = torch.cat([is_padding[:, 1:], torch.zeros_like(is_padding[:, :1])], dim=1)
        is_padding = is_padding * next_is_padding  # (rows, T)
    return 1 - is_padding


def add_bos_token(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, bos_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the BOS token to each left-padded prompt that lacks it.

    Ids and mask have shape (rows, T), where T may be 0. The results have shape (rows, T) if no prompt lacks
    it, and (rows, T + 1) otherwise.
    """
    rows, length = input_ids.shape
    if (attention_mask[:, 1:] < attention_mask[:, :-1]).any():
        raise ValueError(
            "attention_mask has padding after tokens: prompts must be padded on the left. To caption images "
            "of a training batch, pass its labels too, or pixel_values alone."
        )
    start = length - attention_mask.sum(dim=1)  # (rows,): the first token of each prompt
    padded = torch.cat([input_ids, input_ids.new_full((rows, 1), bos_token_id)], dim=1)  # (rows, T + 1)
    is_lacking = padded.gather(1, start[:, None]).squeeze(1) != bos_token_id  # (rows,)
    is_lacking |= start == length  # empty prompts
    if not is_lacking.any():
        return input_ids, attention_mask
    # Add a column of padding on the left. In rows that lack the BOS token, it replaces the last padding token
    # before the prompt.
    ids = torch.cat([input_ids.new_full((rows, 1), bos_token_id), input_ids], dim=1)  # (rows, T + 1)
    mask = torch.cat([attention_mask.new_zeros((rows, 1)), attention_mask], dim=1)  # (rows, T + 1)
    row = torch.arange(rows, device=ids.device)[is_lacking]
    ids[row, start[is_lacking]] = bos_token_id
    mask[row, start[is_lacking]] = 1
    return ids, mask
