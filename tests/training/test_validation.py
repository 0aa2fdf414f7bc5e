"""Validation: when it runs, its results, which captioner is the best, and early stopping."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_models import read_log, train_until, validation_scores

import ituning_hf
from ituning_hf import ITuningForCaptioning
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.run import train
from ituning_hf.training.validation import SCORE_NAMES, Validation

Settings = Callable[..., TrainArguments]
CAPTION_SCORES = [name for name in SCORE_NAMES if name != "loss"]
# Captions that change while it learns.
LEARNING = {"max_train_steps": 30, "eval_steps": "3", "adapter_dropout": 0.1}


def samples(args: TrainArguments) -> dict[int, dict[str, str]]:
    return {r["step"]: r["samples"] for r in read_log(args.output_dir) if "samples" in r}


def captions_of(args: TrainArguments, name: str, numbers: list[int]) -> dict[str, str]:
    """Caption validation images by a saved captioner, as a user would."""
    captions = ituning_hf.caption(
        Path(args.output_dir) / name,
        [Path(args.dataset) / "val" / f"{i}.png" for i in numbers],
        num_beams=1,
        max_new_tokens=args.max_caption_tokens - 1,
    )
    return {f"val/{i}.png": caption for i, caption in zip(numbers, captions, strict=True)}


def score(args: TrainArguments, captions: dict[str, str]) -> dict[str, float]:
    from ituning_hf.evaluation.metrics import compute_caption_metrics

    lines = (Path(args.dataset) / "val" / "metadata.jsonl").read_text().splitlines()
    references = {f"val/{r['file_name']}": r["captions"] for r in map(json.loads, lines)}
    return compute_caption_metrics(
        list(captions.values()), [references[name] for name in captions], java=False
    )


@contextmanager
def counted_images() -> Iterator[list[int]]:
    """Collect how many images each call of `generate` captions."""
    counts: list[int] = []
    generate = ITuningForCaptioning.generate

    def counting(self, *args, pixel_values, **kwargs):
        counts.append(len(pixel_values))
        return generate(self, *args, pixel_values=pixel_values, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ITuningForCaptioning, "generate", counting)
        yield counts


@pytest.mark.parametrize(
    ("eval_steps", "steps"),
    [("epoch", [0, 3, 6, 7]), ("2", [0, 2, 4, 6, 7]), ("100", [0, 7])],
)
def test_validation_is_every_so_many_steps_and_at_the_end(
    settings: Settings, eval_steps: str, steps: list[int]
):
    args = settings(max_train_steps=7, eval_steps=eval_steps)
    train(args)
    assert [r["step"] for r in read_log(args.output_dir) if "validation_loss" in r] == steps
    assert list(samples(args)) == steps


def test_samples_scores_and_the_best_captioner_follow_from_what_the_saved_captioners_say(
    settings: Settings, photos: Path, capsys: pytest.CaptureFixture
):
    """One of the validation images cannot be read: the next ones replace it."""
    (photos / "val" / "0.png").write_bytes(b"not a picture")
    scored = {"eval_caption_images": 2, "num_sample_captions": 1, "metric_for_best_model": "rouge_l"}
    args = settings(**LEARNING, **scored, max_unreadable_share=0.4)
    state = train(args)
    captions = captions_of(args, "last", [1, 2])
    assert samples(args)[30] == {"val/1.png": captions["val/1.png"]}
    expected = score(args, captions)
    found = {name: validation_scores(args.output_dir, name)[30] for name in CAPTION_SCORES}
    assert found == pytest.approx({name: expected[name] for name in CAPTION_SCORES}, abs=1e-12)
    rouge = validation_scores(args.output_dir, "rouge_l")
    del rouge[0]  # the language model's own is no captioner's
    best = max(rouge, key=rouge.__getitem__)
    assert (state.best_step, state.best_metric) == (best, rouge[best])
    assert score(args, captions_of(args, "best", [1, 2]))["rouge_l"] == pytest.approx(rouge[best])
    printed = capsys.readouterr().out
    assert printed.count("captions of 2 validation images: BLEU-1 ") == 11
    assert f"\n  val/1.png: {captions['val/1.png']}\n" in printed
    assert f"(validation ROUGE-L {rouge[best]:.4f}, step {best})" in printed


@pytest.mark.parametrize(("scored", "shown"), [(0, 0), (0, 2), (3, 1), (100, 100)])
def test_no_image_is_captioned_twice(settings: Settings, scored: int, shown: int):
    args = settings(max_train_steps=1, eval_caption_images=scored, num_sample_captions=shown)
    with counted_images() as counts:
        train(args)
    assert sum(counts) == 2 * min(3, max(scored, shown))  # two validations, three images in the split
    assert [len(s) for s in samples(args).values()] == ([min(3, shown)] * 2 if shown else [])
    assert list(validation_scores(args.output_dir, "cider")) == ([0, 1] if scored else [])


def test_captions_are_generated_in_the_runs_precision(settings: Settings):
    from torch import bfloat16

    dtypes = []
    generate = ITuningForCaptioning.project_visual

    def watching(self, *args, **kwargs):
        found = generate(self, *args, **kwargs)
        dtypes.append(next(iter(found.values()))[0].dtype)
        return found

    args = settings(max_train_steps=1, mixed_precision="bf16", eval_split="val")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ITuningForCaptioning, "project_visual", watching)
        train(args)
    assert set(dtypes) == {bfloat16}


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


def test_early_stopping_at_a_rising_loss(settings: Settings):
    args = settings(
        max_train_steps=40,
        eval_steps="1",
        learning_rate=0.3,
        lr_scheduler_type="constant_with_warmup",
        warmup_ratio=0.0,
        early_stopping_patience=2,
    )
    state = train(args)
    losses = list(validation_scores(args.output_dir, "loss").values())[1:]
    assert state.step == len(losses) < 40
    assert min(losses[-2:]) > losses[-3] == state.best_metric == min(losses)


def test_a_gain_below_the_threshold_does_not_prevent_stopping_but_may_be_the_best(settings: Settings):
    args = settings(
        max_train_steps=20, eval_steps="2", early_stopping_patience=2, early_stopping_threshold=100.0
    )
    state = train(args)
    losses = validation_scores(args.output_dir, "loss")
    assert list(losses) == [0, 2, 4, 6]  # the first is a gain over none, and then two are too small
    assert losses[2] > losses[4] > losses[6]
    assert (state.step, state.best_step, state.best_metric) == (6, 6, losses[6])


def test_a_run_that_stopped_early_takes_no_further_step(settings: Settings):
    common = {"max_train_steps": 20, "early_stopping_patience": 1, "early_stopping_threshold": 100.0}
    args = settings(**common, eval_steps="2")
    first, log = train(args), read_log(args.output_dir)
    assert train(settings(**common, eval_steps="2", resume_from_checkpoint="latest")) == first
    assert first.step == 4
    assert read_log(args.output_dir) == log


def test_patience_outlasts_an_interruption(settings: Settings):
    common = {"max_train_steps": 20, "early_stopping_patience": 3, "early_stopping_threshold": 100.0}
    common |= {"eval_steps": "2", "checkpointing_steps": "1"}
    train_until(settings(**common), 6)
    state = train(settings(**common, resume_from_checkpoint="latest"))
    assert (state.step, state.validations_without_better) == (8, 3)


def test_what_is_printed():
    found = Validation({"loss": 1.25, "bleu_4": 0.5, "cider": 1.0}, 1234, {"a.png": "a\ncat", "bird.png": ""})
    assert found.lines("step 3, epoch 1") == [
        "validation loss 1.2500  (step 3, epoch 1)",
        "  captions of 1,234 validation images: BLEU-4 0.5000, CIDEr 1.0000",
        "  a.png:    a cat",
        "  bird.png: ",
    ]
    assert Validation({"loss": 1.25}, 0, {}).lines("") == ["validation loss 1.2500  ()"]


def test_missing_scorers_are_reported_before_work_starts(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    args = settings(max_train_steps=1, eval_caption_images=2)
    message = "pip install 'ituning_hf[eval]', or give --eval_caption_images 0."
    with pytest.raises(ValueError, match=re.escape(message)):
        train(args)
    message = (
        "or give --eval_caption_images 0 --metric_for_best_model loss."  # one without the other is refused
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train(settings(eval_caption_images=2, metric_for_best_model="cider"))
    assert not Path(args.output_dir).exists()
    train(settings(max_train_steps=1))  # without captions to score they are not missed
