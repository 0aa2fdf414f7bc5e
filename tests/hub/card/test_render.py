"""What a card says, from what is in a captioner's folder."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from ituning_hf.hub.evaluation_results import write_evaluations
from ituning_hf.hub.facts import Backbone, last_part
from ituning_hf.hub.inspection import describe
from ituning_hf.hub.training_record import DRAWN_SCENES, write_training_record
from ituning_hf.hub.writing import render_card

README = Path(__file__).resolve().parents[3] / "README.md"


def section(card: ModelCard, title: str) -> str:
    """Return what stands under a heading."""
    return re.split(r"^## ", card.text.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def headings(card: ModelCard) -> list[str]:
    return re.findall(r"^#+ (.*)$", card.text, flags=re.MULTILINE)


@pytest.fixture
def told(from_hub: Path, training, results) -> Path:
    """A captioner of which everything is known."""
    write_training_record(from_hub, training)
    write_evaluations(from_hub, results)
    return from_hub


def test_the_metadata_of_a_captioner_that_was_only_saved(from_hub: Path):
    assert yaml.safe_load(render_card(from_hub).data.to_yaml()) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["image-captioning", "i-tuning", "ituning", "clip", "gpt2"],
        "base_model": ["openai/clip-vit-base-patch16", "gpt2"],
        "base_model_relation": "adapter",
    }


def test_all_metadata(told: Path):
    card = render_card(told, repo_id="org/mine", license="apache-2.0", language="en")
    metadata = yaml.safe_load(re.match(r"---\n(.*?)---\n", str(card), flags=re.DOTALL)[1])
    assert {"language": "en", "license": "apache-2.0"}.items() <= metadata.items()
    assert metadata["datasets"] == ["org/photos"]
    assert metadata["metrics"] == ["bleu", "cider", "spice"]
    (index,) = metadata["model-index"]
    assert index["name"] == "mine"
    assert index["results"] == [
        {
            "task": {"type": "image-to-text", "name": "Image Captioning"},
            "dataset": {"name": "COCO Karpathy (test)", "type": "coco-karpathy", "split": "test"},
            "metrics": [
                {"type": "bleu", "value": 34.57, "name": "BLEU-4"},
                {"type": "cider", "value": 110.0, "name": "CIDEr"},
            ],
        },
        {
            "task": {"type": "image-to-text", "name": "Image Captioning"},
            "dataset": {
                "name": "NoCaps (val, out-of-domain)",
                "type": "nocaps",
                "config": "out-of-domain",
                "split": "val",
            },
            "metrics": [
                {"type": "cider", "value": 50.0, "name": "CIDEr"},
                {"type": "spice", "value": 10.0, "name": "SPICE"},
            ],
        },
    ]


def test_a_data_set_of_any_script_has_a_type_on_the_hub(from_hub: Path, results):
    write_evaluations(from_hub, [replace(results[0], dataset="写真 2024")])
    (index,) = yaml.safe_load(render_card(from_hub).data.to_yaml())["model-index"]
    assert {result["dataset"]["type"] for result in index["results"]} == {"写真-2024"}
    write_evaluations(from_hub, [replace(results[0], dataset=DRAWN_SCENES)])
    (index,) = yaml.safe_load(render_card(from_hub).data.to_yaml())["model-index"]
    assert {result["dataset"]["type"] for result in index["results"]} == {"ituning-scenes"}
    assert "scenes that ituning_hf draws (test)" in str(render_card(from_hub))


def test_a_card_survives_being_loaded(told: Path, tmp_path: Path):
    card = render_card(told, license="mit")
    card.save(tmp_path / "card.md")
    again = ModelCard.load(tmp_path / "card.md")
    assert str(again) == str(card)
    assert len(again.data.eval_results) == 4


RESULTS = """
After step 18,120, the loss on the val split (1,014 images) was 2.3457 per token. \
Greedy captions of 200 of them: BLEU-4 29.6, CIDEr 60.0.

| data set      | split              | images | BLEU-4 | CIDEr | SPICE |
| ------------- | ------------------ | -----: | -----: | ----: | ----: |
| COCO Karpathy | test               |  5,000 |   34.6 | 110.0 |       |
| NoCaps        | val, out-of-domain |    914 |        |  50.0 |  10.0 |

Scores by the official COCO scorers, times 100.
NoCaps, val, out-of-domain: 2 pictures could not be read and are left out of the scores.
Tokenizer of COCO Karpathy, test: the official PTB tokenizer.
Tokenizer of NoCaps, val: the package's Python tokenizer (no Java, and so neither METEOR nor SPICE).

Measured by:

```bash
ituning evaluate --model org/x --dataset coco.json --split test
ituning evaluate --model org/x --dataset nocaps.json --split test
```

"""
TRAINING = """
Data: [org/photos:small](https://huggingface.co/datasets/org/photos).

| split | images |
| ----- | -----: |
| train | 29,000 |
| val   |  1,014 |

| setting                       | value                                              |
| ----------------------------- | -------------------------------------------------- |
| optimiser                     | AdamW on the cross-entropy of the captions' tokens |
| optimiser steps               | 18,120 (10 epochs)                                 |
| images in a step              | at most 48                                         |
| `augmentation`                | crop, flip                                         |
| `gradient_accumulation_steps` | 3                                                  |
| `learning_rate`               | 0.0005                                             |
| `num_train_epochs`            | 10.0                                               |
| `per_device_train_batch_size` | 8                                                  |

| made with    |                           |
| ------------ | ------------------------- |
| device       | NVIDIA H200, 2 processes  |
| precision    | bf16, the adapter in fp32 |
| python       | 3.11.7                    |
| torch        | 2.13.0                    |
| transformers | 5.23.0                    |

"""


def test_the_results(told: Path):
    assert section(render_card(told), "Results") == RESULTS


def test_scores_are_rounded_once(from_hub: Path, results):
    """Twice, 19.4525 would become 19.45, and that 19.4."""
    write_evaluations(from_hub, [replace(results[0], metrics={"rouge_l": 0.194525})])
    card = render_card(from_hub)
    assert "|    19.5 |" in section(card, "Results")
    assert card.data.eval_results[0].metric_value == 19.45


def test_the_remarks_of_a_single_evaluation(from_hub: Path, results):
    write_evaluations(from_hub, [replace(results[0], num_unreadable=1)])
    assert (
        "times 100.\nCOCO Karpathy, test: 1 picture could not be read and is left out of the scores.\n"
        "Tokenizer: the official PTB tokenizer.\n\nMeasured by:\n"
    ) in section(render_card(from_hub), "Results")
    write_evaluations(from_hub, [replace(results[0], tokenizer=None)])  # as older files have it
    assert "times 100.\n\nMeasured by:\n" in section(render_card(from_hub), "Results")


def test_the_training(told: Path):
    assert section(render_card(told), "Training") == TRAINING


def test_settings_without_effect_are_left_out(from_hub: Path, training):
    off = {
        "early_stopping_patience": None,
        "early_stopping_threshold": 0.5,
        "eval_caption_images": 0,
        "label_smoothing": 0.0,
        "gradient_checkpointing": False,
    }
    on = {"seed": 0, "weight_decay": 0.0, "max_grad_norm": 0.0}
    write_training_record(from_hub, replace(training, settings=off | on))
    shown = re.findall(r"^\| `(\w+)` ", render_card(from_hub).text, flags=re.MULTILINE)
    assert shown == sorted(on)
    on |= {"early_stopping_patience": 2, "early_stopping_threshold": 0.0, "eval_caption_images": 9}
    write_training_record(from_hub, replace(training, settings=off | on))
    shown = re.findall(r"^\| `(\w+)` ", render_card(from_hub).text, flags=re.MULTILINE)
    assert shown == sorted(on)


def test_a_captioner_of_no_known_training_is_not_called_trained(from_hub: Path):
    assert not re.search(r"\btrained\b", str(render_card(from_hub)))


def test_the_parts(from_hub: Path):
    description = describe(from_hub)
    trainable, total = (description["parameters"][key] for key in ("trainable", "total"))
    text = section(render_card(from_hub, license="mit"), "What it is made of")
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    }
    assert (
        rows["model"][0]
        == "[openai/clip-vit-base-patch16](https://huggingface.co/openai/clip-vit-base-patch16)"
    )
    assert rows["licence"] == ["mit"]  # the adapter's; the backbones' is the row of that name above
    assert "| [MIT](https://github.com/openai/CLIP/blob/main/LICENSE) " in text
    assert "| [Modified MIT](https://github.com/openai/gpt-2/blob/master/LICENSE) |" in text
    assert rows["revision"] == ["`0123456789abcdef0123456789abcdef01234567`", f"`{'f' * 40}`"]
    assert rows["fingerprint"] == [
        f"`{description[kind]['fingerprint']}`" for kind in ("vision_model", "text_model")
    ]
    assert rows["width r"] == ["21"]
    assert rows["in the language model's layers"] == ["0 to 1, 3"]
    assert rows["trainable parameters"] == [f"{trainable:,} of {total:,} ({trainable / total:.2%})"]
    assert rows["stored as"] == [f"float32, {(from_hub / 'model.safetensors').stat().st_size:,} bytes"]


def test_what_is_not_known_is_left_out(from_hub: Path, training):
    assert headings(render_card(from_hub)) == [
        "I-Tuning image captioner",
        "Use",
        "What it is made of",
        "Limits",
        "Cite",
    ]
    assert headings(render_card(from_hub, repo_id="org/mine"))[0] == "mine"
    assert "It was not evaluated." in render_card(from_hub).text
    unknown = {"eval_split": None, "validation": None, "dataset": None, "settings": {"lr": 0.1}}
    write_training_record(from_hub, replace(training, **unknown))
    card = render_card(from_hub)
    assert headings(card)[2:4] == ["What it is made of", "Training"]
    assert "Results" not in headings(card)
    assert "Data: images given in Python.\n" in card.text
    assert "| val " not in card.text
    assert "\n\n\n" not in str(card)


def test_local_backbones_are_named_without_their_place(saved: Path, backbones):
    card = render_card(saved)
    assert str(backbones["vision"].parent) not in str(card)
    assert "| a local folder named `vision` | a local folder named `text` " in re.sub(" +", " ", card.text)
    assert (
        "The vision encoder and the language model are not on the Hub, so that this captioner works\n"
        "> only on a machine that has them. Where they lie elsewhere, say where:\n"
        "> `from_pretrained(..., vision_model_name_or_path=..., text_model_name_or_path=...)`. "
    ) in card.text
    assert "base_model" not in card.data.to_dict()
    assert "base_model_relation" not in card.data.to_dict()
    assert "OpenAI" not in card.text


def test_one_local_backbone(from_hub: Path):
    config = json.loads((from_hub / "config.json").read_text())
    config["text_model_name_or_path"] = r"C:\Users\ann\models\my-gpt2"
    (from_hub / "config.json").write_text(json.dumps(config))
    card = render_card(from_hub)
    assert (
        "The language model is not on the Hub, so that this captioner works\n"
        "> only on a machine that has it. Where it lies elsewhere, say where:\n"
        "> `from_pretrained(..., text_model_name_or_path=...)`. "
    ) in card.text
    assert "a local folder named `my-gpt2`" in card.text
    assert "Users" not in str(card)
    assert card.data.base_model == ["openai/clip-vit-base-patch16"]


def test_a_licence_is_never_guessed():
    facts = {"revision": None, "fingerprint": None, "parameters": 1}
    known = {
        name: Backbone.of("x", facts | {"name_or_path": name}).licence for name in ("gpt2-xl", "ann/gpt2")
    }
    assert known == {
        "gpt2-xl": "[Modified MIT](https://github.com/openai/gpt-2/blob/master/LICENSE)",
        "ann/gpt2": "see [its page](https://huggingface.co/ann/gpt2)",
    }


def test_the_last_part_of_a_path():
    assert [last_part(path) for path in ("/a/b", r"C:\a\b", "/a/b\\c")] == ["b", "b", "b\\c"]


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(told: Path, tmp_path: Path):
    copied = shutil.copytree(told, tmp_path / "elsewhere" / "x")
    assert str(render_card(copied)) == str(render_card(told))


def test_the_citation_is_the_readmes(from_hub: Path):
    def bibtex(text: str) -> str:
        return re.search(r"```bibtex\n.*?```", text, flags=re.DOTALL)[0]

    assert bibtex(render_card(from_hub).text) == bibtex(README.read_text(encoding="utf-8"))
