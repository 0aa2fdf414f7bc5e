"""The modules of a language model with adapters, and the methods that pass images to them."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..captioner.adapter_ituning import ITuningAdapter, check_rows, check_visual_features, project_images
from ..captioner.decoder_layers_ituning import DecoderFamily, copy_block_state
from ..captioner.decoders_ituning import DECODER_FAMILIES
from ..captioner.loss_ituning import pad_lm_head_rows
from ..utils.errors import UserError

ADAPTERS = "ituning_adapter"  # the attribute of adapted layers, which is part of every key on disk
# The keys and values of the images, by layer index and adapter name.
NamedKeyValues = dict[int, dict[str, tuple[torch.Tensor, torch.Tensor]]]
IMAGE_ARGUMENTS = ("visual_features", "visual_key_values")  # of `forward` and `generate`


class ITuningLayer(nn.Module, BaseTunerLayer):
    """A frozen decoder layer with adapters; the outputs of the active adapters are summed.

    Each family has a subclass that also inherits from the family's own layer class: Transformers recognizes
    layers by class to record hidden states and to checkpoint activations. The images' keys and values are
    arguments of each call, not module state.

    Args:
        base_layer: The frozen layer.
        adapter_name: The name of the first adapter.
        config: The [`ITuningTunerConfig`] of the first adapter.
    """

    adapter_layer_names = (ADAPTERS,)
    family: DecoderFamily

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any) -> None:
        nn.Module.__init__(self)  # that of the layer class would build the frozen modules again
        self.base_layer = base_layer
        self.ituning_adapter = nn.ModuleDict().train(base_layer.training)
        copy_block_state(base_layer, self)
        self.update_layer(adapter_name, config)

    @property
    def layer_idx(self) -> int:
        """The layer's index, counted from 0 at the bottom."""
        return self.family.layer_index(self.base_layer)

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter, or replace the one of that name."""
        norm = self.family.ffn_norm(self.base_layer)
        adapter = ITuningAdapter(
            hidden_size=norm.weight.shape[0],
            vision_hidden_size=config.vision_hidden_size,
            adapter_hidden_size=config.adapter_hidden_size,
            num_heads=config.adapter_num_heads,
            scale=config.adapter_scale,
            dropout=config.adapter_dropout,
            vision_feature_norm=config.vision_feature_norm,
        )
        if not adapter.q_proj.weight.is_meta:  # with low_cpu_mem_usage, a checkpoint fills the tensors
            adapter.to(self.family.compute_device(self.base_layer))
        # PEFT casts the adapter to fp32 unless autocast_adapter_dtype is False.
        self.ituning_adapter[adapter_name] = adapter.to(norm.weight.dtype).train(self.training)

    def active(self) -> dict[str, ITuningAdapter]:
        """Return the active adapters by name; none if adapters are disabled."""
        if self.disable_adapters:
            return {}
        adapters: Any = self.ituning_adapter
        return {name: adapters[name] for name in self.active_adapters if name in adapters}

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, None]:
        # Called by PEFT when a checkpoint's tensors replace meta tensors; None keeps their dtype.
        return self.family.compute_device(base_layer), None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        visual_key_values: NamedKeyValues | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute the layer's output for an input of shape (rows, T, d), with image-major rows.

        Args:
            hidden_states: The layer's input.
            *args: Positional arguments of the frozen layer.
            visual_key_values: The keys and values of each layer and active adapter, of shape
                (num_images, h, N, r / h). Without them, only the frozen layer is computed.
            **kwargs: Keyword arguments of the frozen layer.
        """
        x, output = self.family.run_layer(self.base_layer, hidden_states, *args, **kwargs)
        eager = self.family.uses_eager_attention(self.base_layer)
        for name, (key, value) in (visual_key_values or {}).get(self.layer_idx, {}).items():
            output = output + self.ituning_adapter[name](x, key, value, eager=eager)
        return output


# Set as module attributes, so that pickle finds the classes.
LAYER_CLASSES: dict[type[nn.Module], type[ITuningLayer]] = {}
for _family in DECODER_FAMILIES.values():
    _name = f"Tuned{_family.layer_class.__name__}"
    globals()[_name] = LAYER_CLASSES[_family.layer_class] = type(
        _name, (ITuningLayer, _family.layer_class), {"family": _family, "__module__": __name__}
    )


def _is_decoder(module: nn.Module) -> bool:
    lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
    return any(isinstance(layer, tuple(LAYER_CLASSES)) for layers in lists for layer in layers)


def find_decoders(model: nn.Module) -> list[Any]:
    """Return the modules with a list of decoder layers in a model, or the model itself if it is one."""
    return [module for module in model.modules() if _is_decoder(module)]


def active_adapters(model: nn.Module) -> dict[int, dict[str, ITuningAdapter]]:
    """Return the active adapters of a model, by layer index and name."""
    # Two loops, because an assignment expression would cause a graph break in torch.compile.
    layers = [module for module in model.modules() if isinstance(module, ITuningLayer)]
    adapters = {layer.layer_idx: layer.active() for layer in layers}
    return {index: active for index, active in adapters.items() if active}


def project_image(model: nn.Module, image: torch.Tensor | None) -> NamedKeyValues:
    """Project images, (num_images, N, d_v), to the keys and values of every active adapter."""
    adapters = active_adapters(model)
    if not adapters:
        return {}
    if image is None:
        raise UserError(
            "visual_features is None: pass image features of shape (num_images, tokens, "
            "vision_hidden_size), or use model.disable_adapter() to run the language model alone."
        )
    flat = {(index, name): adapter for index, active in adapters.items() for name, adapter in active.items()}
    for adapter in flat.values():
        check_visual_features(image, adapter.k_proj.in_features)
    projected = project_images(flat, image)
    return {index: {name: projected[index, name] for name in active} for index, active in adapters.items()}


def given_text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the text input of a call: token ids, (rows, T), or embeddings, (rows, T, d)."""
    for tensor in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")):
        if tensor is not None:
            return tensor
    return None


def take_image(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Forward pre-hook of a decoder: replace `visual_features` with keys and values, which layers take."""
    image, key_values = (kwargs.pop(name, None) for name in IMAGE_ARGUMENTS)
    if key_values is None:  # `generate` passes them
        key_values = project_image(decoder, image)
        if key_values:
            text: Any = given_text(args, kwargs)
            check_rows(text.shape[0], image.shape[0])
    if key_values:  # otherwise all adapters are disabled or deleted, and the image is ignored
        kwargs["visual_key_values"] = key_values
    return args, kwargs


def accept_image(model: Any, model_kwargs: dict[str, Any]) -> None:
    """Replace `GenerationMixin._validate_model_kwargs`: accept images, which `take_image` removes."""
    others = {name: value for name, value in model_kwargs.items() if name not in IMAGE_ARGUMENTS}
    type(model)._validate_model_kwargs(model, others)


class PaddedLMHead(nn.Linear):
    """An output layer that pads small inputs to 16 rows on a CPU; see `pad_lm_head_rows`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (..., vocab_size) for hidden states of shape (..., d)."""
        return pad_lm_head_rows(super().forward, input)


def change_lm_head(model: Any, old: type[nn.Linear], new: type[nn.Linear]) -> None:
    """Change the class of a language model's output layer from `old` to `new`; keep any other class."""
    # PEFT accepts any module that contains a language model, even without an output layer.
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(layer) is old:
        # A new module would lose the hooks, the tied weight and references to this one.
        layer.__class__ = new


__all__ = [
    *("ADAPTERS", "LAYER_CLASSES", "ITuningLayer", "PaddedLMHead", "active_adapters", "change_lm_head"),
    *("accept_image", "find_decoders", "given_text", "project_image", "take_image"),
]
