"""GPT-2's adapted layer. Another decoder family is another file like this one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.utils import is_accelerate_available

from .adapter_ituning import ITuningAdapter

VisualKeyValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class ITuningGPT2Block(GPT2Block):
    """A GPT-2 block with an adapter in parallel to its feed-forward network.

    It takes over the modules of a block that was built and loaded already, under their own names, so
    that state dicts, hidden-state capture, gradient checkpointing and quantised weights stay as they are.

    The image's keys and values reach it *in-band*, as a keyword argument that `GPT2Model.forward` hands on
    to every block: no module holds a request's state, so threads may share one model.

    Args:
        block: The frozen block.
        adapter: The adapter to put beside its feed-forward network.
    """

    def __init__(self, block: GPT2Block, adapter: ITuningAdapter) -> None:
        # Not GPT2Block's own __init__, which would build the frozen modules a second time.
        GradientCheckpointingLayer.__init__(self)
        for name, module in block.named_children():
            self.add_module(name, module)
        device = compute_device(block)
        # From the meta device: a checkpoint's tensors are about to fill it.
        adapter = adapter.to_empty(device=device) if adapter.q_proj.weight.is_meta else adapter.to(device)
        self.adapter = adapter.train(block.training)
        take_place_of(block, self)

    @property
    def layer_idx(self) -> int:
        """The layer's index, counted from 0 at the bottom."""
        return self.attn.layer_idx

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        use_cache: bool | None = False,
        visual_key_values: VisualKeyValues | None = None,
        visual_attentions: dict[int, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the block on hidden states of shape (rows, T, d), rows image-major.

        Args:
            hidden_states: The layer's input, of shape (rows, T, d).
            past_key_values: The self-attention cache.
            attention_mask: The self-attention mask.
            encoder_hidden_states: GPT-2's own cross-attention input; not used, and in this place because
                `GPT2Model` passes it by position.
            encoder_attention_mask: Its mask; not used.
            use_cache: Whether the cache is written.
            visual_key_values: For each adapted layer, the keys and values of the images, each of shape
                (num_images, h, N, r / h). Without them the block is the frozen one.
            visual_attentions: Filled, when given, with this layer's attention over the image,
                of shape (rows, h, T, N).
            **kwargs: Handed on to the self-attention.

        Returns:
            The layer's output, of shape (rows, T, d).
        """
        x, output = run_frozen_block(
            self,
            hidden_states,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        if visual_key_values is None:
            return output
        key, value = visual_key_values[self.layer_idx]
        if visual_attentions is not None:
            visual_attentions[self.layer_idx] = self.adapter.attention_weights(x, key)
        return output + self.adapter(x, key, value, eager=uses_eager_attention(self))


def run_frozen_block(
    block: GPT2Block, hidden_states: torch.Tensor, **attention_kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a GPT-2 block as it is, and show what its feed-forward network reads.

    Args:
        block: The block.
        hidden_states: Its input, of shape (rows, T, d).
        **attention_kwargs: For its self-attention.

    Returns:
        X, the layer-normed input of the feed-forward network, and the block's output, each of shape
        (rows, T, d). What is in parallel to that network is added to the output.
    """
    attn_output, _ = block.attn(block.ln_1(hidden_states), **attention_kwargs)
    residual = attn_output + hidden_states
    x = block.ln_2(residual)
    return x, residual + _feed_forward(block, x)


def _feed_forward(block: GPT2Block, x: torch.Tensor) -> torch.Tensor:
    """Run a block's feed-forward network, in training with its GELU as one kernel.

    GPT-2 spells the function out in eight operations, which keep four tensors of the widest size for the
    backward pass. One kernel keeps one, and differs by rounding; so evaluation stays with the eight, and
    gives what the frozen model gives to the last bit.
    """
    mlp = block.mlp
    is_watched = mlp._forward_hooks or mlp._forward_pre_hooks or "forward" in vars(mlp)
    if is_watched or not (block.training and isinstance(mlp.act, NewGELUActivation)):
        return mlp(x)
    return mlp.dropout(mlp.c_proj(F.gelu(mlp.c_fc(x), approximate="tanh")))


def uses_eager_attention(block: GPT2Block) -> bool:
    """Tell whether the user asked for attention that is spelt out instead of fused."""
    return block.attn.config._attn_implementation == "eager"


def decoder_blocks(text_model: Any) -> nn.ModuleList:
    """Return the layers of a `GPT2LMHeadModel`, bottom first."""
    return text_model.transformer.h


def frozen_block(adapted: ITuningGPT2Block) -> GPT2Block:
    """Return a plain GPT-2 block over the frozen modules of an adapted one."""
    block = GPT2Block.__new__(GPT2Block)
    GradientCheckpointingLayer.__init__(block)
    for name, module in adapted.named_children():
        if name != "adapter":
            block.add_module(name, module)
    take_place_of(adapted, block)
    return block


def bare_copy(text_model: Any) -> Any:
    """Copy a language model without adapters of ours; the parameters are shared, the model stays as it is."""
    copied = copy_sharing_weights(text_model)
    blocks: Any = decoder_blocks(copied)
    for i, block in enumerate(blocks):
        if hasattr(block, "adapter"):  # of this class, or of the one in another captioner's repository
            blocks[i] = frozen_block(block)
    return copied


def copy_sharing_weights(model: nn.Module) -> Any:
    """Copy a model's modules, and share its parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def compute_device(block: GPT2Block) -> torch.device | str | int:
    """Return where a block computes, which for an offloaded one is not where its weights are."""
    device = getattr(getattr(block, "_hf_hook", None), "execution_device", None)
    # Of its weights the norm's, which no quantisation touches.
    return block.ln_2.weight.device if device is None else device


def take_place_of(block: GPT2Block, successor: GPT2Block) -> None:
    """Carry over what others hung on a block that another one now stands in for.

    That is its mode, gradient checkpointing, what Transformers registered to capture hidden states, and the
    hook of a multi-device map, which moves inputs to where the block computes.
    """
    successor.training = block.training
    if block.gradient_checkpointing:
        successor.gradient_checkpointing = True
        successor._gradient_checkpointing_func = block._gradient_checkpointing_func
    successor._forward_hooks.update(block._forward_hooks)
    hook = getattr(block, "_hf_hook", None)
    if hook is not None and is_accelerate_available():
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(successor, hook)


__all__ = [
    "ITuningGPT2Block",
    "VisualKeyValues",
    "bare_copy",
    "compute_device",
    "copy_sharing_weights",
    "decoder_blocks",
    "frozen_block",
    "run_frozen_block",
    "take_place_of",
    "uses_eager_attention",
]
