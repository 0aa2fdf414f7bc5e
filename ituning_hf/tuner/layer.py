"""A decoder layer with any number of named I-Tuning adapters beside its feed-forward network."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from ..captioner.adapter_ituning import ITuningAdapter
from ..captioner.decoders_ituning import GPT2Family, copy_block_state
from .config import ITuningTunerConfig

FAMILY = GPT2Family()
ADAPTERS = "ituning_adapter"  # where a layer keeps them: part of every key on disk
# For each layer, by index: each of its active adapters' keys and values of the images, by name.
NamedKeyValues = dict[int, dict[str, tuple[torch.Tensor, torch.Tensor]]]


class ITuningLayer(GPT2Block, BaseTunerLayer):
    """A frozen GPT-2 block and its adapters; the outputs of those that are active are added up.

    It is a `GPT2Block`, as Transformers looks for that class to capture hidden states and to checkpoint
    activations. Nothing of a request is kept in it: the image arrives with the call.

    Args:
        base_layer: The frozen block.
        adapter_name: The first adapter's name.
        config: Its shape.
    """

    adapter_layer_names = (ADAPTERS,)

    def __init__(self, base_layer: GPT2Block, adapter_name: str, config: ITuningTunerConfig) -> None:
        # Not GPT2Block's own __init__, which would build the frozen modules a second time.
        GradientCheckpointingLayer.__init__(self)
        self.base_layer = base_layer
        self.ituning_adapter = nn.ModuleDict().train(base_layer.training)
        copy_block_state(base_layer, self)
        self.update_layer(adapter_name, config)

    @property
    def layer_idx(self) -> int:
        """The layer's index, counted from 0 at the bottom."""
        return self.base_layer.attn.layer_idx

    def update_layer(self, adapter_name: str, config: ITuningTunerConfig) -> None:
        """Add an adapter; the tuner then says which are active and which train."""
        adapter = ITuningAdapter(
            hidden_size=self.base_layer.ln_2.normalized_shape[0],
            vision_hidden_size=config.vision_hidden_size,  # type: ignore[arg-type]
            adapter_hidden_size=config.adapter_hidden_size,  # type: ignore[arg-type]
            num_heads=config.adapter_num_heads,  # type: ignore[arg-type]
            scale=config.adapter_scale,
            dropout=config.adapter_dropout,
        )
        if not adapter.q_proj.weight.is_meta:  # low_cpu_mem_usage: the checkpoint brings the tensors
            adapter.to(FAMILY.compute_device(self.base_layer))
        # The base's precision, which PEFT raises to fp32 unless autocast_adapter_dtype says otherwise.
        adapter.to(self.base_layer.ln_2.weight.dtype)
        self.ituning_adapter[adapter_name] = adapter.train(self.training)

    def active(self) -> dict[str, ITuningAdapter]:
        """Return the adapters that take part, by name; none while adapters are disabled."""
        if self.disable_adapters:
            return {}
        adapters: Any = self.ituning_adapter
        return {name: adapters[name] for name in self.active_adapters if name in adapters}

    def _get_base_layer_device_and_dtype(self, base_layer: GPT2Block) -> tuple[Any, None]:
        # PEFT asks when a checkpoint's tensors took the place of meta ones: they keep their precision.
        return FAMILY.compute_device(base_layer), None

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        use_cache: bool | None = False,
        visual_key_values: NamedKeyValues | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the block on hidden states of shape (rows, T, d), rows image-major.

        Args:
            hidden_states: The layer's input, of shape (rows, T, d).
            past_key_values: The self-attention cache.
            attention_mask: The self-attention mask.
            encoder_hidden_states: GPT-2's own cross-attention input, which `GPT2Model` passes by position;
                the image was taken out of it on the way in.
            encoder_attention_mask: Its mask; not used.
            use_cache: Whether the cache is written.
            visual_key_values: The images' keys and values, for each layer and active adapter of shape
                (num_images, h, N, r / h). Without them the block is the frozen one.
            **kwargs: Handed on to the self-attention.

        Returns:
            The layer's output, of shape (rows, T, d).
        """
        x, output = FAMILY.run_layer(
            self.base_layer,
            hidden_states,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        eager = FAMILY.uses_eager_attention(self.base_layer)
        for name, (key, value) in (visual_key_values or {}).get(self.layer_idx, {}).items():
            output = output + self.ituning_adapter[name](x, key, value, eager=eager)
        return output


__all__ = ["ADAPTERS", "ITuningLayer", "NamedKeyValues"]
