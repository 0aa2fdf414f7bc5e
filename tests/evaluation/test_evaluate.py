"""`ituning evaluate`, from its flags to the report and the model card."""

import json
import re
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_on_two
from pycocotools.coco import COCO
from safetensors.torch import load_file, save_file
from small_models import contents, read_lines, save_full_clip, store_features

from ituning_hf.evaluation import captioning, run
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.inference.int8 import Int8Linear
from ituning_hf.utils.errors import WorkError

from .conftest import (
    NUM_IMAGES,
    Evaluate,
    Finished,
    read_captions,
    read_json,
    references_of,
)

Captioned = tuple[Path, list[str]]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "report"


@pytest.fixture
def no_captioning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that captions an image."""
    monkeypatch.setattr(captioning, "generate_captions", lambda *args: pytest.fail("it captioned"))


def break_images(photos: Path, *numbers: int) -> None:
    for i in numbers:
        (photos / "test" / f"{i}.png").write_bytes(b"not an image")


def test_report(finished: Finished, captioned: Captioned):
    _, captions = captioned
    expected = score_captions(captions, references_of(captions), java=False)
    assert expected.metrics["cider"] > 0.1
    assert sorted(contents(finished.report)) == ["metrics.json", "per_image.jsonl", "results.json"]
    results = read_json(finished.report / "results.json")
    assert results == [{"image_id": f"test/{i}.png", "caption": text} for i, text in enumerate(captions)]
    lines = read_lines(finished.report / "per_image.jsonl")
    assert [line["name"] for line in lines] == [f"test/{i}.png" for i in range(NUM_IMAGES)]
    assert [line["references"] for line in lines] == references_of(captions)
    for name, values in expected.per_image.items():
        assert [line["metrics"][name] for line in lines] == values
    metrics = read_json(finished.report / "metrics.json")
    assert metrics["metrics"] == {
        name: {"value": value, "interval": list(expected.intervals[name])}
        for name, value in expected.metrics.items()
    }
    assert (metrics["dataset"], metrics["split"], metrics["num_images"]) == ("photos", "test", NUM_IMAGES)
    assert (metrics["tokenizer"], set(metrics["left_out"])) == ("Python", {"meteor", "spice"})
    assert metrics["settings"]["num_beams"] == 3
    assert metrics["speed"]["captions_per_second"] > 0
    assert {"torch", "ituning_hf"} <= set(metrics["versions"])

    assert re.search(rf"CIDEr +{100 * expected.metrics['cider']:.1f}  ", finished.printed)
    assert "METEOR is left out: it needs Java" in finished.printed
    cider = expected.per_image["cider"]
    ranked = sorted(range(NUM_IMAGES), key=lambda i: -cider[i])
    shown = re.findall(r"^ +([\d.]+)  test/(\d).png: ", finished.printed, flags=re.MULTILINE)
    assert shown == [(f"{100 * cider[i]:.1f}", str(i)) for i in (*ranked[:3], *ranked[:-4:-1])]
    assert re.search(r"^[\d.e+]+ captions/s on CPU", finished.printed, flags=re.MULTILINE)


def test_page(finished: Finished, captioned: Captioned):
    assert f"Results in {finished.report}\nReport: {finished.page}\n" in finished.printed
    html = finished.page.read_text()
    cider = read_json(finished.report / "metrics.json")["metrics"]["cider"]["value"]
    assert re.search(rf"<th>CIDEr</th><td>{100 * cider:.1f}", html)
    assert f"{NUM_IMAGES} images. " in html
    assert all(f'<div class="caption">{escape(caption)}</div>' in html for caption in captioned[1])
    assert "no picture" not in html


def test_model_card(finished: Finished):
    (record,) = read_json(finished.captioner / "evaluation.json")
    assert (record["dataset"], record["split"], record["num_images"]) == ("photos", "test", NUM_IMAGES)
    assert record["tokenizer"] == "Python"
    values = read_json(finished.report / "metrics.json")["metrics"]
    assert record["metrics"] == {name: found["value"] for name, found in values.items()}
    assert record["command"] == (
        "ituning evaluate --model my-captioner --num_beams 3 --max_new_tokens 9 --dataset photos --java false"
    )
    assert f"| {100 * record['metrics']['cider']:.1f} " in (finished.captioner / "README.md").read_text()


def test_unreadable_images_are_named_and_left_out(
    evaluate: Evaluate,
    captioned: Captioned,
    photos: Path,
    captioner: Path,
    report: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    break_images(photos, 3)
    assert evaluate(max_unreadable_share=0.2, dataloader_num_workers=2) == 0
    others = [i for i in range(NUM_IMAGES) if i != 3]
    ids = [result["image_id"] for result in read_json(report / "results.json")]
    assert ids == [f"test/{i}.png" for i in others]
    references = references_of(captioned[1])
    expected = score_captions(read_captions(report), [references[i] for i in others], java=False).metrics
    metrics = read_json(report / "metrics.json")
    assert {name: found["value"] for name, found in metrics["metrics"].items()} == expected
    assert metrics["unreadable"] == ["test/3.png"]
    assert "left out: cannot read" in caplog.text
    assert "Unreadable images, left out of the scores: 1" in capsys.readouterr().out
    assert read_json(captioner / "evaluation.json")[0]["num_unreadable"] == 1


def test_too_many_unreadable_images_end_the_evaluation(
    evaluate: Evaluate, photos: Path, report: Path, capsys: pytest.CaptureFixture[str]
):
    break_images(photos, 4, 5)
    assert evaluate(max_unreadable_share=0.2) == 1
    assert re.search("2 of 7 images .* --max_unreadable_share allows 1", capsys.readouterr().err)
    assert evaluate(max_unreadable_share=0.5, expected_images=7) == 1
    assert re.search("2 of 7 images .* --expected_images allows 0", capsys.readouterr().err)
    assert not report.exists()
    break_images(photos, 0)  # one of the first batch of two
    assert evaluate(max_unreadable_share=0.4, dry_run=True) == 0  # the limit is that of the whole split


@pytest.mark.parametrize(
    ("settings", "dtype", "is_int8"),
    [
        ({}, torch.float32, False),
        ({"dtype": "bfloat16"}, torch.bfloat16, False),
        ({"quantization": "int8"}, torch.float32, True),
    ],
)
def test_a_dry_run_captions_one_batch_in_the_given_precision_and_writes_nothing(
    evaluate: Evaluate,
    captioned: Captioned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    dtype: torch.dtype,
    is_int8: bool,
):
    used = []
    generate = captioning.generate_captions

    def recording(model: Any, *args: Any) -> list[list[str]]:
        weight = next(iter(model.adapters().values())).q_proj.weight
        used.append((weight.dtype, isinstance(model.get_output_embeddings(), Int8Linear)))
        return generate(model, *args)

    monkeypatch.setattr(captioning, "generate_captions", recording)
    before = contents(tmp_path)
    assert evaluate(**settings, dry_run=True) == 0
    assert contents(tmp_path) == before
    assert used == [(dtype, is_int8)]
    printed = capsys.readouterr().out
    assert "nothing is written" in printed
    shown = re.findall(r"^  test/(\d).png: (.*)$", printed, flags=re.MULTILINE)
    assert [name for name, _ in shown] == ["0", "1"]
    if not settings:
        assert [text for _, text in shown] == captioned[1][:2]


def test_a_folder_that_is_not_empty_is_refused_without_overwrite(
    evaluate: Evaluate, captioner: Path, finished: Finished, report: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(finished.report, report)
    before, captioner_before = contents(report), contents(captioner)
    assert evaluate(num_beams=1) == 2
    assert re.search(r"report is not empty: .* --overwrite", capsys.readouterr().err)
    assert contents(report) == before
    assert evaluate(num_beams=1, overwrite=True, no_card=True) == 0
    assert read_json(report / "metrics.json")["settings"]["num_beams"] == 1
    assert contents(captioner) == captioner_before


def test_captions_are_kept_if_a_scorer_fails(
    evaluate: Evaluate,
    captioned: Captioned,
    report: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def failing(*args: object) -> None:
        raise WorkError("METEOR failed.")

    monkeypatch.setattr(run, "score_captions", failing)
    assert evaluate() == 1
    assert re.search(r"METEOR failed\. .*results\.json: --predictions", capsys.readouterr().err)
    assert [path.name for path in report.iterdir()] == ["results.json"]
    assert read_captions(report) == captioned[1]


def test_predictions_read_the_results(evaluate: Evaluate, finished: Finished, report: Path):
    results = finished.report / "results.json"
    assert evaluate(model=None, predictions=results, dry_run=True) == 0  # more than one batch
    assert not report.exists()
    assert evaluate(model=None, predictions=results) == 0
    for name in ("results.json", "per_image.jsonl"):
        assert (report / name).read_bytes() == (finished.report / name).read_bytes()
    metrics = read_json(report / "metrics.json")
    assert metrics["metrics"] == read_json(finished.report / "metrics.json")["metrics"]
    assert metrics["speed"] is None


@pytest.mark.parametrize("in_annotations", [int, str, float])
@pytest.mark.parametrize("in_images", [int, str, float])
def test_results_have_the_ids_of_the_images_in_a_coco_file(
    evaluate: Evaluate,
    captioned: Captioned,
    report: Path,
    tmp_path: Path,
    in_images: Callable[[int], Any],
    in_annotations: Callable[[int], Any],
):
    source, captions = captioned
    texts = [(60 - i, text) for i, found in enumerate(references_of(captions)) for text in found]
    content = {
        "info": {},
        "images": [{"id": in_images(60 - i), "file_name": f"{i}.png"} for i in range(NUM_IMAGES)],
        "annotations": [
            {"id": n, "image_id": in_annotations(image_id), "caption": text}
            for n, (image_id, text) in enumerate(texts)
        ],
    }
    truth = tmp_path / "captions_test2017.json"
    truth.write_text(json.dumps(content))
    predictions = tmp_path / "predictions.json"  # not in the order of the images
    results = [{"image_id": 60 - i, "caption": text} for i, text in enumerate(captions)][::-1]
    predictions.write_text(json.dumps(results))
    settings = {"dataset": truth, "image_root": source / "test", "model": None}
    assert evaluate(**settings, predictions=predictions) == 0
    value = read_json(report / "metrics.json")["metrics"]["cider"]["value"]
    assert value == score_captions(captions, references_of(captions), java=False).metrics["cider"]
    loaded = COCO(truth).loadRes(str(report / "results.json"))
    ids = loaded.getAnnIds(imgIds=[in_images(60 - i) for i in range(NUM_IMAGES)])
    assert [annotation["caption"] for annotation in loaded.loadAnns(ids)] == captions


def test_cider_of_a_single_image_is_explained(
    evaluate: Evaluate, photos: Path, captioned: Captioned, report: Path, caplog: pytest.LogCaptureFixture
):
    metadata = photos / "test" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().splitlines()[0])
    (photos / "caption.json").write_text(json.dumps({"test/0.png": captioned[1][0]}))
    assert evaluate(model=None, predictions=photos / "caption.json") == 0
    assert read_json(report / "metrics.json")["metrics"]["cider"]["value"] == 0
    assert caplog.messages == [
        "CIDEr is 0 by definition for a single image: it weights words by their rarity among the captions of "
        "several images"
    ]


def test_stored_features_replace_images_and_vision_encoder(
    evaluate: Evaluate,
    captioned: Captioned,
    photos: Path,
    backbones: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    images = EvaluateArguments(model="x", dataset=str(photos)).load_split("test", 0)
    options = {"vision_model": str(backbones["vision"]), "storage": "float32"}
    store_features(tmp_path / "some", [images[:-1]], **options)
    assert evaluate(features=tmp_path / "some") == 2
    assert "no features of 1 of the 7 images ('test/6.png')" in capsys.readouterr().err
    store_features(tmp_path / "all", [images], **options)
    for path in (photos / "test").glob("*.png"):
        path.unlink()
    assert evaluate(features=tmp_path / "all", vision_model=tmp_path / "nowhere") == 0
    assert read_captions(tmp_path / "report") == captioned[1]


def test_clip_score(evaluate: Evaluate, captioned: Captioned, report: Path, captioner: Path, tmp_path: Path):
    clip = save_full_clip(tmp_path / "clip")
    assert evaluate(clip_model=clip) == 0
    folder, captions = captioned
    paths = [str(folder / "test" / f"{i}.png") for i in range(NUM_IMAGES)]
    expected = clip_scores(str(clip), paths, captions, references_of(captions))
    lines, metrics = read_lines(report / "per_image.jsonl"), read_json(report / "metrics.json")["metrics"]
    for name, values in expected.items():
        assert [line["metrics"][name] for line in lines] == pytest.approx(values, rel=1e-5)
        assert metrics[name]["value"] == pytest.approx(sum(values) / NUM_IMAGES, rel=1e-5)
    assert "RefCLIPScore" in (captioner / "README.md").read_text()


@pytest.mark.usefixtures("no_captioning")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nowhere/at/all"}, "nowhere/at/all"),
        ({"dataset": "nowhere"}, "no dataset at 'nowhere'"),
        ({"split": "val"}, "has no images of split 'val'"),
        ({"expected_images": 5000}, "--expected_images is 5,000, .* has 7"),
        ({"features": "nowhere"}, "nowhere is not a feature store"),
        ({"predictions": "nowhere.json", "model": None}, "nowhere.json"),
        ({"clip_model": "nowhere/at/all"}, "no full CLIP"),
        ({"java": True}, "no working `java` is on the PATH"),
        ({"predictions": "x"}, "give either --model.* or --predictions"),
        ({"model": None}, "give either --model.* or --predictions"),
        ({"max_unreadable_share": 1.5}, "--max_unreadable_share is 1.5, expected 0 to 1"),
        ({"quantization": "int4"}, "--quantization is 'int4', expected one of int8"),
        ({"report": "report.txt"}, "--report report.txt: give the name of a file that ends in .html"),
        ({"report": "nowhere/report.html"}, "nowhere is not a folder that can be written to; create it"),
    ],
)
def test_errors_before_captioning(
    evaluate: Evaluate,
    report: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    message: str,
):
    monkeypatch.setenv("PATH", "")
    assert evaluate(**settings) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not report.exists()


@pytest.mark.usefixtures("no_captioning")
def test_a_card_that_cannot_be_updated_is_refused_before_captioning(
    evaluate: Evaluate, captioner: Path, capsys: pytest.CaptureFixture[str]
):
    card = captioner / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: [mit\n", 1))
    assert evaluate() == 2
    assert re.search("README.md has front matter that cannot be read .*remove", capsys.readouterr().err)


DOMAINS = ["in-domain", "out-domain", "near-domain", "near-domain", "in-domain", "near-domain", "near-domain"]
INDICES = {"in-domain": [0, 4], "near-domain": [2, 3, 5, 6], "out-domain": [1]}


def write_nocaps(captioned: Captioned, folder: Path, split: str) -> Path:
    """Write a NoCaps file for the images, with ids from 40."""
    source, captions = captioned
    (folder / split).symlink_to(source / "test")
    images: list[dict[str, Any]] = [
        {"id": 40 + i, "open_images_id": str(i), "file_name": f"{i}.png"} for i in range(NUM_IMAGES)
    ]
    content = {"info": {"description": f"nocaps {split} dataset"}, "licenses": [], "images": images}
    if split == "val":
        for image, domain in zip(images, DOMAINS, strict=True):
            image["domain"] = domain
        texts = [(40 + i, text) for i, found in enumerate(references_of(captions)) for text in found]
        content["annotations"] = [
            {"id": n, "image_id": image_id, "caption": text} for n, (image_id, text) in enumerate(texts)
        ]
    path = folder / f"nocaps_{split}_image_info.json"
    path.write_text(json.dumps(content))
    return path


def test_nocaps_scores_by_domain(
    evaluate: Evaluate,
    captioned: Captioned,
    captioner: Path,
    report: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    dataset = write_nocaps(captioned, tmp_path, "val")
    assert evaluate(dataset=dataset, split="val", dataset_name="NoCaps") == 0
    expected = score_captions(captioned[1], references_of(captioned[1]), java=False)
    metrics = read_json(report / "metrics.json")
    assert metrics["metrics"]["cider"]["value"] == expected.metrics["cider"]
    assert list(metrics["domains"]) == list(INDICES)
    for domain, indices in INDICES.items():
        found = metrics["domains"][domain]
        assert found["num_images"] == len(indices)
        values = {name: value["value"] for name, value in found["metrics"].items()}
        assert values == expected.part(indices).metrics
    records = read_json(captioner / "evaluation.json")
    assert [(record["subset"], record["num_images"]) for record in records] == [
        *((domain, len(indices)) for domain, indices in INDICES.items()),
        (None, NUM_IMAGES),
    ]
    assert [result["image_id"] for result in read_json(report / "results.json")] == list(range(40, 47))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["in-domain", "near-domain", "out-domain", "entire", "95%", "interval"] in lines
    assert ["images", "2", "4", "1", "7"] in lines


def test_without_references_the_captions_alone_are_written(
    evaluate: Evaluate,
    captioned: Captioned,
    captioner: Path,
    report: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    dataset = write_nocaps(captioned, tmp_path, "test")
    assert evaluate(dataset=dataset, java=True) == 2
    assert "--java: split 'test' of" in capsys.readouterr().err
    assert evaluate(dataset=dataset, java=None, report=report / "page.html") == 0
    assert sorted(contents(report)) == ["metrics.json", "page.html", "results.json"]
    metrics = read_json(report / "metrics.json")
    assert (metrics["metrics"], metrics["domains"], metrics["tokenizer"]) == ({}, {}, None)
    assert read_captions(report) == captioned[1]
    assert not (captioner / "evaluation.json").exists()


def test_the_command_for_others_has_no_folders_of_this_machine(photos: Path):
    args = EvaluateArguments(
        model="org/x", dataset=str(photos), dataset_name="My photos", features="/data/store", batch_size=3
    )
    assert args.command() == "ituning evaluate --model org/x --dataset photos --dataset_name 'My photos'"


def test_two_processes_get_the_scores_of_one(
    evaluate: Evaluate, flags: Callable[..., list[str]], photos: Path, tmp_path: Path
):
    """Of four batches each process has two, one of them with an unreadable image."""
    break_images(photos, 2)
    settings = {"max_unreadable_share": 0.2, "no_card": True}
    assert evaluate(**settings, output_dir=tmp_path / "one") == 0
    argv = ["evaluate", *flags(**settings, output_dir=tmp_path / "two")]
    # The second process is on another host, where the folder is not empty.
    elsewhere = ["evaluate", *flags(**settings, output_dir=tmp_path / "one")]
    runs = run_on_two(argv, tmp_path, other_host=elsewhere)
    assert "6 images of photos, test" in runs[0].printed
    assert "photos, test" not in runs[1].printed  # only the main process prints
    for name in ("results.json", "per_image.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, two = (read_json(tmp_path / name / "metrics.json") for name in ("one", "two"))
    assert two["speed"]["num_processes"] == 2
    assert two["metrics"] == one["metrics"]


def test_hosts_with_other_captioners_are_refused(
    flags: Callable[..., list[str]], captioner: Path, report: Path, tmp_path: Path
):
    other = shutil.copytree(captioner, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    argv = [["evaluate", *flags(model=model)] for model in (captioner, other)]
    for process in run_on_two(argv[0], tmp_path, exit_code=2, other_host=argv[1]):
        assert re.search(r"or libraries: captioner .\w{16}. and .\w{16}.\. Give", process.printed)
    assert not report.exists()
