"""TRL's SFTTrainer, as docs/training.md says to use it, trains the weights of Transformers' Trainer."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Image
from small_models import make_captioner
from small_tokenizers import SENTENCES
from transformers import BatchFeature, Trainer, TrainingArguments

from ituning_hf import ITuningProcessor, load_captioner
from ituning_hf.data.scenes import make_scene

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_sft_trainer_trains_the_weights_of_trainer(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path: Path
):
    from trl import SFTConfig, SFTTrainer

    class CaptionSFTTrainer(SFTTrainer):
        compute_loss, prediction_step = Trainer.compute_loss, Trainer.prediction_step

    captioner = make_captioner(backbones)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        make_scene(0, i).load().save(path)
    captions = [[SENTENCES[i % 3], SENTENCES[(i + 1) % 3]] for i in range(6)]
    dataset = Dataset.from_dict({"image": list(map(str, paths)), "captions": captions})
    dataset = dataset.cast_column("image", Image())

    def collate(rows: list[dict[str, Any]]) -> BatchFeature:
        return processor(images=[row["image"] for row in rows], captions=[row["captions"] for row in rows])

    # The defaults of SFTConfig.
    settings: dict[str, Any] = {"bf16": True, "gradient_checkpointing": True, "remove_unused_columns": False}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "logging_steps": 1}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2}
    losses, models = [], []
    for trainer_class, arguments in ((Trainer, TrainingArguments), (CaptionSFTTrainer, SFTConfig)):
        trainer = trainer_class(
            copy.deepcopy(captioner),
            arguments(output_dir=str(tmp_path / trainer_class.__name__), **settings),
            data_collator=collate,
            train_dataset=dataset,
            eval_dataset=dataset,
            processing_class=processor,
        )
        trainer.train()
        history = trainer.state.log_history
        losses.append([row[name] for row in history for name in ("loss", "eval_loss") if name in row])
        models.append(trainer.model)
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    saved, _ = load_captioner(tmp_path / "CaptionSFTTrainer" / "checkpoint-2", device="cpu")
    for name, adapter in models[0].adapters().items():
        for other in (models[1], saved):
            trained = other.adapters()[name].state_dict()
            torch.testing.assert_close(trained, adapter.state_dict(), rtol=0, atol=0)
            assert not torch.equal(adapter.q_proj.weight, captioner.adapters()[name].q_proj.weight)
