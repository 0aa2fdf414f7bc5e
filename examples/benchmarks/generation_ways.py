"""Ways to caption pictures: the floor below them, the captioner's, the PEFT method's, and the peers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from transformers import CompileConfig
from transformers.modeling_outputs import BaseModelOutput

import ituning_hf
from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.tuner.conversion import to_peft

from .arguments import DTYPES
from .backbones import frozen_text_model, frozen_vision_model, unshared_text_model
from .peers import PEERS, Peer, peer_names
from .sizes import captioner_config

NO_TOKEN = 2**31 - 1  # for an end token: none is ever written, and none has to be forbidden
Generate = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class CaptionSettings:
    """What is captioned, and how; a process that measures memory is sent it.

    Args:
        size: One of `sizes.SIZES`.
        num_images: Pictures captioned at once.
        num_beams: Beams of each; greedy ways have one.
        new_tokens: Tokens of every caption, whatever the model would say.
        device: Where it is computed.
        dtype: The precision of everything, "float32" or "bfloat16".
        image_size: Pixels of a picture's side, in place of the size's own.
        patch_size: Pixels of a patch's side, in place of the size's own.
    """

    size: str = "base"
    num_images: int = 2
    num_beams: int = 5
    new_tokens: int = 20
    device: str = "cpu"
    dtype: str = "float32"
    image_size: int | None = None
    patch_size: int | None = None

    def config(self) -> ITuningConfig:
        """Return the captioner's configuration, whose backbones all ways take."""
        return captioner_config(self.size, self.image_size, self.patch_size)

    @property
    def length(self) -> dict[str, int]:
        """What makes every way do the same work, as keyword arguments of `generate`."""
        return {
            "num_beams": self.num_beams,
            "max_new_tokens": self.new_tokens,
            "eos_token_id": NO_TOKEN,
        }


class Models:
    """What the ways run, each built when it is first asked for, with random weights.

    Args:
        settings: What is captioned.
    """

    def __init__(self, settings: CaptionSettings) -> None:
        self.settings, self.config = settings, settings.config()
        self.dtype = DTYPES[settings.dtype]
        self._peers: dict[str, Peer] = {}

    @cached_property
    def pictures(self) -> torch.Tensor:
        """Pictures that differ in brightness and in detail, so that their features do."""
        side = self.config.vision_config.image_size
        generator = torch.Generator().manual_seed(0)
        detail = torch.randn(self.settings.num_images, 3, side, side, generator=generator)
        brightness = torch.randn(self.settings.num_images, 3, 1, 1, generator=generator)
        return (detail + 2 * brightness).to(self.settings.device, self.dtype)

    @cached_property
    def features(self) -> torch.Tensor:
        """Their features."""
        return self.captioner.get_image_features(self.pictures)

    @cached_property
    def gpt2(self) -> Any:
        """The language model alone."""
        return frozen_text_model(self.config, self.dtype).to(self.settings.device)

    @cached_property
    def captioner(self) -> Any:
        """The captioner."""
        return self.frozen_in(self.dtype).to(self.dtype)

    @cached_property
    def peft(self) -> Any:
        """Its language model as a PEFT model, over the same weights."""
        return to_peft(self.captioner)

    def frozen_in(self, dtype: torch.dtype) -> Any:
        """Return the captioner with its frozen weights in another precision, and its adapters in fp32."""
        vision, text = frozen_vision_model(self.config, dtype), frozen_text_model(self.config, dtype)
        return make_captioner(vision, text).to(self.settings.device)

    def in_int8(self) -> Any:
        """Return the captioner with its language model's weights in int8, and its adapters in fp32."""
        captioner = make_captioner(frozen_vision_model(self.config), unshared_text_model(self.config))
        ituning_hf.quantize_frozen_weights(captioner)
        return captioner

    def peer(self, name: str) -> Peer:
        """Return a peer, the same one for every way, ready to caption."""
        if name not in self._peers:
            self._peers[name] = PEERS[name](self.config)
            self._peers[name].model.to(self.settings.device, self.dtype).eval()
        return self._peers[name]


def make_captioner(vision: Any, text: Any) -> ITuningForCaptioning:
    """Put adapters over built backbones, whose output is not zero: captions depend on the image."""
    own = ITuningConfig(vision_config=vision.config.to_dict(), text_config=text.config.to_dict())
    torch.manual_seed(0)
    captioner = ITuningForCaptioning(own, vision, text)
    for adapter in captioner.adapters().values():
        torch.nn.init.normal_(adapter.out_proj.weight, std=0.02)
    return captioner.eval()


def _bare(models: Models, **options: Any) -> Generate:
    begin = torch.full((models.settings.num_images, 1), models.gpt2.config.bos_token_id)
    begin = begin.to(models.settings.device)
    text = {"attention_mask": torch.ones_like(begin), "pad_token_id": models.gpt2.config.eos_token_id}
    return partial(models.gpt2.generate, begin, **text, **models.settings.length | options)


def _features(models: Models, captioner: Any = None, **options: Any) -> Generate:
    if captioner is None:
        captioner, features = models.captioner, models.features
    else:  # whose encoder may be in another precision
        features = captioner.get_image_features(models.pictures.to(captioner.vision_model.dtype))
    return partial(captioner.generate, visual_features=features, **models.settings.length | options)


def _pictures(models: Models, **options: Any) -> Generate:
    length = models.settings.length | options
    return partial(models.captioner.generate, pixel_values=models.pictures, **length)


def _peft(models: Models) -> Generate:
    end = models.captioner.generation_config.pad_token_id
    options = {"encoder_hidden_states": models.features, "pad_token_id": end}
    return partial(models.peft.generate, **options, **models.settings.length)


def _peft_each_step(models: Models) -> Generate:
    model, own = models.peft.get_base_model(), models.captioner.generation_config
    begin = torch.full((models.settings.num_images, 1), own.bos_token_id, device=models.settings.device)
    text = {"attention_mask": torch.ones_like(begin), "pad_token_id": own.pad_token_id}
    image = {"encoder_hidden_states": models.features}
    return partial(model.generate, begin, **text, **image, **models.settings.length)


def _encoder_decoder_features(models: Models) -> Generate:
    model: Any = models.peer(ENCODER_DECODER_PEER).model
    with torch.no_grad():
        states = model.encoder(pixel_values=models.pictures).last_hidden_state
    length = models.settings.length
    # A new object for each call: generation writes the states repeated for the beams into it.
    return lambda: model.generate(encoder_outputs=BaseModelOutput(states), **length)


def _peer(name: str) -> Callable[[Models], Generate]:
    return lambda models: partial(models.peer(name).generate, models.pictures, **models.settings.length)


def _compiled() -> dict[str, Any]:
    """Return what makes `generate` compile each step over a cache of fixed size."""
    config = CompileConfig()
    config._compile_all_devices = True  # Transformers compiles on a CPU only where that is set
    return {"num_beams": 1, "cache_implementation": "static", "compile_config": config}


@dataclass(frozen=True)
class Way:
    """One way to caption.

    Args:
        note: What a reader should know beside the name.
        build: Builds what it runs, and returns the call.
        floor: The floor that it stands on.
        same_captions: Whether in fp32 its captions must be the captioner's.
        changes: Whether it is the captioner in another precision, whose changed captions are counted.
    """

    note: str
    build: Callable[[Models], Generate]
    floor: str = "bare GPT-2"
    same_captions: bool = False
    changes: bool = False


FLOOR, GREEDY_FLOOR, COMPILED_FLOOR = "bare GPT-2", "bare GPT-2, greedy", "bare GPT-2, greedy, compiled"
FEATURES, PICTURES = "I-Tuning, stored features", "I-Tuning, pictures"
PEFT, ENCODER_DECODER = "PEFT, stored features", "VisionEncoderDecoder, pictures"
ENCODER_DECODER_PEER = "VisionEncoderDecoder"
IN_BF16, IN_INT8 = f"{FEATURES}, frozen in bf16", f"{FEATURES}, language model in int8"

WAYS: dict[str, Way] = {
    FLOOR: Way("no image", _bare),
    FEATURES: Way("images encoded off the clock", _features, same_captions=True),
    IN_BF16: Way(
        "images encoded off the clock, adapters in fp32",
        lambda models: _features(models, models.frozen_in(torch.bfloat16)),
        changes=True,
    ),
    IN_INT8: Way(
        "images encoded off the clock, adapters in fp32",
        lambda models: _features(models, models.in_int8()),
        changes=True,
    ),
    PICTURES: Way("images encoded on the clock", _pictures, same_captions=True),
    PEFT: Way("images encoded off the clock", _peft, same_captions=True),
    f"{PEFT}, each step": Way(
        "images encoded off the clock, keys and values projected each step",
        _peft_each_step,
        same_captions=True,
    ),
    ENCODER_DECODER: Way("images encoded on the clock", _peer(ENCODER_DECODER_PEER)),
    "VisionEncoderDecoder, stored features": Way("encoder_outputs given", _encoder_decoder_features),
    "GIT, pictures": Way("images encoded on the clock", _peer("GIT")),
    "BLIP, pictures": Way("images encoded on the clock", _peer("BLIP")),
    "ClipCap prefix, pictures": Way("images encoded on the clock", _peer("ClipCap prefix")),
    GREEDY_FLOOR: Way("no image, no beams", partial(_bare, num_beams=1), GREEDY_FLOOR),
    f"{FEATURES}, greedy": Way(
        "images encoded off the clock, no beams", partial(_features, num_beams=1), GREEDY_FLOOR
    ),
    f"{PICTURES}, greedy": Way(
        "images encoded on the clock, no beams", partial(_pictures, num_beams=1), GREEDY_FLOOR
    ),
}
COMPILED_WAYS: dict[str, Way] = {
    COMPILED_FLOOR: Way(
        "no image, no beams, static cache", lambda models: _bare(models, **_compiled()), COMPILED_FLOOR
    ),
    f"{FEATURES}, greedy, compiled": Way(
        "images encoded off the clock, no beams, static cache",
        lambda models: _features(models, **_compiled()),
        COMPILED_FLOOR,
    ),
}
ALL_WAYS = WAYS | COMPILED_WAYS


def way_names(settings: CaptionSettings, compiled: bool) -> list[str]:
    """Return the ways there are at a size and precision."""
    missing = {f"{name}, pictures" for name in ("GIT", "BLIP") if name not in peer_names(settings.size)}
    if settings.dtype != "float32":
        missing |= {IN_BF16, IN_INT8}
    if settings.device != "cpu":
        missing.add(IN_INT8)
    return [name for name in WAYS if name not in missing] + ([*COMPILED_WAYS] if compiled else [])


def build_way(name: str, settings: CaptionSettings) -> Generate:
    """Build one way, in a process where there is no other."""
    return ALL_WAYS[name].build(Models(settings))


def build_ways(names: list[str], settings: CaptionSettings) -> dict[str, Generate]:
    """Build ways that share what they can."""
    models = Models(settings)
    return {name: ALL_WAYS[name].build(models) for name in names}


def count_changed(ways: dict[str, Generate], settings: CaptionSettings) -> dict[str, int]:
    """Run the captioner's ways once, and return how many of its captions each changes.

    Raises:
        RuntimeError: if one changes some that must not.
    """
    ours = [name for name in ways if ALL_WAYS[name].same_captions or ALL_WAYS[name].changes]
    if FEATURES not in ours:
        return {}
    expected = ways[FEATURES]()
    changed = {name: int((ways[name]() != expected).any(dim=1).sum()) for name in ours}
    wrong = [name for name, count in changed.items() if count and WAYS[name].same_captions]
    if wrong and settings.dtype == "float32":  # in bf16 rounding may tip a caption, and is reported
        raise RuntimeError(f"{wrong} give other captions than {FEATURES!r}, with the same weights.")
    return changed
