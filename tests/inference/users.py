"""Many users of one model: their requests from many threads, and how answers are compared."""

import gc
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Cache

Ask = Callable[[], Any]


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


def live() -> tuple[int, int]:
    """How many tensors there are, and how many objects."""
    gc.collect()
    things = gc.get_objects()
    return sum(issubclass(type(thing), torch.Tensor) for thing in things), len(things)


def resident_megabytes() -> float:
    """What this process holds in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
