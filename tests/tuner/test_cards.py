"""The model cards of saved adapters, and pushing adapters to the Hub."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from loopback_hub import running_hub, use_hub
from methods import ITUNING, LORA
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import contents
from transformers import Trainer, TrainingArguments

from ituning_hf.hub.card import PIPELINE_TAG, TAGS

CLIP = "openai/clip-vit-base-patch16"
# PEFT asks the Hub, which tests may not, whether the vocabulary of the base model was changed.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in (gpt2|org/captioner)")
WRITTEN = "---\nlicense: mit\ntags: [mine]\nbase_model: /home/me/gpt2\n---\n# My adapter\n\nMy text\n"


@pytest.fixture
def model(gpt2) -> PeftModel:
    """An adapter over backbones of the Hub."""
    gpt2.name_or_path = "gpt2"
    return ITUNING.wrap(gpt2, vision_model_name_or_path=CLIP, vision_feature_layer=-2)


def metadata(folder: Path) -> dict:
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_the_card_names_the_task_and_the_backbones(model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    assert metadata(tmp_path) == {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["image-captioning", "i-tuning", "ituning"],
        "base_model": ["gpt2", CLIP],
        "base_model_relation": "adapter",
    }
    text = (tmp_path / "README.md").read_text()
    features = "(num_images, tokens, 15): its hidden state -2, which the adapter normalizes"
    assert f"- `features`, of shape {features}\n\n" in text


def test_a_local_folder_is_not_written(gpt2, stock, backbones, tmp_path: Path):
    ITUNING.wrap(gpt2, vision_model_name_or_path=str(backbones["vision"])).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert str(backbones["text"].parent) not in text
    assert "- Language model: a local folder named `text`\n" in text
    assert "- Vision encoder: a local folder named `vision`\n" in text
    assert not {"base_model", "base_model_relation"} & metadata(tmp_path).keys()
    ITUNING.wrap(stock.base_model, task_type="FEATURE_EXTRACTION").save_pretrained(tmp_path)
    assert "- Vision encoder: not recorded\n" in (tmp_path / "README.md").read_text()


def test_a_persons_card_is_kept_and_completed(model, tmp_path: Path):
    (tmp_path / "README.md").write_text(WRITTEN)
    for _ in range(2):
        model.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.text == "# My adapter\n\nMy text\n"
        assert (card.data.license, card.data.tags) == ("mit", [*TAGS, "mine"])
        assert (card.data.base_model, card.data.pipeline_tag) == (["gpt2", CLIP], PIPELINE_TAG)


def test_a_card_that_was_not_edited_is_updated(model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("library_name:", "license: mit\nlibrary_name:"))
    model.peft_config["default"].vision_feature_layer = -1
    model.peft_config["default"].vision_feature_norm = False
    model.save_pretrained(tmp_path)
    assert "hidden state -1\n" in path.read_text()
    assert metadata(tmp_path)["license"] == "mit"


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model")
@pytest.mark.parametrize("name", ["default", "image"])
def test_a_lora_beside_the_adapter_is_named(gpt2, tmp_path: Path, name: str):
    gpt2.add_adapter(LORA.config(), "style")
    model = ITUNING.wrap(gpt2, adapter=name)
    model.save_pretrained(tmp_path, selected_adapters=[name])
    assert metadata(tmp_path)["tags"] == [*TAGS, "lora"]
    assert (
        "- Trained together with the adapter `style` of the method LORA"
        in (tmp_path / "README.md").read_text()
    )


def test_other_methods_keep_pefts_card(gpt2, tmp_path: Path):
    gpt2.name_or_path = "gpt2"
    get_peft_model(gpt2, LORA.config()).save_pretrained(tmp_path)
    assert metadata(tmp_path)["tags"] == ["base_model:adapter:gpt2", "lora", "transformers"]
    assert "# Model Card for Model ID" in (tmp_path / "README.md").read_text()


def test_the_trainers_card_is_kept_and_completed(model, tmp_path: Path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=[])
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert "### Training hyperparameters" in card.text
    data = metadata(tmp_path)
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", PIPELINE_TAG)
    assert data["base_model"] == ["gpt2", CLIP]
    assert {*TAGS, "generated_from_trainer"} <= set(data["tags"])


# --- A LoRA over a captioner


def lora_over(captioner: Any, name: str, **options: Any) -> PeftModel:
    captioner.name_or_path = name
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **options)
    return get_peft_model(captioner, config)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_the_card_of_a_lora_names_the_captioner(captioner, tmp_path: Path, task_type: str | None):
    lora_over(captioner, "org/captioner", task_type=task_type).save_pretrained(tmp_path)
    assert metadata(tmp_path) == {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": [*TAGS, "lora"],
        "base_model": ["org/captioner"],
        "base_model_relation": "adapter",
    }
    text = (tmp_path / "README.md").read_text()
    assert 'ITuningForCaptioning.from_pretrained("org/captioner")\n' in text
    assert "An adapter of the PEFT method LORA for" in text


def test_the_card_of_a_lora_does_not_name_a_local_captioner(remote_class, saved_captioner, tmp_path: Path):
    captioner = remote_class.from_pretrained(saved_captioner)
    lora_over(captioner, str(saved_captioner)).save_pretrained(tmp_path)
    assert metadata(tmp_path)["pipeline_tag"] == PIPELINE_TAG
    assert "base_model" not in metadata(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert str(saved_captioner) not in text
    assert f"- Captioner: a local folder named `{saved_captioner.name}`\n" in text


def test_a_persons_card_of_a_lora_is_kept_and_completed(captioner, tmp_path: Path):
    (tmp_path / "README.md").write_text(WRITTEN)
    lora_over(captioner, "org/captioner").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text == "# My adapter\n\nMy text\n"
    assert (card.data.license, card.data.tags) == ("mit", [*TAGS, "lora", "mine"])
    assert (card.data.base_model, card.data.pipeline_tag) == (["org/captioner"], PIPELINE_TAG)


# --- The Hub


def test_an_adapter_is_pushed_with_its_card(model, tmp_path: Path):
    with running_hub() as hub, use_hub(hub.endpoint, tmp_path, "writer"):
        model.save_pretrained(tmp_path / "saved")
        model.push_to_hub("org/adapter", private=True)
        repository = hub.repositories["org/adapter"]
        assert set(repository.at().files) == {".gitattributes", *contents(tmp_path / "saved")}
        model.save_pretrained(tmp_path / "saved")
        assert repository.at().files["README.md"] == (tmp_path / "saved" / "README.md").read_bytes()
        assert repository.private

        repository.commit({"README.md": WRITTEN.encode()})
        model.push_to_hub("org/adapter", revision="main", commit_message="Again")
        card = ModelCard(repository.at().files["README.md"].decode())
        assert card.text == "# My adapter\n\nMy text\n"
        assert card.data.base_model == ["gpt2", CLIP]


def test_an_adapter_over_a_local_folder_is_not_pushed(gpt2, backbones, tmp_path: Path):
    with running_hub() as hub, use_hub(hub.endpoint, tmp_path, "writer"):
        model = ITUNING.wrap(gpt2)
        with pytest.raises(ValueError, match=r"base_model_name_or_path is the local folder '.*text'"):
            model.push_to_hub("org/adapter")
        model.peft_config["default"].base_model_name_or_path = "gpt2"
        model.peft_config["default"].vision_model_name_or_path = str(backbones["vision"])
        with pytest.raises(ValueError, match=r"vision_model_name_or_path is the local folder '.*vision'"):
            model.push_to_hub("org/adapter")
        assert hub.repositories == {}


def test_push_takes_the_arguments_of_transformers(model, captioner, tmp_path: Path):
    options: dict[str, Any] = {"commit_message": "First", "commit_description": "More", "create_pr": False}
    with running_hub() as hub, use_hub(hub.endpoint, tmp_path, "writer"):
        lora = lora_over(captioner, "org/captioner")
        for name, peft_model, methods in (("image", model, []), ("lora", lora, ["lora"])):
            peft_model.push_to_hub(f"org/{name}", max_shard_size="1GB", tags=["cats"], **options)
            files = hub.repositories[f"org/{name}"].at().files
            assert ModelCard(files["README.md"].decode()).data.tags == [*TAGS, *methods, "cats"]


def test_a_lora_over_a_local_captioner_is_not_pushed(captioner, saved_captioner, tmp_path: Path):
    with running_hub() as hub, use_hub(hub.endpoint, tmp_path, "writer"):
        with pytest.raises(ValueError, match="base_model_name_or_path is the local folder"):
            lora_over(captioner, str(saved_captioner)).push_to_hub("org/lora")
        assert hub.repositories == {}
