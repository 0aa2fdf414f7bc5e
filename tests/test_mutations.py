"""Each fault that would be hard to see is put into a copy of the package, and must make a test fail.

Run by hand: `python -m pytest -m slow tests/test_mutations.py`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# What goes wrong: the file, what stands there, what is put in its place.
MUTATIONS = {
    "swapped axes": (
        "adapter_ituning.py",
        "context = context.transpose(1, 2).reshape(rows, length, -1)",
        "context = context.reshape(rows, length, -1)",
    ),
    "a missing scale, spelt out": ("adapter_ituning.py", "* self.head_dim**-0.5", ""),
    "a missing scale, fused": (
        "adapter_ituning.py",
        "F.scaled_dot_product_attention(query, key, value)",
        "F.scaled_dot_product_attention(query, key, value, scale=1.0)",
    ),
    "a missing lambda": ("adapter_ituning.py", "self.scale * self.dropout", "self.dropout"),
    "rows reading another image's keys": (
        "adapter_ituning.py",
        "query = query.reshape(key.shape[0], -1, self.num_heads, self.head_dim)",
        "query = query.reshape(key.shape[0], -1, self.num_heads, self.head_dim).roll(1, dims=0)",
    ),
    "rows interleaved instead of image-major": (
        "adapter_ituning.py",
        "return query.transpose(1, 2).to(key.dtype)",
        "return query.view(-1, *key.shape[:1], *query.shape[2:]).transpose(0, 1)"
        ".transpose(1, 2).to(key.dtype)",
    ),
    "padding attended to": (
        "modeling_ituning.py",
        "            attention_mask=attention_mask,\n            position_ids",
        "            attention_mask=None,\n            position_ids",
    ),
    "padding moving the positions": (
        "modeling_ituning.py",
        "position_ids=position_ids,",
        "position_ids=None,",
    ),
    "the end token dropped from the labels": (
        "processing_ituning.py",
        "labels = [IGNORE_INDEX] if row is None else ids",
        "labels = [IGNORE_INDEX] if row is None else [*ids[:-1], IGNORE_INDEX]",
    ),
    "backbone dropout left on": ("modeling_ituning.py", "        self.text_model.eval()\n", ""),
    "the adapter of one layer used in another": (
        "gpt2_ituning.py",
        "visual_key_values[self.layer_idx]",
        "visual_key_values[min(visual_key_values)]",
    ),
    "the backbones trained along": (
        "modeling_ituning.py",
        "        self.requires_grad_(False)\n",
        "",
    ),
    "a graph through the encoder": (
        "modeling_ituning.py",
        "    @torch.no_grad()\n    def get_image_features",
        "    def get_image_features",
    ),
    "other backbones accepted": ("backbones_ituning.py", "if found != expected:", "if False:"),
}
TESTS = ["test_adapter.py", "test_processing.py", "test_modeling.py", "test_checkpoint.py"]


def run_tests(repository: Path) -> subprocess.CompletedProcess[str]:
    """Run the model's tests in a copy, stopping at the first failure."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", *(f"tests/{name}" for name in TESTS)],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},  # goes before what is installed
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for part in ("ituning_hf", "tests"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_copy_as_it_is_passes(copy: Path):
    done = run_tests(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_makes_a_test_fail(copy: Path, name: str):
    file, there, instead = MUTATIONS[name]
    path = copy / "ituning_hf" / file
    source = path.read_text()
    assert source.count(there) == 1, f"{file} has {source.count(there)} times {there!r}"
    path.write_text(source.replace(there, instead))
    done = run_tests(copy)
    assert done.returncode == 1, done.stdout  # 1: tests failed; others: pytest could not run them
    failed = next(line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    print(f"{name}: {failed}")  # noqa: T201 (the table of a run by hand)
