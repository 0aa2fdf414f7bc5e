"""A loss or gradient that is not finite ends the run before it changes a weight."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from processes import run_on_two
from runs import Settings, checkpoints, command, differences
from small_models import contents, read_log, store_features

from ituning_hf.data.inputs import PixelInputs
from ituning_hf.training.data import load_data
from ituning_hf.training.errors import NonFiniteLossError
from ituning_hf.training.loop import CaptionTrainer
from ituning_hf.training.run import train
from ituning_hf.utils.distributed import create_accelerator

COMMON = {
    "adapter_dropout": 0.3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": "1",
    "eval_split": "none",
    "max_train_steps": 3,
    "warmup_ratio": 0.0,
}
ORDER = [f"train/{i}.png" for i in np.random.default_rng([0, 0]).permutation(11)]  # of the first epoch


def copy_weights(trainer: CaptionTrainer) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in trainer.captioner.adapter_state_dict().items()}


@pytest.fixture
def weights_at_stop(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights before each optimizer step, and after the step that failed."""
    seen: list[dict[str, torch.Tensor]] = []
    step = CaptionTrainer.optimizer_step

    def watched(self: CaptionTrainer, batches: list[dict[str, Any]]) -> float:
        seen.append(copy_weights(self))
        try:
            return step(self, batches)
        except NonFiniteLossError:
            seen.append(copy_weights(self))
            raise

    monkeypatch.setattr(CaptionTrainer, "optimizer_step", watched)
    return seen


def assert_unchanged(seen: list[dict[str, torch.Tensor]]) -> None:
    before, after = seen[-2:]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def use_fp16(patch: pytest.MonkeyPatch, **scaler: Any) -> None:
    """Train in fp16 with PyTorch's gradient scaler, as on a GPU; Accelerate does not on a CPU."""

    def create(*args: Any, **kwargs: Any) -> Accelerator:
        accelerator = Accelerator(mixed_precision="fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", **scaler)
        return accelerator

    patch.setattr("ituning_hf.training.run.create_accelerator", create)


def poison(patch: pytest.MonkeyPatch, name: str) -> None:
    """Put a NaN into the pixels of one picture."""
    read = PixelInputs.read

    def poisoned(self: Any, image: Any, epoch: int, index: int) -> torch.Tensor:
        pixels = read(self, image, epoch, index)
        if image.name == name:
            pixels[1, 2] = float("nan")
        return pixels

    patch.setattr(PixelInputs, "read", poisoned)


def test_a_nan_in_a_picture_stops_the_run_which_resumes_after_its_repair(
    settings: Settings, weights_at_stop: list
):
    whole = settings("whole", **COMMON)
    train(whole)
    args = settings(**COMMON, resume_from_checkpoint="latest")
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, ORDER[7])
        # Of the second step's four images, those of the batch with the NaN are named.
        message = rf"The loss is nan at step 2, computed from {ORDER[6]}, {ORDER[7]}\. Training stops"
        with pytest.raises(NonFiniteLossError, match=message):
            train(args)
    assert_unchanged(weights_at_stop)
    assert checkpoints(args.output_dir) == ["step_00000001"]
    train(args)
    assert differences(args.output_dir, whole.output_dir) == []


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_an_infinite_gradient_stops_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, weights_at_stop: list, precision: str
):
    """The loss is finite: the adapters' output is zero at first, and only its gradient overflows."""
    if precision == "fp16":
        use_fp16(monkeypatch, init_scale=2.0**-10)
    args = settings(**COMMON | {"max_train_steps": 9}, adapter_scale=1e30, mixed_precision=precision)
    with pytest.raises(NonFiniteLossError, match=r"The gradient norm is inf.* at step ") as raised:
        train(args)
    assert_unchanged(weights_at_stop)
    step = int(re.search(r"at step (\d)", str(raised.value))[1])
    assert step == (5 if precision == "fp16" else 1)  # fp16's scale was halved four times before
    images = (
        ORDER[:4]
        if step == 1
        else [f"train/{i}.png" for i in np.random.default_rng([0, 1]).permutation(11)][4:8]
    )
    assert f"computed from {', '.join(images)}. Training stops" in str(raised.value)
    skipped = [entry["skipped"] for entry in read_log(args.output_dir)] if step > 1 else []
    assert skipped == [True] * (step - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e30}, "The loss is nan at step 2"),
        ({"learning_rate": 1e38, "weight_decay": 1e4}, "The weights are not finite after step 1"),
        ({"learning_rate": 1e30, "eval_split": "val"}, "The validation loss is nan at step 1"),
    ],
    ids=["loss", "weights", "validation"],
)
def test_weights_ruined_by_a_high_learning_rate_are_not_saved(
    settings: Settings, changes: dict, message: str
):
    steps = 3 if message.endswith("2") else 1
    args = settings(**COMMON | {"max_train_steps": steps, "max_grad_norm": 0.0} | changes)
    with pytest.raises(NonFiniteLossError, match=message):
        train(args)
    saved = {name.split("/")[1] for name in contents(args.output_dir) if "/" in name}
    assert saved == ({"step_00000001"} if steps == 3 else set())


def test_two_processes_stop_together_and_report_once(settings: Settings, tmp_path: Path):
    """One of the processes reads a NaN from the stored features."""
    data, features = load_data(settings()), tmp_path / "features"
    store_features(features, [data.train, data.evaluation], vision_model=settings().vision_model)
    [path] = features.glob("features-*.arrow")
    with pa.ipc.open_file(path.read_bytes()) as file:
        batch = file.get_batch(0)
    # Four images a step, two for each process: those of the second step's second process.
    number = batch.schema.get_field_index("features")
    cells = batch.column(number).to_pylist()
    row = batch.column("name").to_pylist().index(ORDER[7])
    cells[row] = cells[row][:20] + b"\xc0\x7f" + cells[row][22:]  # NaN in bfloat16
    batch = batch.set_column(number, batch.schema.field(number), pa.array(cells, batch.schema.types[number]))
    with pa.ipc.new_file(path, batch.schema) as file:
        file.write_batch(batch)
    args = settings(**COMMON | {"gradient_accumulation_steps": 1}, vision_model=None, features=str(features))
    runs = run_on_two(command(args), tmp_path, exit_code=1)
    message = f"The loss is nan at step 2, computed from {ORDER[6]}, {ORDER[7]}."
    assert [run.printed.count(message) for run in runs] == [1, 0]
    assert "ituning: error" not in runs[1].printed
    assert checkpoints(tmp_path / "run") == ["step_00000001"]


# --- fp16


def test_an_overflow_in_fp16_skips_the_step(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    use_fp16(monkeypatch, init_scale=2.0**26)
    seen = []
    step = CaptionTrainer.optimizer_step

    def watched(self: CaptionTrainer, batches: list[dict[str, Any]]) -> float:
        weights = copy_weights(self)
        scale, rate = self.accelerator.scaler.get_scale(), self.schedule.get_last_lr()
        loss = step(self, batches)
        after = self.captioner.adapter_state_dict()
        is_same = all(torch.equal(after[name], x) for name, x in weights.items())
        new_scale, new_rate = self.accelerator.scaler.get_scale(), self.schedule.get_last_lr()
        seen.append((is_same, new_scale / scale, new_rate == rate))
        return loss

    monkeypatch.setattr(CaptionTrainer, "optimizer_step", watched)
    args = settings(mixed_precision="fp16", max_train_steps=30, eval_split="none", warmup_ratio=0.0)
    state = train(args)
    skipped = [is_same for is_same, _, _ in seen]
    assert 3 <= sum(skipped) <= 15
    assert skipped[0]
    assert not any(skipped[15:])
    assert seen == [(True, 0.5, True) if each else (False, 1.0, False) for each in skipped]
    log = read_log(args.output_dir)
    assert [entry.get("skipped", False) for entry in log] == skipped
    assert state.step == 30
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]


def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="mixed precision fp16 requires a GPU"):
        create_accelerator("fp16")
