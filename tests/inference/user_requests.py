"""What users ask of one model at the same time, and what they should not have asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from PIL import Image
from small_models import ADAPTER, IMAGE_SIZE, VISION, make_captioner
from transformers import (
    GenerationConfig,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer
from users import Ask, Bad, answers, live, resident_megabytes, serve, state, until

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor, quantize_frozen_weights, save_captioner
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.tuner.config import ITuningTunerConfig

SHOW = {"return_dict_in_generate": True, "output_scores": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 9},
    "to the model's own length": {},
    "beams": {"num_beams": 4, "max_new_tokens": 8},
    "several captions": {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 7},
    "beams stopped early": {
        "num_beams": 3,
        "early_stopping": True,
        "length_penalty": 0.4,
        "max_new_tokens": 9,
    },
    "constraints": {"bad_words_ids": [[207], [13, 14]], "no_repeat_ngram_size": 2, "max_new_tokens": 8},
    "beams under constraints": {"num_beams": 3, "repetition_penalty": 1.4, "max_new_tokens": 7},
    "without a cache": {"use_cache": False, "max_new_tokens": 6},
    "beams without a cache": {"use_cache": False, "num_beams": 2, "max_new_tokens": 4},
    "a short static cache": {"cache_implementation": "static", "max_new_tokens": 3},
    "a long static cache": {"cache_implementation": "static", "max_new_tokens": 23},
    "beams in a static cache": {"cache_implementation": "static", "num_beams": 3, "max_new_tokens": 6},
    "inner states": {"output_hidden_states": True, "output_attentions": True, "max_new_tokens": 4},
    "settings of their own": {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=6)},
    "sampling of the likeliest": {"do_sample": True, "top_k": 1, "max_new_tokens": 7},
}


class Forbid(LogitsProcessor):
    """Forbids one token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([11]), -torch.inf)


class StopAt(StoppingCriteria):
    """Stops at a length."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 5)


class Collect(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


class BreakProcessor(LogitsProcessor):
    """Raises in the midst of decoding."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= 4:
            raise self.error("broken in the midst")
        return scores


class BreakCriterion(StoppingCriteria):
    """Raises in the midst of decoding."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] >= 4:
            raise self.error("broken in the midst")
        return torch.zeros(len(input_ids), dtype=torch.bool)


class BreakStream(Collect):
    """Raises in the midst of decoding."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        if len(self.tokens) >= 4:
            raise self.error("broken in the midst")


def images(number: int, seed: int = 3) -> torch.Tensor:
    """Prepared images."""
    return torch.randn(number, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def requests(model: Any, processor: Any, folder: Path) -> dict[str, Ask]:
    """What users ask of a captioner."""
    prompts = processor(text=["a dog", "two red birds sit", "the"])
    memory = model.get_image_features(images(2, seed=5))
    asked: dict[str, Ask] = {}

    def generate(name: str, **kwargs: Any) -> None:
        asked[name] = lambda: model.generate(**SHOW, **kwargs)

    for i, (name, options) in enumerate(OPTIONS.items()):
        generate(name, pixel_values=images(1 + i % 3, seed=i), **options)
    generate("prompts", pixel_values=images(3), max_new_tokens=5, **prompts)
    generate("prompts with beams", pixel_values=images(3), num_beams=3, max_new_tokens=4, **prompts)
    generate("three rows for an image", visual_features=memory[:1], max_new_tokens=5, **prompts)
    generate("stored features", visual_features=memory, num_beams=2, max_new_tokens=7)
    shared = {"logits_processor": LogitsProcessorList([Forbid()]), "stopping_criteria": [StopAt()]}
    generate("a processor and a criterion", pixel_values=images(2), max_new_tokens=9, **shared)
    words = {"stop_strings": ["dog", " a"], "tokenizer": processor.tokenizer}
    generate("stop words", pixel_values=images(2), max_new_tokens=6, **words)

    streamed, scored = images(1, seed=8), images(2)

    def stream() -> list[int]:
        streamer = Collect()
        model.generate(pixel_values=streamed, max_new_tokens=6, streamer=streamer)
        return streamer.tokens

    ids = torch.randint(1, 300, (4, 6), generator=torch.Generator().manual_seed(1))
    files = picture_files(folder)
    asked["a stream"] = stream
    asked["attention over the image"] = lambda: model.visual_attention(ids, visual_features=memory)
    asked["a score"] = lambda: no_graph(model, pixel_values=scored, input_ids=ids, labels=ids)
    asked["captions of files"] = lambda: ituning_hf.caption(
        model, files, processor, prompt="a", num_captions=2, num_beams=3, max_new_tokens=5, batch_size=2
    )
    asked["files, one of them broken"] = lambda: list(
        ituning_hf.iter_captions(model, processor, [files[0], folder / "broken.jpg"], max_new_tokens=4)
    )
    return asked | texts(processor)


def no_graph(model: Any, **inputs: Any) -> Any:
    """A forward pass for its results alone."""
    with torch.no_grad():
        return model(**inputs)


def texts(processor: Any) -> dict[str, Ask]:
    """What users ask of a processor."""
    picture = Image.linear_gradient("L").resize((50, 40))
    written = ["a dog <|endoftext|> runs", "two red birds sit in a tree", "a man"]
    ids = [[0, 65, 284, 71, 0, 0], [0, 293, 288, 294, 285, 0]]
    return {
        "prepared images": lambda: processor(images=[picture, picture]),
        "tokenized prompts": lambda: processor(text=written),
        "tokenized captions": lambda: processor(images=[picture], captions=[written]),
        "captions cut short": lambda: processor(captions=written, max_length=5),
        "decoded captions": lambda: processor.batch_decode(ids, skip_special_tokens=True),
    }


def picture_files(folder: Path) -> list[Path]:
    """Three pictures, and beside them one that is cut short."""
    files = [folder / f"{colour}.jpg" for colour in ("red", "green", "blue")]
    for file in files:
        if not file.exists():
            Image.new("RGB", (44, 37), file.stem).save(file)
    (folder / "broken.jpg").write_bytes(files[0].read_bytes()[:200])
    return files


def bad_requests(model: Any, processor: Any, folder: Path) -> dict[str, Bad]:
    """What users should not have asked of a captioner."""
    one, ids = images(1), torch.tensor([[0, 999]])
    refused: dict[str, tuple[dict[str, Any], str]] = {
        "no image": ({}, "neither of pixel_values"),
        "pixels of another shape": ({"pixel_values": one[..., :7]}, "pixel_values has shape"),
        "features of another width": ({"visual_features": torch.ones(1, 4, 3)}, "visual_features has shape"),
        "rows that do not fit": ({"pixel_values": images(2), "input_ids": ids}, "1 rows for 2 images"),
        "more tokens than positions": ({"pixel_values": one, "max_new_tokens": 99}, "positions"),
        "more captions than beams": (
            {"pixel_values": one, "num_return_sequences": 3},
            "num_return_sequences",
        ),
        "an option that does not exist": ({"pixel_values": one, "beams": 3}, "beams"),
        "padding on the right": (
            {"pixel_values": one, "input_ids": ids, "attention_mask": torch.tensor([[1, 0]])},
            "padded on the left",
        ),
    }
    bad = {name: Bad(_generate(model, kw), ValueError, text) for name, (kw, text) in refused.items()}
    guided, paged = {"guidance_scale": 2.0}, {"cache_implementation": "paged"}
    for name, kwargs in {"guidance": guided, "continuous batching": paged}.items():
        bad[name] = Bad(
            _generate(model, {"pixel_values": one} | kwargs), NotImplementedError, "not supported"
        )
    unknown = {"pixel_values": one, "input_ids": ids}
    bad["a token outside the vocabulary"] = Bad(_generate(model, unknown), IndexError, "out of range")
    for beams in (1, 3):
        for error in (RuntimeError, KeyboardInterrupt, MemoryError):
            for name, place in _breaking(error, beams).items():
                kwargs = {"pixel_values": images(1), "num_beams": beams, "max_new_tokens": 9} | place
                name = f"{error.__name__} in a {name}, {beams} beams"
                bad[name] = Bad(_generate(model, kwargs), error, "broken in the midst")
    files = [*picture_files(folder), folder / "broken.jpg"]
    bad["a broken file"] = Bad(
        lambda: ituning_hf.caption(model, files, processor, num_beams=1), UnreadableImageError, "broken.jpg"
    )
    bad["an empty caption"] = Bad(lambda: processor(captions=["a", " "]), ValueError, "are empty")
    return bad


def _generate(model: Any, kwargs: Mapping[str, Any]) -> Ask:
    return lambda: model.generate(**kwargs)


def _breaking(error: type[BaseException], beams: int) -> dict[str, dict[str, Any]]:
    places = {
        "logits processor": {"logits_processor": LogitsProcessorList([BreakProcessor(error)])},
        "stopping criterion": {"stopping_criteria": [BreakCriterion(error)]},
    }
    return places if beams > 1 else places | {"streamer": {"streamer": BreakStream(error)}}


def peft_requests(text: Path) -> tuple[Any, dict[str, Ask], dict[str, Bad]]:
    """A PEFT model over a GPT-2, what users ask of it, and what they should not have asked."""
    config = ITuningTunerConfig(vision_hidden_size=VISION["hidden_size"], **ADAPTER)
    model: Any = get_peft_model(GPT2LMHeadModel.from_pretrained(text), config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ituning_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    memory = {n: torch.randn(n, 10, VISION["hidden_size"], generator=generator) for n in (1, 2, 3)}
    ways = {"greedily": {}, "with beams": {"num_beams": 3}, "without a cache": {"use_cache": False}}

    def ask(images: int, options: dict[str, Any]) -> Ask:
        options = SHOW | {"max_new_tokens": 7, "pad_token_id": 0} | options
        return lambda: model.generate(encoder_hidden_states=memory[images], **options)

    asked = {f"{n} images {way} (PEFT)": ask(n, options) for n in memory for way, options in ways.items()}
    rows = ask(2, {"input_ids": torch.ones(3, 2).long()})
    bad = {
        "no image (PEFT)": Bad(lambda: model.generate(max_new_tokens=2), ValueError, "encoder_hidden_states"),
        "rows that do not fit (PEFT)": Bad(rows, ValueError, "3 rows for 2 images"),
    }
    for error in (RuntimeError, KeyboardInterrupt):
        broken = ask(2, {"logits_processor": [BreakProcessor(error)]})
        bad[f"{error.__name__} (PEFT)"] = Bad(broken, error, "broken in the midst")
    return model, asked, bad


def endure(backbones: Mapping[str, Path], folder: Path, seconds: float, threads: int) -> dict[str, Any]:
    """Serve many users for so long after a fifth of it to warm up, and measure what grew meanwhile."""
    captioner, quantised = make_captioner(dict(backbones)), make_captioner(dict(backbones))
    quantize_frozen_weights(quantised)
    processor = ITuningProcessor.from_vision_text_pretrained(backbones["vision"], backbones["text"])
    save_captioner(captioner, processor, folder / "saved")
    _, asked, bad = peft_requests(backbones["text"])
    for name, model in {"fp32": captioner, "int8": quantised}.items():
        asked |= {f"{key} ({name})": ask for key, ask in requests(model, processor, folder).items()}
        bad |= {f"{key} ({name})": wrong for key, wrong in bad_requests(model, processor, folder).items()}
    shared = {"vision_model": captioner.vision_model, "text_model": captioner.text_model}
    for name, options in {"whole": {}, "shared": shared}.items():
        asked[f"a captioner that is loaded {name}"] = lambda options=options: (
            ITuningForCaptioning.from_pretrained(folder / "saved", **options).generate(
                pixel_values=memoised, max_new_tokens=4, **SHOW
            )
        )
    memoised = images(2)
    # Nobody's result is compared: they call in ways that share state with the others' requests.
    noise = {"pixel_values": images(2), "do_sample": True, "max_new_tokens": 6}
    asked["a sample"] = lambda: captioner.generate(**noise).shape[0]
    asked["the tokenizer"] = lambda: len(
        processor.tokenizer(["a dog"], truncation=True, max_length=1).input_ids
    )
    expected, before = answers(asked), [state(model) for model in (captioner, quantised)]
    serve(asked, expected, bad, threads, until(seconds / 5))
    tensors, objects = live()
    megabytes = resident_megabytes()
    served = serve(asked, expected, bad, threads, until(seconds))
    end_tensors, end_objects = live()
    return {
        "right": served.right.total(),
        "failed": served.failed.total(),
        "wrong": served.wrong[:20],
        "never asked": sorted((set(asked) | set(bad)) - set(served.right) - set(served.failed)),
        "unchanged": before == [state(model) for model in (captioner, quantised)],
        "tensors": end_tensors - tensors,
        "objects": end_objects - objects,
        "megabytes": resident_megabytes() - megabytes,
    }
