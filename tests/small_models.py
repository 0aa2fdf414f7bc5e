"""Small models of the real classes. Their sizes differ, so that a test with swapped axes fails."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_tokenizers import save_tokenizer_of
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.encoders_ituning import CLIPFamily
from ituning_hf.data.columns import CaptionedImages
from ituning_hf.features.arguments import BuildArguments
from ituning_hf.features.build import build_features
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.loop import CaptionTrainer
from ituning_hf.training.run import train

IMAGE_SIZE = 30
VISION = {
    "hidden_size": 15,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": IMAGE_SIZE,
    "patch_size": 10,
}
TEXT = {"n_embd": 22, "n_layer": 4, "n_head": 2, "n_positions": 48}
ADAPTER = {"adapter_hidden_size": 21, "adapter_num_heads": 7}

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_clip(projection_dim: int, **text: Any) -> CLIPModel:
    """Build a full CLIP with random weights."""
    size = {"hidden_size": 14, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {"vision_config": CLIPVisionConfig(**VISION), "text_config": CLIPTextConfig(**size, **text)}
    configs = {name: config.to_dict() for name, config in parts.items()}
    return CLIPModel(CLIPConfig(**configs, projection_dim=projection_dim))


def save_backbones(root: Path) -> dict[str, Path]:
    """Save small frozen models: "vision", "clip" (with the same vision part) and "text"."""
    torch.manual_seed(7)
    make_clip(512, vocab_size=50).save_pretrained(root / "clip")
    CLIPVisionModel.from_pretrained(root / "clip").save_pretrained(root / "vision")
    for folder in ("clip", "vision"):
        CLIPFamily().image_processor(CLIPVisionConfig(**VISION)).save_pretrained(root / folder)
    tokenizer = save_tokenizer_of("gpt2", root / "text")
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**TEXT, **tokens, vocab_size=len(tokenizer))).save_pretrained(root / "text")
    return {name: root / name for name in ("clip", "vision", "text")}


def save_full_clip(folder: Path) -> Path:
    """Save a full CLIP with its image processor and a tokenizer of single letters."""
    pieces = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    torch.manual_seed(13)
    model = make_clip(11, vocab_size=len(pieces), **{name: getattr(tokenizer, name) for name in names})
    for part in (model, CLIPFamily().image_processor(CLIPVisionConfig(**VISION)), tokenizer):
        part.save_pretrained(folder)
    return folder


def randomize_adapters(model: ITuningForCaptioning, seed: int = 0, std: float = 0.5) -> ITuningForCaptioning:
    """Give the adapters random values. New ones do not change the language model's output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in model.adapters().values():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def reinitialise(model: torch.nn.Module) -> None:
    """Replace all weights."""
    torch.manual_seed(1)
    for p in model.parameters():
        torch.nn.init.normal_(p)


def make_captioner(backbones: dict[str, Path], **options: Any) -> ITuningForCaptioning:
    """Build a captioner whose captions depend on the image."""
    return randomize_adapters(
        ITuningForCaptioning.from_vision_text_pretrained(
            backbones["vision"], backbones["text"], **ADAPTER | options
        )
    )


def make_batch(
    images: int = 3, k: int = 5, side: str = "right", seed: int = 1, lengths: list[int] | None = None
) -> dict[str, torch.Tensor]:
    """Make pixels, and k rows of text for each image, padded on one side; first tokens have no label.

    By default the rows have 3 to 8 tokens.
    """
    draw = torch.Generator().manual_seed(seed)
    row = torch.arange(images * k)[:, None]
    tokens = 3 + row * 5 % 6 if lengths is None else torch.tensor(lengths)[:, None]  # (rows, 1)
    longest = int(tokens.max())
    token = torch.arange(longest) - (longest - tokens if side == "left" else 0 * tokens)  # (rows, T)
    mask = (token >= 0) & (token < tokens)
    input_ids = torch.randint(1, 299, mask.shape, generator=draw)
    return {
        "pixel_values": torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=draw),
        "input_ids": input_ids,
        "attention_mask": mask.long(),
        "labels": input_ids.masked_fill(~mask | (token < 1 + row % 2), -100),
    }


def logits_of(model: ITuningForCaptioning) -> torch.Tensor:
    """Compute the logits of the batch of `make_batch(k=2)`, without padding."""
    batch = make_batch(k=2)
    with torch.no_grad():
        return model(batch["pixel_values"].to(model.vision_model.dtype), batch["input_ids"]).logits


def put_in_hub_cache(cache: Path, repo_id: str, commit: str, folder: Path, branch: str = "main") -> Path:
    """Copy a folder to where the Hub's cache keeps this commit of a repository; return the copy."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    return root / "snapshots" / commit


class LeavesAMark:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def store_features(folder: Path, images: Sequence[CaptionedImages], **settings: Any) -> None:
    """Build a feature store of some splits, in this process."""
    args = BuildArguments(**{"dataloader_num_workers": 0, "output_dir": str(folder)} | settings)
    build_features(CaptionedImages.concatenate(images), args)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return every file of a folder by its relative path."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_lines(path: str | Path) -> list[Any]:
    """Read the values of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def read_log(run: str | Path) -> list[dict]:
    """Read the records of a run's log."""
    return read_lines(Path(run) / "log.jsonl")


def validation_scores(run: str | Path, name: str) -> dict[int, float]:
    """Return a score of each validation, by step."""
    key = f"validation_{name}"
    return {record["step"]: record[key] for record in read_log(run) if key in record}


def train_until(args: TrainArguments, step: int) -> None:
    """Train, and stop after `step` as a killed process does."""
    record = CaptionTrainer._log_step

    def stopping(self: CaptionTrainer, *arguments: Any) -> None:
        if self.state.step == step:
            raise KeyboardInterrupt
        record(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptionTrainer, "_log_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(args)
