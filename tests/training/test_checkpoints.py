"""Checkpoints: which are refused, where a run resumes, and failures to write."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from runs import Settings, checkpoints, differences
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_models import contents, train_until
from torch.optim import AdamW
from transformers import GPT2LMHeadModel

from ituning_hf import training
from ituning_hf.training import loop
from ituning_hf.training.checkpoints import TrainState
from ituning_hf.training.errors import TrainingError
from ituning_hf.training.run import train
from ituning_hf.training.run_folder import list_checkpoints


def test_best_validation_and_patience_by_hand():
    state = TrainState()
    seen = []
    for step, value in enumerate([0.5, 0.6, 0.55, 0.61, 0.75], start=1):
        state.step = step
        is_best = state.update_best(value, lower_is_better=False, threshold=0.1)
        seen.append((is_best, state.best_metric, state.best_step, state.validations_without_better))
    assert seen == [
        (True, 0.5, 1, 0),
        (True, 0.6, 2, 1),
        (False, 0.6, 2, 2),
        (True, 0.61, 4, 3),
        (True, 0.75, 5, 0),
    ]
    state = TrainState()
    found = [state.update_best(v, lower_is_better=True, threshold=0.0) for v in (2.0, 1.0, 1.0, 1.5)]
    assert found == [True, True, False, False]
    assert state.validations_without_better == 2


@pytest.mark.parametrize(("best", "untrained", "as_loss"), [(2.0, 1.5, True), (1.5, 2.0, False)])
def test_the_best_may_be_worse_than_the_untrained_captioner(best: float, untrained: float, as_loss: bool):
    state = TrainState(best_metric=best, untrained_metric=untrained)
    assert state.is_worse_than_untrained(lower_is_better=True) == as_loss
    assert state.is_worse_than_untrained(lower_is_better=False) == (not as_loss)
    assert not TrainState(best_metric=best).is_worse_than_untrained(lower_is_better=True)


# --- Refused checkpoints


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensors[name] for name in list(tensors)[:-1]}, path)


def drop_the_schedule(path: Path) -> None:
    state = json.loads(path.read_text())
    del state["schedule"]
    path.write_text(json.dumps(state))


def test_damaged_checkpoints_are_refused(settings: Settings, tmp_path: Path):
    args = settings(max_train_steps=1, resume_from_checkpoint="latest")
    train(args)
    checkpoint = list_checkpoints(Path(args.output_dir))[0]
    intact = shutil.copytree(checkpoint, tmp_path / "intact")
    for file, damage in (
        ("adapter.safetensors", drop_a_tensor),
        ("adapter.safetensors", cut_short),
        ("optimizer.safetensors", cut_short),
        ("optimizer.safetensors", Path.unlink),
        ("trainer_state.json", cut_short),
        ("trainer_state.json", drop_the_schedule),
    ):
        damage(checkpoint / file)
        with pytest.raises(ValueError, match=r"step_00000001 is damaged \(.*: resume from another"):
            train(args)
        shutil.rmtree(checkpoint)
        shutil.copytree(intact, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdamW, "load_state_dict", Mock(side_effect=RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match=r"^a bug$"):
            train(args)


def test_a_checkpoint_of_other_models_data_or_settings_is_refused(
    settings: Settings, photos: Path, backbones: dict[str, Path], tmp_path: Path
):
    train(settings(max_train_steps=1))
    other = shutil.copytree(backbones["text"], tmp_path / "other")
    model = GPT2LMHeadModel.from_pretrained(other)
    torch.nn.init.constant_(model.transformer.ln_f.weight, 1.25)
    model.save_pretrained(other)
    with (photos / "train" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "0.png", "caption": "one caption more"}')
    changes = {"text_model": str(other), "learning_rate": 0.5}
    with pytest.raises(ValueError, match="step_00000001 belongs to a run with other models, data") as refused:
        train(settings(max_train_steps=1, resume_from_checkpoint="latest", **changes))
    for change in ("text_model_fingerprint", "data_fingerprint"):
        assert change in str(refused.value)
    assert "--learning_rate 0.01, now 0.5. Resume with" in str(refused.value)
    assert "vision" not in str(refused.value)


def test_a_resumed_run_may_change_settings_that_do_not_change_its_results(settings: Settings):
    args = settings(max_train_steps=3, checkpointing_steps="1")
    train_until(args, 2)
    changes = {"expected_train_images": 11, "expected_eval_images": 3, "max_checkpoints": 1}
    changes |= {"dataloader_num_workers": 1, "checkpointing_steps": "9", "report_to": ["tensorboard"]}
    train(replace(args, resume_from_checkpoint="latest", **changes))
    assert checkpoints(args.output_dir) == ["step_00000003"]
    assert list((Path(args.output_dir) / "tensorboard").rglob("events.*"))


# --- Where a run resumes


def test_a_run_resumed_from_an_older_checkpoint_repeats_what_came_after(
    settings: Settings, caplog: pytest.LogCaptureFixture
):
    args = settings(max_train_steps=6, checkpointing_steps="2", max_checkpoints=9)
    train(args)
    complete = contents(args.output_dir)
    older = list_checkpoints(Path(args.output_dir))[0]
    train(replace(args, resume_from_checkpoint=str(older)))
    removed = [r.args[0] for r in caplog.records if r.getMessage().startswith("removed ")]
    assert [path.name for path in removed] == ["last", "step_00000006", "step_00000004"]
    assert contents(args.output_dir) == complete
    (Path(args.output_dir) / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"run\.json is missing.* resume without --report_to"):
        train(replace(args, resume_from_checkpoint=str(older), report_to=["tensorboard"]))
    assert contents(args.output_dir).keys() == complete.keys() - {"run.json"}


def test_a_complete_run_is_left_unchanged_and_missing_captioners_are_saved(
    settings: Settings, capsys: pytest.CaptureFixture
):
    args = settings(
        max_train_steps=3, checkpointing_steps="1", eval_steps="2", resume_from_checkpoint="latest"
    )
    train(args)
    assert "There is no checkpoint to resume from yet" in capsys.readouterr().out
    run, complete = Path(args.output_dir), contents(args.output_dir)
    assert {"last/README.md", "last/training.json"} < complete.keys()
    assert train(args).step == 3
    assert "This run is complete: there is nothing left to do." in capsys.readouterr().out
    assert contents(run) == complete
    # A kill before the last captioner was saved and an old checkpoint was removed.
    shutil.copytree(list_checkpoints(run)[0], run / "checkpoints" / "step_00000001")
    shutil.rmtree(run / "last")
    train(args)
    assert contents(run) == complete
    for name in ("best", "last", "checkpoints/step_00000003"):
        shutil.rmtree(run / name)
    train(args)
    assert contents(run) == complete


# --- Failures to write


def test_a_run_that_cannot_write_names_the_file_and_can_be_resumed(settings: Settings):
    common = {"max_train_steps": 4, "checkpointing_steps": "2", "eval_split": "none"}
    whole = settings("whole", **common)
    train(whole)
    args = settings(**common, resume_from_checkpoint="latest")
    train_until(args, 3)
    full = OSError(errno.ENOSPC, "No space left on device", "last/x.json")
    for owner, function, error, named in (
        (training.checkpoints, "save_file", SafetensorError("I/O error"), "step_00000004"),
        (loop, "save_captioner", SafetensorError("I/O error: File too large"), "last"),
        (loop, "save_captioner", full, "x.json"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, function, Mock(side_effect=error))
            with pytest.raises(TrainingError, match=rf"{named}.* could not be written \(.+\)\. Free some"):
                train(args)
        assert checkpoints(args.output_dir)[0] == "step_00000002"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_captioner", Mock(side_effect=RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match=r"^a bug$"):
            train(args)
    train(args)
    assert differences(args.output_dir, whole.output_dir) == []
