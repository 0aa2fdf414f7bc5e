"""The benchmark of streaming: memory does not grow with the number of images."""

import json
from pathlib import Path

import benchmark_stream
import pytest


def test_it_streams_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark_stream, "SHARD_SIZE", 40)
    monkeypatch.setattr(benchmark_stream, "BATCH_SIZE", 16)
    output = tmp_path / "stream.json"
    result = benchmark_stream.main(["--num_images", "400", "--num_workers", "1", "--output", str(output)])
    assert json.loads(output.read_text()) == result
    assert result["images"] == 400
    assert len(result["memory_mb"]) == 10


@pytest.mark.stress
def test_ten_million_images_need_no_more_memory_than_one_million():
    result = benchmark_stream.main(["--num_images", "10_000_000"])
    assert max(result["memory_mb"]) < min(result["memory_mb"]) + 50
    assert result["worker_mb"] < 50
