"""A reference implementation of the captioner in float64, from the formulas and a state dict.

It uses no modules and no fused kernels, and computes one image, one row of text and one head at a time,
without padding. Gradients are computed by autograd. It reads only numbers from the configuration; the names
of weights are those on disk.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

Weights = Mapping[str, torch.Tensor]
IGNORE_INDEX = -100


def standardize(x: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """(x - mean) / sqrt(variance + epsilon)."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + epsilon)


def normalize(x: torch.Tensor, weights: Weights, name: str, epsilon: float) -> torch.Tensor:
    """Standardized, times a weight, plus a bias."""
    return standardize(x, epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """PyTorch's: the weight is (out, in)."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def conv1d(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """GPT-2's: the weight is (in, out)."""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(scores: torch.Tensor) -> torch.Tensor:
    exponentials = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return exponentials / exponentials.sum(-1, keepdim=True)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, causal: bool = False
) -> torch.Tensor:
    """softmax(Q K^T / sqrt(width of a head)) V, for each head and each query."""
    width = query.shape[1] // heads
    rows = []
    for t in range(len(query)):
        seen = t + 1 if causal else len(key)
        parts = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            scores = key[:seen, own] @ query[t, own] / math.sqrt(width)
            parts.append(softmax(scores) @ value[:seen, own])
        rows.append(torch.cat(parts))
    return torch.stack(rows)


class Reference:
    """The computation of a captioner.

    Args:
        config: An `ITuningConfig`; numbers are read from it.
        weights: The captioner's state dict. It is cast to float64, and the adapters' tensors get gradients.
    """

    def __init__(self, config: Any, weights: Weights) -> None:
        self.config = config
        self.weights = {
            name: tensor.detach().double().requires_grad_(".adapter." in name)
            for name, tensor in weights.items()
        }

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """CLIP's hidden state of `vision_feature_layer`, (N, d_v), for pixels (channels, size, size)."""
        config, w, name = self.config.vision_config, self.weights, "vision_model."
        patches, side = [], config.patch_size
        for row, column in itertools.product(range(config.image_size // side), repeat=2):
            square = pixels.double()[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            kernels = w[f"{name}embeddings.patch_embedding.weight"]  # (d_v, channels, side, side)
            patches.append((kernels * square).sum((1, 2, 3)))
        x = torch.stack([w[f"{name}embeddings.class_embedding"], *patches])
        x = x + w[f"{name}embeddings.position_embedding.weight"]
        x = normalize(x, w, f"{name}pre_layrnorm", config.layer_norm_eps)
        states = [x]
        for i in range(config.num_hidden_layers):
            layer = f"{name}encoder.layers.{i}."
            normed = normalize(x, w, f"{layer}layer_norm1", config.layer_norm_eps)
            query, key, value = (linear(normed, w, f"{layer}self_attn.{part}_proj") for part in "qkv")
            context = attend(query, key, value, config.num_attention_heads)
            x = x + linear(context, w, f"{layer}self_attn.out_proj")
            wide = linear(normalize(x, w, f"{layer}layer_norm2", config.layer_norm_eps), w, f"{layer}mlp.fc1")
            quick_gelu = wide / (1 + torch.exp(-1.702 * wide))
            x = x + linear(quick_gelu, w, f"{layer}mlp.fc2")
            states.append(x)
        return states[self.config.vision_feature_layer].detach()

    def adapter(self, layer: int, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """dX = lambda ((A V) W_o + b_o), A = softmax(Q K^T / sqrt(r / h)) for each head."""
        name = f"text_model.transformer.h.{layer}.adapter."
        if self.config.vision_feature_norm:
            memory = standardize(memory)
        query = linear(x, self.weights, f"{name}q_proj")
        key = linear(memory, self.weights, f"{name}k_proj")
        value = linear(memory, self.weights, f"{name}v_proj")
        context = attend(query, key, value, self.config.adapter_num_heads)
        return self.config.adapter_scale * linear(context, self.weights, f"{name}out_proj")

    def feed_forward_input(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A GPT-2 layer's hidden states after its self-attention, and layer-normed: X."""
        config, w, name = self.config.text_config, self.weights, f"text_model.transformer.h.{layer}."
        normed = normalize(x, w, f"{name}ln_1", config.layer_norm_epsilon)
        query, key, value = conv1d(normed, w, f"{name}attn.c_attn").chunk(3, dim=1)
        x = x + conv1d(attend(query, key, value, config.n_head, causal=True), w, f"{name}attn.c_proj")
        return x, normalize(x, w, f"{name}ln_2", config.layer_norm_epsilon)

    def logits(self, ids: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """GPT-2's logits, (T, vocabulary), for one row of tokens without padding."""
        config, w, name = self.config.text_config, self.weights, "text_model.transformer."
        x = w[f"{name}wte.weight"][ids] + w[f"{name}wpe.weight"][: len(ids)]
        for i in range(config.n_layer):
            layer = f"{name}h.{i}."
            x, normed = self.feed_forward_input(i, x)
            wide = conv1d(normed, w, f"{layer}mlp.c_fc")
            gelu = 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
            update = conv1d(gelu, w, f"{layer}mlp.c_proj")
            if i in self.config.adapter_layers:
                update = update + self.adapter(i, normed, memory)
            x = x + update
        return normalize(x, w, f"{name}ln_f", config.layer_norm_epsilon) @ w[f"{name}wte.weight"].T

    def loss(
        self,
        memories: list[torch.Tensor],
        rows: list[tuple[torch.Tensor, torch.Tensor]],
        num_items_in_batch: int | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """The mean cross-entropy of the label tokens; row i belongs to image i // k.

        With label smoothing s, the target has probability 1 - s, and s is spread over the whole vocabulary.

        Args:
            memories: The visual memory of each image, (N, d_v).
            rows: Tokens and labels, without padding.
            num_items_in_batch: The divisor of the summed loss; by default the number of label tokens.
            label_smoothing: s.
        """
        k, count = len(rows) // len(memories), 0
        total = torch.zeros((), dtype=torch.float64, requires_grad=True)  # has a gradient without labels, too
        for i, (ids, labels) in enumerate(rows):
            logits = self.logits(ids, memories[i // k])
            for t in range(len(ids) - 1):
                if labels[t + 1] != IGNORE_INDEX:
                    log_p = torch.log(softmax(logits[t]))
                    own = (1 - label_smoothing) * log_p[labels[t + 1]]
                    total = total - own - label_smoothing * log_p.mean()
                    count += 1
        return total / (num_items_in_batch or max(count, 1))

    def greedy(self, memory: torch.Tensor, new_tokens: int) -> list[int]:
        """The BOS token, then the most likely token at each step, up to the EOS token."""
        config = self.config.text_config
        ids = [config.bos_token_id]
        while len(ids) <= new_tokens:
            ids.append(int(self.logits(torch.tensor(ids), memory)[-1].argmax()))
            if ids[-1] == config.eos_token_id:
                break
        return ids

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each adapter tensor's gradient, by its name."""
        own = {name: tensor for name, tensor in self.weights.items() if tensor.requires_grad}
        found = torch.autograd.grad(loss, list(own.values()), materialize_grads=True)
        return dict(zip(own, found, strict=True))
