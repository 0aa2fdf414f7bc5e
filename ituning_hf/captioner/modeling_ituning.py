"""The captioner: a frozen vision encoder, a frozen language model, and I-Tuning adapters between them.

This file combines the parts into one Transformers model. The formula is in `adapter_ituning.py`, the decoder
layer with an adapter in `decoder_layers_ituning.py`, the loss in `loss_ituning.py`, generation in
`generation_ituning.py`, saving and loading in `pretrained_ituning.py`, loading the frozen models in
`backbones_ituning.py`, and what depends on their architectures in `decoders_ituning.py` and
`encoders_ituning.py`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .adapter_ituning import ITuningAdapter, check_rows, check_visual_features, project_images
from .backbones_ituning import MODEL_INIT_LOCK
from .configuration_ituning import CaptionerError, ITuningConfig
from .decoder_layers_ituning import VisualKeyValues
from .decoders_ituning import decoder_family
from .encoders_ituning import UnloadedVisionModel, encoder_family
from .generation_ituning import ITuningGenerationMixin, default_generation_config
from .loss_ituning import (
    caption_loss,
    compute_logits,
    next_tokens,
    next_weights,
    pack_rows,
    positions_from_mask,
)
from .pretrained_ituning import ITuningPreTrainedModel


class ITuningForCaptioning(ITuningPreTrainedModel, ITuningGenerationMixin):
    r"""An image captioner with frozen backbones; only its adapters are trained and saved.

    Batches are image-major: with B images and k rows of text per image, `input_ids` has B * k rows and row i
    belongs to image i // k. Each image is encoded once, its keys and values are projected once per layer, and
    all its rows share them: its captions in training, its beams in generation.

    `__init__` loads nothing: it takes initialized backbones, or initializes them with random weights. Use
    `from_vision_text_pretrained` for a new captioner, and `from_pretrained` for a saved one.

    Args:
        config: The configuration.
        vision_model: An initialized encoder or an [`UnloadedVisionModel`]; sets `config.vision_config`.
        text_model: An initialized language model; sets `config.text_config`.

    Example:
    ```python
    >>> import torch
    >>> from transformers import CLIPVisionConfig, GPT2Config
    >>> from ituning_hf import ITuningConfig, ITuningForCaptioning
    >>> vision = CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    ...                           num_attention_heads=3, image_size=30, patch_size=10)
    >>> text = GPT2Config(n_embd=20, n_layer=3, n_head=5, vocab_size=97, n_positions=32,
    ...                   bos_token_id=96, eos_token_id=96)
    >>> model = ITuningForCaptioning(ITuningConfig(vision_config=vision, text_config=text)).eval()
    >>> images = torch.rand(2, 3, 30, 30)
    >>> model.generate(pixel_values=images, min_new_tokens=4, max_new_tokens=4).shape
    torch.Size([2, 5])

    ```
    """

    base_model_prefix = "ituning"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(
        self,
        config: ITuningConfig,
        vision_model: PreTrainedModel | UnloadedVisionModel | None = None,
        text_model: PreTrainedModel | None = None,
    ) -> None:
        # Share the configuration objects of the backbones, so that a change, such as of the attention
        # implementation, reaches all parts.
        if vision_model is not None:
            config.vision_config = vision_model.config
        if text_model is not None:
            config.text_config = text_model.config
            config._attn_implementation_internal = text_model.config._attn_implementation
        decoder_family(config.text_config).check_config(config.text_config)
        encoder = encoder_family(config.vision_config)
        with MODEL_INIT_LOCK:
            super().__init__(config)
            # With this type, Transformers' Trainer ignores the first position when it counts label tokens.
            self.loss_type = "ForCausalLM"
            if vision_model is None:
                vision_model = AutoModel.from_config(config.vision_config, **encoder.model_options)
            if text_model is None:
                text_model = AutoModelForCausalLM.from_config(config.text_config)
            self.vision_model, self.text_model = vision_model, text_model
            self._insert_adapters()
            self.generation_config = default_generation_config(config)
            config.pad_token_id = self.generation_config.pad_token_id  # Seq2SeqTrainer reads it
            self.post_init()
            # Accelerate looks for classes by these names, and not all are in the model.
            classes = {type(module).__name__ for module in self.modules()}
            self._no_split_modules = classes.intersection(self._no_split_modules)  # type: ignore[has-type]
        # With this set, Transformers' Trainer does not report them as missing from a checkpoint.
        self._keys_to_ignore_on_save = self.state_dict().keys() - self.adapter_state_dict().keys()
        self.freeze_backbones()
        self.train(self.training)

    @classmethod
    def from_peft(
        cls,
        peft_model: Any,
        vision_model: PreTrainedModel | str | os.PathLike[str],
        *,
        adapter_name: str | None = None,
    ) -> ITuningForCaptioning:
        """Convert a PEFT model with an adapter of the method "ituning" to a captioner.

        The captioner is in evaluation mode and shares the PEFT model's frozen weights. `vision_model` is the
        encoder that the adapter was trained with; `adapter_name` selects an adapter if several are active.
        Requires the packages ituning_hf and peft. `ituning_hf.tuner.to_peft` is the reverse conversion.
        """
        try:
            from ituning_hf.tuner.conversion import captioner_from_peft
        except ImportError as error:
            raise ImportError("from_peft requires the packages ituning_hf and peft.") from error
        return captioner_from_peft(cls, peft_model, vision_model, adapter_name)

    def _insert_adapters(self) -> None:
        config = self.config
        family = decoder_family(config.text_config)
        self._no_split_modules = {family.adapted_layer_class.__name__}
        layers: Any = family.layers(self.text_model)
        for layer in layers:
            family.set_dropout(layer, False)
        for i in config.adapter_layers:
            adapter = ITuningAdapter(
                hidden_size=config.text_config.hidden_size,
                vision_hidden_size=config.vision_config.hidden_size,
                adapter_hidden_size=config.adapter_hidden_size,
                num_heads=config.adapter_num_heads,
                scale=config.adapter_scale,
                dropout=config.adapter_dropout,
                vision_feature_norm=config.vision_feature_norm,
            )
            layers[i] = family.adapted_layer_class(layers[i], adapter)

    def _decoder_layers(self) -> nn.ModuleList:
        return decoder_family(self.config.text_config).layers(self.text_model)

    def freeze_backbones(self) -> None:
        """Make only the adapters trainable."""
        self.requires_grad_(False)
        for adapter in self.adapters().values():
            adapter.requires_grad_(True)

    def adapters(self) -> dict[int, ITuningAdapter]:
        """Return the adapters by layer index."""
        layers: Any = self._decoder_layers()
        return {i: layers[i].adapter for i in self.config.adapter_layers}

    def adapter_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights that a checkpoint contains: those of the adapters, under their full names."""
        names = {name for name, _ in self.named_parameters() if ".adapter." in name}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def train(self, mode: bool = True) -> ITuningForCaptioning:
        """Set the adapters to training mode; the frozen backbones' dropout stays off.

        The decoder layers from the lowest adapter up get the flag, but their frozen modules do not: with
        gradient checkpointing, Transformers recomputes only layers in training mode.
        """
        super().train(mode)
        self.vision_model.eval()
        self.text_model.eval()
        for layer in self._decoder_layers()[min(self.config.adapter_layers) :]:
            layer.training = mode
        for adapter in self.adapters().values():
            adapter.train(mode)
        self.get_input_embeddings().training = mode  # for NEFTune, whose hook reads it
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.text_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's output layer."""
        return self.text_model.get_output_embeddings()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **kwargs: Any
    ) -> nn.Module:
        """Return the token embedding; raise `CaptionerError` if its size would change."""
        size = self.config.text_config.vocab_size
        if new_num_tokens not in (None, size) or (pad_to_multiple_of and size % pad_to_multiple_of):
            raise CaptionerError(
                f"The frozen language model has {size} tokens; embeddings of new ones would not be saved. "
                "For padding, use the EOS token, as ITuningProcessor does. For other tokens, resize and save "
                "the language model before you create a captioner with it."
            )
        return self.get_input_embeddings()

    def get_decoder(self) -> nn.Module:
        """Return the language model without its output layer."""
        return self.text_model.base_model

    def enable_input_require_grads(self) -> None:
        """Do nothing: no input below the lowest adapter needs a gradient."""

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute the decoder's activations in the backward pass instead of storing them."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "use_reentrant=True gives the lowest adapter no gradient: pass use_reentrant=False."
            )
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images of shape (num_images, 3, image_size, image_size), without recording gradients.

        Returns the visual memory, of shape (num_images, N, d_v): any class token first, the patches last.
        """
        family = encoder_family(self.config.vision_config)
        return family.encode(self.vision_model, pixel_values, self.config.vision_feature_layer)

    def project_visual(self, visual_features: torch.Tensor) -> VisualKeyValues:
        """Project the visual memory, (num_images, N, d_v), to the keys and values of each adapted layer.

        Returns keys and values, each of shape (num_images, h, N, r / h), by layer index.
        """
        return project_images(self.adapters(), visual_features)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        past_key_values: Any = None,
        position_ids: torch.Tensor | None = None,
        visual_key_values: VisualKeyValues | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""Compute logits, the loss, or both, for rows of text given their images.

        Args:
            pixel_values: Images, of shape (num_images, 3, image_size, image_size).
            input_ids: Text rows, of shape (num_images * k, T), image-major.
            attention_mask: 1 at tokens, 0 at padding, of shape (num_images * k, past tokens + T).
            labels: Target tokens, of the shape of `input_ids`; -100 is ignored. The model shifts them:
                position t is scored against label t + 1.
            visual_features: Replaces `pixel_values`: the output of `get_image_features`.
            past_key_values: The decoder's self-attention cache.
            position_ids: Shape (num_images * k, T). By default they start at each row's first token.
            visual_key_values: Replaces both: the output of `project_visual`.
            use_cache: Whether to return a cache. By default False in training mode and with labels.
            logits_to_keep: The number of last positions whose logits are returned; 0 means all.
            skip_logits: Whether to return only the loss, which takes less time and memory. By default True in
                training mode with labels, unless `logits_to_keep` is given.
            num_items_in_batch: The divisor of the summed loss, such as the number of label tokens in the
                optimizer step. By default the number in this batch.
            **kwargs: `label_smoothing` (0 by default); `label_weights`, of the shape of `labels`, factors of
                the labels' losses (1 by default); and arguments of the decoder, such as
                `output_hidden_states` and `output_attentions`.

        Returns:
            `loss` if there are labels, `logits` of shape (num_images * k, positions, vocab_size), and
            `past_key_values`, `hidden_states` and `attentions` if requested.

        Raises:
            ValueError: if inputs are inconsistent with each other or with the backbones.
            CaptionerError: if `num_items_in_batch` comes without labels, as with `Trainer`'s
                `label_smoothing_factor`, or `inputs_embeds` is passed.
        """
        input_ids = self._check_text(input_ids, attention_mask, labels, num_items_in_batch)
        # Not in the signature: Transformers' Trainer treats every parameter with "label" in its name as
        # labels, does not find these in the batch, and then evaluates without a loss.
        label_smoothing, label_weights = kwargs.pop("label_smoothing", 0.0), kwargs.pop("label_weights", None)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # PEFT passes None
        if "inputs_embeds" in kwargs:
            raise CaptionerError("inputs_embeds is not supported: pass input_ids.")
        if visual_key_values is None:
            visual_key_values = self.project_visual(self._visual_memory(pixel_values, visual_features))
        elif pixel_values is not None or visual_features is not None:
            raise ValueError("visual_key_values replaces pixel_values and visual_features: pass one of them.")
        num_images = next(iter(visual_key_values.values()))[0].shape[0]
        check_rows(input_ids.shape[0], num_images)
        if self.training and torch.is_grad_enabled():  # recomputation would write the cache a second time
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                raise ValueError("A cache cannot be continued in training mode: call model.eval() first.")
            use_cache, past_key_values = False, None
        elif use_cache is None:
            use_cache = False if labels is not None else self.config.text_config.use_cache

        if skip_logits is None:  # as in Liger-Kernel
            skip_logits = self.training and isinstance(logits_to_keep, int) and logits_to_keep == 0
        needs_logits = labels is None or not skip_logits
        keeps_rows = needs_logits or use_cache or past_key_values is not None or position_ids is not None
        targets, weights, packed = None, None, None
        if labels is not None:
            targets = next_tokens(labels)
            weights = None if label_weights is None else next_weights(label_weights)
            if not (keeps_rows or kwargs or self._needs_rows()):
                width = self.config.text_config.hidden_size
                packed = pack_rows(input_ids, attention_mask, targets, num_images, width, weights)
        if packed is not None:
            input_ids, position_ids, targets, weights = packed
            attention_mask = None
        elif position_ids is None and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            position_ids = positions_from_mask(attention_mask, input_ids.shape[1])
        # Given ids instead, Transformers may warn about padding tokens without a mask.
        inputs_embeds = self.get_input_embeddings()(input_ids)  # (rows, T, d)
        outputs = self.text_model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=None if position_ids is None else position_ids.to(inputs_embeds.device),
            past_key_values=past_key_values,
            use_cache=use_cache,
            visual_key_values=visual_key_values,
            **kwargs,
        )
        lm_head = self.text_model.get_output_embeddings()
        hidden_states, loss, logits = outputs.last_hidden_state, None, None  # (rows, T, d)
        if targets is not None:
            loss = caption_loss(lm_head, hidden_states, targets, num_items_in_batch, label_smoothing, weights)
        if needs_logits:
            logits = compute_logits(lm_head, slice_logits_to_keep(hidden_states, logits_to_keep))
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _needs_rows(self) -> bool:
        """Return whether the decoder, an output or a hook expects the rows as they were given, not packed."""
        decoder, hooks = self.config.text_config, self.get_input_embeddings()._forward_hooks  # NEFTune's hook
        can_pack = decoder_family(decoder).separates_packed_rows
        return not can_pack or decoder.output_hidden_states or decoder.output_attentions or bool(hooks)

    def _check_text(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        num_items_in_batch: Any,
    ) -> torch.Tensor:
        """Return `input_ids`, after checking them against the mask, the labels and the language model."""
        if labels is None and num_items_in_batch is not None:
            raise CaptionerError(
                "Got num_items_in_batch without labels: Trainer computes the loss itself. If this is due to "
                "label_smoothing_factor, set it to 0, because Trainer would not shift the targets, and let "
                "the data collator set batch['label_smoothing'] = 0.1. If it is due to a compute_loss_func, "
                "which must shift the targets, set trainer.model_accepts_loss_kwargs = False."
            )
        if input_ids is None:
            raise ValueError("input_ids is None. To caption an image, call generate(pixel_values=...).")
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (rows, tokens).")
        rows, length = input_ids.shape
        # `generate` passes a dictionary of masks if the layers need several.
        if isinstance(attention_mask, torch.Tensor) and attention_mask.shape[0] != rows:
            raise ValueError(f"attention_mask has {attention_mask.shape[0]} rows, expected {rows}.")
        if length > (positions := self.config.text_config.max_position_embeddings):
            raise ValueError(f"input_ids has rows of {length} tokens, expected at most {positions}.")
        # Not on a GPU: reading the ids would make the CPU wait for it.
        is_readable = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_readable and (input_ids >= (size := self.config.text_config.vocab_size)).any():
            raise ValueError(
                f"input_ids contains {int(input_ids.max())}, expected at most {size - 1}: the language model "
                "has no embeddings of tokens that were added to the tokenizer."
            )
        if labels is not None and labels.shape != input_ids.shape:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected that of input_ids, {(rows, length)}: the "
                "model shifts the labels itself."
            )
        return input_ids

    def _visual_memory(
        self, pixel_values: torch.Tensor | None, visual_features: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the visual memory, of shape (num_images, N, d_v), from either input."""
        if pixel_values is not None and visual_features is None:
            return self.get_image_features(pixel_values)
        if visual_features is None or pixel_values is not None:
            given = "neither" if pixel_values is None else "both"
            raise ValueError(
                f"Got {given} of pixel_values and visual_features: pass one of them. In a pipeline, pass a "
                "text too, or the path of an image is taken for one: pipe(images='dog.jpg', text='')."
            )
        check_visual_features(visual_features, self.config.vision_config.hidden_size)
        return visual_features

    @torch.no_grad()
    def visual_attention(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the attention weights of each caption token over the image tokens.

        Args:
            input_ids: Captions, of shape (num_images * k, T), image-major.
            pixel_values: Images, of shape (num_images, 3, image_size, image_size).
            visual_features: Replaces `pixel_values`; shape (num_images, N, d_v).
            attention_mask: 1 at tokens, 0 at padding, of the shape of `input_ids`.

        Returns:
            Shape (num_images * k, adapted layers, h, T, N): the lowest layer first, the patches last.
        """
        attentions: dict[int, torch.Tensor] = {}
        self(
            pixel_values=pixel_values,
            visual_features=visual_features,
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            logits_to_keep=1,
            store_attention=attentions.__setitem__,
        )
        device = input_ids.device
        return torch.stack([attentions[i].to(device) for i in self.config.adapter_layers], dim=1)


ITuningForCaptioning.register_for_auto_class("AutoModel")

__all__ = ["ITuningForCaptioning"]
