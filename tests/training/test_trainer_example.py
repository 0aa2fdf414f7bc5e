"""The example on Transformers' Trainer, compared with the package's own loop."""

import json
from pathlib import Path

import pytest
import train_with_trainer
from runs import Settings
from small_models import read_log, validation_scores

import ituning_hf
from ituning_hf.training.run import train
from ituning_hf.training.setup import SCENE_BACKBONES

STEPS = 4


def test_both_loops_take_the_same_steps(settings: Settings, tmp_path: Path):
    args = settings(
        vision_model=str(SCENE_BACKBONES / "vision"),
        text_model=str(SCENE_BACKBONES / "text"),
        adapter_hidden_size=None,
        adapter_num_heads=None,
        per_device_train_batch_size=11,
        num_train_epochs=STEPS,
        max_train_steps=None,
        warmup_ratio=0.5,
        eval_caption_images=3,
        seed=5,
    )
    train(args)
    output = tmp_path / "trainer"
    flags = {
        "output_dir": output,
        "dataset": args.dataset,
        "vision_model": args.vision_model,
        "text_model": args.text_model,
        "captions_per_image": args.captions_per_image,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "num_train_epochs": STEPS,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": args.lr_scheduler_type,
        "warmup_steps": args.warmup_ratio,
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "seed": args.seed,
        "generation_num_beams": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    metrics = train_with_trainer.main([f"--{name}={value}" for name, value in flags.items()])
    history = json.loads((output / f"checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
    of_trainer = [entry["loss"] for entry in history if "loss" in entry]
    of_ours = [entry["loss"] for entry in read_log(args.output_dir) if "loss" in entry]
    assert of_trainer == pytest.approx(of_ours, rel=1e-3)
    assert of_trainer[-1] < 0.8 * of_trainer[0]
    assert metrics["eval_loss"] == pytest.approx(validation_scores(args.output_dir, "loss")[STEPS], rel=1e-3)

    assert isinstance(ituning_hf.caption(output, Path(args.dataset) / "val/0.png"), str)
    assert "pipeline_tag: image-text-to-text" in (output / "README.md").read_text()
