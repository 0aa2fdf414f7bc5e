"""Time to load a captioner and bytes on disk, compared with a VisionEncoderDecoder of the same backbones.

    python examples/benchmark_loading.py                     # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_loading.py --dtype bfloat16

Weights are random and saved by `save_pretrained`. Files are read from the system's page cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarking as bench
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel, GPT2LMHeadModel, VisionEncoderDecoderModel

from ituning_hf import ITuningForCaptioning

WHOLE, ONTO_BACKBONES = "I-Tuning, with backbones", "I-Tuning, onto backbones in memory"
ANOTHER_ADAPTER = "I-Tuning, another adapter in its place"
ENCODER_DECODER = "VisionEncoderDecoder"


def save_models(folder: Path, size: str, dtype: torch.dtype) -> dict[str, int]:
    """Save the backbones, a captioner and a VisionEncoderDecoder; return the bytes of their weights."""
    config = bench.captioner_config(size)
    backbones = {"vision": bench.frozen_vision_model(config), "text": bench.frozen_text_model(config)}
    sizes = {name: bench.saved_bytes(model.to(dtype), folder / name) for name, model in backbones.items()}
    captioner: Any = ITuningForCaptioning.from_vision_text_pretrained(folder / "vision", folder / "text")
    for adapter in captioner.adapters().values():
        torch.nn.init.normal_(adapter.out_proj.weight, std=0.02)
    encoder_decoder = bench.vision_encoder_decoder(config)
    return {
        "I-Tuning": bench.saved_bytes(captioner.to(dtype), folder / "captioner"),
        "frozen backbones": sizes["vision"] + sizes["text"],
        ENCODER_DECODER: bench.saved_bytes(encoder_decoder.to(dtype), folder / "encoder_decoder"),
    }


def make_calls(folder: Path, device: str) -> dict[str, bench.Call]:
    """Return the functions that load what `save_models` saved."""
    saved = folder / "captioner"
    vision: Any = CLIPVisionModel.from_pretrained(folder / "vision")
    text: Any = GPT2LMHeadModel.from_pretrained(folder / "text")
    backbones = {"vision_model": vision.to(device), "text_model": text.to(device)}
    in_memory: Any = ITuningForCaptioning.from_pretrained(saved, **backbones)

    def load_whole() -> Any:
        model: Any = ITuningForCaptioning.from_pretrained(saved)
        return model.to(device)

    def load_onto_backbones() -> Any:
        return ITuningForCaptioning.from_pretrained(saved, **backbones)

    def load_another_adapter() -> None:
        path = saved / "model.safetensors"
        in_memory.load_adapter_state_dict(load_file(path), str(path))

    def load_encoder_decoder() -> Any:
        model: Any = VisionEncoderDecoderModel.from_pretrained(folder / "encoder_decoder")
        return model.eval().to(device)

    return {
        WHOLE: load_whole,
        ONTO_BACKBONES: load_onto_backbones,
        ANOTHER_ADAPTER: load_another_adapter,
        ENCODER_DECODER: load_encoder_decoder,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, and return the report."""
    options = bench.make_parser(__doc__, rounds=7).parse_args(arguments)
    report = bench.make_report(__file__, arguments, options.device)
    with tempfile.TemporaryDirectory() as name, bench.quiet():
        sizes = save_models(Path(name), options.size, bench.DTYPES[options.dtype])
        timings = bench.measure(make_calls(Path(name), options.device), options.rounds)
    report["tables"][f"bytes of weights on disk, {options.size}"] = [
        {"model": model, "bytes": size, "over I-Tuning": size / sizes["I-Tuning"]}
        for model, size in sizes.items()
    ]
    report["tables"][f"seconds to load, {options.size}"] = [
        {
            "method": name,
            "seconds": timings.median(name),
            "over enc.-dec.": timings.ratio(name, ENCODER_DECODER),
        }
        for name in timings.seconds
    ]
    bench.publish(report, options.report)
    return report


if __name__ == "__main__":
    main()
