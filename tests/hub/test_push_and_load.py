"""A captioner goes to the Hub in one process, and a stranger's process captions with it."""

import json
from typing import Any

import pytest

from ituning_hf import ITuningConfig

CAPTION = """
import json

from PIL import Image
from transformers import AutoModel, AutoProcessor


def captions_of(model, processor):
    image = Image.open(picture)
    ids = model.generate(**processor(images=[image, image.rotate(90)]))
    return processor.batch_decode(ids, skip_special_tokens=True)


def load(name, auto_class=AutoModel, **options):
    options = {"trust_remote_code": True, **options}
    model = auto_class.from_pretrained(name, **options)
    return captions_of(model, AutoProcessor.from_pretrained(name, **options))

"""

PUSH = (
    CAPTION
    + """
import io
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import load_file, save
from ituning_hf import ITuningForCaptioning, ITuningProcessor, push_captioner
from ituning_hf.cli import main

a, b, picture = sys.argv[1:]
api = HfApi()
hub_ids = {"vision_model": "org/clip", "text_model": "org/text"}


def ituning(*arguments):
    with redirect_stdout(io.StringIO()) as output:
        assert main(arguments) == 0
    return output.getvalue()


found = {"first": asdict(push_captioner(a, "org/captioner", **hub_ids))}
found["again"] = asdict(push_captioner(a, "org/captioner", **hub_ids))
api.create_tag("org/captioner", tag="one", revision="main")
flags = ["--vision_model", "org/clip", "--text_model", "org/text"]
found["branch"] = ituning("push", a, "org/captioner", "--revision", "draft", "--message", "A draft", *flags)
found["second"] = ituning("push", b, "org/captioner", *flags)
found["private"] = ituning("push", a, "org/secret", "--private", *flags)

model = ITuningForCaptioning.from_vision_text_pretrained(
    "org/clip", "org/text", adapter_hidden_size=21, adapter_num_heads=7, adapter_layers=[1, 3]
)
model.load_adapter_state_dict(load_file(f"{a}/model.safetensors"), a)
config = model.config
revisions = {"vision_revision": config.vision_model_revision, "text_revision": config.text_model_revision}
found["revisions"] = revisions
shape = ["--adapter_hidden_size", "21", "--adapter_num_heads", "7", "--max_caption_tokens", "40"]
run = ["--dataset", "scenes", "--num_scenes", "10", "--max_train_steps", "1", "--output_dir", "run", *shape]
ituning("train", "--vision_model", "org/clip", "--text_model", "org/text", *run)
trained = json.loads(Path("run/last/config.json").read_text())
found["trained"] = {f"{kind}_revision": trained[f"{kind}_model_revision"] for kind in ("vision", "text")}

model.push_to_hub("org/by-hand", commit_message="By hand")
processor = ITuningProcessor.from_vision_text_pretrained("org/clip", "org/text", **revisions)
processor.push_to_hub("org/by-hand")
push_captioner(b, "org/card", **hub_ids)
model.push_to_hub("org/card")

# The backbones move on: other weights, another image size, another vocabulary.
for kind in ("clip", "text"):
    weights = load_file(api.hf_hub_download(f"org/{kind}", "model.safetensors"))
    zeros = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    new = {"model.safetensors": save(zeros, {"format": "pt"}), "tokenizer.json": b"{}"}
    new["preprocessor_config.json"] = b"{}"
    operations = [CommitOperationAdd(*file) for file in new.items()]
    api.create_commit(f"org/{kind}", operations, commit_message="Moved")
found["after"] = captions_of(ITuningForCaptioning.from_pretrained("org/captioner", revision="one"), processor)
again = ITuningProcessor.from_vision_text_pretrained("org/clip", "org/text", **revisions)
found["processor after"] = captions_of(model, again)
"""
)

LOAD = (
    CAPTION
    + """
from transformers import AutoModelForImageTextToText, pipeline

first, picture = sys.argv[1:]
found = {"main": load("org/captioner")}
found["branch"] = load("org/captioner", revision="draft")
found["tag"] = load("org/captioner", revision="one")
found["commit"] = load("org/captioner", revision=first, code_revision=first)
found["by hand"] = load("org/by-hand")
found["image text"] = load("org/captioner", AutoModelForImageTextToText)
captioner = pipeline("image-text-to-text", model="org/captioner", revision="one", trust_remote_code=True)
image = Image.open(picture)
found["pipeline"] = [each["generated_text"] for each in captioner([image, image.rotate(90)], text=["", ""])]
"""
)

OFFLINE = (
    CAPTION
    + """
picture = sys.argv[1]
found = {"main": load("org/captioner"), "tag": load("org/captioner", revision="one")}
"""
)


@pytest.fixture(scope="module")
def pushed(hub, client, captioners) -> dict[str, Any]:
    return client("writer").run(PUSH, captioners["a"], captioners["b"], captioners["picture"], package=True)


@pytest.fixture(scope="module")
def stranger(client):
    return client()


@pytest.fixture(scope="module")
def loaded(pushed, stranger, captioners) -> dict[str, Any]:
    return stranger.run(LOAD, pushed["first"]["commit"], captioners["picture"])


def repository(hub, name: str = "org/captioner"):
    return hub.repositories.repositories[name]


def test_it_goes_in_one_commit_and_holds_a_captioner_and_no_more(hub, pushed, captioners):
    commit = repository(hub).at("one")
    assert commit.sha == pushed["first"]["commit"]
    assert commit.message == "Upload captioner"
    assert set(commit.files) == {".gitattributes", *(path.name for path in captioners["a"].iterdir())}
    assert [commit.message for commit in repository(hub).commits.values()] == [
        "initial commit",
        "Upload captioner",  # a; the branch with the same content has the same commit
        "Upload captioner",  # b
    ]


def test_local_backbones_are_replaced_by_the_hubs_at_a_commit(hub, pushed, captioners, backbones):
    files = repository(hub).at("one").files
    config = json.loads(files["config.json"])
    assert config["vision_model_name_or_path"] == "org/clip"
    assert config["text_model_name_or_path"] == "org/text"
    first = {kind: list(repository(hub, f"org/{kind}").commits)[1] for kind in ("clip", "text")}
    assert (config["vision_model_revision"], config["text_model_revision"]) == tuple(first.values())
    assert files["README.md"].decode().endswith("Trained over `org/clip`, and over org/text.\n")
    assert not [name for name, data in files.items() if str(backbones["clip"].parent).encode() in data]
    kept = ITuningConfig.from_pretrained(captioners["a"])
    assert kept.text_model_name_or_path == str(backbones["text"])


def test_files_are_what_they_were(hub, pushed, captioners):
    changed = {
        name
        for name, data in repository(hub).at("one").files.items()
        if name != ".gitattributes" and (captioners["a"] / name).read_bytes() != data
    }
    assert changed == {"config.json", "README.md"}


def test_pushing_the_same_again_makes_no_commit(pushed):
    assert pushed["first"]["changed"] is True
    assert pushed["again"] == pushed["first"] | {"changed": False}


def test_the_command_prints_where_it_is_and_how_to_load_it(hub, pushed):
    assert pushed["second"].splitlines() == [
        f"{hub.endpoint}/org/captioner at commit {repository(hub).branches['main']}",
        'AutoModel.from_pretrained("org/captioner", trust_remote_code=True)',
    ]
    assert pushed["branch"].splitlines() == [
        "the same files were there already: no commit was made",
        f"{hub.endpoint}/org/captioner at commit {pushed['first']['commit']}",
        'AutoModel.from_pretrained("org/captioner", trust_remote_code=True, revision="draft")',
    ]


@pytest.mark.parametrize(
    ("which", "captions"),
    [
        ("main", "b"),
        ("branch", "a"),
        ("tag", "a"),
        ("commit", "a"),
        ("image text", "b"),
        ("by hand", "a"),
        ("pipeline", "a"),
    ],
)
def test_a_stranger_gets_the_same_captions(loaded, expected, which: str, captions: str):
    assert loaded[which] == expected[captions]


def test_backbones_are_pinned_when_the_captioner_is_created_and_when_it_is_loaded(hub, pushed, expected):
    commits = {kind: list(repository(hub, f"org/{kind}").commits) for kind in ("clip", "text")}
    assert [len(shas) for shas in commits.values()] == [3, 3]  # the first, the folder, and what came later
    assert list(pushed["revisions"].values()) == [shas[1] for shas in commits.values()]
    assert pushed["trained"] == pushed["revisions"]
    assert pushed["after"] == pushed["processor after"] == expected["a"]


def test_a_card_that_is_there_stays(hub, pushed):
    commits = list(repository(hub, "org/card").commits.values())
    cards = [commit.files["README.md"] for commit in commits[1:]]
    assert len(cards) == 2
    assert cards[0] == cards[1]


def test_from_the_cache_without_a_hub(loaded, stranger, hub, captioners, expected):
    asked = len(hub.requests)
    found = stranger.run(OFFLINE, captioners["picture"], HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert found == {"main": expected["b"], "tag": expected["a"]}
    assert len(hub.requests) == asked
