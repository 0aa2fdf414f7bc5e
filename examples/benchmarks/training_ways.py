"""Ways to take a training step: the floors below it, the captioner's, and the peers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.captioner.recorded_ituning import UnloadedVisionModel
from ituning_hf.training.optimization import create_optimizer

from .arguments import DTYPES
from .backbones import frozen_text_model, frozen_vision_model, hold_frozen_in
from .captions import Batch, random_batch
from .peers import PEERS, peer_names
from .sizes import captioner_config


class Way(Protocol):
    """A model and its loss."""

    note: str
    model: nn.Module

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss over the batch's captions."""


class Floor:
    """What cannot be avoided: a frozen GPT-2, its loss at the labels, and the gradient to its inputs.

    Args:
        config: A captioner's, whose language model is taken.
    """

    note = "GPT-2 alone, frozen: forward, loss at the labels, gradient to its inputs"

    def __init__(self, config: ITuningConfig) -> None:
        self.model = frozen_text_model(config)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss of padded rows, their attention mask given."""
        hidden_states = self.model.base_model(
            inputs_embeds=self.embed(batch.input_ids), attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        return self.label_loss(hidden_states[:, :-1], batch.labels[:, 1:])

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return input embeddings that want a gradient, as those above a lowest adapter do."""
        return self.model.get_input_embeddings()(input_ids).requires_grad_()

    def label_loss(self, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, logits being computed at the labels alone."""
        labelled = labels != -100
        logits = self.model.lm_head(hidden_states[labelled])
        return F.cross_entropy(logits.float(), labels[labelled])


class FloorWithoutPadding(Floor):
    """The floor over the tokens that are gone on from: an image's rows in one, none of which sees another."""

    note = "the same without padding: an image's rows packed in one, without what no label reads"

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss; Transformers keeps the rows apart where positions begin anew."""
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=-100)
        scored = targets != -100  # all of a row but its end token, which nothing is said after
        sizes = scored.view(len(batch.pixel_values), -1).sum(1).tolist()

        def packed(values: torch.Tensor, padding: int = 0) -> torch.Tensor:
            return pad_sequence(values[scored].split(sizes), batch_first=True, padding_value=padding)

        hidden_states = self.model.base_model(
            inputs_embeds=self.embed(packed(batch.input_ids)),
            position_ids=packed(torch.arange(targets.shape[1], device=targets.device).expand_as(targets)),
            use_cache=False,
        ).last_hidden_state
        return self.label_loss(hidden_states, packed(targets, padding=-100))


class FloorWithStockLoss(Floor):
    """The floor with the loss that Transformers computes."""

    note = "the same with Transformers' `labels=`: logits at every position"

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss."""
        return self.model(
            inputs_embeds=self.embed(batch.input_ids),
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            use_cache=False,
        ).loss


class Captioner:
    """The captioner.

    Args:
        config: Its configuration, over the backbones of the other ways.
        from_pictures: Encode the pictures in the step; their features are taken otherwise, and there is no
            encoder.
        upper_half: Adapt the upper half of the layers.
        frozen_in: The precision that the language model's weights are built in.
    """

    def __init__(
        self,
        config: ITuningConfig,
        from_pictures: bool = False,
        upper_half: bool = False,
        frozen_in: torch.dtype = torch.float32,
    ) -> None:
        depth = config.text_config.num_hidden_layers
        text = frozen_text_model(config, frozen_in)
        # As in `ituning train --features`, which leaves the encoder on the disk.
        unloaded = UnloadedVisionModel(config.vision_config)
        vision = frozen_vision_model(config) if from_pictures else unloaded
        layers = [*range(depth // 2, depth)] if upper_half else None
        own = ITuningConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict(),
            adapter_layers=layers,
        )
        self.model: Any = ITuningForCaptioning(own, vision, text).train()
        self.from_pictures = from_pictures
        self.note = "the upper half of the layers adapted" if upper_half else "every layer adapted"
        if frozen_in == torch.bfloat16:
            self.note += ", frozen weights in bf16, adapters in fp32"

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss, a picture for the rows that belong to it."""
        if self.from_pictures:
            return self.model(pixel_values=batch.pixel_values, **batch.text).loss
        return self.model(visual_features=batch.visual_features, **batch.text).loss


FLOOR, NO_PADDING = "floor", "floor, no padding"
STORED, PICTURES = "I-Tuning, stored features", "I-Tuning, pictures"
UPPER_HALF = f"{STORED}, upper half"
NO_OPTIMIZER = f"{STORED}, no optimizer"
IN_BF16 = f"{STORED}, frozen in bf16"
OWN_WAYS: dict[str, Callable[[ITuningConfig], Way]] = {
    FLOOR: Floor,
    NO_PADDING: FloorWithoutPadding,
    "floor, stock loss": FloorWithStockLoss,
    STORED: Captioner,
    NO_OPTIMIZER: Captioner,
    UPPER_HALF: lambda config: Captioner(config, upper_half=True),
    IN_BF16: lambda config: Captioner(config, frozen_in=torch.bfloat16),
    PICTURES: lambda config: Captioner(config, from_pictures=True),
}


def way_names(size: str, dtype: str) -> list[str]:
    """Return the ways there are; with everything in bf16 none is told apart by that."""
    own = [name for name in OWN_WAYS if name != IN_BF16 or dtype == "float32"]
    return own + peer_names(size)


@dataclass(frozen=True)
class StepSettings:
    """What a step is taken of, and how; a process that measures memory is sent it.

    Args:
        size: One of `sizes.SIZES`.
        num_images: Pictures of a step.
        captions_per_image: Rows of text of each.
        device: Where it is taken.
        dtype: "float32", or "bfloat16": frozen weights in bf16, adapters in fp32 under autocast. Peers are
            in bf16 altogether then, optimiser included: no cast is on their clock.
        compiled: Whether `torch.compile` is given the loss.
        length: Tokens of every caption, in place of real captions' lengths.
        width: Tokens that rows are padded or cut to, in place of the longest of the step.
        image_size: Pixels of a picture's side, in place of the size's own.
        patch_size: Pixels of a patch's side, in place of the size's own.
    """

    size: str = "base"
    num_images: int = 1
    captions_per_image: int = 5
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False
    length: int | None = None
    width: int | None = None
    image_size: int | None = None
    patch_size: int | None = None

    def config(self) -> ITuningConfig:
        """Return the captioner's configuration, whose backbones all ways take."""
        return captioner_config(self.size, self.image_size, self.patch_size)

    def batch(self, seed: int) -> Batch:
        """Draw a step's batch."""
        return random_batch(
            self.config(),
            self.num_images,
            self.captions_per_image,
            seed,
            self.device,
            self.length,
            self.width,
            DTYPES[self.dtype],
        )


class Step:
    """A training step: zero the gradients, forward, backward, and AdamW where something is trained.

    Args:
        name: The way, one of `way_names`.
        settings: What it is taken of.
    """

    def __init__(self, name: str, settings: StepSettings) -> None:
        self.way = (OWN_WAYS | PEERS)[name](settings.config())
        self.model = self.way.model.to(settings.device)
        dtype = DTYPES[settings.dtype]
        if name in PEERS:
            self.model.to(dtype)
        elif name != IN_BF16:
            hold_frozen_in(self.model, dtype)
        trained = any(parameter.requires_grad for parameter in self.model.parameters())
        self.autocast = dtype == torch.bfloat16 and trained and name not in PEERS
        self.device_type = torch.device(settings.device).type
        if settings.compiled:
            # Past its limit, of few shapes and models, Dynamo goes back to uncompiled code without a word.
            torch._dynamo.config.recompile_limit = 64
        self.loss = torch.compile(self.way.loss) if settings.compiled else self.way.loss
        self.optimizer = (
            create_optimizer(self.model, learning_rate=1e-4, weight_decay=0.01)
            if trained and name != NO_OPTIMIZER
            else None
        )
        self.batch = settings.batch(seed=0)

    def __call__(self) -> None:
        """Take it."""
        self.model.zero_grad()
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(self.batch)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
