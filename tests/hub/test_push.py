"""`push_captioner` and `ituning push`, with the real client, against the loopback Hub."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import use_hub
from safetensors.torch import load_file, save_file
from small_models import edit_json

from ituning_hf import ITuningForCaptioning, ITuningProcessor, load_captioner
from ituning_hf.cli import main
from ituning_hf.hub import handler
from ituning_hf.hub.card import PLACEHOLDER
from ituning_hf.hub.push import list_files, push_captioner
from ituning_hf.utils.errors import UserError

HUB = {"vision_model": "org/clip", "text_model": "org/text"}
FLAGS = ["--vision_model", "org/clip", "--text_model", "org/text"]


def files_of(hub, name: str = "org/captioner", revision: str = "main") -> dict[str, bytes]:
    return {
        path: data
        for path, data in hub.repositories[name].at(revision).files.items()
        if path != ".gitattributes"
    }


# --- The repository


@pytest.mark.usefixtures("writer")
def test_one_commit_has_the_files_of_the_captioner_and_names_backbones_of_the_hub(hub, saved, backbones):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    for name in ("notes.txt", "optimizer.pt", "other_ituning.py"):
        (saved / name).write_text("x")
    (saved / "processing_ituning.py").unlink()
    (saved / "modeling_ituning.py").write_text("raise SystemExit")  # the package's own code is pushed
    (saved / "checkpoint-9").mkdir()
    (saved / "checkpoint-9" / "config.json").write_text("{}")
    commit = push_captioner(saved, "captioner", **HUB)  # the user's own namespace is added
    commits = list(hub.repositories["ann/captioner"].commits.values())
    assert [made.message for made in commits] == ["initial commit", "Upload captioner"]
    assert commit.oid == commits[1].sha
    files = files_of(hub, "ann/captioner")
    assert files.keys() == before.keys()
    assert {name for name in files if files[name] != before[name]} == {"config.json", "README.md"}
    code = {"modeling_ituning.py", "processing_ituning.py"}
    assert all((saved / name).read_bytes() == before[name] for name in before.keys() - code)
    config = json.loads(files["config.json"])
    for kind, name in (("vision", "org/clip"), ("text", "org/text")):
        assert config[f"{kind}_model_name_or_path"] == name
        assert config[f"{kind}_model_revision"] == hub.repositories[name].at("main").sha
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == ["org/clip", "org/text"]
    assert 'captioner = "ann/captioner"' in card.text
    assert "not on the\n> Hub" not in card.text
    local = str(backbones["clip"].parent).encode()
    assert not [name for name, data in files.items() if local in data or PLACEHOLDER.encode() in data]


@pytest.mark.usefixtures("writer")
def test_pushing_over_another_captioner_and_a_card_edited_on_the_hub(hub, captioners, saved: Path):
    (saved / "evaluation.json").write_text("[]")
    first = push_captioner(saved, "org/captioner", **HUB)
    assert push_captioner(saved, "org/captioner", **HUB).oid == first.oid  # no commit without changes
    repository = hub.repositories["org/captioner"]
    repository.commit({"notes.md": b"A person's.", "README.md": b"# My words\n"})
    push_captioner(captioners["b"], "org/captioner", **HUB)
    before, after = repository.commits[first.oid].files, files_of(hub)
    assert before.keys() - after.keys() == {".gitattributes", "evaluation.json"}
    assert after.keys() - before.keys() == {"notes.md"}
    assert before["model.safetensors"] != after["model.safetensors"]
    assert after["README.md"] == b"# My words\n"
    (saved / "README.md").write_text(f'---\nlicense: mit\n---\n# Mine\n\n"{PLACEHOLDER}"\n')
    push_captioner(saved, "org/captioner", **HUB)  # the local card was edited too
    assert files_of(hub)["README.md"] == b'---\nlicense: mit\n---\n# Mine\n\n"org/captioner"\n'


@pytest.mark.usefixtures("writer")
def test_the_command_prints_the_commit_the_loading_code_and_the_missing_metadata(hub, saved: Path, capsys):
    arguments = ["push", str(saved), "org/captioner", *FLAGS, "--message", "A draft"]
    assert main([*arguments, "--revision", "draft", "--private"]) == 0
    printed = capsys.readouterr()
    commit = hub.repositories["org/captioner"].at("draft")
    assert commit.message == "A draft"
    assert hub.repositories["org/captioner"].private
    assert printed.out.splitlines() == [
        f"{hub.endpoint}/org/captioner at commit {commit.sha}",
        'AutoModel.from_pretrained("org/captioner", trust_remote_code=True, revision="draft")',
    ]
    assert printed.err.count("\n") == 1
    assert "no license and no language: add them" in printed.err


@pytest.mark.usefixtures("writer")
def test_a_captioner_over_the_hub_is_trained_saved_pushed_and_loaded(hub, captioners, tmp_path: Path):
    data = ["--dataset", "scenes", "--num_scenes", "10", "--max_caption_tokens", "40"]
    shape = ["--adapter_hidden_size", "21", "--adapter_num_heads", "7"]
    run = ["--max_train_steps", "1", "--output_dir", str(tmp_path / "run")]
    assert main(["train", *FLAGS, *data, *shape, *run]) == 0
    push_captioner(tmp_path / "run" / "last", "org/trained")
    shas = {kind: hub.repositories[f"org/{kind}"].at("main").sha for kind in ("clip", "text")}
    for kind in ("clip", "text"):  # later versions of the backbones
        moved = {"model.safetensors": b"", "tokenizer.json": b"{}", "preprocessor_config.json": b"{}"}
        hub.repositories[f"org/{kind}"].commit(moved)
    model, processor = load_captioner("org/trained", device="cpu")
    assert model.config.vision_model_revision == shas["clip"]
    assert model.config.text_model_revision == shas["text"]
    model.push_to_hub("org/by-hand")
    processor.push_to_hub("org/by-hand")
    again, _ = load_captioner("org/by-hand", device="cpu")
    assert all(map(torch.equal, again.adapter_state_dict().values(), model.adapter_state_dict().values()))
    names = {"vision_revision": shas["clip"], "text_revision": shas["text"]}
    own = ITuningProcessor.from_vision_text_pretrained("org/clip", "org/text", **names)
    assert own.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


# --- The dry run


def test_the_dry_run_lists_the_sizes_without_network(saved: Path, capsys):
    (saved / "notes.txt").write_text("x")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert main(["push", str(saved), "org/new", "--dry_run", *FLAGS]) == 0
    printed = capsys.readouterr()
    sizes = list_files(saved, "org/new", **HUB)
    assert printed.out.splitlines() == [
        *(f"{size:>13,} bytes  {name}" for name, size in sizes.items()),
        f"{sum(sizes.values()):>13,} bytes  in {len(sizes)} files",
        "Not uploaded: notes.txt",
        f"Weights not compared in a dry run: {', '.join(HUB.values())}",
    ]
    assert sizes.keys() == before.keys() - {"notes.txt"}
    assert sizes["model.safetensors"] == len(before["model.safetensors"])
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert "no license and no language: add them" in printed.err
    text = (saved / "README.md").read_text()
    (saved / "README.md").write_text(text.replace("---\n", "---\nlicense: mit\nlanguage: en\n", 1))
    assert main(["push", str(saved), "org/new", "--dry_run", *FLAGS]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("writer")
def test_an_endpoint_has_a_handler_and_its_requirements(hub, saved: Path, capsys):
    without = list_files(saved, "org/captioner", **HUB)
    assert main(["push", str(saved), "org/captioner", *FLAGS, "--endpoint", "--dry_run"]) == 0
    assert "bytes  handler.py\n" in capsys.readouterr().out
    push_captioner(saved, "org/captioner", **HUB, endpoint=True)
    files = files_of(hub)
    assert files.keys() - without.keys() == {"handler.py", "requirements.txt"}
    assert files["handler.py"] == Path(handler.__file__).read_bytes()
    assert files["requirements.txt"] == b"transformers<6,>=5.23\n"
    push_captioner(saved, "org/captioner", **HUB)
    assert files_of(hub) == files


# --- What is refused


@pytest.mark.parametrize("name", ["{clip}", "/nowhere/clip", "./clip", "C:\\clip", "a/b/c", "../clip"])
def test_a_backbone_in_a_local_folder_is_refused(saved: Path, backbones, name: str):
    with pytest.raises(UserError, match=r"vision model is the local folder .*--vision_model org/NAME"):
        list_files(saved, "org/new", vision_model=name.format(**backbones), text_model="gpt2")
    with pytest.raises(UserError, match=r"text model is the local folder .*--text_model org/NAME"):
        list_files(saved, "org/new", vision_model="org/clip")
    with pytest.raises(UserError, match=r"vision model is .* text model is .*--vision_model .*--text_model"):
        list_files(saved, "org/new")


def test_a_folder_with_the_name_of_an_id_is_refused(saved: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "clip").mkdir(parents=True)
    with pytest.raises(UserError, match="is the local folder 'org/clip'"):
        list_files(saved, "org/new", **HUB)


def test_a_model_over_local_folders_does_not_push_itself(saved: Path, tmp_path: Path):
    model = ITuningForCaptioning.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"backbones are not on the Hub: .*vision_model"):
        model.push_to_hub("org/new")
    with pytest.raises(ValueError, match="backbones are not on the Hub"):
        model.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="org/new")
    model.config.text_model_name_or_path = None
    with pytest.raises(ValueError, match="backbones are not on the Hub"):
        model.push_to_hub("org/new")


def edit_adapter(saved: Path, **changed: torch.Tensor) -> None:
    path = saved / "model.safetensors"
    save_file(load_file(path) | changed, path, {"format": "pt"})


BIAS = "text_model.transformer.h.3.adapter.q_proj.bias"
DAMAGE = [
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    (lambda f: (f / "model.safetensors").write_bytes(b"cut"), "model.safetensors"),
    (lambda f: edit_adapter(f, **{BIAS: torch.full((21,), torch.nan)}), "not finite"),
    (lambda f: edit_adapter(f, **{"text_model.transformer.wte.weight": torch.zeros(3)}), "unexpected"),
    (lambda f: edit_json(f / "config.json", adapter_layers=[2]), "missing"),
    (lambda f: edit_json(f / "config.json", model_type="gpt2"), "model of type 'gpt2'"),
    (lambda f: (f / "config.json").unlink(), "no captioner"),
    (lambda f: (f / "processor_config.json").unlink(), "processor"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "training.json").write_text("{}"), "training.json"),
    (lambda f: (f / "evaluation.json").write_text("null"), "evaluation.json"),
    (lambda f: (f / "README.md").write_text("---\nlicense: [mit\n---\n"), "README.md has front matter that"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_captioner_that_cannot_be_loaded_is_refused(saved: Path, damage, message: str, capsys):
    damage(saved)
    assert main(["push", str(saved), "org/new", "--dry_run", *FLAGS]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(("repo", "flags"), [("a/b/c", []), ("a b/c", ["--dry_run"]), ("org/x/", [])])
def test_an_invalid_repository_id_is_refused(saved: Path, repo: str, flags, capsys):
    assert main(["push", str(saved), repo, *flags]) == 2
    error = capsys.readouterr().err
    assert f"{repo!r} is not a Hub id" in error
    assert ".." not in error


@pytest.mark.usefixtures("writer")
def test_a_backbone_with_other_weights_is_refused(hub, saved: Path):
    clip = hub.repositories["org/clip"].at("main").files
    weights = clip["model.safetensors"]
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    other = header.ljust(len(weights), b"\x2f")
    hub.create("org/other").commit(clip | {"model.safetensors": other})
    with pytest.raises(UserError, match=r"'org/other' is not the vision model .*--vision_model"):
        push_captioner(saved, "org/new", vision_model="org/other", text_model="org/text")
    names = {"vision_model_name_or_path": "org/other", "text_model_name_or_path": "org/text"}
    edit_json(saved / "config.json", **names)  # Hub ids without a commit
    assert "config.json" in list_files(saved, "org/new")
    with pytest.raises(UserError, match="'org/other' is not the vision model"):
        push_captioner(saved, "org/new")
    assert "org/new" not in hub.repositories
    edit_json(saved / "config.json", vision_model_name_or_path="org/clip")
    push_captioner(saved, "org/new")
    config = json.loads(files_of(hub, "org/new")["config.json"])
    for kind in ("clip", "text"):
        field = f"{'vision' if kind == 'clip' else kind}_model_revision"
        assert config[field] == hub.repositories[f"org/{kind}"].at("main").sha


# --- Tokens and errors of the Hub

READS = {
    "unknown": ("org/none", None, "no such repository, or it is private"),
    "another model": ("org/clip", None, "model of type 'clip'"),
    "no configuration": ("org/empty", None, "no captioner at 'org/empty'"),
    "invalid token": ("org/secret", "nonsense", "token is not valid"),
    "no token": ("org/secret", None, "or it is private"),
    "another user": ("org/secret", "reader", "no captioner at 'org/secret'"),
}
PUSHES = {
    "no token": ("org/new", None, [], "token is not valid"),
    "invalid token": ("org/new", "nonsense", [], "token is not valid"),
    "another user": ("org/captioner", "reader", [], "lacks the permission"),
    "unknown backbone": ("org/new", "writer", ["--vision_model", "org/none"], "'org/none' cannot be read"),
    "public repository": ("org/captioner", "writer", ["--private"], "exists and is public"),
}


@pytest.fixture
def with_captioners(hub, saved: Path, tmp_path: Path) -> None:
    """The Hub has org/captioner, org/secret, which is private, and org/empty."""
    hub.create("org/empty")
    with use_hub(hub.endpoint, tmp_path / "first", "writer"):
        push_captioner(saved, "org/captioner", **HUB)
        push_captioner(saved, "org/secret", private=True, **HUB)


@pytest.mark.usefixtures("with_captioners")
def test_reading_refused_by_the_hub_is_one_line(hub, captioners, tmp_path: Path, capsys):
    for case, (name, token, message) in READS.items():
        with use_hub(hub.endpoint, tmp_path / case, token):
            assert main(["info", name]) == 2, case
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1), case
        assert message in printed.err
    with use_hub(hub.endpoint, tmp_path / "own", "writer"):
        assert main(["info", "org/secret", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["text_model"]["name_or_path"] == "org/text"
        caption = ["caption", str(captioners["picture"]), "--num_beams", "1", "--model", "org/secret"]
        assert main(caption) == 0
        assert capsys.readouterr().out.startswith(str(captioners["picture"]) + "\t")


@pytest.mark.usefixtures("with_captioners")
def test_pushing_refused_by_the_hub_is_one_line(hub, saved: Path, captioners, tmp_path: Path, capsys):
    for case, (name, token, flags, message) in PUSHES.items():
        with use_hub(hub.endpoint, tmp_path / case, token):
            assert main(["push", str(saved), name, *FLAGS, *flags]) == 2, case
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1), case
        assert message in printed.err
    with use_hub("http://127.0.0.1:9", tmp_path / "unreachable"):
        assert main(["push", str(saved), "org/new", *FLAGS]) == 2
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    hub.refuses_commits = True
    with use_hub(hub.endpoint, tmp_path / "down", "writer"):
        assert main(["push", str(captioners["b"]), "org/captioner", *FLAGS]) == 2
    assert "(500); try again later" in capsys.readouterr().err
    assert "org/new" not in hub.repositories
    assert len(hub.repositories["org/captioner"].commits) == 2
