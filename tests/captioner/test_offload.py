"""Captioners whose weights Accelerate offloads or dispatches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload, dispatch_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import make_batch

import ituning_hf
from ituning_hf import ITuningForCaptioning
from ituning_hf.data.scenes import make_scene

DECODER = "text_model.transformer"
LAYERS = {f"{DECODER}.h.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
PARTS = ("vision_model", f"{DECODER}.wte", f"{DECODER}.wpe", f"{DECODER}.ln_f", "text_model.lm_head")
DEVICE_MAPS = {
    "the language model": {"vision_model": "cpu", "text_model": "disk"},
    "the encoder": {"vision_model": "disk", "text_model": "cpu"},
    "some layers": dict.fromkeys(PARTS, "cpu") | LAYERS,
}
OFFLOAD: dict[str, Callable[[Any, Path], Any]] = {
    "cpu_offload": lambda model, _: cpu_offload(model, execution_device=torch.device("cpu")),
    "cpu_offload_with_hook": lambda model, _: cpu_offload_with_hook(model, "cpu")[0],
    "disk_offload": lambda model, folder: disk_offload(model, str(folder), torch.device("cpu")),
} | {
    name: lambda model, folder, device_map=device_map: dispatch_model(
        model, device_map, main_device="cpu", offload_dir=str(folder)
    )
    for name, device_map in DEVICE_MAPS.items()
}


def results(model: ITuningForCaptioning, processor: Any) -> list[Any]:
    batch = make_batch(k=2)
    images, ids = batch["pixel_values"], batch["input_ids"]
    with torch.no_grad():
        return [
            model.generate(pixel_values=images, num_beams=3, max_new_tokens=4),
            model.generate(visual_features=model.get_image_features(images), max_new_tokens=4),
            model.visual_attention(ids, images),
            *model(**batch).to_tuple(),
            model(**batch, skip_logits=True).loss,
            ituning_hf.caption(model, [make_scene(0, 0).load()], processor, max_new_tokens=4),
        ]


@pytest.mark.parametrize("offload", OFFLOAD.values(), ids=OFFLOAD)
def test_offloaded_captioners_compute_the_same(
    captioner, processor, tmp_path: Path, offload: Callable[[Any, Path], Any]
):
    *expected, expected_captions = results(captioner, processor)
    *found, captions = results(offload(captioner, tmp_path), processor)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert captions == expected_captions


@pytest.mark.parametrize("offload", OFFLOAD.values(), ids=OFFLOAD)
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_an_offloaded_captioner_is_saved_completely(
    captioner, tmp_path: Path, offload: Callable[[Any, Path], Any]
):
    weights = {name: tensor.clone() for name, tensor in captioner.adapter_state_dict().items()}
    offload(captioner, tmp_path / "offloaded").save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    torch.testing.assert_close(saved, weights, rtol=0, atol=0)


def test_a_lora_on_the_adapters_is_offloaded(captioner):
    images = make_batch(k=2)["pixel_values"]
    config = LoraConfig(target_modules=["k_proj", "v_proj"], init_lora_weights=False)
    lora = get_peft_model(captioner, config).eval()
    expected = lora.generate(pixel_values=images, max_new_tokens=7)
    offloaded = cpu_offload(lora, torch.device("cpu"))
    assert torch.equal(offloaded.generate(pixel_values=images, max_new_tokens=7), expected)
