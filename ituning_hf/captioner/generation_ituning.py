"""What generation needs beside Transformers' own: prompts with a begin token, and clear refusals."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from .configuration_ituning import ITuningConfig
from .inputs_ituning import check_rows

SUPPORTED_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)


# Captions are short; a model that never says its end token should not run on for long.
DEFAULT_MAX_NEW_TOKENS = 40


class ITuningGenerationMixin(GenerationMixin):
    """Transformers' generation, with the image beside the text at every step."""

    @property
    def _previous_max_cache_length(self) -> int:
        # Transformers gives each static cache the length of the longest before it, so that one request would
        # change the memory and the last bits of all that follow. Against compiling for each length there is
        # `max_cache_len` in the generation settings.
        return -1

    @_previous_max_cache_length.setter
    def _previous_max_cache_length(self, length: int) -> None:
        pass

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        pixel_values: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""Caption images. Takes all that `GenerationMixin.generate` takes, and the image.

        The image is encoded once, and its keys and values are projected once for all steps and beams.

        Args:
            inputs: Another name for `input_ids`, as elsewhere in Transformers.
            generation_config: In place of the model's own.
            pixel_values: Images, of shape (num_images, 3, image_size, image_size).
            visual_features: In place of `pixel_values`, of shape (num_images, N, d_v).
            input_ids: Prompts, left-padded, of shape (num_images * k, T), image-major. The begin token is
                put in front of those that have none. Without prompts each image gets one caption.
            attention_mask: 1 at tokens, 0 at padding, of the shape of `input_ids`.
            **kwargs: For `GenerationMixin.generate`.

        Returns:
            Token ids, of shape (num_images * k * num_return_sequences, length), prompt included; or a
            `ModelOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: for inputs that do not fit one another or the backbones.
            NotImplementedError: for generation modes that a captioner cannot do, with the reason.
        """
        if kwargs.get("cache_implementation") == "paged":
            return self.generate_batch()
        if inputs is not None and input_ids is not None:
            raise ValueError("inputs and input_ids are two names for the prompt: give one of them.")
        input_ids = inputs if input_ids is None else input_ids
        visual_key_values = self.project_visual(self._visual_memory(pixel_values, visual_features))
        if input_ids is None:
            # On the adapter's device, since the model's own (its first weight's) may be offloaded.
            key, _ = next(iter(visual_key_values.values()))
            input_ids = torch.empty((key.shape[0], 0), dtype=torch.long, device=key.device)
            attention_mask = None
        images = next(iter(visual_key_values.values()))[0].shape[0]
        check_rows(input_ids.shape[0], images)
        past = kwargs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            begin, pad = self._begin_and_padding_token(generation_config)
            if attention_mask is None:
                attention_mask = mask_of_padding(input_ids, begin, pad)
            input_ids, attention_mask = with_begin_token(input_ids, attention_mask, begin)
        if kwargs.get("max_length", getattr(generation_config, "max_length", None)) is not None:
            kwargs.setdefault("max_new_tokens", getattr(generation_config, "max_new_tokens", None))
        return super().generate(
            input_ids,
            generation_config=generation_config,
            attention_mask=attention_mask,
            visual_key_values=visual_key_values,
            **kwargs,
        )

    def _begin_and_padding_token(self, generation_config: GenerationConfig | None) -> tuple[int, int]:
        """Return the tokens that a caller's configuration names, or the captioner's own."""
        own = self.generation_config
        given = generation_config or own
        begin = own.bos_token_id if given.bos_token_id is None else given.bos_token_id
        return begin, own.pad_token_id if given.pad_token_id is None else given.pad_token_id

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Continuous batching (generate_batch, cache_implementation='paged') is not supported: it "
            "schedules text alone, and has no way to carry the images. Use generate with a batch."
        )

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: Any, generation_mode_kwargs: Any
    ) -> None:
        refuse_unsupported(generation_mode, generation_config)
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _validate_generated_length(
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        positions = self.config.text_config.max_position_embeddings
        if generation_config.max_length - 1 > positions:  # the last token is not read any more
            raise ValueError(
                f"A prompt of {input_ids_length} tokens and "
                f"{generation_config.max_length - input_ids_length} new ones do not fit the language "
                f"model's {positions} positions: lower max_new_tokens, or shorten the prompt."
            )


def default_generation_config(config: ITuningConfig) -> GenerationConfig:
    """Stop at the end token; finished rows are filled with the padding token."""
    text = config.text_config
    eos = text.eos_token_id
    pad = text.pad_token_id if text.pad_token_id is not None else eos
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=eos,
        pad_token_id=pad[0] if isinstance(pad, list) else pad,
        max_new_tokens=min(DEFAULT_MAX_NEW_TOKENS, text.max_position_embeddings),
    )


def refuse_unsupported(generation_mode: GenerationMode, generation_config: Any) -> None:
    """Refuse what Transformers offers and a captioner cannot do, with the reason.

    Raises:
        NotImplementedError: for assisted and other modes outside `SUPPORTED_MODES`, and for
            classifier-free guidance.
    """
    if generation_mode not in SUPPORTED_MODES:
        raise NotImplementedError(
            f"generation mode {generation_mode.value!r} is not supported: candidates would have to be "
            "checked against the image in blocks of several tokens, and captions are too short for that "
            f"to pay. Use one of {[mode.value for mode in SUPPORTED_MODES]}."
        )
    refuse_guidance(generation_config.guidance_scale)


def refuse_guidance(guidance_scale: float | None) -> None:
    """Refuse classifier-free guidance.

    Raises:
        NotImplementedError: for any scale but 1.
    """
    if guidance_scale not in (None, 1, 1.0):
        raise NotImplementedError(
            f"guidance_scale={guidance_scale} is not supported: Transformers computes the unguided branch by "
            "calling the model without an image. Leave guidance_scale unset."
        )


def mask_of_padding(input_ids: torch.Tensor, bos_token_id: int, pad_token_id: int) -> torch.Tensor:
    """Take the padding tokens that a prompt begins with for padding.

    Where the begin token serves as padding, as in GPT-2, the last of them is the begin token.

    Args:
        input_ids: Left-padded prompts, of shape (rows, T).
        bos_token_id: The begin token.
        pad_token_id: The padding token.

    Returns:
        1 at tokens and 0 at padding, of shape (rows, T).
    """
    leading = (input_ids == pad_token_id).long().cumprod(dim=1)
    if pad_token_id == bos_token_id:
        after = torch.cat([leading[:, 1:], torch.zeros_like(leading[:, :1])], dim=1)
        leading = leading * after
    return 1 - leading


def with_begin_token(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, bos_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the begin token in front of each prompt that has none.

    Args:
        input_ids: Left-padded prompts, of shape (rows, T); T may be 0.
        attention_mask: 1 at tokens and 0 at padding, of the same shape.
        bos_token_id: The begin token.

    Returns:
        Ids and mask, of shape (rows, T) if every prompt had one, and (rows, T + 1) otherwise.

    Raises:
        ValueError: if a prompt is padded on the right.
    """
    rows, length = input_ids.shape
    if (attention_mask[:, 1:] < attention_mask[:, :-1]).any():
        raise ValueError(
            "attention_mask has padding after tokens: prompts for generation must be padded on the left "
            "(the processor does that: processor(text=[...]))."
        )
    start = length - attention_mask.sum(dim=1)  # where each prompt begins
    padded = torch.cat([input_ids, input_ids.new_full((rows, 1), bos_token_id)], dim=1)
    lacking = padded.gather(1, start[:, None]).squeeze(1) != bos_token_id
    lacking |= start == length
    if not lacking.any():
        return input_ids, attention_mask
    # One more column of padding on the left; in the rows that lack it, its place next to the prompt
    # becomes the begin token.
    ids = torch.cat([input_ids.new_full((rows, 1), bos_token_id), input_ids], dim=1)
    mask = torch.cat([attention_mask.new_zeros((rows, 1)), attention_mask], dim=1)
    row = torch.arange(rows, device=ids.device)[lacking]
    ids[row, start[lacking]] = bos_token_id
    mask[row, start[lacking]] = 1
    return ids, mask


def positions_from_mask(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Count positions from each row's first token, so that padding on the left moves nothing.

    Args:
        attention_mask: Of shape (rows, past length + length).
        length: How many positions are wanted, from the end.

    Returns:
        Shape (rows, length).
    """
    positions = attention_mask.long().cumsum(dim=-1) - 1
    return positions.clamp(min=0)[:, -length:]


__all__ = [
    "ITuningGenerationMixin",
    "default_generation_config",
    "positions_from_mask",
    "refuse_guidance",
    "refuse_unsupported",
    "with_begin_token",
]
