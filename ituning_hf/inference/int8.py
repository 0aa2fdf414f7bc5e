"""Quantise the frozen language model's weights to int8, for CPUs.

A weight matrix W (out x in) is stored as integers Q with a scale s for each row, W ~ s[:, None] * Q. Each row
of the input x gets a scale a at run time, x ~ a[:, None] * P. The product is then one of integers:

    y = (P @ Q.T) * a[:, None] * s + b

CPUs with VNNI instructions are fastest at it. The code calls `torch._int_mm`, as torchao and bitsandbytes do.
What they do in addition costs as much time as int8 saves where a step has ten rows, and bitsandbytes does not
quantise the largest matrix, the output layer that is tied to the embedding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from ..utils.errors import UserError

_LARGEST = 127
_TINY = 1e-30  # replaces a largest value of zero


@cache
def largest_weight() -> int:
    """Return the largest integer weight with which this CPU's integer products are exact.

    Without VNNI, oneDNN shifts the inputs to 0...255 and adds pairs of products in 16 bits: 2 * 255 * 127
    saturates and 2 * 255 * 64 does not. A product of the largest values shows whether this CPU does so.
    """
    inputs = torch.full((16, 64), _LARGEST, dtype=torch.int8)
    weights = torch.stack([inputs, -inputs]).view(32, 64)
    exact = torch.equal(torch._int_mm(inputs, weights.t()).long(), inputs.long() @ weights.long().t())
    return _LARGEST if exact else 64


class Int8Linear(nn.Module):
    """A frozen linear layer with int8 weights. Gradients reach only its input.

    Args:
        weight: Shape (out_features, in_features).
        bias: Shape (out_features,), kept in its precision; None for a layer without bias.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=_TINY) / largest_weight()
        self.out_features, self.in_features = weight.shape
        self.integers: torch.Tensor
        self.scale: torch.Tensor
        # Not named `weight`, because Transformers would tie the output layer's weight to the embedding again.
        self.register_buffer("integers", (weight / scale[:, None]).round().to(torch.int8).contiguous())
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the weights and add the bias.

        Args:
            x: Shape (..., in_features).

        Returns:
            Shape (..., out_features), in the dtype of `x`.
        """
        rows = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and x.requires_grad:
            y = _Int8Product.apply(rows, self.integers, self.scale, self.bias)
        else:
            y = _int8_product(rows, self.integers, self.scale, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _int8_product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Quantise the rows of x, multiply, and scale back."""
    # `vector_norm` takes six times as long as `abs` and `amax`.
    step = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=_TINY).div_(_LARGEST)
    y = torch._int_mm((x / step).round_().to(torch.int8), weight.t()) * step
    y = y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale)
    return y.to(x.dtype)


class _Int8Product(torch.autograd.Function):
    """The gradient is that of the product with the quantised weights; rounding x passes it unchanged."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, scale: Any, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return _int8_product(x, weight, scale, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight, scale = ctx.saved_tensors
        return ((grad * scale) @ weight.float()).to(grad.dtype), None, None, None


def quantize_frozen_weights(model: Any) -> None:
    """Quantise the frozen language model's weight matrices to int8, in place.

    Adapters, embeddings, norms, biases and the vision encoder keep their precision. Saving the captioner
    writes the same files as before; its language model can no longer be saved on its own. To undo this, load
    the captioner again.

    Args:
        model: A captioner on the CPU.

    Raises:
        UserError: The language model is on another device.
    """
    require_cpu(model.text_model.get_input_embeddings().weight.device)
    for name, layer in list(model.text_model.named_modules()):
        if ".adapter." in name:
            continue
        if isinstance(layer, (nn.Linear, Conv1D)) and layer.weight.is_floating_point():
            # Conv1D stores its weight transposed.
            weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
            model.text_model.set_submodule(name, Int8Linear(weight, layer.bias))
        elif type(layer) is NewGELUActivation:  # eight operations; its last bits do not matter here
            model.text_model.set_submodule(name, nn.GELU(approximate="tanh"))


def require_cpu(device: torch.device) -> None:
    """Refuse to quantise to int8 on another device than the CPU.

    Raises:
        UserError: The device is not the CPU.
    """
    if device.type != "cpu":
        raise UserError(
            f"int8 is for the CPU, and this is {str(device)!r}: use the CPU, or bfloat16 on this device (in "
            "Python also a quantization_config of bitsandbytes)."
        )
