"""Every decoder and encoder family, compared with the models of Transformers and the adapter's formula."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from PIL import Image
from reference import standardize
from safetensors.torch import load_file
from small_families import DECODERS, ENCODERS, LARGER, SmallFamilies, save_family
from small_models import VISION, logits_of, make_batch, make_captioner, rewrite
from torch.nn import functional as F
from transformers import (
    BitsAndBytesConfig,
    CLIPVisionConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    Siglip2VisionConfig,
)

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.captioner.adapter_ituning import ITuningAdapter
from ituning_hf.captioner.backbones_ituning import Backbone
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.decoders_ituning import decoder_family
from ituning_hf.captioner.encoders_ituning import EncoderFamily, UnloadedVisionModel, encoder_family
from ituning_hf.inference.int8 import quantize_frozen_weights

# Longer than Gemma's sliding window.
LENGTHS = [11, 7, 9, 10, 4, 8]


@pytest.fixture(scope="module", params=DECODERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def frozen(families: SmallFamilies, name: str) -> PreTrainedModel:
    """The language model. Tests may add hooks to a copy."""
    return DECODERS[name][0].from_pretrained(families[name]).eval()


@pytest.fixture(scope="module")
def _captioner(families: SmallFamilies, name: str) -> ITuningForCaptioning:
    return make_captioner({"vision": families["siglip"], "text": families[name]})


@pytest.fixture
def captioner(_captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """A captioner in evaluation mode whose captions depend on the image."""
    return copy.deepcopy(_captioner)


def reset_adapters(model: ITuningForCaptioning) -> None:
    for adapter in model.adapters().values():
        adapter.reset_parameters()


def layers_of(model: PreTrainedModel) -> Any:
    return decoder_family(model.config).layers(model)


def attend(
    adapter: ITuningAdapter, x: torch.Tensor, memory: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of the adapter, for rows that each have their own image: dX and the attention weights."""
    split = (adapter.num_heads, adapter.head_dim)
    query = adapter.q_proj(x).unflatten(-1, split)
    key, value = (project(memory).unflatten(-1, split) for project in (adapter.k_proj, adapter.v_proj))
    weights = torch.einsum("bthc,bnhc->bhtn", query, key).div(math.sqrt(split[1])).softmax(-1)
    return adapter.out_proj(torch.einsum("bhtn,bnhc->bthc", weights, value).flatten(2)), weights


class Reference:
    """A model with hooks that add dX to its layers' outputs. X is the output of the norm before the MLP.

    Attributes:
        model: The language model.
        attentions: The adapters' attention weights in the last call, bottom first.
    """

    def __init__(self, frozen: PreTrainedModel, captioner: ITuningForCaptioning, pixels: Any) -> None:
        self.model, self.attentions = copy.deepcopy(frozen), []
        self.memory, self.x = standardize(captioner.get_image_features(pixels)), None
        for layer, adapter in zip(layers_of(self.model), captioner.adapters().values(), strict=True):
            norm = decoder_family(frozen.config).ffn_norm(layer)
            norm.register_forward_hook(lambda module, inputs, output: setattr(self, "x", output))
            layer.register_forward_hook(
                lambda module, inputs, output, adapter=adapter: self._add_update(adapter, output)
            )

    def _add_update(self, adapter: ITuningAdapter, output: torch.Tensor) -> torch.Tensor:
        memory = self.memory.repeat_interleave(len(output) // len(self.memory), dim=0)
        update, weights = attend(adapter, self.x.view(output.shape), memory)
        self.attentions.append(weights)
        return output + update


# --- The forward pass


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_new_captioner_computes_the_language_model(captioner, frozen, name: str, side: str):
    reset_adapters(captioner)
    batch = make_batch(3, 2, side, lengths=LENGTHS)
    pixels, ids, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
    wanted = {"output_hidden_states": True}
    found, expected = captioner(pixels, ids, **wanted), frozen(ids, **wanted)
    assert torch.equal(found.logits, expected.logits)
    assert len(found.hidden_states) == len(layers_of(frozen)) + 1
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = frozen(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(captioner(pixels, ids, mask).logits, expected)  # counts positions itself
    assert torch.equal(captioner(pixels, ids, mask, position_ids=positions).logits, expected)


def test_adapted_layers_are_layers_of_the_family(captioner, frozen, name: str):
    family, plain = decoder_family(frozen.config), layers_of(frozen)
    layers = layers_of(captioner.text_model)
    assert {type(layer) for layer in plain} == {family.layer_class}
    assert {type(layer) for layer in layers} == {family.adapted_layer_class}
    assert all(isinstance(layer, family.layer_class) for layer in layers)
    assert [family.layer_index(layer) for layer in layers] == [0, 1, 2]
    assert family.adapted_layer_class.__name__ in captioner._no_split_modules
    assert captioner._no_split_modules <= {type(module).__name__ for module in captioner.modules()}
    simple = {key: x for key, x in vars(plain[0]).items() if isinstance(x, bool | int | float | str)}
    del simple["training"]
    assert {key: getattr(layers[0], key) for key in simple} == simple | dict.fromkeys(
        {"dropout"} & simple.keys(), 0
    )


def test_a_copy_without_adapters_is_the_language_model_and_shares_its_weights(captioner, frozen, name: str):
    family = decoder_family(frozen.config)
    copied = family.without_adapters(captioner.text_model)
    assert {type(layer) for layer in layers_of(copied)} == {family.layer_class}
    dropouts = [[vars(layer).get("dropout") for layer in layers_of(model)] for model in (copied, frozen)]
    assert dropouts[0] == dropouts[1]
    assert copied.state_dict().keys() == frozen.state_dict().keys()
    ids = make_batch(3, 2)["input_ids"]
    assert torch.equal(copied(ids).logits, frozen(ids).logits)
    own = dict(captioner.text_model.named_parameters())
    assert all(parameter is own[name] for name, parameter in copied.named_parameters())
    assert len(captioner.adapters()) == 3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_adapters_add_their_formula_to_the_layers_outputs(captioner, frozen, name: str, implementation: str):
    batch = make_batch(3, 2, "left", lengths=LENGTHS)
    pixels, ids, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
    reference = Reference(frozen, captioner, pixels)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = reference.model(ids, attention_mask=mask, position_ids=positions).logits
        attentions = captioner.visual_attention(ids, pixels, attention_mask=mask)
        captioner.set_attn_implementation(implementation)
        found = captioner(pixels, ids, mask).logits
    is_token = mask.bool()  # padding at the start attends to nothing, which implementations treat differently
    torch.testing.assert_close(found[is_token], expected[is_token], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(attentions, torch.stack(reference.attentions, dim=1), rtol=1e-4, atol=1e-5)


# --- The loss


def gradients_of(model: ITuningForCaptioning, loss: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_training_loss_is_that_of_each_caption_alone(captioner, name: str, side: str):
    batch = make_batch(3, 2, side, lengths=LENGTHS)
    losses = []
    for i, length in enumerate(LENGTHS):
        part = slice(-length, None) if side == "left" else slice(length)
        ids, labels = batch["input_ids"][[i], part], batch["labels"][[i], part]
        logits = captioner(batch["pixel_values"][[i // 2]], ids).logits
        losses.append(F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum"))
    expected = sum(losses) / (batch["labels"][:, 1:] != -100).sum()
    expected_gradients = gradients_of(captioner, expected)

    rows = []
    layers_of(captioner.text_model)[0].register_forward_hook(lambda *_: rows.append(len(_[-1])))
    loss = captioner.train()(**batch).loss  # with the dropout of adapters only, which is 0
    assert rows == [3 if decoder_family(captioner.config.text_config).separates_packed_rows else 6]
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients_of(captioner, loss), expected_gradients, rtol=1e-3, atol=1e-5)


def test_recomputed_layers_give_the_same_gradients(captioner, frozen, name: str):
    """Only the layers from the lowest adapter up are recomputed."""
    family, batch = decoder_family(frozen.config), make_batch(3, 2)
    model = ITuningForCaptioning(
        ITuningConfig.from_dict(captioner.config.to_dict() | {"adapter_layers": [1, 2]}),
        captioner.vision_model,
        family.without_adapters(captioner.text_model),
    )
    model.load_state_dict(captioner.adapter_state_dict(), strict=False)
    calls, needs_gradient = Counter(), []
    for i, layer in enumerate(layers_of(model.text_model)):
        layer.register_forward_pre_hook(lambda _, args: needs_gradient.append(args[0].requires_grad))
        attention = getattr(layer, family.attention_name)
        attention.register_forward_hook(lambda *_, i=i: calls.update([i]))
    expected = gradients_of(model, model.train()(**batch).loss)
    assert calls == {0: 1, 1: 1, 2: 1}
    assert needs_gradient == [False, False, True]
    calls.clear()
    model.activation_checkpointing_enable()
    found = gradients_of(model, model(**batch).loss)
    assert calls == {0: 1, 1: 2, 2: 2}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for change, times in ((model.eval, 1), (model.train, 2), (model.activation_checkpointing_disable, 1)):
        calls.clear()
        change()
        gradients_of(model, model(**batch).loss)
        assert calls == {0: 1, 1: times, 2: times}


# --- Caches and generation


def test_a_cached_step_is_a_step_of_the_whole_row(captioner):
    batch = make_batch(3, 2, "left", lengths=LENGTHS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    memory = captioner.project_visual(captioner.get_image_features(batch["pixel_values"]))
    with torch.no_grad():
        expected = captioner(input_ids=ids, attention_mask=mask, visual_key_values=memory).logits
        past, found = None, []
        for start, stop in [(0, 4), *((t, t + 1) for t in range(4, 11))]:
            step = captioner(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop],
                visual_key_values=memory,
                past_key_values=past,
                use_cache=True,
            )
            past = step.past_key_values
            found.append(step.logits)
    is_token = mask.bool()
    torch.testing.assert_close(torch.cat(found, dim=1)[is_token], expected[is_token], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"num_beams": 3, "cache_implementation": "static"},
    ],
)
def test_generation_matches_a_model_with_an_image_for_each_row(
    captioner, frozen, name: str, pixel_values, options: dict[str, Any]
):
    settings = {"max_new_tokens": 9, "min_new_tokens": 9, "eos_token_id": 299, "pad_token_id": 0} | options
    config = frozen.config
    begin = config.eos_token_id if config.bos_token_id is None else config.bos_token_id
    ids = torch.full((3, 1), begin)
    reference = Reference(frozen, captioner, pixel_values)
    expected = reference.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    found = captioner.generate(pixel_values=pixel_values, **settings)
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) > 1  # captions depend on the image


# --- Precision, quantization, offloading


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(captioner, dtype: torch.dtype):
    batch = make_batch(3, 2)
    expected = captioner(**batch)
    captioner.to(dtype)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    found = captioner(**batch)
    assert found.logits.dtype is dtype
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.05, atol=0.05)
    assert F.cosine_similarity(found.logits.float(), expected.logits, dim=-1).mean() > 0.99
    assert captioner.generate(pixel_values=batch["pixel_values"], max_new_tokens=3).shape[0] == 3


def test_int8_weights_stay_close(captioner):
    batch = make_batch(3, 2)
    expected = captioner(**batch).logits
    quantize_frozen_weights(captioner)
    found = captioner(**batch).logits
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found, expected, dim=-1).mean() > 0.99
    assert all(
        gradient.isfinite().all() for gradient in gradients_of(captioner, captioner.train()(**batch).loss)
    )


@pytest.mark.parametrize("name", ["llama", "gemma3"], indirect=True)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_bitsandbytes_weights_stay_close(captioner, name: str, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    expected = logits_of(captioner)
    captioner.save_pretrained(tmp_path / "captioner")
    settings = BitsAndBytesConfig(load_in_8bit=True)
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner", quantization_config=settings)
    assert F.cosine_similarity(logits_of(loaded), expected, dim=-1).mean() > 0.99
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(ITuningForCaptioning.from_pretrained(tmp_path / "again")), expected)


def results(model: ITuningForCaptioning) -> list[torch.Tensor]:
    batch = make_batch(3, 2)
    pixels, ids = batch["pixel_values"], batch["input_ids"]
    with torch.no_grad():
        loss, logits = model(**batch).to_tuple()
        generated = [
            model.generate(pixel_values=pixels, num_beams=beams, max_new_tokens=4) for beams in (1, 3)
        ]
        return [
            *generated,
            loss,
            logits,
            model(**batch, skip_logits=True).loss,
            model.visual_attention(ids, pixels),
        ]


def offload_layers(model: ITuningForCaptioning, folder: Path) -> ITuningForCaptioning:
    """Put the encoder and a layer on the disk, and the rest on the CPU."""
    layers = f"text_model.{decoder_family(model.config.text_config).layers_path}"
    modules = {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    on_disk = ("vision_model.", f"{layers}.1.")
    device_map = {name: "disk" if name.startswith(on_disk) else "cpu" for name in modules}
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("name", ["qwen3", "gemma3"], indirect=True)
@pytest.mark.parametrize(
    "offload", [offload_layers, lambda model, _: cpu_offload(model, torch.device("cpu"))]
)
def test_offloaded_captioners_compute_the_same(captioner, tmp_path: Path, offload: Callable):
    expected = results(captioner)
    torch.testing.assert_close(results(offload(captioner, tmp_path)), expected, rtol=0, atol=0)


# --- Saving and loading


def test_a_loaded_captioner_equals_the_saved_one(captioner, frozen, name: str, tmp_path: Path):
    batch = make_batch(3, 2)
    pixels, ids = batch["pixel_values"], batch["input_ids"]
    expected, recorded = captioner(pixels, ids).logits, {"output_hidden_states": True}
    plain = frozen(ids, **recorded).logits  # by hooks, which a captioner over this model must keep
    captioner.save_pretrained(tmp_path / "captioner")
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner")
    assert torch.equal(loaded(pixels, ids).logits, expected)
    shared = ITuningForCaptioning.from_pretrained(tmp_path / "captioner", text_model=frozen)
    assert torch.equal(shared(pixels, ids).logits, expected)
    assert len(shared(pixels, ids, **recorded).hidden_states) == len(layers_of(frozen)) + 1
    assert torch.equal(frozen(ids).logits, plain)
    own = {p.data_ptr() for p in shared.text_model.parameters()}
    assert {p.data_ptr() for p in frozen.parameters()} <= own
    captioner.save_backbone("text", tmp_path / "text")
    stored = load_file(tmp_path / "text/model.safetensors")
    torch.testing.assert_close(stored, load_file(Path(frozen.name_or_path, "model.safetensors")))
    again = DECODERS[name][0].from_pretrained(tmp_path / "text")
    assert torch.equal(again(ids).logits, plain)


def test_every_weight_is_compared_with_its_file(captioner, families: SmallFamilies, name: str):
    backbone, model = Backbone("text", families[name]), captioner.text_model
    backbone.check_unchanged(model)
    for key, parameter in model.named_parameters():
        if ".adapter." not in key:
            parameter.data += 1e-3
            with pytest.raises(CaptionerError, match=r"text model in memory is not the one at .* differs"):
                backbone.check_unchanged(model)
            parameter.data -= 1e-3


def test_the_fingerprint_includes_the_output_layer_but_not_a_tied_copy(families, name: str, tmp_path: Path):
    save_family(name, tmp_path)
    backbone = Backbone("text", tmp_path)
    expected = backbone.fingerprint()
    assert Backbone("text", families[name]).fingerprint() == expected
    head = backbone.load().lm_head.weight.detach().clone()

    def store(output: torch.Tensor) -> Backbone:
        """Store an output layer, which Transformers loads even if the configuration says that it is tied."""
        rewrite(tmp_path / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": output}))
        return Backbone("text", tmp_path)

    assert store(head).fingerprint() == expected
    other = store(head + 1)
    assert other.fingerprint() != expected
    loaded = other.load()
    assert torch.equal(loaded.lm_head.weight, head + 1)
    other.check_unchanged(loaded)
    with torch.no_grad():
        loaded.lm_head.weight[0] = 7.0
    with pytest.raises(CaptionerError, match=r"lm_head\.weight differs"):
        other.check_unchanged(loaded)


def test_an_opt_without_a_final_norm_is_loaded(families, tmp_path: Path):
    save_family("opt", tmp_path / "text", _remove_final_layer_norm=True)
    model = make_captioner({"vision": families["siglip"], "text": tmp_path / "text"})
    model.save_pretrained(tmp_path / "captioner")
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner")
    assert torch.equal(logits_of(loaded), logits_of(model))


# --- Language models that are refused

TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
REFUSED = [
    (
        MistralConfig(),
        r"model_type is 'mistral', expected one of \['gemma3_text', 'gpt2', .* docs/families\.md",
    ),
    (GPT2Config(eos_token_id=None), "eos_token_id=None: set it"),
    (Qwen2Config(eos_token_id=None), "eos_token_id=None: set it"),
    (LlamaConfig(eos_token_id=[]), r"eos_token_id=\[\]: set it"),
    (LlamaConfig(eos_token_id=[2, 500], vocab_size=97), "eos_token_id=500, expected a token of the 97"),
    (LlamaConfig(bos_token_id=-1), "bos_token_id=-1, expected a token"),
    (GPT2Config(add_cross_attention=True), "add_cross_attention is True, expected False"),
    (OPTConfig(do_layer_norm_before=False), "do_layer_norm_before is False, expected True: .*OPT-350m"),
    (OPTConfig(layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine is False, expected True"),
    (Gemma3TextConfig(final_logit_softcapping=30.0), "final_logit_softcapping is 30.0, expected None"),
    (
        Gemma3TextConfig(use_bidirectional_attention=True),
        "use_bidirectional_attention is True, expected False",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_an_unusable_language_model_is_refused(config: Any, message: str):
    with pytest.raises(CaptionerError, match=message):
        ITuningForCaptioning(ITuningConfig(vision_config=CLIPVisionConfig(**VISION), text_config=config))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"bos_token_id": 5, "eos_token_id": 7}, (5, 7, 7)),
        ({"bos_token_id": 5, "eos_token_id": 7, "pad_token_id": 3}, (5, 7, 3)),
        ({"bos_token_id": 5, "eos_token_id": [8, 9]}, (5, [8, 9], 8)),
        ({"bos_token_id": None, "eos_token_id": [8, 9]}, (8, [8, 9], 8)),
        ({"bos_token_id": 5, "eos_token_id": 7, "pad_token_id": -1}, (5, 7, 7)),
    ],
)
def test_missing_special_tokens_are_the_first_eos_token(tokens: dict[str, Any], expected: tuple):
    config = Qwen2Config(**tokens)
    found = decoder_family(config).special_tokens(config)
    assert found == dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), expected, strict=True))


# --- Encoders


@pytest.fixture(scope="module", params=ENCODERS)
def encoder_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(families: SmallFamilies, encoder_name: str) -> PreTrainedModel:
    """The encoder, loaded by Transformers."""
    model_class, config = ENCODERS[encoder_name]
    return model_class.from_pretrained(families[encoder_name], **encoder_family(config).model_options).eval()


@pytest.fixture
def family(encoder: PreTrainedModel) -> EncoderFamily:
    return encoder_family(encoder.config)


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_encode_returns_the_hidden_state_without_gradients(encoder, family, pixel_values, layer: int):
    with torch.no_grad():
        output = encoder(pixel_values, output_hidden_states=True)
    last, states = output.last_hidden_state, output.hidden_states
    found = family.encode(encoder, pixel_values, layer)
    assert torch.equal(found, last if layer == -1 else states[layer])
    assert found.shape == (3, family.num_tokens(encoder.config, 30, 30), VISION["hidden_size"])
    assert not found.requires_grad
    assert torch.equal(states[2], last) != family.has_final_norm


def test_the_patches_follow_the_prefix_tokens_row_by_row(encoder, family, pixel_values):
    changed = pixel_values.clone()
    changed[:, :, 10:20, 20:] += 1  # the sixth patch
    before, after = (family.encode(encoder, pixels, 0) for pixels in (pixel_values, changed))
    differs = (before != after).any(-1).any(0)
    assert differs.nonzero().tolist() == [[family.num_prefix_tokens(encoder.config) + 5]]


SHAPES = [(3, 3, 32, 32), (3, 3, 30, 0), (3, 30, 30), (0, 3, 30, 30), (2, 1, 30, 30)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_of_another_shape_are_refused(encoder, family, shape: tuple[int, ...]):
    message = r"pixel_values has shape \(.*expected \(num_images, 3, (30, 30|.*10 pixels)\): prepare images"
    with pytest.raises(ValueError, match=message):
        family.encode(encoder, torch.ones(shape), -1)


@pytest.mark.parametrize("size", [(20, 40), (10, 10)])
def test_only_some_encoders_accept_other_sizes(encoder, family, encoder_name: str, size: tuple[int, int]):
    pixels = torch.ones(2, 3, *size)
    if encoder_name.startswith("dinov2"):
        found = family.encode(encoder, pixels, -1)
        assert found.shape[1] == family.num_tokens(encoder.config, *size)
    else:
        with pytest.raises(ValueError, match="expected"):
            family.encode(encoder, pixels, -1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encoders_compute_in_half_precision(encoder, family, pixel_values, dtype: torch.dtype):
    expected = family.encode(encoder, pixel_values, -1)
    found = family.encode(copy.deepcopy(encoder).to(dtype), pixel_values.to(dtype), -1)
    assert found.dtype is dtype
    assert F.cosine_similarity(found.float(), expected, dim=-1).mean() > 0.99


def test_the_default_image_processor_fits_the_encoder(encoder, family):
    image = Image.fromarray(np.arange(37 * 53 * 3, dtype=np.uint8).reshape(37, 53, 3))
    pixels = family.image_processor(encoder.config)(image, return_tensors="pt")["pixel_values"]
    assert family.encode(encoder, pixels, -1).isfinite().all()


@pytest.mark.parametrize("source", [*ENCODERS, *LARGER])
def test_only_the_encoder_is_loaded_and_nothing_is_reported(families, source: str, caplog, recwarn):
    name = LARGER.get(source, (source,))[0]
    model_class, family = ENCODERS[name][0], encoder_family(ENCODERS[name][1])
    folder, stored = families[source], model_class.from_pretrained(families[name]).state_dict()
    caplog.clear()
    loaded = family.load(str(folder))
    assert not caplog.records
    assert not recwarn
    assert type(loaded) is model_class
    found = loaded.state_dict()
    used = {key for key in stored if not family.not_weights.search(key)}
    assert used <= found.keys() <= used | {"embeddings.mask_token"}  # without a pooler
    assert all(torch.equal(found[key], stored[key]) for key in used)


@pytest.mark.parametrize("source", [*ENCODERS, *LARGER])
def test_every_weight_of_an_encoder_is_compared_with_its_file(families, source: str):
    name = LARGER.get(source, (source,))[0]
    backbone = Backbone("vision", families[source])
    assert backbone.fingerprint() == Backbone("vision", families[name]).fingerprint()
    model = backbone.load()
    backbone.check_unchanged(model)
    for key, parameter in model.named_parameters():
        if key != "embeddings.mask_token":  # used in the encoder's own training only
            parameter.data += 1e-3
            with pytest.raises(CaptionerError, match=r"vision model in memory is not the one at .* differs"):
                backbone.check_unchanged(model)
            parameter.data -= 1e-3


@pytest.mark.parametrize("source", [*ENCODERS, *LARGER])
def test_a_captioner_is_loaded_with_its_encoder(families, source: str, tmp_path: Path):
    model = make_captioner({"vision": families[source], "text": families["llama_tied"]})
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "captioner")
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner")
    assert torch.equal(logits_of(loaded), expected)
    alone = families[LARGER.get(source, (source,))[0]]
    moved = ITuningForCaptioning.from_pretrained(tmp_path / "captioner", vision_model_name_or_path=alone)
    assert torch.equal(logits_of(moved), expected)
    encoder = ENCODERS[LARGER.get(source, (source,))[0]][0].from_pretrained(alone)  # perhaps with a pooler
    shared = ITuningForCaptioning.from_pretrained(tmp_path / "captioner", vision_model=encoder)
    assert torch.equal(logits_of(shared), expected)
    shared.save_pretrained(tmp_path / "again")
    model.save_backbone("vision", tmp_path / "vision")
    assert model.config.vision_model_fingerprint == loaded.config.vision_model_fingerprint


def test_an_unsupported_encoder_is_refused():
    message = r"model_type is 'siglip2_vision_model', expected one of \['clip.*docs/families\.md"
    with pytest.raises(CaptionerError, match=message):
        encoder_family(Siglip2VisionConfig())


def test_an_unloaded_encoder_refuses_images(encoder, pixel_values):
    with pytest.raises(ValueError, match="not loaded: pass visual_features"):
        UnloadedVisionModel(encoder.config)(pixel_values)
