"""What of a captioner's folder may go to the Hub: told from the files, with no network."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from small_models import LeavesAMark, edit_json, make_captioner, unseal

from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner
from ituning_hf.cli import main
from ituning_hf.hub.facts import PLACEHOLDER
from ituning_hf.hub.review import review_captioner
from ituning_hf.hub.writing import write_card

HUB = {"vision_model": "org/clip", "text_model": "org/text"}


@pytest.fixture(scope="module")
def saved(backbones, processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "captioner"
    save_captioner(make_captioner(backbones), processor, folder)
    (folder / "README.md").write_text(f"# Captioner\n\nOver {backbones['vision']}.\n")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "captioner"))


def add_tensor(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(3)}, path, {"format": "pt"})


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def break_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["text_model.transformer.h.2.adapter.q_proj.bias"][0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = [
    (lambda f: (f / "notes.txt").write_text("x"), "notes.txt is no part of it"),
    (lambda f: (f / "checkpoint-9").mkdir(), "checkpoint-9/ is a folder"),
    (lambda f: (f / "optimizer.pt").write_bytes(b"x"), "optimizer.pt is a pickle"),
    (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin is a pickle"),
    (lambda f: (f / "vocab.json").write_bytes(pickle.dumps({})), "vocab.json is a pickle, or holds one"),
    (lambda f: write_zip(f / "evaluation.json"), "evaluation.json is a pickle, or holds one"),
    (lambda f: (f / "clip.safetensors").write_bytes(b"x"), "clip.safetensors holds other weights than"),
    (lambda f: (f / "model.gguf").write_bytes(b"x"), "model.gguf holds other weights than the adapter's"),
    (lambda f: add_tensor(f, "text_model.transformer.wte.weight"), "holds 1 tensor(s) that are not the"),
    (lambda f: add_tensor(f, "text_model.transformer.h.9.adapter.x"), "1 unexpected (first: "),
    (break_tensor, "1 not finite (first: ['text_model.transformer.h.2.adapter.q_proj.bias'])"),
    (lambda f: cut_short(f / "model.safetensors"), "it is corrupt or was cut short"),
    (lambda f: (f / "model.safetensors").unlink(), "there is no model.safetensors, the adapter"),
    (lambda f: (f / "README.md").unlink(), "there is no README.md, the model card that the Hub shows"),
    (lambda f: (f / "README.md").write_bytes(b"\xff"), "README.md is damaged"),
    (lambda f: (f / "processor_config.json").unlink(), "There is no whole processor in"),
    (lambda f: (f / "tokenizer.json").unlink(), "There is no whole processor in"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "There is no whole processor in"),
    (lambda f: (f / "training.json").write_text("{"), "training.json is damaged"),
    (lambda f: (f / "training.json").write_text("{}"), "captioner/training.json is no record of a training"),
    (lambda f: (f / "evaluation.json").write_text("{}"), "captioner/evaluation.json holds no evaluation"),
    (
        lambda f: (f / "generation_config.json").write_text("[]"),
        "generation_config.json is damaged (it holds a list, expected an object)",
    ),
    (lambda f: (f / "link.json").symlink_to("nowhere"), "link.json is no file, or a link to none"),
    (lambda f: (f / "gpt2_ituning.py").unlink(), "is not all there (['gpt2_ituning.py'])"),
    (
        lambda f: (f / "gpt2_ituning.py").write_text("import os"),
        "gpt2_ituning.py is not this version's own: load the captioner and save it again",
    ),
    (lambda f: (f / "setup.py").write_text(""), "setup.py is no part of it"),
    (
        lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "other/repo--module.Class"}),
        "config.json takes code from elsewhere, auto_map ['other/repo--module.Class']",
    ),
    (
        lambda f: edit_json(f / "processor_config.json", image_processor={"auto_map": {"A": ["m.C", None]}}),
        "processor_config.json takes code from elsewhere, auto_map ['m.C']",
    ),
    (
        lambda f: edit_json(f / "config.json", vision_model_fingerprint=None),
        "where its frozen vision model comes from was not recorded",
    ),
    (
        lambda f: edit_json(f / "config.json", adapter_num_heads=2),
        "which adapter_num_heads (2) does not divide",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_must_not_go_is_refused(folder: Path, spoil, message: str):
    unseal(folder)  # fingerprints alone would refuse most of these
    spoil(folder)
    with pytest.raises(ValueError, match="cannot go to the Hub as it is") as refused:
        review_captioner(folder, **HUB)
    assert message in str(refused.value)
    problems = str(refused.value).split("\n- ")[1:]
    assert len(problems) == 1 or "processor" in message or "cut" in message


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edit_json(f / "config.json", adapter_scale=2.0), "config.json was changed after it was"),
        (lambda f: flip_last_bit(f / "model.safetensors"), "is not the one that config.json was saved with"),
        (
            lambda f: edit_json(f / "tokenizer_config.json", errors="x"),
            "after it was saved (tokenizer_config.json)",
        ),
    ],
)
def test_what_was_changed_after_it_was_saved_does_not_go(folder: Path, spoil, message: str):
    spoil(folder)
    with pytest.raises(ValueError, match="cannot go to the Hub as it is") as refused:
        review_captioner(folder, **HUB)
    assert message in str(refused.value)


def test_all_problems_are_told_at_once_and_each_in_one_line(folder: Path, backbones, capsys):
    (folder / "notes.txt").write_text("x")
    (folder / "optimizer.bin").write_bytes(b"x")
    (folder / "README.md").unlink()
    assert main(["push", str(folder), "org/new"]) == 2
    error = capsys.readouterr().err
    lines = error.splitlines()
    assert lines[0] == f"ituning: error: {str(folder)!r} cannot go to the Hub as it is:"
    assert all(line.startswith("- ") for line in lines[1:-1])
    assert len(lines) == 7
    assert lines[-1] == (
        f"What is not on the Hub yet gets there by `hf upload org/NAME-vision {backbones['vision']}` and "
        f"`hf upload org/NAME-text {backbones['text']}`; then give --vision_model org/NAME-vision "
        "--text_model org/NAME-text."
    )
    for problem in (
        "notes.txt is no part",
        "optimizer.bin is a pickle",
        "there is no README.md",
        f"its frozen vision model is the local folder {str(backbones['vision'])!r}, which nobody else has",
        "the same model on the Hub, --text_model ID (text_model=... in Python)",
    ):
        assert problem in error


@pytest.mark.parametrize(
    "name", ["{clip}", "/nowhere/clip", "./clip", "~/clip", "C:\\clip", "a/b/c", "../clip"]
)
def test_a_local_folder_is_no_place_on_the_hub(folder: Path, backbones, name: str):
    name = name.format(**backbones)
    with pytest.raises(ValueError, match="its frozen vision model is the local folder"):
        review_captioner(folder, vision_model=name, text_model="gpt2")


def test_only_what_is_not_on_the_hub_is_to_be_uploaded_and_a_shell_can_read_it(folder: Path):
    name = "/home/ann/my gpt2"
    with pytest.raises(ValueError, match="hf upload org/NAME-text '/home/ann/my gpt2'`; then") as refused:
        review_captioner(folder, vision_model="org/clip", text_model=name)
    assert "NAME-vision" not in str(refused.value)


def test_a_folder_here_of_the_name_of_an_id_is_refused(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "clip").mkdir(parents=True)
    with pytest.raises(ValueError, match="is the local folder 'org/clip'"):
        review_captioner(folder, **HUB)


def test_no_captioner(tmp_path: Path, backbones):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .* give a saved captioner"):
        review_captioner(tmp_path / "none")
    with pytest.raises(OSError, match="There is no captioner at"):
        review_captioner(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'gpt2'"):
        review_captioner(backbones["text"])


def test_nothing_is_unpickled(folder: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(LeavesAMark(mark)))
    torch.save(LeavesAMark(mark), folder / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json is a pickle"):
        review_captioner(folder, **HUB)
    assert not mark.exists()


def test_the_dry_run_lists_what_would_go(folder: Path, backbones, capsys):
    (folder / ".git").mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    arguments = ["--vision_model", "org/clip", "--text_model", "org/text", "--private", "--revision", "v1"]
    assert main(["push", str(folder), "org/new", "--dry_run", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    review = review_captioner(folder, **HUB)
    contents = review.contents("org/mine", {"vision": "1" * 40, "text": "2" * 40})
    sizes = {k: len(v) if isinstance(v, bytes) else v.stat().st_size for k, v in sorted(contents.items())}
    assert lines[: len(sizes)] == [f"{size:>13,} bytes  {name}" for name, size in sizes.items()]
    assert lines[len(sizes) :] == [
        f"{sum(sizes.values()):>13,} bytes  in {len(sizes)} files",
        "left out: .DS_Store, .git",
        "card: yours: sent with its metadata completed",
        "vision model: org/clip at its newest commit, whose weights are compared first",
        "text model: org/text at its newest commit, whose weights are compared first",
        "to the private repository org/new, branch v1; nothing was sent",
    ]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert contents["README.md"].decode().endswith("---\n\n# Captioner\n\nOver org/clip.\n")
    config = json.loads(contents["config.json"])
    assert (config["vision_model_revision"], config["text_model_revision"]) == ("1" * 40, "2" * 40)


def test_a_place_that_begins_like_the_local_one_is_not_taken_for_it(folder: Path, backbones):
    local = str(backbones["vision"])
    (folder / "README.md").write_text(f"{local}-large, {local}.bak, {local}2; {local}. {local}/x ({local})")
    contents = review_captioner(folder, **HUB).contents("org/mine", {"vision": "1" * 40, "text": "2" * 40})
    new = f"{local}-large, {local}.bak, {local}2; org/clip. org/clip/x (org/clip)"
    assert contents["README.md"].decode().endswith(f"---\n\n{new}")


@pytest.mark.parametrize("recorded", ["C:\\Users\\ann\\gpt2", "/home/ann/gpt2"])
def test_no_local_folder_goes_wherever_it_was_recorded(folder: Path, recorded: str):
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | {"_name_or_path": recorded}
    edit_json(folder / "config.json", text_model_name_or_path=recorded, text_config=text)
    edit_json(folder / "tokenizer_config.json", name_or_path=recorded)
    contents = review_captioner(folder, **HUB).contents("org/mine", {"vision": "1" * 40, "text": "2" * 40})
    config = json.loads(contents["config.json"])
    assert config["text_model_name_or_path"] == config["text_config"]["_name_or_path"] == "org/text"
    assert json.loads(contents["tokenizer_config.json"])["name_or_path"] == "org/text"


def test_an_id_that_is_replaced_is_not_taken_for_a_word(folder: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)  # the recorded id is a local folder's name, too
    edit_json(folder / "config.json", text_model_name_or_path="gpt2")
    contents = review_captioner(folder, **HUB).contents("org/mine", {"vision": "1" * 40, "text": "2" * 40})
    config = json.loads(contents["config.json"])
    assert config["text_model_name_or_path"] == "org/text"
    assert config["text_config"]["model_type"] == "gpt2"


def test_the_vocabulary_stays_whatever_the_folder_is_called(folder: Path):
    edit_json(folder / "config.json", text_model_name_or_path="/")
    contents = review_captioner(folder, **HUB).contents("org/mine", {"vision": "1" * 40, "text": "2" * 40})
    assert contents["tokenizer.json"] == folder / "tokenizer.json"


@pytest.mark.parametrize("flags", [["--dry_run"], []])
@pytest.mark.parametrize("repo", ["a/b/c", "", "a b/c", "org/x/"])
def test_what_is_no_id_on_the_hub_is_refused_at_once(folder: Path, repo: str, flags, capsys):
    assert main(["push", str(folder), repo, *flags]) == 2  # before the folder, whose backbones are local
    assert f"{repo!r} is no id on the Hub" in capsys.readouterr().err


def test_a_rendered_card_is_rendered_for_its_place_on_the_hub(backbones, processor, tmp_path: Path):
    save_captioner(make_captioner(backbones), processor, tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    revisions = {"vision": "1" * 40, "text": "2" * 40}
    card = review_captioner(tmp_path, **HUB).contents("org/mine", revisions)["README.md"].decode()
    assert ModelCard(card).data.base_model == ["org/clip", "org/text"]
    assert 'captioner, revision = "org/mine", "main"' in card
    assert "1" * 40 in card
    assert "not on the Hub" in before.decode()
    assert "not on the Hub" not in card
    assert (tmp_path / "README.md").read_bytes() == before


REVISIONS = {"vision": "1" * 40, "text": "2" * 40}


def card_on_the_hub(folder: Path) -> str:
    return review_captioner(folder, **HUB).contents("org/mine", REVISIONS)["README.md"].decode()


def test_an_edited_card_says_nothing_that_is_true_of_this_machine_alone(backbones, processor, tmp_path: Path):
    save_captioner(make_captioner(backbones), processor, tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("## Limits", "## Limits\n\nIt is mine."))
    assert "not on the Hub" in path.read_text()
    assert PLACEHOLDER in path.read_text()
    card = card_on_the_hub(tmp_path)
    assert "## Limits\n\nIt is mine." in card
    assert "not on the Hub" not in card
    assert PLACEHOLDER not in card
    assert "## Use\n\n```python" in card
    assert 'captioner, revision = "org/mine", "main"' in card
    assert "a local folder" not in card
    assert "| [org/clip](https://huggingface.co/org/clip) " in card
    assert "stands for the captioner's folder" not in card
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation) == (["org/clip", "org/text"], "adapter")


def test_what_a_person_told_the_hub_stays_to_the_byte(folder: Path):
    kept, models = "license: mit  # as we agreed\ntags: [mine]\n", "base_model:\n- org/clip\n- org/third\n"
    (folder / "README.md").write_text(f"---\n{kept}{models}# more\nlanguage: no\n---\n# Mine\n")
    card = card_on_the_hub(folder)
    assert card == (
        f"---\n{kept}# more\nlanguage: no\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n"
        f"base_model_relation: adapter\n{models}- org/text\n---\n# Mine\n"
    )
    (folder / "README.md").write_text(card)
    assert (
        review_captioner(folder, **HUB).contents("org/mine", REVISIONS)["README.md"] == folder / "README.md"
    )


def test_a_card_may_have_what_was_rendered_more_than_once(backbones, processor, tmp_path: Path):
    save_captioner(make_captioner(backbones), processor, tmp_path)
    path = tmp_path / "README.md"
    rendered = path.read_text()
    path.write_text(rendered + rendered.split("---\n", 2)[2])
    card = card_on_the_hub(tmp_path)
    assert card.count('captioner, revision = "org/mine", "main"') == 2
    assert card.count("| [org/clip](https://huggingface.co/org/clip) ") == 2
    assert "not on the Hub" not in card


def test_a_card_that_an_editor_of_windows_saved_keeps_its_one_front_matter(folder: Path):
    (folder / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n# Mine\r\n")
    card = card_on_the_hub(folder)
    assert card.startswith("---\nlicense: mit\n")
    assert card.endswith("\n---\n# Mine\n")
    assert card.count("---\n") == 2
    assert ModelCard(card).data.base_model == ["org/clip", "org/text"]


def test_models_that_a_card_tells_in_a_way_of_its_own_stay(folder: Path):
    (folder / "README.md").write_text("---\nbase_model:\n- name: org/clip\n---\n# Mine\n")
    models = [{"name": "org/clip"}, "org/clip", "org/text"]
    assert ModelCard(card_on_the_hub(folder)).data.to_dict()["base_model"] == models


@pytest.mark.parametrize(
    ("front", "told"), [("a: [", "is not YAML"), ("- a", "holds a list, expected 'name: value'")]
)
def test_a_card_that_the_hub_cannot_read_is_refused(folder: Path, front: str, told: str):
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    with pytest.raises(ValueError, match=f"README.md cannot be read by the Hub .*{told}.*mend it"):
        review_captioner(folder, **HUB)


def test_the_dry_run_says_of_a_rendered_card_what_it_is_rendered_for(folder: Path, capsys):
    (folder / "README.md").unlink()
    write_card(folder)
    flags = ["--vision_model", "org/clip", "--text_model", "org/text"]
    assert main(["push", str(folder), "org/new", "--dry_run", *flags]) == 0
    assert "card: rendered for org/new\n" in capsys.readouterr().out


def test_a_captioner_over_pinned_models_of_the_hub_goes_byte_for_byte(folder: Path):
    for kind in ("vision", "text"):
        place = {f"{kind}_model_name_or_path": f"org/{kind}", f"{kind}_model_revision": "c" * 40}
        edit_json(folder / "config.json", **place)
    review = review_captioner(folder)
    assert [place.revision for place in review.places.values()] == ["c" * 40] * 2
    (folder / "README.md").write_bytes(review.contents("org/mine", {})["README.md"])
    assert review.contents("org/mine", {}) == {name: folder / name for name in review.names}


def test_a_model_is_not_pushed_over_local_folders(folder: Path, tmp_path: Path):
    model = ITuningForCaptioning.from_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"backbones are local folders, which nobody else has: .*vision_model"
    ):
        model.push_to_hub("org/new")
    with pytest.raises(ValueError, match="backbones are local folders"):
        model.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="org/new")


def test_a_model_is_not_pushed_over_backbones_that_are_stored_nowhere(folder: Path):
    config = ITuningForCaptioning.from_pretrained(folder).config
    config.text_model_name_or_path = None
    with pytest.raises(ValueError, match="were built in memory and are stored nowhere, so that nobody"):
        ITuningForCaptioning(config).push_to_hub("org/new")


def test_a_commit_has_a_message(folder: Path, capsys):
    assert main(["push", str(folder), "org/mine", "--message", " "]) == 2
    assert "commit_message is ' ', expected what the history is to say" in capsys.readouterr().err
