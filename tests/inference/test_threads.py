"""Threads that share a captioner get the results of single-threaded calls, bit by bit."""

import copy
import gc
import logging
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from small_models import ADAPTER, IMAGE_SIZE, VISION
from tokenizers.normalizers import Lowercase
from torch import nn
from torch.utils import _device
from transformers import Cache, GPT2LMHeadModel, LogitsProcessor, PreTrainedModel

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor, quantize_frozen_weights
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.tuner.config import ITuningTunerConfig

THREADS = 8
CALLS = [6, pytest.param(1000, marks=pytest.mark.stress)]  # of each thread
SCORES = {"return_dict_in_generate": True, "output_scores": True}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 9},
    "the model's own settings": {},
    "several captions": {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 7},
    "constraints": {"bad_words_ids": [[207], [13, 14]], "no_repeat_ngram_size": 2, "max_new_tokens": 8},
    "no cache": {"use_cache": False, "num_beams": 2, "max_new_tokens": 4},
    "a short static cache": {"cache_implementation": "static", "max_new_tokens": 3},
    "a long static cache": {"cache_implementation": "static", "max_new_tokens": 13},
    "beams with a static cache": {"cache_implementation": "static", "num_beams": 3, "max_new_tokens": 6},
    "hidden states": {"output_hidden_states": True, "output_attentions": True, "max_new_tokens": 4},
    "top-1 sampling": {"do_sample": True, "top_k": 1, "max_new_tokens": 7},
}
Call = Callable[[], Any]


class FailingCall(NamedTuple):
    call: Call
    error: type[BaseException]
    message: str


class FailingProcessor(LogitsProcessor):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= 4:
            raise self.error("failed in a step")
        return scores


@pytest.fixture(autouse=True)
def _switch_threads_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three pictures, and a truncated one."""
    paths = [tmp_path / f"{colour}.jpg" for colour in ("red", "green", "blue", "broken")]
    for path in paths[:3]:
        Image.new("RGB", (44, 37), path.stem).save(path)
    paths[3].write_bytes(paths[0].read_bytes()[:200])
    return paths


def random_images(number: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(number, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def calls_of(model: Any, processor: Any, files: list[Path]) -> dict[str, Call]:
    """Calls to a captioner; no two have the same result."""
    prompts = processor(text=["a dog", "two red birds sit", "the"])
    memory = model.get_image_features(random_images(2, seed=5))
    ids = torch.randint(1, 300, (4, 6), generator=torch.Generator().manual_seed(1))
    searches = {
        name: {"pixel_values": random_images(1 + i % 3, seed=i), **options}
        for i, (name, options) in enumerate(SEARCHES.items())
    }
    searches["prompts"] = {"pixel_values": random_images(3), "num_beams": 3, "max_new_tokens": 4, **prompts}
    searches["three rows for an image"] = {"visual_features": memory[:1], "max_new_tokens": 5, **prompts}
    words = {"stop_strings": ["dog", " a"], "tokenizer": processor.tokenizer}
    searches["stop strings"] = {"pixel_values": random_images(2), "max_new_tokens": 6, **words}

    streamed, scored = random_images(1, seed=8), random_images(2)

    def stream() -> list[Any]:
        put: list[Any] = []
        streamer = SimpleNamespace(put=put.append, end=lambda: put.append("end"))
        model.generate(pixel_values=streamed, max_new_tokens=6, streamer=streamer)
        return put

    def score() -> Any:
        with torch.no_grad():
            return model(scored, ids, labels=ids)

    short = {"prompt": "a", "num_captions": 2, "num_beams": 3, "max_new_tokens": 5, "batch_size": 2}
    return {name: lambda kw=kw: model.generate(**SCORES, **kw) for name, kw in searches.items()} | {
        "a stream": stream,
        "a score": score,
        "attention": lambda: model.visual_attention(ids, visual_features=memory),
        "files": lambda: ituning_hf.caption(model, files[:3], processor, **short),
        "a broken file": lambda: [*ituning_hf.iter_captions(model, processor, files[2:], max_new_tokens=4)],
        **processor_calls(processor),
    }


def processor_calls(processor: Any) -> dict[str, Call]:
    picture = Image.linear_gradient("L").resize((50, 40))
    texts = ["a dog <|endoftext|> runs", "two red birds sit in a tree", "a man"]
    return {
        "prepared images": lambda: processor(images=[picture, picture]),
        "prompts as tokens": lambda: processor(text=texts),
        "captions as tokens": lambda: processor(images=[picture], captions=[texts]),
        "truncated captions": lambda: processor(captions=texts, max_length=5),
        "decoded captions": lambda: processor.batch_decode([[0, 65, 284, 0, 0]], skip_special_tokens=True),
    }


def failing_calls(model: Any, processor: Any, files: list[Path]) -> dict[str, FailingCall]:
    """Calls that must fail, before or during generation."""
    one, ids = {"pixel_values": random_images(1)}, torch.tensor([[0, 999]])
    found = {
        "no image": ({}, ValueError, "pixel_values"),
        "another shape": ({"pixel_values": one["pixel_values"][..., :7]}, ValueError, "shape"),
        "too many tokens": (one | {"max_new_tokens": 99}, ValueError, "positions"),
        "an unknown token": (
            one | {"input_ids": ids},
            ValueError,
            "input_ids contains 999, expected at most 299",
        ),
        "guidance": (one | {"guidance_scale": 2.0}, CaptionerError, "not supported"),
    }
    for beams in (1, 3):
        for error in (RuntimeError, KeyboardInterrupt):
            failing = {"num_beams": beams, "logits_processor": [FailingProcessor(error)]}
            found[f"{error.__name__}, {beams} beams"] = (one | failing, error, "a step")
    calls = {
        name: FailingCall(lambda kw=kw: model.generate(**kw), *expected)
        for name, (kw, *expected) in found.items()
    }
    return calls | {
        "a broken file": FailingCall(
            lambda: ituning_hf.caption(model, files, processor, max_new_tokens=4),
            UnreadableImageError,
            "broken.jpg",
        ),
        "an empty caption": FailingCall(lambda: processor(captions=["a", " "]), ValueError, "empty"),
    }


def plain(result: Any) -> Any:
    """Convert a result, with its tensors and caches, to nested tuples that can be compared."""
    if isinstance(result, torch.Tensor):
        return result.dtype, result.shape, result.tolist()
    if isinstance(result, Cache):
        result = [(layer.keys, layer.values) for layer in result.layers]
    if isinstance(result, Mapping):
        result = list(result.items())
    return tuple(map(plain, result)) if isinstance(result, list | tuple) else result


def results(calls: Mapping[str, Call]) -> dict[str, Any]:
    return {name: plain(call()) for name, call in calls.items()}


def changed(calls: Mapping[str, Call], expected: Mapping[str, Any]) -> list[str]:
    """Return the calls whose results differ from the expected ones."""
    return [name for name, call in calls.items() if plain(call()) != expected[name]]


def check_failure(failing: FailingCall) -> None:
    with pytest.raises(failing.error, match=failing.message):
        failing.call()


def run_in_threads(*tasks: Call) -> None:
    """Run tasks in threads of their own, and raise the first error."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        for running in [pool.submit(task) for task in tasks]:
            running.result()


def call_from_threads(
    calls: Mapping[str, Call],
    expected: Mapping[str, Any],
    times: int,
    failing: Mapping[str, FailingCall] | None = None,
) -> None:
    """Make random calls from many threads; a quarter of them fail if there are failing ones."""

    def use(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(times):
            if failing and draw.random() < 0.25:
                check_failure(failing[draw.choice(sorted(failing))])
            else:
                name = draw.choice(sorted(calls))
                assert not changed({name: calls[name]}, expected)

    run_in_threads(*(lambda seed=seed: use(seed) for seed in range(THREADS)))


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a call could leave behind on a model."""
    state: dict[str, Any] = {"generation": model.generation_config.to_dict()}
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        state[name] = type(module), sorted(vars(module)), module.training, hooks
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"{name} (data)"] = tensor._version, tensor.data_ptr(), tensor.grad
    return state


@pytest.mark.parametrize("times", CALLS)
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_threads_get_the_results_of_single_threaded_calls(
    captioner, processor, files, weights: str, times: int
):
    if weights == "int8":
        quantize_frozen_weights(captioner)
    calls, failing = calls_of(captioner, processor, files), failing_calls(captioner, processor, files)
    expected = results(calls)
    assert len({str(result) for result in expected.values()}) == len(calls)
    before = state_of(captioner)
    call_from_threads(calls, expected, times, failing)
    assert state_of(captioner) == before


@pytest.mark.parametrize("times", CALLS)
def test_threads_share_a_peft_model(backbones: dict[str, Path], times: int):
    config = ITuningTunerConfig(vision_hidden_size=VISION["hidden_size"], **ADAPTER)
    model: Any = get_peft_model(GPT2LMHeadModel.from_pretrained(backbones["text"]), config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ituning_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def call(images: int, **options: Any) -> Call:
        memory = torch.randn(images, 10, VISION["hidden_size"], generator=generator)
        options |= SCORES | {"visual_features": memory, "max_new_tokens": 7, "pad_token_id": 0}
        return lambda: model.generate(**options)

    searches = [{}, {"num_beams": 3}, {"use_cache": False}]
    calls = {f"{n} {search}": call(n, **search) for n in (1, 2, 3) for search in searches}
    failed = call(2, logits_processor=[FailingProcessor(RuntimeError)])
    failing = {
        "rows": FailingCall(call(2, input_ids=torch.ones(3, 2).long()), ValueError, "3 rows for 2 images"),
        "a step": FailingCall(failed, RuntimeError, "a step"),
    }
    for wrong in failing.values():
        check_failure(wrong)
    expected, before = results(calls), state_of(model)
    call_from_threads(calls, expected, times, failing)
    assert state_of(model) == before


def test_no_tensor_of_a_call_stays_in_memory(captioner, processor, files):
    calls, failing = calls_of(captioner, processor, files), failing_calls(captioner, processor, files)

    def tensors_after_all_calls() -> int:
        for call in calls.values():
            call()
        for wrong in failing.values():
            check_failure(wrong)
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for _ in range(8):  # Transformers keeps the last eight tables of stop strings
        calls["stop strings"]()
    assert tensors_after_all_calls() == tensors_after_all_calls()


# --- The processor: a fast tokenizer keeps the padding and truncation of its last call

TEXTS = ["a dog <|endoftext|> runs on the grass", "two"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "max_length", "max_length": 9, "truncation": True},
    {"truncation": True, "max_length": 3},
]


def test_calls_to_the_tokenizer_do_not_change_the_processors_results(processor):
    processor = copy.deepcopy(processor)  # the tokenizer keeps the settings, and saves them
    calls = processor_calls(processor)
    expected, stop = results(calls), threading.Event()

    def use() -> None:
        try:
            call_from_threads(calls, expected, times=20)
        finally:
            stop.set()

    def disturb(settings: dict[str, Any]) -> None:
        processor.tokenizer(TEXTS, **settings)
        while not stop.is_set():
            processor.tokenizer(TEXTS, **settings)

    run_in_threads(use, *(lambda settings=settings: disturb(settings) for settings in SETTINGS))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_copied_or_saved_processor_has_the_same_results(
    processor, copied: Any, settings: dict[str, Any], tmp_path: Path
):
    expected = results(processor_calls(processor))
    again = copied(processor)
    again.tokenizer(TEXTS, **settings)
    again.save_pretrained(tmp_path)
    for one in (again, ITuningProcessor.from_pretrained(tmp_path)):
        assert not changed(processor_calls(one), expected)


def test_changes_of_the_tokenizer_take_effect(processor):
    own = copy.deepcopy(processor)
    own.tokenizer.add_tokens(["dogdog"])
    assert own.encode_captions(["dogdog"])[0][1:-1] == [len(processor.tokenizer)]
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["dogdog"]})
    assert own.encode_captions(["dogdog"]) == processor.encode_captions(["dogdog"])
    own.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert own.encode_captions(["DOG"]) == processor.encode_captions(["dog"])


# --- Loading: Transformers changes state of the whole process while it builds a model


def process_state() -> tuple[Any, ...]:
    methods = PreTrainedModel.tie_weights, PreTrainedModel.init_weights, torch.nn.init.normal_, torch.linspace
    filters = logging.getLogger("transformers.modeling_utils").filters
    return *methods, torch.get_default_dtype(), _device.CURRENT_DEVICE, *filters


def test_captioners_load_in_threads_while_others_generate(captioner, tmp_path: Path):
    captioner.save_pretrained(tmp_path)
    memory = captioner.get_image_features(random_images(2))

    def generate(model: Any) -> Any:
        return model.generate(visual_features=memory, max_new_tokens=5, **SCORES)

    shared = {"vision_model": captioner.vision_model, "text_model": captioner.text_model}
    ways = [{}, {"dtype": torch.bfloat16}, shared, {"load_vision_model": False}]
    calls: dict[str, Call] = {
        f"loaded {i}": lambda way=way: generate(ITuningForCaptioning.from_pretrained(tmp_path, **way))
        for i, way in enumerate(ways)
    }
    calls["not loaded"] = lambda: generate(captioner)
    expected, before = results(calls), process_state()
    call_from_threads(calls, expected, times=2)
    assert process_state() == before


def test_results_do_not_depend_on_the_default_dtype(captioner, processor, files):
    """Transformers sets it for the whole process while a model of that dtype loads."""
    calls = calls_of(captioner, processor, files)
    del calls["constraints"]  # Transformers' bad_words_ids depend on it
    expected = results(calls)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert not changed(calls, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_meta_device_of_one_thread_is_not_that_of_another(captioner, pixel_values):
    expected = captioner.generate(pixel_values=pixel_values)
    found: list[torch.Tensor] = []
    with torch.device("meta"):
        run_in_threads(lambda: found.append(captioner.generate(pixel_values=pixel_values)))
    assert torch.equal(found[0], expected)
