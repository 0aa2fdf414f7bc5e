"""NoCaps: scores by domain where people's captions are at hand, a file for its server where they are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.evaluation.run import evaluate_captioner
from ituning_hf.hub.evaluation_results import read_evaluations

from .conftest import NUM_IMAGES, contents, read_json, references_of

Settings = Callable[..., EvaluateArguments]
DOMAINS = ["in-domain", "out-domain", "near-domain", "near-domain", "in-domain", "near-domain", "near-domain"]
PLACES = {"in-domain": [0, 4], "near-domain": [2, 3, 5, 6], "out-domain": [1]}


def write_nocaps(said: tuple[Path, list[str]], folder: Path, split: str) -> Path:
    """A NoCaps file over the pictures, their ids counting from 40."""
    pictures, captions = said
    (folder / split).symlink_to(pictures)
    images = [
        {"id": 40 + i, "open_images_id": str(i), "file_name": f"{i}.png"}
        | ({"domain": DOMAINS[i]} if split == "val" else {})
        for i in range(NUM_IMAGES)
    ]
    content = {"info": {"description": f"nocaps {split} dataset"}, "licenses": [], "images": images}
    if split == "val":
        texts = [(i, text) for i, found in enumerate(references_of(captions)) for text in found]
        content["annotations"] = [
            {"id": n, "image_id": 40 + i, "caption": text} for n, (i, text) in enumerate(texts)
        ]
    path = folder / f"nocaps_{split}_image_info.json"
    path.write_text(json.dumps(content))
    return path


def test_scores_by_domain(
    settings: Settings,
    said: tuple[Path, list[str]],
    captioner: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    data = {"dataset": str(write_nocaps(said, tmp_path, "val")), "split": "val", "dataset_name": "NoCaps"}
    evaluation = evaluate_captioner(settings(**data))
    expected = score_captions(said[1], references_of(said[1]), java=False)
    assert [part.name for part in evaluation.parts] == [*PLACES, "entire"]
    for part in evaluation.parts[:-1]:
        assert part.metrics == expected.subset(PLACES[part.name])
        for name, (low, high) in part.intervals.items():
            assert low <= high, name
    metrics = read_json(tmp_path / "report" / "metrics.json")
    assert metrics["metrics"]["cider"]["value"] == expected.metrics["cider"]
    assert {name: found["num_images"] for name, found in metrics["domains"].items()} == {
        name: len(places) for name, places in PLACES.items()
    }
    results = read_evaluations(captioner)
    assert [(result.subset, result.num_images) for result in results] == [
        ("in-domain", 2),
        ("near-domain", 4),
        ("out-domain", 1),
        (None, 7),
    ]
    assert [r["image_id"] for r in read_json(tmp_path / "report" / "results.json")] == list(range(40, 47))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["in-domain", "near-domain", "out-domain", "entire", "95%", "interval"] in lines
    assert ["images", "2", "4", "1", "7"] in lines
    evaluate_captioner(settings(**data, overwrite=True))
    assert read_evaluations(captioner) == results


def test_without_references_the_captions_alone_are_written(
    settings: Settings,
    said: tuple[Path, list[str]],
    captioner: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    path = write_nocaps(said, tmp_path, "test")
    evaluation = evaluate_captioner(settings(dataset=str(path), split="test"))
    assert evaluation.scores is None
    assert evaluation.metrics == {}
    assert sorted(contents(tmp_path / "report")) == ["metrics.json", "results.json"]
    metrics = read_json(tmp_path / "report" / "metrics.json")
    assert (metrics["metrics"], metrics["domains"], metrics["scoring"]) == ({}, {}, None)
    assert metrics["benchmark"]["num_images"] == NUM_IMAGES
    assert read_json(tmp_path / "report" / "results.json") == [
        {"image_id": 40 + i, "caption": text} for i, text in enumerate(said[1])
    ]
    assert read_evaluations(captioner) == []
    printed = capsys.readouterr().out
    assert "https://eval.ai/web/challenges/challenge-page/355" in printed
    assert "nocaps_val_4500" not in printed
    before = contents(tmp_path)
    assert evaluate_captioner(settings(dataset=str(path), split="test")) is None
    assert contents(tmp_path) == before
    assert capsys.readouterr().out.startswith("This evaluation is complete")


def test_of_val_it_is_said_where_the_captions_are(
    settings: Settings, said: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_nocaps(said, tmp_path, "val")
    content = read_json(path)
    del content["annotations"]
    path.write_text(json.dumps(content))
    evaluate_captioner(settings(dataset=str(path), split="val"))
    hint = "nocaps_val_4500_captions.json): with that file as --dataset it would be scored here."
    assert hint in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--java: .* would be scored here\.$"):
        evaluate_captioner(settings(dataset=str(path), split="val", java=True))


def test_scores_without_references_are_refused(
    settings: Settings, said: tuple[Path, list[str]], tmp_path: Path
):
    path = write_nocaps(said, tmp_path, "test")
    with pytest.raises(ValueError, match=r"--java: split 'test' of .* has no captions of people"):
        evaluate_captioner(settings(dataset=str(path), split="test", java=True))
