"""Shared by the three benchmarks: models of known sizes, random batches, timing, memory and reports.

All weights, pictures and tokens are random, so nothing is downloaded. The compared methods of one run share
the weights of their frozen backbones.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import functools
import gc
import json
import logging
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.utils.benchmark import Measurement, Timer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

import ituning_hf
from ituning_hf import ITuningConfig

Call = Callable[[], object]
Row = dict[str, Any]  # a table's cells by column; None leaves a cell empty

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_VIT_B_16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16}
_SMALL_VIT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_SMALL_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
_SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}
_QWEN2_5_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
}
GPT2_SIZES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "small": (_SMALL_VIT, _SMALL_GPT2 | {"bos_token_id": 0, "eos_token_id": 0}),  # only for tests
    "base": (_VIT_B_16, {}),
    "medium": (_VIT_B_16, {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "large": (_VIT_B_16, {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
}
SIZES = GPT2_SIZES | {
    "smollm2-135m": (_VIT_B_16, _SMOLLM2_135M),
    "qwen2.5-0.5b": (_VIT_B_16, _QWEN2_5_05B),
}

# Lengths of the 4,375 human captions of 875 Flickr8k pictures (Hodosh et al. 2013): how many have 3 tokens,
# 4 tokens and so on, without begin and end token; 12.55 on average. Counted with GPT-2's tokenizer.
# fmt: off
_COUNTS = (
    2, 12, 41, 103, 242, 305, 335, 438, 441, 472, 421, 366, 303, 211, 152, 150, 116, 78,
    59, 31, 30, 13, 18, 9, 6, 5, 6, 1, 1, 2, 1, 2, 0, 1, 0, 2,
)
# fmt: on
LENGTHS = dict(enumerate(_COUNTS, start=3))


def captioner_config(size: str, **adapter_options: Any) -> ITuningConfig:
    """Return the captioner's configuration at one of `SIZES`."""
    vision = CLIPVisionConfig(**SIZES[size][0])
    text = AutoConfig.for_model(**{"model_type": "gpt2"} | SIZES[size][1])
    return ITuningConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), **adapter_options)


def frozen_vision_model(config: ITuningConfig) -> Any:
    """Return the frozen vision encoder: a module of its own over weights shared by the whole run."""
    return share_weights(_frozen_vision(config.vision_config.to_json_string()))


def frozen_text_model(config: ITuningConfig) -> Any:
    """Return the frozen language model: a module of its own over weights shared by the whole run."""
    return share_weights(_frozen_text(config.text_config.to_json_string()))


@functools.lru_cache(maxsize=1)
def _frozen_vision(config: str) -> Any:
    return _frozen(CLIPVisionModel, CLIPVisionConfig(**json.loads(config)))


@functools.lru_cache(maxsize=1)
def _frozen_text(config: str) -> Any:
    return _frozen(AutoModelForCausalLM.from_config, AutoConfig.for_model(**json.loads(config)))


def _frozen(build: Callable[[Any], Any], config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(config).eval().requires_grad_(False)


def share_weights(module: Any) -> Any:
    """Copy a module without copying its parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def vision_encoder_decoder(config: ITuningConfig) -> Any:
    """Build a VisionEncoderDecoder of the same backbones with only the cross-attention trained."""
    decoder = copy.deepcopy(config.text_config)
    decoder.add_cross_attention = decoder.is_decoder = True
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(config.vision_config, decoder)
    both.decoder_start_token_id = decoder.bos_token_id
    both.pad_token_id = both.eos_token_id = decoder.eos_token_id
    model: Any = VisionEncoderDecoderModel(both).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("crossattention", "ln_cross_attn", "enc_to_dec_proj")):
            parameter.requires_grad_(True)
    generation = model.generation_config
    generation.decoder_start_token_id = generation.bos_token_id = decoder.bos_token_id
    generation.pad_token_id = generation.eos_token_id = decoder.eos_token_id
    return model


@dataclass(frozen=True)
class Batch:
    """A training batch; rows of text are image-major.

    Args:
        pixel_values: (num_images, 3, image_size, image_size).
        visual_features: (num_images, N, d_v).
        text: `input_ids`, `attention_mask` and `labels`, each (num_images * k, T); labels are not shifted.
    """

    pixel_values: torch.Tensor
    visual_features: torch.Tensor
    text: dict[str, torch.Tensor]

    def pixel_values_for_rows(self) -> torch.Tensor:
        """Return a picture for each row of text, as Transformers' own classes take them."""
        rows_per_image = len(self.text["labels"]) // len(self.pixel_values)
        return self.pixel_values.repeat_interleave(rows_per_image, dim=0)


def random_batch(
    config: ITuningConfig,
    num_images: int,
    captions_per_image: int,
    seed: int,
    device: str,
    dtype: torch.dtype,
) -> Batch:
    """Draw a batch of rows as long as real captions: begin token, random tokens, end token, padding."""
    generator = torch.Generator().manual_seed(seed)
    vision, text = config.vision_config, config.text_config
    num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    pictures = torch.randn(num_images, 3, vision.image_size, vision.image_size, generator=generator)
    features = torch.randn(num_images, num_tokens, vision.hidden_size, generator=generator)
    drawn = random.Random(seed).choices([*LENGTHS], [*LENGTHS.values()], k=num_images * captions_per_image)
    lengths = torch.tensor(drawn)[:, None] + 2
    positions = torch.arange(int(lengths.max()))
    ids = torch.randint(0, text.vocab_size, (len(drawn), len(positions)), generator=generator)
    ids[:, 0] = text.bos_token_id
    ids[positions >= lengths - 1] = text.eos_token_id
    mask = (positions < lengths).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    rows = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Batch(
        pictures.to(device, dtype),
        features.to(device, dtype),
        {name: row.to(device) for name, row in rows.items()},
    )


@dataclass(frozen=True)
class Timings:
    """Seconds of each method in each round."""

    seconds: dict[str, list[float]]  # by method, one number for each round

    def median(self, name: str) -> float:
        """Return a method's median seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float | None:
        """Return the median over rounds of the ratio within a round; None if one was not measured."""
        if name not in self.seconds or over not in self.seconds:
            return None
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return statistics.median(one / other for one, other in pairs)


def measure(
    calls: Mapping[str, Call], rounds: int, before_round: Callable[[int], object] = lambda number: None
) -> Timings:
    """Time each call once in each round, so that a busy machine slows all of them alike.

    Every timed call follows an untimed one (PyTorch's `Timer` warms up), and CUDA devices are synchronised.

    Args:
        calls: Functions by name.
        rounds: Number of rounds; each begins with another function.
        before_round: Called with the round's number, not timed.
    """
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads(), sub_label=name)
        for name, call in calls.items()
    }
    measured: dict[str, list[Measurement]] = {name: [] for name in timers}
    names = list(timers)
    for number in range(rounds):
        before_round(number)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            # Without a minimal time it calls once to warm up, and once to measure.
            measured[name].append(timers[name].blocked_autorange(min_run_time=0.0))
    return Timings({name: [m.median for m in measurements] for name, measurements in measured.items()})


def peak_memory(build: Callable[..., Call], *arguments: Any, device: str, calls: int = 2) -> tuple[int, int]:
    """Call something in a new process and return its peak memory in MB: in all, and without the weights.

    Args:
        build: Builds the function that is called; a function of a module, which the new process imports.
        *arguments: Arguments of `build`.
        device: Measures allocated memory on CUDA, resident memory of a Linux process otherwise.
        calls: Number of calls; an optimizer has its state from the second step on.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_memory, (build, arguments, device, calls))


def _measure_memory(
    build: Callable[..., Call], arguments: tuple[Any, ...], device: str, calls: int
) -> tuple[int, int]:
    on_cuda = torch.device(device).type == "cuda"
    before = 0 if on_cuda else _resident_bytes()
    with quiet():
        call = build(*arguments)
        built = torch.cuda.memory_allocated(device) if on_cuda else _resident_bytes()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the process's peak
        for _ in range(calls):
            call()
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else _status_bytes("VmHWM")
    return (peak - before) // 10**6, (peak - built) // 10**6


def _resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back to the system
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def saved_bytes(model: Any, folder: Path | None = None) -> int:
    """Save a model by its `save_pretrained`, and return the size of its weight files."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return saved_bytes(model, Path(temporary))
    model.save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def make_parser(
    description: str | None,
    rounds: int,
    methods: Iterable[str] = (),
    batch_size: int = 1,
    sizes: Iterable[str] = GPT2_SIZES,
) -> argparse.ArgumentParser:
    """Return a parser with the common options; with `methods`, the user can choose among these."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add = parser.add_argument
    add("--size", choices=sizes, default="base", help="size of the models (default: %(default)s)")
    add("--device", default=device, help="cpu or cuda (default: cuda if available)")
    add("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    add("--rounds", type=positive, default=rounds, help="measurements of each method (default: %(default)s)")
    add("--report", type=Path, metavar="FILE.json", help="write the tables there too")
    if methods:
        add("--batch_size", type=positive, default=batch_size, help="images at once (default: %(default)s)")
        add("--methods", nargs="+", choices=methods, metavar="METHOD", help=f"of: {'; '.join(methods)}")
        add("--no_memory", action="store_true", help="skip peak memory, which takes a process per method")
    return parser


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def make_report(script: str, arguments: Sequence[str] | None, device: str) -> dict[str, Any]:
    """Return a report without tables: the command, the versions and the machine."""
    machine = {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        machine["GPU"] = torch.cuda.get_device_name(device)
    libraries = {"torch": torch, "transformers": transformers, "peft": peft, "ituning_hf": ituning_hf}
    versions = {name: str(library.__version__) for name, library in libraries.items()}
    command = " ".join(["python", f"examples/{Path(script).name}", *(arguments or sys.argv[1:])])
    return {
        "command": command,
        "versions": {"python": platform.python_version()} | versions,
        "machine": machine,
        "tables": {},
    }


def publish(report: dict[str, Any], path: Path | None) -> None:
    """Print a report, and write it as JSON if there is a path."""
    print(report["command"])
    for facts in (report["versions"], report["machine"]):
        print("  " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    for title, rows in report["tables"].items():
        print(f"\n{title}\n{format_table(rows)}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def format_table(rows: Sequence[Row]) -> str:
    """Lay out rows under their column names: the first column to the left, numbers to the right."""
    names = list(rows[0])
    cells = [names, *([_format_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    )


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, and warnings about random backbones that no path names."""
    transformers.utils.logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "ituning_hf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # PEFT calls Transformers by a name from before version 5.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers.utils.logging.enable_progress_bar()
