"""The benchmark of the server runs."""

import multiprocessing.dummy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import benchmark_serving
import pytest
from benchmark_serving import REFERENCE, Server
from processes import Command

from ituning_hf.data.scenes import make_scene


@pytest.fixture
def flags(saved_captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Name a captioner and four images; the server is forked from a process that has imported everything."""

    @contextmanager
    def running_server(model: str) -> Iterator[Server]:
        command = Command(["serve", model, "--port", "0"], tmp_path / "output")
        while (found := re.search(r" at http://(\S+)", command.printed)) is None:
            command.process.join(0.05)
            assert command.process.is_alive(), command.printed
        try:
            yield Server(command.process.pid, found[1])
        finally:
            command.kill()

    monkeypatch.setattr(benchmark_serving, "PROCESSES", multiprocessing.dummy)  # threads
    monkeypatch.setattr(benchmark_serving, "running_server", running_server)
    (tmp_path / "images").mkdir()
    for index in range(4):
        (tmp_path / "images" / f"{index}.png").write_bytes(make_scene(0, index).to_png())
    return ["--model", str(saved_captioner), "--images", str(tmp_path / "images")]


def test_throughput(flags: list[str]):
    report = benchmark_serving.main([*flags, "--rounds", "1", "--clients", "1", "4"])
    reference, one, four = report["tables"]["throughput"]
    assert (reference[""], one[""], four[""]) == (REFERENCE, "server, 1 at once", "server, 4 at once")
    assert reference["/ caption"] == one["images a batch"] == 1
    assert 1 <= four["images a batch"] <= 4
    assert all(row["images/s"] > 0 and row["CPU s per image"] > 0 for row in (reference, one, four))
    assert all(0 < row["p50 ms"] <= row["p95 ms"] for row in (one, four))


def test_overload(flags: list[str]):
    report = benchmark_serving.main([*flags, "--minutes", "0.01"])
    values = {row[""]: row["value"] for row in report["tables"]["overload"]}
    assert values["requests"] == sum(values[f"status {status}"] for status in (200, 429, 503)) > 0
    assert values["other statuses, or no answer"] == values["captions other than alone"] == 0
    assert values["MB in the first minute"] > 0
