"""The demo from training to the page, with a handful of steps."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ituning_hf import ITuningForCaptioning
from ituning_hf.demo import story
from ituning_hf.demo.story import run_demo
from ituning_hf.pages import image_url
from ituning_hf.training.setup import SCENE_BACKBONES

SHORT = {"seed": 5, "num_train": 64, "num_test": 24, "train_steps": 4}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "NUM_VALIDATION", 10)
        result = run_demo(folder, **SHORT, report=lines.append)
    return result, folder, "\n".join(lines)


def test_result_is_reported_and_written(demo):
    result, folder, text = demo
    written = json.loads((folder / "demo.json").read_text())
    assert written["held_out"] == {
        "objects": result.held_out.objects,
        "everything": result.held_out.everything,
    }
    assert written["seed"] == 5
    assert written["adapter_bytes"] == (folder / "best" / "model.safetensors").stat().st_size
    assert result.language_model_alone.objects == 0
    assert result.peak_memory_bytes > 2**27
    headings = [line[:2] for line in text.splitlines() if line[1:2] == "."]
    assert headings == ["1.", "2.", "3.", "4.", "5."]
    assert f"{result.held_out.objects:.1%}" in text
    run = json.loads((folder / "run.json").read_text())
    assert (run["settings"]["dataset"], run["num_images"]) == ("(given in Python)", 64)


def test_saved_captioner_gives_the_same_captions_in_a_new_process(demo):
    result, folder, _ = demo
    assert result.same_in_fresh_process
    model = ITuningForCaptioning.from_pretrained(folder / "best")
    assert model.config.vision_model_name_or_path == str(SCENE_BACKBONES / "vision")
    shipped = (SCENE_BACKBONES / "text" / "model.safetensors").stat().st_size
    assert (folder / "best" / "model.safetensors").stat().st_size < shipped / 2


def test_page_contains_every_picture(demo):
    _, folder, _ = demo
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == 48
    assert page.count("<figcaption class=") == 48
    pictures = sorted((folder / "scenes").glob("*.png"))
    assert len(pictures) == 12  # for use_it.py
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)
        assert image_url(picture.convert("RGBA")) in page


def test_folder_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("other work")
    with pytest.raises(FileExistsError, match="is not empty: remove it, or choose another folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "other work"


def test_unusable_arguments_are_refused_before_work_starts(tmp_path: Path):
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    with pytest.raises(OSError, match="file/out"):
        run_demo(tmp_path / "file" / "out", report=lines.append)
    with pytest.raises(ValueError, match="2147483648"):
        run_demo(tmp_path / "out", seed=2**31, report=lines.append)
    assert lines == []


def test_interrupted_demo_resumes_and_finished_demo_is_kept(demo, tmp_path: Path, monkeypatch):
    result, finished, _ = demo
    folder = tmp_path / "interrupted"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "last")
    (folder / "demo.json").unlink()
    monkeypatch.setattr(story, "NUM_VALIDATION", 10)
    monkeypatch.setattr(story, "_captions_in_new_process", lambda folder, scenes: True)
    resumed = run_demo(folder, **SHORT, report=lambda line: None)
    assert (resumed.held_out, resumed.unseen_pairs) == (result.held_out, result.unseen_pairs)
    with pytest.raises(FileExistsError, match="contains a finished demo: remove it, or choose another"):
        run_demo(folder, seed=5)


def test_shipped_backbones_are_small():
    files = [path for path in SCENE_BACKBONES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_learns_seen_and_unseen_pairs(seed: int, tmp_path: Path):
    result = run_demo(tmp_path / "out", seed=seed)
    assert result.held_out.objects >= 0.95
    assert result.held_out.everything >= 0.85
    assert result.unseen_pairs.objects >= 0.6
    assert result.language_model_alone.objects <= 0.01
    assert result.peak_memory_bytes < 2 * 2**30
