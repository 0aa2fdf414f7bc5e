"""The PEFT method "ituning", and LoRA, on small language models of each family."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from small_models import TEXT, VISION
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ituning_hf.captioner.decoders_ituning import decoder_family
from ituning_hf.tuner.config import ITuningTunerConfig

SIZE: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 33,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "vocab_size": 97,
}
OPT_SIZE = {"hidden_size": 26, "num_hidden_layers": 4, "num_attention_heads": 2, "word_embed_proj_dim": 26}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
OTHER_FAMILIES = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT_SIZE, ffn_dim=33, vocab_size=97, dropout=0.0)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE, eos_token_id=2, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=10, eos_token_id=[2, 1])),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZE, **WINDOWS, head_dim=8)),
}
all_families = pytest.mark.parametrize("loaded", ["gpt2", *OTHER_FAMILIES], indirect=True)
WIDTH, DEPTH = TEXT["n_embd"], TEXT["n_layer"]
VISION_WIDTH = VISION["hidden_size"]
ROWS = torch.randint(3, 90, (4, 6), generator=torch.Generator().manual_seed(2))  # two for each image
IMAGES = torch.randn(2, 10, VISION_WIDTH, generator=torch.Generator().manual_seed(3))


def ituning_config(size: int = 3, layers: list[int] | None = None, **options: Any) -> ITuningTunerConfig:
    shape = {"adapter_hidden_size": 7 * size, "adapter_num_heads": 7, "adapter_layers": layers}
    return ITuningTunerConfig(**{"vision_hidden_size": VISION_WIDTH} | shape | options)


def lora_config(size: int = 3, layers: list[int] | None = None, **options: Any) -> LoraConfig:
    return LoraConfig(
        r=size,
        target_modules=["c_attn", "c_proj", "q_proj", "v_proj"],
        layers_to_transform=layers,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        **options,
    )


def layers_of(model: nn.Module) -> Any:
    """Return the decoder layers of a language model."""
    return decoder_family(model.config).layers(model)


@dataclass(frozen=True)
class Method:
    """A PEFT method."""

    name: str
    config: Callable[..., PeftConfig]  # takes a size and layers
    prefix: str  # only in the names of its parameters
    keys: tuple[str, ...]  # of one layer in a file
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)  # other than the text

    @staticmethod
    def per_layer(size: int) -> int:
        """The number of I-Tuning parameters in one layer."""
        return 7 * size * (2 * WIDTH + 2 * VISION_WIDTH + 3) + WIDTH

    def parameters(self, model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if self.prefix in name and f".{adapter}." in name
        }

    def perturb(self, model: nn.Module, adapter: str = "default", seed: int = 0) -> Any:
        """Give an adapter random weights. A new one does not change the output."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters(model, adapter).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model

    def wrap(self, gpt2: nn.Module, *args: Any, adapter: str = "default", **options: Any) -> PeftModel:
        """Add an adapter with random weights, in evaluation mode."""
        return self.perturb(get_peft_model(gpt2, self.config(*args, **options), adapter).eval(), adapter)

    @torch.no_grad()
    def logits(self, model: nn.Module, **kwargs: Any) -> torch.Tensor:
        return model(**{"input_ids": ROWS} | self.inputs | kwargs).logits


ITUNING = Method(
    name="ituning",
    config=ituning_config,
    prefix="ituning_adapter",
    keys=tuple(
        f"ituning_adapter.{projection}_proj.{kind}"
        for projection in ("q", "k", "v", "out")
        for kind in ("weight", "bias")
    ),
    inputs={"visual_features": IMAGES},
)
LORA = Method(
    name="lora",
    config=lora_config,
    prefix="lora_",
    keys=tuple(
        f"{layer}.lora_{side}.weight"
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
        for side in "AB"
    ),
)
