"""`evaluation.json`: what goes in comes out, and nothing else gets in."""

import json
from pathlib import Path

import pytest

from ituning_hf.evaluation.metrics import compute_caption_metrics
from ituning_hf.hub.evaluation_results import (
    METRIC_NAMES,
    EvaluationResult,
    read_evaluations,
    write_evaluations,
)

GOOD = {
    "dataset": "COCO Karpathy",
    "split": "test",
    "num_images": 5000,
    "metrics": {"cider": 1.1},
    "command": "ituning evaluate --model org/x",
}


def test_a_round_trip(tmp_path: Path, results):
    assert read_evaluations(tmp_path) == []
    write_evaluations(tmp_path, results)
    assert read_evaluations(tmp_path) == results


def test_the_file_is_as_documented(tmp_path: Path):
    write_evaluations(tmp_path, [EvaluationResult(**GOOD)])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {
        "format_version": 1,
        "results": [GOOD | {"subset": None, "tokenizer": None, "num_unreadable": 0}],
    }


def test_every_score_that_is_computed_has_a_name():
    pytest.importorskip("pycocoevalcap")
    scores = compute_caption_metrics(["a dog runs", "a cat"], [["a dog runs"], ["the cat"]], java=False)
    others = {"meteor", "spice", "clip_score", "ref_clip_score"}  # of Java, and of a CLIP
    assert set(scores) | others == set(METRIC_NAMES)
    assert EvaluationResult(**GOOD | {"metrics": scores}).metrics == scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": " "}, "dataset is ' ', expected one line of text"),
        ({"split": 3}, "split is 3, expected one line of text"),
        ({"command": "a\nb"}, r"command is 'a\\nb', expected one line of text"),
        ({"subset": ""}, "subset is '', expected one line of text"),
        ({"num_images": 0}, "num_images is 0, expected a whole number of at least 1"),
        ({"tokenizer": "Stanza"}, r"tokenizer is 'Stanza', expected one of \['PTB \(Java\)', 'Python'\]"),
        ({"num_unreadable": -1}, "num_unreadable is -1, expected a whole number"),
        ({"num_images": 5.0}, r"num_images is 5\.0, expected a whole number"),
        ({"metrics": {}}, r"metrics is \{\}, expected a score for at least one of \['bleu_1'"),
        ({"metrics": {"CIDEr": 1.1}}, "metrics holds 'CIDEr', expected some of "),
        ({"metrics": {"cider": float("nan")}}, r"metrics\['cider'\] is nan, expected a finite number"),
        ({"metrics": {"cider": True}}, r"metrics\['cider'\] is True, expected a finite number"),
        (
            {"metrics": {"cider": -0.1}},
            r"metrics\['cider'\] is -0\.1, expected a finite number of at least 0",
        ),
        ({"dataset": "/data/it's coco"}, 'dataset holds "/data/it\'s coco", a place on this machine'),
        ({"command": "ituning evaluate --model=/m/x"}, "command holds '/m/x', a place on this machine"),
        (
            {"command": r"evaluate --model 'C:\x'"},
            "a place on this machine, and everybody reads the model card",
        ),
        ({"command": "evaluate ~/x"}, "command holds '~/x'"),
    ],
)
def test_what_is_no_result_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        EvaluationResult(**GOOD | change)


@pytest.mark.parametrize(
    "words",
    [
        "file:///home/ann/x",
        "a,/home/ann",
        "--map:/home/ann",
        "--map x:/home/ann",
        "'/home/ann/x'",
        r"C:\Users\ann",
        "C:/Users/ann",
        r"\\server\ann",
    ],
)
def test_no_command_tells_a_place_on_this_machine(words: str):
    with pytest.raises(ValueError, match=r"command holds '.*', a place on this machine"):
        EvaluationResult(**GOOD | {"command": f"evaluate {words} --split test"})


@pytest.mark.parametrize("words", ["https://example.org/a", "coco:2017", "a/b.json", "'a dog/cat'", "10:30"])
def test_other_words_of_a_command_may_be_told(words: str):
    command = f"evaluate {words}"
    assert EvaluationResult(**GOOD | {"command": command}).command == command


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices must be"),
        ('{"format_version": 2, "results": []}', "its format_version is 2, wanted 1"),
        ('{"format_version": 1}', "'results'"),
        ('{"format_version": 1, "results": [{"dataset": "x"}]}', "missing 4 required keyword-only arguments"),
        (
            json.dumps({"format_version": 1, "results": [GOOD | {"loss": 1}]}),
            "unexpected keyword argument 'loss'",
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, why: str):
    (tmp_path / "evaluation.json").write_text(text)
    message = rf"evaluation\.json holds no evaluation results \(.*{why}.*: remove it and evaluate again"
    with pytest.raises(ValueError, match=message):
        read_evaluations(tmp_path)
