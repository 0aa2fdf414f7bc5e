"""Many users of one model: each gets what it would get alone, and leaves nothing behind."""

import copy
import gc
import logging
import multiprocessing
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import user_requests as catalogue
import users
from small_models import make_captioner, save_backbones
from tokenizers.normalizers import Lowercase
from torch.utils import _device
from transformers import PreTrainedModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor, quantize_frozen_weights

THREADS = 8
REQUESTS = {"fp32": 12, "int8": 4}  # of each thread

# Of the long form
USERS = 32
DURATION = 300.0  # seconds, after a fifth of it to warm up
MEGABYTES = 40.0  # a cache kept by each of its requests would be some hundreds


@pytest.fixture(autouse=True)
def _restless() -> Iterator[None]:
    """Threads take turns far more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def model(request: pytest.FixtureRequest, backbones: dict[str, Path]) -> Any:
    captioner = make_captioner(backbones)
    if request.param == "int8":
        quantize_frozen_weights(captioner)
    return captioner


@pytest.mark.parametrize(("model", "times"), REQUESTS.items(), indirect=["model"])
def test_threads_get_what_each_gets_alone(model, times: int, processor, tmp_path: Path):
    asked = catalogue.requests(model, processor, tmp_path)
    expected = users.answers(asked)
    assert len({str(answer) for answer in expected.values()}) == len(asked)  # so that a mix-up shows
    bad = catalogue.bad_requests(model, processor, tmp_path)
    before = users.state(model)
    served = users.serve(asked, expected, bad, THREADS, lambda done: done < times)
    assert served.wrong == []
    assert users.state(model) == before


def test_threads_share_a_model_of_peft(backbones: dict[str, Path]):
    model, asked, bad = catalogue.peft_requests(backbones["text"])
    expected = users.answers(asked)
    for name, wrong in bad.items():
        assert users.outcome(wrong) is None, name
    before = users.state(model)
    served = users.serve(asked, expected, bad, THREADS, lambda done: done < REQUESTS["int8"])
    assert served.wrong == []
    assert users.state(model) == before


def test_nothing_of_a_request_stays(captioner, processor, tmp_path: Path):
    asked = catalogue.requests(captioner, processor, tmp_path)
    bad = catalogue.bad_requests(captioner, processor, tmp_path)

    def ask_all() -> None:
        for ask in asked.values():
            ask()
        for name, wrong in bad.items():
            assert users.outcome(wrong) is None, name

    ask_all()  # what is made once and kept
    for _ in range(8):  # tables of stop words, of which Transformers keeps the last eight
        asked["stop words"]()
    state, (tensors, things) = users.state(captioner), users.live()
    ask_all()
    assert users.state(captioner) == state
    found_tensors, found_things = users.live()
    assert found_tensors == tensors
    assert found_things - things < len(asked)  # a cache kept by each would be six things and more


@pytest.mark.stress
def test_many_users_for_a_long_time(tmp_path: Path):
    arguments = save_backbones(tmp_path / "backbones"), tmp_path, DURATION, USERS
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(catalogue.endure, *arguments).result()
    assert found["wrong"] == [], found
    assert found["unchanged"]
    assert found["never asked"] == []
    # Each of a hundred kinds of requests comes dozens of times: what one of them kept would show.
    assert found["tensors"] < 20
    assert found["objects"] < 100
    assert found["megabytes"] < MEGABYTES


class Watch(catalogue.BreakProcessor):
    """Breaks, and knows what it was given."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen = weakref.ref(input_ids), weakref.ref(scores)
        return super().__call__(input_ids, scores)


def test_a_broken_requests_image_is_let_go(captioner):
    image, watch = catalogue.images(1), Watch(RuntimeError)
    with pytest.raises(RuntimeError, match="in the midst"):
        captioner.generate(pixel_values=image, logits_processor=[watch])
    held = [weakref.ref(image), *watch.seen]
    del image
    gc.collect()
    assert [reference() for reference in held] == [None] * 3


def test_a_request_does_not_lengthen_the_static_caches_of_others(captioner, pixel_values):
    def scores(length: int) -> Any:
        options = {"cache_implementation": "static", "max_new_tokens": length, **catalogue.SHOW}
        return users.frozen(captioner.generate(pixel_values=pixel_values, **options))

    expected = scores(4)
    long, short = scores(40), scores(4)
    assert not users.equal(long, expected)
    assert users.equal(short, expected)  # also the caches, whose lengths are their own


# --- The processor: a fast tokenizer keeps its last caller's settings

WRITTEN = ["a dog <|endoftext|> runs on the grass", "two"]
CALLS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "max_length", "max_length": 9, "truncation": True},
    {"truncation": True, "max_length": 3},
]


def test_who_calls_the_tokenizer_disturbs_no_processor(processor):
    texts = catalogue.texts(processor)
    expected = users.answers(texts)
    disturbed = [0] * len(CALLS)
    stop = threading.Event()

    def disturb(i: int) -> None:
        while not stop.is_set():
            processor.tokenizer(WRITTEN, **CALLS[i])
            disturbed[i] += 1

    def use() -> None:
        try:
            served = users.serve(texts, expected, {}, THREADS, lambda done: done < 25)
            assert served.wrong == []
        finally:
            stop.set()

    error: list[BaseException] = []

    def guarded() -> None:
        try:
            use()
        except BaseException as caught:
            error.append(caught)

    users.run_threads([guarded, *(lambda i=i: disturb(i) for i in range(len(CALLS)))])
    assert error == []
    assert min(disturbed) > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
@pytest.mark.parametrize("call", CALLS)
def test_a_copied_processor_reads_as_before(processor, copied: Any, call: dict[str, Any], tmp_path: Path):
    expected = users.answers(catalogue.texts(processor))
    processor.tokenizer(WRITTEN, **call)
    again = copied(processor)
    again.tokenizer(WRITTEN, **call)
    again.save_pretrained(tmp_path)
    for one in (again, ITuningProcessor.from_pretrained(tmp_path)):
        assert users.equal(tuple(users.answers(catalogue.texts(one)).items()), tuple(expected.items()))


def test_tokens_added_later_are_read(processor):
    own = copy.deepcopy(processor)
    assert len(own.encode_captions(["dogdog"])[0]) > 3
    own.tokenizer.add_tokens(["dogdog"])
    assert own.encode_captions(["dogdog"])[0][1:-1] == [len(processor.tokenizer)]
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["dogdog"]})  # and then none the more
    assert own.encode_captions(["dogdog"]) == processor.encode_captions(["dogdog"])


def test_a_normaliser_that_is_set_later_is_used(processor):
    own = copy.deepcopy(processor)
    assert own.encode_captions(["DOG"]) != processor.encode_captions(["dog"])
    own.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert own.encode_captions(["DOG"]) == processor.encode_captions(["dog"])


# --- Loading: what Transformers changes for the whole process while it builds a model


def of_the_process() -> tuple[Any, ...]:
    """What loading changes for a moment."""
    methods = PreTrainedModel.tie_weights, PreTrainedModel.init_weights
    filters = logging.getLogger("transformers.modeling_utils").filters
    return (
        *methods,
        torch.get_default_dtype(),
        torch.linspace,
        torch.nn.init.normal_,
        _device.CURRENT_DEVICE,
        *filters,
    )


def test_captioners_load_in_threads_while_others_generate(captioner, tmp_path: Path):
    captioner.save_pretrained(tmp_path)
    shared = {"vision_model": captioner.vision_model, "text_model": captioner.text_model}
    ways = {
        "fp32": {},
        "bf16": {"dtype": torch.bfloat16},
        "shared": shared,
        "eyeless": {"load_vision_model": False},
    }
    memory = captioner.get_image_features(catalogue.images(2))

    def ask(model: Any) -> Any:
        return model.generate(visual_features=memory, max_new_tokens=5, **catalogue.SHOW)

    asked: dict[str, users.Ask] = {
        name: lambda options=options: ask(ITuningForCaptioning.from_pretrained(tmp_path, **options))
        for name, options in ways.items()
    }
    asked["without loading"] = lambda: ask(captioner)
    expected, before = users.answers(asked), of_the_process()
    served = users.serve(asked, expected, {}, THREADS, lambda done: done < 2)
    assert served.wrong == []
    assert of_the_process() == before


def test_captions_do_not_depend_on_the_default_precision(captioner, processor, tmp_path: Path):
    """Transformers sets it for the whole process while a model of that precision loads."""
    asked = catalogue.requests(captioner, processor, tmp_path)
    del asked["constraints"]  # Transformers' own bad_words_ids go by it
    expected = users.answers(asked)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = users.answers(asked)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [name for name in asked if not users.equal(found[name], expected[name])] == []


def test_where_one_thread_builds_another_does_not(captioner, pixel_values):
    """The meta device, on which loading builds, is a thread's own."""
    expected = captioner.generate(pixel_values=pixel_values)
    found: list[torch.Tensor] = []
    with torch.device("meta"):
        users.run_threads([lambda: found.append(captioner.generate(pixel_values=pixel_values))])
    assert torch.equal(found[0], expected)
