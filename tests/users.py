"""What users ask of one model at the same time, good and bad, and how their answers are compared."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_models import IMAGE_SIZE
from torch import nn
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import ituning_hf
from ituning_hf.data.images import UnreadableImageError

Ask = Callable[[], Any]
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


@dataclass(frozen=True)
class Bad:
    """A request that must fail, and how."""

    ask: Ask
    error: type[BaseException]
    message: str


@dataclass
class Served:
    """What came of many requests."""

    right: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # as they should
    wrong: list[str] = field(default_factory=list)


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

    def stream() -> list[int]:
        streamer = Collect()
        model.generate(pixel_values=images(1, seed=8), max_new_tokens=6, streamer=streamer)
        return streamer.tokens

    ids = torch.randint(1, 300, (4, 6), generator=torch.Generator().manual_seed(1))
    files = picture_files(folder)
    asked["a stream"] = stream
    asked["attention over the image"] = lambda: model.visual_attention(ids, visual_features=memory)
    asked["a score"] = lambda: no_graph(model, pixel_values=images(2), input_ids=ids, labels=ids)
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


def frozen(answer: Any) -> Any:
    """An answer as nested tuples, caches and all."""
    if isinstance(answer, Cache):
        answer = [(layer.keys, layer.values) for layer in answer.layers]
    if isinstance(answer, Mapping):
        return tuple((name, frozen(value)) for name, value in answer.items())
    return tuple(map(frozen, answer)) if isinstance(answer, list | tuple) else answer


def equal(one: Any, other: Any) -> bool:
    """Whether two frozen answers are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def answers(asked: Mapping[str, Ask]) -> dict[str, Any]:
    """What each request gets alone."""
    return {name: frozen(ask()) for name, ask in asked.items()}


def state(model: nn.Module) -> dict[str, Any]:
    """All that a request could leave behind on a model."""
    found: dict[str, Any] = {"generation": getattr(model, "generation_config", None).to_dict()}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, str, dict))}
        found[name] = (
            type(module),
            sorted(vars(module)),
            {k: str(v) for k, v in own.items() if k[:1] != "_"},
        )
        found[f"{name}: hooks"] = len(module._forward_hooks), len(module._forward_pre_hooks)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"{name}: written"] = tensor._version, tensor.data_ptr(), tensor.grad
    return found


def serve(
    asked: Mapping[str, Ask],
    expected: Mapping[str, Any],
    bad: Mapping[str, Bad],
    threads: int,
    goes_on: Callable[[int], bool],
    share_of_bad: float = 0.25,
) -> Served:
    """Ask at random from many threads, each while `goes_on` of its number of requests says so."""
    served, lock = Served(), threading.Lock()

    def use(seed: int) -> None:
        choice, done = random.Random(seed), 0
        while goes_on(done):
            done += 1
            is_bad = bool(bad) and choice.random() < share_of_bad
            name = choice.choice(sorted(bad if is_bad else asked))
            try:
                wrong = outcome(bad[name]) if is_bad else compared(asked[name], expected[name])
            except BaseException as error:  # a thread must not end unheard
                wrong = f"raised {error!r}"
            with lock:
                if wrong:
                    served.wrong.append(f"{name}: {wrong}")
                else:
                    (served.failed if is_bad else served.right)[name] += 1

    run_threads([lambda seed=seed: use(seed) for seed in range(threads)])
    return served


def compared(ask: Ask, expected: Any) -> str | None:
    """What is wrong with an answer."""
    return None if equal(frozen(ask()), expected) else "another answer than alone"


def outcome(bad: Bad) -> str | None:
    """What is wrong with a failure."""
    try:
        bad.ask()
    except bad.error as error:
        return None if bad.message in str(error) else f"another message: {error}"
    return "it did not fail"


def run_threads(tasks: Iterable[Callable[[], None]]) -> None:
    """Run tasks in threads of their own, to the end of the last."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until(seconds: float) -> Callable[[int], bool]:
    """For `serve`: go on for so long."""
    end = time.monotonic() + seconds
    return lambda done: time.monotonic() < end
