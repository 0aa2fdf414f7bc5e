"""Time and memory of a training step, compared with a frozen decoder alone and with other captioners.

    python examples/benchmark_training.py                        # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_training.py --batch_size 4 --report training.json
    python examples/benchmark_training.py --size smollm2-135m    # the captioner and the decoder alone
    python examples/benchmark_training.py --device cuda --dtype bfloat16 --batch_size 64

A step is zero_grad, forward, backward, and AdamW over the trained parameters. All methods take the same rows
of text, new ones in each round. "floor" is what any adapter in the lowest layer must pay: a forward pass of
the frozen decoder and the gradient with respect to its inputs, without an optimizer. Peak memory is
measured in a new process for each method. With bfloat16, frozen weights are in bf16 and trained ones in fp32
under autocast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import benchmarking as bench
import torch
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitVisionConfig,
)

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.encoders_ituning import UnloadedVisionModel
from ituning_hf.training.optimization import create_optimizer

Loss = Callable[[bench.Batch], torch.Tensor]


def build_floor(size: str) -> tuple[Any, Loss]:
    """Build a frozen decoder; its loss computes logits only where there is a label, as the captioner's."""
    model = bench.frozen_text_model(bench.captioner_config(size))

    def loss(batch: bench.Batch) -> torch.Tensor:
        inputs = model.get_input_embeddings()(batch.text["input_ids"]).requires_grad_()
        hidden_states = model.base_model(
            inputs_embeds=inputs, attention_mask=batch.text["attention_mask"], use_cache=False
        ).last_hidden_state
        labels = batch.text["labels"][:, 1:]
        logits = model.lm_head(hidden_states[:, :-1][labels != -100])
        return F.cross_entropy(logits.float(), labels[labels != -100])

    return model, loss


def build_captioner(size: str, from_pictures: bool = False, upper_half: bool = False) -> tuple[Any, Loss]:
    """Build a captioner.

    Args:
        size: A key of `SIZES`.
        from_pictures: Encode the pictures in the step; otherwise read stored features, without an encoder.
        upper_half: Adapt only the upper half of the layers.
    """
    config = bench.captioner_config(size)
    depth = config.text_config.num_hidden_layers
    if upper_half:
        config = bench.captioner_config(size, adapter_layers=[*range(depth // 2, depth)])
    vision = bench.frozen_vision_model(config) if from_pictures else UnloadedVisionModel(config.vision_config)
    model: Any = ITuningForCaptioning(config, vision, bench.frozen_text_model(config)).train()

    def loss(batch: bench.Batch) -> torch.Tensor:
        if from_pictures:
            return model(pixel_values=batch.pixel_values, **batch.text).loss
        return model(visual_features=batch.visual_features, **batch.text).loss

    return model, loss


def build_vision_encoder_decoder(size: str) -> tuple[Any, Loss]:
    """Build a VisionEncoderDecoder with only its cross-attention trained."""
    model = bench.vision_encoder_decoder(bench.captioner_config(size)).train()

    def loss(batch: bench.Batch) -> torch.Tensor:
        return model(
            pixel_values=batch.pixel_values_for_rows(),
            decoder_input_ids=batch.text["input_ids"][:, :-1],
            decoder_attention_mask=batch.text["attention_mask"][:, :-1],
            labels=batch.text["labels"][:, 1:].contiguous(),
            use_cache=False,
        ).loss

    return model, loss


def build_git(size: str) -> tuple[Any, Loss]:
    """Build a GIT at the proportions of its base model: half of GPT-2's layers, BERT's vocabulary."""
    vision, text = _sizes(size)
    text |= {"num_hidden_layers": text["num_hidden_layers"] // 2, "vocab_size": GitConfig().vocab_size}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    encoder = GitVisionConfig(**vision).to_dict()
    model: Any = GitForCausalLM(GitConfig(vision_config=encoder, **text, **tokens))
    return model.train(), _loss_of_own_vocabulary(model, text["vocab_size"])


def build_blip(size: str) -> tuple[Any, Loss]:
    """Build a BLIP: a BERT of GPT-2's depth with cross-attention in every layer."""
    vision, text = _sizes(size)
    text |= {"vocab_size": BlipTextConfig().vocab_size}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    config = BlipConfig(
        text_config=BlipTextConfig(**text, **tokens).to_dict(),
        vision_config=BlipVisionConfig(**vision).to_dict(),
    )
    model: Any = BlipForConditionalGeneration(config)
    return model.train(), _loss_of_own_vocabulary(model, text["vocab_size"])


def _sizes(size: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the encoder's and the decoder's sizes under the names of GIT's and BLIP's configurations."""
    config = bench.captioner_config(size)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    vision = {n: getattr(config.vision_config, n) for n in (*names, "intermediate_size", "image_size")}
    text = {n: getattr(config.text_config, n) for n in names}
    patch_size = {"patch_size": config.vision_config.patch_size}
    return vision | patch_size, text | {"intermediate_size": 4 * text["hidden_size"]}


def _loss_of_own_vocabulary(model: Any, vocab_size: int) -> Loss:
    """Return the loss of a model that takes a picture for each row, in a smaller vocabulary than GPT-2's."""

    def loss(batch: bench.Batch) -> torch.Tensor:
        labels = batch.text["labels"]
        text = batch.text | {
            "input_ids": batch.text["input_ids"] % vocab_size,
            "labels": labels.where(labels < 0, labels % vocab_size),
        }
        return model(pixel_values=batch.pixel_values_for_rows(), **text).loss

    return loss


FLOOR, CROSS_ATTENTION = "floor", "VisionEncoderDecoder, cross-attention"
STORED, PICTURES = "I-Tuning, stored features", "I-Tuning, pictures"
UPPER_HALF, NO_OPTIMIZER = f"{STORED}, upper half", f"{STORED}, no optimizer"
METHODS: dict[str, Callable[[str], tuple[Any, Loss]]] = {
    FLOOR: build_floor,
    STORED: build_captioner,
    NO_OPTIMIZER: build_captioner,
    UPPER_HALF: lambda size: build_captioner(size, upper_half=True),
    PICTURES: lambda size: build_captioner(size, from_pictures=True),
    CROSS_ATTENTION: build_vision_encoder_decoder,
    "GIT, all trained": build_git,
    "BLIP, all trained": build_blip,
}
OVER_ANY_DECODER = [FLOOR, STORED, NO_OPTIMIZER, UPPER_HALF, PICTURES]


class Step:
    """A training step.

    Args:
        name: A key of `METHODS`.
        options: The command's options.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.model, self.loss = METHODS[name](options.size)
        self.dtype, self.device_type = bench.DTYPES[options.dtype], torch.device(options.device).type
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.dtype)
        self.model.to(options.device)
        self.trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.optimizer = (
            create_optimizer(self.model, learning_rate=1e-4, weight_decay=0.01)
            if self.trainable and name != NO_OPTIMIZER
            else None
        )
        self.batch = make_batch(options, seed=0)

    def __call__(self) -> None:
        """Take the step."""
        self.model.zero_grad()
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(self.batch)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()


def make_batch(options: argparse.Namespace, seed: int) -> bench.Batch:
    """Draw the batch of a round."""
    config = bench.captioner_config(options.size)
    shape = options.batch_size, options.captions_per_image
    return bench.random_batch(config, *shape, seed, options.device, bench.DTYPES[options.dtype])


def make_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = bench.make_parser(__doc__, rounds=7, methods=METHODS, sizes=bench.SIZES)
    parser.add_argument("--captions_per_image", type=bench.positive, default=5, help="(default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and return the report."""
    options = make_options(arguments)
    # The other captioners contain GPT-2, or have its proportions.
    comparable = [*METHODS] if options.size in bench.GPT2_SIZES else OVER_ANY_DECODER
    names = options.methods or comparable
    report = bench.make_report(__file__, arguments, options.device)
    measured = [] if options.no_memory else names
    memory = {name: bench.peak_memory(Step, name, options, device=options.device) for name in measured}
    with bench.quiet():
        steps = {name: Step(name, options) for name in names}

        def draw_batch(number: int) -> None:
            batch = make_batch(options, seed=number)
            for step in steps.values():
                step.batch = batch

        timings = bench.measure(steps, options.rounds, draw_batch)
    rows: list[bench.Row] = []
    for name, step in steps.items():
        total, own = memory.get(name, (None, None))
        rows.append(
            {
                "method": name,
                "seconds": timings.median(name),
                "over floor": timings.ratio(name, FLOOR),
                "over cross-att.": timings.ratio(name, CROSS_ATTENTION),
                "trainable": step.trainable,
                "peak MB": total,
                "without weights": own,
            }
        )
    title = f"a training step of {options.batch_size} x {options.captions_per_image} captions"
    report["tables"][f"{title}, {options.size}"] = rows
    bench.publish(report, options.report)
    return report


if __name__ == "__main__":
    main()
