"""An evaluation from its settings to its report."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import IMAGE_SIZE, SHARED_DATA, VISION, edit_json
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.cli import main
from ituning_hf.evaluation import run as run_module
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.captioning import SplitCaptioner
from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.evaluation.drafts import CaptionedBatch
from ituning_hf.evaluation.errors import EvaluationError
from ituning_hf.evaluation.java import find_java
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.evaluation.report import Speed
from ituning_hf.evaluation.run import evaluate_captioner
from ituning_hf.features.build import build_features
from ituning_hf.hub.evaluation_results import EvaluationResult, read_evaluations, write_evaluations
from ituning_hf.inference.int8 import Int8Linear

from .conftest import NUM_IMAGES, contents, flags, read_json, references_of

needs_data = pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")
Settings = Callable[..., EvaluateArguments]
Said = tuple[Path, list[str]]


def test_the_report_says_what_the_captioner_said_and_scored(
    settings: Settings, said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, captions = said
    evaluation = evaluate_captioner(settings())
    expected = score_captions(captions, references_of(captions), java=False)
    assert evaluation.captions == captions
    assert evaluation.metrics == expected.metrics
    assert expected.metrics["cider"] > 0.1
    assert sorted(contents(tmp_path / "report")) == ["metrics.json", "per_image.jsonl", "results.json"]
    results = read_json(tmp_path / "report" / "results.json")
    assert results == [{"image_id": i, "caption": text} for i, text in enumerate(captions)]
    lines = [json.loads(line) for line in (tmp_path / "report" / "per_image.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"test/{i}.png" for i in range(NUM_IMAGES)]
    assert [line["references"] for line in lines] == references_of(captions)
    metrics = read_json(tmp_path / "report" / "metrics.json")
    for name in ("cider", "rouge_l"):
        assert sum(line["metrics"][name] for line in lines) / NUM_IMAGES == pytest.approx(
            metrics["metrics"][name]["value"], rel=1e-12
        )
    intervals = expected.confidence_intervals()
    assert metrics["metrics"] == {
        name: {"value": value, "interval": list(intervals[name])} for name, value in expected.metrics.items()
    }
    printed = capsys.readouterr().out
    assert re.search(rf"CIDEr +{100 * expected.metrics['cider']:.1f}  ", printed)
    assert "METEOR is left out: it runs in Java" in printed
    cider = expected.per_image["cider"]
    ranked = sorted(range(NUM_IMAGES), key=lambda i: -cider[i])
    shown = re.findall(r"^ +([\d.]+)  test/(\d).png: ", printed, flags=re.MULTILINE)
    assert shown == [(f"{100 * cider[i]:.1f}", str(i)) for i in (*ranked[:3], *ranked[:-4:-1])]
    assert re.search(r"Speed +[\d.]+ captions/s on CPU .* the median batch of 2 took", printed)


def test_the_metrics_file_tells_how_it_came_about_and_no_place_on_the_machine(
    settings: Settings, tmp_path: Path
):
    evaluate_captioner(settings(dataset_name="My photos"))
    text = (tmp_path / "report" / "metrics.json").read_text()
    metrics = json.loads(text)
    assert str(tmp_path) not in text
    assert metrics["benchmark"] == {
        "dataset": "My photos",
        "split": "test",
        "num_images": NUM_IMAGES,
        "unreadable": [],
    }
    assert metrics["scoring"]["tokenizer"] == "Python"
    assert set(metrics["scoring"]["left_out"]) == {"meteor", "spice"}
    assert metrics["settings"]["model"] == "my-captioner"
    assert metrics["settings"]["num_beams"] == 3
    assert metrics["speed"]["num_processes"] == 1
    assert metrics["speed"]["captions_per_second"] > 0
    assert {"torch", "ituning_hf"} <= set(metrics["versions"])


def test_speed_is_of_all_processes_together_and_without_batches_of_no_picture():
    batches = [
        CaptionedBatch(0, [(0, "a"), (1, "b")], [], seconds=1.0),
        CaptionedBatch(1, [(2, "c"), (3, "d")], [], seconds=2.0),
        CaptionedBatch(2, [], [(4, "broken"), (5, "broken")], seconds=0.0),
        CaptionedBatch(3, [(6, "e")], [], seconds=7.0),
    ]
    speed = Speed.of(batches, batch_size=2, num_processes=3, device="CPU")
    assert (speed.captions_per_second, speed.seconds_of_median_batch, speed.num_batches) == (1.5, 2.0, 3)


def test_a_single_batch_is_no_median(settings: Settings, capsys: pytest.CaptureFixture[str]):
    evaluate_captioner(settings(batch_size=16))
    assert re.search(r"Speed .*, without reading images$", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_computed_in_the_given_precision(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    used = set()
    caption_batch = SplitCaptioner._caption_batch

    def looking(self: SplitCaptioner, number: int, items: list) -> object:
        used.update(parameter.dtype for parameter in self.model.parameters())
        return caption_batch(self, number, items)

    monkeypatch.setattr(SplitCaptioner, "_caption_batch", looking)
    evaluate_captioner(settings(dtype=str(dtype).removeprefix("torch."), no_card=True))
    assert used == {dtype}


def test_beams_that_were_left_open_are_told(settings: Settings, tmp_path: Path):
    evaluate_captioner(settings(num_beams=None))
    assert read_json(tmp_path / "report" / "metrics.json")["settings"]["num_beams"] == 5


def test_unreadable_images_are_named_and_left_out(
    settings: Settings,
    said: Said,
    photos: Path,
    captioner: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    (photos / "test" / "3.png").write_bytes(b"not a picture")
    evaluation = evaluate_captioner(settings(max_unreadable_share=0.2))
    others = [i for i in range(NUM_IMAGES) if i != 3]
    references = references_of(said[1])
    assert evaluation.places == others
    assert (
        evaluation.metrics
        == score_captions(evaluation.captions, [references[i] for i in others], java=False).metrics
    )
    assert [line["image_id"] for line in read_json(tmp_path / "report" / "results.json")] == others
    assert read_json(tmp_path / "report" / "metrics.json")["benchmark"]["unreadable"] == ["test/3.png"]
    assert "left out: cannot read" in caplog.text
    note = "1 picture could not be read and is left out of the scores."
    assert note in capsys.readouterr().out.splitlines()
    assert f"photos, test: {note}" in (captioner / "README.md").read_text()


def test_of_expected_images_each_must_be_readable(
    settings: Settings, photos: Path, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for i in (4, 6):
        (photos / "test" / f"{i}.png").write_bytes(b"not a picture")
    args = settings(max_unreadable_share=0.5, expected_images=7)
    message = r"2 of the 7 images could not be read \(test/4.png, test/6.png\), and --expected_images asks"
    with pytest.raises(EvaluationError, match=message):
        evaluate_captioner(args)
    assert not (tmp_path / "report" / "results.json").exists()
    for i in (4, 6):
        shutil.copy(said[0] / f"{i}.png", photos / "test")
    began = stop_after(monkeypatch, 99)
    assert evaluate_captioner(args).captions == said[1]
    assert began == [2, 3]


def test_too_many_unreadable_images_end_it_and_once_mended_it_goes_on(
    settings: Settings, photos: Path, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for i in (4, 5):
        (photos / "test" / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(EvaluationError, match=r"2 of 7 images .* --max_unreadable_share allows 1"):
        evaluate_captioner(settings(max_unreadable_share=0.2))
    assert not (tmp_path / "report" / "results.json").exists()
    for i in (4, 5):
        shutil.copy(said[0] / f"{i}.png", photos / "test")
    assert len(list((tmp_path / "report").iterdir())) == 1
    began = stop_after(monkeypatch, 99)
    assert evaluate_captioner(settings(max_unreadable_share=0.2)).captions == said[1]
    assert began == [2, 3]  # that of the mended images, and the one that was not begun


def test_a_dry_run_captions_one_batch_and_writes_nothing(
    settings: Settings, said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = contents(tmp_path)
    assert evaluate_captioner(settings(dry_run=True)) is None
    assert contents(tmp_path) == before
    printed = capsys.readouterr().out.splitlines()
    shown = [line for line in printed if line.startswith("Caption ")]
    assert [line.partition(": ")[2] for line in shown] == said[1][:2]
    assert printed[1] == "Images     7 of photos, test, with 11 references"
    assert "Batches    4 of 2 images, over 1 process" in printed
    assert (
        "Scores     BLEU, ROUGE-L and CIDEr with the Python tokenizer; METEOR and SPICE need Java" in printed
    )


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Let the captioning be interrupted after so many batches; return the numbers of those it began."""
    began: list[int] = []
    caption_batch = SplitCaptioner._caption_batch

    def counting(self: SplitCaptioner, number: int, items: list) -> object:
        if len(began) == batches:
            raise KeyboardInterrupt
        began.append(number)
        return caption_batch(self, number, items)

    monkeypatch.setattr(SplitCaptioner, "_caption_batch", counting)
    return began


def test_the_language_model_may_be_in_int8(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    layers = []
    caption_batch = SplitCaptioner._caption_batch

    def looking(self: SplitCaptioner, number: int, items: list) -> object:
        layers.append(type(self.model.get_output_embeddings()))
        return caption_batch(self, number, items)

    monkeypatch.setattr(SplitCaptioner, "_caption_batch", looking)
    evaluate_captioner(settings(quantization="int8", no_card=True))
    assert set(layers) == {Int8Linear}
    with pytest.raises(FileExistsError, match="holds another evaluation"):
        evaluate_captioner(settings(no_card=True))


def test_a_killed_evaluation_goes_on_by_the_same_call(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluate_captioner(settings(output_dir=str(tmp_path / "whole"), no_card=True))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            evaluate_captioner(settings())
    (draft,) = (tmp_path / "report").iterdir()
    with draft.open("a") as file:
        file.write('{"number": 2, "captions": [[')  # the kill fell into the midst of a line
    for change in ({"num_beams": 2}, {"max_new_tokens": 8}, {"batch_size": 3}, {"dtype": "bfloat16"}):
        with pytest.raises(FileExistsError, match="holds another evaluation"):
            evaluate_captioner(settings(**change))
    began = stop_after(monkeypatch, 99)
    evaluate_captioner(settings())
    assert began == [2, 3]
    for name in ("results.json", "per_image.jsonl"):
        assert (tmp_path / "report" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((tmp_path / "report").iterdir())) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_json(folder / "generation_config.json", length_penalty=3.0),
        lambda folder: change_preparation(folder),
        lambda folder: change_adapter(folder),
    ],
    ids=["search", "pixels", "weights"],
)
def test_captions_of_a_captioner_that_changed_where_it_lies_are_never_reused(
    settings: Settings, captioner: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            evaluate_captioner(settings())
    change(captioner)
    with pytest.raises(FileExistsError, match="holds another evaluation"):
        evaluate_captioner(settings())
    began = stop_after(monkeypatch, 99)
    evaluate_captioner(settings(overwrite=True))
    assert began == [0, 1, 2, 3]


def change_preparation(folder: Path) -> None:
    """Save a captioner's processor with another normalisation of pixels."""
    processor = ITuningProcessor.from_pretrained(folder)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(folder)


def change_adapter(folder: Path) -> None:
    """Save a captioner with another number among its weights."""
    model = ITuningForCaptioning.from_pretrained(folder)
    with torch.no_grad():
        next(iter(model.adapters().values())).out_proj.bias[-1] += 0.01
    model.save_pretrained(folder)


@pytest.mark.parametrize("failure", [RuntimeError, ValueError])  # of a program; of what is to be scored
def test_a_scorer_that_fails_takes_no_caption_along(
    settings: Settings,
    said: Said,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
):
    def failing(*args: object) -> None:
        raise failure("METEOR failed.")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "score", failing)
        with pytest.raises(EvaluationError, match=r"METEOR failed. The captions are in .*results.json"):
            evaluate_captioner(settings())
    assert [r["caption"] for r in read_json(tmp_path / "report" / "results.json")] == said[1]
    began = stop_after(monkeypatch, 99)
    assert evaluate_captioner(settings()).captions == said[1]
    assert began == []


def test_another_evaluations_folder_is_refused_and_may_be_replaced(settings: Settings, tmp_path: Path):
    evaluate_captioner(settings())
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds another evaluation \(results.json\): .* --overwrite"):
        evaluate_captioner(settings(num_beams=1))
    assert contents(tmp_path) == before
    evaluate_captioner(settings(overwrite=True, num_beams=1))
    assert read_json(tmp_path / "report" / "metrics.json")["settings"]["num_beams"] == 1


def test_a_finished_evaluation_is_told_again_and_left_as_it_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    evaluate_captioner(settings())
    first, before = capsys.readouterr().out, contents(tmp_path)
    monkeypatch.setattr(SplitCaptioner, "_caption_batch", lambda *args: pytest.fail("it captioned"))
    for changes in ({}, {"dry_run": True}, {"dataloader_num_workers": 1}):
        assert main(["evaluate", *flags(settings(**changes))]) == 0
        head, *table = capsys.readouterr().out.splitlines()
        assert head.startswith("This evaluation is complete, and its report in ")
        assert len(table) == 13  # the heading, the scores, and how they came about
        assert first.startswith("\n".join(table))
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_name": "Mine"},
        {"expected_images": 7},
        {"java": None},
        {"num_beams": 2},
        lambda folder: change_adapter(folder / "my-captioner"),
        lambda folder: edit_caption(folder / "photos" / "test" / "metadata.jsonl"),
        lambda folder: Image.new("RGB", (40, 30)).save(folder / "photos" / "test" / "3.png"),
    ],
    ids=["name", "count", "java", "search", "weights", "references", "picture"],
)
def test_a_finished_evaluation_of_anything_else_is_another(
    settings: Settings, tmp_path: Path, change: dict | Callable[[Path], None]
):
    evaluate_captioner(settings())
    if callable(change):
        change(tmp_path)
    elif "java" in change and find_java() is None:
        pytest.skip("needs Java")
    with pytest.raises(FileExistsError, match="holds another evaluation"):
        evaluate_captioner(settings(**({} if callable(change) else change)))


def edit_caption(path: Path) -> None:
    """Change a word of people's captions."""
    text = path.read_text()
    assert "runs" in text
    path.write_text(text.replace("runs", "walks", 1))


def test_a_card_that_has_no_scores_yet_gets_those_of_the_finished_evaluation(
    settings: Settings, captioner: Path
):
    evaluation = evaluate_captioner(settings(no_card=True))
    assert read_evaluations(captioner) == []
    assert evaluate_captioner(settings()) is None
    (result,) = read_evaluations(captioner)
    assert result.metrics == evaluation.metrics
    assert (result.tokenizer, result.num_unreadable) == ("Python", 0)
    assert "Tokenizer: the package's Python tokenizer" in (captioner / "README.md").read_text()


def test_a_kill_before_the_card_leaves_no_scores_of_an_earlier_evaluation_there(
    settings: Settings, captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kill(*args: object) -> None:
        raise KeyboardInterrupt

    evaluate_captioner(settings(num_beams=1, output_dir=str(tmp_path / "greedy")))
    with monkeypatch.context() as patch:
        patch.setattr("ituning_hf.evaluation.run.put_on_card", kill)
        with pytest.raises(KeyboardInterrupt):
            evaluate_captioner(settings())
    for _ in range(2):
        assert evaluate_captioner(settings()) is None
        assert "--num_beams 1 " not in read_evaluations(captioner)[0].command + " "
        assert len(list((tmp_path / "report").iterdir())) == 3
    assert evaluate_captioner(settings(num_beams=1, output_dir=str(tmp_path / "greedy"))) is None
    assert "--num_beams 1 " not in read_evaluations(captioner)[0].command + " "


def test_telling_a_finished_evaluation_leaves_the_work_of_another_in_its_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluate_captioner(settings())
    other = settings(num_beams=1, overwrite=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            evaluate_captioner(other)
    assert evaluate_captioner(settings()) is None
    began = stop_after(monkeypatch, 99)
    evaluate_captioner(other)
    assert began == [2, 3]
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_unreadable_images_of_features_are_mended_in_the_store(
    settings: Settings, photos: Path, said: Said, backbones: dict[str, Path], tmp_path: Path
):
    def build() -> None:
        images = settings().load_split("test", 0)
        build_features(images, tmp_path / "store", vision_model=backbones["vision"], num_workers=0)

    (photos / "test" / "3.png").write_bytes(b"not a picture")
    build()
    some = settings(features=str(tmp_path / "store"), max_unreadable_share=0.2)
    every = replace(some, expected_images=7, output_dir=str(tmp_path / "every"))
    evaluate_captioner(some)
    with pytest.raises(EvaluationError, match="mend them and build their features, and the same command"):
        evaluate_captioner(every)
    shutil.copy(said[0] / "3.png", photos / "test")
    build()
    with pytest.raises(FileExistsError, match="holds another evaluation"):
        evaluate_captioner(some)
    assert evaluate_captioner(every).places == list(range(7))


def test_metrics_that_the_card_loses_are_named(
    settings: Settings, captioner: Path, capsys: pytest.CaptureFixture[str]
):
    richer = {"cider": 1.0, "spice": 0.2, "meteor": 0.3}
    old = EvaluationResult(dataset="photos", split="test", num_images=7, metrics=richer, command="x")
    write_evaluations(captioner, [old, EvaluationResult(**vars(old) | {"split": "val"})])
    evaluate_captioner(settings())
    gone = "METEOR and SPICE of the earlier evaluation of photos, test, are gone from there: "
    assert gone in capsys.readouterr().out
    evaluate_captioner(settings(overwrite=True))
    assert "gone" not in capsys.readouterr().out


def test_features_stand_in_for_the_pictures_and_the_vision_encoder(
    settings: Settings,
    said: Said,
    photos: Path,
    backbones: dict[str, Path],
    captioner: Path,
    tmp_path: Path,
):
    images = settings().load_split("test", 0)
    build_features(
        images, tmp_path / "store", vision_model=backbones["vision"], storage="float32", num_workers=0
    )
    for path in (photos / "test").glob("*.png"):
        path.unlink()
    moved = settings(features=str(tmp_path / "store"), vision_model=str(tmp_path / "nowhere"))
    assert evaluate_captioner(moved).captions == said[1]


def test_features_that_lack_an_image_are_refused_before_captioning(
    settings: Settings, backbones: dict[str, Path], tmp_path: Path
):
    images = settings().load_split("test", 0)
    build_features(images[:-1], tmp_path / "store", vision_model=backbones["vision"], num_workers=0)
    with pytest.raises(ValueError, match=r"no features of 1 of the 7 images \('test/6.png'\)"):
        evaluate_captioner(settings(features=str(tmp_path / "store")))
    assert not (tmp_path / "report").exists()


def test_features_of_another_encoder_are_refused(
    settings: Settings, photos: Path, backbones: dict[str, Path], tmp_path: Path
):
    images = settings().load_split("test", 0)
    options = {"vision_model": backbones["vision"], "vision_feature_layer": 1, "num_workers": 0}
    build_features(images, tmp_path / "store", **options)
    with pytest.raises(ValueError, match="vision_feature_layer 1, not -1"):
        evaluate_captioner(settings(features=str(tmp_path / "store")))
    assert not (tmp_path / "report").exists()


def test_features_of_another_preparation_are_refused(
    settings: Settings, backbones: dict[str, Path], tmp_path: Path
):
    encoder = shutil.copytree(backbones["vision"], tmp_path / "encoder")
    edit_json(encoder / "preprocessor_config.json", do_center_crop=False)
    images = settings().load_split("test", 0)
    build_features(images, tmp_path / "store", vision_model=encoder, num_workers=0)
    with pytest.raises(ValueError, match=r"image_processor\.do_center_crop False, not True"):
        evaluate_captioner(settings(features=str(tmp_path / "store")))


def test_the_card_shows_the_scores_beside_those_of_other_benchmarks(settings: Settings, captioner: Path):
    other = EvaluationResult(dataset="COCO", split="test", num_images=9, metrics={"cider": 1.0}, command="x")
    write_evaluations(captioner, [EvaluationResult(**vars(other) | {"dataset": "photos"}), other])
    evaluation = evaluate_captioner(settings())
    kept, ours = read_evaluations(captioner)
    assert kept == other
    assert (ours.dataset, ours.split, ours.num_images, ours.subset) == ("photos", "test", NUM_IMAGES, None)
    assert ours.metrics == evaluation.metrics
    assert ours.command == (
        "ituning evaluate --model path/to/my-captioner --num_beams 3 --max_new_tokens 9 "
        "--dataset path/to/photos --split test --java false"
    )
    assert f"| {100 * ours.metrics['cider']:.1f} " in (captioner / "README.md").read_text()


def test_a_card_may_be_left_alone(settings: Settings, captioner: Path):
    before = contents(captioner)
    evaluate_captioner(settings(no_card=True))
    assert contents(captioner) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "nowhere/at/all"}, OSError, "nowhere/at/all"),
        ({"dataset": "nowhere"}, ValueError, "no data set at 'nowhere'"),
        ({"split": "val"}, ValueError, "has no images of split 'val'"),
        ({"expected_images": 5000}, ValueError, "--expected_images is 5,000, and .* has 7"),
        ({"features": "nowhere"}, FileNotFoundError, "nowhere is no store of features"),
        (
            {"predictions": "nowhere.json", "model": None},
            FileNotFoundError,
            "--predictions nowhere.json: there",
        ),
        ({"clip_model": "nowhere/at/all"}, OSError, "there is no full CLIP"),
        ({"dataset_name": "/data/photos"}, ValueError, "'/data/photos', a place on this machine"),
    ],
)
def test_mistakes_are_told_before_captioning(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    error: type[Exception],
    message: str,
):
    monkeypatch.setattr(SplitCaptioner, "_caption_batch", lambda *args: pytest.fail("it captioned"))
    with pytest.raises(error, match=message):
        evaluate_captioner(settings(**changes))
    assert not (tmp_path / "report").exists()


def test_missing_scorers_and_a_missing_java_are_told_before_captioning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(SplitCaptioner, "_caption_batch", lambda *args: pytest.fail("it captioned"))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(ValueError, match="--java true demands Java, and no working `java`"):
            evaluate_captioner(settings(java=True))
    monkeypatch.setattr("ituning_hf.evaluation.scoring.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ituning_hf\[eval\]'"):
        evaluate_captioner(settings())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A whole CLIP of random weights, with the real tokenizer."""
    folder = tmp_path / "clip"
    text = CLIPTextConfig(hidden_size=14, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2)
    vision = CLIPVisionConfig(**VISION)
    CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict())).save_pretrained(folder)
    size = {"shortest_edge": IMAGE_SIZE}
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(SHARED_DATA / "clip-tokenizer").save_pretrained(folder)
    return folder


@needs_data
def test_clip_scores_join_the_others(
    settings: Settings, clip: Path, said: Said, tmp_path: Path, captioner: Path
):
    evaluation = evaluate_captioner(settings(clip_model=str(clip)))
    paths = [said[0] / f"{i}.png" for i in range(NUM_IMAGES)]
    expected = clip_scores(clip, paths, said[1], references_of(said[1]))
    lines = [json.loads(line) for line in (tmp_path / "report" / "per_image.jsonl").read_text().splitlines()]
    for name, values in expected.items():
        assert [line["metrics"][name] for line in lines] == pytest.approx(values, rel=1e-5)
        assert evaluation.metrics[name] == pytest.approx(sum(values) / NUM_IMAGES, rel=1e-5)
    assert "RefCLIPScore" in (captioner / "README.md").read_text()


@needs_data
def test_real_photographs(settings: Settings, tmp_path: Path):
    data = {"dataset": str(SHARED_DATA / "flickr8k-mini" / "dataset_flickr8k_mini.json"), "split": "val"}
    evaluation = evaluate_captioner(
        settings(**data, num_beams=1, batch_size=32, expected_images=113, dataloader_num_workers=2)
    )
    assert len(evaluation.captions) == 113
    ids = [image.image_id for image in evaluation.images]
    assert [r["image_id"] for r in read_json(tmp_path / "report" / "results.json")] == ids
    assert len(set(ids)) == 113
