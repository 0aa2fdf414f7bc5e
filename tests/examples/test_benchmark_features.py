"""The benchmark of stored features, on small models of the same classes."""

import sys
from pathlib import Path

import benchmark_features
import pytest
from benchmarks.page_cache import cached_share, drop_from_cache
from benchmarks.sizes import captioner_config

from ituning_hf.features.shards import list_shards
from ituning_hf.features.store import FeatureStore


def test_a_store_is_cold_and_then_warm(tmp_path: Path):
    store = benchmark_features.make_store(tmp_path / "store", captioner_config("small"), "int8", 600)
    assert isinstance(store, FeatureStore)
    assert store.num_bytes > 600 * store.spec.bytes_per_image
    del store
    shards = list_shards(tmp_path / "store")
    drop_from_cache(shards)
    assert cached_share(shards) == 0
    assert benchmark_features.reading(tmp_path / "store", 7)() == 600
    assert cached_share(shards) > 0.99


def test_it_runs_small(monkeypatch, capsys):
    flags = ["--size", "small", "--images", "30", "--pictures", "4", "--rounds", "1", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark_features.py", *flags])
    benchmark_features.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in lines] == [
        "",
        *(
            f"read {storage}, {state}"
            for storage in ("bfloat16", "int8", "float32")
            for state in ("cold", "warm")
        ),
        "decode pictures",
        "decode and encode pictures",
        "training step",
        "",
        "on disk",
        "an image, bytes",
        "COCO (123,287)",
        "Flickr30k (31,014)",
        "Flickr8k (8,000)",
    ]
    assert lines[9].split()[-1] == "1.00x"


def test_what_the_papers_data_sets_take():
    sizes = list(benchmark_features.size_lines(captioner_config("base")))
    assert sizes[1].split()[3:] == ["302,592", "152,084", "605,184"]
    assert sizes[2].split()[2:] == ["37.3", "GB", "18.7", "GB", "74.6", "GB"]


def test_its_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_features.py", "--help"])
    with pytest.raises(SystemExit):
        benchmark_features.main()
    assert "what training takes of them" in capsys.readouterr().out
