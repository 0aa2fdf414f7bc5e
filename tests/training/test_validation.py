"""Validation: its steps and results, the choice of the best captioner, and early stopping."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import Settings, dataset_captions, samples
from small_models import validation_scores

import ituning_hf
from ituning_hf import ITuningForCaptioning
from ituning_hf.hub.records import ValidationRecord, read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import TrainingData, load_data
from ituning_hf.training.reporting import validation_lines
from ituning_hf.training.run import train
from ituning_hf.training.validation import SCORERS
from ituning_hf.utils.errors import UserError

# Long enough that the captions change.
LEARNING = {"max_train_steps": 30, "eval_steps": "3", "adapter_dropout": 0.1}


def captions_of(args: TrainArguments, name: str, numbers: list[int]) -> dict[str, str]:
    """Caption validation images with a saved captioner, as a user would."""
    captions = ituning_hf.caption(
        Path(args.output_dir) / name,
        [Path(args.dataset) / "val" / f"{i}.png" for i in numbers],
        num_beams=1,
        max_new_tokens=args.max_caption_tokens - 1,
    )
    return {f"val/{i}.png": caption for i, caption in zip(numbers, captions, strict=True)}


def score(args: TrainArguments, captions: dict[str, str]) -> dict[str, float]:
    from ituning_hf.evaluation.metrics import compute_caption_metrics

    references = dataset_captions(args, "val")
    return compute_caption_metrics(
        list(captions.values()), [references[name] for name in captions], java=False
    )


@pytest.mark.parametrize(
    ("eval_steps", "steps"),
    [("epoch", [0, 3, 6, 7]), ("2", [0, 2, 4, 6, 7]), ("100", [0, 7])],
)
def test_validation_follows_eval_steps_and_the_last_step(
    settings: Settings, eval_steps: str, steps: list[int]
):
    args = settings(max_train_steps=7, eval_steps=eval_steps)
    train(args)
    assert list(validation_scores(args.output_dir, "loss")) == steps
    assert list(samples(args)) == steps


def test_samples_scores_and_best_are_those_of_the_saved_captioners(
    settings: Settings, photos: Path, capsys: pytest.CaptureFixture
):
    """One of the validation images cannot be read: the next one replaces it."""
    (photos / "val" / "0.png").write_bytes(b"not a picture")
    scored = {"eval_caption_images": 2, "num_sample_captions": 1, "metric_for_best_model": "rouge_l"}
    args = settings(**LEARNING, **scored, max_unreadable_share=0.4)
    state = train(args)
    captions = captions_of(args, "last", [1, 2])
    assert samples(args)[30] == {"val/1.png": captions["val/1.png"]}
    expected = score(args, captions)
    found = {name: validation_scores(args.output_dir, name)[30] for name in SCORERS}
    assert found == pytest.approx({name: expected[name] for name in SCORERS}, abs=1e-12)
    rouge = validation_scores(args.output_dir, "rouge_l")
    del rouge[0]  # before training
    best = max(rouge, key=rouge.__getitem__)
    assert (state.best_step, state.best_metric) == (best, rouge[best])
    assert score(args, captions_of(args, "best", [1, 2]))["rouge_l"] == pytest.approx(rouge[best])
    printed = capsys.readouterr().out
    assert printed.count("captions of 2 validation images: BLEU-1 ") == 11
    assert f"\n  val/1.png: {captions['val/1.png']}\n" in printed
    assert f"(validation ROUGE-L {rouge[best]:.4f}, step {best})" in printed


@pytest.mark.parametrize(("scored", "shown"), [(0, 0), (3, 1), (100, 100)])
def test_no_image_is_captioned_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, scored: int, shown: int
):
    counts = []
    generate = ITuningForCaptioning.generate

    def counting(self, *args, pixel_values, **kwargs):
        counts.append(len(pixel_values))
        return generate(self, *args, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(ITuningForCaptioning, "generate", counting)
    args = settings(max_train_steps=1, eval_caption_images=scored, num_sample_captions=shown)
    train(args)
    assert sum(counts) == 2 * min(3, max(scored, shown))  # two validations, three images in the split
    assert [len(s) for s in samples(args).values()] == ([min(3, shown)] * 2 if shown else [])
    assert list(validation_scores(args.output_dir, "cider")) == ([0, 1] if scored else [])


def test_captions_are_generated_in_the_runs_precision(settings: Settings, projected_dtypes: list):
    train(settings(max_train_steps=1, mixed_precision="bf16"))
    assert {found for _, found in projected_dtypes} == {torch.bfloat16}


def test_at_most_max_eval_images_are_read_evenly_spaced(settings: Settings, capsys: pytest.CaptureFixture):
    args = settings(max_train_steps=2, eval_steps="1", max_eval_images=4, num_sample_captions=9)
    images = load_data(args)
    train(args, TrainingData(images.train, evaluation=images.train))
    assert [list(shown) for shown in samples(args).values()] == [[f"train/{i}.png" for i in (0, 2, 5, 8)]] * 3
    assert "Images     11 to train on, 4 of 11 for validation" in capsys.readouterr().out
    folder = Path(args.output_dir) / "last"
    record = read_training_record(folder)
    assert record is not None
    assert (record.num_train_images, record.num_eval_images) == (11, 4)
    assert "on 4 images of the val split" in (folder / "README.md").read_text()


def test_expected_eval_images_counts_the_whole_split(settings: Settings):
    args = settings(max_train_steps=1, max_eval_images=2, expected_eval_images=3)
    train(args)
    assert len(samples(args)[0]) == 2
    with pytest.raises(UserError, match=r"--expected_eval_images is 2, but the split of .* has 3 images"):
        load_data(replace(args, expected_eval_images=2))


@pytest.mark.parametrize("limit", ["max_eval_images", "eval_caption_images"])
def test_the_cider_of_a_single_image_cannot_choose_the_best_captioner(settings: Settings, limit: str):
    args = settings(metric_for_best_model="cider", **{"eval_caption_images": 2, limit: 1})
    with pytest.raises(UserError, match=r"cider needs captions of at least 2 .* CIDEr is 0 for a single one"):
        train(args)
    assert not Path(args.output_dir).exists()


def test_early_stopping_without_an_improvement(settings: Settings, capsys: pytest.CaptureFixture):
    args = settings(
        **LEARNING, eval_caption_images=3, metric_for_best_model="rouge_l", early_stopping_patience=3
    )
    state = train(args)
    rouge = validation_scores(args.output_dir, "rouge_l")
    assert max(rouge.values()) == rouge[state.best_step]
    assert state.step == state.best_step + 3 * 3 < 30
    assert max(rouge) == state.step
    assert state.validations_without_better == 3
    assert "stopped early: no better ROUGE-L in 3 validations" in capsys.readouterr().out
    folder = Path(args.output_dir)
    assert (folder / "checkpoints" / f"step_{state.step:08d}" / "trainer_state.json").is_file()
    assert samples(args)[state.step] == captions_of(args, "last", [0, 1, 2])


def test_a_gain_below_the_threshold_does_not_prevent_stopping_but_may_be_the_best(settings: Settings):
    args = settings(
        max_train_steps=20, eval_steps="2", early_stopping_patience=2, early_stopping_threshold=100.0
    )
    state = train(args)
    losses = validation_scores(args.output_dir, "loss")
    assert list(losses) == [0, 2, 4, 6]  # after the first validation, two gains are too small
    assert losses[2] > losses[4] > losses[6]
    assert (state.step, state.best_step, state.best_metric) == (6, 6, losses[6])


def test_printed_lines():
    scores = {"loss": 1.25, "bleu_4": 0.5, "cider": 1.0}
    scored = ValidationRecord(step=3, scores=scores, num_scored=1234)
    assert validation_lines("step 3, epoch 1", scored, {"a.png": "a\ncat", "bird.png": ""}) == [
        "validation loss 1.2500  (step 3, epoch 1)",
        "  captions of 1,234 validation images: BLEU-4 0.5000, CIDEr 1.0000",
        "  a.png:    a cat",
        "  bird.png: ",
    ]
    plain = ValidationRecord(step=3, scores={"loss": 1.25}, num_scored=0)
    assert validation_lines("now", plain, {}) == ["validation loss 1.2500  (now)"]


def test_missing_scorers_are_reported_before_work_starts(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    scored = settings(max_train_steps=1, eval_caption_images=2)
    optimized = settings(max_train_steps=1, objective="cider", init_from="run")
    for args, flag in ((scored, "--eval_caption_images"), (optimized, "--objective cider")):
        with pytest.raises(ValueError, match=rf"{flag} needs .* pip install 'ituning_hf\[eval\]'"):
            train(args)
        assert not Path(args.output_dir).exists()
    train(settings(max_train_steps=1))  # needs no scorers
