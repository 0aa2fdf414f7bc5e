"""Time ways of doing the same, in turns, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timings:
    """Seconds of each round, by way.

    Args:
        seconds: For each way, as many as there were rounds that count.
    """

    seconds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Return a way's median seconds."""
        return statistics.median(self.seconds[way])

    def quartiles(self, way: str) -> tuple[float, float]:
        """Return a way's first and third quartile; of a single round, that round twice."""
        seconds = self.seconds[way]
        if len(seconds) == 1:
            return seconds[0], seconds[0]
        first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
        return first, third

    def ratio(self, way: str, over: str) -> float:
        """Return the median of the rounds' ratios, in each of which both ways met the same machine."""
        pairs = zip(self.seconds[way], self.seconds[over], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def ratio_if_measured(self, way: str, over: str) -> float | None:
        """Return the same, or None where one of them was not measured."""
        return self.ratio(way, over) if way in self.seconds and over in self.seconds else None


def measure(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    before_round: Callable[[int], object] | None = None,
    device: torch.device | str = "cpu",
) -> Timings:
    """Time each way once a round, in another order each round.

    Args:
        ways: What to call, by name.
        rounds: How many count.
        warm_up: How many are run before that and do not count.
        before_round: Called with the round's number before each round, warm-up included, off the clock: new
            inputs for all ways.
        device: Where the ways compute; a CUDA device is waited for before and after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(warm_up + rounds):
        if before_round is not None:
            before_round(i)
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            taken = _seconds(ways[name], torch.device(device))
            if i >= warm_up:
                seconds[name].append(taken)
    return Timings(seconds)


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    way()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
