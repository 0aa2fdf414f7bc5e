"""The frozen language model's weights in int8, for CPUs.

Each weight matrix W (out x in) is kept as integers Q with a scale s for each row, W ~ s[:, None] * Q. Each
row of the input x gets a scale a when it comes, x ~ a[:, None] * P, so that the product is of integers:

    y = (P @ Q.T) * a[:, None] * s + b

That is what a CPU with VNNI instructions is quickest at; without them it is slower, and weights have seven
bits, since products are added in 16 there. It is spelt out here over `torch._int_mm`, by which
torchao and bitsandbytes compute it too: what they do around the product costs as much as it saves where a
step has ten rows, and the largest matrix, the output layer tied to the embedding, bitsandbytes leaves as is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

_LARGEST = 127
_TINY = 1e-30  # in place of a largest value of zero


@cache
def largest_weight() -> int:
    """Return the largest integer for a weight that this CPU multiplies right.

    Without VNNI oneDNN adds products by twos in 16 bits, with inputs shifted to 0...255: 2 * 255 * 127
    saturates there, and 2 * 255 * 64 does not.
    """
    full = torch.full((16, 64), _LARGEST, dtype=torch.int8)
    is_exact = bool((torch._int_mm(full, full.t()) == 64 * _LARGEST**2).all())
    return _LARGEST if is_exact else 64


class Int8Linear(nn.Module):
    """A frozen linear layer with weights in int8. Gradients reach its input, and nothing else.

    Args:
        weight: Shape (out_features, in_features).
        bias: Shape (out_features,), kept in its precision; None for a layer without.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=_TINY) / largest_weight()
        self.out_features, self.in_features = weight.shape
        self.integers: torch.Tensor
        self.scale: torch.Tensor
        # Not named `weight`: Transformers would tie that of the output layer to the embedding again.
        self.register_buffer("integers", (weight / scale[:, None]).round().to(torch.int8).contiguous())
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and add the bias.

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
        """Give the sizes, for printing."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _int8_product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Quantise the rows of x, multiply, and scale back."""
    # Not `vector_norm`, which takes six times as long; the least is for a row of zeros.
    step = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=_TINY).div_(_LARGEST)
    y = torch._int_mm((x / step).round_().to(torch.int8), weight.t()) * step
    y = y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale)
    return y.to(x.dtype)


class _Int8Product(torch.autograd.Function):
    """The gradient is that of the product with the weights as they are quantised; rounding x passes it on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, scale: Any, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return _int8_product(x, weight, scale, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight, scale = ctx.saved_tensors
        return ((grad * scale) @ weight.float()).to(grad.dtype), None, None, None


def quantize_frozen_weights(model: Any) -> None:
    """Hold the frozen language model's weight matrices in int8, in place; adapters keep their precision.

    The embeddings, norms and biases stay as they are, and so does the vision encoder. Saving the captioner
    writes what it wrote before; its language model can no longer be saved by itself. It is not undone: load
    the captioner again.

    Args:
        model: A captioner on the CPU.

    Raises:
        ValueError: if the language model is elsewhere.
    """
    require_cpu(model.text_model.get_input_embeddings().weight.device)
    for name, layer in list(model.text_model.named_modules()):
        if ".adapter." in name:
            continue
        if isinstance(layer, (nn.Linear, Conv1D)) and layer.weight.is_floating_point():
            # Conv1D keeps its weight the other way round.
            weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
            model.text_model.set_submodule(name, Int8Linear(weight, layer.bias))
        elif type(layer) is NewGELUActivation:  # eight operations; here its last bits are no matter
            model.text_model.set_submodule(name, nn.GELU(approximate="tanh"))


def require_cpu(device: torch.device) -> None:
    """Refuse a device that int8 is not for.

    Raises:
        ValueError: for any but the CPU.
    """
    if device.type != "cpu":
        raise ValueError(
            f"int8 is for the CPU, and this is {str(device)!r}: take the CPU, or there bfloat16 instead (in "
            "Python also a quantization_config of bitsandbytes)."
        )


__all__ = ["Int8Linear", "quantize_frozen_weights", "require_cpu"]
