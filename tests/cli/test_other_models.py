"""All commands with other families than the default ones, and models that are refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, running_hub, use_hub
from processes import options
from small_benchmarks import write_photos
from small_families import SmallFamilies
from small_models import read_lines, read_log, validation_scores
from transformers import (
    Gemma2Config,
    Gemma3Config,
    MistralConfig,
    Qwen2Config,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SwinConfig,
    T5Config,
)

from ituning_hf.cli import main

NAMES = ("siglip", "qwen2", "dinov2_with_registers", "gemma3")
RUN = options(max_train_steps=3, per_device_train_batch_size=4, dataloader_num_workers=0)
DATA = ["--dataset", "photos"]
FEW_TOKENS = ["--max_new_tokens", "5"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub with small models, and the folder "photos" in the working directory."""
    families = SmallFamilies(tmp_path / "models")
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    models = {f"org/{name}": families[name] for name in NAMES}
    with running_hub(models) as hub, use_hub(hub.endpoint, tmp_path / "home", "writer"):
        yield hub


def train(output_dir: str, *arguments: str) -> None:
    run = ["--output_dir", output_dir, "--max_caption_tokens", "24"]
    assert main(["train", *arguments, *DATA, *RUN, *run]) == 0


def test_siglip_and_qwen2_go_through_all_commands(hub: LoopbackHub, capsys):
    pair = options(vision_model="org/siglip", text_model="org/qwen2")
    train("run", *pair, "--dry_run")
    assert not Path("run").exists()
    train("run", *pair)
    losses = validation_scores("run", "loss")
    assert losses[3] < losses[0]
    evaluation = ["--split", "val", "--java", "false", "--dataloader_num_workers", "0"]
    assert main(["evaluate", "--model", "run/best", *DATA, *evaluation, *FEW_TOKENS]) == 0
    assert main(["convert", "run/best", "adapter"]) == 0
    assert main(["convert", "adapter", "again"]) == 0
    saved, again = (Path(name, "model.safetensors").read_bytes() for name in ("run/best", "again"))
    assert again == saved
    assert main(["push", "run/best", "org/mine"]) == 0
    pushed = hub.repositories["org/mine"].at().files
    assert pushed["model.safetensors"] == saved
    capsys.readouterr()
    assert main(["info", "org/mine"]) == 0
    described = capsys.readouterr().out
    for text in ("org/siglip at revision", "siglip_vision_model, 2 layers", "qwen2, 3 layers of width 16"):
        assert text in described
    for card in (pushed["README.md"].decode(), Path("adapter/README.md").read_text()):
        assert "[org/siglip](https://huggingface.co/org/siglip)" in card
        assert "[org/qwen2](https://huggingface.co/org/qwen2)" in card
        assert not re.search("clip|gpt", card, re.IGNORECASE)
    for model in ("run/best", "org/mine"):
        assert (
            main(["caption", "photos", "--model", model, *FEW_TOKENS, "--output", f"{model[:3]}.jsonl"]) == 0
        )
    assert len(read_lines("run.jsonl")) == 12
    assert read_lines("run.jsonl") == read_lines("org.jsonl")


def test_dinov2_and_gemma3_are_trained_on_features(hub: LoopbackHub, capsys):
    encoder = options(vision_model="org/dinov2_with_registers")
    build = ["--output_dir", "features", "--dataloader_num_workers", "0"]
    assert main(["features", "build", *encoder, *DATA, *build]) == 0
    # The image processor crops to 16 x 16 patches; the encoder's configuration has 3 x 3.
    assert "260 x 15 in bfloat16, of org/dinov2_with_registers" in capsys.readouterr().out
    train("stored", "--text_model", "org/gemma3", "--features", "features")
    train("encoded", "--text_model", "org/gemma3", *encoder)
    stored, encoded = ([x["loss"] for x in read_log(run) if "loss" in x] for run in ("stored", "encoded"))
    assert stored == pytest.approx(encoded, abs=1e-4)
    assert stored[2] < stored[0]
    evaluation = ["--split", "val", "--java", "false", "--features", "features"]
    assert main(["evaluate", "--model", "stored/best", *DATA, *evaluation, *FEW_TOKENS]) == 0
    assert main(["caption", "photos/0.png", "--model", "stored/best", *FEW_TOKENS]) == 0


DECODERS = r"expected one of \['gemma3_text', 'gpt2', .*'qwen3'\]. See docs/families.md"
ENCODERS = r"expected one of \['clip_vision_model', .*'vit'\]. See docs/families.md"


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        (SiglipVisionConfig(), T5Config(), f"language model's model_type is 't5', {DECODERS}"),
        (SiglipVisionConfig(), MistralConfig(), f"language model's model_type is 'mistral', {DECODERS}"),
        (SiglipVisionConfig(), Gemma2Config(), f"language model's model_type is 'gemma2', {DECODERS}"),
        (SiglipVisionConfig(), Gemma3Config(), f"language model's model_type is 'gemma3', {DECODERS}"),
        (SiglipVisionConfig(), SiglipVisionConfig(), f"model_type is 'siglip_vision_model', {DECODERS}"),
        (Siglip2VisionConfig(), Qwen2Config(), f"model_type is 'siglip2_vision_model', {ENCODERS}"),
        (SwinConfig(), Qwen2Config(), f"vision encoder's model_type is 'swin', {ENCODERS}"),
        (Qwen2Config(), SiglipVisionConfig(), f"vision encoder's model_type is 'qwen2', {ENCODERS}"),
        (SiglipVisionConfig(), Qwen2Config(), "eos_token_id=None: set it"),
    ],
)
def test_a_model_that_is_not_supported_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys, vision, text, message: str
):
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    models = options(vision_model=tmp_path / "vision", text_model=tmp_path / "text")
    run = ["--dataset", str(tmp_path / "no photos"), "--output_dir", str(tmp_path / "out")]
    commands = [["train", *models]]
    if ENCODERS in message:
        commands.append(["features", "build", *models[:2]])
    for command in commands:
        assert main([*command, *run]) == 2
        output = capsys.readouterr()
        assert re.search(message, output.err)
        assert (output.out, output.err.count("\n")) == ("", 1)
