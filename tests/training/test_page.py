"""The page in a run's folder."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import open_file
from markupsafe import escape
from runs import Settings, dataset_captions, samples
from small_models import read_log, store_features, train_until

from ituning_hf.captioner.configuration_ituning import ITuningConfig
from ituning_hf.hub.records import read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import load_data
from ituning_hf.training.page import RunPage
from ituning_hf.training.run import train

SCORED = {"eval_caption_images": 3, "num_sample_captions": 2, "eval_steps": "8", "max_train_steps": 20}


def read_page(args: TrainArguments) -> str:
    return (Path(args.output_dir) / "report.html").read_text(encoding="utf-8")


def test_content_during_a_run_and_after_it(settings: Settings):
    """An interrupted run's page has the validations so far; test_loop.py compares it after resumption."""
    args = settings(**SCORED, checkpointing_steps="8")
    train_until(args, 12)
    assert "<p>Step 8 of 20. Best validation: loss" in read_page(args)
    train(replace(args, resume_from_checkpoint="latest"))
    html = read_page(args)
    losses = {
        entry["step"]: entry["validation_loss"]
        for entry in read_log(args.output_dir)
        if "validation_loss" in entry
    }
    best = min((step for step in losses if step), key=losses.__getitem__)
    end = "." if losses[best] <= losses[0] else ", but worse than before training."
    assert f"<p>Step 20 of 20. Best validation: loss {losses[best]:.4f} at step {best}{end}</p>" in html
    assert re.findall(r'aria-label="(.*)"', html) == ["Loss", "Validation scores x 100", "Learning rate"]
    assert re.findall(r'class="key series-\d">(.*?)</span>', html) == [
        *("training", "validation"),
        *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"),
    ]
    for points in re.findall(r'<polyline points="(.*?) "', html)[:2]:
        assert len(points.split()) in (20, 4)  # steps 1 to 20; validations 0, 8, 16 and 20
    assert html.count('<img src="data:image/jpeg;base64,') == 2
    captions = dataset_captions(args, "val")
    for name, caption in samples(args)[20].items():
        assert name in html
        assert all(text in html for text in captions[name])
        assert caption
        assert f"<td>{caption}</td>" in html
    assert "<code>--eval_caption_images 3</code>" in html
    assert "<code>--mixed_precision" not in html  # not given: it is only computed
    assert args.output_dir not in html


def test_many_captions_of_a_run_that_is_worse_than_before_training(settings: Settings, tmp_path: Path):
    args = settings(max_train_steps=1)
    train(args)
    last = Path(args.output_dir) / "last"
    record, config = read_training_record(last), ITuningConfig.from_pretrained(last)
    assert record
    page = RunPage(tmp_path / "page.html", args, record, config, load_data(args).evaluation, 20)
    for step in range(20):
        page.add({"step": step, "validation_loss": step + 4, "samples": {"val/0.png": f"caption {step}"}})
    page.write()
    html = page.path.read_text()
    assert "loss 5.0000 at step 1, but worse than before training.</p>" in html
    assert "<summary>13 more</summary>" in html
    shown = re.sub("<details>.*</details>", "", html, flags=re.DOTALL)
    assert re.findall(r"<td>caption (\d+)</td>", shown) == ["19", "18", "17", "16", "15", "14", "0"]


def test_without_validation_the_page_is_written_at_the_end(settings: Settings):
    args = settings(max_train_steps=2, eval_split="none")
    train(args)
    html = read_page(args)
    assert "<p>Step 2 of 2.</p>" in html
    assert re.findall(r'aria-label="(.*)"', html) == ["Loss", "Learning rate"]


def test_images_may_be_missing_if_features_are_stored(settings: Settings, photos: Path, tmp_path: Path):
    args = settings(max_train_steps=1, features=str(tmp_path / "features"))
    data = load_data(settings())
    store_features(tmp_path / "features", [data.train, data.evaluation], vision_model=args.vision_model)
    for path in photos.rglob("*.png"):
        path.unlink()
    train(replace(args, vision_model=None))
    assert "<img" not in read_page(args)
    assert all(caption in read_page(args) for caption in samples(args)[1].values())
    assert "11, stored features" in read_page(args)


def test_hostile_names_and_captions_are_escaped(settings: Settings, photos: Path):
    name, caption = "<img src=x onerror=alert(1)>'\".png", "</script><script>alert(2)</script>"
    (photos / "val" / "0.png").rename(photos / "val" / name)
    line = json.dumps({"file_name": name, "caption": caption})
    (photos / "val" / "metadata.jsonl").write_text(line)
    args = settings(max_train_steps=1)
    train(args)
    html = read_page(args)
    assert escape(f"val/{name}") in html
    assert escape(caption) in html
    assert "<img src=x" not in html
    assert "<script" not in html


@pytest.mark.browser
def test_curves_and_captions_in_a_browser(page: Any, settings: Settings):
    args = settings(**SCORED)
    train(args)
    open_file(page, Path(args.output_dir) / "report.html")
    assert page.locator("svg").count() == 3
    chart = page.locator("svg[aria-label=Loss]")
    assert chart.locator("polyline").count() == 2
    last = chart.locator(".reading").last
    assert not last.locator("text").is_visible()
    last.locator(".target").hover()
    assert last.locator("text").is_visible()
    assert last.locator("tspan").all_text_contents()[0] == "step 20"
    assert page.locator(".sample .lines tr:first-child td").all_text_contents() == [
        *samples(args)[20].values()
    ]
