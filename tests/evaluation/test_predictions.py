"""Captions made elsewhere: read, held against the images, and scored as if they had been made here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ituning_hf.cli import main
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.images import load_images
from ituning_hf.evaluation.java import find_java
from ituning_hf.evaluation.predictions import read_predictions
from ituning_hf.evaluation.run import evaluate_captioner

from .conftest import NUM_IMAGES, contents, read_json

Settings = Callable[..., EvaluateArguments]
ENGLISH = ["a dog runs", "two birds", "a man on a bike", "a tree", "grass", "a red dog", "a dog in a tree"]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def coco(captions: list[str]) -> list[dict]:
    return [{"image_id": i, "caption": text} for i, text in enumerate(captions)]


def test_results_come_back_with_the_same_numbers(settings: Settings, tmp_path: Path, captioner: Path):
    first = evaluate_captioner(settings())
    before = contents(captioner)
    again = settings(
        model=None,
        predictions=str(tmp_path / "report" / "results.json"),
        output_dir=str(tmp_path / "again"),
    )
    second = evaluate_captioner(again)
    assert second.captions == first.captions
    assert second.metrics == first.metrics
    for name in ("results.json", "per_image.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "report" / name).read_bytes()
    assert read_json(tmp_path / "again" / "metrics.json")["speed"] is None
    assert contents(captioner) == before


def test_the_lines_of_ituning_caption(
    settings: Settings, captioner: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Paths there begin where the command was called."""
    first = evaluate_captioner(settings())
    monkeypatch.chdir(tmp_path)
    search = ["--num_beams", "3", "--max_new_tokens", "9", "--batch_size", "2"]
    assert main(["caption", "photos", "--model", str(captioner), *search, "--output", "captions.jsonl"]) == 0
    assert read_predictions(Path("captions.jsonl"), load_images(settings())) == first.captions


@pytest.mark.parametrize("prefix", ["test/", "/data/photos/test/"])
def test_an_object_of_captions_by_file_name(settings: Settings, tmp_path: Path, prefix: str):
    names = {f"{prefix}{i}.png": text for i, text in reversed(list(enumerate(ENGLISH)))}
    path = write(tmp_path / "theirs.json", names)
    assert read_predictions(path, load_images(settings())) == ENGLISH


def test_names_without_their_folder_are_no_names(settings: Settings, tmp_path: Path):
    path = write(tmp_path / "theirs.json", {f"{i}.png": text for i, text in enumerate(ENGLISH)})
    with pytest.raises(ValueError, match=r"7 captions of other images \(0.png, 1.png, 2.png, \.\.\.\)"):
        read_predictions(path, load_images(settings()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:3], r"4 images without a caption \(test/3.png with id 3, .*, \.\.\.\)\. Each"),
        (lambda found: [*found, found[2]], r"1 images with several captions \(test/2.png with id 2\)"),
        (lambda found: [*found, {"image_id": 99, "caption": ""}], r"1 captions of other images \(99\)"),
        (lambda found: [{"id": 1}], r"entry 1 is {'id': 1}, expected a list of"),
        (lambda found: [{"image_id": "0", "caption": "a"}], r"entry 1 is {'caption': 'a', 'image_id': '0'}"),
        (lambda found: "a dog", r"holds 'a dog', expected a list of"),
        (lambda found: "a" * 1000, r"holds 'a{5,20}\.\.\.a{5,20}', expected"),
        (lambda found: {"images": [{"id": i} for i in range(1000)]}, r"entry 1 is .{5,150}, expected"),
    ],
)
def test_what_does_not_fit_is_named(settings: Settings, tmp_path: Path, change: Callable, message: str):
    path = write(tmp_path / "theirs.json", change(coco(ENGLISH)))
    with pytest.raises(ValueError, match=message):
        evaluate_captioner(settings(model=None, predictions=str(path)))
    assert not (tmp_path / "report").exists()


def test_a_line_may_hold_what_other_texts_end_lines_with(settings: Settings, tmp_path: Path):
    captions = [f"{text}\u2028{text}\x85" for text in ENGLISH]
    entries = [{"image": f"test/{i}.png", "captions": [text]} for i, text in enumerate(captions)]
    lines = [json.dumps(entry, ensure_ascii=False) + "\r\n" for entry in entries]
    (tmp_path / "theirs.jsonl").write_text("".join(lines), encoding="utf-8", newline="")
    assert read_predictions(tmp_path / "theirs.jsonl", load_images(settings())) == captions


def test_what_is_no_json_is_told(settings: Settings, tmp_path: Path):
    (tmp_path / "theirs.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        evaluate_captioner(settings(model=None, predictions=str(tmp_path / "theirs.json")))
    for broken in ('{"image": "0.png"', "[" * 100_000):
        (tmp_path / "theirs.jsonl").write_text(broken)
        with pytest.raises(ValueError, match="is not JSON"):
            evaluate_captioner(settings(model=None, predictions=str(tmp_path / "theirs.jsonl")))


def test_predictions_that_were_scored_are_told_again_and_others_refused(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = settings(model=None, predictions=str(write(tmp_path / "theirs.json", coco(ENGLISH))))
    evaluate_captioner(args)
    before = contents(tmp_path / "report")
    assert evaluate_captioner(args) is None
    assert "This evaluation is complete" in capsys.readouterr().out
    write(tmp_path / "theirs.json", coco([*ENGLISH[:-1], "a cat"]))
    with pytest.raises(FileExistsError, match="holds another evaluation"):
        evaluate_captioner(args)
    assert contents(tmp_path / "report") == before


def test_a_dry_run_writes_nothing(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "theirs.json", coco(ENGLISH))
    before = contents(tmp_path)
    evaluate_captioner(settings(model=None, predictions=str(path), dry_run=True))
    assert contents(tmp_path) == before
    assert "one for each image" in capsys.readouterr().out


@pytest.mark.skipif(find_java() is None, reason="needs Java")
def test_the_official_tools_read_the_results_and_find_the_same(settings: Settings, tmp_path: Path):
    """`COCO.loadRes` and `COCOEvalCap`, with its own tokenizer and those of its scorers that need no Java."""
    path = write(tmp_path / "theirs.json", coco(ENGLISH))
    evaluation = evaluate_captioner(settings(model=None, predictions=str(path)))
    texts = [(i, text) for i, image in enumerate(evaluation.images) for text in image.captions]
    annotations = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(texts)]
    images = [{"id": i} for i in range(NUM_IMAGES)]
    write(tmp_path / "truth.json", {"images": images, "annotations": annotations})
    program = """if True:
        import json
        from pycocotools.coco import COCO
        from pycocoevalcap import eval as official
        class Left:
            def compute_score(self, references, predictions): return 0, [{} for _ in predictions]
            def method(self): return "left out"
        official.Meteor = official.Spice = Left
        official.COCOEvalCap.setEvalImgs = lambda self: None
        truth = COCO("truth.json")
        evaluation = official.COCOEvalCap(truth, truth.loadRes("report/results.json"))
        evaluation.evaluate()
        print(json.dumps({name: float(score) for name, score in evaluation.eval.items()}))
    """
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    names = {"Bleu_1": "bleu_1", "Bleu_4": "bleu_4", "ROUGE_L": "rouge_l", "CIDEr": "cider"}
    assert evaluation.metrics["cider"] > 0.1
    for name, ours in names.items():
        assert evaluation.metrics[ours] == pytest.approx(theirs[name], abs=1e-9), name
