"""Numbers that are not finite: the run stops before they reach a weight, and keeps what they came from."""

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runner import Run, contents, run_by_two
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import read_log

from ituning_hf.cli import main
from ituning_hf.data.inputs import FeatureInputs, PixelInputs
from ituning_hf.features.build import build_features
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.checkpoints import list_checkpoints
from ituning_hf.training.cli import train
from ituning_hf.training.errors import NonFiniteLossError
from ituning_hf.training.loop import CaptionTrainer
from ituning_hf.training.replay import replay
from ituning_hf.training.setup import load_data
from ituning_hf.utils.distributed import create_accelerator

Settings = Callable[..., TrainArguments]
STRESS_ROUNDS = 12
# Dropout, so that a replay needs the random state; two batches a step, of which one is at fault.
COMMON = {
    "adapter_dropout": 0.3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": "1",
    "eval_split": "none",
    "max_train_steps": 3,
    "warmup_ratio": 0.0,
}


def use_fp16(patch: pytest.MonkeyPatch, **scaler: Any) -> None:
    """Let runs compute in fp16 with PyTorch's own gradient scaler, as on a GPU; Accelerate would not here."""

    def create(*args: Any, **kwargs: Any) -> Accelerator:
        accelerator = Accelerator(mixed_precision="fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", **scaler)
        return accelerator

    patch.setattr("ituning_hf.training.cli.create_accelerator", create)


def poison(
    patch: pytest.MonkeyPatch, name: str, value: float = float("nan"), inputs: type = PixelInputs
) -> None:
    """Put one bad value into what is made of a picture."""
    read = inputs.read

    def poisoned(self: Any, image: Any, epoch: int, index: int) -> torch.Tensor:
        found = read(self, image, epoch, index)
        if image.name == name:
            found[1, 2] = value
        return found

    patch.setattr(inputs, "read", poisoned)


def store_features(args: TrainArguments, folder: Path) -> str:
    data = load_data(args)
    build_features([*data.train, *data.evaluation], folder, vision_model=args.vision_model, num_workers=0)
    return str(folder)


def poison_store(folder: str, name: str) -> None:
    """Put a NaN into an image's stored features."""
    [path] = Path(folder).glob("features-*.safetensors")
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    names = [image for image, _ in json.loads(metadata["index"])["images"]]
    tensors["features"][names.index(name), 4, 2] = float("nan")
    save_file(tensors, path, metadata)


def folders(args: TrainArguments) -> list[str]:
    return sorted(path.name for path in Path(args.output_dir).glob("*nonfinite*"))


def stopped(args: TrainArguments) -> tuple[str, Path]:
    """Train until the numbers end; return the message, and the folder that was saved."""
    with pytest.raises(NonFiniteLossError) as raised:
        train(args)
    place = str(raised.value).split("`ituning replay ")[1].split("`")[0]
    return str(raised.value), Path(place)


def assert_replays(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Replay by command; return what it printed. Every loss must be the run's to the last bit."""
    for file, loss in replay(folder, lambda line: None).items():
        assert loss.numpy().tobytes() == load_file(folder / file)["loss"].numpy().tobytes()
    capsys.readouterr()
    assert main(["replay", str(folder)]) == 0
    return capsys.readouterr().out


# Of the second step, by the order that the seed gives.
SEVENTH = f"train/{np.random.default_rng([0, 0]).permutation(11)[7]}.png"


def test_a_poisoned_picture_ends_the_run_and_is_named(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture
):
    whole = settings(**COMMON, output_dir=str(tmp_path / "whole"))
    train(whole)
    args = settings(**COMMON, resume_from_checkpoint="latest")
    for attempt in range(2):  # the second goes on from the checkpoint, and comes to the same
        with pytest.MonkeyPatch.context() as patch:
            poison(patch, SEVENTH)
            message, folder = stopped(args)
        assert folder.name == "nonfinite-step-2"
        assert "The loss is nan at step 2 (epoch 0.67), so training stops; the checkpoints in" in message
        assert f"The pixel_values of {SEVENTH} are not finite: mend what they come from." in message
        assert folders(args) == [folder.name], attempt
        kept = load_file(list_checkpoints(Path(args.output_dir))[-1] / "adapter.safetensors")
        saved = load_file(folder / "adapter.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())
    report = json.loads((folder / "nonfinite.json").read_text())
    [(file, of_file)] = report["batches"].items()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [file, "adapter.safetensors", "config.json", "nonfinite.json"]
    )
    assert len(of_file["images"]) == 2
    assert of_file["nonfinite_inputs"] == {"pixel_values": [SEVENTH]}
    printed = assert_replays(folder, capsys)
    assert f"Input      pixel_values is not finite: {SEVENTH}\n" in printed
    assert "Loss       nan, as in the run" in printed
    assert "First      vision_model.embeddings.patch_embedding, 45 of 270 values" in printed

    train(args)  # the picture is whole again
    found = contents(args.output_dir)
    assert {name: found[name] for name in contents(whole.output_dir)} == contents(whole.output_dir)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    precision: str,
):
    """The loss is finite: the adapters' output is zero at first, and only its gradient is so large."""
    if precision == "fp16":
        use_fp16(monkeypatch, init_scale=2.0**-10)
    args = settings(**COMMON | {"max_train_steps": 9}, adapter_scale=1e30, mixed_precision=precision)
    message, folder = stopped(args)
    step = 5 if precision == "fp16" else 1  # its scale was halved four times before
    assert f"The gradient's norm is inf at step {step} (epoch " in message
    assert "checkpoints" not in message if step == 1 else "checkpoints in" in message
    instead = ", or --mixed_precision bf16" * (precision == "fp16")
    assert message.endswith(f". Start anew in another --output_dir with a lower --learning_rate{instead}.")
    saved = load_file(folder / "adapter.safetensors")
    outputs = [tensor for name, tensor in saved.items() if "out_proj" in name]
    assert len(outputs) == 8
    assert not any(tensor.any() for tensor in outputs)
    printed = assert_replays(folder, capsys)
    assert "as in the run" in printed
    if precision == "fp16":
        assert "First      none: what each module gives is finite" in printed
        assert "tensors are not finite" in printed
        assert [record.get("skipped") for record in read_log(args.output_dir)] == [True] * 4
    else:
        [told] = re.findall(
            r"Norm       each gradient is finite, their norm overflows fp32; "
            r"the largest is (\S+) \(magnitude (\S+)\)\n",
            printed,
        )
        sizes = re.findall(r"^(\S+) +\S+ +(\S+)$", printed.split("gradient\n")[1], re.MULTILINE)
        assert told == max(sizes, key=lambda name_and_size: float(name_and_size[1]))
        assert "First" not in printed


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_sum_that_overflows_where_no_batch_does_saves_all_of_them(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    precision: str,
):
    backward = Accelerator.backward
    calls = []

    def overflowing(self: Accelerator, loss: torch.Tensor, **kwargs: Any) -> None:
        calls.append(loss)
        backward(self, loss * (1e38 if len(calls) == 5 else 1.0), **kwargs)

    monkeypatch.setattr(Accelerator, "backward", overflowing)
    message, folder = stopped(settings(**COMMON, mixed_precision=precision))
    assert "The gradient's norm is inf at step 3" in message
    assert [path.name for path in sorted(folder.glob("batch*"))] == [
        "batch-0-0.safetensors",
        "batch-0-1.safetensors",
    ]
    assert assert_replays(folder, capsys).count("as in the run") == 2  # with what dropout drew
    assert contents(folder.parent / "checkpoints" / "step_00000002") != {}


def test_a_learning_rate_without_bounds_ends_the_run(settings: Settings, capsys: pytest.CaptureFixture):
    args = settings(**COMMON, learning_rate=1e30)
    message, folder = stopped(args)
    assert re.search(r"The images (train/\d+\.png(, )?)+ went into it\.", message)
    assert "are not finite" not in message
    printed = assert_replays(folder, capsys)
    assert "First      text_model.transformer.h." in printed


def test_weights_that_the_last_step_ruins_are_not_saved(settings: Settings):
    args = settings(**COMMON | {"max_train_steps": 1}, learning_rate=1e38, weight_decay=1e4)
    with pytest.raises(NonFiniteLossError, match=r"The weights .*adapter.* are not finite after step 1, so"):
        train(args)
    assert sorted(contents(args.output_dir)) == [".lock", "log.jsonl"]


def test_a_validation_loss_that_is_not_finite_ends_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    poison(monkeypatch, "val/2.png", float("inf"))
    args = settings(**COMMON | {"eval_split": "val"}, label_smoothing=0.1)
    message, folder = stopped(args)
    assert folder.name == "nonfinite-validation-step-0"
    assert "The validation loss is nan at step 0" in message
    assert "The pixel_values of val/2.png are not finite" in message
    printed = assert_replays(folder, capsys)
    assert "Images     val/2.png\n" in printed
    assert "Gradients" not in printed


def test_another_batch_at_the_same_step_gets_a_folder_of_its_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    args = settings(**COMMON)
    for value in (float("nan"), float("inf"), float("inf")):
        with monkeypatch.context() as patch:
            for i in range(11):
                poison(patch, f"train/{i}.png", value)
            stopped(args)
    assert folders(args) == ["nonfinite-step-1", "nonfinite-step-1-2"]


def test_a_full_disk_hides_nothing(settings: Settings):
    args = settings(**COMMON | {"checkpointing_steps": "9"}, learning_rate=1e30)
    run = Run(args, file_limit=8_000)
    assert run.end() == 1
    message = run.printed.splitlines()[-2]  # the last line is the runner's own
    assert message.startswith("ituning: error: The loss is nan at step ")
    assert "This batch could not be saved: " in message
    assert "File too large" in message
    assert "checkpoints in" not in message
    assert "--learning_rate" not in message  # one piece of advice, the disk's
    assert folders(args) == []


def test_a_dry_run_saves_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    for i in range(11):
        poison(monkeypatch, f"train/{i}.png")
    args = settings(**COMMON | {"per_device_train_batch_size": 9}, dry_run=True)
    with pytest.raises(
        NonFiniteLossError, match=r"The loss is nan at step 1 .* mend what they come from"
    ) as raised:
        train(args)
    assert ", ... went into it." in str(raised.value)  # nine images, of which eight are named
    assert "...." not in str(raised.value)
    assert not Path(args.output_dir).exists()


DAMAGE = {
    "is nothing to replay: it has no nonfinite.json": ("nonfinite.json", None),
    "nonfinite.json is damaged (Expecting property name": ("nonfinite.json", b"{"),
    "nonfinite.json is damaged (it is not what a run writes)": ("nonfinite.json", b"{}"),
    "batch-0-0.safetensors is damaged (": ("batch-0-0.safetensors", b"cut"),
    "batch-0-0.safetensors is missing: copy the folder again.": ("batch-0-0.safetensors", None),
    "/config.json is missing: copy the folder again.": ("config.json", None),
    "adapter.safetensors is missing: copy the folder again.": ("adapter.safetensors", None),
    "adapter.safetensors cannot be read (": ("adapter.safetensors", b""),
}


def test_a_damaged_folder_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    _, folder = stopped(settings(**COMMON, adapter_scale=1e30))
    for message, (name, content) in DAMAGE.items():
        whole = (folder / name).read_bytes()
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        assert main(["replay", str(folder)]) == 2, message
        printed = capsys.readouterr().err.splitlines()
        assert [line for line in printed if line.startswith("ituning: error: ")] == [printed[-1]]
        assert message in printed[-1]
        (folder / name).write_bytes(whole)
    report = folder / "nonfinite.json"
    assert main(["replay", str(report)]) == 2
    told = f"ituning: error: {report} is a file, expected the run's nonfinite-step-N folder."
    assert capsys.readouterr().err.splitlines() == [told]
    assert main(["replay", str(folder)]) == 0


def test_backbones_that_have_moved_are_found_where_they_are_said_to_be(
    settings: Settings, backbones: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    places = {
        f"{kind}_model": shutil.copytree(backbones[kind], tmp_path / kind) for kind in ("vision", "text")
    }
    options = {name: str(place) for name, place in places.items()}
    _, folder = stopped(settings(**COMMON, **options, adapter_scale=1e30))
    moved = []
    for name, place in places.items():
        place.rename(f"{place}-moved")
        assert main(["replay", str(folder), *moved]) == 2
        assert f"If it has moved, give its place: --{name} PLACE." in capsys.readouterr().err
        moved += [f"--{name}", f"{place}-moved"]
    assert main(["replay", str(folder), *moved]) == 0
    assert "as in the run" in capsys.readouterr().out


def test_on_two_processes_the_one_that_saw_it_saves_it_and_one_tells(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture
):
    features = store_features(settings(), tmp_path / "features")
    # Four images a step, two for each process: those of the second step's second process.
    name = f"train/{np.random.default_rng([0, 0]).permutation(11)[7]}.png"
    poison_store(features, name)
    options = COMMON | {"gradient_accumulation_steps": 1}
    args = settings(**options, vision_model=None, features=features)
    runs = run_by_two(args)
    assert [run.end() for run in runs] == [1, 1], [run.printed for run in runs]
    told = [run.printed.count("The loss is nan at step 2 (epoch 0.67)") for run in runs]
    assert told == [1, 0]
    assert f"The visual_features of {name} are not finite" in runs[0].printed
    assert "ituning: error" not in runs[1].printed
    [folder] = (Path(args.output_dir) / found for found in folders(args))
    assert [path.name for path in folder.glob("batch*")] == ["batch-1-0.safetensors"]
    assert len(list_checkpoints(Path(args.output_dir))) == 1
    printed = assert_replays(folder, capsys)
    assert "as in the run" in printed
    assert f"Input      visual_features is not finite: {name}\n" in printed


@pytest.mark.stress
@pytest.mark.parametrize("batches", [1, 3])
def test_gradients_that_are_not_finite_end_two_processes(
    settings: Settings, capsys: pytest.CaptureFixture, batches: int
):
    """The gradients are computed once more, by each process for itself, to see whose batch it was."""
    runs = run_by_two(
        args := settings(**COMMON | {"gradient_accumulation_steps": batches}, adapter_scale=1e30)
    )
    assert [run.end() for run in runs] == [1, 1], [run.printed for run in runs]
    assert [run.printed.count("The gradient's norm is inf at step 1") for run in runs] == [1, 0]
    [folder] = (Path(args.output_dir) / found for found in folders(args))
    files = sorted(path.name for path in folder.glob("batch*"))
    assert files == ["batch-0-0.safetensors", "batch-1-0.safetensors"]
    assert assert_replays(folder, capsys).count("as in the run") == 2


@pytest.mark.stress
def test_random_poisonings_end_replay_and_go_on(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    features = store_features(settings(), tmp_path / "features")
    for seed in range(STRESS_ROUNDS):
        choose = random.Random(seed)
        on_features = choose.random() < 0.4
        precision = choose.choice(["no", "bf16", "fp16"])
        changes = COMMON | {
            "per_device_train_batch_size": choose.choice([1, 2, 4]),
            "gradient_accumulation_steps": choose.choice([1, 2, 3]),
            "adapter_dropout": choose.choice([0.0, 0.3]),
            "adapter_layers": choose.choice([None, [1, 3]]),
            "frozen_precision": choose.choice([None, "bfloat16", "int8"]),
            "gradient_checkpointing": choose.random() < 0.3,
            "label_smoothing": choose.choice([0.0, 0.1]),
            "full_determinism": choose.random() < 0.3,
            "eval_split": choose.choice(["val", "none"]),
            "max_train_steps": 11,
            "seed": seed,
            "mixed_precision": precision,
            "features": features if on_features else None,
        }
        value = choose.choice([math.nan, math.inf, -math.inf])
        split = "val/" * (changes["eval_split"] == "val" and choose.random() < 0.5) or "train/"
        name = f"{split}{choose.randrange(3 if split == 'val/' else 11)}.png"
        with monkeypatch.context() as patch:
            if precision == "fp16":
                use_fp16(patch)
            whole = settings(**changes, output_dir=str(tmp_path / f"{seed}-whole"))
            train(whole)
            AcceleratorState._reset_state(reset_partial_state=True)
            args = settings(**changes, output_dir=str(tmp_path / f"{seed}"), resume_from_checkpoint="latest")
            with monkeypatch.context() as inner:
                poison(inner, name, value, FeatureInputs if on_features else PixelInputs)
                message, folder = stopped(args)
            AcceleratorState._reset_state(reset_partial_state=True)
            assert f"of {name} are not finite" in message
            assert_replays(folder, capsys)
            train(args)
        AcceleratorState._reset_state(reset_partial_state=True)
        found, expected = contents(args.output_dir), contents(whole.output_dir)
        assert {file for file in expected if found[file] != expected[file]} == set(), changes


# --- fp16


def test_overflow_in_fp16_is_met_by_the_scaler(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    use_fp16(monkeypatch, init_scale=2.0**26)
    seen = []
    step = CaptionTrainer._optimizer_step

    def watched(self: CaptionTrainer, batches: list[dict[str, Any]]) -> float:
        weights = {name: x.clone() for name, x in self.captioner.adapter_state_dict().items()}
        scale, rate = self.accelerator.scaler.get_scale(), self.schedule.get_last_lr()
        loss = step(self, batches)
        after = self.captioner.adapter_state_dict()
        is_same = all(torch.equal(after[name], x) for name, x in weights.items())
        new_scale, new_rate = self.accelerator.scaler.get_scale(), self.schedule.get_last_lr()
        seen.append((is_same, new_scale / scale, new_rate == rate))
        return loss

    monkeypatch.setattr(CaptionTrainer, "_optimizer_step", watched)
    args = settings(mixed_precision="fp16", max_train_steps=30, eval_split="none", warmup_ratio=0.0)
    state = train(args)
    skipped = [is_same for is_same, _, _ in seen]
    assert 3 <= sum(skipped) <= 15
    assert skipped[0]
    assert not any(skipped[15:])
    assert seen == [(True, 0.5, True) if each else (False, 1.0, False) for each in skipped]
    log = [record for record in read_log(args.output_dir) if "loss" in record]
    assert [record.get("skipped", False) for record in log] == skipped
    assert state.step == 30
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    told = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert told[0] == (
        "step 1 is skipped: its gradients overflow fp16; the loss scale is 3.35544e+07 from now on"
    )
    assert len(told) == sum(skipped)


def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="mixed precision fp16 needs a GPU, and on cpu Accelerate would"):
        create_accelerator("fp16")
