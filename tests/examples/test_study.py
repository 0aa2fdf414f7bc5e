"""The study: cells are trained, scored, resumed and reported on small data."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_benchmarks import FLICKR, make_all
from small_models import ADAPTER, make_batch, store_features
from study import cells, decoding, methods, report, run, training
from study.cells import METHODS, Cell

from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner
from ituning_hf.data import load_captioned_images
from ituning_hf.evaluation.scores import CaptionScores
from ituning_hf.training.setup import SCENE_BACKBONES

VISION, TEXT = (str(SCENE_BACKBONES / name) for name in ("vision", "text"))
SMALL: dict[str, Any] = {"visits": 4, "num_eval_images": FLICKR["val"]}
BATCH = {"per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = make_all(tmp_path_factory.mktemp("study"))
    dataset = str(root / "data" / "flickr8k" / "dataset_flickr8k.json")
    images = [load_captioned_images(dataset, split) for split in ("train", "val")]
    store_features(root / "features", images, dataset=dataset, vision_model=VISION)
    return {"dataset": dataset, "features": str(root / "features"), "text_model": TEXT}


def run_small(data: dict[str, str], method: str = "ituning", seed: int = 0, **settings: Any) -> Any:
    return training.run_cell(Cell(method, seed=seed, **SMALL, settings=BATCH | settings), **data)


@pytest.fixture(scope="module")
def results(data: dict[str, str]) -> dict[str, Any]:
    return {method: run_small(data, method) for method in METHODS}


def test_every_method_is_trained_and_scored_alike(results: dict[str, Any]):
    for method, result in results.items():
        assert result["cell"]["method"] == method
        assert len(result["captions"]) == FLICKR["val"]
        assert {"loss", "cider", "bleu_4", "rouge_l"} <= result["metrics"].keys()
    parameters = {method: result["trainable_parameters"] for method, result in results.items()}
    assert parameters["ituning_upper_half"] == parameters["ituning"] / 2
    for method in cells.RIVALS:
        assert parameters[method] == pytest.approx(parameters["ituning"], rel=0.05)


def test_a_cell_is_repeatable_and_depends_on_its_seed(data: dict[str, str], results: dict[str, Any]):
    again, other = run_small(data, "flamingo"), run_small(data, "flamingo", seed=1)
    assert again["metrics"] == results["flamingo"]["metrics"]
    assert again["captions"] == results["flamingo"]["captions"]
    assert other["metrics"]["loss"] != again["metrics"]["loss"]


@pytest.mark.parametrize("norm", [True, False])
def test_every_method_sees_normalized_image_tokens(
    data: dict[str, str], monkeypatch: pytest.MonkeyPatch, norm: bool
):
    seen: list[torch.Tensor] = []

    def train(model: Any, images: training.Images, *_: Any) -> dict[str, float]:
        seen.extend(batch["visual_features"] for batch in images.training_batches(2, 1))
        return {}

    monkeypatch.setattr(training, "train", train)
    run_small(data, "clipcap", **{} if norm else {"vision_feature_norm": False})
    std = seen[0].std(dim=-1, correction=0)
    assert torch.allclose(std, torch.ones_like(std), atol=1e-3) == norm


def test_a_diverging_cell_ends_early_and_is_scored(
    data: dict[str, str], monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]
):
    norm = torch.nn.utils.clip_grad_norm_
    calls = []

    def infinite_at_the_second_step(*args: Any) -> torch.Tensor:
        calls.append(args)
        return norm(*args) if len(calls) == 1 else torch.tensor(torch.inf)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", infinite_at_the_second_step)
    result = run_small(data)
    assert (results["ituning"]["steps"], result["steps"]) == (2, 1)
    assert len(result["captions"]) == FLICKR["val"]


def test_only_cells_without_a_result_are_run(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def group(results: cells.Results) -> dict[str, Cell]:
        return {f"small-{seed}": Cell(seed=seed, **SMALL, settings=BATCH) for seed in (0, 1, 2)}

    monkeypatch.setattr(run, "GROUPS", [group])
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "small-1.json").write_text("{}")
    options = ["--dataset", data["dataset"], "--vision_model", VISION, "--text_model", TEXT]
    options += ["--features", str(tmp_path / "features"), "--results", str(folder), "--processes", "1"]
    run.main([*options, "--dry_run"])
    assert "2 of 3" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["small-1.json"]
    run.main([*options, "--cells", "small-[01]"])
    assert "small-0: loss" in capsys.readouterr().out
    assert run.load_results(folder).keys() == {"small-0", "small-1"}
    assert (folder / "small-1.json").read_text() == "{}"


def test_the_groups_use_earlier_results():
    def result(**metrics: float) -> dict[str, Any]:
        return {"metrics": metrics}

    results: cells.Results = {}
    assert not [cell for group in cells.GROUPS[1:] for cell in group(results)]
    for i, (method, rate) in enumerate(itertools.product(METHODS, cells.LEARNING_RATES)):
        results[f"rate-{method}-{rate:g}"] = result(cider=-i, loss=-i)  # the first rate has the best CIDEr
    assert cells.table(results)["table-flamingo-2"] == Cell("flamingo", cells.LEARNING_RATES[0], 2)
    assert len(cells.curve(results)) == 6  # no rival yet
    for (i, rival), seed in itertools.product(enumerate(cells.RIVALS), cells.SEEDS):
        assert cells.best_rival(results) is None
        results[f"table-{rival}-{seed}"] = result(cider=i % 3)
    assert cells.best_rival(results) == cells.RIVALS[2]
    assert len(cells.curve(results)) == 12
    names = [name for group in cells.GROUPS for name in group(results)]
    assert len(names) == len(set(names))
    for group in cells.GROUPS:
        for cell in group(results).values():
            json.dumps(vars(cell))


def test_the_report_has_the_values_of_the_results(
    data: dict[str, str],
    results: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(report, "score_captions", partial(report.score_captions, java=False))  # quicker
    monkeypatch.setattr(report, "RESAMPLES", 20)
    (folder / "rate-flamingo-0.001.json").write_text(json.dumps(results["flamingo"]))
    arguments = ["--dataset", data["dataset"], "--results", str(folder), "--output_dir", str(tmp_path)]
    report.main(arguments)  # without the table
    assert not list(tmp_path.glob("*.png"))
    metrics = results["flamingo"]["metrics"]
    assert f"| **{100 * metrics['cider']:.1f}** ({metrics['loss']:.3f}) |" in capsys.readouterr().out
    for method, found in results.items():
        (folder / f"table-{method}-0.json").write_text(json.dumps(found))
    (folder / "change-gate-0.json").write_text(json.dumps(results["flamingo"]))
    report.main(arguments)
    printed = capsys.readouterr().out
    for method, found in results.items():
        start = f"| {report.TITLES[method]} | {found['metrics']['loss']:.3f} | "
        line = next(line for line in printed.splitlines() if line.startswith(start))
        assert f"{100 * found['metrics']['cider']:.1f} (" in line
        assert f"{found['trainable_parameters']:,}" in printed
    loss = results["flamingo"]["metrics"]["loss"]
    assert f"| gate | {loss:.3f} | {loss - results['ituning']['metrics']['loss']:+.3f} |" in printed
    assert {"parameters.png", "minutes.png", "images.png"} <= {path.name for path in tmp_path.iterdir()}


def scores_of(per_image: dict[str, list[float]]) -> CaptionScores:
    return CaptionScores(per_image=per_image, counts={}, tokenizer="", java_version=None, left_out={})


def test_intervals_are_over_seeds_and_images():
    scores = [scores_of({"bleu_1": [0.0] * 5, "cider": [float(seed)] * 5}) for seed in (0, 10)]
    values = report.Scored([], scores).resamples["cider"]
    assert {*values.tolist()} == {0.0, 5.0, 10.0}  # no image differs: only the seeds vary
    assert np.mean(values) == pytest.approx(5, abs=0.5)
    scores = [scores_of({"cider": [0.0, 1.0, 2.0]})] * 2
    low, high = report.interval(report.Scored([], scores).resamples["cider"])
    assert 0 <= low < 1 < high <= 2


def test_methods_with_different_numbers_of_seeds_are_paired_by_image():
    scores = scores_of({"cider": np.random.default_rng(0).random(50).tolist()})
    one, three = (report.Scored([], [scores] * seeds).resamples["cider"] for seeds in (1, 3))
    assert three == pytest.approx(one)


@pytest.mark.parametrize(
    ("method", "std", "trained"), [("gate", 0.02, "gate"), ("linear_init", 0.12, "out_proj")]
)
def test_a_changed_adapter_starts_without_effect(
    backbones: dict[str, Path], method: str, std: float, trained: str
):
    plain, captioner = (
        ITuningForCaptioning.from_vision_text_pretrained(backbones["vision"], backbones["text"], **ADAPTER)
        for _ in range(2)
    )
    changed = methods.build(method, captioner).train()
    loss = changed(**make_batch()).loss
    assert torch.equal(loss, plain.train()(**make_batch()).loss)
    loss.backward()
    parameters = [item for adapter in captioner.adapters().values() for item in adapter.named_parameters()]
    assert {name.partition(".")[0] for name, p in parameters if p.grad.any()} == {trained}
    queries = torch.cat([p.detach().flatten() for name, p in parameters if name == "q_proj.weight"])
    assert queries.std().item() == pytest.approx(std, rel=0.1)


def test_settings_of_generation_are_scored_once(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(decoding, "score_captions", partial(decoding.score_captions, java=False))  # quicker
    captioner = ITuningForCaptioning.from_vision_text_pretrained(VISION, TEXT)
    save_captioner(captioner, ITuningProcessor.from_vision_text_pretrained(VISION, TEXT), tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--name", "untrained", "--results", str(tmp_path)]
    arguments += ["--dataset", data["dataset"], "--features", data["features"], "--settings", "beams-[12]*"]
    for expected in (3, 0):
        decoding.main(arguments)
        assert capsys.readouterr().out.count("CPU s a caption") == expected
    table = report.decoding_table(run.load_results(tmp_path)).splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        ["| untrained", "beams-1"],
        ["| untrained", "beams-2"],
        ["| untrained", "beams-10"],
    ]


def test_repetition_and_length_of_captions():
    found = decoding.describe(["a man and a man", "A dog runs", "a dog runs"])
    assert found == {"words": 11 / 3, "repeating": 1 / 3, "distinct": 1.0, "vocabulary": 5}
