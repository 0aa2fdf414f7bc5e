"""The notebook runs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from loopback_hub import client_environment, running_hub
from nbclient import NotebookClient
from small_models import TEXT
from transformers import GPT2Config, GPT2LMHeadModel

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture
def text_model(backbones: dict[str, Path], tmp_path: Path) -> Path:
    """A small language model with enough positions to read the random text that it generates."""
    shutil.copytree(backbones["text"], tmp_path / "gpt2")
    config = GPT2Config.from_pretrained(tmp_path / "gpt2", **TEXT | {"n_positions": 200})
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_it_trains_captions_explains_and_pushes(backbones: dict[str, Path], text_model: Path, tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "STEPS = 150" in names.source
    names.source = names.source.replace("STEPS = 150", "STEPS = 2")
    models = {"openai/clip-vit-base-patch16": backbones["clip"], "gpt2": text_model}
    (tmp_path / "work").mkdir()
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "work")}},
        skip_cells_with_tag="install",
        timeout=300,
    )
    with running_hub(models) as hub:
        environment = client_environment(hub.endpoint, tmp_path / "home") | {"HF_TOKEN": "writer"}
        client.execute(env=environment)
        repository = hub.repositories["ann/my-captioner"]
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "\n9.png: " in outputs["caption"][-1].text
    assert "<iframe" in outputs["explain"][-1].data["text/html"]
    assert repository.private
    assert outputs["push"][-1].data["text/plain"].strip("'").endswith(repository.at().sha)
    assert "model.safetensors" in repository.at().files
