"""How much there is to store of a captioner, and of a VisionEncoderDecoder over the same backbones.

    python examples/benchmarks/size.py

Both are built at Base size (CLIP ViT-B/16, GPT-2) with random weights, nothing being downloaded, and saved by
their own `save_pretrained`; what is counted is what is on disk then.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
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
    """Print the comparison at Base size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    dtype = parser.parse_args().dtype
    logging.disable_progress_bar()
    # That these backbones are random and stored nowhere is no news here.
    logging.get_logger("ituning_hf.checkpoint_ituning").setLevel(logging.ERROR)
    sizes = compare(base_config(), getattr(torch, dtype))
    print(f"{dtype:<22}{'weights, bytes':>16}{'folder, bytes':>16}")
    for name, saved in sizes.items():
        print(f"{name:<22}{saved.weights:>16,}{saved.folder:>16,}")
    ours, theirs = sizes.values()
    print(f"{'ratio':<22}{theirs.weights / ours.weights:>16.1f}{theirs.folder / ours.folder:>16.1f}")


if __name__ == "__main__":
    main()
