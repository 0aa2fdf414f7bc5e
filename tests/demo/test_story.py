"""The demo from its first line to its last, with a handful of steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ituning_hf import ITuningForCaptioning
from ituning_hf.demo.story import DemoResult, run_demo
from ituning_hf.training.setup import SCENE_BACKBONES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path, str]:
    folder, lines = tmp_path_factory.mktemp("demo") / "out", []
    result = run_demo(folder, seed=5, num_train=64, num_test=30, train_steps=8, report=lines.append)
    return result, folder, "\n".join(lines)


def test_the_numbers_are_those_of_the_file(demo):
    result, folder, _ = demo
    written = json.loads((folder / "demo.json").read_text())
    assert written["held_out"] == {
        "objects": result.held_out.objects,
        "everything": result.held_out.everything,
    }
    assert written["seed"] == 5
    assert written["adapter_bytes"] == (folder / "best" / "model.safetensors").stat().st_size
    assert result.language_model_alone.objects == 0
    assert 0 < result.seconds < 600
    assert result.peak_memory_bytes > 2**27


def test_the_story_is_told_in_order(demo):
    result, folder, text = demo
    headings = [line for line in text.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert [heading[0] for heading in headings] == ["1", "2", "3", "4", "5"]
    assert f"{result.held_out.objects:.1%}" in text
    assert str(folder / "best") in text.splitlines()[-3]


def test_the_saved_captioner_says_the_same_in_a_process_of_its_own(demo):
    result, folder, _ = demo
    assert result.same_in_fresh_process
    picture = next((folder / "scenes").glob("*.png"))
    command = [sys.executable, "use_it.py", "best", f"scenes/{picture.name}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1


def test_only_the_adapter_is_in_the_captioners_folder(demo):
    _, folder, _ = demo
    model = ITuningForCaptioning.from_pretrained(folder / "best")
    assert model.config.vision_model_name_or_path == str(SCENE_BACKBONES / "vision")
    shipped = (SCENE_BACKBONES / "text" / "model.safetensors").stat().st_size
    assert (folder / "best" / "model.safetensors").stat().st_size < shipped / 2


def test_the_page_shows_each_picture_with_its_caption(demo):
    _, folder, _ = demo
    page = (folder / "index.html").read_text(encoding="utf-8")
    pictures = sorted((folder / "scenes").glob("*.png"))
    assert len(pictures) == 48
    assert all(f'src="scenes/{picture.name}"' in page for picture in pictures)
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty: remove it, or give another folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_shipped_backbones_are_small():
    files = [path for path in SCENE_BACKBONES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_an_interrupted_demo_goes_on_and_a_finished_one_is_kept(demo, tmp_path: Path):
    _, finished, _ = demo
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "last")
    (cut / "demo.json").unlink()
    result = run_demo(cut, seed=5, num_train=64, num_test=30, train_steps=8, report=lambda line: None)
    assert result.same_in_fresh_process
    with pytest.raises(FileExistsError, match="holds a finished demo: remove it, or give another folder"):
        run_demo(cut, seed=5)


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_done(tmp_path: Path):
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    with pytest.raises(PermissionError, match=r"--output_dir .*file/out cannot be written to \(.*\): give"):
        run_demo(tmp_path / "file" / "out", report=lines.append)
    with pytest.raises(ValueError, match="--seed is 2147483648, expected 0 to 2147483647"):
        run_demo(tmp_path / "out", seed=2**31, report=lines.append)
    assert lines == []


def test_what_the_run_writes_of_itself_does_not_pretend_to_be_trained_on_the_plain_scenes(demo):
    _, folder, _ = demo
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"]["dataset"] == "(given in Python)"
    assert run["num_images"] == 64


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_demo_learns_what_it_should(seed: int, tmp_path: Path):
    result = run_demo(tmp_path / "out", seed=seed)
    assert result.held_out.objects >= 0.95
    assert result.held_out.everything >= 0.85
    assert result.unseen_pairs.objects >= 0.6
    assert result.language_model_alone.objects <= 0.01
    assert result.peak_memory_bytes < 2 * 2**30
