"""What generating captions costs through the PEFT method "ituning", beside the captioner.

    python examples/benchmarks/peft_generation.py            # Base size: GPT-2 with adapters in all layers
    python examples/benchmarks/peft_generation.py --small    # seconds, to see that it runs

Both generate the same captions with the same weights, which are random, from features of the images; the
vision encoder does not run. "each step" is the PEFT model's language model called directly: it projects the
images' keys and values again for every token. The three take turns, so that a busy machine slows all of them,
and each is compared with the captioner's run of the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.tuner import to_peft

CAPTIONER, PEFT, EACH_STEP = "captioner", "PEFT", "PEFT, each step"


def build_captioner(small: bool) -> ITuningForCaptioning:
    """Build a captioner with random weights whose captions depend on the image."""
    size = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 200} if small else {}
    text = GPT2Config(**size, bos_token_id=1, eos_token_id=1)
    width = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2} if small else {}
    # One layer, as features are given.
    vision = CLIPVisionConfig(**width, num_hidden_layers=1, patch_size=16)
    torch.manual_seed(0)
    captioner = ITuningForCaptioning(ITuningConfig(vision_config=vision, text_config=text)).eval()
    for adapter in captioner.adapters().values():
        torch.nn.init.normal_(adapter.out_proj.weight, std=0.02)
    return captioner


def generators(
    captioner: ITuningForCaptioning, images: int, num_beams: int, tokens: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the ways to generate, by name; all give the same tokens."""
    vision, begin = captioner.config.vision_config, captioner.generation_config.bos_token_id
    positions = (vision.image_size // vision.patch_size) ** 2 + 1
    features = torch.randn(images, positions, vision.hidden_size)
    model: Any = to_peft(captioner)
    length: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": tokens, "min_new_tokens": tokens}
    prompt = torch.full((images, 1), begin)
    text = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pad_token_id": begin}
    return {
        CAPTIONER: lambda: captioner.generate(visual_features=features, **length),
        PEFT: lambda: model.generate(encoder_hidden_states=features, pad_token_id=begin, **length),
        EACH_STEP: lambda: model.get_base_model().generate(encoder_hidden_states=features, **text, **length),
    }


def measure(ways: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Time each way once a round, in another order each time, after one round that does not count.

    Returns:
        Seconds of each round, by way.

    Raises:
        RuntimeError: if the ways do not give the same tokens.
    """
    expected, *others = (generate() for generate in ways.values())
    if not all(torch.equal(tokens, expected) for tokens in others):
        raise RuntimeError("The ways to generate give different tokens.")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            started = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny models instead of Base size")
    parser.add_argument("--images", type=int, default=2, help="how many at once (default: 2)")
    parser.add_argument("--num_beams", type=int, default=5, help="(default: 5)")
    parser.add_argument("--tokens", type=int, default=20, help="new tokens for each image (default: 20)")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each that count (default: 9)")
    options = parser.parse_args(arguments)
    ways = generators(build_captioner(options.small), options.images, options.num_beams, options.tokens)
    seconds = measure(ways, options.rounds)
    print(f"{'':<18}{'median, s':>12}{'over the captioner':>22}")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds[CAPTIONER], strict=True))
        print(f"{name:<18}{statistics.median(taken):>12.3f}{ratio:>22.3f}")


if __name__ == "__main__":
    main()
