"""Time and memory of generating captions, compared with bare GPT-2 and with VisionEncoderDecoder.

    python examples/benchmark_generation.py                  # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_generation.py --batch_size 16 --device cuda --dtype bfloat16

Every method generates the same number of tokens for the same pictures with the same number of beams. The
captioner and the PEFT method have the same weights and must generate the same captions; int8 may change some,
which are counted. Peak memory is measured in a new process for each method; it includes the vision encoder
also where the features are computed before the call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import benchmarking as bench
import torch

from ituning_hf import ITuningConfig, ITuningForCaptioning, quantize_frozen_weights
from ituning_hf.tuner.conversion import to_peft

Generate = Callable[[], torch.Tensor]
NO_TOKEN = 2**31 - 1  # as the end token it is never generated, so that every caption has the same length


class Models:
    """The models that the methods share, each built at first use with random weights.

    Args:
        options: The command's options.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.config = bench.captioner_config(options.size)
        self.dtype = bench.DTYPES[options.dtype]
        self.length = {
            "num_beams": options.num_beams,
            "max_new_tokens": options.new_tokens,
            "eos_token_id": NO_TOKEN,
        }

    @cached_property
    def pictures(self) -> torch.Tensor:
        """Pictures that differ in brightness and in detail, so that their features differ."""
        side, count = self.config.vision_config.image_size, self.options.batch_size
        generator = torch.Generator().manual_seed(0)
        detail = torch.randn(count, 3, side, side, generator=generator)
        brightness = torch.randn(count, 3, 1, 1, generator=generator)
        return (detail + 2 * brightness).to(self.options.device, self.dtype)

    @cached_property
    def features(self) -> torch.Tensor:
        """The pictures' features."""
        return self.captioner.get_image_features(self.pictures)

    @cached_property
    def begin(self) -> dict[str, torch.Tensor]:
        """A begin token for each picture."""
        ids = torch.full((self.options.batch_size, 1), self.config.text_config.bos_token_id)
        ids = ids.to(self.options.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @cached_property
    def captioner(self) -> Any:
        """The captioner."""
        return self.make_captioner(bench.frozen_text_model(self.config)).to(self.options.device, self.dtype)

    def make_captioner(self, text_model: Any) -> Any:
        """Build a captioner whose adapters' output is not zero, so that captions depend on the picture."""
        config = ITuningConfig(
            vision_config=self.config.vision_config.to_dict(), text_config=self.config.text_config.to_dict()
        )
        torch.manual_seed(0)
        captioner: Any = ITuningForCaptioning(config, bench.frozen_vision_model(self.config), text_model)
        for adapter in captioner.adapters().values():
            torch.nn.init.normal_(adapter.out_proj.weight, std=0.02)
        return captioner.eval()


def bare_gpt2(models: Models) -> Generate:
    """Generate without a picture."""
    model = bench.frozen_text_model(models.config).to(models.options.device, models.dtype)
    pad = {"pad_token_id": model.config.eos_token_id}
    return partial(model.generate, **models.begin, **pad, **models.length)


def from_features(models: Models) -> Generate:
    """Caption from features computed before."""
    return partial(models.captioner.generate, visual_features=models.features, **models.length)


def from_pictures(models: Models) -> Generate:
    """Encode and caption pictures."""
    return partial(models.captioner.generate, pixel_values=models.pictures, **models.length)


def in_int8(models: Models) -> Generate:
    """Caption from features with the language model's weights in int8."""
    # A copy of its own: quantization replaces weights that the other methods share.
    text_model = bench.frozen_text_model(models.config)
    for parameter in text_model.parameters():
        parameter.data = parameter.data.clone()
    captioner = models.make_captioner(text_model)
    quantize_frozen_weights(captioner)
    return partial(captioner.generate, visual_features=models.features, **models.length)


def peft_method(models: Models) -> Generate:
    """Caption from features by the PEFT method with the captioner's weights."""
    model: Any = to_peft(models.captioner)
    options = {
        "visual_features": models.features,
        "pad_token_id": models.config.text_config.eos_token_id,
    }
    return partial(model.generate, **options, **models.length)


def encoder_decoder(models: Models) -> Generate:
    """Encode and caption pictures by a VisionEncoderDecoder."""
    model = bench.vision_encoder_decoder(models.config).eval().to(models.options.device, models.dtype)
    return partial(model.generate, pixel_values=models.pictures, **models.length)


FLOOR, FEATURES, PICTURES = "bare GPT-2", "I-Tuning, stored features", "I-Tuning, pictures"
INT8, PEFT = "I-Tuning, stored features, int8", "PEFT method, stored features"
ENCODER_DECODER = "VisionEncoderDecoder, pictures"
METHODS: dict[str, Callable[[Models], Generate]] = {
    FLOOR: bare_gpt2,
    FEATURES: from_features,
    PICTURES: from_pictures,
    PEFT: peft_method,
    INT8: in_int8,
    ENCODER_DECODER: encoder_decoder,
}


def build(name: str, options: argparse.Namespace) -> Generate:
    """Build one method alone."""
    return METHODS[name](Models(options))


def count_changed_captions(calls: dict[str, Generate]) -> dict[str, int]:
    """Return how many captions differ from the captioner's, for each method with the captioner's weights."""
    if FEATURES not in calls:
        return {}
    expected = calls[FEATURES]()
    names = [name for name in (PICTURES, PEFT, INT8) if name in calls]
    return {name: int((calls[name]() != expected).any(dim=1).sum()) for name in names}


def make_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = bench.make_parser(__doc__, rounds=5, methods=METHODS, batch_size=2)
    add = parser.add_argument
    add("--num_beams", type=bench.positive, default=5, help="(default: %(default)s)")
    add("--new_tokens", type=bench.positive, default=20, help="tokens of each caption (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and return the report."""
    options = make_options(arguments)
    supports_int8 = options.device == "cpu" and options.dtype == "float32"
    names = options.methods or [name for name in METHODS if name != INT8 or supports_int8]
    report = bench.make_report(__file__, arguments, options.device)
    measured = [] if options.no_memory else names
    memory = {
        name: bench.peak_memory(build, name, options, device=options.device, calls=1) for name in measured
    }
    with bench.quiet():
        models = Models(options)
        calls = {name: METHODS[name](models) for name in names}
        changed = count_changed_captions(calls)
        timings = bench.measure(calls, options.rounds)
    rows: list[bench.Row] = []
    for name in names:
        total, own = memory.get(name, (None, None))
        rows.append(
            {
                "method": name,
                "seconds": timings.median(name),
                "over bare GPT-2": timings.ratio(name, FLOOR),
                "over enc.-dec.": timings.ratio(name, ENCODER_DECODER),
                "peak MB": total,
                "without weights": own,
                "captions changed": changed.get(name),
            }
        )
    title = f"{options.new_tokens} tokens for {options.batch_size} pictures, {options.num_beams} beams"
    report["tables"][f"{title}, {options.size}"] = rows
    bench.publish(report, options.report)
    return report


if __name__ == "__main__":
    main()
