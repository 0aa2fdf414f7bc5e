"""`ituning push --space`: the Space's files on the loopback Hub, and the app that they start."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from fresh_process import run_fresh
from huggingface_hub import snapshot_download
from loopback_hub import client_environment, use_hub

import ituning_hf
from ituning_hf import caption
from ituning_hf.cli import main
from ituning_hf.hub import space
from ituning_hf.hub.push import push_captioner
from ituning_hf.hub.space import list_space_files, push_space
from ituning_hf.utils.errors import UserError

HUB = {"vision_model": "org/clip", "text_model": "org/text"}
FLAGS = ["--vision_model", "org/clip", "--text_model", "org/text"]
PACKAGE = Path(ituning_hf.__file__).parent


RUN = """
import json
import runpy
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # gradio's own

import gradio
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

running = []
gradio.Blocks.block_thread = lambda app: running.append(app)  # the script ends, and the app runs
sys.path.insert(0, str(Path.cwd()))  # as for `python app.py`
runpy.run_path("app.py")
[app] = running
client = Client(app.local_url, verbose=False)
image, *options = handle_file(sys.argv[1]), 4, 2, "a dog", 6
answer = client.predict("org/captioner", image, *options, api_name="/caption")
try:  # gradio checks where a file is only if the request has `meta`
    client.predict("org/captioner", {"path": sys.argv[1]}, *options, api_name="/caption")
    reads_other_files = True
except AppError:
    reads_other_files = False
app.close()

import ituning_hf

found = {
    "package": ituning_hf.__file__,
    "heading": next(part["props"]["value"] for part in client.config["components"] if part["type"] == "html"),
    "captions": [caption for caption, _ in answer["choices"]],
    "reads_other_files": reads_other_files,
}
"""


def front_matter(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---\n")[1])


@pytest.mark.usefixtures("writer")
def test_the_space_has_the_package_and_runs_the_pushed_captioner(hub, saved: Path, capsys):
    assert main(["push", str(saved), "captioner", *FLAGS, "--space", "--private"]) == 0
    repository = hub.repositories["spaces/ann/captioner"]
    assert repository.private
    commit = repository.at("main")
    assert f"{hub.endpoint}/spaces/ann/captioner at commit {commit.sha}\n" in capsys.readouterr().out
    code = {name: data for name, data in commit.files.items() if name.startswith("ituning_hf/")}
    others = commit.files.keys() - code.keys()
    assert others == {".gitattributes", "README.md", "app.py", "requirements.txt"}
    assert code.keys() == {
        f"ituning_hf/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and not {"__pycache__", "scene_backbones"} & {*path.parts}
    }
    assert all((PACKAGE.parent / name).read_bytes() == data for name, data in code.items())
    requirements = commit.files["requirements.txt"].decode().splitlines()
    assert "transformers<6,>=5.23" in requirements
    assert not [line for line in requirements if "ituning" in line or ";" in line]
    settings = front_matter(commit.files["README.md"])
    assert settings.pop("python_version").startswith("3.")
    assert settings == {
        "title": "captioner",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "models": ["ann/captioner"],
    }
    assert b'load_captioners(["ann/captioner"])' in commit.files["app.py"]


def test_the_space_captions_with_its_own_copy_of_the_package(hub, captioners, tmp_path: Path):
    with use_hub(hub.endpoint, tmp_path / "writer", "writer"):
        push_captioner(captioners["a"], "org/captioner", **HUB)
        push_space("org/captioner")
        folder = Path(snapshot_download("org/captioner", repo_type="space", local_dir=tmp_path / "space"))
    environment = client_environment(hub.endpoint, tmp_path / "home")
    environment.pop("PYTHONPATH", None)
    found = run_fresh(RUN, folder, captioners["picture"], hide=False, environment=environment)
    search = {"num_beams": 4, "num_captions": 2, "prompt": "a dog", "max_new_tokens": 6}
    assert found == {
        "package": str(folder / "ituning_hf" / "__init__.py"),
        "heading": "<h1>org/captioner</h1>",
        "captions": caption(captioners["a"], captioners["picture"], **search),
        "reads_other_files": False,
    }


@pytest.mark.usefixtures("writer")
def test_an_existing_space_keeps_what_a_person_wrote(hub, saved: Path):
    push_captioner(saved, "org/captioner", **HUB)
    first = push_space("org/captioner")
    assert push_space("org/captioner").oid == first.oid
    card = b"---\ntitle: My dogs\nemoji: x\nsdk: gradio\nsdk_version: 6.0.0\n---\nMy words.\n"
    repository = hub.repositories["spaces/org/captioner"]
    repository.commit({"README.md": card, "ituning_hf/old.py": b"", "notes.md": b""})
    push_space("org/captioner")
    files = repository.at("main").files
    assert "ituning_hf/old.py" not in files
    assert "notes.md" in files
    settings = front_matter(files["README.md"])
    assert (settings["title"], settings["emoji"]) == ("My dogs", "x")
    assert settings["sdk_version"] == version("gradio")
    assert b"My words.\n" in files["README.md"]
    with pytest.raises(UserError, match="space 'org/captioner' exists and is public"):
        push_space("org/captioner", private=True)


def test_the_dry_run_lists_the_files_of_the_space(saved: Path, capsys):
    assert main(["push", str(saved), "org/new", *FLAGS, "--space", "--dry_run"]) == 0
    sizes = list_space_files("org/new")
    assert [*sizes] == ["README.md", "app.py", "requirements.txt", "ituning_hf/"]
    assert sizes["ituning_hf/"] > 500_000
    lines = [f"{size:>13,} bytes  {name}" for name, size in sizes.items()]
    total = f"{sum(sizes.values()):>13,} bytes  in 4 files"
    assert capsys.readouterr().out.splitlines()[-6:] == ["The Space org/new:", *lines, total]


def test_a_space_needs_gradio_and_the_branch_main(saved: Path, monkeypatch, capsys):
    push = ["push", str(saved), "org/new", *FLAGS, "--space"]
    assert main([*push, "--revision", "draft"]) == 2
    assert "remove --revision" in capsys.readouterr().err
    monkeypatch.setattr(space, "version", Mock(side_effect=PackageNotFoundError))
    assert main(push) == 2
    assert "pip install 'ituning_hf[app]'" in capsys.readouterr().err
