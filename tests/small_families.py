"""Small models of the real classes of every family, with random weights.

The sizes of decoders, encoders and adapters are coprime, so that a test with swapped axes fails. A decoder's
vocabulary and special tokens are those of its tokenizer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_models import VISION, make_clip
from small_tokenizers import VOCABULARY, save_tokenizer_of
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from ituning_hf.captioner.encoders_ituning import encoder_family

# Four query heads of size 4 share two key heads.
_ROTARY = {
    "hidden_size": 16,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "attention_dropout": 0.3,  # captioners never use it
}
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# The class of the language model, the style of its tokenizer, its configuration's class and fields.
DECODERS: dict[str, tuple[type[PreTrainedModel], str, type, dict[str, Any]]] = {
    "gpt2": (
        GPT2LMHeadModel,
        "gpt2",
        GPT2Config,
        {"n_embd": 22, "n_layer": 3, "n_head": 2, "n_positions": 48},
    ),
    "opt": (
        OPTForCausalLM,
        "opt",
        OPTConfig,
        {
            "hidden_size": 22,
            "word_embed_proj_dim": 14,  # as in OPT-350m, with two more matrices
            "ffn_dim": 37,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": 48,
            "attention_dropout": 0.3,
        },
    ),
    "llama": (LlamaForCausalLM, "llama", LlamaConfig, _ROTARY | {"tie_word_embeddings": False}),
    "llama_tied": (LlamaForCausalLM, "gpt2", LlamaConfig, _ROTARY | {"tie_word_embeddings": True}),  # SmolLM2
    "qwen2": (Qwen2ForCausalLM, "qwen2", Qwen2Config, _ROTARY | {"tie_word_embeddings": True}),
    "qwen3": (
        Qwen3ForCausalLM,
        "qwen2",
        Qwen3Config,
        _ROTARY | {"tie_word_embeddings": True, "head_dim": 10},
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        "gemma",
        Gemma3TextConfig,
        _ROTARY
        | {
            "head_dim": 10,
            "query_pre_attn_scalar": 11,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
# The class of the encoder, and its configuration.
ENCODERS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(**VISION)),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**VISION)),
    "vit": (ViTModel, ViTConfig(**VISION)),
    "deit": (DeiTModel, DeiTConfig(**VISION)),
    "dinov2": (Dinov2Model, Dinov2Config(**VISION)),
    "dinov2_with_registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**VISION, num_register_tokens=3),
    ),
}


_CLIP_TOKENS = {"vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 1}


def _make_siglip() -> SiglipModel:
    size = {"hidden_size": 15, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3}
    text, vision = size | _CLIP_TOKENS, ENCODERS["siglip"][1].to_dict()
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


# Models that contain an encoder: its name, its path in the model, and how to build the model.
LARGER: dict[str, tuple[str, str, Callable[[], PreTrainedModel]]] = {
    "full_clip": ("clip", "vision_model", lambda: make_clip(11, **_CLIP_TOKENS)),
    "full_siglip": ("siglip", "vision_model", _make_siglip),
    "vit_with_pooler": ("vit", "", lambda: ViTModel(ENCODERS["vit"][1])),
    "vit_classifier": ("vit", "vit", lambda: ViTForImageClassification(ENCODERS["vit"][1])),
    "deit_classifier": (
        "deit",
        "deit",
        lambda: DeiTForImageClassificationWithTeacher(ENCODERS["deit"][1]),
    ),
    "dinov2_classifier": ("dinov2", "dinov2", lambda: Dinov2ForImageClassification(ENCODERS["dinov2"][1])),
    "dinov2_with_registers_classifier": (
        "dinov2_with_registers",
        "dinov2_with_registers",
        lambda: Dinov2WithRegistersForImageClassification(ENCODERS["dinov2_with_registers"][1]),
    ),
}


class SmallFamilies(dict[str, Path]):
    """Folders of models by their names in `DECODERS`, `ENCODERS` and `LARGER`; each is saved when it is used.

    A decoder's folder has its tokenizer, and an encoder's its image processor. A larger model contains the
    weights of its encoder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> Path:
        folder = self[name] = self.root / name
        save_family(name, folder)
        return folder


def save_family(name: str, folder: Path, **changes: Any) -> None:
    """Save a model; `changes` are fields of a decoder's configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if name in DECODERS:
            model_class, style, config_class, fields = DECODERS[name]
            tokenizer = save_tokenizer_of(style, folder)
            tokens = {field: getattr(tokenizer, field) for field in SPECIAL_TOKENS}
            config = config_class(**fields | {"vocab_size": VOCABULARY} | tokens | changes)
            model = _randomize(model_class(config))
        else:
            encoder, path, build = LARGER.get(name, (name, "", None))
            model_class, config = ENCODERS[encoder]
            model = part = _randomize(model_class(config, **encoder_family(config).model_options))
            if build is not None:
                model = _randomize(build())
                model.get_submodule(path).load_state_dict(part.state_dict(), strict=False)
            encoder_family(config).image_processor(config).save_pretrained(folder)
        model.save_pretrained(folder)


def _randomize(model: Any) -> Any:
    """Give a model large random weights. With the initial ones, captions would not depend on the image."""
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if isinstance(module, torch.nn.Embedding):
                    parameter.normal_()
                elif parameter.ndim == 1:  # biases, and the weights of norms
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                else:
                    parameter.normal_(std=0.3)
    return model
