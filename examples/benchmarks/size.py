"""How much there is to store of a captioner, and of a VisionEncoderDecoder over the same backbones.

    python examples/benchmarks/size.py
    python examples/benchmarks/size.py --small

Both are built at Base size (CLIP ViT-B/16, GPT-2), or with --small in seconds and little memory, with random
weights, nothing being downloaded, and saved by their own `save_pretrained`. What is counted is what is on
disk then.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.utils import logging

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.model_card.benchmarks import base_config


@dataclass(frozen=True)
class Saved:
    """What one model left on disk, in bytes."""

    weights: int
    folder: int


def compare(config: ITuningConfig, dtype: torch.dtype) -> dict[str, Saved]:
    """Save both models over the same backbones, one after the other; return the sizes by name."""
    decoder = copy.deepcopy(config.text_config)
    decoder.add_cross_attention = decoder.is_decoder = True
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(config.vision_config, decoder)
    with _default_dtype(dtype):
        return {
            "I-Tuning": _save(ITuningForCaptioning(config)),
            "VisionEncoderDecoder": _save(VisionEncoderDecoderModel(both)),
        }


def small_config() -> ITuningConfig:
    """Return a captioner's configuration over backbones of two layers."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    text = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=1000, bos_token_id=0, eos_token_id=0)
    return ITuningConfig(vision_config=vision.to_dict(), text_config=text.to_dict())


def _save(model: PreTrainedModel) -> Saved:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
    weights = sum(size for path, size in sizes.items() if path.suffix == ".safetensors")
    return Saved(weights, sum(sizes.values()))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build in the precision that is stored: fp32 first would take twice the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--small", action="store_true", help="a small CLIP and GPT-2 of the same classes")
    options = parser.parse_args()
    dtype = options.dtype
    logging.disable_progress_bar()
    # That these backbones are random and stored nowhere is no news here.
    logging.get_logger("ituning_hf.checkpoint_ituning").setLevel(logging.ERROR)
    sizes = compare(small_config() if options.small else base_config(), getattr(torch, dtype))
    print(f"{dtype:<22}{'weights, bytes':>16}{'folder, bytes':>16}")
    for name, saved in sizes.items():
        print(f"{name:<22}{saved.weights:>16,}{saved.folder:>16,}")
    ours, theirs = sizes.values()
    print(f"{'ratio':<22}{theirs.weights / ours.weights:>16.1f}{theirs.folder / ours.folder:>16.1f}")


if __name__ == "__main__":
    main()
