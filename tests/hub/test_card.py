"""Model cards: rendered from the files of a captioner, and kept when a person edited them."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from small_models import edit_json

from ituning_hf.cli.evaluate import _add_to_card
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.report import Evaluation
from ituning_hf.hub.card import add_evaluation, render_card, write_card
from ituning_hf.hub.inspection import describe
from ituning_hf.hub.records import read_evaluation_records, write_evaluation_records, write_training_record

README = Path(__file__).resolve().parents[2] / "README.md"


def section(card: ModelCard, title: str) -> str:
    """Return the text under a heading."""
    return re.split(r"^## ", card.text.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0].strip()


def headings(card: ModelCard) -> list[str]:
    return re.findall(r"^#+ (.*)$", card.text, flags=re.MULTILINE)


@pytest.fixture
def complete(from_hub: Path, training, evaluations) -> Path:
    """A captioner with records of its training and evaluation."""
    write_training_record(from_hub, training)
    write_evaluation_records(from_hub, evaluations)
    return from_hub


# --- What a card says


METADATA = {
    "library_name": "transformers",
    "pipeline_tag": "image-text-to-text",
    "tags": ["image-captioning", "i-tuning", "ituning"],
    "base_model": ["openai/clip-vit-base-patch16", "gpt2"],
    "base_model_relation": "adapter",
}


def test_the_metadata(complete: Path):
    card = ModelCard(str(render_card(complete, repo_id="org/mine")))  # as the Hub reads it
    metadata = yaml.safe_load(card.data.to_yaml())
    assert {name: metadata[name] for name in METADATA} == METADATA
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


RESULTS = """
After step 18,120, the loss on 1,014 images of the val split was 2.3457 per token. \
Greedy captions of 200 of them: BLEU-4 29.6, CIDEr 60.0.

| dataset | split | images | BLEU-4 | CIDEr | SPICE | tokenizer |
| --- | --- | --- | --- | --- | --- | --- |
| COCO Karpathy | test | 5,000 | 34.6 | 110.0 |  | PTB (Java) |
| NoCaps | val, out-of-domain | 914 (2 unreadable) |  | 50.0 | 10.0 | Python |

The official COCO scorers computed the scores, here times 100:

```bash
ituning evaluate --model org/x --dataset coco.json --split test
ituning evaluate --model org/x --dataset nocaps.json --split test
```
"""
TRAINING = """
Data: [org/photos:small](https://huggingface.co/datasets/org/photos).

| split | images |
| --- | --- |
| train | 29,000 |
| val | 1,014 |

| setting | value |
| --- | --- |
| optimizer | AdamW, cross-entropy loss |
| optimizer steps | 18,120 (10 epochs) |
| `augmentation` | crop, flip |
| `learning_rate` | 0.0005 |
| `seed` | 0 |

| environment |  |
| --- | --- |
| device | NVIDIA H200, 2 processes |
| precision | bf16, the adapter in fp32 |
| python | 3.11.7 |
| torch | 2.13.0 |
| transformers | 5.23.0 |
"""


def test_the_training_and_the_results(complete: Path):
    assert section(render_card(complete), "Training") == TRAINING.strip()
    assert section(render_card(complete), "Results") == RESULTS.strip()


def test_scores_are_rounded_once(from_hub: Path, evaluations):
    """Twice, 19.4525 would become 19.45, and that 19.4."""
    write_evaluation_records(from_hub, [replace(evaluations[0], metrics={"rouge_l": 0.194525})])
    card = render_card(from_hub)
    assert "| 19.5 |" in section(card, "Results")
    assert card.data.eval_results[0].metric_value == 19.45


def test_the_parts(from_hub: Path):
    description = describe(from_hub)
    trainable, total = (description["parameters"][key] for key in ("trainable", "total"))
    vision, text = (description[f"{kind}_model"] for kind in ("vision", "text"))
    lines = section(render_card(from_hub), "Parts").splitlines()
    name = "openai/clip-vit-base-patch16"
    for cells in (
        ("model", f"[{name}](https://huggingface.co/{name})", "[gpt2](https://huggingface.co/gpt2)"),
        ("parameters", f"{vision['parameters']:,}, frozen", f"{text['parameters']:,}, frozen"),
        ("revision", "`0123456789abcdef0123456789abcdef01234567`", f"`{'f' * 40}`"),
        ("fingerprint", f"`{vision['fingerprint']}`", f"`{text['fingerprint']}`"),
        ("width r", "21"),
        ("decoder layers", "1, 3"),
        ("dropout", "0.0"),
        ("trainable parameters", f"{trainable:,} of {total:,} ({trainable / total:.2%})"),
        ("stored as", f"float32, {(from_hub / 'model.safetensors').stat().st_size:,} bytes"),
    ):
        assert f"| {' | '.join(cells)} |" in lines


def test_unknown_sections_are_left_out(from_hub: Path, training):
    card = render_card(from_hub)
    assert yaml.safe_load(card.data.to_yaml()) == METADATA
    assert headings(card) == ["I-Tuning image captioner", "Use", "Parts", "Limits", "Cite"]
    assert not re.search(r"\btrained on\b", section(card, "Use"))
    assert "It was not evaluated." in card.text
    assert headings(render_card(from_hub, repo_id="org/mine"))[0] == "mine"
    unknown = {"eval_split": None, "validation": None, "dataset": None, "settings": {"lr": 0.1}}
    write_training_record(from_hub, replace(training, **unknown))
    card = render_card(from_hub)
    assert headings(card)[2:5] == ["Parts", "Training", "Limits"]
    assert "Data: images passed in Python.\n" in card.text
    assert "| val " not in card.text
    assert "\n\n\n" not in str(card)


def test_local_backbones_are_named_without_their_path(saved: Path, backbones):
    card = render_card(saved)
    assert str(backbones["vision"].parent) not in str(card)
    assert "| a local folder named `vision` | a local folder named `text` |" in card.text
    assert "vision encoder and the language model are not on the" in card.text
    assert "vision_model_name_or_path=..., text_model_name_or_path=...)" in card.text
    assert not {"base_model", "base_model_relation"} & card.data.to_dict().keys()


def test_one_local_backbone(from_hub: Path):
    edit_json(from_hub / "config.json", text_model_name_or_path=r"C:\Users\ann\models\my-gpt2")
    card = render_card(from_hub)
    assert "The language model is not on the" in card.text
    assert "`from_pretrained(..., text_model_name_or_path=...)`" in card.text
    assert "a local folder named `my-gpt2`" in card.text
    assert "Users" not in str(card)
    assert card.data.base_model == ["openai/clip-vit-base-patch16"]


def test_the_same_files_give_the_same_bytes_in_any_folder(complete: Path, tmp_path: Path):
    copied = shutil.copytree(complete, tmp_path / "elsewhere" / "x")
    assert str(render_card(copied)) == str(render_card(complete))


def test_the_citation_is_that_of_the_readme(from_hub: Path):
    def bibtex(text: str) -> str:
        return re.search(r"```bibtex\n.*?```", text, flags=re.DOTALL)[0]

    assert bibtex(render_card(from_hub).text) == bibtex(README.read_text(encoding="utf-8"))


# --- The card in the folder


def test_a_rendered_card_is_updated(saved: Path, evaluations):
    readme = saved / "README.md"
    assert readme.read_text() == str(render_card(saved))
    write_evaluation_records(saved, evaluations)
    assert write_card(saved, repo_id="org/mine")
    assert readme.read_text() == str(render_card(saved, repo_id="org/mine"))
    assert "your-name" not in readme.read_text()
    text = readme.read_text()
    readme.write_bytes(text.replace("\n", "\r\n").encode())  # a checkout on Windows
    assert write_card(saved, repo_id="org/mine")
    assert readme.read_text() == text


def test_metadata_of_a_person_is_kept_in_an_updated_card(saved: Path, evaluations):
    readme = saved / "README.md"
    own = "license: mit\ntags:\n- mine\nmodel-index: []\n"
    readme.write_text(re.sub(r"\A---\n.*?tags:\n(- \S+\n)*", f"---\n{own}", readme.read_text(), flags=re.S))
    assert add_evaluation(saved, evaluations)
    data = ModelCard.load(readme).data.to_dict()
    assert (data["license"], data["tags"]) == ("mit", ["mine"])
    assert data["library_name"] == "transformers"
    assert len(data["model-index"][0]["results"]) == 2
    (saved / "evaluation.json").unlink()
    assert write_card(saved)
    data = ModelCard.load(readme).data.to_dict()
    assert data["license"] == "mit"
    assert not {"model-index", "metrics"} & data.keys()


@pytest.mark.parametrize(
    ("dataset", "split", "is_shown"),
    [("photos", "all", False), ("photos", "train", False), ("photos", "val", True), ("other", "all", True)],
)
def test_scores_of_images_that_training_used_are_not_shown(saved: Path, training, dataset, split, is_shown):
    write_training_record(saved, replace(training, dataset="photos"))
    lists = {key: [] for key in ("images", "image_ids", "captions", "unreadable")}
    evaluation = Evaluation(dataset=dataset, split=split, speed=None, parts={}, **lists)
    text = _add_to_card(EvaluateArguments(model=str(saved)), evaluation)
    assert text.startswith(f"Warning: photos, {split}, has images that training used: ") is not is_shown
    assert (saved / "evaluation.json").exists() is is_shown


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("## Limits", "## My limits").encode(),
        lambda text: (text + "\nMore.\n").encode(),
        lambda text: text.rpartition("\n<!--")[0].encode(),
        lambda text: b"",
        lambda text: "---\nlicense: mit\n---\n# Café".encode("latin-1"),
    ],
)
def test_an_edited_card_is_not_overwritten(saved: Path, evaluations, edit):
    readme = saved / "README.md"
    edited = edit(readme.read_text())
    readme.write_bytes(edited)
    assert not write_card(saved)
    assert not add_evaluation(saved, evaluations)
    assert readme.read_bytes() == edited
    assert read_evaluation_records(saved) == evaluations


def test_scores_replace_earlier_ones_of_the_same_split(saved: Path, evaluations):
    coco, nocaps = evaluations
    add_evaluation(saved, [coco])
    add_evaluation(saved, [nocaps, replace(nocaps, subset=None)])
    better = replace(coco, metrics={"cider": 1.2})
    assert add_evaluation(saved, [better])
    assert read_evaluation_records(saved) == [nocaps, replace(nocaps, subset=None), better]
    assert "120.0" in (saved / "README.md").read_text()
    assert "110.0" not in (saved / "README.md").read_text()


def test_the_front_matter_names_the_data_of_the_last_training(from_hub: Path, training):
    for name in ("org/a", "org/b"):
        write_training_record(from_hub, replace(training, dataset=name))
        assert write_card(from_hub)
        assert ModelCard.load(from_hub / "README.md").data.datasets == [name]


def test_without_a_captioner_there_is_no_card(tmp_path: Path):
    with pytest.raises(OSError, match="no captioner at"):
        write_card(tmp_path)
    assert list(tmp_path.iterdir()) == []
